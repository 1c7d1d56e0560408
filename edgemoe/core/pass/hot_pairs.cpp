// Pairs of a few tokens whose experts are in slots: started where the activations are.

#include "pass/pass.h"

#include <algorithm>

namespace {

bool start(em_pass * p, em_layer_t & layer, const em_device_graph & g) {
    if (G.ggml_backend_graph_compute_async(p->inner, g.part[EM_FIRST]) != STATUS_SUCCESS) {
        p->e->count.device_fallbacks += 1;
        return false;
    }
    if (layer.residents.read && p->events) {
        G.ggml_backend_event_record(layer.residents.read, p->inner);
    }
    return true;
}

// Some slot that holds an expert; there is one.
int32_t any_slot(const em_layer_t & layer) {
    return *std::find_if(layer.residents.slot_of.begin(), layer.residents.slot_of.end(), [](int32_t slot) { return slot >= 0; });
}

} // namespace

bool em_has_hot(const em_layer_t & layer) { return layer.residents.count > 0 && layer.device_can != 0; }

// Its kernels for more tokens, and those for floats, take it for granted that a token's experts differ.
bool em_one_by_one_pairs(const em_pass * p, const em_block & b) {
    bool quantised = true;
    for (const ggml_tensor * w : b.layer->weight) {
        quantised = quantised && (!w || (w->type != TYPE_F32 && w->type != TYPE_F16 && w->type != TYPE_BF16));
    }
    return b.tokens == 1 && (quantised || p->e->device.traits.takes_pairs_one_by_one);
}

bool em_start_by_table(em_pass * p, const em_block & b) {
    em_layer_t & layer = *b.layer;
    const size_t l     = size_t(layer.index);
    if (!em_has_hot(layer) || !em_graph_for(p, *p->graphs.hot[l], b, {&layer.residents.places, p->tables.slots[l], false, false})) {
        return false;
    }
    if (p->tables.sent_version[l] != layer.residents.version) {
        int32_t *     to  = em_host_table(p, l, false);
        const int32_t any = any_slot(layer);
        for (size_t i = 0; i < layer.residents.slot_of.size(); ++i) {
            to[i] = layer.residents.slot_of[i] >= 0 ? layer.residents.slot_of[i] : any;
        }
        em_before_sending(p);
        G.ggml_backend_tensor_set_async(p->inner, p->tables.slots[l], to, 0, layer.residents.slot_of.size() * 4);
        p->tables.sent_version[l] = layer.residents.version;
    }
    return start(p, layer, *p->graphs.hot[l]);
}

bool em_start_sent(em_pass * p, const em_block & b, const ggml_tensor * ids) {
    em_layer_t &   layer = *b.layer;
    const size_t   l     = size_t(layer.index);
    em_device_graph & g     = *p->graphs.hot[l];
    if (!em_has_hot(layer) || !em_graph_for(p, g, b, {&layer.residents.places, nullptr, false, false})) {
        return false;
    }
    int32_t * places = reinterpret_cast<int32_t *>(em_area_of(p, p->memory.places, p->memory.places_stride, em_ids_bytes(b), layer));
    if (!places) {
        return false;
    }
    const int32_t        any = any_slot(layer);
    std::vector<uint8_t> taken;
    for (int64_t t = 0; t < b.tokens; ++t) {
        const int32_t * row = em_ids_row(ids, t);
        taken.assign(layer.residents.slots.size(), 0);
        for (int64_t i = 0; i < b.k; ++i) {
            const int32_t slot = layer.residents.slot_of[size_t(row[i])];
            places[t * b.k + i] = slot;
            if (slot >= 0) {
                taken[size_t(slot)] = 1;
            }
        }
        size_t next = 0;
        for (int64_t i = 0; i < b.k; ++i) {
            if (places[t * b.k + i] < 0) {
                while (next < taken.size() && (taken[next] || layer.residents.slots[next].state != em_slot_state::RESIDENT)) {
                    ++next;
                }
                if (next < taken.size()) {
                    places[t * b.k + i] = int32_t(next++);
                } else if (em_one_by_one_pairs(p, b)) {
                    places[t * b.k + i] = any;
                } else {
                    return false;
                }
            }
        }
    }
    // The device rests since the view has arrived: nothing to wait for.
    G.ggml_backend_tensor_set_async(p->inner, g.ids, places, 0, size_t(b.k * b.tokens) * 4);
    return start(p, layer, g);
}
