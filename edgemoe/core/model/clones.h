#pragma once

// Copies of a block's nodes, for a graph over other memory. Owner: the thread that builds the graph. No lock.

#include "model/block.h"

// A copy of a tensor, as a leaf: no node computes the copy.
inline ggml_tensor em_leaf(const ggml_tensor & t) {
    ggml_tensor leaf = t;
    leaf.op          = OP.none;
    leaf.buffer      = em_buffer_of(&t);
    leaf.view_src    = nullptr;
    leaf.view_offs   = 0; // a device may add view_offs to `data`
    std::fill(std::begin(leaf.src), std::end(leaf.src), nullptr);
    return leaf;
}

struct em_clones {
    const ggml_tensor * from[EM_BLOCK_NODES * 4];
    ggml_tensor *       to[EM_BLOCK_NODES * 4];
    int                 count = 0;

    ggml_tensor * find(const ggml_tensor * t) const {
        const auto at = std::find(from, from + count, t);
        return at == from + count ? nullptr : to[at - from];
    }
    ggml_tensor * add(const ggml_tensor * t, ggml_tensor * copy) {
        from[count] = t, to[count] = copy, ++count;
        return copy;
    }
    // Puts other tensors in the place of a layer's weights and biases.
    void bind(const em_layer_t & layer, ggml_tensor * const * weight, ggml_tensor * const * bias) {
        for (int p = 0; p < PROJ_COUNT; ++p) {
            if (layer.weight[p]) {
                add(layer.weight[p], weight[p]);
            }
            if (layer.bias[p]) {
                add(layer.bias[p], bias[p]);
            }
        }
    }
    // Connects a node's copy with the copies of its sources. `outside` copies a source that has no copy yet.
    template <typename F> ggml_tensor * connect(const ggml_tensor * node, ggml_tensor * copy, F outside) {
        for (int i = 0; i < GGML_SOURCES; ++i) {
            const ggml_tensor * s     = node->src[i];
            ggml_tensor *       known = s ? find(s) : nullptr;
            copy->src[i]              = !s || known ? known : add(s, outside(s));
        }
        return add(node, copy);
    }
};
