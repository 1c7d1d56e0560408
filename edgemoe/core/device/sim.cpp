// sim: a GPU in software. It has memory that the host may not touch, worker threads as streams, a link with bandwidth and
// latency, and faults on demand. sim computes with ggml-cpu's kernels, so its results are exact.
//
// llama.cpp never sees sim as a GPU: llama.cpp gets a device that stands in for sim, see backend/stand_in.cpp. Streams opened
// with the parameter "async" have a worker, and only their copies and computations fail on demand. The option `streams` chooses
// where the streams of a pass compute:
//
//   - EM_SIM_CALLER: in the calling thread. Nothing of a pass overlaps then.
//   - EM_SIM_ORDERED: in a worker each. A stream does everything in the order of the calls, and streams wait for each
//     other's events, as with CUDA.
//   - EM_SIM_TRANSFER: in a worker each. Every stream, also an "async" stream, has a second queue for copies to the device.
//     Such a copy waits only for the events that its stream waits for. A computation waits for all copies before it. ggml-vulkan
//     does the same on cards with a transfer queue.

#include "device/sim_parts.h"
#include "memory/region.h"

#include <cstdlib>

namespace {
constexpr size_t ALIGNMENT = 128;

void buffer_free(ggml_backend_buffer * b) {
    em_sim_reserve(-int64_t(b->size));
    free(b->context);
}

void * buffer_base(ggml_backend_buffer * b) { return em_align(b->context, ALIGNMENT); }

void buffer_memset(ggml_backend_buffer *, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    memset(static_cast<char *>(t->data) + offset, value, size);
}

void buffer_set(ggml_backend_buffer *, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    em_sim_transfer(static_cast<char *>(t->data) + offset, data, size, false);
}

void buffer_get(ggml_backend_buffer *, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    em_sim_transfer(data, static_cast<const char *>(t->data) + offset, size, true);
}

void buffer_clear(ggml_backend_buffer * b, uint8_t value) { memset(buffer_base(b), value, b->size); }

// clang-format off
constexpr ggml_backend_buffer_i BUFFER = {
    /* free_buffer, get_base, init_tensor       */ buffer_free, buffer_base, nullptr,
    /* memset_tensor, set_tensor, get_tensor    */ buffer_memset, buffer_set, buffer_get,
    /* set_tensor_2d, get_tensor_2d, cpy_tensor */ nullptr, nullptr, nullptr,
    /* clear, reset                             */ buffer_clear, nullptr};
// clang-format on

ggml_backend_buffer * buft_alloc(ggml_backend_buffer_type * buft, size_t size) {
    const bool fails = size > 0 && em_sim_fails(SIM_ALLOC);
    if (fails || !em_sim_reserve(int64_t(size))) {
        return nullptr;
    }
    void * memory = malloc(size + 2 * ALIGNMENT);
    if (!memory) {
        em_sim_reserve(-int64_t(size));
        return nullptr;
    }
    return G.ggml_backend_buffer_init(buft, BUFFER, memory, size);
}

const char * buft_name(ggml_backend_buffer_type *) { return "SIM"; }
size_t       buft_alignment(ggml_backend_buffer_type *) { return ALIGNMENT; }
bool         buft_is_host(ggml_backend_buffer_type *) { return false; }
const char * device_name(ggml_backend_device *) { return "sim"; }
const char * device_description(ggml_backend_device *) { return "simulated GPU"; }
int          device_type(ggml_backend_device *) { return DEV_CPU; }

void device_memory(ggml_backend_device *, size_t * free, size_t * total) {
    *total = size_t(em_sim_options_now().capacity);
    *free  = size_t(em_sim_free_memory());
}

void device_props(ggml_backend_device * dev, ggml_backend_dev_props * props) {
    *props = {device_name(dev), device_description(dev), 0, 0, device_type(dev), nullptr, {}};
    device_memory(dev, &props->memory_free, &props->memory_total);
}

ggml_backend_buffer_type * device_buft(ggml_backend_device * dev) {
    static ggml_backend_buffer_type buft = {/* get_name, alloc_buffer, get_alignment, get_max_size */ {
                                                buft_name, buft_alloc, buft_alignment, nullptr,
                                                /* get_alloc_size, is_host                             */ nullptr, buft_is_host},
                                            dev, nullptr};
    return &buft;
}

bool device_supports_op(ggml_backend_device *, const ggml_tensor * op) {
    return G.ggml_backend_dev_supports_op(G.ggml_backend_dev_by_type(DEV_CPU), op);
}

bool device_supports_buft(ggml_backend_device * dev, ggml_backend_buffer_type * buft) { return buft == device_buft(dev); }

ggml_backend_device device = {
    {/* get_name, get_description, get_memory, get_type        */ device_name, device_description, device_memory, device_type,
     /* get_props, init_backend, get_buffer_type               */ device_props, em_sim_stream_new, device_buft,
     /* get_host_buffer_type, buffer_from_host_ptr             */ nullptr, nullptr,
     /* supports_op, supports_buft, offload_op                 */ device_supports_op, device_supports_buft, nullptr,
     /* event_new, event_free, event_synchronize               */ em_sim_event_new, em_sim_event_free, em_sim_event_synchronize},
    nullptr,
    nullptr};
} // namespace

ggml_backend_device * em_sim_device() { return &device; }
