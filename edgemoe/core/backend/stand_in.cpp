// A ggml device as llama.cpp sees it while a model of ours is on it: everything goes straight through, and computing to em_pass_compute.

#include "device/sim.h"
#include "model/expert_buffer.h"
#include "pass/pass.h"

#include <algorithm>
#include <cstring>

namespace {

em_pass * pass_of(ggml_backend * b) { return static_cast<em_pass *>(b->context); }

int stream_compute(ggml_backend * b, ggml_cgraph * graph) { return em_pass_compute(pass_of(b), graph); }

const uint8_t GUID[16] = {0xed, 0x9e, 0x30, 0xe0, 0x11, 0x22, 0x4d, 0x0e, 0x9a, 0x51, 0x70, 0x6f, 0x72, 0x74, 0x73, 0x03};

const char * pass_name(ggml_backend * b) { return pass_of(b)->inner->iface.get_name(pass_of(b)->inner); }

void pass_free(ggml_backend * b) {
    em_pass * p = pass_of(b);
    G.ggml_backend_synchronize(p->inner);
    em_readers_leave(p->e->residence.readers, p->inner);
    delete p;
    delete b;
}

// llama.cpp's calls between its graphs. In ggml-vulkan a wait for an event may reset the memory that the event's stream
// records into. Another thread waits in em_slots_set, so both hold the compute mutex.
std::lock_guard<std::mutex> alone(em_pass * p) { return std::lock_guard<std::mutex>(p->e->turn.computing); }

void pass_set(ggml_backend * b, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    const auto lock = alone(pass_of(b));
    G.ggml_backend_tensor_set_async(pass_of(b)->inner, t, data, offset, size);
}
void pass_get(ggml_backend * b, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    const auto lock = alone(pass_of(b));
    G.ggml_backend_tensor_get_async(pass_of(b)->inner, t, data, offset, size);
}
void pass_synchronize(ggml_backend * b) {
    const auto lock = alone(pass_of(b));
    G.ggml_backend_synchronize(pass_of(b)->inner);
}
void pass_optimize(ggml_backend * b, ggml_cgraph * graph, ggml_backend_graph_optimize_params * params) {
    const auto lock = alone(pass_of(b));
    pass_of(b)->inner->iface.graph_optimize(pass_of(b)->inner, graph, params);
}

void set_n_threads(ggml_backend * b, int n) {
    em_pass * p = pass_of(b);
    G.ggml_backend_cpu_set_n_threads(p->cpu.cpu, n);
    if (p->e->device.traits.shares_cpu) {
        em_sim_set_threads(p->inner, n);
    }
}

void set_abort_callback(ggml_backend * b, ggml_abort_callback fn, void * data) {
    em_pass * p = pass_of(b);
    G.ggml_backend_cpu_set_abort_callback(p->cpu.cpu, fn, data);
    if (p->e->device.traits.shares_cpu) {
        em_sim_set_abort(p->inner, fn, data);
    }
}

em_engine *           engine_of(ggml_backend_device * dev) { return static_cast<em_engine *>(dev->context); }
ggml_backend_device * device_of(ggml_backend_device * dev) { return engine_of(dev)->device.handle; }

const char * shown_name(ggml_backend_device * dev) { return device_of(dev)->iface.get_name(device_of(dev)); }
const char * shown_description(ggml_backend_device * dev) { return device_of(dev)->iface.get_description(device_of(dev)); }
void         shown_memory(ggml_backend_device * dev, size_t * free, size_t * total) { G.ggml_backend_dev_memory(device_of(dev), free, total); }
int          shown_type(ggml_backend_device *) { return DEV_GPU; }

void shown_props(ggml_backend_device * dev, ggml_backend_dev_props * props) {
    device_of(dev)->iface.get_props(device_of(dev), props);
    props->type                      = DEV_GPU;
    props->caps.buffer_from_host_ptr = false;
    props->caps.events               = false;
}

ggml_backend * shown_init(ggml_backend_device * dev, const char *) {
    em_engine * e = engine_of(dev);
    auto        p = std::make_unique<em_pass>();
    p->e       = e;
    p->inner   = G.ggml_backend_dev_init(e->device.handle, nullptr);
    p->home    = p->inner ? G.ggml_backend_dev_init(e->device.handle, nullptr) : nullptr;
    p->cpu.cpu = p->home ? G.ggml_backend_cpu_init() : nullptr;
    if (!p->cpu.cpu || !em_readers_join(e->residence.readers, p->inner)) {
        return nullptr;
    }
    for (ggml_backend_event ** event : p->sync.all()) {
        *event = G.ggml_backend_event_new(e->device.handle);
    }
    p->events = p->sync.ready && p->inner->iface.event_record && p->inner->iface.event_wait;
    p->early  = p->events && e->device.traits.starts_early;
    ggml_backend_buffer_type * host = G.ggml_backend_dev_host_buffer_type(e->device.handle);
    for (em_region * r : {&p->memory.mirror, &p->tables.host, &p->memory.prompt_ids, &p->memory.places, &p->memory.forced_ids}) {
        r->buft = host;
    }
    p->memory.aside.buft = G.ggml_backend_dev_buffer_type(e->device.handle);
    p->whole.marker.op = OP.none;
    std::fill(std::begin(p->whole.marker.ne), std::end(p->whole.marker.ne), 1);
    std::fill(std::begin(p->whole.marker.nb), std::end(p->whole.marker.nb), 4);
    ggml_backend * b = new ggml_backend{};
    b->guid                   = GUID;
    b->iface.get_name         = pass_name;
    b->iface.free             = pass_free;
    b->iface.set_tensor_async = pass_set;
    b->iface.get_tensor_async = pass_get;
    b->iface.synchronize      = pass_synchronize;
    b->iface.graph_compute    = stream_compute;
    b->device                 = dev;
    if (p->e->device.traits.optimizes_in_place && p->inner->iface.graph_optimize) {
        b->iface.graph_optimize = pass_optimize;
    }
    b->context                = p.release();
    return b;
}

ggml_backend_buffer_type * shown_buft(ggml_backend_device * dev) { return G.ggml_backend_dev_buffer_type(device_of(dev)); }
ggml_backend_buffer_type * shown_host_buft(ggml_backend_device * dev) { return G.ggml_backend_dev_host_buffer_type(device_of(dev)); }

bool shown_supports_op(ggml_backend_device * dev, const ggml_tensor * t) {
    if (t->op == OP.mul_mat_id && em_is_ours(t->src[0])) {
        return t->src[1]->type == TYPE_F32;
    }
    if (t->op == OP.add_id && em_is_ours(t->src[1])) {
        return true;
    }
    for (const ggml_tensor * s : t->src) {
        if (em_is_ours(s)) {
            return false;
        }
    }
    return G.ggml_backend_dev_supports_op(device_of(dev), t);
}

bool shown_supports_buft(ggml_backend_device * dev, ggml_backend_buffer_type * buft) {
    return buft == em_buft() || device_of(dev)->iface.supports_buft(device_of(dev), buft);
}

bool shown_offload_op(ggml_backend_device * dev, const ggml_tensor * t) {
    return device_of(dev)->iface.offload_op && device_of(dev)->iface.offload_op(device_of(dev), t);
}

const char *          shown_reg_name(ggml_backend_reg *) { return "EdgeMoE"; }
size_t                shown_reg_count(ggml_backend_reg *) { return 0; }
ggml_backend_device * shown_reg_device(ggml_backend_reg *, size_t) { return nullptr; }

void * shown_reg_proc(ggml_backend_reg *, const char * name) {
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void *>(set_n_threads);
    }
    if (strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return reinterpret_cast<void *>(set_abort_callback);
    }
    return nullptr;
}

