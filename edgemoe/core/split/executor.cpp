// One layer's experts: hot pairs on the device, cold pairs on the CPU at the same time, joined once.

#include "engine.h"
#include "kernels.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace {

// Most pairs of one graph: bounds its memory (rows of n_embd + 3 n_ff floats each).
constexpr int64_t MAX_PAIRS = 2048;

// A graph cannot be stopped on the device, and only between its matrices on the CPU: by the rates measured so far, no such
// part takes much longer than options.graph_us. Until there is a rate, a slow one is guessed, in multiplications per ns.
constexpr double  GUESS = 50;
constexpr int64_t LEAST_PAIRS = 16;

// From so many rows of an expert on ggml takes other kernels for some types, which round otherwise (tiled/tiled.cpp), and so many stay
// together that a cut changes none.
constexpr int64_t MANY_ROWS = 8, TOGETHER = 64;
// Most pairs of a graph that rows.cpp computes: what lies between gate and down stays in the cache.
constexpr int64_t MAX_ROWS = 256;

// The end of a graph of pairs [at, all) that begins at `at`, about `most` later.
int64_t graph_end(const std::vector<em_pair> & pairs, int64_t at, int64_t all, int64_t most) {
    int64_t end = at;
    while (end < all) {
        const int32_t expert = pairs[size_t(end)].expert;
        int64_t       rows   = 1;
        while (rows < 2 * TOGETHER && end + rows < all && pairs[size_t(end + rows)].expert == expert) {
            ++rows;
        }
        rows = rows < 2 * TOGETHER ? rows : TOGETHER;
        if (end > at && end + rows > at + most) {
            break;
        }
        end += rows;
    }
    return end;
}

// An expert with fewer rows is for rows.cpp, which is quicker than ggml then and gives the same.
int64_t rows_for_us(const em_block & b) {
    int64_t fewer = std::numeric_limits<int64_t>::max();
    for (const ggml_tensor * w : b.layer->weight) {
        if (w && !em_rows_supported(w)) {
            return 0;
        }
        if (w && (em_kernel_many(w->type) || !b.engine->own_kernels || !em_kernel_own(w->type, w->ne[0]))) {
            fewer = MANY_ROWS;
        }
    }
    return fewer;
}

