// One layer in host memory: its pairs divided, computed and put together.

#include "split/run.h"

// Whether the rows would overwrite an input that later pairs still read.
static bool overwrites_input(const em_block & b) {
    for (int i = 0; i < b.count; ++i) {
        for (const ggml_tensor * s : b.node[i]->src) {
            if (s && em_overlap(*s, *b.down())) {
                return true;
            }
        }
    }
    return false;
}

// Divides the pairs into hot and cold. The caller holds the layer's mutex until the device is done.
static em_split split_pairs(const em_block & b, bool device) {
    em_split s;
    em_each_pair(b.ids, [&](int32_t token, int32_t k, int32_t expert) {
        const int32_t slot = device ? b.layer->residents.slot_of[size_t(expert)] : -1;
        (slot >= 0 ? s.hot : s.cold).push_back({token, k, expert, slot});
    });
    if (b.tokens > 1) { // pairs of a single token keep their order, for the sum
        em_sort_by_expert(s.hot);
        em_sort_by_expert(s.cold);
    }
    return s;
}

// A single token without hot pairs and with the usual tail: the CPU computes the rows and their sum in one operation.
static int compute_sum(em_run & r, const em_split & s, const em_tail & tail) {
    em_ram_use ram(r.e->ram, *r.b.layer);
    if (!ram.need(s.cold.data(), int64_t(s.cold.size()))) {
        return STATUS_FAILED;
    }
    const int64_t   started = em_now_ns();
    const em_launch launch  = em_pairs_launch(r.cpu_side(true), r.b, s.cold.data(), int64_t(s.cold.size()), &tail);
    const int64_t   took    = em_now_ns() - started;
    r.e->count.cpu_ns += took;
    em_note_cold(r.e->rates, int64_t(s.cold.size()), double(took));
    return launch.status;
}

// If there are hot pairs, the caller holds the layer's mutex.
static int compute_split(em_run & r, em_split & s, bool decode) {
    em_engine *   e      = r.e;
    const int64_t cpu_ns = e->count.cpu_ns;
    int           status = decode ? r.compute(s) : em_compute_prefill(r, s);
    const bool    timed  = !r.task || !r.task->late; // after a late side task, cpu_ns holds its time, too
    if (decode && r.b.tokens == 1 && !s.cold.empty() && timed && status == STATUS_SUCCESS) {
        em_note_cold(e->rates, int64_t(s.cold.size()), double(e->count.cpu_ns - cpu_ns));
    }
    if (!s.fetched.empty() && status == STATUS_SUCCESS) {
        status = em_finish_fetch(r, s);
    } else if (!s.fetched.empty()) {
        G.ggml_backend_synchronize(e->device.stream); // the next layer uses the stage
    }
    return status;
}

int em_host_block(em_context * c, em_block & b, const em_tail * tail) {
    em_engine *                 e = b.engine;
    em_run                      r{c, e, b};
    std::lock_guard<std::mutex> lock(b.layer->residents.mutex);
    const bool                  decode = e->decodes(b.tokens), device = em_device_usable(e->device, *b.layer);
    em_split                    s = split_pairs(b, device);
    em_ram_count(e->ram, *b.layer, b.ids);
    if (decode) {
        em_note_use(*b.layer, b.ids);
        e->count.hits += int64_t(s.hot.size());
        e->count.misses += int64_t(s.cold.size());
    }
    if (device && decode && b.tokens == 1) {
        em_fetch_now(r, s);
    }
    if (s.hot.empty() && s.fetched.empty() && tail && em_fusable(b)) {
        return compute_sum(r, s, *tail);
    }
    void * const      rows = b.down()->data;
    std::vector<char> apart(overwrites_input(b) ? G.ggml_nbytes(b.down()) : 0);
    b.down()->data   = apart.empty() ? rows : apart.data();
    const int status = compute_split(r, s, decode);
    b.down()->data   = rows;
    std::copy(apart.begin(), apart.end(), static_cast<char *>(rows));
    if (tail && status == STATUS_SUCCESS) {
        em_tail_compute(b, *tail);
    }
    return status;
}

int em_cold_pairs(em_context * c, em_block & b, const std::vector<em_pair> & cold, em_cold kind, em_side_task * task) {
    em_run r{c, b.engine, b, task};
    if (kind == em_cold::OF_A_PROMPT) {
        const int64_t began  = em_now_ns();
        const int     status = r.compute_cold(cold);
        em_note_rate(r.e->rates.short_pair_ns, double(em_now_ns() - began) / double(cold.size()));
        return status;
    }
    em_split s;
    s.cold = cold;
    if (kind == em_cold::OF_A_TOKEN_OR_FETCHED && b.tokens == 1 && r.e->decodes(1)) {
        em_fetch_now(r, s);
    }
    return compute_split(r, s, true);
}
