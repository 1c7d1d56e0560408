// Hot and cold pairs of a layer at the same time, each side in graphs that end soon.

#include "split/run.h"

#include <algorithm>

void em_device_pairs::start() {
    const em_engine & e = *r.e;
    to      = em_graph_end(pairs, from, int64_t(pairs.size()), r.hot_at_once());
    started = em_now_ns();
    launch  = em_pairs_launch({e.device.exec, true, places.weight, places.bias, &r.e->exchange.device, &r.e->exchange.host}, r.b,
                              &pairs[size_t(from)], to - from, nullptr);
}

// Waits for the device and copies its rows to the host. False: the device failed, nothing was written.
bool em_device_pairs::join() {
    constexpr int64_t WAITED_NS = 100000; // a shorter wait tells nothing about the device
    em_engine *       e         = r.e;
    const int64_t     waiting   = em_now_ns();
    G.ggml_backend_synchronize(e->device.exec);
    const int64_t done = em_now_ns();
    e->count.joins += 1;
    e->count.join_ns += done - waiting;
    e->count.device_ns += done - started;
    const double took = double(done - started) / double(to - from);
    if (to - from >= EM_MIN_PAIRS && (done - waiting > WAITED_NS || took < r.hot_ns())) { // else done at an unknown time before
        em_note_rate(e->rates.hot_pair_ns, took);
    }
    const bool ok = !em_device_failed(e->device.exec);
    if (ok) {
        em_pairs_scatter(r.b, &pairs[size_t(from)], to - from, launch.result);
    }
    return ok;
}

void em_device_pairs::finish() {
    if (running()) {
        if (launch.status != STATUS_SUCCESS || !join()) {
            failed.insert(failed.end(), pairs.begin() + from, pairs.begin() + to);
            r.e->count.device_fallbacks += 1;
        }
        launch = {};
        from   = to;
    }
}

void em_device_pairs::finish_all() {
    while (running()) {
        finish();
        if (left() && !r.e->turn.cancelled) {
            start();
        }
    }
}

int em_run::cold_graph(const em_pair * pairs, int64_t n, bool by_rows) {
    const bool      ran     = task && task->done;
    const int64_t   started = em_now_ns();
    const em_launch launch  = em_pairs_launch(cpu_side(by_rows), b, pairs, n, nullptr);
    if (launch.status == STATUS_SUCCESS && launch.result) {
        em_pairs_scatter(b, pairs, n, launch.result);
    }
    e->count.cpu_ns += em_now_ns() - started - (task && !ran ? task->apart_ns : 0);
    return launch.status;
}

int em_run::compute_cold(std::vector<em_pair> pairs) {
    em_split s;
    s.cold = std::move(pairs);
    return compute(s);
}

// The device gets its next graph when the last one should be done. By the rates measured so far, no graph takes much longer than
// options.graph_us: nothing can stop a graph on the device, and on the CPU a graph stops only between its matrices.
int em_run::compute(const em_split & s) {
    const int64_t   cold_all = int64_t(s.cold.size()), cold_most = em_pairs_of_graph(e->options.graph_us, cold_ns());
    auto            colds    = s.cold;
    const int64_t   fewer    = em_row_product_limit(b), few = b.tokens > 1 ? em_few_first(colds, fewer) : fewer > 0 ? cold_all : 0;
    int64_t         cold = 0, cold_took = 0;
    int             status = STATUS_SUCCESS;
    em_device_pairs hot{*this, b.layer->residents.places, s.hot};
    while ((hot.left() || cold < cold_all) && status == STATUS_SUCCESS) {
        if (hot.left() && !hot.running()) {
            hot.start();
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
        if (status == STATUS_SUCCESS && (cold == cold_all || hot.due())) {
            hot.finish();
        }
        if (status == STATUS_SUCCESS && e->turn.cancelled) {
            status = STATUS_ABORTED;
        }
    }
    if (!e->decodes(b.tokens) && cold >= EM_MIN_PAIRS) {
        em_note_rate(e->rates.cold_pair_ns, double(cold_took) / double(cold));
    }
    return status == STATUS_SUCCESS && !hot.failed.empty() ? compute_cold(hot.failed) : status;
}
