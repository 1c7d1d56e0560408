// An operation on experts that no block holds: on the CPU, its inputs brought there and its result back.

#include "model/expert_buffer.h"
#include "pass/pass.h"

int em_run_unrecognised(em_pass * p, ggml_tensor * t) {
    std::vector<std::vector<char>> memory;
    std::vector<ggml_tensor>       sources(GGML_SOURCES);
    ggml_tensor                    node = *t;
    auto room = [&](const ggml_tensor * x) {
        memory.emplace_back(G.ggml_nbytes(x) + 64);
        return memory.back().data();
    };
    for (int i = 0; i < GGML_SOURCES; ++i) {
        if (!t->src[i] || em_is_ours(t->src[i])) {
            continue;
        }
        sources[size_t(i)] = *t->src[i];
        sources[size_t(i)].data = room(t->src[i]);
        sources[size_t(i)].buffer = nullptr, sources[size_t(i)].view_src = nullptr, sources[size_t(i)].view_offs = 0,
        sources[size_t(i)].op = OP.none;
        G.ggml_backend_tensor_get_async(p->inner, t->src[i], sources[size_t(i)].data, 0, G.ggml_nbytes(t->src[i]));
        node.src[i] = &sources[size_t(i)];
    }
    G.ggml_backend_synchronize(p->inner);
    if (t->op == OP.mul_mat_id && !em_ids_ok(&sources[2], t->src[0]->ne[2])) {
        return STATUS_FAILED;
    }
    node.data = room(t), node.buffer = nullptr, node.view_src = nullptr, node.view_offs = 0;
    std::vector<char> arena(G.ggml_graph_overhead_custom(4, false) + 256);
    ggml_context *    ctx   = G.ggml_init({arena.size(), arena.data(), true});
    ggml_cgraph *     graph = G.ggml_new_graph_custom(ctx, 4, false);
    G.ggml_graph_add_node(graph, &node);
    const int status = G.ggml_backend_graph_compute(p->cpu.cpu, graph);
    G.ggml_free(ctx);
    if (status == STATUS_SUCCESS) {
        G.ggml_backend_tensor_set_async(p->inner, t, node.data, 0, G.ggml_nbytes(t));
        G.ggml_backend_synchronize(p->inner);
    }
    return status;
}
