// Pairs of a few tokens, for experts in slots: the device computes them over the activations.

#include "pass/pass.h"

static bool start(em_pass * p, em_layer_t & layer, const em_device_graph & g) {
    if (G.ggml_backend_graph_compute_async(p->compute, g.part[EM_FIRST]) != STATUS_SUCCESS) {
        p->e->count.device_fallbacks += 1;
        return false;
    }
    em_event_record(layer.residents.read, p->compute);
    return true;
}

// Finds some slot that holds an expert; the caller knows that there is one.
static int32_t any_slot(const em_layer_t & layer) {
    return *std::find_if(layer.residents.slot_of.begin(), layer.residents.slot_of.end(), [](int32_t slot) { return slot >= 0; });
}

// Chooses slots for a token's pairs. A hot expert gets its own slot. A cold expert gets another slot: any slot if pairs may share
// one, otherwise a slot of its own. False: there are too few slots.
static bool choose_slots(const em_layer_t & layer, const int32_t * experts, int64_t k, bool may_share, int32_t * places) {
    const em_residents & here = layer.residents;
    std::vector<uint8_t> taken(here.slots.size(), 0);
    for (int64_t i = 0; i < k; ++i) {
        places[i] = here.slot_of[size_t(experts[i])];
        if (places[i] >= 0) {
            taken[size_t(places[i])] = 1;
        }
    }
    size_t next = 0;
    for (int64_t i = 0; i < k; ++i) {
        if (places[i] >= 0) {
            continue;
        }
        while (next < taken.size() && (taken[next] || here.slots[next].state != em_slot_state::RESIDENT)) {
            ++next;
        }
        if (next == taken.size() && !may_share) {
            return false;
        }
        places[i] = next < taken.size() ? int32_t(next++) : any_slot(layer);
    }
    return true;
}

bool em_has_hot(const em_layer_t & layer) { return layer.residents.count > 0 && !layer.unsupported(); }

// Kernels for several tokens, and kernels for floats, require that a token's experts differ.
bool em_one_by_one_pairs(const em_pass * p, const em_block & b) {
    const bool quantised = std::all_of(std::begin(b.layer->weight), std::end(b.layer->weight), [](const ggml_tensor * w) {
        return !w || (w->type != TYPE_F32 && w->type != TYPE_F16 && w->type != TYPE_BF16);
    });
    return b.tokens == 1 && (quantised || p->e->device.traits.takes_pairs_one_by_one);
}

bool em_start_by_table(em_pass * p, const em_block & b) {
    em_layer_t &   layer = *b.layer;
    em_residents & here  = layer.residents;
    const size_t   l     = size_t(layer.index);
    if (!em_has_hot(layer) || !em_graph_for(p, *p->graphs.hot[l], b, {&here.places, p->tables.slots[l], false, false})) {
        return false;
    }
    if (p->tables.sent_version[l] != here.version) {
        int32_t *     to  = p->tables.host_table(l, false);
        const int32_t any = any_slot(layer);
        std::transform(here.slot_of.begin(), here.slot_of.end(), to, [&](int32_t slot) { return slot >= 0 ? slot : any; });
        em_before_sending(p);
        G.ggml_backend_tensor_set_async(p->compute, p->tables.slots[l], to, 0, here.slot_of.size() * 4);
        p->tables.sent_version[l] = here.version;
    }
    return start(p, layer, *p->graphs.hot[l]);
}

bool em_start_sent(em_pass * p, const em_block & b, const ggml_tensor * ids) {
    em_layer_t &      layer = *b.layer;
    em_device_graph & g     = *p->graphs.hot[size_t(layer.index)];
    if (!em_has_hot(layer) || !em_graph_for(p, g, b, {&layer.residents.places, nullptr, false, false})) {
        return false;
    }
    int32_t * places = reinterpret_cast<int32_t *>(em_area_of(p, p->memory.places, em_ids_bytes(b), layer));
    for (int64_t t = 0; places && t < b.tokens; ++t) {
        if (!choose_slots(layer, em_ids_row(ids, t), b.k, em_one_by_one_pairs(p, b), places + t * b.k)) {
            return false;
        }
    }
    if (!places) {
        return false;
    }
    // The device has been idle since the view arrived, so the copy need not wait.
    G.ggml_backend_tensor_set_async(p->compute, g.ids, places, 0, size_t(b.k * b.tokens) * 4);
    return start(p, layer, g);
}
