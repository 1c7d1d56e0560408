#pragma once

// Copies between host and device, in the order that pass.h describes. Writer of em_pass_memory, em_pass_events and em_tables.

#include "pass/prompt.h"

#include <array>
#include <memory>
#include <vector>

// Memory of all layers: `stride` bytes for each layer.
struct em_layer_region : em_region {
    size_t stride = 0;
};

struct em_put_rows;

struct em_pass_memory {
    em_region       mirror;     // host copies of a layer's inputs, and its rows
    em_layer_region prompt_ids; // expert ids of a prompt
    em_layer_region places;     // places of pairs, if the host chooses them
    em_layer_region forced_ids; // from a trace that replaces the routers
    em_region       scratch;    // on the device, of one layer: places of pairs, saved inputs, fetched pairs
    int64_t         scratch_serial = 0;
    // Graphs that have put rows in place. ggml-vulkan looks at the tensors of earlier graphs until a thread waits for the stream.
    std::vector<std::unique_ptr<em_put_rows>> put;
};

struct em_pass_events {
    em_event ready, arrived, filled[EM_PARTS], vacant[EM_PARTS], done[2];

    std::array<em_event *, 8> all() {
        return {&ready, &arrived, &filled[EM_FIRST], &filled[EM_SECOND], &vacant[EM_FIRST], &vacant[EM_SECOND], &done[0], &done[1]};
    }
};

// Tables and biases on the device, by layer.
struct em_tables {
    em_layer_region            host; // host side: per layer a table of the slots, and a table of the stage
    em_arena                   ctx;  // of the tensors that follow
    em_buffer                  buffer;
    std::vector<ggml_tensor *> slots, stage; // [1, experts]
    std::vector<ggml_tensor *> bias;         // [layer * PROJ_COUNT + projection] all experts' biases
    std::vector<int64_t>       sent_version;  // version of slot_of in the table that was sent
    std::vector<int64_t>       whole_version; // latest version of slot_of in which each expert had the slot of its number
    bool                       puts_rows = false; // the device supports em_put_rows

    int32_t * host_table(size_t layer, bool stage_side) const {
        return reinterpret_cast<int32_t *>(host.base + host.stride * (2 * layer + stage_side));
    }
};

// A graph that puts n rows in place by their numbers, in a matrix `all` of `height` rows.
struct em_put_rows {
    em_arena      ctx = G.ggml_init({G.ggml_tensor_overhead() * 4 + G.ggml_graph_overhead_custom(8, false) + 256, nullptr, true});
    ggml_tensor * all, *rows, *numbers, *put;
    ggml_cgraph * graph;

    em_put_rows(int64_t width, int64_t height, int64_t n);
};

ggml_tensor em_some_rows(const ggml_tensor & t, int32_t from, int32_t n); // n rows of a matrix, as a tensor of their own

// tables.cpp
bool em_tables_make(em_pass * p); // and the graphs of each layer, once. False: no memory

// link.cpp
// Gives a layer's part of a region. The part is rewritten only for the next token; until then the device may read the part. Null:
// no memory.
char * em_area_of(em_pass * p, em_layer_region & region, size_t each, const em_layer_t & layer);
void   em_before_sending(em_pass * p); // the next copies on p->compute wait for its computations so far
void   em_force_ids(em_pass * p, const em_block & b); // replaces the ids on the device if there is a trace
// Copies one tensor's experts to the stage. Experts in memory that the device reads by itself are one copy. The rest of the run,
// at either end, is copied apart.
void em_send_run(em_pass * p, const em_window & w, const ggml_tensor * from, ggml_tensor * to, size_t each,
                 const em_stage_run & run);
bool em_sent(em_pass *     p,
             em_stage_part part); // call it after the copies to a part of the stage. False: a copy failed; only sim reports that
int  em_send_rows(em_pass * p, const em_block & b); // puts the CPU's rows of misses.cold in place
