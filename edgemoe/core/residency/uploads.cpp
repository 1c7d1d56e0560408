// Uploads: the queue, and the copy thread that empties it.

#include "residency/residency.h"

void em_upload_expert(em_counters & count, ggml_backend * backend, char * staging, const em_layer_t & layer, const em_places & to,
                      int32_t expert, int32_t place) {
    const bool waits = !backend->iface.set_tensor_async; // such a device copies before the call returns, and needs no staging
    auto       send  = [&](const ggml_tensor * from, ggml_tensor * target, size_t bytes, bool direct) {
        const char * source = static_cast<const char *>(from->data) + size_t(expert) * bytes;
        if (direct) {
            count.direct_bytes += int64_t(bytes);
        } else {
            memcpy(staging, source, bytes);
            source = staging;
            staging += bytes;
        }
        G.ggml_backend_tensor_set_async(backend, target, source, size_t(place) * bytes, bytes);
    };
    for (int p = 0; p < PROJ_COUNT; ++p) {
        if (const ggml_tensor * w = layer.weight[p]) {
            send(w, to.weight[p], w->nb[2], waits || em_host_readable(layer, p, expert));
        }
        if (const ggml_tensor * b = layer.bias[p]) {
            send(b, to.bias[p], b->nb[1], waits);
        }
    }
}

// Copies an expert into a slot. False: the device failed.
static bool copy_expert(em_residence & r, em_layer_t & layer, int32_t expert, int32_t slot) {
    em_ram_use    ram(r.ram, layer, false);
    const em_pair pair{0, 0, expert, slot};
    bool          ok      = ram.need(&pair, 1) && r.uploads.staging.ensure(layer.expert_bytes);
    const int64_t started = em_now_ns();
    if (ok) {
        em_upload_expert(r.count, r.device.copy, r.uploads.staging.base, layer, layer.residents.places, expert, slot);
        G.ggml_backend_synchronize(r.device.copy);
        ok = !em_device_failed(r.device.copy);
    }
    em_note_rate(r.rates.copy_ns_per_byte, double(em_now_ns() - started) / double(layer.expert_bytes), EM_SMOOTH_OFTEN);
    return ok;
}

// Serves one request; uploads.mutex is held, so the layer's slots stay allocated.
static void upload(em_residence & r, const em_request & request) {
    const em_load & load   = request.load;
    em_layer_t &    layer  = *r.model.layers[size_t(load.layer)];
    const bool      missed = request.step >= 0 && (request.step != r.uploads.step || load.layer <= r.uploads.layer_now);
    const int       slot   = em_slot_load(layer, load, missed, r.device.copy);
    if (slot < 0) {
        return;
    }
    em_host_register(r, layer);
    const bool ok = copy_expert(r, layer, load.expert, slot);
    em_slot_loaded(layer, load, slot, ok);
    if (ok) { // one copy: the expert leaves the RAM, and the expert that it replaced comes back
        em_ram_drop(r.ram, layer, load.expert);
        if (load.victim >= 0) {
            em_ram_back(r.ram, layer, load.victim);
        }
    }
    (ok ? r.count.uploads : r.count.failed_uploads) += 1;
    r.count.upload_bytes += ok ? int64_t(layer.expert_bytes) : 0;
}

static void copy_loop(em_residence & r) {
    em_uploads &                 u = r.uploads;
    std::unique_lock<std::mutex> lock(u.queue_mutex);
    for (;;) {
        u.queue_changed.wait(lock, [&] { return u.stopping || !u.urgent.empty() || !u.queue.empty(); });
        if (u.stopping) {
            return;
        }
        auto &           from    = u.urgent.empty() ? u.queue : u.urgent;
        const em_request request = from.front();
        from.pop_front();
        u.copying = true;
        lock.unlock();
        while (u.wanted && !r.turn.cancelled) { // the prompt goes first: a std::mutex keeps no order among its waiters
            std::this_thread::sleep_for(std::chrono::microseconds(50));
        }
        {
            std::lock_guard<std::mutex> copy(u.mutex);
            upload(r, request);
        }
        lock.lock();
        u.copying = false;
        u.queue_changed.notify_all();
    }
}

bool em_queue(em_residence & r, const em_load & load, int64_t step) {
    if (!em_slots_claim(*r.model.layers[size_t(load.layer)], load, step >= 0)) {
        return false;
    }
    std::lock_guard<std::mutex> lock(r.uploads.queue_mutex);
    (step >= 0 ? r.uploads.urgent : r.uploads.queue).push_back({load, step});
    return true;
}

void em_queue_clear(em_uploads & u) {
    std::lock_guard<std::mutex> lock(u.queue_mutex);
    u.queue.clear();
    u.urgent.clear();
}

bool em_uploads_wait(em_uploads & u, int32_t timeout_ms) {
    std::unique_lock<std::mutex> lock(u.queue_mutex);
    return u.queue_changed.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                                    [&] { return u.stopping || (u.queue.empty() && u.urgent.empty() && !u.copying); });
}

bool em_link_idle(em_uploads & u) {
    std::lock_guard<std::mutex> lock(u.queue_mutex);
    return !u.copying && u.urgent.empty() && u.queue.empty();
}

size_t em_urgent_waiting(em_uploads & u) {
    std::lock_guard<std::mutex> lock(u.queue_mutex);
    return u.urgent.size() + (u.copying ? 1 : 0);
}

void em_copy_start(em_residence & r) {
    if (!r.uploads.thread.joinable() && r.device.copy) {
        r.uploads.stopping = false;
        r.uploads.thread   = std::thread([&r] { copy_loop(r); });
    }
}

void em_copy_stop(em_residence & r) {
    em_queue_clear(r.uploads);
    {
        std::lock_guard<std::mutex> lock(r.uploads.queue_mutex);
        r.uploads.stopping = true;
    }
    r.uploads.wake();
    if (r.uploads.thread.joinable()) {
        r.uploads.thread.join();
    }
}
