#pragma once

// The routing log: the routers' choices, for the routing history; and traces that replace the routers' choices.
//
// em_routing_log: written by the threads that compute, emptied by em_drain from any thread, under its mutex. Two contexts may
// compute layers in turns, so the records of a pass are collected apart until the pass is over.
// em_forced: the thread that computes, under em_turn::computing.

#include "measures/counters.h"
#include "model/block.h"

#include <mutex>

struct em_unfinished_pass {
    int64_t              context = 0;
    int32_t              block   = -1; // of the latest record
    std::vector<int32_t> events  = {};
};

struct em_routing_log {
    const em_model & model;
    em_counters &    count;

    std::mutex                     mutex  = {};
    std::vector<int32_t>           events = {};
    size_t                         length = 0;
    bool                           full   = false; // nothing is recorded until em_log_drain
    std::vector<em_unfinished_pass> passes = {};    // one for each context
};

// `context`: number of the context that computes.
void    em_record(em_routing_log & log, int64_t context, int32_t block, const ggml_tensor * ids);
int64_t em_log_drain(em_routing_log & log, int32_t * out, int64_t capacity);

// Benchmarks replay real routing on random weights: a row of the trace per token.
struct em_forced {
    std::vector<int32_t> ids; // [tokens, layers, top_k]
    int64_t              tokens = 0, layers = 0, top_k = 0, at = -1;
};

int  em_force_set(em_forced & f, const em_model & model, const int32_t * ids, int64_t tokens, int32_t top_k);
void em_force_routing(em_forced & f, int32_t layer, ggml_tensor * ids);
