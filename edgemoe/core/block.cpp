// Finding the expert block of a layer in a graph, and proving that it can be computed pair by pair.
//
// A pair is (token, i-th of its k experts). The block runs from the first projection to the down projection. Every node in
// between must be of shape [n, k, tokens] and work on each pair alone; anything else makes the pattern unknown, and the nodes
// run as they are on ggml-cpu.

#include "engine.h"

#include <cstring>

namespace {

bool in_block(const em_block & b, const ggml_tensor * t) {
    for (int i = 0; i < b.count; ++i) {
        if (b.node[i] == t) {
            return true;
        }
    }
    return false;
}

bool host_readable(const ggml_tensor * t) {
    const ggml_backend_buffer * buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return t->data && (!buffer || G.ggml_backend_buft_is_host(buffer->buft));
}

// An input from outside the block: one row per pair, per token, or for all.
bool gatherable(const em_block & b, const ggml_tensor * t) {
    return t->type == TYPE_F32 && t->nb[0] == 4 && t->ne[3] == 1 && (t->ne[1] == 1 || t->ne[1] == b.k) &&
           (t->ne[2] == 1 || t->ne[2] == b.tokens) && host_readable(t);
}

bool pair_shaped(const em_block & b, const ggml_tensor * t) {
    return t->type == TYPE_F32 && t->nb[0] == 4 && t->ne[1] == b.k && t->ne[2] == b.tokens && t->ne[3] == 1;
}

bool source_ok(const em_block & b, const ggml_tensor * t) { return in_block(b, t) || gatherable(b, t); }

bool projection_ok(const em_block & b, const ggml_tensor * t) {
    int projection = 0;
    em_engine * engine = nullptr;
    return em_layer_of(t->src[0], &projection, &engine) == b.layer && t->src[2] == b.ids && source_ok(b, t->src[1]) &&
           b.layer->weight[projection] == t->src[0];
}

bool bias_ok(const em_block & b, const ggml_tensor * t) {
    if (t->src[2] != b.ids || !in_block(b, t->src[0])) {
        return false;
    }
    for (const ggml_tensor * bias : b.layer->bias) {
        if (bias && bias == t->src[1]) {
            return true;
        }
    }
    return false;
}

// A view that keeps the rows of its source apart, such as one half of a merged gate and up projection.
bool view_ok(const em_block & b, const ggml_tensor * t) {
    const ggml_tensor * s = t->src[0];
    return in_block(b, s) && s->op != OP.view && t->view_src == s && t->nb[1] == s->nb[1] && t->nb[2] == s->nb[2] &&
           t->view_offs + size_t(t->ne[0]) * 4 <= s->nb[1];
}

bool elementwise_ok(const em_block & b, const ggml_tensor * t) {
    bool any = false;
    for (const ggml_tensor * s : t->src) {
        if (s && !source_ok(b, s)) {
            return false;
        }
        any = any || (s && in_block(b, s));
    }
    return any;
}

bool node_ok(const em_block & b, const ggml_tensor * t) {
    if (!pair_shaped(b, t)) {
        return false;
    }
    if (t->op == OP.mul_mat_id) {
        return projection_ok(b, t);
    }
    if (t->op == OP.add_id) {
        return bias_ok(b, t);
    }
    if (t->op == OP.view) {
        return view_ok(b, t);
    }
    const int op = t->op;
    return (op == OP.glu || op == OP.unary || op == OP.clamp || op == OP.scale || op == OP.mul || op == OP.add || op == OP.sqr) &&
           elementwise_ok(b, t);
}

bool ids_ok(const ggml_tensor * ids, int64_t experts) {
    if (ids->type != TYPE_I32 || ids->nb[0] != 4 || ids->ne[2] != 1 || ids->ne[3] != 1 || !host_readable(ids)) {
        return false;
    }
    for (int64_t t = 0; t < ids->ne[1]; ++t) {
        const int32_t * row = reinterpret_cast<const int32_t *>(static_cast<const char *>(ids->data) + t * ids->nb[1]);
        for (int64_t i = 0; i < ids->ne[0]; ++i) {
            if (row[i] < 0 || row[i] >= experts) {
                return false;
            }
        }
    }
    return true;
}

} // namespace

em_found em_block_find(ggml_cgraph * graph, int i, int n_nodes, em_block * b) {
    ggml_tensor * first = G.ggml_graph_node(graph, i);
    if (first->op != OP.mul_mat_id || !em_is_ours(first->src[0])) {
        return em_found::NOTHING;
    }
    int projection = 0;
    b->layer = em_layer_of(first->src[0], &projection, &b->engine);
    if (!b->layer || projection == PROJ_DOWN) {
        return em_found::UNKNOWN;
    }
    b->ids    = first->src[2];
    b->k      = b->ids->ne[0];
    b->tokens = b->ids->ne[1];
    b->first  = i;
    b->count  = 0;
    if (!ids_ok(b->ids, b->layer->experts) || !host_readable(first)) {
        return em_found::UNKNOWN;
    }
    for (int j = i; j < n_nodes && b->count < EM_BLOCK_NODES; ++j) {
        ggml_tensor * t = G.ggml_graph_node(graph, j);
        if (!(t->flags & TENSOR_FLAG_COMPUTE) || !node_ok(*b, t)) {
            return em_found::UNKNOWN;
        }
        b->node[b->count++] = t;
        if (t->op == OP.mul_mat_id && em_layer_of(t->src[0], &projection, &b->engine) && projection == PROJ_DOWN) {
            b->last = j;
            return em_found::BLOCK;
        }
    }
    return em_found::UNKNOWN;
}
