// The C interface: engines, and what may be asked of them.

#include "engine.h"

#include <cstring>

namespace {

constexpr size_t RING_CAPACITY = size_t(1) << 20; // int32: 4 MiB, a 512-token batch of 60 layers, top-8, four times over

ggml_backend_device * find_device(const std::string & name) {
    for (size_t i = 0; i < G.ggml_backend_dev_count(); ++i) {
        ggml_backend_device * d = G.ggml_backend_dev_get(i);
        if (name == G.ggml_backend_dev_name(d)) {
            return d;
        }
    }
    return nullptr;
}

bool abort_requested(void * engine) { return static_cast<em_engine *>(engine)->cancelled; }

bool open_device(em_engine * e) {
    e->device = find_device(e->device_name);
    if (!e->device) {
        return false;
    }
    const char * params = e->device == em_sim_device() ? "async" : nullptr;
    e->exec   = G.ggml_backend_dev_init(e->device, params);
    e->stream = e->exec ? G.ggml_backend_dev_init(e->device, params) : nullptr;
    e->copy   = e->stream ? G.ggml_backend_dev_init(e->device, params) : nullptr;
    if (!e->copy) {
        return false;
    }
    ggml_backend_buffer_type * host = G.ggml_backend_dev_host_buffer_type(e->device);
    e->io_device.buft  = G.ggml_backend_dev_buffer_type(e->device);
    e->io_host.buft    = host;
    e->stage_host.buft = host;
    e->copy_host.buft  = host;
    return true;
}

} // namespace

// Keeps a layer's choices for the routing history. Oldest events are never overwritten: what does not fit is counted.
void em_record(em_engine * e, int32_t layer, const ggml_tensor * ids) {
    const int64_t k = ids->ne[0], tokens = ids->ne[1];
    if (e->layers.front()->block == layer) {
        e->count.tokens += tokens;
    }
    const size_t needed = size_t(k * tokens) + 3;
    std::lock_guard<std::mutex> lock(e->ring_mutex);
    e->ring_full = e->ring_full || e->ring_used + needed > RING_CAPACITY;
    if (e->ring_full) { // also what is small enough: half a batch would pass for another
        e->count.dropped_events += 1;
        return;
    }
    if (e->ring.size() < e->ring_used + needed) {
        e->ring.resize(e->ring_used + needed);
    }
    int32_t * to = &e->ring[e->ring_used];
    *to++ = layer, *to++ = int32_t(tokens), *to++ = int32_t(k);
    for (int64_t t = 0; t < tokens; ++t, to += k) {
        memcpy(to, static_cast<const char *>(ids->data) + t * ids->nb[1], size_t(k) * 4);
    }
    e->ring_used += needed;
}

int32_t em_struct_bytes(int32_t which) {
    const size_t sizes[] = {sizeof(em_options), sizeof(em_sim_options), sizeof(em_layer_info), sizeof(em_load), sizeof(em_stats_t)};
    return which >= 0 && which < 5 ? int32_t(sizes[which]) : -1;
}

int32_t em_decode(void * llama_decode, void * context, const void * batch, int32_t * result) {
    em_trap_aborts();
    int32_t status = EM_OK;
    try {
        *result = reinterpret_cast<llama_decode_t>(llama_decode)(context, *static_cast<const llama_batch *>(batch));
    } catch (const std::exception & error) {
        status = em_fail(EM_ERROR_STATE, error.what());
    }
    em_release_aborts();
    return status;
}

void * em_abort_callback(void) { return reinterpret_cast<void *>(abort_requested); }

em_engine * em_engine_new(const em_options * options) {
    if (!em_host_checked() || !options || options->struct_bytes != int32_t(sizeof(*options)) || options->graph_us <= 0) {
        em_fail(EM_ERROR_STATE, "the core was not checked against ggml, or the options are not such");
        return nullptr;
    }
    auto e = std::make_unique<em_engine>();
    e->options        = *options;
    e->options.device = nullptr;
    if (options->device && *options->device) {
        e->device_name = options->device;
        if (!open_device(e.get())) {
            const bool known = e->device != nullptr;
            em_fail(EM_ERROR_DEVICE, (known ? "cannot open device " : "no device named ") + e->device_name);
            em_engine_free(e.release());
            return nullptr;
        }
    }
    return e.release();
}

