// A graph that llama.cpp gives to our accelerator: expert blocks are split, other nodes run as they are.

#include "split/run.h"

int64_t em_next_context() {
    static std::atomic<int64_t> made{0};
    return ++made;
}

// Runs nodes [from, to) as they are, on ggml-cpu.
static int run_plain(em_context * c, ggml_cgraph * graph, int from, int to) {
    if (from >= to) {
        return STATUS_SUCCESS;
    }
    const size_t size   = size_t(to - from);
    const size_t needed = G.ggml_graph_overhead_custom(size, false) + 256;
    if (c->arena.size() < needed) {
        c->arena.resize(needed);
    }
    const em_arena ctx  = G.ggml_init({c->arena.size(), c->arena.data(), true});
    ggml_cgraph *  part = G.ggml_new_graph_custom(ctx, size, false);
    for (int i = from; i < to; ++i) {
        G.ggml_graph_add_node(part, G.ggml_graph_node(graph, i));
    }
    return G.ggml_backend_graph_compute(c->cpu, part);
}

// No expert of this layer is or can be on the device.
static bool all_cold(em_engine * e, em_layer_t & layer) {
    if (!em_device_usable(e->device, layer)) {
        return true;
    }
    std::lock_guard<std::mutex> lock(layer.residents.mutex);
    return layer.residents.count == 0;
}

// Whether the layer takes too long for one graph on the CPU. Such a graph stops only between two matrices.
static bool is_long(const em_block & b) {
    constexpr double MATRICES = 3;
    const double     pair     = em_pair_ns(b.layer->pair_multiplications(), b.engine->rates.cold_pair_ns);
    return pair * double(b.k * b.tokens) > MATRICES * 1e3 * double(b.engine->options.graph_us);
}

// Whether the block runs as in llama.cpp, with the nodes around it. If so, counts the pairs as misses.
static bool runs_plain(const em_block & b) {
    em_engine * e       = b.engine;
    const bool  decode  = e->decodes(b.tokens),
                streams = e->options.stream_tokens > 0 && !decode && em_device_usable(e->device, *b.layer);
    if (e->ram.on || streams || !all_cold(e, *b.layer) || em_fusable(b) || is_long(b) || em_mostly_row_products(b)) {
        return false;
    }
    (decode ? e->count.misses : e->count.prefill_misses) += b.k * b.tokens;
    return true;
}

// Reports the routing of a layer before the layer computes. Another context may compute meanwhile.
static void report(em_context * c, const em_block & b) {
    em_engine *                 e = b.engine;
    std::lock_guard<std::mutex> compute(e->turn.computing);
    em_force_routing(e->forced, b.layer->index, b.ids);
    em_record(e->log, c->number, b.layer->block, b.ids);
    em_look_ahead(e->prefetch, b);
}

int em_graph_compute(em_context * c, ggml_cgraph * graph) {
    const em_pool_use use(c->threads);
    const int64_t     started = em_now_ns();
    const int         n       = G.ggml_graph_n_nodes(graph);
    int               status  = STATUS_SUCCESS;
    int               plain   = 0; // first node not computed yet
    em_engine *       engine  = nullptr;
    for (int i = 0; i < n && status == STATUS_SUCCESS; ++i) {
        em_block       b;
        const em_found found = em_block_find(graph, i, n, &b);
        engine               = found == em_found::NOTHING ? engine : b.engine;
        if (found == em_found::BAD_IDS) {
            return STATUS_FAILED;
        }
        if (found == em_found::UNKNOWN && b.layer) {
            em_ram_leave(engine->ram, *b.layer);
        }
        if (found != em_found::BLOCK) {
            continue;
        }
        report(c, b);
        if (runs_plain(b)) {
            i = b.last;
            continue;
        }
        em_tail    tail;
        const bool summed = b.tokens == 1 && em_tail_find(graph, b, n, &tail);
        status            = run_plain(c, graph, plain, b.first);
        if (status == STATUS_SUCCESS) {
            std::lock_guard<std::mutex> compute(engine->turn.computing);
            status = em_host_block(c, b, summed ? &tail : nullptr);
        }
        i     = summed ? tail.last : b.last;
        plain = i + 1;
    }
    if (status == STATUS_SUCCESS) {
        status = plain == 0 ? G.ggml_backend_graph_compute(c->cpu, graph) : run_plain(c, graph, plain, n);
    }
    if (engine) {
        engine->count.moe_ns += em_now_ns() - started;
        if (engine->turn.cancelled) {
            status = STATUS_ABORTED;
        }
    }
    return status;
}
