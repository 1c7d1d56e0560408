// The device that llama.cpp sees in the place of a ggml device that holds a model of ours. Every call goes straight through to the
// ggml device; graphs go to em_pass_compute.

#include "model/expert_buffer.h"
#include "pass/pass.h"

namespace {
const uint8_t GUID[16] = {0xed, 0x9e, 0x30, 0xe0, 0x11, 0x22, 0x4d, 0x0e, 0x9a, 0x51, 0x70, 0x6f, 0x72, 0x74, 0x73, 0x03};

// ---- streams ----

em_pass * pass_of(ggml_backend * b) { return static_cast<em_pass *>(b->context); }

// In ggml-vulkan, a wait for an event may reset memory that the event's stream is recording into. So llama.cpp's calls between its
// graphs hold the compute mutex, and so does the thread that waits in em_slots_set.
std::lock_guard<std::mutex> alone(ggml_backend * b) { return std::lock_guard<std::mutex>(pass_of(b)->e->turn.computing); }
const char *                stream_name(ggml_backend * b) { return pass_of(b)->compute->iface.get_name(pass_of(b)->compute); }

void stream_free(ggml_backend * b) {
    em_pass * p = pass_of(b);
    G.ggml_backend_synchronize(p->compute);
    em_readers_leave(p->e->residence.readers, p->compute);
    delete p;
    delete b;
}

void stream_set(ggml_backend * b, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    const auto lock = alone(b);
    G.ggml_backend_tensor_set_async(pass_of(b)->compute, t, data, offset, size);
}

void stream_get(ggml_backend * b, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    const auto lock = alone(b);
    G.ggml_backend_tensor_get_async(pass_of(b)->compute, t, data, offset, size);
}

void stream_synchronize(ggml_backend * b) {
    const auto lock = alone(b);
    G.ggml_backend_synchronize(pass_of(b)->compute);
}

int stream_compute(ggml_backend * b, ggml_cgraph * graph) { return em_pass_compute(pass_of(b), graph); }

void stream_optimize(ggml_backend * b, ggml_cgraph * graph, ggml_backend_graph_optimize_params * params) {
    const auto lock = alone(b);
    pass_of(b)->compute->iface.graph_optimize(pass_of(b)->compute, graph, params);
}

// clang-format off
constexpr ggml_backend_i STREAM = {
    /* get_name, free, set_tensor_async, get_tensor_async             */ stream_name, stream_free, stream_set, stream_get,
    /* set_tensor_2d_async, get_tensor_2d_async, cpy_tensor_async     */ nullptr, nullptr, nullptr,
    /* synchronize, graph_plan_create, _free, _update, _compute       */ stream_synchronize, nullptr, nullptr, nullptr, nullptr,
    /* graph_compute, event_record, event_wait, graph_optimize        */ stream_compute, nullptr, nullptr, nullptr};
// clang-format on

// ---- the device ----

em_engine *           engine_of(ggml_backend_device * dev) { return static_cast<em_engine *>(dev->context); }
ggml_backend_device * device_of(ggml_backend_device * dev) { return engine_of(dev)->device.handle; }
const char *          device_name(ggml_backend_device * dev) { return device_of(dev)->iface.get_name(device_of(dev)); }
const char * device_description(ggml_backend_device * dev) { return device_of(dev)->iface.get_description(device_of(dev)); }
void         device_memory(ggml_backend_device * dev, size_t * free, size_t * total) {
    G.ggml_backend_dev_memory(device_of(dev), free, total);
}
int device_type(ggml_backend_device *) { return DEV_GPU; }

void device_props(ggml_backend_device * dev, ggml_backend_dev_props * props) {
    device_of(dev)->iface.get_props(device_of(dev), props);
    props->type                      = DEV_GPU;
    props->caps.buffer_from_host_ptr = false;
    props->caps.events               = false;
}

ggml_backend * device_init(ggml_backend_device * dev, const char *) {
    em_engine *           e      = engine_of(dev);
    ggml_backend_device * device = e->device.handle;
    auto                  p      = std::make_unique<em_pass>();
    p->e                         = e;
    p->compute                   = G.ggml_backend_dev_init(device, nullptr);
    p->to_host                   = p->compute ? G.ggml_backend_dev_init(device, nullptr) : nullptr;
    p->cpu.cpu                   = p->to_host ? G.ggml_backend_cpu_init() : nullptr;
    if (!p->cpu.cpu) {
        return nullptr;
    }
    const bool events = p->compute->iface.event_record && p->compute->iface.event_wait;
    for (em_event * event : p->sync.all()) {
        *event = events ? G.ggml_backend_event_new(device) : nullptr;
    }
    p->events = p->sync.ready;
    p->early  = p->events && e->device.traits.starts_early;
    for (em_region * r : std::initializer_list<em_region *>{&p->memory.mirror, &p->tables.host, &p->memory.prompt_ids,
                                                            &p->memory.places, &p->memory.forced_ids}) {
        r->buft = e->device.host_memory();
    }
    p->memory.scratch.buft = e->device.memory();
    p->whole.marker.op     = OP.none;
    std::fill(std::begin(p->whole.marker.ne), std::end(p->whole.marker.ne), 1);
    std::fill(std::begin(p->whole.marker.nb), std::end(p->whole.marker.nb), 4);
    auto * b = new ggml_backend{GUID, STREAM, dev, p.get()};
    if (e->device.traits.optimizes_in_place && p->compute->iface.graph_optimize) {
        b->iface.graph_optimize = stream_optimize;
    }
    p.release();
    return b;
}

ggml_backend_buffer_type * device_buft(ggml_backend_device * dev) { return engine_of(dev)->device.memory(); }
ggml_backend_buffer_type * device_host_buft(ggml_backend_device * dev) { return engine_of(dev)->device.host_memory(); }

// Flash attention over a KV cache in RAM is the CPU's, as llama.cpp has it for plain attention: on the device it would copy
// the whole cache for every token.
bool attends_in_ram(const ggml_tensor * t) {
    if (t->op != OP.flash_attn || !t->src[1]) {
        return false;
    }
    ggml_backend_buffer * cache = em_buffer_of(t->src[1]);
    return cache && G.ggml_backend_buffer_get_type(cache) == G.ggml_backend_cpu_buffer_type();
}

bool device_supports_op(ggml_backend_device * dev, const ggml_tensor * t) {
    if (attends_in_ram(t)) {
        return false;
    }
    if (t->op == OP.mul_mat_id && em_is_ours(t->src[0])) {
        return t->src[1]->type == TYPE_F32;
    }
    if (t->op == OP.add_id && em_is_ours(t->src[1])) {
        return true;
    }
    return std::none_of(std::begin(t->src), std::end(t->src), em_is_ours) && G.ggml_backend_dev_supports_op(device_of(dev), t);
}

bool device_supports_buft(ggml_backend_device * dev, ggml_backend_buffer_type * buft) {
    return buft == em_buft() || device_of(dev)->iface.supports_buft(device_of(dev), buft);
}

bool device_offload_op(ggml_backend_device * dev, const ggml_tensor * t) {
    return device_of(dev)->iface.offload_op && device_of(dev)->iface.offload_op(device_of(dev), t);
}

// clang-format off
constexpr ggml_backend_device_i DEVICE = {
    /* get_name, get_description, get_memory, get_type      */ device_name, device_description, device_memory, device_type,
    /* get_props, init_backend, get_buffer_type             */ device_props, device_init, device_buft,
    /* get_host_buffer_type, buffer_from_host_ptr           */ device_host_buft, nullptr,
    /* supports_op, supports_buft, offload_op               */ device_supports_op, device_supports_buft, device_offload_op,
    /* event_new, event_free, event_synchronize             */ nullptr, nullptr, nullptr};
// clang-format on

// ---- the registry: settings of a stream's CPU side, and of a device that computes on the CPU's cores ----

template <typename F> F of_device(em_pass * p, const char * name) {
    return p->e->device.traits.shares_cpu ? em_device_function<F>(p->compute->device, name) : nullptr;
}

void set_n_threads(ggml_backend * b, int n) {
    em_pass * p = pass_of(b);
    p->cpu.threads.set_threads(p->cpu.cpu, n);
    if (auto * set = of_device<void (*)(ggml_backend *, int)>(p, "ggml_backend_set_n_threads")) {
        set(p->compute, n);
    }
}

void set_abort_callback(ggml_backend * b, ggml_abort_callback fn, void * data) {
    em_pass * p = pass_of(b);
    G.ggml_backend_cpu_set_abort_callback(p->cpu.cpu, fn, data);
    if (auto * set = of_device<void (*)(ggml_backend *, ggml_abort_callback, void *)>(p, "ggml_backend_set_abort_callback")) {
        set(p->compute, fn, data);
    }
}

const char *          reg_name(ggml_backend_reg *) { return "EdgeMoE"; }
size_t                reg_count(ggml_backend_reg *) { return 0; }
ggml_backend_device * reg_device(ggml_backend_reg *, size_t) { return nullptr; }

void * reg_proc(ggml_backend_reg *, const char * name) {
    return strcmp(name, "ggml_backend_set_n_threads") == 0        ? reinterpret_cast<void *>(set_n_threads)
           : strcmp(name, "ggml_backend_set_abort_callback") == 0 ? reinterpret_cast<void *>(set_abort_callback)
                                                                  : nullptr;
}

ggml_backend_reg registry = {
    GGML_BACKEND_API, /* get_name, get_device_count, get_device, get_proc_address */ {reg_name, reg_count, reg_device, reg_proc},
    nullptr};
} // namespace

void * em_stand_in_device(em_engine * e) {
    e->stand_in = {DEVICE, &registry, e};
    return e->device.handle ? &e->stand_in : nullptr;
}
