// Finds the expert block of a layer in a graph, and proves that the block can be computed pair by pair.
//
// A block runs from the first projection to the down projection. Every node in between must be of shape [n, k, tokens] and
// work on each pair alone. Any other node makes the pattern unknown, and ggml-cpu runs the nodes as they are.

#include "model/block.h"
#include "model/expert_buffer.h"

namespace {
bool in_block(const em_block & b, const ggml_tensor * t) { return std::find(b.node, b.node + b.count, t) != b.node + b.count; }

bool host_readable(const em_block & b, const ggml_tensor * t) {
    if (b.on_device) {
        return t->data != nullptr; // the host cannot read the tensor, but need not read it now
    }
    const ggml_backend_buffer * buffer = em_buffer_of(t);
    return t->data && (!buffer || G.ggml_backend_buft_is_host(buffer->buft));
}

bool ids_plain(const em_block & b, const ggml_tensor * ids) {
    return ids->type == TYPE_I32 && ids->nb[0] == 4 && ids->ne[2] == 1 && ids->ne[3] == 1 && host_readable(b, ids);
}

// Accepts an input from outside the block: one row per pair, per token, or for all.
bool gatherable(const em_block & b, const ggml_tensor * t) {
    return t->type == TYPE_F32 && t->nb[0] == 4 && t->ne[3] == 1 && (t->ne[1] == 1 || t->ne[1] == b.k) &&
           (t->ne[2] == 1 || t->ne[2] == b.tokens) && host_readable(b, t);
}

bool pair_shaped(const em_block & b, const ggml_tensor * t) {
    return t->type == TYPE_F32 && t->nb[0] == 4 && t->ne[1] == b.k && t->ne[2] == b.tokens && t->ne[3] == 1;
}

bool source_ok(const em_block & b, const ggml_tensor * t) { return in_block(b, t) || gatherable(b, t); }

bool projection_ok(const em_block & b, const ggml_tensor * t) {
    return em_projection_of(*b.layer, t->src[0]) >= 0 && t->src[2] == b.ids && source_ok(b, t->src[1]);
}

bool bias_ok(const em_block & b, const ggml_tensor * t) {
    if (t->src[2] != b.ids || !in_block(b, t->src[0]) || !t->src[1]) {
        return false;
    }
    return std::find(std::begin(b.layer->bias), std::end(b.layer->bias), t->src[1]) != std::end(b.layer->bias);
}

// Accepts a view that keeps the rows of its source apart, such as one half of a merged gate and up projection.
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
    const int op = t->op;
    if (op == OP.mul_mat_id || op == OP.add_id || op == OP.view) {
        return pair_shaped(b, t) && (op == OP.mul_mat_id ? projection_ok(b, t) : op == OP.add_id ? bias_ok(b, t) : view_ok(b, t));
    }
    return pair_shaped(b, t) &&
           (op == OP.glu || op == OP.unary || op == OP.clamp || op == OP.scale || op == OP.mul || op == OP.add || op == OP.sqr) &&
           elementwise_ok(b, t);
}

} // namespace

bool em_ids_ok(const ggml_tensor * ids, int64_t experts) {
    bool ok = true;
    em_each_pair(ids, [&](int32_t, int32_t, int32_t expert) { ok = ok && expert >= 0 && expert < experts; });
    return ok;
}

void em_sort_by_expert(std::vector<em_pair> & pairs) {
    std::stable_sort(pairs.begin(), pairs.end(), [](const em_pair & a, const em_pair & b) { return a.expert < b.expert; });
}

std::vector<int64_t> em_tokens_of_experts(const ggml_tensor * ids, int64_t experts) {
    std::vector<int64_t> tokens(static_cast<size_t>(experts));
    em_each_pair(ids, [&](int32_t, int32_t, int32_t expert) { tokens[size_t(expert)] += 1; });
    return tokens;
}

// Reads a block that begins at node i; false: the pattern is unknown.
static bool read_block(ggml_cgraph * graph, int i, int n_nodes, em_block * b) {
    const ggml_tensor * first = G.ggml_graph_node(graph, i);
    if (!b->layer || b->layer->weight[PROJ_DOWN] == first->src[0]) {
        return false;
    }
    b->ids    = first->src[2];
    b->k      = b->ids->ne[0];
    b->tokens = b->ids->ne[1];
    b->first  = i;
    b->count  = 0;
    if (!ids_plain(*b, b->ids) || !host_readable(*b, first)) {
        return false;
    }
    for (int j = i; j < n_nodes && b->count < EM_BLOCK_NODES; ++j) {
        ggml_tensor * t = G.ggml_graph_node(graph, j);
        if (!(t->flags & TENSOR_FLAG_COMPUTE) || !node_ok(*b, t)) {
            return false;
        }
        b->node[b->count++] = t;
        if (t->op == OP.mul_mat_id && t->src[0] == b->layer->weight[PROJ_DOWN]) {
            b->last = j;
            return true;
        }
    }
    return false;
}

