// The tables through which llama.cpp sees us: a registry with two devices, the one that claims expert operations, and sim.
//
// The expert device is an accelerator (ACCEL) with a host buffer type of its own. llama.cpp places the expert tensors there
// straight from its mmap, and hands us the operations on them. To every thread that is not loading a model of ours the device
// says that it is a CPU, which llama.cpp passes over: a plain Llama never opens it. Where a GPU computes the rest of the model
// it holds the tensors only, and a pass does the rest (pass.h).

#include "engine.h"
#include "memory.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>

namespace {

thread_local em_engine * loading    = nullptr;
thread_local bool        accelerates = false; // llama.cpp sees the expert device

// ---- buffers ----

struct buffer_context {
    em_engine * engine;
    void *      base;
    bool        owned;
};

constexpr size_t ALIGNMENT = 64; // ggml-cpu's is 32, one cache line is kinder

buffer_context * context_of(ggml_backend_buffer * b) { return static_cast<buffer_context *>(b->context); }

struct tensor_name {
    int  block = -1, projection = -1;
    bool bias = false;
};

tensor_name parse_name(const char * name) {
    static const struct { const char * text; int projection; } PARTS[] = {
        {"ffn_gate_up_exps", PROJ_GATE_UP}, {"ffn_gate_exps", PROJ_GATE}, {"ffn_up_exps", PROJ_UP}, {"ffn_down_exps", PROJ_DOWN}};
    tensor_name n;
    char * end = nullptr;
    if (strncmp(name, "blk.", 4) != 0) {
        return n;
    }
    const long block = strtol(name + 4, &end, 10);
    if (end == name + 4 || *end != '.') {
        return n;
    }
    for (const auto & p : PARTS) {
        const size_t length = strlen(p.text);
        if (strncmp(end + 1, p.text, length) == 0) {
            const char * rest = end + 1 + length;
            n.bias       = strcmp(rest, ".bias") == 0;
            n.projection = n.bias || strcmp(rest, ".weight") == 0 ? p.projection : -1;
            n.block      = int(block);
            return n;
        }
    }
    return n;
}

em_layer_t * layer_for(em_engine * e, int block) {
    size_t i = 0;
    for (; i < e->layers.size() && e->layers[i]->block <= block; ++i) {
        if (e->layers[i]->block == block) {
            return e->layers[i].get();
        }
    }
    auto layer   = std::make_unique<em_layer_t>();
    layer->block = block;
    return e->layers.insert(e->layers.begin() + long(i), std::move(layer))->get();
}

int buffer_init_tensor(ggml_backend_buffer * buffer, ggml_tensor * t) {
    em_engine *       e = context_of(buffer)->engine;
    const tensor_name n = parse_name(t->name);
    if (!e || e->loaded || n.projection < 0 || n.block >= e->blocks || t->view_src) {
        return STATUS_SUCCESS;
    }
    em_layer_t * layer = layer_for(e, n.block);
    if (n.bias) {
        layer->bias[n.projection] = t;
        layer->expert_bytes += t->nb[1];
    } else {
        layer->weight[n.projection] = t;
        e->layer_of[t]              = layer;
        layer->experts              = int32_t(t->ne[2]);
        layer->expert_bytes += t->nb[2];
    }
    return STATUS_SUCCESS;
}

void buffer_free(ggml_backend_buffer * buffer) {
    buffer_context * c = context_of(buffer);
    if (c->owned) {
        em_memory_free(c->base);
    }
    delete c;
}

void * buffer_base(ggml_backend_buffer * buffer) { return context_of(buffer)->base; }

void buffer_memset(ggml_backend_buffer *, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    memset(static_cast<char *>(t->data) + offset, value, size);
}
void buffer_set(ggml_backend_buffer *, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    memcpy(static_cast<char *>(t->data) + offset, data, size);
}
void buffer_get(ggml_backend_buffer *, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    memcpy(data, static_cast<const char *>(t->data) + offset, size);
}
bool buffer_copy(ggml_backend_buffer *, const ggml_tensor * src, ggml_tensor * dst) {
    const ggml_backend_buffer * from = em_buffer_of(src);
    if (!from || !G.ggml_backend_buft_is_host(from->buft)) {
        return false;
    }
    memcpy(dst->data, src->data, G.ggml_nbytes(src));
    return true;
}
void buffer_clear(ggml_backend_buffer * buffer, uint8_t value) { memset(context_of(buffer)->base, value, buffer->size); }

ggml_backend_buffer_i buffer_table() {
    ggml_backend_buffer_i i{};
    i.free_buffer   = buffer_free;
    i.get_base      = buffer_base;
    i.init_tensor   = buffer_init_tensor;
    i.memset_tensor = buffer_memset;
    i.set_tensor    = buffer_set;
    i.get_tensor    = buffer_get;
    i.set_tensor_2d = nullptr;
    i.get_tensor_2d = nullptr;
    i.cpy_tensor    = buffer_copy;
    i.clear         = buffer_clear;
    i.reset         = nullptr;
    return i;
}

// ---- buffer type ----

const char * buft_name(ggml_backend_buffer_type *) { return "EdgeMoE"; }

ggml_backend_buffer * buft_alloc(ggml_backend_buffer_type * buft, size_t size) {
    void * base = em_memory_alloc(size + 1);
    if (!base) {
        return nullptr;
    }
    return G.ggml_backend_buffer_init(buft, buffer_table(), new buffer_context{loading, base, true}, size);
}

size_t buft_alignment(ggml_backend_buffer_type *) { return ALIGNMENT; }
bool   buft_is_host(ggml_backend_buffer_type *) { return true; }

// ---- stream ----

const uint8_t GUID[16] = {0xed, 0x9e, 0x30, 0xe0, 0x11, 0x22, 0x4d, 0x0e, 0x9a, 0x51, 0x70, 0x6f, 0x72, 0x74, 0x73, 0x01};

em_context * context_of(ggml_backend * b) { return static_cast<em_context *>(b->context); }

const char * backend_name(ggml_backend *) { return "EdgeMoE"; }

void backend_free(ggml_backend * b) {
    G.ggml_backend_free(context_of(b)->cpu);
    delete context_of(b);
    delete b;
}

int backend_compute(ggml_backend * b, ggml_cgraph * graph) { return em_graph_compute(context_of(b), graph); }

// One registry, two devices: what is set for all streams of a registry arrives here for both.
bool is_sim(const ggml_backend * b) { return b->device == em_sim_device(); }

void set_n_threads(ggml_backend * b, int n) {
    if (is_sim(b)) {
        em_sim_set_threads(b, n);
    } else {
        G.ggml_backend_cpu_set_n_threads(context_of(b)->cpu, n);
    }
}

void set_abort_callback(ggml_backend * b, ggml_abort_callback fn, void * data) {
    if (is_sim(b)) {
        em_sim_set_abort(b, fn, data);
    } else {
        G.ggml_backend_cpu_set_abort_callback(context_of(b)->cpu, fn, data);
    }
}

// ---- device ----

ggml_backend_device expert_device;

const char * device_name(ggml_backend_device *) { return "EdgeMoE"; }
const char * device_description(ggml_backend_device *) { return "EdgeMoE expert placement"; }
void device_memory(ggml_backend_device *, size_t * free, size_t * total) { *free = *total = 0; }
int  device_type(ggml_backend_device *) { return accelerates ? DEV_ACCEL : DEV_CPU; }

void device_props(ggml_backend_device * dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = device_name(dev);
    props->description = device_description(dev);
    props->type        = device_type(dev);
    props->caps.buffer_from_host_ptr = true;
    props->caps.mmap_support         = true;
}

ggml_backend * device_init(ggml_backend_device * dev, const char *) {
    ggml_backend * cpu = G.ggml_backend_cpu_init();
    if (!cpu) {
        return nullptr;
    }
    ggml_backend * b = new ggml_backend{};
    b->guid                = GUID;
    b->iface.get_name      = backend_name;
    b->iface.free          = backend_free;
    b->iface.graph_compute = backend_compute;
    b->device              = dev;
    b->context             = new em_context{cpu, {}};
    return b;
}

ggml_backend_buffer_type * device_buft(ggml_backend_device *) { return em_buft(); }

ggml_backend_buffer * device_from_host(ggml_backend_device *, void * ptr, size_t size, size_t) {
    return G.ggml_backend_buffer_init(em_buft(), buffer_table(), new buffer_context{loading, ptr, false}, size);
}

const ggml_tensor * through_views(const ggml_tensor * t) {
    while (t && (t->op == OP.view || t->op == OP.reshape) && t->src[0]) {
        t = t->src[0];
    }
    return t;
}

// Does t come from an expert projection of ours by operations that work on each pair alone? Adds of two different rows, such
// as the sum over the k experts, are followed only along views of one such tensor: a residual stays with the device it is on.
bool hangs_on_experts(const ggml_tensor * t, int depth) {
    t = through_views(t);
    if (!t || depth > 12) {
        return false;
    }
    if (t->op == OP.mul_mat_id) {
        return em_is_ours(t->src[0]);
    }
    if (t->op == OP.add_id || t->op == OP.unary || t->op == OP.clamp || t->op == OP.scale || t->op == OP.sqr) {
        return hangs_on_experts(t->src[0], depth + 1);
    }
    if (t->op == OP.glu) {
        return hangs_on_experts(t->src[0], depth + 1) || (t->src[1] && hangs_on_experts(t->src[1], depth + 1));
    }
    if (t->op == OP.mul) {
        return hangs_on_experts(t->src[0], depth + 1);
    }
    return false;
}

// The sum over the k experts: each term a view of the weighted rows, the first of them twice.
bool is_expert_sum(const ggml_tensor * t) {
    const ggml_tensor * term = t->src[1];
    if (!term || term->op != OP.view || !term->src[0] || term->src[0]->ne[1] < 2) {
        return false;
    }
    const ggml_tensor * rows = term->src[0];
    const ggml_tensor * left = t->src[0];
    const bool chained = left->op == OP.view ? left->src[0] == rows
                                             : left->op == OP.add && left->src[1] && left->src[1]->op == OP.view &&
                                                   left->src[1]->src[0] == rows;
    return chained && hangs_on_experts(rows, 0);
}

bool device_supports_op(ggml_backend_device *, const ggml_tensor * t) {
    if (t->op == OP.mul_mat_id) {
        return em_is_ours(t->src[0]) && t->src[1]->type == TYPE_F32;
    }
    if (t->op == OP.add_id) {
        return em_is_ours(t->src[1]) || hangs_on_experts(t->src[0], 0);
    }
    if (t->op == OP.glu || t->op == OP.unary || t->op == OP.clamp || t->op == OP.scale || t->op == OP.sqr || t->op == OP.mul) {
        return hangs_on_experts(t, 0);
    }
    return t->op == OP.none || t->op == OP.view || t->op == OP.reshape || (t->op == OP.add && is_expert_sum(t));
}

bool device_supports_buft(ggml_backend_device *, ggml_backend_buffer_type * buft) {
    return buft == em_buft() || G.ggml_backend_buft_is_host(buft);
}

// ---- registry ----

const char * reg_name(ggml_backend_reg *) { return "EdgeMoE"; }
size_t       reg_count(ggml_backend_reg *) { return 2; }

ggml_backend_device * reg_device(ggml_backend_reg *, size_t i) { return i == 0 ? &expert_device : em_sim_device(); }

void * reg_proc(ggml_backend_reg *, const char * name) {
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void *>(set_n_threads);
    }
    if (strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return reinterpret_cast<void *>(set_abort_callback);
    }
    if (strcmp(name, "ggml_backend_register_host_buffer") == 0) { // as ggml-cuda calls it
        return reinterpret_cast<void *>(em_sim_register);
    }
    if (strcmp(name, "ggml_backend_unregister_host_buffer") == 0) {
        return reinterpret_cast<void *>(em_sim_unregister);
    }
    if (strcmp(name, "edgemoe_take_error") == 0) {
        return reinterpret_cast<void *>(em_sim_take_error);
    }
    return nullptr;
}

