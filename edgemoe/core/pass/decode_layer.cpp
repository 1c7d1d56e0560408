// A layer of a few tokens: hot pairs where the activations are, cold ones on the CPU, or fetched.

#include "pass/pass.h"

namespace {

// The CPU's pairs, while what is to be fetched is sent and started, and the routing told.
int compute_missed(em_pass * p, const em_block & b, em_cold kind) {
    em_engine * e = p->e;
    bool        sent = true;
    int         status = STATUS_SUCCESS, there = STATUS_SUCCESS;
    em_side_task   task;
    task.work = [&] {
        sent = p->misses.fetched.empty() || em_send_fetched(p, b);
        const int64_t before = e->count.schedule_ns;
        em_report_view(p);
        task.apart_ns = e->count.schedule_ns - before;
        if (sent && !p->misses.fetched.empty()) {
            there = em_compute_fetched(p, b);
        }
    };
    if (!p->misses.cold.empty()) {
        status = em_cold_pairs(&p->cpu, p->view.block, p->misses.cold, kind, &task);
    }
    task.run();
    if (task.thrown) {
        std::rethrow_exception(task.thrown);
    }
    if (!sent && status == STATUS_SUCCESS) {
        status = em_cold_pairs(&p->cpu, p->view.block, p->misses.fetched, em_cold::OF_A_TOKEN);
        p->misses.cold.insert(p->misses.cold.end(), p->misses.fetched.begin(), p->misses.fetched.end());
    }
    if (status == STATUS_SUCCESS) {
        status = em_send_rows(p, b);
    }
    return status == STATUS_SUCCESS ? there : status;
}

} // namespace

int em_decode_layer(em_pass * p, em_block & b) {
    if (!p->early && b.tokens > 1) {
        return em_by_host(p, b);
    }
    em_engine *  e     = p->e;
    em_layer_t & layer = *b.layer;
    const bool   decode = b.tokens < e->options.prefill_tokens && !p->prompt.active;
    em_force_ids(p, b);
    std::unique_lock<std::mutex> lock(layer.residents.mutex);
    if (!em_view_start(p, b)) {
        return STATUS_ALLOC_FAILED;
    }
    em_block & v     = p->view.block;
    const bool early = p->early && em_one_by_one_pairs(p, b);
    bool       hot   = early && em_start_by_table(p, b);
    em_view_wait(p);
    if (!em_ids_ok(v.ids, layer.experts)) {
        return STATUS_FAILED;
    }
    if (!early) {
        hot = em_start_sent(p, b, v.ids);
        if (!hot && em_has_hot(layer)) { // fewer slots than a token has experts
            lock.unlock();
            return em_by_host_seen(p, b);
        }
    }
    p->misses.cold.clear();
    for (int64_t t = 0; t < b.tokens; ++t) {
        const int32_t * row = em_ids_row(v.ids, t);
        for (int64_t i = 0; i < b.k; ++i) {
            if (!hot || layer.residents.slot_of[size_t(row[i])] < 0) {
                p->misses.cold.push_back({int32_t(t), int32_t(i), row[i], -1});
            }
        }
        if (decode) {
            em_note_use(layer, row, b.k);
        }
    }
    const int64_t missed = int64_t(p->misses.cold.size()), met = b.tokens * b.k - missed;
    (decode ? e->count.hits : e->count.prefill_hits) += met;
    (decode ? e->count.misses : e->count.prefill_misses) += missed;
    if (!p->events) {
        G.ggml_backend_synchronize(p->inner); // else the slots could be overwritten while they are read
    }
    lock.unlock();
    if (missed == 0) {
        p->view.unreported = true; // the device has work: first what comes next
        return STATUS_SUCCESS;
    }
    if (b.tokens > 1) {
        em_sort_by_expert(p->misses.cold);
    }
    p->misses.fetched.clear();
    if (decode && early && layer.device_can == 1) {
        p->misses.fetched = em_take_fetched(e, layer, p->misses.cold);
    }
    return compute_missed(p, b, decode && !early ? em_cold::OF_A_TOKEN_OR_FETCHED : em_cold::OF_A_TOKEN);
}
