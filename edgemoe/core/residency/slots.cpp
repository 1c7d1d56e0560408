// Places for experts on the device, and the thread that fills them.

#include "engine.h"

#include <cstring>

bool em_region::ensure(size_t bytes) {
    if (bytes <= size) {
        return true;
    }
    release();
    const size_t wanted = bytes + bytes / 4;
    if (buft) {
        buffer = G.ggml_backend_buft_alloc_buffer(buft, wanted);
        if (!buffer) {
            return false;
        }
        base = static_cast<char *>(G.ggml_backend_buffer_get_base(buffer));
    } else {
        try {
            plain.resize(wanted);
        } catch (const std::bad_alloc &) {
            return false;
        }
        base = plain.data();
    }
    size = wanted;
    return true;
}

void em_region::release() {
    if (buffer) {
        G.ggml_backend_buffer_free(buffer);
        buffer = nullptr;
    }
    std::vector<char>().swap(plain);
    base = nullptr;
    size = 0;
}

// Devices report failures only by ending the process, except ours, which can be asked.
bool em_device_failed(ggml_backend * backend) {
    typedef bool (*take_error_t)(ggml_backend *);
    ggml_backend_reg * reg = G.ggml_backend_dev_backend_reg(backend->device);
    auto take = reinterpret_cast<take_error_t>(G.ggml_backend_reg_get_proc_address(reg, "edgemoe_take_error"));
    return take && take(backend);
}

// Copies all weights and biases of an expert; staging holds expert_bytes and must stay until the backend is synchronised.
void em_upload_expert(em_engine * e, ggml_backend * backend, char * staging, const em_layer_t & layer, const em_places & to,
                      int32_t expert, int32_t place) {
    // A device that copies before it returns has no use for staging either.
    const bool waits = !backend->iface.set_tensor_async;
    auto       send  = [&](const ggml_tensor * from, ggml_tensor * target, size_t bytes, bool direct) {
        const char * source = static_cast<const char *>(from->data) + size_t(expert) * bytes;
        if (direct) {
            e->count.direct_bytes += int64_t(bytes);
        } else {
            memcpy(staging, source, bytes);
            source = staging;
            staging += bytes;
        }
        G.ggml_backend_tensor_set_async(backend, target, source, size_t(place) * bytes, bytes);
    };
    for (int p = 0; p < PROJ_COUNT; ++p) {
        if (const ggml_tensor * w = layer.weight[p]) {
            const char * source = static_cast<const char *>(w->data) + size_t(expert) * w->nb[2];
            send(w, to.weight[p], w->nb[2], waits || em_host_readable(layer, p, source, w->nb[2]));
        }
        if (const ggml_tensor * b = layer.bias[p]) {
            send(b, to.bias[p], b->nb[1], waits);
        }
    }
}

// Tensors for a number of experts of a layer's shape, without memory; bytes of what is needed first, and of the down projection.
void em_places_make(em_places & p, ggml_backend_device * device, const em_layer_t & layer, int32_t count, size_t bytes[2]) {
    ggml_backend_buffer_type * buft  = G.ggml_backend_dev_buffer_type(device);
    const size_t               align = G.ggml_backend_buft_get_alignment(buft);
    static std::atomic<int64_t> serials{0};
    p.ctx    = G.ggml_init({G.ggml_tensor_overhead() * PROJ_COUNT * 2, nullptr, true});
    p.count  = count;
    p.serial = ++serials;
    bytes[0] = bytes[1] = 0;
    auto make = [&](const ggml_tensor * from, bool bias, size_t & total) {
        const int64_t ne[3] = {from->ne[0], bias ? count : from->ne[1], bias ? 1 : count};
        ggml_tensor * t     = G.ggml_new_tensor(p.ctx, from->type, 3, ne);
        total += em_align(G.ggml_backend_buft_get_alloc_size(buft, t), align);
        return t;
    };
    for (int i = 0; i < PROJ_COUNT; ++i) {
        size_t & total = bytes[i == PROJ_DOWN];
        p.weight[i] = layer.weight[i] ? make(layer.weight[i], false, total) : nullptr;
        p.bias[i]   = layer.bias[i] ? make(layer.bias[i], true, total) : nullptr;
    }
}