int32_t em_engine_stop(em_engine * e) {
    em_look_stop(e);
    em_copy_stop(e);
    std::lock_guard<std::mutex> compute(e->compute_mutex);
    if (e->exec) {
        G.ggml_backend_synchronize(e->exec);
    }
    { // what passes started last, the stage included; nothing captures, for the compute mutex is ours
        std::lock_guard<std::mutex> passes(e->passes_mutex);
        for (ggml_backend * stream : e->passes) {
            G.ggml_backend_synchronize(stream);
        }
    }
    em_slots_release(e);
    for (auto & layer : e->layers) {
        if (layer->used) {
            G.ggml_backend_event_free(layer->used);
            layer->used = nullptr;
        }
    }
    if (e->used) {
        G.ggml_backend_event_free(e->used);
        e->used = nullptr;
    }
    em_host_unregister(e);
    for (auto & s : e->stages) {
        em_places_free(s->places);
    }
    e->stages.clear();
    if (e->stage_memory) {
        G.ggml_backend_buffer_free(e->stage_memory);
        e->stage_memory = nullptr;
    }
    for (em_region * r : {&e->io_device, &e->io_host, &e->stage_host, &e->copy_host}) {
        r->release();
    }
    for (ggml_backend ** b : {&e->exec, &e->stream, &e->copy}) {
        if (*b) {
            G.ggml_backend_free(*b);
            *b = nullptr;
        }
    }
    return EM_OK;
}

void em_engine_free(em_engine * e) {
    if (e) {
        em_engine_stop(e);
        delete e;
    }
}

int32_t em_begin_load(em_engine * e, int32_t shown) {
    if (em_loading()) {
        return em_fail(EM_ERROR_STATE, "this thread is loading another model");
    }
    em_set_loading(e, shown != 0);
    return EM_OK;
}

int32_t em_set_blocks(em_engine * e, int32_t blocks) {
    if (e->loaded || blocks < 1) {
        return em_fail(EM_ERROR_STATE, "blocks are counted before the model loads");
    }
    e->blocks = blocks;
    return EM_OK;
}

int32_t em_end_load(em_engine * e) {
    em_set_loading(nullptr, false);
    for (size_t i = 0; i < e->layers.size();) { // biases without weights, or a down projection missing
        const em_layer_t & l = *e->layers[i];
        const bool whole = l.weight[PROJ_DOWN] && (l.weight[PROJ_UP] || l.weight[PROJ_GATE_UP]);
        if (whole) {
            e->layers[i]->slot_of.assign(size_t(l.experts), -1);
            e->layers[i]->state.assign(size_t(l.experts), EM_COLD);
            e->layers[i]->ahead.assign(size_t(l.experts), 0);
            e->layers[i]->index = int32_t(i);
            ++i;
        } else {
            for (const ggml_tensor * w : l.weight) {
                e->layer_of.erase(w);
            }
            e->layers.erase(e->layers.begin() + long(i));
        }
    }
    if (e->device) { // null where the device has no events
        e->used = G.ggml_backend_event_new(e->device);
        for (auto & layer : e->layers) {
            layer->used = G.ggml_backend_event_new(e->device);
        }
    }
    e->ahead.spent.assign(e->layers.size(), 0);
    e->loaded = true;
    em_copy_start(e);
    return EM_OK;
}

int32_t em_layer_count(em_engine * e) { return int32_t(e->layers.size()); }

int32_t em_layer(em_engine * e, int32_t i, em_layer_info * out) {
    if (i < 0 || i >= em_layer_count(e) || !out || out->struct_bytes != int32_t(sizeof(*out))) {
        return em_fail(EM_ERROR_ARGUMENT, "no such layer");
    }
    em_layer_t & l = *e->layers[size_t(i)];
    std::lock_guard<std::mutex> lock(l.mutex);
    *out = {int32_t(sizeof(*out)), l.block, l.experts, int32_t(l.slots.size()), l.understood, l.device_can, int64_t(l.expert_bytes)};
    return EM_OK;
}

int32_t em_set_slots(em_engine * e, const int32_t * slots, int32_t count) {
    const int32_t status = em_slots_set(e, slots, count);
    if (status == EM_OK) {
        em_stages_make(e);
    }
    return status;
}

int32_t em_submit(em_engine * e, const em_load * loads, int32_t count) {
    int32_t taken = 0;
    for (int32_t i = 0; i < count; ++i) {
        const em_load & l = loads[i];
        if (l.layer < 0 || l.layer >= em_layer_count(e)) {
            continue;
        }
        em_layer_t & layer = *e->layers[size_t(l.layer)];
        if (l.expert < 0 || l.expert >= layer.experts || l.victim >= layer.experts) {
            continue;
        }
        taken += em_queue(e, l, -1);
    }
    e->queue_changed.notify_all();
    return taken;
}

