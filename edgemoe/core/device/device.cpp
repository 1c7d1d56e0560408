#include "device/device.h"

bool em_device_open(em_device & d, const std::string & name) {
    d.name = name;
    for (size_t i = 0; i < G.ggml_backend_dev_count() && !d.handle; ++i) {
        ggml_backend_device * known = G.ggml_backend_dev_get(i);
        d.handle                    = name == G.ggml_backend_dev_name(known) ? known : nullptr;
    }
    if (!d.handle) {
        return false;
    }
    d.traits = em_traits_of(d.handle);
    d.exec   = G.ggml_backend_dev_init(d.handle, d.traits.stream_params);
    d.stream = d.exec ? G.ggml_backend_dev_init(d.handle, d.traits.stream_params) : nullptr;
    d.copy   = d.stream ? G.ggml_backend_dev_init(d.handle, d.traits.stream_params) : nullptr;
    return d.copy;
}

// ggml's devices report no failure: they end the process. sim has a function that reports its failures.
bool em_device_failed(ggml_backend * backend) {
    auto * take = em_device_function<bool (*)(ggml_backend *)>(backend->device, "edgemoe_take_error");
    return take && take(backend);
}

em_buffer em_device_alloc(ggml_backend_device * device, size_t bytes) {
    ggml_backend_buffer_type * buft   = G.ggml_backend_dev_buffer_type(device);
    em_buffer                  buffer = G.ggml_backend_buft_alloc_buffer(buft, bytes + G.ggml_backend_buft_get_alignment(buft));
    if (buffer) { // kernels read past the last row of a quantised matrix into its padding, which must not hold NaN
        G.ggml_backend_buffer_clear(buffer, 0);
    }
    return buffer;
}
