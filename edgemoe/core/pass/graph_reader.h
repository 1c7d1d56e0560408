#pragma once

// The expert blocks of a graph of llama.cpp's, and the changes made to the graph while it computes. Writer: graph_reader.cpp.

#include "model/block.h"

struct em_pass;

struct em_patch {
    ggml_tensor ** where;
    ggml_tensor *  what; // the tensor to put there; when the edit is undone, the tensor to put back
};

struct em_stop { // operations that the device cannot do by itself
    int        first, last; // nodes of the graph
    em_block * block;       // null: not recognised
};

// llama.cpp computes the same graph again and again. A graph that keeps its number is the same graph.
struct em_reading {
    uint64_t              uid = 0;
    std::vector<em_block> blocks;
    std::vector<em_stop>  stops;
    std::vector<em_patch> biases; // biases that the device must read from its own memory
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
