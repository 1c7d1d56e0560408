// A set of pairs as a graph of its own: the block's nodes again, with the pairs in the place of tokens and k.
//
// P pairs of one token have ids [P, 1] and share one activation row: ggml's fast matrix-vector shape. P pairs of several tokens
// have ids [1, P] and an activation row each. ggml would use the same kernels for the undivided block, so the results are the same.

#include "cpu/cpu.h"
#include "model/clones.h"

#include <algorithm>
#include <cstring>

namespace {

struct builder {
    builder(const em_side & side, const em_block & block, const em_pair * pairs, int64_t n)
        : side(side), block(block), pairs(pairs), n(n) {
        map.bind(*block.layer, side.weight, side.bias);
    }
    builder(const builder &) = delete;

    const em_side &  side;
    const em_block & block;
    const em_pair *  pairs;
    int64_t          n;
    const em_tail *  tail   = nullptr;
    bool             placed = false; // the rows are written to their final place
    struct rows_job { // a job of row products, as a node of the graph
        em_rows_job *       job;
        ggml_tensor *       output;
        const ggml_tensor * input;
    };
    std::vector<rows_job> jobs;
    em_arena              ctx;
    em_clones             map;
    ggml_tensor *         ids = nullptr; // places on the device, experts on the CPU; null while no projection needs them
    std::vector<std::pair<ggml_tensor *, const ggml_tensor *>> inputs; // each input and its original

    bool single() const { return block.tokens == 1; }

    ggml_tensor * make(int type, int64_t rows0, int64_t d1, int64_t d2) {
        const int64_t ne[3] = {rows0, d1, d2};
        return G.ggml_new_tensor(ctx, type, 3, ne);
    }
    ggml_tensor * make_rows(int64_t width) { return single() ? make(TYPE_F32, width, n, 1) : make(TYPE_F32, width, 1, n); }
    // A source from outside the block: the ids, or an input. An input is gathered, unless one row serves all pairs.
    ggml_tensor * outside(const ggml_tensor * t) {
        if (t == block.ids) {
            return ids = single() ? make(TYPE_I32, n, 1, 1) : make(TYPE_I32, 1, n, 1);
        }
        ggml_tensor * c = t->ne[1] == 1 && single() ? make(TYPE_F32, t->ne[0], 1, 1) : make_rows(t->ne[0]);
        inputs.push_back({c, t});
        return c;
    }
    ggml_tensor * clone(const ggml_tensor * t);
    ggml_tensor * clone_rows(const ggml_tensor * t);
    ~builder() {
        for (const rows_job & j : jobs) {
            em_rows_free(j.job);
        }
    }
    void fill_input(const ggml_tensor * input, const ggml_tensor * t, char * to) const;
    void fill_ids(int32_t * to) const;
};

// A projection as a custom operation. Two projections of the same input become one; the second's output is a leaf that
// waits for the first.
ggml_tensor * builder::clone_rows(const ggml_tensor * t) {
    ggml_tensor *       cloned = map.find(t->src[1]);
    const em_rows_place x      = cloned ? em_rows_place{cloned} : em_rows_place{t->src[1], true}; // an input is read in place
    for (const rows_job & j : jobs) {
        if (j.input == x.tensor && em_rows_second(j.job, t->src[0])) {
            ggml_tensor * c = make_rows(t->ne[0]);
            c->src[0]       = j.output;
            em_rows_connect(j.job, x, {j.output}, {c});
            return map.add(t, c);
        }
    }
    em_rows_job * job  = em_rows_new(pairs, n, t->src[0], jobs.empty() ? side.task : nullptr);
    const int64_t rows = single() ? n : 1, cols = single() ? 1 : n;
    ggml_tensor * c = G.ggml_custom_4d(ctx, TYPE_F32, t->ne[0], rows, cols, 1, &cloned, cloned ? 1 : 0, em_rows_compute, -1, job);
    jobs.push_back({job, c, x.tensor});
    placed = t == block.down();
    em_rows_connect(job, x, placed ? em_rows_place{block.down(), true} : em_rows_place{c}, {});
    if (placed && tail) {
        em_rows_sum(job, *tail);
    }
    return map.add(t, c);
}

ggml_tensor * builder::clone(const ggml_tensor * t) {
    if (side.by_rows && t->op == OP.mul_mat_id) {
        return clone_rows(t);
    }
    ggml_tensor * c = make_rows(t->ne[0]);
    c->op           = t->op;
    memcpy(c->op_params, t->op_params, sizeof(c->op_params));
    map.connect(t, c, [&](const ggml_tensor * s) { return outside(s); });
    if (t->op == OP.view) {
        memcpy(c->nb, c->src[0]->nb, sizeof(c->nb));
        c->view_src  = c->src[0];
        c->view_offs = t->view_offs;
    }
    return c;
}

void builder::fill_input(const ggml_tensor * input, const ggml_tensor * t, char * to) const {
    const char * from = static_cast<const char *>(t->data);
    const size_t row  = size_t(t->ne[0]) * 4;
    if (input->ne[1] == 1 && input->ne[2] == 1) {
        memcpy(to, from + em_row_offset(t, pairs[0]), row);
        return;
    }
    for (int64_t j = 0; j < n; ++j) {
        memcpy(to + j * row, from + em_row_offset(t, pairs[j]), row);
    }
}

void builder::fill_ids(int32_t * to) const {
    for (int64_t j = 0; j < n; ++j) {
        to[j] = side.device ? pairs[j].place : pairs[j].expert;
    }
}

constexpr size_t HOST_ALIGN = 64;

size_t host_bytes(const ggml_tensor * t) { return em_align(G.ggml_nbytes(t), HOST_ALIGN); }

// Places all tensors without memory one after the other. False: no memory.
bool place_all(builder & b) {
    em_region &  m     = *b.side.memory;
    const bool   dev   = b.side.device;
    const size_t align = dev ? G.ggml_backend_buft_get_alignment(m.buft) : HOST_ALIGN;
    auto         bytes = [&](const ggml_tensor * t) {
        return em_align(dev ? G.ggml_backend_buft_get_alloc_size(m.buft, t) : G.ggml_nbytes(t), align);
    };
    const std::vector<ggml_tensor *> all(b.map.to, b.map.to + b.map.count); // the source of a view comes before the view
    size_t                           total = align;
    for (const ggml_tensor * t : all) {
        total += t->view_src || t->data ? 0 : bytes(t);
    }
    if (!m.ensure(total)) {
        return false;
    }
    char * at = em_align(m.base, align);
    for (ggml_tensor * t : all) {
        if (t->data) {
            continue; // weights
        }
        if (t->view_src && dev) {
            G.ggml_backend_view_init(t);
        } else if (t->view_src) {
            t->data = static_cast<char *>(t->view_src->data) + t->view_offs;
        } else {
            if (dev) {
                G.ggml_backend_tensor_alloc(m.buffer, t, at);
            }
            t->data = at;
            at += bytes(t);
        }
    }
    return true;
}

// Sends inputs and ids to the device, computes, and brings the result back; everything asynchronous.
const float * run_on_device(builder & b, ggml_cgraph * graph, ggml_tensor * result, int & status) {
    size_t total = host_bytes(result) + HOST_ALIGN + em_align(size_t(b.n) * 4, HOST_ALIGN);
    for (const auto & input : b.inputs) {
        total += host_bytes(input.first);
    }
    if (!b.side.staging->ensure(total)) {
        status = STATUS_ALLOC_FAILED;
        return nullptr;
    }
    char * at   = em_align(b.side.staging->base, HOST_ALIGN);
    auto   send = [&](ggml_tensor * t) {
        G.ggml_backend_tensor_set_async(b.side.backend, t, at, 0, G.ggml_nbytes(t));
        at += host_bytes(t);
    };
    for (const auto & [input, original] : b.inputs) {
        b.fill_input(input, original, at);
        send(input);
    }
    b.fill_ids(reinterpret_cast<int32_t *>(at));
    send(b.ids);
    status = G.ggml_backend_graph_compute_async(b.side.backend, graph);
    if (status == STATUS_SUCCESS) {
        G.ggml_backend_tensor_get_async(b.side.backend, result, at, 0, G.ggml_nbytes(result));
    }
    return reinterpret_cast<const float *>(at);
}

const float * run_on_cpu(builder & b, ggml_cgraph * graph, ggml_tensor * result, int & status) {
    for (const auto & [input, original] : b.inputs) {
        b.fill_input(input, original, static_cast<char *>(input->data));
    }
    if (b.ids) {
        b.fill_ids(static_cast<int32_t *>(b.ids->data));
    }
    if (b.side.task && b.jobs.empty()) {
        b.side.task->run();
    }
    status = G.ggml_backend_graph_compute(b.side.backend, graph);
    return b.placed ? nullptr : static_cast<const float *>(result->data);
}

} // namespace

