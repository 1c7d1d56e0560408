#pragma once

// What a graph of llama.cpp's holds of ours, and the changes made to it for the time that it computes.
// Writers: graph_reader.cpp and graph_edits.cpp.

#include "model/block.h"

struct em_pass;

struct em_patch {
    ggml_tensor ** where;
    ggml_tensor *  what; // is put there; or was there before
};

struct em_stop { // in a graph: operations that the device cannot do by itself
    int        first, last; // nodes
    em_block * block;       // null: not recognised
};

// llama.cpp computes the same graph again and again, and its number tells that it is the same.
struct em_reading {
    uint64_t              uid = 0;
    std::vector<em_block> blocks;
    std::vector<em_stop>  stops;
    std::vector<em_patch> biases; // of projections, to be read on the device
};

struct em_cut {
    ggml_tensor * node;
    int           op;
    ggml_tensor * src[GGML_SOURCES];
};

struct em_edits {
    std::vector<em_cut>   cuts;
    std::vector<em_patch> patches;
};

void em_read_graph(em_pass * p, ggml_cgraph * graph);

// graph_edits.cpp
void em_cut_off(em_edits & edits, ggml_tensor * t); // t was computed here: a leaf for the rest of the graph
void em_patch_in(em_edits & edits, ggml_tensor ** where, ggml_tensor * what);
void em_undo(em_edits & edits);