// Gives them memory: the down projection's begins `second` bytes on.
void em_places_put(em_places & p, ggml_backend_buffer * buffer, size_t second) {
    ggml_backend_buffer_type * buft  = buffer->buft;
    const size_t               align = G.ggml_backend_buft_get_alignment(buft);
    char *       base  = em_align(G.ggml_backend_buffer_get_base(buffer), align);
    char *       at[2] = {base, base + second};
    for (int i = 0; i < PROJ_COUNT; ++i) {
        for (ggml_tensor * t : {p.weight[i], p.bias[i]}) {
            if (t) {
                char *& to = at[i == PROJ_DOWN];
                G.ggml_backend_tensor_alloc(buffer, t, to);
                to += em_align(G.ggml_backend_buft_get_alloc_size(buft, t), align);
            }
        }
    }
}

// Memory on the device of so many bytes. Null when there is none to be had.
ggml_backend_buffer * em_device_alloc(ggml_backend_device * device, size_t bytes) {
    ggml_backend_buffer_type * buft   = G.ggml_backend_dev_buffer_type(device);
    ggml_backend_buffer *      buffer = G.ggml_backend_buft_alloc_buffer(buft, bytes + G.ggml_backend_buft_get_alignment(buft));
    if (buffer) { // kernels read past the last row of a quantised matrix into its padding, which must not hold NaN
        G.ggml_backend_buffer_clear(buffer, 0);
    }
    return buffer;
}

// Both at once. False when there is no memory to be had.
bool em_places_alloc(em_places & p, ggml_backend_device * device, const em_layer_t & layer, int32_t count) {
    size_t bytes[2];
    em_places_make(p, device, layer, count, bytes);
    p.buffer = em_device_alloc(device, bytes[0] + bytes[1]);
    if (!p.buffer) {
        em_places_free(p);
        return false;
    }
    p.bytes = p.buffer->size;
    em_places_put(p, p.buffer, bytes[0]);
    return true;
}

void em_places_free(em_places & p) {
    if (p.buffer) {
        G.ggml_backend_buffer_free(p.buffer);
    }
    if (p.ctx) {
        G.ggml_free(p.ctx);
    }
    p = {};
}