std::mutex            trap_mutex;
int                   traps = 0;
thread_local int      traps_here = 0;
ggml_abort_callback_t callback_before = nullptr;

void on_abort(const char * message) {
    if (traps_here) {
        throw std::runtime_error(message);
    }
    if (callback_before) {
        callback_before(message);
    } else {
        fprintf(stderr, "%s\n", message);
    }
}

} // namespace

em_engine * em_loading() { return loading; }

void em_trap_aborts() {
    std::lock_guard<std::mutex> lock(trap_mutex);
    ++traps_here;
    if (traps++ == 0) {
        callback_before = G.ggml_set_abort_callback(on_abort);
    }
}

void em_release_aborts() {
    std::lock_guard<std::mutex> lock(trap_mutex);
    --traps_here;
    if (--traps == 0) {
        G.ggml_set_abort_callback(callback_before);
    }
}

void em_set_loading(em_engine * e, bool shown) {
    if (e && !loading) {
        em_trap_aborts();
    } else if (!e && loading) {
        em_release_aborts();
    }
    loading     = e;
    accelerates = e && !shown;
}

bool em_is_ours(const ggml_tensor * t) { return t && t->buffer && t->buffer->buft == em_buft(); }

em_layer_t * em_layer_of(const ggml_tensor * weight, em_engine ** engine) {
    em_engine * e = em_is_ours(weight) ? context_of(weight->buffer)->engine : nullptr;
    if (!e) {
        return nullptr;
    }
    *engine       = e;
    const auto it = e->layer_of.find(weight);
    return it == e->layer_of.end() ? nullptr : it->second;
}

