// llama.cpp's own graph over the slots: every expert is in the slot of its number.

#include "model/clones.h"
#include "pass/pass.h"

// Numbers of such graphs, far from ggml's own.
static constexpr uint64_t WHOLE_UID = uint64_t(1) << 61;

// The device must have every operation as well. Needs uploads.mutex.
bool em_whole_resident(em_pass * p, const std::vector<em_block> & blocks) {
    for (const em_block & b : blocks) {
        em_layer_t &                layer = *b.layer;
        std::lock_guard<std::mutex> lock(layer.residents.mutex);
        const size_t                l = size_t(layer.index);
        if (!layer.all_resident() || layer.unsupported()) {
            return false;
        }
        if (p->tables.whole_version[l] != layer.residents.version) {
            for (int32_t x = 0; x < layer.experts; ++x) {
                if (layer.residents.slot_of[size_t(x)] != x) {
                    return false;
                }
            }
            p->tables.whole_version[l] = layer.residents.version;
        }
        if (layer.support == em_support::NOT_ASKED &&
            !em_graph_for(p, *p->graphs.hot[l], b, {&layer.residents.places, p->tables.slots[l], false, false})) {
            return false;
        }
    }
    return true;
}

// Runs the graph as it is, with the slots in the place of the weights.
int em_run_whole(em_pass * p, ggml_cgraph * graph, const std::vector<em_block> & blocks) {
    em_engine * e       = p->e;
    uint64_t    serials = 0;
    e->watching.unseen  = true;
    for (const em_block & b : blocks) {
        (e->decodes(b.tokens) ? e->count.hits : e->count.prefill_hits) += b.k * b.tokens;
        e->count.tokens += b.layer->index == 0 ? b.tokens : 0;
        serials += uint64_t(b.layer->residents.places.serial);
        em_clones slots;
        slots.bind(*b.layer, b.layer->residents.places.weight, b.layer->residents.places.bias);
        for (int i = 0; i < b.count; ++i) {
            for (ggml_tensor *& s : b.node[i]->src) {
                if (ggml_tensor * w = slots.find(s)) {
                    em_patch_in(p->edits, &s, w);
                }
            }
        }
    }
    p->whole.nodes.assign(1,
                          &p->whole.marker); // a device knows a graph by its first node, which must not be the first node of a part
    p->whole.nodes.insert(p->whole.nodes.end(), graph->nodes, graph->nodes + graph->n_nodes);
    ggml_cgraph all = *graph;
    all.size = all.n_leafs = 0;
    all.nodes              = p->whole.nodes.data();
    all.n_nodes            = graph->n_nodes + 1;
    all.grads = all.grad_accs = all.leafs = nullptr;
    all.uid                               = graph->uid ? WHOLE_UID | (serials & 0xfffff) << 40 | graph->uid : 0;
    const int64_t began                   = em_now_ns();
    const int     status                  = G.ggml_backend_graph_compute_async(p->compute, &all);
    e->count.device_ns += em_now_ns() - began;
    em_event_record(e->residence.readers.read, p->compute);
    return status;
}
