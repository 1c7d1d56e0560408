#pragma once

// A pass: llama.cpp's whole graph on a device, with every layer's experts where they are.
//
// llama.cpp gets a device of ours in the place of the ggml device that it stands for. Memory, transfers and all operations
// but those on experts go straight through to that one, in one stream. So one backend computes all of a token, activations
// stay on the device, and nothing is copied between backends. Of a layer's experts
//
//   - few tokens: the hot pairs are computed where the activations are; what they read is copied home meanwhile, the CPU
//     computes the cold pairs, and their rows are put in place. For one token the device maps experts to slots by a table of
//     its own, so that it need not wait for the CPU to do it: cold pairs are mapped to some slot, too, and replaced. The CPU
//     waits once per layer, for the ids; the device only where there is a miss.
//   - many tokens: the layer's experts are put together in the stage, hot ones from their slots and the others from host
//     memory, and the layer is computed as llama.cpp would. One half of a layer is copied while the other computes. Of a
//     short prompt the CPU computes the experts that have the fewest tokens while others are copied.
//   - all experts resident, each in the slot of its number: nothing of ours is in the way.
//
// Ordering. Everything runs on one stream (`inner`) in the order of the graph, but for two kinds of copies:
//   - home (`home`): begins when `ready` was reached on inner, which is after the layer's inputs were computed, and copied
//     where the layer itself overwrites them. The CPU waits for `arrived` before it gives inner more than the layer's hot pairs.
//   - the stage (`device.stream`): part h is written after `vacant[h]` was reached on inner, which is after the layer before
//     has read it; inner waits for `filled[h]` before it reads it. Layers of different types may have a part's memory in common.
// The CPU's rows, places and tables are sent on inner itself. They wait for the computations before them: by the order
// of the stream, or, where a device sends beside its computations, by `ready` (em_before_sending).
// A slot is not overwritten while it is read: under the layer's mutex the hot pairs are started and `residents.read` is recorded
// on inner; the copy thread marks the slot under the same mutex, then lets its stream wait for `residents.read`. A prompt, and a
// graph over all slots, keep the copy thread out by its mutex; the latter records `readers.read`. Where a device has no events,
// whoever would wait for one waits for the stream.
//
// Writer: the thread that computes, under em_turn::computing. A part's header names the files that write it.

#include "pass/graph_reader.h"
#include "pass/host_view.h"
#include "pass/link.h"
#include "pass/prompt.h"
#include "split/split.h"

// From so many tokens on llama.cpp, too, brings experts to the device rather than compute them on the CPU.
constexpr int64_t EM_MANY_TOKENS = 32;

struct em_misses {
    std::vector<em_pair> cold, fetched;
};

// A graph over all slots. Graphs are known by their first node: this one's does nothing.
struct em_whole {
    ggml_tensor                marker{};
    std::vector<ggml_tensor *> nodes;
    int64_t                    unseen = 0; // tokens since the routing was looked at
};

// The parts are destroyed in reverse: the streams last.
struct em_pass {
    em_engine * e = nullptr;
    em_context  cpu; // cold experts
    em_stream   inner, home;
    bool        events = false; // the device has them
    bool        early  = false; // hot pairs may be started before the CPU knows the ids
    int64_t     kept   = 0;     // graphs since everything was waited for

    em_tables        tables;
    em_pass_memory   memory;
    em_device_graphs graphs;
    em_pass_events   sync;
    em_row_putting   rows;
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
// Does the device compute a single token's pairs one by one? Then two of them may have the same place.
bool em_one_by_one_pairs(const em_pass * p, const em_block & b);
// Starts all pairs by the table. Cold ones go to some slot, unless every expert is resident.
bool em_start_by_table(em_pass * p, const em_block & b);
// Starts all pairs, with slots that the host sends. A token's cold pairs go to slots that it does not use otherwise; false
// where there are too few of those.
bool em_start_sent(em_pass * p, const em_block & b, const ggml_tensor * ids);

// fetched_pairs.cpp: misses.fetched, over the stage
bool em_send_fetched(em_pass * p, const em_block & b); // their experts; false: nothing was sent
int  em_compute_fetched(em_pass * p, const em_block & b);

// by_host.cpp: rows are exchanged with the host: of a prompt for which the stage is too small, and of a batch where there is
// nothing to gain
int em_by_host(em_pass * p, em_block & b);
int em_by_host_unforced(em_pass * p, em_block & b); // the ids are final
int em_by_host_seen(em_pass * p, em_block & b);     // the view is there, too

// whole_graph.cpp
bool em_whole_resident(em_pass * p, const std::vector<em_block> & blocks); // each expert in the slot of its number
int  em_run_whole(em_pass * p, ggml_cgraph * graph, const std::vector<em_block> & blocks);

// unrecognised.cpp: an operation on experts outside any block, on the CPU
int em_run_unrecognised(em_pass * p, ggml_tensor * t);

// pass.cpp
int em_pass_compute(em_pass * p, ggml_cgraph * graph);
