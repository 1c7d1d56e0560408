// Slots of a layer on the device: which expert is in which, and every change of that.

#include "errors.h"
#include "residency/residency.h"

#include <algorithm>

namespace {

// Waits until nothing reads a layer's slots any more. Needs the compute mutex, for in ggml-vulkan the wait resets memory
// that the computing thread's stream records into, and the layer's, so that nothing else is started meanwhile. A stream
// that another thread uses is not waited for where there are events: it might be capturing a graph.
void wait_for_readers(em_readers & readers, const em_residents & here) {
    if (here.read && readers.read) {
        G.ggml_backend_event_synchronize(here.read);
        G.ggml_backend_event_synchronize(readers.read);
        return;
    }
    em_readers_wait(readers);
}

void free_slots(em_residence & r, em_layer_t & layer) {
    em_residents & here = layer.residents;
    if (here.places.buffer) {
        wait_for_readers(r.readers, here);
    }
    em_places_free(here.places);
    here.count = 0;
    here.version += 1;
    here.slots.clear();
    here.slot_of.assign(size_t(layer.experts), -1);
    here.state.assign(size_t(layer.experts), EM_COLD);
    here.prefetched.assign(size_t(layer.experts), 0);
}

bool alloc_slots(const em_residence & r, em_layer_t & layer, int32_t slots) {
    if (!em_places_alloc(layer.residents.places, r.device.handle, layer, slots)) {
        return false;
    }
    layer.residents.slots.resize(size_t(slots));
    return true;
}

// The only place where a slot changes state; needs the layer's mutex.
void move_slot(em_residents & here, int32_t slot, em_slot_state to, int32_t expert) {
    em_slot & s = here.slots[size_t(slot)];
    here.version += 1;
    if (s.state == em_slot_state::RESIDENT) { // evicted
        here.slot_of[size_t(s.expert)] = -1;
        here.state[size_t(s.expert)]   = EM_COLD;
        here.count -= 1;
        here.wasted += here.prefetched[size_t(s.expert)];
        here.prefetched[size_t(s.expert)] = 0;
    }
    s.state  = to;
    s.expert = to == em_slot_state::FREE ? -1 : expert;
    if (to == em_slot_state::RESIDENT) {
        here.slot_of[size_t(expert)] = slot;
        here.count += 1;
    }
    here.state[size_t(expert)] = to == em_slot_state::RESIDENT ? EM_RESIDENT : to == em_slot_state::LOADING ? EM_PENDING : EM_COLD;
}

// An expert that was waiting for its upload will not get it.
void forget(em_residents & here, int32_t expert) {
    here.state[size_t(expert)]      = EM_COLD;
    here.prefetched[size_t(expert)] = 0;
}

int32_t slot_for(const em_layer_t & layer, int32_t expert, int32_t victim) {
    if (victim >= 0) {
        const int32_t s = layer.residents.slot_of[size_t(victim)];
        if (s >= 0) {
            return s;
        }
    }
    if (int32_t(layer.residents.slots.size()) == layer.experts && layer.residents.slots[size_t(expert)].state == em_slot_state::FREE) {
        return expert; // all will be here, each in the slot of its number
    }
    for (size_t s = 0; s < layer.residents.slots.size(); ++s) {
        if (layer.residents.slots[s].state == em_slot_state::FREE) {
            return int32_t(s);
        }
    }
    return -1;
}

} // namespace

// What tells who reads the slots and the stage is there once.
bool em_readers_join(em_readers & readers, ggml_backend * stream) {
    std::lock_guard<std::mutex> lock(readers.mutex);
    if (!readers.streams.empty()) {
        return false;
    }
    readers.streams.push_back(stream);
    return true;
}

void em_readers_leave(em_readers & readers, ggml_backend * stream) {
    std::lock_guard<std::mutex> lock(readers.mutex);
    auto & all = readers.streams;
    all.erase(std::remove(all.begin(), all.end(), stream), all.end());
}

