// The CPU's view of a block on the device.

#include "model/clones.h"
#include "model/expert_buffer.h"
#include "pass/pass.h"

static ggml_tensor scratch_copy(em_pass * p, const em_host_view::arrival & a) {
    ggml_tensor t = em_leaf(*a.from);
    t.data        = p->memory.scratch.base + a.scratch;
    t.buffer      = p->memory.scratch.buffer;
    return t;
}

// llama.cpp gives a block's nodes the memory of inputs that the nodes no longer need. Copies those inputs before they are
// overwritten, for later readers.
static bool save_inputs(em_pass * p, const em_block & b) {
    if (!em_ensure_scratch(p, b, b.tokens == 1)) { // with room for a fetch: a later growth would lose the copies
        return false;
    }
    auto overwritten = [&](const ggml_tensor * t) {
        return std::any_of(b.node, b.node + b.count, [&](const ggml_tensor * node) { return em_overlap(*t, *node); });
    };
    size_t at = em_ids_bytes(b);
    for (int i = 0; i < p->view.arrival_count; ++i) {
        em_host_view::arrival & a = p->view.arrivals[i];
        if (overwritten(a.from)) {
            a.scratch        = at;
            ggml_tensor from = em_leaf(*a.from), to = scratch_copy(p, a);
            G.ggml_backend_tensor_copy_async(p->compute, p->compute, &from, &to);
        }
        at += em_align(G.ggml_nbytes(a.from), EM_PASS_ALIGN);
    }
    return true;
}

// Copies the block's tensors; the data of the copies is to lie in host memory.
static void clone_block(em_host_view & v, const em_block & b) {
    em_clones clones;
    int       count = 0;
    auto      make  = [&](const ggml_tensor & t) {
        v.tensor[count]        = t;
        v.tensor[count].buffer = nullptr;
        return &v.tensor[count++];
    };
    auto outside = [&](const ggml_tensor * t) {
        if (em_is_ours(t)) {
            return const_cast<ggml_tensor *>(t); // weights are in host memory
        }
        v.arrivals[v.arrival_count] = {t, make(em_leaf(*t)), 0};
        return v.arrivals[v.arrival_count++].to;
    };
    v.block         = b;
    v.arrival_count = 0;
    v.block.ids     = clones.add(b.ids, outside(b.ids));
    for (int i = 0; i < b.count; ++i) {
        ggml_tensor * c = make(*b.node[i]);
        c->data         = nullptr;
        c->view_src     = c->view_src ? clones.find(c->view_src) : nullptr;
        v.block.node[i] = clones.connect(b.node[i], c, outside);
    }
}

bool em_view_start(em_pass * p, const em_block & b) {
    em_host_view & v = p->view;
    clone_block(v, b);
    const size_t rows  = em_align(G.ggml_nbytes(b.down()), EM_PASS_ALIGN);
    const size_t total = rows + em_inputs_bytes(p) + EM_PASS_ALIGN;
    if (total > p->memory.mirror.size) {
        G.ggml_backend_synchronize(p->compute);
        if (!p->memory.mirror.ensure(total)) {
            return false;
        }
    }
    char * at            = em_align(p->memory.mirror.base, EM_PASS_ALIGN);
    v.block.down()->data = at;
    at += rows;
    if (p->early && !save_inputs(p, b)) {
        return false;
    }
    ggml_backend * stream = p->events ? p->to_host : p->compute;
    em_event_record(p->sync.ready, p->compute);
    em_event_wait(p->to_host, p->sync.ready);
    for (int i = 0; i < v.arrival_count; ++i) {
        const em_host_view::arrival & a     = v.arrivals[i];
        const size_t                  bytes = G.ggml_nbytes(a.from);
        const ggml_tensor             copy  = a.scratch ? scratch_copy(p, a) : *a.from;
        a.to->data                          = at;
        G.ggml_backend_tensor_get_async(stream, &copy, at, 0, bytes);
        at += em_align(bytes, EM_PASS_ALIGN);
    }
    em_event_record(p->sync.arrived, p->to_host);
    return true;
}

void em_view_wait(em_pass * p) {
    const int64_t began = em_now_ns();
    em_event_synchronize(p->sync.arrived);
    if (!p->events) {
        G.ggml_backend_synchronize(p->compute);
    }
    const int64_t took = em_now_ns() - began;
    p->e->count.joins += 1;
    p->e->count.join_ns += took;
    p->e->count.device_ns += took; // the device computes the graph's earlier nodes
}

void em_report_prompt(em_pass * p) {
    for (const auto & seen : p->prompt.routing) {
        if (em_ids_ok(&seen.ids, seen.layer->experts)) {
            em_record(p->e->log, p->cpu.number, seen.layer->block, &seen.ids);
        }
    }
    p->prompt.routing.clear();
}

void em_report_view(em_pass * p) {
    p->view.unreported = false;
    em_report_prompt(p); // the ids of a prompt were sent before the view, so they have arrived
    em_record(p->e->log, p->cpu.number, p->view.block.layer->block, p->view.block.ids);
    em_look_ahead(p->e->prefetch, p->view.block);
}
