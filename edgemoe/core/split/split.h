#pragma once

// One layer whose inputs are in host memory: hot pairs on the device, cold pairs on the CPU at the same time, joined once.
//
// Owner: the thread that computes. The caller holds em_turn::computing, but for em_graph_compute, which takes it layer by layer;
// where there are hot pairs, the layer's mutex is held until the device is done.

#include "engine.h"

struct em_context { // one per llama context that opened our backend
    em_stream         cpu;
    std::vector<char> arena;
};

// host_layer.cpp
// Computes all pairs of a block, wherever its experts are.
int em_host_block(em_context * c, em_block & block, const em_tail * tail = nullptr);
// Computes cold pairs; rows go to the block's down projection. Where no graph came so far the side task was not run.
enum class em_cold { OF_A_TOKEN, OF_A_TOKEN_OR_FETCHED, OF_A_PROMPT }; // fetched: by the device, where that is quicker
int em_cold_pairs(em_context * c, em_block & block, const std::vector<em_pair> & cold, em_cold kind, em_side_task * task = nullptr);

// miss_fetch.cpp
// Takes away those of a token's cold pairs that the device should fetch while the CPU computes the others.
std::vector<em_pair> em_take_fetched(em_engine * e, const em_layer_t & layer, std::vector<em_pair> & cold);

// graph.cpp
int em_graph_compute(em_context * c, ggml_cgraph * graph);
