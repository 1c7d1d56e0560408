// Slots of a layer on the device: the expert in each slot, and every change of that.

#include "errors.h"
#include "residency/residency.h"

#include <cstdio>
#include <cstdlib>

namespace {
// Legal transitions, [from][to]. A slot that loads holds an expert that is pending.
constexpr bool SLOT_MOVES[3][3]   = {/* FREE */ {0, 1, 0}, /* LOADING */ {1, 0, 1}, /* RESIDENT */ {0, 1, 0}};
constexpr bool EXPERT_MOVES[3][3] = {/* COLD */ {0, 1, 0}, /* PENDING */ {1, 0, 1}, /* RESIDENT */ {1, 0, 0}};

// The check stays in a release. After an illegal transition the device might compute with the weights of another expert.
void require(bool legal, const char * machine, int from, int to) {
    if (!legal) {
        fprintf(stderr, "edgemoe: illegal transition of %s, %d to %d\n", machine, from, to);
        abort();
    }
}

// The only place where an expert changes state; needs the layer's mutex.
void move_expert(em_residents & here, int32_t expert, em_expert_state to) {
    uint8_t & state = here.state[size_t(expert)];
    require(EXPERT_MOVES[state][to], "an expert", state, to);
    state = to;
    if (to == EM_COLD) {
        here.prefetched[size_t(expert)] = 0;
    }
}

// The only place where a slot changes state; needs the layer's mutex.
void move_slot(em_residents & here, int32_t slot, em_slot_state to, int32_t expert) {
    em_slot & s = here.slots[size_t(slot)];
    require(SLOT_MOVES[int(s.state)][int(to)], "a slot", int(s.state), int(to));
    here.version += 1;
    if (s.state == em_slot_state::RESIDENT) { // evicted
        here.slot_of[size_t(s.expert)] = -1;
        here.count -= 1;
        here.wasted += here.prefetched[size_t(s.expert)];
        move_expert(here, s.expert, EM_COLD);
    }
    s = {to, to == em_slot_state::FREE ? -1 : expert};
    if (to == em_slot_state::RESIDENT) {
        here.slot_of[size_t(expert)] = slot;
        here.count += 1;
        move_expert(here, expert, EM_RESIDENT);
    } else if (to == em_slot_state::FREE) {
        move_expert(here, expert, EM_COLD);
    }
}

// Waits until nothing reads a layer's slots any more. Needs the compute mutex: in ggml-vulkan the wait resets memory that the
// computing thread's stream records into. Needs the layer's mutex, so that nothing else is started meanwhile. If there are
// events, the wait leaves out a stream that another thread uses: that stream might be capturing a graph.
void wait_for_readers(em_readers & readers, const em_residents & here) {
    if (here.read && readers.read) {
        G.ggml_backend_event_synchronize(here.read);
        G.ggml_backend_event_synchronize(readers.read);
        return;
    }
    em_readers_wait(readers);
}

void clear_tables(em_layer_t & layer) {
    em_residents & here = layer.residents;
    here.slot_of.assign(size_t(layer.experts), -1);
    here.state.assign(size_t(layer.experts), EM_COLD);
    here.prefetched.assign(size_t(layer.experts), 0);
}

void free_slots(em_residence & r, em_layer_t & layer) {
    em_residents & here = layer.residents;
    if (here.places.buffer) {
        wait_for_readers(r.readers, here);
    }
    here.places = {};
    here.count  = 0;
    here.version += 1;
    here.slots.clear();
    clear_tables(layer);
}

bool alloc_slots(const em_residence & r, em_layer_t & layer, int32_t slots) {
    layer.residents.places = em_places_alloc(r.device.handle, layer, slots);
    layer.residents.slots.resize(layer.residents.places.buffer ? size_t(slots) : 0);
    return layer.residents.places.buffer;
}

int32_t slot_for(const em_layer_t & layer, int32_t expert, int32_t victim) {
    const std::vector<em_slot> & slots = layer.residents.slots;
    const auto                   free  = [](const em_slot & s) { return s.state == em_slot_state::FREE; };
    if (victim >= 0 && layer.residents.slot_of[size_t(victim)] >= 0) {
        return layer.residents.slot_of[size_t(victim)];
    }
    if (int32_t(slots.size()) == layer.experts && free(slots[size_t(expert)])) {
        return expert; // all experts will be here, each in the slot of its number
    }
    const auto at = std::find_if(slots.begin(), slots.end(), free);
    return at == slots.end() ? -1 : int32_t(at - slots.begin());
}
} // namespace

void em_readers_take(em_readers & readers, ggml_backend * stream) {
    std::lock_guard<std::mutex> lock(readers.mutex);
    if (readers.stream && readers.stream != stream) {
        G.ggml_backend_synchronize(readers.stream);
    }
    readers.stream = stream;
}

