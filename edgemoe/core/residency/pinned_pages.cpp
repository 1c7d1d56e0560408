// Experts in host memory that a device may read by itself. Without this, every upload is first copied to pinned staging. That
// takes three times the memory traffic, and decoding waits for memory.

#include "residency/residency.h"

// Registers whole pages only. The next tensor begins on the last page, and no page may be registered twice.
static constexpr uintptr_t PAGE = 4096;

void em_host_register(em_residence & r, em_layer_t & layer) {
    if (layer.registered.load(std::memory_order_acquire)) {
        return;
    }
    auto * enter = em_device_function<bool (*)(void *, size_t)>(r.device.handle, "ggml_backend_register_host_buffer");
    // A layer is pinned as a whole or not at all: a layer in part would need the staging memory as well.
    const bool room = r.pinned_bytes + int64_t(layer.expert_bytes) * layer.experts <= r.options.pin_bytes;
    for (int p = 0; p < PROJ_COUNT && enter && room; ++p) {
        if (const ggml_tensor * t = layer.weight[p]) {
            const uintptr_t from = (uintptr_t(t->data) + PAGE - 1) / PAGE * PAGE;
            const uintptr_t to   = (uintptr_t(t->data) + G.ggml_nbytes(t)) / PAGE * PAGE;
            if (to > from && enter(reinterpret_cast<void *>(from), to - from)) {
                layer.window[p] = {reinterpret_cast<const char *>(from), reinterpret_cast<const char *>(to)};
                r.pinned_bytes += int64_t(to - from);
            }
        }
    }
    layer.registered.store(true, std::memory_order_release);
}

void em_host_unregister(em_residence & r) {
    auto * leave =
        r.device.handle ? em_device_function<void (*)(void *)>(r.device.handle, "ggml_backend_unregister_host_buffer") : nullptr;
    for (auto & layer : r.model.layers) {
        for (em_window & w : layer->window) {
            if (w.from && leave) {
                leave(const_cast<char *>(w.from));
            }
            w = {};
        }
        layer->registered = false;
    }
    r.pinned_bytes = 0;
}

bool em_host_readable(const em_layer_t & layer, int projection, int32_t expert) {
    if (!layer.registered.load(std::memory_order_acquire)) {
        return false;
    }
    const ggml_tensor * t    = layer.weight[projection];
    const em_window &   w    = layer.window[projection];
    const char *        from = static_cast<const char *>(t->data) + size_t(expert) * t->nb[2];
    return w.from && from >= w.from && from + t->nb[2] <= w.to;
}