int32_t em_wait_uploads(em_engine * e, int32_t timeout_ms) {
    std::unique_lock<std::mutex> lock(e->queue_mutex);
    const bool done = e->queue_changed.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                                                [&] { return e->stopping || (e->queue.empty() && e->urgent.empty() && !e->copying); });
    return done ? EM_OK : em_fail(EM_ERROR_STATE, "uploads are still under way");
}

int32_t em_residency(em_engine * e, uint8_t * out, int64_t capacity) {
    int64_t at = 0;
    for (auto & layer : e->layers) {
        if (at + layer->experts > capacity) {
            return em_fail(EM_ERROR_ARGUMENT, "the buffer is too small");
        }
        std::lock_guard<std::mutex> lock(layer->mutex);
        memcpy(out + at, layer->state.data(), layer->state.size());
        at += layer->experts;
    }
    return EM_OK;
}

int32_t em_stats(em_engine * e, em_stats_t * s) {
    const em_counters & c = e->count;
    *s = {};
    s->tokens = c.tokens, s->hits = c.hits, s->misses = c.misses;
    s->fetched = c.fetched;
    s->prefill_hits = c.prefill_hits, s->prefill_streamed = c.prefill_streamed, s->prefill_misses = c.prefill_misses;
    s->uploads = c.uploads, s->upload_bytes = c.upload_bytes, s->streamed_bytes = c.streamed_bytes, s->direct_bytes = c.direct_bytes;
    s->failed_uploads = c.failed_uploads, s->joins = c.joins, s->device_fallbacks = c.device_fallbacks;
    s->moe_ns = c.moe_ns, s->device_ns = c.device_ns, s->cpu_ns = c.cpu_ns, s->join_ns = c.join_ns, s->schedule_ns = c.schedule_ns;
    s->dropped_events = c.dropped_events;
    s->stage_bytes    = e->stage_bytes;
    for (auto & layer : e->layers) {
        std::lock_guard<std::mutex> lock(layer->mutex);
        s->prefetch_useful += layer->ahead_useful;
        s->prefetch_late += layer->ahead_late;
        s->prefetch_wasted += layer->ahead_wasted;
        s->slots += int64_t(layer->slots.size());
        s->slot_bytes += int64_t(layer->places.bytes);
        s->resident += layer->resident;
        for (uint8_t state : layer->state) {
            s->pending += state == EM_PENDING;
        }
        s->fused_layers += layer->understood == 1;
        s->plain_layers += layer->understood == 0;
    }
    return EM_OK;
}

int32_t em_pin(em_engine * e, int32_t layer, int32_t expert, int32_t pinned) {
    if (layer < 0 || layer >= int32_t(e->layers.size()) || expert < 0 || expert >= e->layers[size_t(layer)]->experts) {
        return em_fail(EM_ERROR_ARGUMENT, "no such expert");
    }
    em_layer_t &                l = *e->layers[size_t(layer)];
    std::lock_guard<std::mutex> lock(l.mutex);
    l.pinned.resize(size_t(l.experts));
    l.pinned[size_t(expert)] = pinned != 0;
    return EM_OK;
}

int64_t em_drain(em_engine * e, int32_t * out, int64_t capacity) {
    std::lock_guard<std::mutex> lock(e->ring_mutex);
    int64_t n = 0;
    while (n < int64_t(e->ring_used)) {
        const int64_t record = 3 + int64_t(e->ring[size_t(n) + 1]) * e->ring[size_t(n) + 2];
        if (n + record > capacity) {
            break;
        }
        n += record;
    }
    memcpy(out, e->ring.data(), size_t(n) * 4);
    memmove(e->ring.data(), e->ring.data() + n, (e->ring_used - size_t(n)) * 4);
    e->ring_used -= size_t(n);
    e->ring_full = e->ring_full && e->ring_used > 0;
    return n;
}

int32_t em_cancel(em_engine * e, int32_t cancelled) {
    e->cancelled = cancelled != 0;
    return EM_OK;
}

int32_t em_watch(em_engine * e, int32_t every) {
    e->watch_every = every < 1 ? 1 : every;
    return EM_OK;
}

int32_t em_device_memory(em_engine * e, int64_t * free_bytes, int64_t * total_bytes) {
    size_t free = 0, total = 0;
    if (e->device) {
        G.ggml_backend_dev_memory(e->device, &free, &total);
    }
    *free_bytes = int64_t(free), *total_bytes = int64_t(total);
    return EM_OK;
}