void em_readers_leave(em_readers & readers, ggml_backend * stream) {
    std::lock_guard<std::mutex> lock(readers.mutex);
    readers.stream = readers.stream == stream ? nullptr : readers.stream;
}

void em_readers_wait(em_readers & readers) {
    std::lock_guard<std::mutex> lock(readers.mutex);
    if (readers.stream) {
        G.ggml_backend_synchronize(readers.stream);
    }
}

void em_residents_begin(em_residence & r) {
    const auto event = [&] { return r.device.handle ? G.ggml_backend_event_new(r.device.handle) : nullptr; };
    for (auto & layer : r.model.layers) {
        clear_tables(*layer);
        layer->residents.read = event();
    }
    r.readers.read = event();
}

void em_residents_end(em_residence & r) {
    for (auto & layer : r.model.layers) {
        std::lock_guard<std::mutex> lock(layer->residents.mutex);
        free_slots(r, *layer);
    }
    for (auto & layer : r.model.layers) {
        layer->residents.read = nullptr;
    }
    r.readers.read = nullptr;
}

bool em_slots_claim(em_layer_t & layer, const em_load & load, bool prefetch) {
    em_residents &              here = layer.residents;
    std::lock_guard<std::mutex> lock(here.mutex);
    if (here.slots.empty() || here.state[size_t(load.expert)] != EM_COLD) {
        return false;
    }
    move_expert(here, load.expert, EM_PENDING);
    here.prefetched[size_t(load.expert)] = prefetch;
    return true;
}

int em_slot_load(em_layer_t & layer, const em_load & load, bool missed, ggml_backend * copy) {
    em_residents &              here = layer.residents;
    std::lock_guard<std::mutex> lock(here.mutex);
    if (here.state[size_t(load.expert)] != EM_PENDING || here.slot_of[size_t(load.expert)] >= 0) {
        return -1; // the slots were reallocated meanwhile
    }
    const bool kept = load.victim >= 0 && size_t(load.victim) < here.pinned.size() && here.pinned[size_t(load.victim)];
    const int  slot = missed ? -1 : slot_for(layer, load.expert, kept ? -1 : load.victim);
    if (slot < 0) {
        move_expert(here, load.expert, EM_COLD);
        return -1;
    }
    move_slot(here, slot, em_slot_state::LOADING, load.expert);
    em_event_wait(copy, here.read); // computations that were started before read the slot
    return slot;
}

void em_slot_loaded(em_layer_t & layer, const em_load & load, int32_t slot, bool ok) {
    std::lock_guard<std::mutex> lock(layer.residents.mutex);
    move_slot(layer.residents, slot, ok ? em_slot_state::RESIDENT : em_slot_state::FREE, load.expert);
}

int em_slots_set(em_residence & r, const int32_t * slots) {
    int                         status = EM_OK;
    std::lock_guard<std::mutex> compute(r.turn.computing);
    std::lock_guard<std::mutex> copy(r.uploads.mutex);
    // First all layers that shrink, so that layers that grow find room.
    for (const bool grow : {false, true}) {
        for (size_t i = 0; i < r.model.layers.size(); ++i) {
            em_layer_t &                layer = *r.model.layers[i];
            em_residents &              here  = layer.residents;
            std::lock_guard<std::mutex> lock(here.mutex);
            const int32_t               wanted = status == EM_OK ? slots[i] : 0;
            for (int32_t x = 0; x < layer.experts; ++x) { // uploads in the queue are forgotten
                if (here.state[size_t(x)] == EM_PENDING) {
                    move_expert(here, x, EM_COLD);
                }
            }
            if (!grow && wanted != int32_t(here.slots.size())) {
                free_slots(r, layer);
            }
            if (grow && wanted > 0 && here.slots.empty() && !alloc_slots(r, layer, wanted)) {
                status = em_fail(EM_ERROR_NO_MEMORY,
                                 "the device has no room for " + std::to_string(wanted) + " experts of layer " + std::to_string(i));
            }
        }
    }
    return status;
}

int em_expert_pin(em_residence & r, int32_t layer, int32_t expert, bool pinned) {
    if (layer < 0 || layer >= int32_t(r.model.layers.size()) || expert < 0 || expert >= r.model.layers[size_t(layer)]->experts) {
        return em_fail(EM_ERROR_ARGUMENT, "no such expert");
    }
    em_layer_t &                l = *r.model.layers[size_t(layer)];
    std::lock_guard<std::mutex> lock(l.residents.mutex);
    l.residents.pinned.resize(size_t(l.experts));
    l.residents.pinned[size_t(expert)] = pinned;
    return EM_OK;
}

void em_note_use(em_layer_t & layer, const ggml_tensor * ids) {
    em_residents & here = layer.residents;
    em_each_pair(ids, [&](int32_t, int32_t, int32_t expert) {
        uint8_t & prefetched = here.prefetched[size_t(expert)];
        (here.slot_of[size_t(expert)] >= 0 ? here.useful : here.late) += prefetched;
        prefetched = 0;
    });
}