// Pairs that are sorted by experts: those of experts with fewer rows first. Says how many.
int64_t few_first(std::vector<em_pair> & pairs, int64_t fewer) {
    std::vector<em_pair> many;
    auto few = pairs.begin();
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

// Are most of the experts that are used for rows.cpp?
bool mostly_for_us(const em_block & b) {
    const int64_t fewer = rows_for_us(b);
    int64_t       ours = 0, others = 0;
    for (int64_t n : em_tokens_of_experts(b.ids, b.layer->experts)) {
        (n < fewer ? ours : others) += n > 0;
    }
    return ours >= others;
}

double pair_multiplications(const em_layer_t & layer) {
    double all = 0;
    for (const ggml_tensor * w : layer.weight) {
        all += w ? double(w->ne[0]) * double(w->ne[1]) : 0;
    }
    return all;
}

double pair_ns(const em_block & b, double measured) { return measured > 0 ? measured : pair_multiplications(*b.layer) / GUESS; }

bool device_usable(const em_engine * e, const em_layer_t & layer) {
    return e->exec && layer.device_can != 0;
}

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

struct split {
    std::vector<em_pair> hot, cold;
    std::vector<em_pair> fetched; // cold as well, on their way to the stage
    int64_t fetch_started = 0;
    double  both_ns = 0; // what the longer of both sides should take, the fetch and the cold pairs
};

constexpr int64_t FEW_PAIRS   = 16;     // fewer tell no rate
constexpr int64_t WAITED_NS   = 100000; // waits that are shorter say nothing of what was waited for

struct run {
    em_context * c;
    em_engine *  e;
    em_block &   b;
    em_errand *  errand = nullptr;

    em_side cpu_side(bool by_rows) const {
        return {c->cpu, false, b.layer->weight, b.layer->bias, &e->cpu_scratch, nullptr, errand, by_rows};
    }
    em_side device_side(const em_places & p) const { return {e->exec, true, p.weight, p.bias, &e->io_device, &e->io_host}; }

    // Waits for the device and brings its rows home. False: the device failed, nothing was written.
    bool join(em_launch & launch, const em_pair * pairs, int64_t n, int64_t started) {
        const int64_t waiting = em_now_ns();
        G.ggml_backend_synchronize(e->exec);
        const int64_t done = em_now_ns();
        e->count.joins += 1;
        e->count.join_ns += done - waiting;
        e->count.device_ns += done - started;
        const double took = double(done - started) / double(n);
        if (n >= FEW_PAIRS && (done - waiting > WAITED_NS || took < hot_ns())) { // else done before, nobody knows when
            em_note_rate(e->hot_pair_ns, took);
        }
        const bool ok = !em_device_failed(e->exec);
        if (ok) {
            em_pairs_scatter(b, pairs, n, launch.result);
        }
        return ok;
    }
    int cold_graph(const em_pair * pairs, int64_t n, bool by_rows) {
        const bool    ran     = errand && errand->done;
        const int64_t started = em_now_ns();
        em_launch     launch  = em_pairs_launch(e, cpu_side(by_rows), b, pairs, n, nullptr);
        if (launch.status == STATUS_SUCCESS && launch.result) {
            em_pairs_scatter(b, pairs, n, launch.result);
        }
        G.ggml_free(launch.ctx);
        e->count.cpu_ns += em_now_ns() - started - (errand && !ran ? errand->apart_ns : 0);
        return launch.status;
    }
    int redo_on_cpu(const em_pair * pairs, int64_t n) {
        e->count.device_fallbacks += 1;
        split s;
        s.cold.assign(pairs, pairs + n);
        return compute(s);
    }
    // Sends experts to the stage. False: nothing is under way.
    bool start_fetch(split & s);
    int  finish_fetch(const split & s);
    int  compute(const split & s);
    double  hot_ns() const { return pair_ns(b, e->hot_pair_ns); }
    int64_t pairs_at_once(double ns) const {
        return std::clamp(int64_t(double(e->options.graph_us) * 1e3 / ns), LEAST_PAIRS, MAX_PAIRS);
    }
};

// Both sides at once, each in graphs that end soon. The device gets its next one when its last should be done.
int run::compute(const split & s) {
    const int64_t hot_all = int64_t(s.hot.size()), cold_all = int64_t(s.cold.size());
    const int64_t cold_most = pairs_at_once(pair_ns(b, e->cold_pair_ns));
    auto          colds     = s.cold;
    const int64_t fewer     = rows_for_us(b), few = b.tokens > 1 ? few_first(colds, fewer) : fewer > 0 ? cold_all : 0;
    int64_t   hot = 0, hot_n = 0, cold = 0, started = 0, cold_took = 0;
    em_launch launch;
    int       status = STATUS_SUCCESS;
    while ((hot < hot_all || cold < cold_all) && status == STATUS_SUCCESS) {
        if (hot < hot_all && hot_n == 0) {
            hot_n   = graph_end(s.hot, hot, hot_all, pairs_at_once(hot_ns())) - hot;
            started = em_now_ns();
            launch  = em_pairs_launch(e, device_side(b.layer->places), b, &s.hot[size_t(hot)], hot_n, nullptr);
        }
        if (cold < cold_all) {
            const bool    by_rows = cold < few;
            const int64_t end     = graph_end(colds, cold, by_rows ? few : cold_all, by_rows ? std::min(cold_most, MAX_ROWS) : cold_most);
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
        if (status == STATUS_SUCCESS && e->cancelled) {
            status = STATUS_ABORTED;
        }
    }
    if (launch.ctx) { // left early: the device must not write into memory that is gone
        G.ggml_backend_synchronize(e->exec);
        G.ggml_free(launch.ctx);
    }
    if (b.tokens >= e->options.prefill_tokens && cold >= FEW_PAIRS) {
        em_note_rate(e->cold_pair_ns, double(cold_took) / double(cold));
    }
    return status;
}

// ---- misses of a decode step: computed where they are, or fetched now ----

constexpr double WORTH_IT    = 0.9;    // of the time without a fetch
constexpr double FORGET      = 0.999;  // of what a fetch cost beside, so that one slow moment is not the last word
constexpr double MOST_AT_ONCE = 4;     // times by which one slow moment may raise that
constexpr double FIRST_GUESS = 100e3;  // ns that a fetch costs beside

bool run::start_fetch(split & s) {
    std::vector<em_pair> & pairs = s.fetched;
    em_stage *             stage = em_stage_for(e, *b.layer);
    if (!stage || stage->places.count < int32_t(pairs.size()) || !e->stage_host.ensure(b.layer->expert_bytes * pairs.size())) {
        return false;
    }
    s.fetch_started = em_now_ns(); // the stage was perhaps made just now, once
    for (size_t i = 0; i < pairs.size(); ++i) {
        pairs[i].place = int32_t(i);
        char * staging = e->stage_host.base + i * b.layer->expert_bytes;
        em_upload_expert(e, e->stream, staging, *b.layer, stage->places, pairs[i].expert, pairs[i].place);
    }
    return true;
}

int run::finish_fetch(const split & s) {
    const std::vector<em_pair> & pairs = s.fetched;
    const int64_t                n     = int64_t(pairs.size());
    G.ggml_backend_synchronize(e->stream);
    bool ok = !em_device_failed(e->stream);
    if (ok) {
        const int64_t began  = em_now_ns();
        em_launch     launch = em_pairs_launch(e, device_side(em_stage_for(e, *b.layer)->places), b, pairs.data(), n, nullptr);
        ok = launch.status == STATUS_SUCCESS && join(launch, pairs.data(), n, began);
        G.ggml_free(launch.ctx);
    }
    if (!ok) {
        return redo_on_cpu(pairs.data(), n);
    }
    e->count.fetched += n;
    e->count.streamed_bytes += n * int64_t(b.layer->expert_bytes);
    em_note_rate(e->fetch_ns, std::clamp(double(em_now_ns() - s.fetch_started) - s.both_ns, 1.0, MOST_AT_ONCE * e->fetch_ns));
    return STATUS_SUCCESS;
}

bool link_is_idle(em_engine * e) {
    std::lock_guard<std::mutex> lock(e->queue_mutex);
    return !e->copying && e->urgent.empty() && e->queue.empty();
}

int64_t always(em_engine * e) { return e->device_name == "sim" ? em_sim_fetch_all() : 0; }

// A device that cannot read the expert where it lies would have it copied by the CPU, which has better things to do.
bool fetchable(em_engine * e, const em_layer_t & layer, int32_t expert) {
    if (always(e)) {
        return true;
    }
    bool all = e->stream && e->stream->iface.set_tensor_async;
    for (int p = 0; p < PROJ_COUNT && all; ++p) {
        const ggml_tensor * w = layer.weight[p];
        all = !w || em_host_readable(layer, p, static_cast<const char *>(w->data) + size_t(expert) * w->nb[2], w->nb[2]);
    }
    return all;
}

// What the CPU takes for n cold pairs of a token: as measured, or in proportion.
double cold_ns(const em_engine * e, int64_t n) {
    if (n == 0) {
        return 0;
    }
    const double known = n < em_engine::FEW_MISSES ? e->misses_ns[n] : 0;
    return known > 0 ? known : e->miss_pair_ns * double(n);
}

void note_cold(em_engine * e, int64_t n, double ns) {
    em_note_rate(e->miss_pair_ns, ns / double(n));
    if (n < em_engine::FEW_MISSES) {
        em_note_rate(e->misses_ns[n], ns);
    }
}

// How many of n cold pairs the device should fetch while the CPU computes the others, by the rates measured so far. A fetch costs
// the device `after` once it has arrived, and both sides `beside`. What both sides take is left in both_ns.
int64_t worth_fetching(em_engine * e, const em_layer_t & layer, int64_t n, double after, double beside, double * both_ns) {
    if (const int64_t all_but = always(e)) {
        return e->options.stream_tokens ? n - (all_but > 1 ? n / all_but : 0) : 0;
    }
    const double fetch = e->copy_ns_per_byte * double(layer.expert_bytes);
    if (!e->options.stream_tokens || e->miss_pair_ns <= 0 || fetch <= 0) {
        return 0;
    }
    int64_t best  = 0;
    double  least = WORTH_IT * cold_ns(e, n);
    for (int64_t m = 1; m <= n; ++m) {
        const double both = std::max(cold_ns(e, n - m), fetch * double(m) + after);
        if (both + beside < least) {
            best     = m;
            *both_ns = both;
            least    = both + beside;
        }
    }
    if (best && n < em_engine::FEW_MISSES) {
        e->misses_ns[n] *= FORGET; // not measured now: one slow moment must not be the last word
    }
    return best && link_is_idle(e) ? best : 0;
}

// Needs the layer's mutex, and it must be kept until the device is done.
split split_pairs(const em_block & b, bool device) {
    split s;
    for (int64_t t = 0; t < b.tokens; ++t) {
        const int32_t * row = em_ids_row(b.ids, t);
        for (int64_t i = 0; i < b.k; ++i) {
            const int32_t slot = device ? b.layer->slot_of[size_t(row[i])] : -1;
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

// Moves what is worth it from cold to fetched, and sends it on its way.
void fetch_now(run & r, split & s) {
    if (r.e->fetch_ns <= 0) {
        r.e->fetch_ns = FIRST_GUESS;
    }
    const int64_t wanted = worth_fetching(r.e, *r.b.layer, int64_t(s.cold.size()), 0, r.e->fetch_ns, &s.both_ns);
    if (!wanted) {
        r.e->fetch_ns *= FORGET;
    }
    const auto cold = s.cold;
    for (size_t i = s.cold.size(); i-- > 0 && int64_t(s.fetched.size()) < wanted;) {
        if (fetchable(r.e, *r.b.layer, s.cold[i].expert)) {
            s.fetched.push_back(s.cold[i]);
            s.cold.erase(s.cold.begin() + int64_t(i));
        }
    }
    if (!s.fetched.empty() && !r.start_fetch(s)) {
        s.cold = cold; // as it was: their order counts
        s.fetched.clear();
    }
}

// Experts of a prefill that are streamed through the stage, in waves of half its places: while one half computes, the other
// half is filled.
int stream_waves(run & r, const std::vector<std::vector<em_pair>> & by_expert, em_stage & stage, std::vector<em_pair> & failed) {
    em_engine *   e    = r.e;
    const int32_t half = stage.places.count / 2;
    em_launch     launch;
    std::vector<em_pair> running, next;
    int64_t from = 0, to = 0, started = 0; // of running, what the device computes
    auto begin = [&] {
        to      = graph_end(running, from, int64_t(running.size()), r.pairs_at_once(r.hot_ns()));
        started = em_now_ns();
        launch  = em_pairs_launch(e, r.device_side(stage.places), r.b, &running[size_t(from)], to - from, nullptr);
    };
    auto finish = [&] {
        while (launch.ctx) {
            if (launch.status != STATUS_SUCCESS || !r.join(launch, &running[size_t(from)], to - from, started)) {
                failed.insert(failed.end(), running.begin() + from, running.begin() + to);
                e->count.device_fallbacks += 1;
            }
            G.ggml_free(launch.ctx);
            launch.ctx = nullptr;
            from = to;
            if (from < int64_t(running.size()) && !e->cancelled) {
                begin();
            }
        }
    };
    if (!e->stage_host.ensure(r.b.layer->expert_bytes * size_t(half))) {
        for (const auto & pairs : by_expert) {
            failed.insert(failed.end(), pairs.begin(), pairs.end());
        }
        return STATUS_SUCCESS;
    }
    size_t at = 0;
    for (int wave = 0; at < by_expert.size() && !e->cancelled; ++wave) {
        next.clear();
        for (int32_t i = 0; i < half && at < by_expert.size(); ++i, ++at) {
            const int64_t n = int64_t(next.size() + by_expert[at].size());
            if (i > 0 && n > r.pairs_at_once(r.hot_ns())) {
                break;
            }
            const int32_t place = (wave % 2) * half + i;
            em_upload_expert(e, e->stream, e->stage_host.base + size_t(i) * r.b.layer->expert_bytes, *r.b.layer, stage.places,
                             by_expert[at][0].expert, place);
            e->count.streamed_bytes += int64_t(r.b.layer->expert_bytes);
            for (em_pair p : by_expert[at]) {
                p.place = place;
                next.push_back(p);
            }
        }
        G.ggml_backend_synchronize(e->stream);
        const bool arrived = !em_device_failed(e->stream);
        finish(); // the wave before, computed while this one was copied
        if (!arrived) {
            failed.insert(failed.end(), next.begin(), next.end());
            continue;
        }
        running.swap(next);
        from = 0;
        begin();
    }
    finish();
    return e->cancelled ? STATUS_ABORTED : STATUS_SUCCESS;
}

constexpr int64_t LEAST_SHARE = 4, MOST_TIMES = 16; // how far from options.stream_tokens measurements may lead

// From how many tokens on an expert is quicker brought to the device than computed on the CPU, by the rates measured so far.
int64_t stream_from(const em_engine * e, const em_layer_t & layer) {
    const int64_t given = e->options.stream_tokens;
    if (e->cold_pair_ns <= 0 || e->stream_byte_ns <= 0) {
        return given;
    }
    // An expert is worth its copy from the token on whose computing would last longer.
    const int64_t tokens = int64_t(e->stream_byte_ns * double(layer.expert_bytes) / e->cold_pair_ns) + 1;
    return std::clamp(tokens, std::max<int64_t>(given / LEAST_SHARE, 1), given * MOST_TIMES);
}

// A large batch: resident experts on the device, well used others streamed there, the rest on the CPU.
int compute_prefill(run & r, split s) {
    em_engine * e     = r.e;
    em_stage *  stage = e->options.stream_tokens > 0 && device_usable(e, *r.b.layer) ? em_stage_for(e, *r.b.layer) : nullptr;
    std::vector<std::vector<em_pair>> streamed;
    if (stage) {
        std::vector<std::vector<em_pair>> by_expert(size_t(r.b.layer->experts));
        for (const em_pair & p : s.cold) {
            by_expert[size_t(p.expert)].push_back(p);
        }
        s.cold.clear();
        const int64_t enough = stream_from(e, *r.b.layer);
        for (auto & pairs : by_expert) {
            if (int64_t(pairs.size()) >= enough) {
                e->count.prefill_streamed += int64_t(pairs.size());
                streamed.push_back(std::move(pairs));
            } else {
                s.cold.insert(s.cold.end(), pairs.begin(), pairs.end());
            }
        }
    }
    e->count.prefill_hits += int64_t(s.hot.size());
    e->count.prefill_misses += int64_t(s.cold.size());
    int status = r.compute(s);
    if (status == STATUS_SUCCESS && !streamed.empty()) {
        std::vector<em_pair> failed;
        const int64_t        started = em_now_ns();
        status = stream_waves(r, streamed, *stage, failed);
        if (status == STATUS_SUCCESS) {
            em_note_rate(e->stream_byte_ns, double(em_now_ns() - started) / double(streamed.size() * r.b.layer->expert_bytes));
        }
        if (status == STATUS_SUCCESS && !failed.empty()) {
            s.hot.clear();
            s.cold.swap(failed);
            status = r.compute(s);
        }
    }
    return status;
}

// Nodes [from, to) as they are, on ggml-cpu.
int run_plain(em_context * c, ggml_cgraph * graph, int from, int to) {
    if (from >= to) {
        return STATUS_SUCCESS;
    }
    const size_t size   = size_t(to - from);
    const size_t needed = G.ggml_graph_overhead_custom(size, false) + 256;
    if (c->arena.size() < needed) {
        c->arena.resize(needed);
    }
    ggml_context * ctx  = G.ggml_init({c->arena.size(), c->arena.data(), true});
    ggml_cgraph *  part = G.ggml_new_graph_custom(ctx, size, false);
    for (int i = from; i < to; ++i) {
        G.ggml_graph_add_node(part, G.ggml_graph_node(graph, i));
    }
    const int status = G.ggml_backend_graph_compute(c->cpu, part);
    G.ggml_free(ctx);
    return status;
}

// Nothing of this layer is or can be on the device: it runs as in llama.cpp, unless that were too long without a stop.
bool all_cold(em_engine * e, em_layer_t & layer) {
    if (!device_usable(e, layer)) {
        return true;
    }
    std::lock_guard<std::mutex> lock(layer.mutex);
    return layer.resident == 0;
}

// Every pair cold, a single token, and the usual tail: straight to the sum.
int run_cold(run & r, const split & s, const em_tail & tail) {
    const int64_t started = em_now_ns();
    em_launch     launch  = em_pairs_launch(r.e, r.cpu_side(true), r.b, s.cold.data(), int64_t(s.cold.size()), &tail);
    G.ggml_free(launch.ctx);
    const int64_t took = em_now_ns() - started;
    r.e->count.cpu_ns += took;
    note_cold(r.e, int64_t(s.cold.size()), double(took));
    return launch.status;
}

bool fusable(const em_block & b) { return b.tokens == 1 && rows_for_us(b) > 0; }

// As one graph on the CPU, which can be stopped between its matrices, it would go on for too long.
bool is_long(const em_block & b) {
    constexpr double MATRICES = 3;
    return pair_ns(b, b.engine->cold_pair_ns) * double(b.k * b.tokens) > MATRICES * 1e3 * double(b.engine->options.graph_us);
}

// What was split, computed; the layer's mutex is the caller's where there are hot pairs.
int run_split(run & r, split & s, bool decode) {
    em_engine *   e      = r.e;
    const int64_t cpu_ns = e->count.cpu_ns;
    int           status = decode ? r.compute(s) : compute_prefill(r, s);
    const bool told = !r.errand || !r.errand->late; // else the time is the errand's
    if (decode && r.b.tokens == 1 && !s.cold.empty() && told && status == STATUS_SUCCESS) {
        note_cold(e, int64_t(s.cold.size()), double(e->count.cpu_ns - cpu_ns));
    }
    if (!s.fetched.empty()) {
        if (status == STATUS_SUCCESS) {
            status = r.finish_fetch(s);
        } else {
            G.ggml_backend_synchronize(e->stream); // the stage is somebody else's next
        }
    }
    return status;
}

int run_block(em_context * c, em_block & b, const em_tail * tail) {
    em_engine * e = b.engine;
    run r{c, e, b};
    std::lock_guard<std::mutex> lock(b.layer->mutex);
    const bool decode = b.tokens < e->options.prefill_tokens;
    for (int64_t t = 0; decode && t < b.tokens; ++t) {
        em_note_use(*b.layer, em_ids_row(b.ids, t), b.k);
    }
    const bool device = device_usable(e, *b.layer);
    split      s      = split_pairs(b, device);
    if (decode) {
        e->count.hits += int64_t(s.hot.size());
        e->count.misses += int64_t(s.cold.size());
    }
    if (device && decode && b.tokens == 1) {
        fetch_now(r, s);
    }
    if (s.hot.empty() && s.fetched.empty() && tail && fusable(b)) {
        return run_cold(r, s, *tail);
    }
    block_output output(b);
    const int    status = run_split(r, s, decode);
    if (tail && status == STATUS_SUCCESS) {
        em_tail_compute(b, *tail);
    }
    return status;
}

// A layer that stays on the CPU still counts its misses and takes part in the routing history.
void account_plain(const em_block & b) {
    em_engine * e = b.engine;
    (b.tokens >= e->options.prefill_tokens ? e->count.prefill_misses : e->count.misses) += b.k * b.tokens;
}

} // namespace

// All of a layer, or two halves that take turns.
static int32_t stage_places(const em_engine * e, const em_layer_t & layer) {
    return e->options.stream_slots >= layer.experts ? layer.experts : e->options.stream_slots / 2 * 2;
}

// ggml-cuda reads rows in pieces of 256 numbers, 512 of the types with four bits of float, and past the end of a matrix where they
// do not divide it: what lies there must be numbers, and bytes of another type may be none.
static bool shares_stage(const em_layer_t & layer) {
    constexpr int FOUR_BIT_FLOATS = 39; // file format number of the first of them
    bool all = true;
    for (const ggml_tensor * w : layer.weight) {
        all = all && (!w || w->ne[0] % (w->type >= FOUR_BIT_FLOATS ? 512 : 256) == 0);
    }
    return all;
}

em_stage * em_stage_for(em_engine * e, const em_layer_t & layer) {
    auto same = [&](const em_layer_t & other) {
        for (int p = 0; p < PROJ_COUNT; ++p) {
            const ggml_tensor * a = layer.weight[p], * o = other.weight[p];
            if (!a != !o || !layer.bias[p] != !other.bias[p] || (a && (a->type != o->type || a->ne[0] != o->ne[0] || a->ne[1] != o->ne[1]))) {
                return false;
            }
        }
        return layer.experts == other.experts;
    };
    for (auto & s : e->stages) {
        if (same(*s->like)) {
            return s->places.count ? s.get() : nullptr;
        }
    }
    const int32_t count = stage_places(e, layer);
    if (count < 2 || (shares_stage(layer) && !e->stage_memory)) {
        return nullptr;
    }
    auto s  = std::make_unique<em_stage>();
    s->like = &layer;
    if (shares_stage(layer)) {
        size_t bytes[2];
        em_places_make(s->places, e->device, layer, count, bytes);
        em_places_put(s->places, e->stage_memory, e->stage_second);
    } else if (em_places_alloc(s->places, e->device, layer, count)) {
        e->stage_bytes += int64_t(s->places.bytes);
    } // else it stays without places, and is not tried again
    e->stages.push_back(std::move(s));
    return e->stages.back()->places.count ? e->stages.back().get() : nullptr;
}

int em_host_block(em_context * c, em_block & b) { return run_block(c, b, nullptr); }

std::vector<em_pair> em_take_fetched(em_engine * e, const em_layer_t & layer, std::vector<em_pair> & cold) {
    constexpr double     AFTER = 25e3, BESIDE = 5e3; // ns: a graph on the device, and rows moved there; starting all that
    std::vector<em_pair> fetched;
    double               both   = 0;
    int64_t              wanted = worth_fetching(e, layer, int64_t(cold.size()), AFTER, BESIDE, &both);
    if (wanted > 0) {
        const em_stage * stage = em_stage_for(e, layer);
        wanted = stage ? std::min<int64_t>(wanted, stage->places.count) : 0;
    }
    for (size_t i = cold.size(); i-- > 0 && int64_t(fetched.size()) < wanted;) {
        if (fetchable(e, layer, cold[i].expert)) {
            fetched.push_back(cold[i]);
            cold.erase(cold.begin() + int64_t(i));
        }
    }
    return fetched;
}

int em_cold_pairs(em_context * c, em_block & b, const std::vector<em_pair> & cold, em_cold kind, em_errand * errand) {
    run   r{c, b.engine, b, errand};
    split s;
    s.cold = cold;
    if (kind == em_cold::OF_A_PROMPT) {
        const int64_t began  = em_now_ns();
        const int     status = r.compute(s);
        em_note_rate(r.e->short_pair_ns, double(em_now_ns() - began) / double(cold.size()));
        return status;
    }
    if (kind == em_cold::OF_A_TOKEN_OR_FETCHED && b.tokens == 1 && r.e->options.prefill_tokens > 1) {
        fetch_now(r, s);
    }
    return run_split(r, s, true);
}

void em_stages_make(em_engine * e) {
    std::lock_guard<std::mutex> compute(e->compute_mutex);
    if (e->stages_made || e->options.stream_tokens <= 0) {
        return;
    }
    e->stages_made = true;
    size_t first = 0, second = 0; // of the largest layer: one is staged at a time
    for (const auto & layer : e->layers) {
        if (device_usable(e, *layer) && stage_places(e, *layer) >= 2 && shares_stage(*layer)) {
            em_places places;
            size_t    bytes[2];
            em_places_make(places, e->device, *layer, stage_places(e, *layer), bytes);
            em_places_free(places);
            first = std::max(first, bytes[0]), second = std::max(second, bytes[1]);
        }
    }
    e->stage_memory = first + second ? em_device_alloc(e->device, first + second) : nullptr;
    e->stage_second = first;
    e->stage_bytes  = e->stage_memory ? int64_t(e->stage_memory->size) : 0;
    for (const auto & layer : e->layers) {
        if (device_usable(e, *layer)) {
            em_stage_for(e, *layer);
        }
    }
}

int em_graph_compute(em_context * c, ggml_cgraph * graph) {
    const int64_t started = em_now_ns();
    const int     n       = G.ggml_graph_n_nodes(graph);
    int           status  = STATUS_SUCCESS;
    int           plain   = 0; // first node not computed yet
    em_engine *   engine  = nullptr;
    for (int i = 0; i < n && status == STATUS_SUCCESS; ++i) {
        em_block b;
        const em_found found = em_block_find(graph, i, n, &b);
        if (found == em_found::NOTHING) {
            continue;
        }
        engine = b.engine;
        if (b.layer) {
            b.layer->understood = b.layer->understood == 0 ? 0 : found == em_found::BLOCK;
        }
        if (found == em_found::UNKNOWN) {
            continue;
        }
        em_force_routing(b.engine, b.layer->index, b.ids);
        em_record(b.engine, b.layer->block, b.ids);
        em_look_ahead(b.engine, b);
        const bool prefill_streams = b.engine->options.stream_tokens > 0 && b.tokens >= b.engine->options.prefill_tokens &&
                                     device_usable(b.engine, *b.layer);
        if (all_cold(b.engine, *b.layer) && !prefill_streams && !fusable(b) && !is_long(b) && !mostly_for_us(b)) {
            account_plain(b);
            i = b.last;
            continue;
        }
        em_tail    tail;
        const bool summed = b.tokens == 1 && em_tail_find(graph, b, n, &tail);
        status = run_plain(c, graph, plain, b.first);
        if (status == STATUS_SUCCESS) {
            std::lock_guard<std::mutex> compute(b.engine->compute_mutex);
            status = run_block(c, b, summed ? &tail : nullptr);
        }
        i     = summed ? tail.last : b.last;
        plain = i + 1;
    }
    if (status == STATUS_SUCCESS) {
        status = plain == 0 ? G.ggml_backend_graph_compute(c->cpu, graph) : run_plain(c, graph, plain, n);
    }
    if (engine) {
        engine->count.moe_ns += em_now_ns() - started;
        if (engine->cancelled) {
            status = STATUS_ABORTED;
        }
    }
    return status;
}
