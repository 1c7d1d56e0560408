#pragma once

// The expert block of one layer, found in a graph, and the pairs that it computes.
//
// A pair is (token, i-th of its k experts). Blocks belong to the thread that reads the graph. No lock.

#include "model/layer.h"

constexpr int EM_BLOCK_NODES = 24;

struct em_block {
    em_engine *   engine = nullptr;
    em_layer_t *  layer  = nullptr;
    int           first = 0, last = 0; // node range in the graph, both included; last is the down projection
    int           count = 0;           // nodes to compute, views included
    bool          on_device = false;   // its tensors are not in host memory
    ggml_tensor * node[EM_BLOCK_NODES];
    ggml_tensor * ids = nullptr;       // [k, tokens]
    int64_t       k = 0, tokens = 0;

    ggml_tensor * down() const { return node[count - 1]; }
};

enum class em_found { NOTHING, UNKNOWN, BAD_IDS, BLOCK };
// Looks at node i of the graph. UNKNOWN: an expert projection of ours in a pattern that is not recognised. BAD_IDS: it names an
// expert that does not exist, and ggml, which does not look, would write beyond its memory.
em_found em_block_find(ggml_cgraph * graph, int i, int n_nodes, em_block * out);

// The operations of llama.cpp on the rows of a single token's block: times the router's weights, then summed over k in order.
struct em_tail {
    const ggml_tensor * weights = nullptr; // [1, k]
    ggml_tensor *       out     = nullptr; // [n_embd]
    int                 last    = 0;       // its node
};
bool em_tail_find(ggml_cgraph * graph, const em_block & block, int n_nodes, em_tail * out);
// Computes the tail of rows that lie in block.down(), in the calling thread.
void em_tail_compute(const em_block & block, const em_tail & tail);

// A token's experts, in host memory.
inline const int32_t * em_ids_row(const ggml_tensor * ids, int64_t t) {
    return reinterpret_cast<const int32_t *>(static_cast<const char *>(ids->data) + t * ids->nb[1]);
}
bool em_ids_ok(const ggml_tensor * ids, int64_t experts); // all are experts that there are
std::vector<int64_t> em_tokens_of_experts(const ggml_tensor * ids, int64_t experts); // how many tokens chose each expert

struct em_pair {
    int32_t token, k, expert, place; // place: slot or staging place on the device, unused on the CPU
};

void em_sort_by_expert(std::vector<em_pair> & pairs); // in the order they have otherwise

// Where a pair's row begins in a tensor of the block: [width, k or 1, tokens or 1].
inline size_t em_row_offset(const ggml_tensor * t, const em_pair & p) {
    return size_t(t->ne[1] == 1 ? 0 : p.k) * t->nb[1] + size_t(t->ne[2] == 1 ? 0 : p.token) * t->nb[2];
}
