// One layer in host memory: its pairs divided, computed and put together.

#include "split/run.h"

#include <cstring>

namespace {

// Results go where the graph wants them, unless that memory is also an input that later pairs still read.
class block_output {
  public:
    explicit block_output(em_block & b) : block(b), original(b.down()->data) {
        if (overlaps_input()) {
            memory.resize(G.ggml_nbytes(b.down()));
            b.down()->data = memory.data();
        }
    }
    ~block_output() {
        if (block.down()->data != original) {
            memcpy(original, memory.data(), memory.size());
            block.down()->data = original;
        }
    }

  private:
    bool overlaps_input() const {
        const char * lo = static_cast<const char *>(original);
        const char * hi = lo + G.ggml_nbytes(block.down());
        for (int i = 0; i < block.count; ++i) {
            for (const ggml_tensor * s : block.node[i]->src) {
                const char * d = s ? static_cast<const char *>(s->data) : nullptr;
                if (d && d < hi && lo < d + G.ggml_nbytes(s)) {
                    return true;
                }
            }
        }
        return false;
    }
    em_block &        block;
    void *            original;
    std::vector<char> memory;
};

// Needs the layer's mutex, and it must be kept until the device is done.
em_split split_pairs(const em_block & b, bool device) {
    em_split s;
    for (int64_t t = 0; t < b.tokens; ++t) {
        const int32_t * row = em_ids_row(b.ids, t);
        for (int64_t i = 0; i < b.k; ++i) {
            const int32_t slot = device ? b.layer->residents.slot_of[size_t(row[i])] : -1;
            (slot >= 0 ? s.hot : s.cold).push_back({int32_t(t), int32_t(i), row[i], slot});
        }
    }
    if (b.tokens > 1) { // a single token's are perhaps summed in this order
        for (auto * pairs : {&s.hot, &s.cold}) {
            em_sort_by_expert(*pairs);
        }
    }
    return s;
}

// Every pair cold, a single token, and the usual tail: straight to the sum.
int run_cold(em_run & r, const em_split & s, const em_tail & tail) {
    const int64_t started = em_now_ns();
    em_launch     launch  = em_pairs_launch(r.cpu_side(true), r.b, s.cold.data(), int64_t(s.cold.size()), &tail);
    G.ggml_free(launch.ctx);
    const int64_t took = em_now_ns() - started;
    r.e->count.cpu_ns += took;
    em_note_cold(r.e->rates, int64_t(s.cold.size()), double(took));
    return launch.status;
}

// What was split, computed; the layer's mutex is the caller's where there are hot pairs.
int run_split(em_run & r, em_split & s, bool decode) {
    em_engine *   e      = r.e;
    const int64_t cpu_ns = e->count.cpu_ns;
    int           status = decode ? r.compute(s) : em_compute_prefill(r, s);
    const bool told = !r.task || !r.task->late; // else the time is the task's
    if (decode && r.b.tokens == 1 && !s.cold.empty() && told && status == STATUS_SUCCESS) {
        em_note_cold(e->rates, int64_t(s.cold.size()), double(e->count.cpu_ns - cpu_ns));
    }
    if (!s.fetched.empty()) {
        if (status == STATUS_SUCCESS) {
            status = em_finish_fetch(r, s);
        } else {
            G.ggml_backend_synchronize(e->device.stream); // the stage is somebody else's next
        }
    }
    return status;
}

} // namespace

int em_host_block(em_context * c, em_block & b, const em_tail * tail) {
    em_engine * e = b.engine;
    em_run r{c, e, b};
    std::lock_guard<std::mutex> lock(b.layer->residents.mutex);
    const bool decode = b.tokens < e->options.prefill_tokens;
    for (int64_t t = 0; decode && t < b.tokens; ++t) {
        em_note_use(*b.layer, em_ids_row(b.ids, t), b.k);
    }
    const bool device = em_device_usable(e->device, *b.layer);
    em_split   s      = split_pairs(b, device);
    if (decode) {
        e->count.hits += int64_t(s.hot.size());
        e->count.misses += int64_t(s.cold.size());
    }
    if (device && decode && b.tokens == 1) {
        em_fetch_now(r, s);
    }
    if (s.hot.empty() && s.fetched.empty() && tail && em_fusable(b)) {
        return run_cold(r, s, *tail);
    }
    block_output output(b);
    const int    status = run_split(r, s, decode);
    if (tail && status == STATUS_SUCCESS) {
        em_tail_compute(b, *tail);
    }
    return status;
}

int em_cold_pairs(em_context * c, em_block & b, const std::vector<em_pair> & cold, em_cold kind, em_side_task * task) {
    em_run   r{c, b.engine, b, task};
    em_split s;
    s.cold = cold;
    if (kind == em_cold::OF_A_PROMPT) {
        const int64_t began  = em_now_ns();
        const int     status = r.compute(s);
        em_note_rate(r.e->rates.short_pair_ns, double(em_now_ns() - began) / double(cold.size()));
        return status;
    }
    if (kind == em_cold::OF_A_TOKEN_OR_FETCHED && b.tokens == 1 && r.e->options.prefill_tokens > 1) {
        em_fetch_now(r, s);
    }
    return run_split(r, s, true);
}
