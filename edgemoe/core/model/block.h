#pragma once

// The expert block of one layer, found in a graph, and the pairs that the block computes.
//
// A pair is (token, i-th of its k experts). Blocks belong to the thread that reads the graph. No lock.

#include "model/layer.h"

constexpr int EM_BLOCK_NODES = 24;

struct em_block {
    em_engine *   engine = nullptr;
    em_layer_t *  layer  = nullptr;
    int           first = 0, last = 0; // nodes of the graph, both included; last is the down projection
    int           count     = 0;           // nodes to compute, views included
    bool          on_device = false;   // the tensors are not in host memory
    ggml_tensor * node[EM_BLOCK_NODES];
    ggml_tensor * ids = nullptr;       // [k, tokens]
    int64_t       k = 0, tokens = 0;

    ggml_tensor * down() const { return node[count - 1]; }
};

enum class em_found { NOTHING, UNKNOWN, BAD_IDS, BLOCK };
// Looks for a block that begins at node i, and notes in the layer whether the pattern is recognised. UNKNOWN: an expert
// projection of ours in a pattern that is not recognised. BAD_IDS: the node names an expert that does not exist; ggml would write
// beyond its memory.
em_found em_block_find(ggml_cgraph * graph, int i, int n_nodes, em_block * out);
// Whether the device has every operation of a layer's graphs. Without this check, a missing operation or weight type would end the
// process. The device is asked once per layer.
bool em_device_supports(ggml_backend_device * device, em_layer_t & layer, std::initializer_list<ggml_cgraph *> graphs);

// llama.cpp's operations behind the block of a single token: they multiply the rows with the router's weights and sum them over k,
// in order.
struct em_tail {
    const ggml_tensor * weights = nullptr; // [1, k]
    ggml_tensor *       out     = nullptr; // [n_embd]
    int                 last    = 0;       // node of `out`
};
bool em_tail_find(ggml_cgraph * graph, const em_block & block, int n_nodes, em_tail * out);
// Computes the tail of the rows in block.down(), in the calling thread.
void em_tail_compute(const em_block & block, const em_tail & tail);

// The ids of a token's experts. The tensor must be in host memory.
inline const int32_t * em_ids_row(const ggml_tensor * ids, int64_t t) {
    return reinterpret_cast<const int32_t *>(static_cast<const char *>(ids->data) + t * ids->nb[1]);
}
// Calls f(token, k, expert) for every pair, with ids in host memory.
template <typename F> void em_each_pair(const ggml_tensor * ids, F f) {
    for (int64_t t = 0; t < ids->ne[1]; ++t) {
        for (int64_t k = 0; k < ids->ne[0]; ++k) {
            f(int32_t(t), int32_t(k), em_ids_row(ids, t)[k]);
        }
    }
}
bool                 em_ids_ok(const ggml_tensor * ids, int64_t experts); // every id is the number of an expert
std::vector<int64_t> em_tokens_of_experts(const ggml_tensor * ids, int64_t experts); // counts the tokens that chose each expert

struct em_pair {
    int32_t token, k, expert, place; // place: the slot, or the place in the stage, of the expert on the device
};

void em_sort_by_expert(std::vector<em_pair> & pairs); // stable

inline bool em_overlap(const ggml_tensor & a, const ggml_tensor & b) { // whether the data overlap
    const char *from = static_cast<const char *>(a.data), *other = static_cast<const char *>(b.data);
    return from && other && from < other + G.ggml_nbytes(&b) && other < from + G.ggml_nbytes(&a);
}

// Offset of a pair's row in a tensor of the block: [width, k or 1, tokens or 1].
inline size_t em_row_offset(const ggml_tensor * t, const em_pair & p) {
    return size_t(t->ne[1] == 1 ? 0 : p.k) * t->nb[1] + size_t(t->ne[2] == 1 ? 0 : p.token) * t->nb[2];
}
