#pragma once

// A second copy of a block's nodes, over memory of the device: slots, the stage, or scratch memory. Writer: device_graph.cpp.

#include "model/block.h"

struct em_pass;

constexpr size_t EM_PASS_ALIGN = 256;

enum em_stage_part { EM_FIRST, EM_SECOND, EM_PARTS }; // gate and up; down

// The memory that a block's nodes are computed over.
struct em_graph_kind {
    const em_places * places     = nullptr;
    ggml_tensor *     table      = nullptr; // on the device, expert -> place; null: the host sends the places
    bool              parted     = false;   // down in a graph of its own
    bool              to_scratch = false; // the rows go to scratch memory

    bool operator==(const em_graph_kind & o) const {
        return places == o.places && table == o.table && parted == o.parted && to_scratch == o.to_scratch;
    }
};

// Kept until a tensor or memory under it changes.
struct em_device_graph {
    std::vector<char>        arena;
    em_arena                 ctx;
    ggml_cgraph *            part[EM_PARTS] = {}; // the second part is null if the first holds everything
    ggml_tensor *            ids            = nullptr;       // the places that the host sends
    ggml_tensor *            down           = nullptr;
    std::vector<ggml_tensor> made_of;
    em_graph_kind            kind;
    int64_t                  serial = -1; // of the places
    int64_t                  memory = -1; // serial of the scratch memory
};

// The graphs of every layer, by index.
struct em_device_graphs {
    std::vector<std::unique_ptr<em_device_graph>> hot, staged, fetched;
    uint64_t uid = uint64_t(1) << 48; // number of our latest graph; above all numbers of ggml's graphs
};

// Scratch memory holds ids, inputs, nodes, in this order.
size_t em_ids_bytes(const em_block & b);
size_t em_inputs_bytes(const em_pass * p); // of copies of the view's inputs
bool   em_ensure_scratch(em_pass * p, const em_block & b, bool nodes); // false: no memory
// Makes the graph of a block; asks the device once whether it can run the graph. False: it cannot, or there is no memory.
bool em_graph_for(em_pass * p, em_device_graph & g, const em_block & b, const em_graph_kind & kind);
