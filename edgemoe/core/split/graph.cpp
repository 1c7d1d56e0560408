// A graph of llama.cpp's that our accelerator was given: its blocks split, everything else as it is.

#include "split/run.h"

namespace {

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
    if (!em_device_usable(e->device, layer)) {
        return true;
    }
    std::lock_guard<std::mutex> lock(layer.residents.mutex);
    return layer.residents.count == 0;
}

// As one graph on the CPU, which can be stopped between its matrices, it would go on for too long.
bool is_long(const em_block & b) {
    constexpr double MATRICES = 3;
    return em_pair_ns(b.layer->pair_multiplications(), b.engine->rates.cold_pair_ns) * double(b.k * b.tokens) > MATRICES * 1e3 * double(b.engine->options.graph_us);
}

// A layer that stays on the CPU still counts its misses and takes part in the routing history.
void account_plain(const em_block & b) {
    em_engine * e = b.engine;
    (b.tokens >= e->options.prefill_tokens ? e->count.prefill_misses : e->count.misses) += b.k * b.tokens;
}

} // namespace

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
        if (found == em_found::BAD_IDS) {
            return STATUS_FAILED;
        }
        engine = b.engine;
        if (b.layer) {
            b.layer->recognised = b.layer->recognised == 0 ? 0 : found == em_found::BLOCK;
        }
        if (found == em_found::UNKNOWN) {
            continue;
        }
        em_force_routing(b.engine->forced, b.layer->index, b.ids);
        em_record(b.engine->log, b.layer->block, b.ids);
        em_look_ahead(b.engine->prefetch, b);
        const bool prefill_streams = b.engine->options.stream_tokens > 0 && b.tokens >= b.engine->options.prefill_tokens &&
                                     em_device_usable(b.engine->device, *b.layer);
        if (all_cold(b.engine, *b.layer) && !prefill_streams && !em_fusable(b) && !is_long(b) && !em_mostly_for_us(b)) {
            account_plain(b);
            i = b.last;
            continue;
        }
        em_tail    tail;
        const bool summed = b.tokens == 1 && em_tail_find(graph, b, n, &tail);
        status = run_plain(c, graph, plain, b.first);
        if (status == STATUS_SUCCESS) {
            std::lock_guard<std::mutex> compute(b.engine->turn.computing);
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
