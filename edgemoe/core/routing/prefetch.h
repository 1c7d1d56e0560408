#pragma once

// Prefetches: experts that are loaded ahead of need, while a token is under way.
//
// Writer: the thread that computes, under em_turn::computing; settings are written between steps.
// The predictor belongs to the thread that computes. From post to settle the lookahead thread has it. So the thread that
// computes calls settle before it touches the predictor again. If the snapshot was not begun, settle takes the snapshot back. If
// the snapshot is under way, settle waits.

#include "residency/residency.h"
#include "routing/router.h"

// One layer's routing and the input of its experts, left by the thread that computes for the lookahead thread.
struct em_snapshot {
    int32_t              layer = -1;
    std::vector<int32_t> ids;
    std::vector<float>   input;
};

// Runs routers ahead, while the thread that computes is busy with the experts of the layer.
struct em_lookahead_thread {
    enum state_t { IDLE, POSTED, RUNNING, STOPPING };
    std::thread             thread;
    std::mutex              mutex;
    std::condition_variable changed;
    state_t                 state = IDLE;
    em_snapshot             snapshot; // belongs to the thread that computes while IDLE, else to the lookahead thread
};

struct em_prefetch {
    const em_model &       model;
    em_residence &         residence;
    em_counters &          count;
    em_rates &             rates;
    em_predictor *         predictor = nullptr;
    int32_t                lead = 1, most = 0;
    float                  gain             = 0;
    bool                   wait             = false;  // for every prefetch to arrive, as a replay assumes
    bool                   begun            = false; // em_prefetch_token began the step under way
    bool                   alone            = false; // one token is under way and nothing else
    std::vector<int32_t>   spent            = {};    // loads of each layer in this step
    int64_t                layer_started_ns = 0;
    std::vector<em_router> routers          = {}; // of each layer; a router without experts: none
    em_lookahead_thread    lookahead        = {};
};

void em_prefetch_begin(em_prefetch & a); // the model is loaded
void em_prefetch_set(em_prefetch & a, em_predictor * predictor, int32_t lead, int32_t most, float gain, bool wait);
void em_prefetch_router(em_prefetch & a, int32_t layer, em_router router);
void em_prefetch_token(em_prefetch & a, int32_t token_id); // call it before a token of this id is decoded
void em_prefetch_end_step(em_prefetch & a);
void em_prefetch_stop(em_prefetch & a); // ends the lookahead thread
void em_look_ahead(em_prefetch & a, const em_block & block); // before the layer computes
