#pragma once

// The expert blocks of a graph of llama.cpp's, and the changes made to the graph while it computes. Writer: graph_reader.cpp.

#include "model/block.h"

struct em_pass;

struct em_patch {
    ggml_tensor ** where;
    ggml_tensor *  what; // to put there; or, for the undoing, to put back
};

struct em_stop { // operations that the device cannot do by itself
    int        first, last; // nodes of the graph
    em_block * block;       // null: not recognised
};

// llama.cpp computes the same graph again and again; the graph's number tells so.
struct em_reading {
    uint64_t              uid = 0;
    std::vector<em_block> blocks;
    std::vector<em_stop>  stops;
    std::vector<em_patch> biases; // to be read on the device
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
void em_cut_off(em_edits & edits, ggml_tensor * t); // t is computed: makes it a leaf for the rest of the graph
void em_patch_in(em_edits & edits, ggml_tensor ** where, ggml_tensor * what);
void em_undo(em_edits & edits);
