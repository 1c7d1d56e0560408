// Finds the blocks of a graph, and edits the graph for the time that it computes. See graph_reader.h.

#include "model/expert_buffer.h"
#include "pass/pass.h"

void em_read_graph(em_pass * p, ggml_cgraph * graph) {
    em_engine *  e = p->e;
    em_reading & r = p->reading;
    if (graph->uid != 0 && graph->uid == r.uid) {
        return;
    }
    r.uid = graph->uid;
    r.blocks.clear(), r.stops.clear(), r.biases.clear();
    r.blocks.reserve(e->model.layers.size() + 1); // stops point there
    for (int i = 0; i < graph->n_nodes; ++i) {
        ggml_tensor * t = graph->nodes[i];
        if (t->op == OP.add_id && em_is_ours(t->src[1])) { // the last projection's bias: after the block
            for (size_t x = 0; x < p->tables.bias.size(); ++x) {
                if (p->tables.bias[x] && e->model.layers[x / PROJ_COUNT]->bias[x % PROJ_COUNT] == t->src[1]) {
                    r.biases.push_back({&t->src[1], p->tables.bias[x]});
                }
            }
        }
        em_block b;
        b.on_device          = true;
        const em_found found = em_block_find(graph, i, graph->n_nodes, &b);
        if (found == em_found::BLOCK && b.engine == e && r.blocks.size() < e->model.layers.size()) {
            r.blocks.push_back(b);
            r.stops.push_back({b.first, b.last, &r.blocks.back()});
            i = b.last;
        } else if (found != em_found::NOTHING) {
            if (b.layer) {
                em_ram_leave(e->ram, *b.layer);
            }
            r.stops.push_back({i, i, nullptr});
        }
    }
}

// A device in another process would be sent everything that a node hangs on, so a computed node becomes a leaf. The leaf is a view
// of nothing, not a tensor without an operation. Before ggml-cuda and ggml-vulkan fuse nodes, they look for sources that the
// result would overwrite. They would take a source without an operation for a constant.
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
    for (const em_patch & x : edits.patches) {
        *x.where = x.what;
    }
    edits = {};
}
