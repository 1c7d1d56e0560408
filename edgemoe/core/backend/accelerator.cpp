// The expert device as llama.cpp sees it: an accelerator (ACCEL) with a host buffer type of its own.
//
// llama.cpp places the expert tensors there straight from its mmap, and hands us the operations on them. To every thread that
// is not loading a model of ours the device says that it is a CPU, which llama.cpp passes over: a plain Llama never opens it.
// Where a GPU computes the rest of the model it holds the tensors only, and a pass does the rest (pass/pass.h).

#include "backend/backend.h"
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

int backend_compute(ggml_backend * b, ggml_cgraph * graph) { return em_graph_compute(context_of(b), graph); }

ggml_backend_device expert_device;

const char * device_name(ggml_backend_device *) { return "EdgeMoE"; }
const char * device_description(ggml_backend_device *) { return "EdgeMoE expert placement"; }
void device_memory(ggml_backend_device *, size_t * free, size_t * total) { *free = *total = 0; }
int  device_type(ggml_backend_device *) { return em_accelerates() ? DEV_ACCEL : DEV_CPU; }

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
    b->context             = new em_context;
    context_of(b)->cpu     = cpu;
    return b;
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

} // namespace

void em_accelerator_set_threads(ggml_backend * b, int n) { G.ggml_backend_cpu_set_n_threads(context_of(b)->cpu, n); }

void em_accelerator_set_abort(ggml_backend * b, ggml_abort_callback fn, void * data) {
    G.ggml_backend_cpu_set_abort_callback(context_of(b)->cpu, fn, data);
}

ggml_backend_device * em_accelerator() {
    [[maybe_unused]] static const bool filled = [] {
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
        return true;
    }();
    return &expert_device;
}
