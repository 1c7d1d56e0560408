// Device memory for experts, and the stage: places for the experts of one layer at a time, for prompts and for misses that are
// fetched. See residency.h.

#include "residency/residency.h"

// Makes tensors without memory. `bytes` gets the sizes of the first part and of the second part (the down projection).
static em_places make_places(ggml_backend_device * device, const em_layer_t & layer, int32_t count, size_t bytes[2]) {
    ggml_backend_buffer_type *  buft  = G.ggml_backend_dev_buffer_type(device);
    const size_t                align = G.ggml_backend_buft_get_alignment(buft);
    static std::atomic<int64_t> serials{0};
    em_places                   p;
    p.ctx    = G.ggml_init({G.ggml_tensor_overhead() * PROJ_COUNT * 2, nullptr, true});
    p.count  = count;
    p.serial = ++serials;
    bytes[0] = bytes[1] = 0;
    auto make           = [&](const ggml_tensor * from, bool bias, size_t & total) {
        const int64_t ne[3] = {from->ne[0], bias ? count : from->ne[1], bias ? 1 : count};
        ggml_tensor * t     = G.ggml_new_tensor(p.ctx, from->type, 3, ne);
        total += em_align(G.ggml_backend_buft_get_alloc_size(buft, t), align);
        return t;
    };
    for (int i = 0; i < PROJ_COUNT; ++i) {
        size_t & total = bytes[i == PROJ_DOWN];
        p.weight[i]    = layer.weight[i] ? make(layer.weight[i], false, total) : nullptr;
        p.bias[i]      = layer.bias[i] ? make(layer.bias[i], true, total) : nullptr;
    }
    return p;
}

// Gives the tensors memory.
static void put_places(em_places & p, ggml_backend_buffer * buffer, size_t second) {
    const size_t align = G.ggml_backend_buft_get_alignment(buffer->buft);
    char *       base  = em_align(G.ggml_backend_buffer_get_base(buffer), align);
    char *       at[2] = {base, base + second};
    for (int i = 0; i < PROJ_COUNT; ++i) {
        for (ggml_tensor * t : {p.weight[i], p.bias[i]}) {
            if (t) {
                char *& to = at[i == PROJ_DOWN];
                G.ggml_backend_tensor_alloc(buffer, t, to);
                to += em_align(G.ggml_backend_buft_get_alloc_size(buffer->buft, t), align);
            }
        }
    }
}

em_places em_places_alloc(ggml_backend_device * device, const em_layer_t & layer, int32_t count) {
    size_t    bytes[2];
    em_places p = make_places(device, layer, count, bytes);
    p.buffer    = em_device_alloc(device, bytes[0] + bytes[1]);
    if (!p.buffer) {
        return {};
    }
    p.bytes = p.buffer->size;
    put_places(p, p.buffer, bytes[0]);
    return p;
}

bool em_device_usable(const em_device & device, const em_layer_t & layer) { return device.exec && !layer.unsupported(); }

// All experts of a layer, or two halves that take turns.
static int32_t places_of(const em_options & options, const em_layer_t & layer) {
    return options.stream_slots >= layer.experts ? layer.experts : options.stream_slots / 2 * 2;
}

// Tells whether the layer's places may lie in memory that other layers use, too. ggml-cuda reads rows in pieces of 256 numbers
// (512 for the types with four bits of float). It reads past the end of a matrix that the pieces do not divide. Numbers must lie
// there; bytes of another type may not be numbers.
static bool shares_memory(const em_layer_t & layer) {
    constexpr int FOUR_BIT_FLOATS = 39; // file format number of the first such type
    return std::all_of(std::begin(layer.weight), std::end(layer.weight),
                       [](const ggml_tensor * w) { return !w || w->ne[0] % (w->type >= FOUR_BIT_FLOATS ? 512 : 256) == 0; });
}

static bool same_shape(const em_layer_t & layer, const em_layer_t & other) {
    for (int p = 0; p < PROJ_COUNT; ++p) {
        const ggml_tensor *a = layer.weight[p], *o = other.weight[p];
        if (!a != !o || !layer.bias[p] != !other.bias[p] ||
            (a && (a->type != o->type || a->ne[0] != o->ne[0] || a->ne[1] != o->ne[1]))) {
            return false;
        }
    }
    return layer.experts == other.experts;
}

em_stage * em_stage_for(em_residence & r, const em_layer_t & layer) {
    for (auto & s : r.stages.all) {
        if (same_shape(layer, *s->like)) {
            return s->places.count ? s.get() : nullptr;
        }
    }
    const int32_t count = places_of(r.options, layer);
    if (count < 2 || (shares_memory(layer) && !r.stages.memory)) {
        return nullptr;
    }
    auto s  = std::make_unique<em_stage>();
    s->like = &layer;
    if (shares_memory(layer)) {
        size_t bytes[2];
        s->places = make_places(r.device.handle, layer, count, bytes);
        put_places(s->places, r.stages.memory, r.stages.second);
    } else { // without memory the stage has no places, and is not tried again
        s->places = em_places_alloc(r.device.handle, layer, count);
        r.stages.bytes += int64_t(s->places.bytes);
    }
    r.stages.all.push_back(std::move(s));
    return r.stages.all.back()->places.count ? r.stages.all.back().get() : nullptr;
}

void em_stages_make(em_residence & r) {
    std::lock_guard<std::mutex> compute(r.turn.computing);
    if (r.stages.made || r.options.stream_tokens <= 0) {
        return;
    }
    r.stages.made = true;
    size_t first = 0, second = 0; // of the largest layer: the stage holds one layer at a time
    for (const auto & layer : r.model.layers) {
        if (em_device_usable(r.device, *layer) && places_of(r.options, *layer) >= 2 && shares_memory(*layer)) {
            size_t bytes[2];
            make_places(r.device.handle, *layer, places_of(r.options, *layer), bytes);
            first = std::max(first, bytes[0]), second = std::max(second, bytes[1]);
        }
    }
    r.stages.memory = first + second ? em_device_alloc(r.device.handle, first + second) : em_buffer();
    r.stages.second = first;
    r.stages.bytes  = r.stages.memory ? int64_t(r.stages.memory->size) : 0;
    for (const auto & layer : r.model.layers) {
        if (em_device_usable(r.device, *layer)) {
            em_stage_for(r, *layer);
        }
    }
}

void em_stages_release(em_stages & s) {
    s.all.clear();
    s.memory = nullptr;
}
