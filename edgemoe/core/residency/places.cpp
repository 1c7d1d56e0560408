// Device memory for experts, see residency.h.

#include "residency/residency.h"

em_places em_places_make(ggml_backend_device * device, const em_layer_t & layer, int32_t count, size_t bytes[2]) {
    ggml_backend_buffer_type * buft  = G.ggml_backend_dev_buffer_type(device);
    const size_t               align = G.ggml_backend_buft_get_alignment(buft);
    static std::atomic<int64_t> serials{0};
    em_places p;
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
    return p;
}

void em_places_put(em_places & p, ggml_backend_buffer * buffer, size_t second) {
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
    em_places p = em_places_make(device, layer, count, bytes);
    p.buffer    = em_device_alloc(device, bytes[0] + bytes[1]);
    if (!p.buffer) {
        return {};
    }
    p.bytes = p.buffer->size;
    em_places_put(p, p.buffer, bytes[0]);
    return p;
}
