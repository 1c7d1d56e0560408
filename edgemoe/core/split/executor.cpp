// Hot and cold pairs of a layer at the same time, each side in graphs that end soon.

#include "split/run.h"

namespace {

constexpr int64_t LEAST_PAIRS = 16;
constexpr int64_t FEW_PAIRS   = 16;     // fewer tell no rate
constexpr int64_t WAITED_NS   = 100000; // waits that are shorter say nothing of what was waited for

} // namespace

// A graph cannot be stopped on the device, and only between its matrices on the CPU: by the rates measured so far, no such
// part takes much longer than options.graph_us.
int64_t em_run::pairs_at_once(double ns) const {
    return std::clamp(int64_t(double(e->options.graph_us) * 1e3 / ns), LEAST_PAIRS, EM_MAX_PAIRS);
}

bool em_run::join(em_launch & launch, const em_pair * pairs, int64_t n, int64_t started) {
    const int64_t waiting = em_now_ns();
    G.ggml_backend_synchronize(e->device.exec);
    const int64_t done = em_now_ns();
    e->count.joins += 1;
    e->count.join_ns += done - waiting;
    e->count.device_ns += done - started;
    const double took = double(done - started) / double(n);
    if (n >= FEW_PAIRS && (done - waiting > WAITED_NS || took < hot_ns())) { // else done before, nobody knows when
        em_note_rate(e->rates.hot_pair_ns, took);
    }
    const bool ok = !em_device_failed(e->device.exec);
    if (ok) {
        em_pairs_scatter(b, pairs, n, launch.result);
    }
    return ok;
}

int em_run::cold_graph(const em_pair * pairs, int64_t n, bool by_rows) {
    const bool    ran     = task && task->done;
    const int64_t started = em_now_ns();
    em_launch     launch  = em_pairs_launch(cpu_side(by_rows), b, pairs, n, nullptr);
    if (launch.status == STATUS_SUCCESS && launch.result) {
        em_pairs_scatter(b, pairs, n, launch.result);
    }
    G.ggml_free(launch.ctx);
    e->count.cpu_ns += em_now_ns() - started - (task && !ran ? task->apart_ns : 0);
    return launch.status;
}

int em_run::redo_on_cpu(const em_pair * pairs, int64_t n) {
    e->count.device_fallbacks += 1;
    em_split s;
    s.cold.assign(pairs, pairs + n);
    return compute(s);
}

// Both sides at once, each in graphs that end soon. The device gets its next one when its last should be done.
int em_run::compute(const em_split & s) {
    const int64_t hot_all = int64_t(s.hot.size()), cold_all = int64_t(s.cold.size());
    const int64_t cold_most = pairs_at_once(cold_ns());
    auto          colds     = s.cold;
    const int64_t fewer     = em_rows_for_us(b), few = b.tokens > 1 ? em_few_first(colds, fewer) : fewer > 0 ? cold_all : 0;
    int64_t   hot = 0, hot_n = 0, cold = 0, started = 0, cold_took = 0;
    em_launch launch;
    int       status = STATUS_SUCCESS;
    while ((hot < hot_all || cold < cold_all) && status == STATUS_SUCCESS) {
        if (hot < hot_all && hot_n == 0) {
            hot_n   = em_graph_end(s.hot, hot, hot_all, pairs_at_once(hot_ns())) - hot;
            started = em_now_ns();
            launch  = em_pairs_launch(device_side(b.layer->residents.places), b, &s.hot[size_t(hot)], hot_n, nullptr);
        }
        if (cold < cold_all) {
            const bool    by_rows = cold < few;
            const int64_t end     = em_graph_end(colds, cold, by_rows ? few : cold_all, by_rows ? std::min(cold_most, EM_MAX_ROWS) : cold_most);
            const int64_t before  = e->count.cpu_ns;
            status = cold_graph(&colds[size_t(cold)], end - cold, by_rows);
            if (status == STATUS_SUCCESS) {
                cold = end;
                cold_took += e->count.cpu_ns - before;
            }
        }
        const bool due = cold == cold_all || double(em_now_ns() - started) >= hot_ns() * double(hot_n);
        if (hot_n > 0 && due && status == STATUS_SUCCESS) {
            const em_pair * pairs = &s.hot[size_t(hot)];
            const bool      ok    = launch.status == STATUS_SUCCESS && join(launch, pairs, hot_n, started);
            G.ggml_free(launch.ctx);
            launch.ctx = nullptr;
            if (!ok) {
                status = redo_on_cpu(pairs, hot_n);
            }
            hot += hot_n;
            hot_n = 0;
        }
        if (status == STATUS_SUCCESS && e->turn.cancelled) {
            status = STATUS_ABORTED;
        }
    }
    if (launch.ctx) { // left early: the device must not write into memory that is gone
        G.ggml_backend_synchronize(e->device.exec);
        G.ggml_free(launch.ctx);
    }
    if (b.tokens >= e->options.prefill_tokens && cold >= FEW_PAIRS) {
        em_note_rate(e->rates.cold_pair_ns, double(cold_took) / double(cold));
    }
    return status;
}