int em_projection_of(const em_layer_t & layer, const ggml_tensor * weight) {
    for (int p = 0; p < PROJ_COUNT; ++p) {
        if (layer.weight[p] == weight) {
            return p;
        }
    }
    return -1;
}

ggml_backend_buffer_type * em_buft() {
    static ggml_backend_buffer_type buft = [] {
        ggml_backend_buffer_type b{};
        b.iface.get_name       = buft_name;
        b.iface.alloc_buffer   = buft_alloc;
        b.iface.get_alignment  = buft_alignment;
        b.iface.get_max_size   = nullptr;
        b.iface.get_alloc_size = nullptr;
        b.iface.is_host        = buft_is_host;
        b.device               = &expert_device;
        return b;
    }();
    return &buft;
}

ggml_backend_reg * em_reg() {
    static ggml_backend_reg reg = [] {
        ggml_backend_reg r{};
        r.api_version            = GGML_BACKEND_API;
        r.iface.get_name         = reg_name;
        r.iface.get_device_count = reg_count;
        r.iface.get_device       = reg_device;
        r.iface.get_proc_address = reg_proc;
        return r;
    }();
    ggml_backend_device_i & d = expert_device.iface;
    d.get_name             = device_name;
    d.get_description      = device_description;
    d.get_memory           = device_memory;
    d.get_type             = device_type;
    d.get_props            = device_props;
    d.init_backend         = device_init;
    d.get_buffer_type      = device_buft;
    d.get_host_buffer_type = nullptr;
    d.buffer_from_host_ptr = device_from_host;
    d.supports_op          = device_supports_op;
    d.supports_buft        = device_supports_buft;
    d.offload_op           = nullptr;
    d.event_new            = nullptr;
    d.event_free           = nullptr;
    d.event_synchronize    = nullptr;
    expert_device.reg      = &reg;
    return &reg;
}

void * ggml_backend_init(void) { return em_host_checked() ? em_reg() : nullptr; }
void * em_buffer_type(void) { return em_buft(); }
