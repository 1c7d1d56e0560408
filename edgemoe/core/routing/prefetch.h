#pragma once

// Loading experts ahead of need, while a token is under way.
//
// Writer: the thread that computes, under em_turn::computing; settings are written between steps.
// The predictor belongs to that thread. From post to settle it belongs to the thread that looks ahead: the compute thread
// settles before it touches the predictor again. A glimpse that was not begun is taken back, one under way is waited for.

#include "residency/residency.h"
#include "routing/router.h"

// What the compute thread leaves for the thread that looks ahead: one layer's routing, and the input of its experts.
struct em_glimpse {
    int32_t              layer = -1;
    std::vector<int32_t> ids;
    std::vector<float>   input;
};

// Runs routers ahead, while the compute thread is busy with the experts of the layer.
struct em_looker {
    enum state_t { IDLE, POSTED, RUNNING, STOPPING };
    std::thread             thread;
    std::mutex              mutex;
    std::condition_variable changed;
    state_t                 state = IDLE;
    em_glimpse              glimpse; // the compute thread's while IDLE, the looker's otherwise
};

struct em_prefetch {
    const em_model &     model;
    em_residence &       residence;
    em_counters &        count;
    const em_rates &     rates;
    em_predictor *       predictor = nullptr;
    int32_t              lead = 1, most = 0;
    float                gain = 0;
    bool                 wait = false;  // for every prefetch to arrive, as a replay assumes
    bool                 begun = false; // the step under way, by em_prefetch_token
    bool                 alone = false; // one token is under way and nothing else
    std::vector<int32_t> spent = {};    // loads of each layer in this step
    int64_t              layer_started_ns = 0;
    double               layer_ns = 0;  // from one expert layer to the next, smoothed
    std::vector<em_router> routers = {}; // of each layer; without experts: none
    em_looker            looker = {};
};

void em_prefetch_begin(em_prefetch & a); // the model is loaded
void em_prefetch_set(em_prefetch & a, em_predictor * predictor, int32_t lead, int32_t most, float gain, bool wait);
void em_prefetch_router(em_prefetch & a, int32_t layer, em_router router);
void em_prefetch_token(em_prefetch & a, int32_t token_id);        // is about to be decoded
void em_prefetch_end_step(em_prefetch & a);
void em_look_ahead(em_prefetch & a, const em_block & block);      // before its layer computes
void em_look_stop(em_prefetch & a);
