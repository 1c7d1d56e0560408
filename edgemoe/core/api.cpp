// The C interface to engines: checks of arguments, and locks. The rooms do the work.

#include "cpu/kernels/kernels.h"
#include "engine.h"
#include "errors.h"
#include "ggml/mapping.h"
#include "model/expert_buffer.h"
#include "routing/predictor.h"

static bool abort_requested(void * engine) { return static_cast<em_engine *>(engine)->turn.cancelled; }

int32_t em_struct_bytes(int32_t which) {
    constexpr int32_t SIZES[] = {sizeof(em_options), sizeof(em_sim_options), sizeof(em_layer_info), sizeof(em_load),
                                 sizeof(em_stats_t)};
    return which >= 0 && which < 5 ? SIZES[which] : -1;
}

int32_t em_decode(void * llama_decode, void * context, const void * batch, int32_t * result) {
    em_trap_aborts();
    int32_t status = EM_OK;
    try {
        *result = reinterpret_cast<llama_decode_t>(llama_decode)(context, *static_cast<const llama_batch *>(batch));
    } catch (const std::exception & error) {
        status = em_fail(EM_ERROR_STATE, error.what());
    } catch (...) { // of another C++ library; its text is known
        status = EM_ERROR_STATE;
    }
    em_release_aborts();
    return status;
}

void * em_abort_callback(void) { return reinterpret_cast<void *>(abort_requested); }

int32_t em_kernels(const char * name) {
    const std::string refused = em_kernels_choose(name);
    return refused.empty() ? EM_OK : em_fail(EM_ERROR_ARGUMENT, refused);
}

const char * em_kernels_name(void) { return em_family_name(em_kernels_family()); }

int32_t em_kernels_know(int32_t type, int64_t width) { return em_kernel_own(type, width); }

em_engine * em_engine_new(const em_options * options) {
    if (!em_host_checked() || !options || options->struct_bytes != int32_t(sizeof(*options)) || options->graph_us <= 0) {
        em_fail(EM_ERROR_STATE, "the core was not checked against ggml, or the options are invalid");
        return nullptr;
    }
    auto e            = std::make_unique<em_engine>();
    e->options        = *options;
    e->options.device = nullptr;
    if (options->device && *options->device) {
        if (!em_device_open(e->device, options->device)) {
            const bool known = e->device.handle != nullptr;
            em_fail(EM_ERROR_DEVICE, (known ? "cannot open device " : "no device named ") + e->device.name);
            return nullptr; // no thread runs yet
        }
        e->exchange.device.buft = e->device.memory();
        for (em_region * r : {&e->exchange.host, &e->exchange.stage, &e->residence.uploads.staging}) {
            r->buft = e->device.host_memory();
        }
    }
    return e.release();
}

int32_t em_engine_stop(em_engine * e) {
    em_prefetch_stop(e->prefetch);
    em_copy_stop(e->residence);
    std::lock_guard<std::mutex> compute(e->turn.computing);
    if (e->device.exec) {
        G.ggml_backend_synchronize(e->device.exec);
    }
    em_readers_wait(e->residence.readers); // for the latest work of passes; nothing captures a graph while we hold `computing`
    em_residents_end(e->residence);
    em_host_unregister(e->residence);
    em_ram_close(e->ram);
    em_stages_release(e->residence.stages);
    for (em_region * r : {&e->exchange.device, &e->exchange.host, &e->exchange.stage, &e->residence.uploads.staging}) {
        r->release();
    }
    for (em_stream * stream : {&e->device.exec, &e->device.stream, &e->device.copy}) {
        *stream = nullptr;
    }
    return EM_OK;
}

void em_engine_free(em_engine * e) {
    if (e) {
        em_engine_stop(e);
        delete e;
    }
}

int32_t em_begin_load(em_engine * e, int32_t stands_in) {
    if (em_loading()) {
        return em_fail(EM_ERROR_STATE, "this thread is loading another model");
    }
    em_set_loading(&e->model, stands_in != 0);
    return EM_OK;
}

int32_t em_set_blocks(em_engine * e, int32_t blocks) {
    if (e->model.loaded || blocks < 1) {
        return em_fail(EM_ERROR_STATE, "blocks are counted before the model loads");
    }
    e->model.blocks = blocks;
    return EM_OK;
}

int32_t em_end_load(em_engine * e) {
    em_set_loading(nullptr, false);
    if (em_maps_lazily()) {
        em_map_lazily(false);
    }
    em_model_loaded(e->model);
    em_residents_begin(e->residence);
    em_prefetch_begin(e->prefetch);
    em_copy_start(e->residence);
    return EM_OK;
}

int32_t em_load_lazily(int32_t on) {
    em_map_lazily(on != 0);
    return EM_OK;
}

