// Changes to llama.cpp's graph for the time that it computes.

#include "pass/graph_reader.h"

#include <algorithm>
#include <iterator>

// What was computed here is a leaf for the rest of the graph: a device in another process is sent all that a node hangs
// on. The leaf is a view of nothing and not a tensor without an operation: before ggml-cuda and ggml-vulkan fuse nodes,
// they look for sources that the result would overwrite, and take a source without an operation for a constant.
void em_cut_off(em_edits & edits, ggml_tensor * t) {
    em_cut c{t, t->op, {}};
    std::copy(std::begin(t->src), std::end(t->src), c.src);
    edits.cuts.push_back(c);
    t->op = OP.view;
    std::fill(std::begin(t->src), std::end(t->src), nullptr);
}

void em_patch_in(em_edits & edits, ggml_tensor ** where, ggml_tensor * what) {
    edits.patches.push_back({where, *where});
    *where = what;
}

void em_undo(em_edits & edits) {
    for (const em_cut & c : edits.cuts) {
        c.node->op = c.op;
        std::copy(std::begin(c.src), std::end(c.src), c.node->src);
    }
    edits.cuts.clear();
    for (const em_patch & x : edits.patches) {
        *x.where = x.what;
    }
    edits.patches.clear();
}
