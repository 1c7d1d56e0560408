// A layer of a few tokens: hot pairs where the activations are, cold pairs on the CPU, or fetched.

#include "pass/pass.h"

// Fetched experts take the first places of the stage.
static bool send_fetched(em_pass * p, const em_block & b) {
    em_engine *        e       = p->e;
    const em_layer_t & layer   = *b.layer;
    const auto &       fetched = p->misses.fetched;
    em_stage *         stage   = em_stage_for(e->residence, layer);
    if (!stage || !em_graph_for(p, *p->graphs.fetched[size_t(layer.index)], b, {&stage->places, nullptr, false, true})) {
        return false;
    }
    G.ggml_backend_event_wait(e->device.stream, p->sync.vacant[EM_FIRST]);
    for (size_t n = 0; n < fetched.size(); ++n) {
        const em_stage_run run = {fetched[n].expert, 1, int32_t(n)};
        for (int i = 0; i < PROJ_COUNT; ++i) {
            if (const ggml_tensor * w = layer.weight[i]) {
                em_send_run(p, layer.window[i], w, stage->places.weight[i], w->nb[2], run);
            }
            if (const ggml_tensor * bias = layer.bias[i]) {
                em_send_run(p, {}, bias, stage->places.bias[i], bias->nb[1], run);
            }
        }
    }
    if (!em_sent(p, EM_FIRST)) {
        return false;
    }
    e->count.fetched += int64_t(fetched.size());
    e->count.streamed_bytes += int64_t(fetched.size() * layer.expert_bytes);
    return true;
}

// Once the experts have arrived, the device computes all pairs over the stage, to scratch memory. Then it copies the rows of the
// fetched pairs to their places.
static int compute_fetched(em_pass * p, const em_block & b) {
    const em_device_graph & g      = *p->graphs.fetched[size_t(b.layer->index)];
    int32_t *               places = reinterpret_cast<int32_t *>(em_area_of(p, p->memory.places, em_ids_bytes(b), *b.layer));
    if (!places) {
        return STATUS_ALLOC_FAILED;
    }
    std::fill(places, places + b.k, 0);
    for (size_t n = 0; n < p->misses.fetched.size(); ++n) {
        places[p->misses.fetched[n].k] = int32_t(n);
    }
    G.ggml_backend_event_wait(p->compute, p->sync.filled[EM_FIRST]);
    em_before_sending(p);
    G.ggml_backend_tensor_set_async(p->compute, g.ids, places, 0, size_t(b.k) * 4);
    const int status = G.ggml_backend_graph_compute_async(p->compute, g.part[EM_FIRST]);
    G.ggml_backend_event_record(p->sync.vacant[EM_FIRST], p->compute);
    for (const em_pair & f : p->misses.fetched) {
        ggml_tensor from = em_some_rows(*g.down, f.k, 1), to = em_some_rows(*b.down(), f.k, 1);
        G.ggml_backend_tensor_copy_async(p->compute, p->compute, &from, &to);
    }
    return status;
}

// The CPU computes its pairs. Meanwhile fetched experts are sent and their pairs started, and the routing is reported.
static int compute_missed(em_pass * p, const em_block & b, em_cold kind) {
    em_engine *  e      = p->e;
    em_misses &  m      = p->misses;
    bool         sent   = true;
    int          status = STATUS_SUCCESS, fetch_status = STATUS_SUCCESS;
    em_side_task task;
    task.work = [&] {
        sent                 = m.fetched.empty() || send_fetched(p, b);
        const int64_t before = e->count.schedule_ns;
        em_report_view(p);
        task.apart_ns = e->count.schedule_ns - before;
        if (sent && !m.fetched.empty()) {
            fetch_status = compute_fetched(p, b);
        }
    };
    if (!m.cold.empty()) {
        status = em_cold_pairs(&p->cpu, p->view.block, m.cold, kind, &task);
    }
    task.run();
    if (task.thrown) {
        std::rethrow_exception(task.thrown);
    }
    if (!sent && status == STATUS_SUCCESS) {
        status = em_cold_pairs(&p->cpu, p->view.block, m.fetched, em_cold::OF_A_TOKEN);
        m.cold.insert(m.cold.end(), m.fetched.begin(), m.fetched.end());
    }
    if (status == STATUS_SUCCESS) {
        status = em_send_rows(p, b);
    }
    return status == STATUS_SUCCESS ? fetch_status : status;
}

// Finds the cold pairs, and counts hits and misses. `hot`: the device computes the pairs of experts in slots.
static void find_misses(em_pass * p, const em_block & b, bool hot, bool decode) {
    em_counters & c     = p->e->count;
    em_layer_t &  layer = *b.layer;
    p->misses.cold.clear(), p->misses.fetched.clear();
    em_each_pair(p->view.block.ids, [&](int32_t token, int32_t k, int32_t expert) {
        if (!hot || layer.residents.slot_of[size_t(expert)] < 0) {
            p->misses.cold.push_back({token, k, expert, -1});
        }
    });
    if (decode) {
        em_note_use(layer, p->view.block.ids);
    }
    em_ram_count(p->e->ram, layer, p->view.block.ids);
    const int64_t missed = int64_t(p->misses.cold.size());
    (decode ? c.hits : c.prefill_hits) += b.tokens * b.k - missed;
    (decode ? c.misses : c.prefill_misses) += missed;
    if (b.tokens > 1) {
        em_sort_by_expert(p->misses.cold);
    }
}

int em_decode_layer(em_pass * p, em_block & b) {
    if (!p->early && b.tokens > 1) {
        return em_by_host(p, b);
    }
    em_layer_t &                 layer  = *b.layer;
    const bool                   decode = p->e->decodes(b.tokens) && !p->prompt.active;
    std::unique_lock<std::mutex> lock(layer.residents.mutex);
    if (!em_view_start(p, b)) {
        return STATUS_ALLOC_FAILED;
    }
    const bool early = p->early && em_one_by_one_pairs(p, b);
    bool       hot   = early && em_start_by_table(p, b);
    em_view_wait(p);
    if (!em_ids_ok(p->view.block.ids, layer.experts)) {
        return STATUS_FAILED;
    }
    if (!early) {
        hot = em_start_sent(p, b, p->view.block.ids);
        if (!hot && em_has_hot(layer)) { // fewer slots than a token has experts
            lock.unlock();
            return em_by_host_seen(p, b);
        }
    }
    find_misses(p, b, hot, decode);
    if (!p->events) {
        G.ggml_backend_synchronize(p->compute); // without events the lock alone would not keep the slots from being overwritten
    }
    lock.unlock();
    if (p->misses.cold.empty()) {
        p->view.unreported = true; // reported later: the device first gets the next part of the graph
        return STATUS_SUCCESS;
    }
    if (decode && early && !layer.unsupported()) { // if nobody asked the device before, send_fetched does
        // ns. AFTER: a graph on the device, and copies of its rows. BESIDE: the start of a fetch.
        constexpr double AFTER = 25e3, BESIDE = 5e3;
        double           both = 0;
        p->misses.fetched     = em_take_fetched(p->e, layer, p->misses.cold, AFTER, BESIDE, &both);
    }
    return compute_missed(p, b, decode && !early ? em_cold::OF_A_TOKEN_OR_FETCHED : em_cold::OF_A_TOKEN);
}
