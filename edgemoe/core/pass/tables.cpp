// Tables, biases and graphs of each layer on the device.

#include "pass/pass.h"

bool em_tables_make(em_pass * p) {
    if (p->tables.ctx) {
        return p->tables.buffer && p->tables.host.base;
    }
    em_engine *                e     = p->e;
    const size_t               n     = e->model.layers.size();
    ggml_backend_buffer_type * buft  = G.ggml_backend_dev_buffer_type(e->device.handle);
    const size_t               align = std::max(G.ggml_backend_buft_get_alignment(buft), size_t(64));
    p->tables.ctx                    = G.ggml_init({G.ggml_tensor_overhead() * n * (2 + PROJ_COUNT) + 256, nullptr, true});
    p->tables.bias.assign(n * PROJ_COUNT, nullptr);
    p->tables.puts_rows = G.ggml_backend_dev_supports_op(e->device.handle, em_put_rows(32, 2, 1).put);
    std::vector<ggml_tensor *> all;
    size_t                     device = align;
    auto                       make   = [&](int type, int64_t ne0, int64_t ne1) {
        const int64_t ne[2] = {ne0, ne1};
        ggml_tensor * t     = G.ggml_new_tensor(p->tables.ctx, type, 2, ne);
        device += em_align(G.ggml_backend_buft_get_alloc_size(buft, t), align);
        all.push_back(t);
        return t;
    };
    for (size_t l = 0; l < n; ++l) {
        const em_layer_t & layer = *e->model.layers[l];
        p->tables.slots.push_back(make(TYPE_I32, 1, layer.experts));
        p->tables.stage.push_back(make(TYPE_I32, 1, layer.experts));
        p->tables.host.stride = std::max(p->tables.host.stride, em_align(size_t(layer.experts) * 4, 64));
        for (int i = 0; i < PROJ_COUNT; ++i) {
            if (const ggml_tensor * b = layer.bias[i]) {
                p->tables.bias[l * PROJ_COUNT + size_t(i)] = make(b->type, b->ne[0], b->ne[1]);
            }
        }
        for (auto * graphs : {&p->graphs.hot, &p->graphs.staged, &p->graphs.fetched}) {
            graphs->push_back(std::make_unique<em_device_graph>());
        }
    }
    p->tables.sent_version.assign(n, -1);
    p->tables.whole_version.assign(n, -1);
    p->tables.buffer = G.ggml_backend_buft_alloc_buffer(buft, device);
    if (!p->tables.buffer || !p->tables.host.ensure(p->tables.host.stride * 2 * n)) {
        return false;
    }
    char * at = em_align(G.ggml_backend_buffer_get_base(p->tables.buffer), align);
    for (ggml_tensor * t : all) {
        G.ggml_backend_tensor_alloc(p->tables.buffer, t, at);
        at += em_align(G.ggml_backend_buft_get_alloc_size(buft, t), align);
    }
    for (size_t i = 0; i < p->tables.bias.size(); ++i) {
        if (const ggml_tensor * from = e->model.layers[i / PROJ_COUNT]->bias[i % PROJ_COUNT]) {
            G.ggml_backend_tensor_set(p->tables.bias[i], from->data, 0, G.ggml_nbytes(from));
        }
    }
    return true;
}
