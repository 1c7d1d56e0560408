// The expert device as llama.cpp sees it: an accelerator (ACCEL) with a host buffer type of its own.
//
// llama.cpp places the expert tensors there straight from its mmap, and gives us the operations on them. On a thread
// that loads a model of ours without a stand-in, the device reports the type ACCEL, on every other thread the type CPU. llama.cpp
// ignores CPUs, so a plain llama_cpp.Llama never opens the device.
// If a GPU computes the rest of the model, the device only holds the tensors, and a pass computes (pass/pass.h).
//
// At the end: the registry through which ggml meets the accelerator and sim. It is fixed after its first use. No lock.

#include "device/sim.h"
#include "model/expert_buffer.h"
#include "split/split.h"

namespace {
const uint8_t GUID[16] = {0xed, 0x9e, 0x30, 0xe0, 0x11, 0x22, 0x4d, 0x0e, 0x9a, 0x51, 0x70, 0x6f, 0x72, 0x74, 0x73, 0x01};

em_context * context_of(ggml_backend * b) { return static_cast<em_context *>(b->context); }
const char * backend_name(ggml_backend *) { return "EdgeMoE"; }

void backend_free(ggml_backend * b) {
    delete context_of(b);
    delete b;
}

int          backend_compute(ggml_backend * b, ggml_cgraph * graph) { return em_graph_compute(context_of(b), graph); }
const char * device_name(ggml_backend_device *) { return "EdgeMoE"; }
const char * device_description(ggml_backend_device *) { return "EdgeMoE expert placement"; }
void         device_memory(ggml_backend_device *, size_t * free, size_t * total) { *free = *total = 0; }
int          device_type(ggml_backend_device *) { return em_accelerates() ? DEV_ACCEL : DEV_CPU; }

void device_props(ggml_backend_device * dev, ggml_backend_dev_props * props) {
    const ggml_backend_dev_caps caps = {false, false, /* buffer_from_host_ptr */ true, false, /* mmap_support */ true};
    *props                           = {device_name(dev), device_description(dev), 0, 0, device_type(dev), nullptr, caps};
}

// clang-format off
constexpr ggml_backend_i STREAM = {
    /* get_name, free, set_tensor_async, get_tensor_async             */ backend_name, backend_free, nullptr, nullptr,
    /* set_tensor_2d_async, get_tensor_2d_async, cpy_tensor_async     */ nullptr, nullptr, nullptr,
    /* synchronize, graph_plan_create, _free, _update, _compute       */ nullptr, nullptr, nullptr, nullptr, nullptr,
    /* graph_compute, event_record, event_wait, graph_optimize        */ backend_compute, nullptr, nullptr, nullptr};
// clang-format on

ggml_backend * device_init(ggml_backend_device * dev, const char *) {
    auto c = std::make_unique<em_context>();
    c->cpu = G.ggml_backend_cpu_init();
    return c->cpu ? new ggml_backend{GUID, STREAM, dev, c.release()} : nullptr;
}

ggml_backend_buffer_type * device_buft(ggml_backend_device *) { return em_buft(); }

ggml_backend_buffer * device_from_host(ggml_backend_device *, void * ptr, size_t size, size_t) {
    return em_expert_buffer_from(ptr, size);
}

const ggml_tensor * through_views(const ggml_tensor * t) {
    while (t && (t->op == OP.view || t->op == OP.reshape) && t->src[0]) {
        t = t->src[0];
    }
    return t;
}

// Whether t comes from an expert projection of ours by operations that work on each pair alone. Adds of two different rows, such
// as the sum over the k experts, are not followed: a residual stays with the device it is on.
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

// Recognises the sum over the k experts: the first add has two views of the weighted rows, each later add one.
bool is_expert_sum(const ggml_tensor * t) {
    const ggml_tensor * term = t->src[1];
    if (!term || term->op != OP.view || !term->src[0] || term->src[0]->ne[1] < 2) {
        return false;
    }
    const ggml_tensor * rows = term->src[0];
    const ggml_tensor * left = t->src[0];
    const bool chained = left->op == OP.view
                             ? left->src[0] == rows
                             : left->op == OP.add && left->src[1] && left->src[1]->op == OP.view && left->src[1]->src[0] == rows;
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

ggml_backend_device device = {
    {/* get_name, get_description, get_memory, get_type      */ device_name, device_description, device_memory, device_type,
     /* get_props, init_backend, get_buffer_type             */ device_props, device_init, device_buft,
     /* get_host_buffer_type, buffer_from_host_ptr           */ nullptr, device_from_host,
     /* supports_op, supports_buft, offload_op               */ device_supports_op, device_supports_buft, nullptr,
     /* event_new, event_free, event_synchronize             */ nullptr, nullptr, nullptr},
    nullptr,
    nullptr};

// ---- the registry ----

// Both devices have one registry, so its functions get the streams of both.
bool is_sim(const ggml_backend * b) { return b->device == em_sim_device(); }

void set_n_threads(ggml_backend * b, int n) {
    if (is_sim(b)) {
        em_sim_set_threads(b, n);
    } else {
        context_of(b)->threads.set_threads(context_of(b)->cpu, n);
    }
}

void set_abort_callback(ggml_backend * b, ggml_abort_callback fn, void * data) {
    if (is_sim(b)) {
        em_sim_set_abort(b, fn, data);
    } else {
        G.ggml_backend_cpu_set_abort_callback(context_of(b)->cpu, fn, data);
    }
}

const char *          reg_name(ggml_backend_reg *) { return "EdgeMoE"; }
size_t                reg_count(ggml_backend_reg *) { return 2; }
ggml_backend_device * reg_device(ggml_backend_reg *, size_t i) { return i == 0 ? &device : em_sim_device(); }

void * reg_proc(ggml_backend_reg *, const char * name) {
    const struct {
        const char * name;
        void *       address;
    } functions[] = {
        {"ggml_backend_set_n_threads", reinterpret_cast<void *>(set_n_threads)},
        {"ggml_backend_set_abort_callback", reinterpret_cast<void *>(set_abort_callback)},
        {"ggml_backend_register_host_buffer", reinterpret_cast<void *>(em_sim_register)}, // ggml-cuda's names
        {"ggml_backend_unregister_host_buffer", reinterpret_cast<void *>(em_sim_unregister)},
        {"edgemoe_take_error", reinterpret_cast<void *>(em_sim_take_error)},
    };
    for (const auto & f : functions) {
        if (strcmp(name, f.name) == 0) {
            return f.address;
        }
    }
    return nullptr;
}

ggml_backend_reg * registry() {
    static ggml_backend_reg reg = {
        GGML_BACKEND_API,
        /* get_name, get_device_count, get_device, get_proc_address */ {reg_name, reg_count, reg_device, reg_proc}, nullptr};
    device.reg           = &reg;
    em_sim_device()->reg = &reg;
    em_buft()->device    = &device;
    return &reg;
}
} // namespace

void * ggml_backend_init(void) { return em_host_checked() ? registry() : nullptr; }
void * em_buffer_type(void) { return em_buft(); }