int32_t em_open_ram(em_engine * e, const char * const * paths, int32_t files, const em_expert_place * places, int32_t count,
                    int64_t budget, int32_t at_once) {
    if (!e->model.loaded || e->ram.on || budget < 0 || at_once < 1) {
        return em_fail(EM_ERROR_STATE, "there is no model, or its experts are in RAM of our own already");
    }
    std::lock_guard<std::mutex> compute(e->turn.computing);
    const std::string           why = em_ram_open(e->ram, {paths, paths + files}, {places, places + count}, budget, at_once);
    return why.empty() ? EM_OK : em_fail(EM_ERROR_STATE, why);
}

int32_t em_fill_ram(em_engine * e, const float * heat) {
    if (heat) {
        em_ram_seed(e->ram, heat);
    }
    em_ram_fill(e->ram);
    return EM_OK;
}

int32_t em_resize_ram(em_engine * e, int64_t budget) {
    em_ram_resize(e->ram, budget);
    return EM_OK;
}

int32_t em_disk_state(em_engine * e) {
    const std::string why = em_disk_failure(e->ram.disk);
    return why.empty() ? EM_OK : em_fail(EM_ERROR_STATE, why);
}

int32_t em_begin_context(em_engine * e, int32_t stands_in) {
    if (em_loading() || !e->model.loaded) {
        return em_fail(EM_ERROR_STATE, "this thread is loading a model, or the model is not loaded");
    }
    em_set_accelerates(stands_in == 0);
    return EM_OK;
}

int32_t em_end_context(em_engine *) {
    em_set_accelerates(false);
    return EM_OK;
}

int32_t em_layer_count(em_engine * e) { return int32_t(e->model.layers.size()); }

int32_t em_layer(em_engine * e, int32_t i, em_layer_info * out) {
    if (i < 0 || i >= em_layer_count(e) || !out || out->struct_bytes != int32_t(sizeof(*out))) {
        return em_fail(EM_ERROR_ARGUMENT, "no such layer");
    }
    em_layer_t &                l = *e->model.layers[size_t(i)];
    std::lock_guard<std::mutex> lock(l.residents.mutex);
    const auto                  pattern = int32_t(l.pattern.load()), support = int32_t(l.support.load());
    *out = {int32_t(sizeof(*out)),  l.block, l.experts, int32_t(l.residents.slots.size()), pattern, support,
            int64_t(l.expert_bytes)};
    return EM_OK;
}

int32_t em_set_slots(em_engine * e, const int32_t * slots, int32_t count) {
    if (!e->device.handle || count != em_layer_count(e)) {
        return em_fail(EM_ERROR_ARGUMENT, "no device, or not one slot count per layer");
    }
    em_queue_clear(e->residence.uploads);
    if (const int32_t status = em_slots_set(e->residence, slots)) {
        return status;
    }
    em_stages_make(e->residence);
    return EM_OK;
}

int32_t em_submit(em_engine * e, const em_load * loads, int32_t count) {
    int32_t taken = 0;
    for (int32_t i = 0; i < count; ++i) {
        const em_load & l       = loads[i];
        const int32_t   experts = l.layer < 0 || l.layer >= em_layer_count(e) ? 0 : e->model.layers[size_t(l.layer)]->experts;
        taken += l.expert >= 0 && l.expert < experts && l.victim < experts && em_queue(e->residence, l, -1);
    }
    e->residence.uploads.wake();
    return taken;
}

int32_t em_wait_uploads(em_engine * e, int32_t timeout_ms) {
    const bool done = em_uploads_wait(e->residence.uploads, timeout_ms);
    return done ? EM_OK : em_fail(EM_ERROR_STATE, "uploads are still under way");
}

int32_t em_residency(em_engine * e, uint8_t * out, int64_t capacity) {
    int64_t at = 0;
    for (auto & layer : e->model.layers) {
        if (at + layer->experts > capacity) {
            return em_fail(EM_ERROR_ARGUMENT, "the buffer is too small");
        }
        std::lock_guard<std::mutex> lock(layer->residents.mutex);
        memcpy(out + at, layer->residents.state.data(), layer->residents.state.size());
        at += layer->experts;
    }
    return EM_OK;
}

