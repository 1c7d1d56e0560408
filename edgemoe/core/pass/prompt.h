#pragma once

// A prompt: layers put together in the stage, and layers of short prompts shared between link and CPU.
// Writers: stage_layout.cpp, prompt_sharing.cpp and prompt_layer.cpp.

#include "pass/device_graph.h"
#include "residency/residency.h"

// Experts [from, from + n) of a layer to stage places from `place` on.
struct em_stage_run {
    int32_t from, n, place;
};

// The places of a layer's experts in the stage.
struct em_stage_layout {
    int32_t                   layer = -1;
    std::vector<int32_t>      place; // of each expert
    int32_t                   hot = 0; // number of slots that are copied as they are, to the first places; 0: none
    std::vector<em_stage_run> runs; // to be sent now
    bool                      whole = false; // every expert is sent unless it is hot
    int32_t                   sent  = 0;     // experts of the runs, and experts that were sent early
    std::vector<uint8_t>      sent_early;    // expert -> 1 sent before the layer's ids were known
};

// A layer of a short prompt that link and CPU share. When the layer after it begins, the outcome corrects the rates.
struct em_shared_layer {
    em_sharing plan;
    int        turn       = -1; // of the layer after it
    int64_t    cpu_end    = 0;  // when the CPU was done
    int        link_first = 0;  // see em_learn_sharing
};

struct em_prompt {
    struct of_layer {
        em_layer_t * layer;
        ggml_tensor  ids; // in host memory
    };
    em_stage_layout       layout[2];
    std::vector<of_layer> routing; // not recorded yet
    bool                  active = false; // the graph under way is a prompt's
    em_shared_layer       shared;
    std::vector<std::unique_ptr<em_ram_use>> held; // experts that copies to the stage read, if they are in RAM of ours
    bool                                     unread = false; // an expert could not be read from the disk
};

// stage_layout.cpp
em_stage * em_stage_whole(em_pass * p, const em_layer_t & layer); // a stage that holds the whole layer; null: none
// `send[expert]`: copy the expert to the stage unless it is resident. Every other expert has a place as well: the CPU's rows
// replace its rows, or the expert was sent early. Null: send all.
void em_lay_out(em_stage_layout & layout, const em_layer_t & layer, const std::vector<uint8_t> * send);
void em_send_runs(em_pass * p, const em_stage_layout & layout, em_stage & stage, em_stage_part part);

// prompt_sharing.cpp
// Waits for the view of a layer, and learns from the layer before. Returns the time that the link has been idle, ns.
double em_wait_and_learn(em_pass * p, int turn);
// Chooses experts to be sent to the stage; the CPU's pairs go to misses.cold. Experts that were sent early are on their way.
std::vector<uint8_t> em_share_out(em_pass * p, const em_layer_t & layer, const ggml_tensor * ids, const em_stage_layout & layout,
                                  double idle);
// Sends as many experts as the link has time for until the layer's ids are known.
void em_send_early(em_pass * p, em_stage_layout & layout, const em_block & b, em_stage & stage);

// prompt_layer.cpp
// `next` is the layer after this one, null if `next` is not computed this way. `turn` counts the layers of a prompt.
int  em_prompt_layer(em_pass * p, em_block & b, const em_block * next, int turn);
void em_end_prompt(em_pass * p);