namespace {

// Waits until nothing reads a layer's slots any more. Needs the compute mutex, for in ggml-vulkan the wait resets memory
// that the computing thread's stream records into, and the layer's, so that nothing else is started meanwhile. A stream
// that another thread uses is not waited for where there are events: it might be capturing a graph.
void wait_for_readers(em_engine * e, em_layer_t & layer) {
    if (layer.used && e->used) {
        G.ggml_backend_event_synchronize(layer.used);
        G.ggml_backend_event_synchronize(e->used);
        return;
    }
    std::lock_guard<std::mutex> lock(e->passes_mutex);
    for (ggml_backend * stream : e->passes) {
        G.ggml_backend_synchronize(stream);
    }
}

void free_layer_slots(em_engine * e, em_layer_t & layer) {
    if (layer.places.buffer) {
        wait_for_readers(e, layer);
    }
    em_places_free(layer.places);
    layer.resident = 0;
    layer.version += 1;
    layer.slots.clear();
    layer.slot_of.assign(size_t(layer.experts), -1);
    layer.state.assign(size_t(layer.experts), EM_COLD);
    layer.ahead.assign(size_t(layer.experts), 0);
}

bool alloc_layer_slots(em_engine * e, em_layer_t & layer, int32_t slots) {
    if (!em_places_alloc(layer.places, e->device, layer, slots)) {
        return false;
    }
    layer.slots.resize(size_t(slots));
    return true;
}

// The only place where a slot changes state; needs the layer's mutex.
void em_slot_move(em_layer_t & layer, int32_t slot, em_slot_state to, int32_t expert) {
    em_slot & s = layer.slots[size_t(slot)];
    layer.version += 1;
    if (s.state == em_slot_state::RESIDENT) { // evicted
        layer.slot_of[size_t(s.expert)] = -1;
        layer.state[size_t(s.expert)]   = EM_COLD;
        layer.resident -= 1;
        layer.ahead_wasted += layer.ahead[size_t(s.expert)];
        layer.ahead[size_t(s.expert)] = 0;
    }
    s.state  = to;
    s.expert = to == em_slot_state::FREE ? -1 : expert;
    if (to == em_slot_state::RESIDENT) {
        layer.slot_of[size_t(expert)] = slot;
        layer.resident += 1;
    }
    layer.state[size_t(expert)] = to == em_slot_state::RESIDENT ? EM_RESIDENT : to == em_slot_state::LOADING ? EM_PENDING : EM_COLD;
}

int32_t slot_for(const em_layer_t & layer, int32_t expert, int32_t victim) {
    if (victim >= 0) {
        const int32_t s = layer.slot_of[size_t(victim)];
        if (s >= 0) {
            return s;
        }
    }
    if (int32_t(layer.slots.size()) == layer.experts && layer.slots[size_t(expert)].state == em_slot_state::FREE) {
        return expert; // all will be here, each in the slot of its number
    }
    for (size_t s = 0; s < layer.slots.size(); ++s) {
        if (layer.slots[s].state == em_slot_state::FREE) {
            return int32_t(s);
        }
    }
    return -1;
}

// One request from the queue; copy_mutex is held, so the layer's slots stay allocated.
void upload(em_engine * e, const em_request & request) {
    const em_load & load  = request.load;
    em_layer_t &    layer = *e->layers[size_t(load.layer)];
    int32_t         slot  = -1;
    const bool      missed = request.step >= 0 && (request.step != e->step || load.layer <= e->layer_now);
    {
        std::lock_guard<std::mutex> lock(layer.mutex);
        if (layer.state[size_t(load.expert)] != EM_PENDING || layer.slot_of[size_t(load.expert)] >= 0) {
            return; // the slots were reallocated meanwhile
        }
        const bool kept = load.victim >= 0 && size_t(load.victim) < layer.pinned.size() && layer.pinned[size_t(load.victim)];
        slot = missed ? -1 : slot_for(layer, load.expert, kept ? -1 : load.victim);
        if (slot < 0) {
            layer.state[size_t(load.expert)] = EM_COLD;
            layer.ahead[size_t(load.expert)] = 0;
            return;
        }
        em_slot_move(layer, slot, em_slot_state::LOADING, load.expert);
        if (layer.used) {
            G.ggml_backend_event_wait(e->copy, layer.used); // what was started before reads the slot
        }
    }
    em_host_register(e, layer);
    const int64_t started = em_now_ns();
    bool          ok      = e->copy_host.ensure(layer.expert_bytes);
    if (ok) {
        em_upload_expert(e, e->copy, e->copy_host.base, layer, layer.places, load.expert, slot);
        G.ggml_backend_synchronize(e->copy);
        ok = !em_device_failed(e->copy);
    }
    const double rate = double(em_now_ns() - started) / double(layer.expert_bytes);
    e->copy_ns_per_byte = e->copy_ns_per_byte > 0 ? e->copy_ns_per_byte + 0.1 * (rate - e->copy_ns_per_byte) : rate;
    std::lock_guard<std::mutex> lock(layer.mutex);
    em_slot_move(layer, slot, ok ? em_slot_state::RESIDENT : em_slot_state::FREE, load.expert);
    if (ok) {
        e->count.uploads += 1;
        e->count.upload_bytes += int64_t(layer.expert_bytes);
    } else {
        e->count.failed_uploads += 1;
        layer.ahead[size_t(load.expert)] = 0;
    }
}

void copy_loop(em_engine * e) {
    std::unique_lock<std::mutex> lock(e->queue_mutex);
    for (;;) {
        e->queue_changed.wait(lock, [&] { return e->stopping || !e->urgent.empty() || !e->queue.empty(); });
        if (e->stopping) {
            return;
        }
        auto & from = e->urgent.empty() ? e->queue : e->urgent;
        const em_request request = from.front();
        from.pop_front();
        e->copying = true;
        lock.unlock();
        while (e->copy_wanted && !e->cancelled) { // the mutex knows no order
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
        {
            std::lock_guard<std::mutex> copy(e->copy_mutex);
            upload(e, request);
        }
        lock.lock();
        e->copying = false;
        e->queue_changed.notify_all();
    }
}

} // namespace

// Step -1: not a prefetch.
bool em_queue(em_engine * e, const em_load & load, int64_t step) {
    em_layer_t & layer = *e->layers[size_t(load.layer)];
    {
        std::lock_guard<std::mutex> lock(layer.mutex);
        if (layer.slots.empty() || layer.state[size_t(load.expert)] != EM_COLD) {
            return false;
        }
        layer.state[size_t(load.expert)] = EM_PENDING;
        layer.ahead[size_t(load.expert)] = step >= 0;
    }
    std::lock_guard<std::mutex> lock(e->queue_mutex);
    (step >= 0 ? e->urgent : e->queue).push_back({load, step});
    return true;
}

int em_slots_set(em_engine * e, const int32_t * slots, int32_t count) {
    if (!e->device || count != int32_t(e->layers.size())) {
        return em_fail(EM_ERROR_ARGUMENT, "no device, or not one slot count per layer");
    }
    {
        std::lock_guard<std::mutex> lock(e->queue_mutex);
        e->queue.clear();
        e->urgent.clear();
    }
    int status = EM_OK;
    std::lock_guard<std::mutex> compute(e->compute_mutex);
    std::lock_guard<std::mutex> copy(e->copy_mutex);
    // First everything that shrinks, so that what grows finds the room.
    for (int pass = 0; pass < 2; ++pass) {
        for (int32_t i = 0; i < count; ++i) {
            em_layer_t & layer = *e->layers[size_t(i)];
            std::lock_guard<std::mutex> lock(layer.mutex);
            const int32_t wanted = status == EM_OK ? slots[i] : 0;
            for (size_t expert = 0; expert < layer.state.size(); ++expert) { // what was queued is forgotten
                if (layer.state[expert] == EM_PENDING) {
                    layer.state[expert] = EM_COLD;
                    layer.ahead[expert] = 0;
                }
            }
            if (pass == 0 && wanted != int32_t(layer.slots.size())) {
                free_layer_slots(e, layer);
            }
            if (pass == 1 && wanted > 0 && layer.slots.empty() && !alloc_layer_slots(e, layer, wanted)) {
                status = em_fail(EM_ERROR_NO_MEMORY, "the device has no room for " + std::to_string(wanted) +
                                                         " experts of layer " + std::to_string(i));
            }
        }
    }
    return status;
}

void em_slots_release(em_engine * e) {
    for (auto & layer : e->layers) {
        std::lock_guard<std::mutex> lock(layer->mutex);
        free_layer_slots(e, *layer);
    }
}

void em_copy_start(em_engine * e) {
    if (!e->copy_thread.joinable() && e->copy) {
        e->stopping    = false;
        e->copy_thread = std::thread(copy_loop, e);
    }
}

void em_copy_stop(em_engine * e) {
    {
        std::lock_guard<std::mutex> lock(e->queue_mutex);
        e->stopping = true;
        e->queue.clear();
        e->urgent.clear();
    }
    e->queue_changed.notify_all();
    if (e->copy_thread.joinable()) {
        e->copy_thread.join();
    }
}
