// Layers and operations that the CPU computes: inputs are copied to the host, and results back to the device.

#include "model/clones.h"
#include "model/expert_buffer.h"
#include "pass/pass.h"

int em_by_host(em_pass * p, em_block & b) {
    if (!em_view_start(p, b)) {
        return STATUS_ALLOC_FAILED;
    }
    em_view_wait(p);
    return em_by_host_seen(p, b);
}

int em_by_host_seen(em_pass * p, em_block & b) {
    em_block & v = p->view.block;
    if (!em_ids_ok(v.ids, b.layer->experts)) {
        return STATUS_FAILED;
    }
    em_report_view(p);
    const int status = em_host_block(&p->cpu, v);
    if (status == STATUS_SUCCESS) {
        G.ggml_backend_tensor_set_async(p->compute, b.down(), v.down()->data, 0, G.ggml_nbytes(b.down()));
        G.ggml_backend_synchronize(p->compute);
    }
    return status;
}

int em_run_unrecognised(em_pass * p, ggml_tensor * t) {
    std::vector<std::vector<char>> memory;
    std::vector<ggml_tensor>       sources(GGML_SOURCES);
    auto                           on_host = [&](ggml_tensor copy) {
        memory.emplace_back(G.ggml_nbytes(&copy) + 64);
        copy.data   = memory.back().data();
        copy.buffer = nullptr;
        return copy;
    };
    ggml_tensor node = em_leaf(*t);
    node.op          = t->op;
    for (int i = 0; i < GGML_SOURCES; ++i) {
        node.src[i] = t->src[i];
        if (t->src[i] && !em_is_ours(t->src[i])) {
            node.src[i]  = &sources[size_t(i)];
            *node.src[i] = on_host(em_leaf(*t->src[i]));
            G.ggml_backend_tensor_get_async(p->compute, t->src[i], node.src[i]->data, 0, G.ggml_nbytes(t->src[i]));
        }
    }
    G.ggml_backend_synchronize(p->compute);
    if (t->op == OP.mul_mat_id && !em_ids_ok(node.src[2], t->src[0]->ne[2])) {
        return STATUS_FAILED;
    }
    node = on_host(node);
    std::vector<char> arena(G.ggml_graph_overhead_custom(4, false) + 256);
    const em_arena    ctx   = G.ggml_init({arena.size(), arena.data(), true});
    ggml_cgraph *     graph = G.ggml_new_graph_custom(ctx, 4, false);
    G.ggml_graph_add_node(graph, &node);
    const int status = G.ggml_backend_graph_compute(p->cpu.cpu, graph);
    if (status == STATUS_SUCCESS) {
        G.ggml_backend_tensor_set_async(p->compute, t, node.data, 0, G.ggml_nbytes(t));
        G.ggml_backend_synchronize(p->compute);
    }
    return status;
}
