// A layer of a few tokens: hot pairs where the activations are, cold pairs on the CPU, or fetched.

#include "pass/pass.h"

namespace {

// The CPU computes its pairs. Meanwhile fetched experts are sent and their pairs started, and the routing is reported.
int compute_missed(em_pass * p, const em_block & b, em_cold kind) {
    em_engine *  e = p->e;
    em_misses &  m = p->misses;
    bool         sent = true;
    int          status = STATUS_SUCCESS, fetch_status = STATUS_SUCCESS;
    em_side_task task;
    task.work = [&] {
        sent = m.fetched.empty() || em_send_fetched(p, b);
        const int64_t before = e->count.schedule_ns;
        em_report_view(p);
        task.apart_ns = e->count.schedule_ns - before;
        if (sent && !m.fetched.empty()) {
            fetch_status = em_compute_fetched(p, b);
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

// Finds the cold pairs, and counts. `hot`: the device computes the pairs whose experts are in slots.
void find_misses(em_pass * p, const em_block & b, bool hot, bool decode) {
    em_counters & c = p->e->count;
    em_layer_t &  layer = *b.layer;
    p->misses = {};
    for (int64_t t = 0; t < b.tokens; ++t) {
        const int32_t * row = em_ids_row(p->view.block.ids, t);
        for (int64_t i = 0; i < b.k; ++i) {
            if (!hot || layer.residents.slot_of[size_t(row[i])] < 0) {
                p->misses.cold.push_back({int32_t(t), int32_t(i), row[i], -1});
            }
        }
        if (decode) {
            em_note_use(layer, row, b.k);
        }
    }
    const int64_t missed = int64_t(p->misses.cold.size());
    (decode ? c.hits : c.prefill_hits) += b.tokens * b.k - missed;
    (decode ? c.misses : c.prefill_misses) += missed;
    if (b.tokens > 1) {
        em_sort_by_expert(p->misses.cold);
    }
}

} // namespace

int em_decode_layer(em_pass * p, em_block & b) {
    if (!p->early && b.tokens > 1) {
        return em_by_host(p, b);
    }
    em_layer_t & layer  = *b.layer;
    const bool   decode = p->e->decodes(b.tokens) && !p->prompt.active;
    em_force_ids(p, b);
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
        G.ggml_backend_synchronize(p->compute); // else the slots could be overwritten while they are read
    }
    lock.unlock();
    if (p->misses.cold.empty()) {
        p->view.unreported = true; // the device computes: first it gets the next part of the graph
        return STATUS_SUCCESS;
    }
    if (decode && early && layer.support == em_support::FULL) {
        constexpr double AFTER = 25e3, BESIDE = 5e3; // ns: a graph on the device and copies of rows; starting all that
        double           both = 0;
        p->misses.fetched = em_take_fetched(p->e, layer, p->misses.cold, AFTER, BESIDE, &both);
    }
    return compute_missed(p, b, decode && !early ? em_cold::OF_A_TOKEN_OR_FETCHED : em_cold::OF_A_TOKEN);
}