int32_t em_stats(em_engine * e, em_stats_t * s) {
    const em_counters & c = e->count;
    *s                    = {};
    s->tokens = c.tokens, s->hits = c.hits, s->misses = c.misses;
    s->fetched      = c.fetched;
    s->prefill_hits = c.prefill_hits, s->prefill_streamed = c.prefill_streamed, s->prefill_misses = c.prefill_misses;
    s->uploads = c.uploads, s->upload_bytes = c.upload_bytes, s->streamed_bytes = c.streamed_bytes,
    s->direct_bytes   = c.direct_bytes;
    s->failed_uploads = c.failed_uploads, s->joins = c.joins, s->device_fallbacks = c.device_fallbacks;
    s->moe_ns = c.moe_ns, s->device_ns = c.device_ns, s->cpu_ns = c.cpu_ns, s->join_ns = c.join_ns, s->schedule_ns = c.schedule_ns;
    s->dropped_events = c.dropped_events;
    s->stage_bytes    = e->residence.stages.bytes;
    s->disk_bytes = e->ram.disk.bytes, s->disk_reads = e->ram.disk.reads;
    s->missed_bytes = e->ram.count.missed_bytes, s->disk_wait_ns = e->ram.count.wait_ns;
    em_ram_sizes(e->ram, s->ram_bytes, s->ram_budget);
    for (auto & layer : e->model.layers) {
        const em_residents &        here = layer->residents;
        std::lock_guard<std::mutex> lock(layer->residents.mutex);
        s->prefetch_useful += here.useful;
        s->prefetch_late += here.late;
        s->prefetch_wasted += here.wasted;
        s->slots += int64_t(here.slots.size());
        s->slot_bytes += int64_t(here.places.bytes);
        s->resident += here.count;
        s->pending += std::count(here.state.begin(), here.state.end(), uint8_t(EM_PENDING));
        s->fused_layers += layer->pattern == em_pattern::BLOCK;
        s->plain_layers += layer->pattern == em_pattern::UNKNOWN;
    }
    return EM_OK;
}

int32_t em_pin(em_engine * e, int32_t layer, int32_t expert, int32_t pinned) {
    return em_expert_pin(e->residence, layer, expert, pinned != 0);
}

int64_t em_drain(em_engine * e, int32_t * out, int64_t capacity) { return em_log_drain(e->log, out, capacity); }

int32_t em_cancel(em_engine * e, int32_t cancelled) {
    e->turn.cancelled = cancelled != 0;
    return EM_OK;
}

int32_t em_watch(em_engine * e, int32_t every) {
    e->watching.every = every < 1 ? 1 : every;
    return EM_OK;
}

int32_t em_device_memory(em_engine * e, int64_t * free_bytes, int64_t * total_bytes) {
    size_t free = 0, total = 0;
    if (e->device.handle) {
        G.ggml_backend_dev_memory(e->device.handle, &free, &total);
    }
    *free_bytes = int64_t(free), *total_bytes = int64_t(total);
    return EM_OK;
}

int32_t em_set_router(em_engine * e, int32_t layer, const uint16_t * weight, const float * bias, const float * select,
                      int32_t experts, int32_t width) {
    std::lock_guard<std::mutex> compute(e->turn.computing);
    if (layer < 0 || layer >= em_layer_count(e) || experts < 2 || width < 1) {
        return em_fail(EM_ERROR_ARGUMENT, "no such layer, or no router");
    }
    em_router r;
    r.experts = experts, r.width = width;
    r.weight.assign(weight, weight + size_t(experts) * size_t(width));
    r.bias.assign(bias, bias + experts);
    r.select = select ? std::vector<float>(select, select + experts) : std::vector<float>();
    em_prefetch_router(e->prefetch, layer, std::move(r));
    return EM_OK;
}

int32_t em_begin_token(em_engine * e, int32_t token_id) {
    std::lock_guard<std::mutex> compute(e->turn.computing);
    em_prefetch_token(e->prefetch, token_id);
    return EM_OK;
}

int32_t em_set_prefetch(em_engine * e, em_predictor * predictor, int32_t lead, int32_t most, float gain, int32_t wait) {
    std::lock_guard<std::mutex> compute(e->turn.computing);
    if (predictor && (predictor->layers != em_layer_count(e) || lead < 1 || lead > predictor->leads)) {
        return em_fail(EM_ERROR_ARGUMENT, "the predictor is for another model");
    }
    em_prefetch_set(e->prefetch, predictor, lead, most, gain, wait != 0);
    return EM_OK;
}

int32_t em_prefetch_spent(em_engine * e, int32_t * out, int32_t capacity) {
    const std::vector<int32_t> & spent = e->prefetch.spent;
    if (capacity < int32_t(spent.size())) {
        return em_fail(EM_ERROR_ARGUMENT, "the buffer is too small");
    }
    std::copy(spent.begin(), spent.end(), out);
    return EM_OK;
}

int32_t em_end_step(em_engine * e) {
    em_prefetch_end_step(e->prefetch);
    return e->watching.unseen.exchange(false) ? EM_UNSEEN : EM_OK;
}

int32_t em_force(em_engine * e, const int32_t * ids, int64_t tokens, int32_t top_k) {
    std::lock_guard<std::mutex> compute(e->turn.computing);
    return em_force_set(e->forced, e->model, ids, tokens, top_k);
}
