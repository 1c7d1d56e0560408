// Experts in host memory that a device may read by itself. Otherwise every upload is copied to pinned staging first: three times the
// memory traffic of an expert, where memory is what decoding waits for.

#include "residency/residency.h"

#include <cstdint>

namespace {

// Whole pages only: the next tensor begins on the last one, and no page is registered twice.
constexpr uintptr_t PAGE = 4096;

typedef bool (*enter_t)(void *, size_t);
typedef void (*leave_t)(void *);

void * proc(const em_device & device, const char * name) {
    return G.ggml_backend_reg_get_proc_address(G.ggml_backend_dev_backend_reg(device.handle), name);
}

} // namespace

void em_host_register(em_residence & r, em_layer_t & layer) {
    if (layer.registered.load(std::memory_order_acquire)) {
        return;
    }
    auto * enter = reinterpret_cast<enter_t>(proc(r.device, "ggml_backend_register_host_buffer"));
    auto   open  = [&](const ggml_tensor * t, em_window & w) {
        const uintptr_t from = (uintptr_t(t->data) + PAGE - 1) / PAGE * PAGE;
        const uintptr_t to   = (uintptr_t(t->data) + G.ggml_nbytes(t)) / PAGE * PAGE;
        if (to > from && enter(reinterpret_cast<void *>(from), to - from)) {
            w = {reinterpret_cast<const char *>(from), reinterpret_cast<const char *>(to)};
            r.pinned_bytes += int64_t(to - from);
        }
    };
    // A layer is pinned as a whole or not at all: a layer in part would need the staging memory as well.
    const bool room = r.pinned_bytes + int64_t(layer.expert_bytes) * layer.experts <= r.options.pin_bytes;
    for (int p = 0; p < PROJ_COUNT && enter && room; ++p) {
        if (layer.weight[p]) {
            open(layer.weight[p], layer.window[p]);
        }
    }
    layer.registered.store(true, std::memory_order_release);
}

void em_host_unregister(em_residence & r) {
    auto * leave = r.device.handle ? reinterpret_cast<leave_t>(proc(r.device, "ggml_backend_unregister_host_buffer")) : nullptr;
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

bool em_host_readable(const em_layer_t & layer, int projection, const char * from, size_t bytes) {
    if (!layer.registered.load(std::memory_order_acquire)) {
        return false;
    }
    const em_window & w = layer.window[projection];
    return w.from && from >= w.from && from + bytes <= w.to;
}
