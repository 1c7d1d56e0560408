// The link of sim, and its options and faults; see sim_parts.h.

#include "device/sim_parts.h"
#include "errors.h"

#include <chrono>
#include <mutex>
#include <random>
#include <thread>

namespace {
struct {
    std::mutex      mutex; // guards everything here but the link
    em_sim_options  options{sizeof(em_sim_options), 0, 0, int64_t(1) << 40, 0, 0, 0, 0, 0, 1, 0, 0, 0, EM_SIM_CALLER};
    int64_t         used = 0, registered = 0, attempts[SIM_FAULTS] = {};
    std::mt19937_64 random{1};
    std::mutex      link; // one transfer at a time
} state;

std::lock_guard<std::mutex> locked() { return std::lock_guard<std::mutex>(state.mutex); }

// Reads host memory, as a device does that fetches by itself.
void read_once(const char * from, size_t size) {
    constexpr size_t                          LINE = 64;
    [[maybe_unused]] static volatile uint64_t seen; // otherwise the compiler leaves the reading out
    uint64_t                                  sum = 0;
    for (size_t at = 0; at + 8 <= size; at += LINE) {
        uint64_t word;
        memcpy(&word, from + at, 8);
        sum += word;
    }
    seen = sum;
}
} // namespace

// An allocation or a registration fails once, at attempt `period`. Copies and computations fail at every multiple of it.
bool em_sim_fails(em_sim_fault kind) {
    const auto             lock      = locked();
    const em_sim_options & o         = state.options;
    const int32_t          periods[] = {o.fail_alloc, o.fail_copy, o.fail_compute, o.fail_register};
    const int32_t          period    = periods[kind];
    const int64_t          attempts  = ++state.attempts[kind];
    const bool             once      = kind == SIM_ALLOC || kind == SIM_REGISTER;
    return period > 0 && (once ? attempts == period : attempts % period == 0);
}

bool em_sim_reserve(int64_t bytes) {
    const auto lock = locked();
    if (state.used + bytes > state.options.capacity && bytes > 0) {
        return false;
    }
    state.used += bytes;
    return true;
}

int64_t em_sim_free_memory() {
    const auto lock = locked();
    return state.options.capacity - state.used;
}

void em_sim_jitter() {
    int64_t us = 0;
    {
        const auto lock = locked();
        us              = state.options.jitter_us > 0 ? int64_t(state.random() % uint64_t(state.options.jitter_us + 1)) : 0;
    }
    if (us > 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(us));
    }
}

void em_sim_transfer(void * to, const void * from, size_t size, bool to_host) {
    const em_sim_options o  = em_sim_options_now();
    const double         us = o.latency_us + (o.bandwidth > 0 ? double(size) / double(o.bandwidth) * 1e6 : 0);
    if (us > 0) {
        std::lock_guard<std::mutex> lock(state.link);
        std::this_thread::sleep_for(std::chrono::duration<double, std::micro>(us));
    }
    if (o.compute_rate <= 0) {
        memcpy(to, from, size);
    } else if (to_host) {
        memset(to, 0, size);
    } else {
        read_once(static_cast<const char *>(from), size);
    }
}

void em_sim_pretend(const ggml_cgraph * graph, int64_t rate) {
    double bytes = 0;
    for (int i = 0; i < graph->n_nodes; ++i) {
        const ggml_tensor * t = graph->nodes[i];
        if (t->op == OP.mul_mat_id) {
            bytes += double(t->src[0]->nb[2]) * double(t->src[2]->ne[0] * t->src[2]->ne[1]);
        }
    }
    std::this_thread::sleep_for(std::chrono::duration<double>(bytes / double(rate)));
}

// Pretends to pin the caller's memory, and counts the pieces. The caller must unregister each piece.
bool em_sim_register(void *, size_t) {
    const bool fails = em_sim_fails(SIM_REGISTER);
    const auto lock  = locked();
    state.registered += !fails;
    return !fails;
}

void em_sim_unregister(void *) {
    const auto lock = locked();
    state.registered -= 1;
}

int64_t em_sim_registered() {
    const auto lock = locked();
    return state.registered;
}

em_sim_options em_sim_options_now() {
    const auto lock = locked();
    return state.options;
}

int32_t em_sim_configure(const em_sim_options * o) {
    if (!o || o->struct_bytes != int32_t(sizeof(*o)) || o->capacity < 0 || o->streams < EM_SIM_CALLER ||
        o->streams > EM_SIM_TRANSFER) {
        return em_fail(EM_ERROR_ARGUMENT, "the options of sim make no sense");
    }
    const auto lock = locked();
    state.options   = *o;
    memset(state.attempts, 0, sizeof(state.attempts));
    state.random.seed(o->seed);
    return EM_OK;
}
