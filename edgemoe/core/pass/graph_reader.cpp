// Finds the blocks of a graph, see graph_reader.h.

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
        if (t->op == OP.add_id && em_is_ours(t->src[1])) { // the last projection's: after the block
            for (size_t x = 0; x < p->tables.bias.size(); ++x) {
                if (p->tables.bias[x] && e->model.layers[x / PROJ_COUNT]->bias[x % PROJ_COUNT] == t->src[1]) {
                    r.biases.push_back({&t->src[1], const_cast<ggml_tensor *>(p->tables.bias[x])});
                }
            }
        }
        if (t->op != OP.mul_mat_id || !em_is_ours(t->src[0])) {
            continue;
        }
        em_block b;
        b.on_device = true;
        const em_found found = em_block_find(graph, i, graph->n_nodes, &b);
        if (b.layer) {
            b.layer->recognised = b.layer->recognised == 0 ? 0 : found == em_found::BLOCK;
        }
        if (found == em_found::BLOCK && b.engine == e && r.blocks.size() < e->model.layers.size()) {
            r.blocks.push_back(b);
            r.stops.push_back({b.first, b.last, &r.blocks.back()});
            i = b.last;
        } else {
            r.stops.push_back({i, i, nullptr});
        }
    }
}
