#pragma once

// A pass: llama.cpp's whole graph on a device, and every layer's experts where they are.
//
// llama.cpp gets a device of ours in the place of a ggml device. Memory, transfers and all operations but those on experts go
// straight through to the ggml device, in one stream. So one backend computes all of a token, activations stay on the device,
// and nothing is copied between backends. A layer's experts are computed in one of three ways:
//
//   - few tokens: the device computes the hot pairs over the activations. Meanwhile the inputs are copied to the host, and the
//     CPU computes the cold pairs. Then the CPU's rows are put in place. For one token the device maps experts to slots by a
//     table of its own, so that it need not wait for the CPU. The table maps cold pairs to some slot, too; their rows are
//     replaced. The CPU waits once per layer, for the ids; the device waits only for a miss.
//   - many tokens: all experts of the layer meet in the stage, hot experts from their slots, the others from host memory. The
//     layer is computed as llama.cpp would. One half of a layer is copied while the other half computes. In a short prompt the
//     CPU computes the experts with the fewest tokens while the link copies the others.
//   - all experts resident, each in the slot of its number: llama.cpp's own graph runs over the slots.
//
// Ordering. Everything runs on one stream (`compute`) in the order of the graph, but for two kinds of copies:
//   - to the host (`to_host`): a copy begins when `compute` has reached `ready`. By then the layer's inputs are computed, and
//     inputs that the layer itself overwrites are saved. The CPU waits for `arrived` before it gives `compute` more than the
//     layer's hot pairs.
//   - to the stage (`device.stream`): each part h has two events. `vacant[h]`: `compute` has read the part for the layer before;
//     copies to the part wait for this event. `filled[h]`: the copies are done; `compute` waits for this event before it reads the
//     part. Layers of different types may share a part's memory.
// The CPU's rows, places and tables are sent on `compute` itself. They wait for the computations before them: by the order of the
// stream, or, if the device sends beside its computations, by `ready` (em_before_sending).
// A slot is not overwritten while it is read. Under the layer's mutex the hot pairs are started, and `residents.read` is recorded
// on `compute`. The copy thread marks the slot under the same mutex. Then its stream waits for `residents.read`. A prompt, and a
// graph over all slots, hold the copy thread's mutex. A graph over all slots records `readers.read`. On a device without events,
// every wait for an event is a wait for the stream.
//
// Writer: the thread that computes, under em_turn::computing. A part's header names the files that write the part.

#include "pass/graph_reader.h"
#include "pass/host_view.h"
#include "pass/link.h"
#include "pass/prompt.h"
#include "split/split.h"

struct em_misses {
    std::vector<em_pair> cold, fetched;
};

// A graph over all slots. A device knows a graph by its first node. So the graph begins with `marker`, which computes nothing.
struct em_whole {
    ggml_tensor                marker{};
    std::vector<ggml_tensor *> nodes;
    int64_t                    unread = 0; // tokens since the routing was read
};

// The parts are destroyed in reverse: the streams last.
struct em_pass {
    em_engine * e = nullptr;
    em_context  cpu; // cold experts
    em_stream   compute, to_host;
    bool        events   = false; // the device has events
    bool        early    = false; // hot pairs may be started before the CPU knows the ids
    int64_t     unwaited = 0;    // graphs since the pass waited for all streams

    em_tables        tables;
    em_pass_memory   memory;
    em_device_graphs graphs;
    em_pass_events   sync;
    em_reading       reading;
    em_edits         edits;
    em_whole         whole;
    em_host_view     view;
    em_misses        misses;
    em_prompt        prompt;
};

// decode_layer.cpp: a layer of a few tokens
int em_decode_layer(em_pass * p, em_block & b);

// hot_pairs.cpp; each needs the layer's mutex
bool em_has_hot(const em_layer_t & layer);
// Whether the device computes a single token's pairs one by one. Then two pairs may have the same place.
bool em_one_by_one_pairs(const em_pass * p, const em_block & b);
// Starts all pairs by the table. Cold pairs go to some slot, unless every expert is resident.
bool em_start_by_table(em_pass * p, const em_block & b);
// Starts all pairs, with slots that the host sends. A token's cold pairs go to slots that the token does not use otherwise; false:
// too few such slots.
bool em_start_sent(em_pass * p, const em_block & b, const ggml_tensor * ids);

// by_host.cpp: layers that the host computes: if the stage is too small for a prompt, or a batch gains nothing from hot pairs
int em_by_host(em_pass * p, em_block & b);
int em_by_host_seen(em_pass * p, em_block & b); // the view has arrived
int em_run_unrecognised(em_pass * p, ggml_tensor * t); // an operation on experts outside any block

// whole_graph.cpp
bool em_whole_resident(em_pass * p, const std::vector<em_block> & blocks); // each expert in the slot of its number
int  em_run_whole(em_pass * p, ggml_cgraph * graph, const std::vector<em_block> & blocks);

// pass.cpp
int em_pass_compute(em_pass * p, ggml_cgraph * graph);