em_launch em_pairs_launch(const em_side & side, const em_block & block, const em_pair * pairs, int64_t n, const em_tail * tail) {
    constexpr size_t tensors = EM_BLOCK_NODES * 3;
    constexpr size_t nodes   = 64;
    const size_t     needed  = G.ggml_tensor_overhead() * tensors + G.ggml_graph_overhead_custom(nodes, false) + 256;

    builder   b(side, block, pairs, n);
    em_launch launch;
    b.tail = tail;
    b.ctx  = G.ggml_init({needed, nullptr, true});
    for (int i = 0; i < block.count; ++i) {
        b.clone(block.node[i]);
    }
    ggml_tensor * result = b.map.find(block.down());
    ggml_cgraph * graph  = G.ggml_new_graph_custom(b.ctx, nodes, false);
    G.ggml_build_forward_expand(graph, result);
    bool memory = place_all(b);
    for (const auto & j : b.jobs) {
        memory = memory && em_rows_ready(j.job, block, *side.prepared);
    }
    if (!memory) {
        launch.status = STATUS_ALLOC_FAILED;
    } else if (side.device && !em_device_supports(side.backend->device, *block.layer, {graph})) {
        launch.status = STATUS_FAILED;
    } else {
        launch.result = side.device ? run_on_device(b, graph, result, launch.status) : run_on_cpu(b, graph, result, launch.status);
    }
    launch.ctx = std::move(b.ctx);
    return launch;
}

void em_pairs_scatter(const em_block & block, const em_pair * pairs, int64_t n, const float * rows) {
    ggml_tensor * out   = block.down();
    const int64_t width = out->ne[0];
    char *        base  = static_cast<char *>(out->data);
    for (int64_t j = 0; j < n; ++j) {
        memcpy(base + em_row_offset(out, pairs[j]), rows + j * width, size_t(width) * 4);
    }
}