ggml_backend_reg * shown_reg() {
    static ggml_backend_reg reg = [] {
        ggml_backend_reg r{};
        r.api_version            = GGML_BACKEND_API;
        r.iface.get_name         = shown_reg_name;
        r.iface.get_device_count = shown_reg_count;
        r.iface.get_device       = shown_reg_device;
        r.iface.get_proc_address = shown_reg_proc;
        return r;
    }();
    return &reg;
}

} // namespace

void * em_shown_device(em_engine * e) {
    if (!e->device.handle) {
        return nullptr;
    }
    ggml_backend_device & d = e->stand_in;
    d.iface.get_name             = shown_name;
    d.iface.get_description      = shown_description;
    d.iface.get_memory           = shown_memory;
    d.iface.get_type             = shown_type;
    d.iface.get_props            = shown_props;
    d.iface.init_backend         = shown_init;
    d.iface.get_buffer_type      = shown_buft;
    d.iface.get_host_buffer_type = shown_host_buft;
    d.iface.buffer_from_host_ptr = nullptr;
    d.iface.supports_op          = shown_supports_op;
    d.iface.supports_buft        = shown_supports_buft;
    d.iface.offload_op           = shown_offload_op;
    d.iface.event_new            = nullptr;
    d.iface.event_free           = nullptr;
    d.iface.event_synchronize    = nullptr;
    d.reg     = shown_reg();
    d.context = e;
    return &d;
}