em_found em_block_find(ggml_cgraph * graph, int i, int n_nodes, em_block * b) {
    const ggml_tensor * first = G.ggml_graph_node(graph, i);
    if (first->op != OP.mul_mat_id || !em_is_ours(first->src[0])) {
        return em_found::NOTHING;
    }
    if (!b->on_device && ids_plain(*b, first->src[2]) && !em_ids_ok(first->src[2], first->src[0]->ne[2])) {
        return em_found::BAD_IDS;
    }
    b->layer         = em_layer_of(first->src[0], &b->engine);
    const bool found = read_block(graph, i, n_nodes, b);
    if (b->layer && b->layer->pattern != em_pattern::UNKNOWN) {
        b->layer->pattern = found ? em_pattern::BLOCK : em_pattern::UNKNOWN;
    }
    return found ? em_found::BLOCK : em_found::UNKNOWN;
}

bool em_device_supports(ggml_backend_device * device, em_layer_t & layer, std::initializer_list<ggml_cgraph *> graphs) {
    if (layer.support == em_support::NOT_ASKED) {
        bool all = true;
        for (const ggml_cgraph * graph : graphs) {
            for (int i = 0; graph && i < graph->n_nodes; ++i) {
                all = all && (graph->nodes[i]->op == OP.reshape || G.ggml_backend_dev_supports_op(device, graph->nodes[i]));
            }
        }
        layer.support = all ? em_support::FULL : em_support::LACKING;
    }
    return layer.support == em_support::FULL;
}

bool em_tail_find(ggml_cgraph * graph, const em_block & b, int n_nodes, em_tail * out) {
    const ggml_tensor * rows = b.down();
    int                 i    = b.last + 1;
    if (i >= n_nodes) {
        return false;
    }
    ggml_tensor * product = G.ggml_graph_node(graph, i);
    if (product->op != OP.mul || product->src[0] != rows || b.k < 2) {
        return false;
    }
    const ggml_tensor * w = product->src[1];
    if (w->type != TYPE_F32 || w->ne[0] != 1 || w->ne[1] != b.k || w->ne[2] != b.tokens || w->ne[3] != 1 || !host_readable(b, w)) {
        return false;
    }
    auto is_term = [&](const ggml_tensor * t, int64_t k) {
        return t->op == OP.view && t->src[0] == product && t->ne[0] == rows->ne[0] && t->ne[1] == b.tokens && t->ne[2] == 1 &&
               t->view_offs == size_t(k) * product->nb[1] && t->nb[1] == product->nb[2];
    };
    int64_t             added = 0;
    const ggml_tensor * sum   = nullptr;
    for (++i; i < n_nodes && added < b.k - 1; ++i) {
        ggml_tensor * t = G.ggml_graph_node(graph, i);
        if (t->op == OP.view && t->src[0] == product) {
            continue;
        }
        const bool first = added == 0;
        if (t->op != OP.add || !is_term(t->src[1], added + 1) || (first ? !is_term(t->src[0], 0) : t->src[0] != sum)) {
            return false;
        }
        sum = t;
        ++added;
        if (added == b.k - 1) {
            if (t->type != TYPE_F32 || t->nb[0] != 4 || t->ne[1] != b.tokens || !host_readable(b, t)) {
                return false;
            }
            *out = {w, t, i};
        }
    }
    return added == b.k - 1;
}

void em_tail_compute(const em_block & b, const em_tail & tail) {
    const ggml_tensor * rows  = b.down();
    const int64_t       width = rows->ne[0];
    std::vector<float>  weights(size_t(b.k)), sum(static_cast<size_t>(width));
    for (int64_t k = 0; k < b.k; ++k) {
        memcpy(&weights[size_t(k)], static_cast<const char *>(tail.weights->data) + k * tail.weights->nb[1], 4);
    }
    for (int64_t k = 0; k < b.k; ++k) {
        const float * row = reinterpret_cast<const float *>(static_cast<const char *>(rows->data) + k * rows->nb[1]);
        for (int64_t i = 0; i < width; ++i) {
            const float term = row[i] * weights[size_t(k)];
            sum[size_t(i)]   = k == 0 ? term : sum[size_t(i)] + term;
        }
    }
    memcpy(tail.out->data, sum.data(), size_t(width) * 4);
}
