// sim: a GPU in software. Memory the host may not touch, a worker thread as stream, a link with bandwidth and latency, and
// faults on demand. Kernels are ggml-cpu's, so its results are exact.
//
// llama.cpp never sees it as a GPU: it gets the device that stands in for it, see backend/stand_in.cpp. Streams opened with the
// parameter "async" have a worker, and faults. The option `streams` says where the streams of a pass compute:
//
//   - EM_SIM_CALLER: in the calling thread. Nothing of a pass overlaps then.
//   - EM_SIM_ORDERED: in a worker each. A stream does everything in the order of the calls, and streams wait for each
//     other's events, as with CUDA.
//   - EM_SIM_TRANSFER: in a worker each, and every stream, also one of "async", sends by a queue of its own beside its
//     computations. A copy to the device waits for the events that its stream waits for and for nothing else; a
//     computation waits for all copies before it. So ggml-vulkan does where the card has a transfer queue.

#include "device/sim_link.h"
#include "device/sim_stream.h"
#include "memory/region.h"

#include <cstdlib>
#include <cstring>

namespace {

void buffer_free(ggml_backend_buffer * b) {
    {
        std::lock_guard<std::mutex> lock(em_sim_state_now().mutex);
        em_sim_state_now().used -= int64_t(b->size);
    }
    free(b->context);
}
void * buffer_base(ggml_backend_buffer * b) {
    return em_align(b->context, 128);
}
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

const char * buft_name(ggml_backend_buffer_type *) { return "SIM"; }

ggml_backend_buffer * buft_alloc(ggml_backend_buffer_type * buft, size_t size) {
    em_sim_state & s = em_sim_state_now();
    const bool fail = size > 0 && em_sim_nth(s.allocations, s.options.fail_alloc, true);
    {
        std::lock_guard<std::mutex> lock(s.mutex);
        if (fail || s.used + int64_t(size) > s.options.capacity) {
            return nullptr;
        }
        s.used += int64_t(size);
    }
    void * memory = malloc(size + 256);
    if (!memory) {
        std::lock_guard<std::mutex> lock(s.mutex);
        s.used -= int64_t(size);
        return nullptr;
    }
    ggml_backend_buffer_i i{};
    i.free_buffer   = buffer_free;
    i.get_base      = buffer_base;
    i.memset_tensor = buffer_memset;
    i.set_tensor    = buffer_set;
    i.get_tensor    = buffer_get;
    i.clear         = buffer_clear;
    return G.ggml_backend_buffer_init(buft, i, memory, size);
}

size_t buft_alignment(ggml_backend_buffer_type *) { return 128; }
bool   buft_is_host(ggml_backend_buffer_type *) { return false; }

ggml_backend_device device;

const char * device_name(ggml_backend_device *) { return "sim"; }
const char * device_description(ggml_backend_device *) { return "simulated GPU"; }
int          device_type(ggml_backend_device *) { return DEV_CPU; }

void device_memory(ggml_backend_device *, size_t * free, size_t * total) {
    std::lock_guard<std::mutex> lock(em_sim_state_now().mutex);
    *total = size_t(em_sim_state_now().options.capacity);
    *free  = size_t(em_sim_state_now().options.capacity - em_sim_state_now().used);
}

void device_props(ggml_backend_device * dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = device_name(dev);
    props->description = device_description(dev);
    props->type        = device_type(dev);
    device_memory(dev, &props->memory_free, &props->memory_total);
}

ggml_backend_buffer_type * device_buft(ggml_backend_device *) {
    static ggml_backend_buffer_type buft = [] {
        ggml_backend_buffer_type b{};
        b.iface.get_name      = buft_name;
        b.iface.alloc_buffer  = buft_alloc;
        b.iface.get_alignment = buft_alignment;
        b.iface.is_host       = buft_is_host;
        b.device              = &device;
        return b;
    }();
    return &buft;
}

bool device_supports_op(ggml_backend_device *, const ggml_tensor * op) {
    return G.ggml_backend_dev_supports_op(G.ggml_backend_dev_by_type(DEV_CPU), op);
}

bool device_supports_buft(ggml_backend_device * dev, ggml_backend_buffer_type * buft) { return buft == device_buft(dev); }

} // namespace

ggml_backend_device * em_sim_device() {
    [[maybe_unused]] static const bool filled = [] {
        ggml_backend_device_i & d = device.iface;
        d.get_name          = device_name;
        d.get_description   = device_description;
        d.get_memory        = device_memory;
        d.get_type          = device_type;
        d.get_props         = device_props;
        d.init_backend      = em_sim_stream_new;
        d.get_buffer_type   = device_buft;
        d.supports_op       = device_supports_op;
        d.supports_buft     = device_supports_buft;
        d.event_new         = em_sim_event_new;
        d.event_free        = em_sim_event_free;
        d.event_synchronize = em_sim_event_synchronize;
        return true;
    }();
    return &device;
}
