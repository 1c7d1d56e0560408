#pragma once

// One layer with inputs in host memory: hot pairs on the device, cold pairs on the CPU at the same time, joined once.
//
// Owner: the thread that computes. The caller holds em_turn::computing; em_graph_compute takes it itself, layer by layer.
// em_host_block holds the layer's mutex until the device is done.

#include "cpu/thread_pool.h"
#include "engine.h"

int64_t em_next_context(); // graph.cpp: numbers contexts

struct em_context { // one per llama context that opened our backend
    int64_t           number = em_next_context();
    em_thread_pool    threads;
    em_stream         cpu;
    std::vector<char> arena;
};

// host_layer.cpp
// Computes all pairs of a block, wherever the experts are.
int em_host_block(em_context * c, em_block & block, const em_tail * tail = nullptr);
// Computes cold pairs; their rows go to the block's down projection. The first graph runs the side task. If no graph
// starts, the caller runs the task.
enum class em_cold {
    OF_A_TOKEN,
    OF_A_TOKEN_OR_FETCHED,
    OF_A_PROMPT
}; // OR_FETCHED: the device may fetch some experts, if that is faster
int em_cold_pairs(em_context * c, em_block & block, const std::vector<em_pair> & cold, em_cold kind, em_side_task * task = nullptr);

// miss_fetch.cpp
// Moves misses out of `cold`: the device fetches them while the CPU computes the others. The device is done `after` ns after its
// last expert has arrived. A fetch delays both sides by `beside` ns. `both_ns` becomes the expected time of the longer side.
std::vector<em_pair> em_take_fetched(em_engine * e, const em_layer_t & layer, std::vector<em_pair> & cold, double after,
                                     double beside, double * both_ns);

// graph.cpp
int em_graph_compute(em_context * c, ggml_cgraph * graph);
