// What the CPU sees of a block whose tensors lie on the device.

#include "model/expert_buffer.h"
#include "pass/pass.h"

#include <algorithm>
#include <cstring>

namespace {

ggml_tensor aside_copy(em_pass * p, const em_host_view::arrival & a) {
    ggml_tensor t = *a.from;
    t.data      = p->memory.aside.base + a.aside;
    t.buffer    = p->memory.aside.buffer;
    t.view_src  = nullptr;
    t.view_offs = 0; // a device may add it to `data`
    return t;
}

// llama.cpp gives a block's nodes the memory of inputs that they no longer need: those are copied before they are overwritten,
// for whoever reads them later than the nodes do.
bool move_aside(em_pass * p, const em_block & b) {
    if (!em_ensure_aside(p, b, b.tokens == 1)) { // what a fetch needs later, or the copies would be lost
        return false;
    }
    auto overwritten = [&](const ggml_tensor * t) {
        const char * from = static_cast<const char *>(t->data), * to = from + G.ggml_nbytes(t);
        for (int i = 0; i < b.count; ++i) {
            const char * n = static_cast<const char *>(b.node[i]->data);
            if (n < to && from < n + G.ggml_nbytes(b.node[i])) {
                return true;
            }
        }
        return false;
    };
    size_t at = em_ids_bytes(b);
    for (int i = 0; i < p->view.arrival_count; ++i) {
        em_host_view::arrival & a = p->view.arrivals[i];
        if (overwritten(a.from)) {
            a.aside = at;
            ggml_tensor from = *a.from, to = aside_copy(p, a);
            from.buffer = em_buffer_of(&from);
            from.view_src  = nullptr;
            from.view_offs = 0;
            G.ggml_backend_tensor_copy_async(p->inner, p->inner, &from, &to);
        }
        at += em_align(G.ggml_nbytes(a.from), EM_PASS_ALIGN);
    }
    return true;
}

} // namespace

bool em_view_start(em_pass * p, const em_block & b) {
    em_host_view & v = p->view;
    const ggml_tensor * from[EM_BLOCK_NODES * 3];
    v.block = b, v.count = v.arrival_count = 0;
    auto add = [&](const ggml_tensor * t) {
        from[v.count]     = t;
        v.tensor[v.count] = *t;
        v.tensor[v.count].buffer = nullptr;
        return &v.tensor[v.count++];
    };
    auto find = [&](const ggml_tensor * t) -> ggml_tensor * {
        for (int i = 0; i < v.count; ++i) {
            if (from[i] == t) {
                return &v.tensor[i];
            }
        }
        return nullptr;
    };
    auto outside = [&](const ggml_tensor * t) {
        ggml_tensor * c = add(t);
        c->op        = OP.none;
        c->view_src  = nullptr;
        c->view_offs = 0;
        std::fill(std::begin(c->src), std::end(c->src), nullptr);
        v.arrivals[v.arrival_count++] = {t, c, 0};
        return c;
    };
    v.block.ids = outside(b.ids);
    for (int i = 0; i < b.count; ++i) {
        ggml_tensor * c = add(b.node[i]);
        v.block.node[i] = c;
        c->data         = nullptr;
        for (ggml_tensor *& s : c->src) {
            if (s && !em_is_ours(s)) {
                ggml_tensor * known = find(s);
                s = known ? known : outside(s);
            }
        }
        c->view_src = c->view_src ? find(c->view_src) : nullptr;
    }
    const size_t rows = em_align(G.ggml_nbytes(b.down()), EM_PASS_ALIGN);
    const size_t total = rows + em_inputs_bytes(p) + EM_PASS_ALIGN;
    if (total > p->memory.mirror.size) {
        G.ggml_backend_synchronize(p->inner);
        if (!p->memory.mirror.ensure(total)) {
            return false;
        }
    }
    char * at = em_align(p->memory.mirror.base, EM_PASS_ALIGN);
    v.block.down()->data = at;
    at += rows;
    if (p->early && !move_aside(p, b)) {
        return false;
    }
    ggml_backend * stream = p->inner;
    if (p->events) {
        G.ggml_backend_event_record(p->sync.ready, p->inner);
        G.ggml_backend_event_wait(p->home, p->sync.ready);
        stream = p->home;
    }
    for (int i = 0; i < v.arrival_count; ++i) {
        const em_host_view::arrival & a     = v.arrivals[i];
        const size_t               bytes = G.ggml_nbytes(a.from);
        a.to->data = at;
        if (a.aside) {
            ggml_tensor copy = aside_copy(p, a);
            G.ggml_backend_tensor_get_async(stream, &copy, at, 0, bytes);
        } else {
            G.ggml_backend_tensor_get_async(stream, a.from, at, 0, bytes);
        }
        at += em_align(bytes, EM_PASS_ALIGN);
    }
    if (p->events) {
        G.ggml_backend_event_record(p->sync.arrived, p->home);
    }
    return true;
}

void em_view_wait(em_pass * p) {
    const int64_t began = em_now_ns();
    if (p->events) {
        G.ggml_backend_event_synchronize(p->sync.arrived);
    } else {
        G.ggml_backend_synchronize(p->inner);
    }
    p->e->count.joins += 1;
    const int64_t took = em_now_ns() - began;
    p->e->count.join_ns += took;
    p->e->count.device_ns += took; // it computes what came before
}
