// Misses that the device fetches: their experts are sent to the stage, and the pairs computed there.

#include "pass/pass.h"

#include <algorithm>

// Fetched experts take the first places of the stage.
bool em_send_fetched(em_pass * p, const em_block & b) {
    em_engine *        e       = p->e;
    const em_layer_t & layer   = *b.layer;
    const auto &       fetched = p->misses.fetched;
    em_stage *         stage   = em_stage_for(e->residence, layer);
    if (!stage || !em_graph_for(p, *p->graphs.fetched[size_t(layer.index)], b, {&stage->places, nullptr, false, true})) {
        return false;
    }
    G.ggml_backend_event_wait(e->device.stream, p->sync.vacant[EM_FIRST]);
    for (size_t n = 0; n < fetched.size(); ++n) {
        const em_stage_run run = {fetched[n].expert, 1, int32_t(n)};
        for (int i = 0; i < PROJ_COUNT; ++i) {
            if (const ggml_tensor * w = layer.weight[i]) {
                em_send_run(p, layer.window[i], w, stage->places.weight[i], w->nb[2], run);
            }
            if (const ggml_tensor * bias = layer.bias[i]) {
                em_send_run(p, {}, bias, stage->places.bias[i], bias->nb[1], run);
            }
        }
    }
    if (!em_sent(p, EM_FIRST)) {
        return false;
    }
    e->count.fetched += int64_t(fetched.size());
    e->count.streamed_bytes += int64_t(fetched.size() * layer.expert_bytes);
    return true;
}

// Once the experts have arrived, the device computes all pairs over the stage, to scratch memory, and copies the rows of the
// fetched pairs to their places.
int em_compute_fetched(em_pass * p, const em_block & b) {
    const em_device_graph & g      = *p->graphs.fetched[size_t(b.layer->index)];
    int32_t *               places = reinterpret_cast<int32_t *>(em_area_of(p, p->memory.places, em_ids_bytes(b), *b.layer));
    if (!places) {
        return STATUS_ALLOC_FAILED;
    }
    std::fill(places, places + b.k, 0);
    for (size_t n = 0; n < p->misses.fetched.size(); ++n) {
        places[p->misses.fetched[n].k] = int32_t(n);
    }
    G.ggml_backend_event_wait(p->compute, p->sync.filled[EM_FIRST]);
    em_before_sending(p);
    G.ggml_backend_tensor_set_async(p->compute, g.ids, places, 0, size_t(b.k) * 4);
    const int status = G.ggml_backend_graph_compute_async(p->compute, g.part[EM_FIRST]);
    G.ggml_backend_event_record(p->sync.vacant[EM_FIRST], p->compute);
    for (const em_pair & f : p->misses.fetched) {
        ggml_tensor from = em_some_rows(*g.down, f.k, 1), to = em_some_rows(*b.down(), f.k, 1);
        G.ggml_backend_tensor_copy_async(p->compute, p->compute, &from, &to);
    }
    return status;
}
