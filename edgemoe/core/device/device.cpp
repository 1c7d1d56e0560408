// See device.h.

#include "device/device.h"

namespace {

ggml_backend_device * find_device(const std::string & name) {
    for (size_t i = 0; i < G.ggml_backend_dev_count(); ++i) {
        ggml_backend_device * d = G.ggml_backend_dev_get(i);
        if (name == G.ggml_backend_dev_name(d)) {
            return d;
        }
    }
    return nullptr;
}

} // namespace

bool em_device_open(em_device & d, const std::string & name) {
    d.name   = name;
    d.handle = find_device(name);
    if (!d.handle) {
        return false;
    }
    d.traits = em_traits_of(d.handle);
    d.exec   = G.ggml_backend_dev_init(d.handle, d.traits.stream_params);
    d.stream = d.exec ? G.ggml_backend_dev_init(d.handle, d.traits.stream_params) : nullptr;
    d.copy   = d.stream ? G.ggml_backend_dev_init(d.handle, d.traits.stream_params) : nullptr;
    return d.copy != nullptr;
}

// Devices report failures only by ending the process, except ours, which can be asked.
bool em_device_failed(ggml_backend * backend) {
    typedef bool (*take_error_t)(ggml_backend *);
    ggml_backend_reg * reg = G.ggml_backend_dev_backend_reg(backend->device);
    auto take = reinterpret_cast<take_error_t>(G.ggml_backend_reg_get_proc_address(reg, "edgemoe_take_error"));
    return take && take(backend);
}

ggml_backend_buffer * em_device_alloc(ggml_backend_device * device, size_t bytes) {
    ggml_backend_buffer_type * buft   = G.ggml_backend_dev_buffer_type(device);
    ggml_backend_buffer *      buffer = G.ggml_backend_buft_alloc_buffer(buft, bytes + G.ggml_backend_buft_get_alignment(buft));
    if (buffer) { // kernels read past the last row of a quantised matrix into its padding, which must not hold NaN
        G.ggml_backend_buffer_clear(buffer, 0);
    }
    return buffer;
}
