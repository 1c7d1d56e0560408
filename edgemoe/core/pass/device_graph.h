#pragma once

// A block's nodes once more, over memory of the device: slots, the stage, or memory aside. Writer: device_graph.cpp.

#include "model/block.h"

struct em_pass;

constexpr size_t EM_PASS_ALIGN = 256;
// Numbers of our own graphs, above all of ggml's.
constexpr uint64_t EM_FIRST_UID = uint64_t(1) << 48;

enum em_stage_part { EM_FIRST, EM_SECOND, EM_PARTS }; // gate and up; down

// The memory that a block's nodes are to be computed over.
struct em_graph_kind {
    const em_places * places = nullptr;
    ggml_tensor *     table  = nullptr; // of the device, from experts to places; null: the places are sent
    bool              parted = false;   // down in a graph of its own
    bool              aside  = false;   // the rows go to memory of their own

    bool operator==(const em_graph_kind & o) const {
        return places == o.places && table == o.table && parted == o.parted && aside == o.aside;
    }
};

// Kept while nothing that it was made from changes.
struct em_device_graph {
    std::vector<char>        arena;
    ggml_context *           ctx = nullptr;
    ggml_cgraph *            part[EM_PARTS] = {}; // the second one is empty where the first holds everything
    ggml_tensor *            ids = nullptr;    // the places, where they are sent
    ggml_tensor *            down = nullptr;
    std::vector<ggml_tensor> made_of;
    em_graph_kind            kind;
    int64_t                  serial = -1; // of the places
    int64_t                  memory = -1; // of the memory aside

    ~em_device_graph() { clear(); }
    void clear() {
        if (ctx) {
            G.ggml_free(ctx);
            ctx = nullptr;
        }
    }
};

// The graphs of every layer, by index.
struct em_device_graphs {
    std::vector<std::unique_ptr<em_device_graph>> hot, staged, fetched;
    uint64_t next_uid = EM_FIRST_UID;
};

ggml_tensor * em_device_weight(const em_block & b, const em_places & places, const ggml_tensor * weight); // null: it is none
size_t        em_ids_bytes(const em_block & b);
size_t        em_inputs_bytes(const em_pass * p); // of copies of the view's inputs
bool          em_ensure_aside(em_pass * p, const em_block & b, bool nodes); // false: no memory
// The graph of a block; asks the device once whether it can. False: it cannot, or there is no memory.
bool em_graph_for(em_pass * p, em_device_graph & g, const em_block & b, const em_graph_kind & kind);