void em_readers_wait(em_readers & readers) {
    std::lock_guard<std::mutex> lock(readers.mutex);
    for (ggml_backend * stream : readers.streams) {
        G.ggml_backend_synchronize(stream);
    }
}

void em_residents_begin(em_residence & r) {
    for (auto & layer : r.model.layers) {
        em_residents & here = layer->residents;
        here.slot_of.assign(size_t(layer->experts), -1);
        here.state.assign(size_t(layer->experts), EM_COLD);
        here.prefetched.assign(size_t(layer->experts), 0);
        here.read = r.device.handle ? G.ggml_backend_event_new(r.device.handle) : nullptr; // null where the device has no events
    }
    r.readers.read = r.device.handle ? G.ggml_backend_event_new(r.device.handle) : nullptr;
}

void em_residents_end(em_residence & r) {
    for (auto & layer : r.model.layers) {
        std::lock_guard<std::mutex> lock(layer->residents.mutex);
        free_slots(r, *layer);
    }
    auto release = [](ggml_backend_event *& event) {
        if (event) {
            G.ggml_backend_event_free(event);
            event = nullptr;
        }
    };
    for (auto & layer : r.model.layers) {
        release(layer->residents.read);
    }
    release(r.readers.read);
}

bool em_slots_claim(em_layer_t & layer, const em_load & load, bool prefetch) {
    em_residents &              here = layer.residents;
    std::lock_guard<std::mutex> lock(here.mutex);
    if (here.slots.empty() || here.state[size_t(load.expert)] != EM_COLD) {
        return false;
    }
    here.state[size_t(load.expert)]      = EM_PENDING;
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
        forget(here, load.expert);
        return -1;
    }
    move_slot(here, slot, em_slot_state::LOADING, load.expert);
    if (here.read) {
        G.ggml_backend_event_wait(copy, here.read); // computations that were started before read the slot
    }
    return slot;
}

void em_slot_loaded(em_layer_t & layer, const em_load & load, int32_t slot, bool ok) {
    em_residents &              here = layer.residents;
    std::lock_guard<std::mutex> lock(here.mutex);
    move_slot(here, slot, ok ? em_slot_state::RESIDENT : em_slot_state::FREE, load.expert);
    if (!ok) {
        here.prefetched[size_t(load.expert)] = 0;
    }
}

int em_slots_set(em_residence & r, const int32_t * slots) {
    const int32_t count = int32_t(r.model.layers.size());
    int status = EM_OK;
    std::lock_guard<std::mutex> compute(r.turn.computing);
    std::lock_guard<std::mutex> copy(r.uploads.mutex);
    // First everything that shrinks, so that what grows finds the room.
    for (int pass = 0; pass < 2; ++pass) {
        for (int32_t i = 0; i < count; ++i) {
            em_layer_t & layer = *r.model.layers[size_t(i)];
            em_residents & here = layer.residents;
            std::lock_guard<std::mutex> lock(here.mutex);
            const int32_t wanted = status == EM_OK ? slots[i] : 0;
            for (int32_t x = 0; x < layer.experts; ++x) { // uploads in the queue are forgotten
                if (here.state[size_t(x)] == EM_PENDING) {
                    forget(here, x);
                }
            }
            if (pass == 0 && wanted != int32_t(here.slots.size())) {
                free_slots(r, layer);
            }
            if (pass == 1 && wanted > 0 && here.slots.empty() && !alloc_slots(r, layer, wanted)) {
                status = em_fail(EM_ERROR_NO_MEMORY, "the device has no room for " + std::to_string(wanted) +
                                                         " experts of layer " + std::to_string(i));
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

void em_note_use(em_layer_t & layer, const int32_t * ids, int64_t n) {
    em_residents & here = layer.residents;
    for (int64_t i = 0; i < n; ++i) {
        uint8_t & prefetched = here.prefetched[size_t(ids[i])];
        if (prefetched) {
            prefetched = 0;
            (here.slot_of[size_t(ids[i])] >= 0 ? here.useful : here.late) += 1;
        }
    }
}
