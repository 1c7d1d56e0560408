// See sim_link.h.

#include "device/sim_link.h"

#include "errors.h"

#include <chrono>
#include <cstring>
#include <thread>

em_sim_state & em_sim_state_now() {
    static em_sim_state s;
    return s;
}

bool em_sim_nth(int64_t & counter, int32_t period, bool once) {
    std::lock_guard<std::mutex> lock(em_sim_state_now().mutex);
    ++counter;
    return period > 0 && (once ? counter == period : counter % period == 0);
}

void em_sim_jitter() {
    int64_t us = 0;
    {
        std::lock_guard<std::mutex> lock(em_sim_state_now().mutex);
        if (em_sim_state_now().options.jitter_us > 0) {
            us = int64_t(em_sim_state_now().random() % uint64_t(em_sim_state_now().options.jitter_us + 1));
        }
    }
    if (us > 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(us));
    }
}

// Reads host memory as a device does that fetches by itself.
static void read_once(const char * from, size_t size) {
    constexpr size_t LINE = 64;
    [[maybe_unused]] static volatile uint64_t seen; // else the compiler leaves the reading out
    uint64_t sum = 0;
    for (size_t at = 0; at + 8 <= size; at += LINE) {
        uint64_t word;
        memcpy(&word, from + at, 8);
        sum += word;
    }
    seen = sum;
}

void em_sim_transfer(void * to, const void * from, size_t size, bool to_host) {
    em_sim_options o;
    {
        std::lock_guard<std::mutex> lock(em_sim_state_now().mutex);
        o = em_sim_state_now().options;
    }
    double us = o.latency_us;
    if (o.bandwidth > 0) {
        us += double(size) / double(o.bandwidth) * 1e6;
    }
    if (us > 0) {
        std::lock_guard<std::mutex> lock(em_sim_state_now().link);
        std::this_thread::sleep_for(std::chrono::duration<double, std::micro>(us));
    }
    if (o.compute_rate > 0) {
        if (to_host) {
            memset(to, 0, size);
        } else {
            read_once(static_cast<const char *>(from), size);
        }
        return;
    }
    memcpy(to, from, size);
}

// A device that only pretends takes the time to read the weights of every pair.
void em_sim_pretend(const ggml_cgraph * graph, int64_t rate) {
    double bytes = 0;
    for (int i = 0; i < G.ggml_graph_n_nodes(const_cast<ggml_cgraph *>(graph)); ++i) {
        const ggml_tensor * t = G.ggml_graph_node(const_cast<ggml_cgraph *>(graph), i);
        if (t->op == OP.mul_mat_id) {
            bytes += double(t->src[0]->nb[2]) * double(t->src[2]->ne[0] * t->src[2]->ne[1]);
        }
    }
    std::this_thread::sleep_for(std::chrono::duration<double>(bytes / double(rate)));
}

// A driver that pins the caller's memory. It must be given back piece by piece.
bool em_sim_register(void *, size_t) {
    if (em_sim_nth(em_sim_state_now().registrations, em_sim_state_now().options.fail_register, true)) {
        return false;
    }
    std::lock_guard<std::mutex> lock(em_sim_state_now().mutex);
    em_sim_state_now().registered += 1;
    return true;
}
void em_sim_unregister(void *) {
    std::lock_guard<std::mutex> lock(em_sim_state_now().mutex);
    em_sim_state_now().registered -= 1;
}

int64_t em_sim_registered() {
    std::lock_guard<std::mutex> lock(em_sim_state_now().mutex);
    return em_sim_state_now().registered;
}

em_sim_options_read em_sim_options_now() {
    std::lock_guard<std::mutex> lock(em_sim_state_now().mutex);
    const em_sim_options & o = em_sim_state_now().options;
    return {o.fetch_all, o.streams, o.early != 0, o.fail_copy != 0};
}

int32_t em_sim_configure(const em_sim_options * o) {
    if (!o || o->struct_bytes != int32_t(sizeof(*o)) || o->capacity < 0 || o->streams < EM_SIM_CALLER ||
        o->streams > EM_SIM_TRANSFER) {
        return em_fail(EM_ERROR_ARGUMENT, "sim options");
    }
    std::lock_guard<std::mutex> lock(em_sim_state_now().mutex);
    em_sim_state_now().options = *o;
    em_sim_state_now().allocations = em_sim_state_now().copies = em_sim_state_now().computations = em_sim_state_now().registrations = 0;
    em_sim_state_now().random.seed(o->seed);
    return EM_OK;
}
