// Hot and cold pairs of a layer at the same time, each side in short graphs. See run.h.

#include "cpu/kernels/kernels.h"
#include "split/run.h"

#include <limits>

int64_t em_graph_end(const std::vector<em_pair> & pairs, int64_t at, int64_t all, int64_t most) {
    int64_t end = at;
    while (end < all) {
        const int32_t expert = pairs[size_t(end)].expert;
        int64_t       rows   = 1;
        while (rows < 2 * EM_ROWS_TOGETHER && end + rows < all && pairs[size_t(end + rows)].expert == expert) {
            ++rows;
        }
        rows = rows < 2 * EM_ROWS_TOGETHER ? rows : EM_ROWS_TOGETHER;
        if (end > at && end + rows > at + most) {
            break;
        }
        end += rows;
    }
    return end;
}

int64_t em_row_product_limit(const em_block & b) {
    int64_t fewer = std::numeric_limits<int64_t>::max();
    for (const ggml_tensor * w : b.layer->weight) {
        if (w && !em_rows_supported(w)) {
            return 0;
        }
        if (w && (em_kernel_many(w->type) || !em_kernel_own(w->type, w->ne[0]))) {
            fewer = EM_MANY_ROWS;
        }
    }
    return fewer;
}

int64_t em_few_first(std::vector<em_pair> & pairs, int64_t fewer) {
    std::vector<em_pair> many;
    auto                 few = pairs.begin();
    for (auto at = pairs.begin(), end = at; at != pairs.end(); at = end) {
        end = std::find_if(at, pairs.end(), [&](const em_pair & p) { return p.expert != at->expert; });
        if (end - at < fewer) {
            few = std::copy(at, end, few);
        } else {
            many.insert(many.end(), at, end);
        }
    }
    std::copy(many.begin(), many.end(), few);
    return few - pairs.begin();
}

bool em_mostly_row_products(const em_block & b) {
    const int64_t fewer = em_row_product_limit(b);
    int64_t       few = 0, many = 0;
    for (int64_t n : em_tokens_of_experts(b.ids, b.layer->experts)) {
        (n < fewer ? few : many) += n > 0;
    }
    return few >= many;
}

bool em_fusable(const em_block & b) { return b.tokens == 1 && em_row_product_limit(b) > 0; }

void em_device_pairs::start() {
    const em_engine & e = *r.e;
    to                  = em_graph_end(pairs, from, int64_t(pairs.size()), r.hot_at_once());
    started             = em_now_ns();
    launch = em_pairs_launch({e.device.exec, true, places.weight, places.bias, &r.e->exchange.device, &r.e->exchange.host}, r.b,
                             &pairs[size_t(from)], to - from, nullptr);
}

// Waits for the device and copies its rows to the host. False: the device failed, nothing was written.
bool em_device_pairs::join() {
    constexpr int64_t WAITED_NS = 100000; // a shorter wait gives no rate: the graph may have ended long before
    em_engine *       e         = r.e;
    const int64_t     waiting   = em_now_ns();
    G.ggml_backend_synchronize(e->device.exec);
    const int64_t done = em_now_ns();
    e->count.joins += 1;
    e->count.join_ns += done - waiting;
    e->count.device_ns += done - started;
    const double took = double(done - started) / double(to - from);
    // After a shorter wait the graph has ended at an unknown time before. Then only a better rate than the known one counts.
    if (to - from >= EM_MIN_PAIRS && (done - waiting > WAITED_NS || took < r.hot_ns())) {
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

// The device gets its next graph when the last one should be done. Nothing can stop a graph on the device, and on the CPU a graph
// stops only between its matrices. So the measured rates keep every graph to about options.graph_us.
int em_run::compute(const em_split & s) {
    em_ram_use      ram(e->ram, *b.layer);
    const int64_t   cold_all = int64_t(s.cold.size()), cold_most = em_pairs_of_graph(e->options.graph_us, cold_ns());
    auto            colds = s.cold;
    const int64_t   fewer = em_row_product_limit(b), few = b.tokens > 1 ? em_few_first(colds, fewer) : fewer > 0 ? cold_all : 0;
    int64_t         cold = 0, cold_took = 0;
    int             status = STATUS_SUCCESS;
    ram.plan(colds, few, cold_all); // read last to first: the pairs of row products come first
    ram.plan(colds, 0, few);
    em_device_pairs hot{*this, b.layer->residents.places, s.hot};
    while ((hot.left() || cold < cold_all) && status == STATUS_SUCCESS) {
        if (hot.left() && !hot.running()) {
            hot.start();
        }
        if (cold < cold_all) {
            const bool    by_rows = cold < few;
            const int64_t wanted =
                em_graph_end(colds, cold, by_rows ? few : cold_all, by_rows ? std::min(cold_most, EM_MAX_ROWS) : cold_most);
            const int64_t end    = ram.end_of(colds, cold, wanted);
            const int64_t before = e->count.cpu_ns;
            status               = ram.need(&colds[size_t(cold)], end - cold) ? cold_graph(&colds[size_t(cold)], end - cold, by_rows)
                                                                              : int(STATUS_FAILED);
            ram.release();
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
