#pragma once

// Copies between host and device, in the order that pass.h describes. Writer of em_pass_memory, em_pass_events and em_tables.

#include "memory/region.h"
#include "pass/prompt.h"

#include <array>

// Memory of a pass. A stride is the memory of one layer in the region of its name.
struct em_pass_memory {
    em_region mirror;     // host copies of a layer's inputs, and its rows
    em_region prompt_ids; // of all layers of a prompt
    em_region places;     // of the pairs of all layers, where the host knows them first
    em_region forced_ids; // of all layers, where a trace replaces the routers
    em_region aside;      // on the device, of one layer: places of the pairs, inputs that would be overwritten, fetched pairs
    int64_t   aside_serial = 0;
    size_t    ids_stride = 0, places_stride = 0, forced_stride = 0;
};

struct em_pass_events {
    ggml_backend_event * ready = nullptr, * arrived = nullptr;
    ggml_backend_event * filled[EM_PARTS] = {}, * vacant[EM_PARTS] = {}, * done[2] = {};

    std::array<ggml_backend_event **, 8> all() {
        return {&ready, &arrived, &filled[EM_FIRST], &filled[EM_SECOND], &vacant[EM_FIRST], &vacant[EM_SECOND], &done[0], &done[1]};
    }
    ~em_pass_events() {
        for (ggml_backend_event ** event : all()) {
            if (*event) {
                G.ggml_backend_event_free(*event);
            }
        }
    }
};

// Tables and biases on the device, by layer.
struct em_tables {
    em_region                        host;             // host side: per layer a table of the slots, and one of the stage
    ggml_context *                   ctx    = nullptr; // of the tensors that follow
    ggml_backend_buffer *            buffer = nullptr;
    std::vector<ggml_tensor *>       slots, stage; // [1, experts]
    std::vector<const ggml_tensor *> bias;         // [layer * PROJ_COUNT + projection] all experts' biases
    std::vector<int64_t>             sent_version, whole_version; // of slot_of, when the table was sent; when all was in order

    ~em_tables() {
        if (buffer) {
            G.ggml_backend_buffer_free(buffer);
        }
        if (ctx) {
            G.ggml_free(ctx);
        }
    }
};

// Rows that are put in place by their numbers: n into `all`, which has so many.
struct em_put_rows {
    ggml_tensor * all, * rows, * numbers, * put;
    ggml_cgraph * graph;

    em_put_rows(ggml_context * ctx, int64_t width, int64_t height, int64_t n);
    static size_t bytes() { return G.ggml_tensor_overhead() * 4 + G.ggml_graph_overhead_custom(8, false) + 256; }
};

// Does the device put rows in place that it was given together, and memory for that.
struct em_row_putting {
    std::vector<char> arena;
    bool              supported = false;
};

ggml_tensor em_some_rows(const ggml_tensor & t, int32_t from, int32_t n); // n rows of a matrix, as a tensor of their own

// tables.cpp
bool      em_tables_make(em_pass * p); // and the graphs of each layer, once. False: no memory
int32_t * em_host_table(em_pass * p, size_t layer, bool stage);

// link.cpp
// Memory of a layer in a region that is written again for the next token only: the device may read it until then.
char * em_area_of(em_pass * p, em_region & region, size_t & stride, size_t each, const em_layer_t & layer);
void em_before_sending(em_pass * p); // the next copies to inner wait for its computations so far
void em_force_ids(em_pass * p, const em_block & b); // where a trace says so, the ids on the device are replaced
// One tensor's experts to the stage. What the device may read by itself is one copy; the ragged ends of it are others.
void em_send_run(em_pass * p, const em_window & w, const ggml_tensor * from, ggml_tensor * to, size_t each, const em_stage_run & run);
bool em_sent(em_pass * p, em_stage_part part); // after the copies to a part of the stage. False: they failed, as sim can tell
int  em_send_rows(em_pass * p, const em_block & b); // puts the CPU's rows of misses.cold in place
