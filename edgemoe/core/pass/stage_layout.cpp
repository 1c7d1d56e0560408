// Places of a layer's experts in the stage, and the copies that put them there.

#include "pass/pass.h"

em_stage * em_stage_whole(em_pass * p, const em_layer_t & layer) {
    em_stage * stage = p->e->options.stream_tokens > 0 && !layer.unsupported() ? em_stage_for(p->e->residence, layer) : nullptr;
    return stage && stage->places.count >= layer.experts ? stage : nullptr;
}

void em_lay_out(em_stage_layout & layout, const em_layer_t & layer, const std::vector<uint8_t> * send) {
    const int32_t slots = int32_t(layer.residents.slots.size());
    layout.layer        = layer.index;
    layout.whole        = !send;
    layout.hot          = layer.residents.count == slots ? slots : 0; // a slot that is being filled must not be copied
    layout.place.assign(size_t(layer.experts), 0);
    layout.runs.clear();
    int32_t at = layout.hot;
    for (int32_t x = 0; x < layer.experts; ++x) {
        const int32_t slot = layout.hot ? layer.residents.slot_of[size_t(x)] : -1;
        if (slot >= 0) {
            layout.place[size_t(x)] = slot;
            continue;
        }
        layout.place[size_t(x)] = at++;
        if (send && !(*send)[size_t(x)]) {
            continue;
        }
        if (!layout.runs.empty() && layout.runs.back().from + layout.runs.back().n == x) {
            layout.runs.back().n += 1;
        } else {
            layout.runs.push_back({x, 1, layout.place[size_t(x)]});
        }
        layout.sent += 1;
    }
}

// Copies biases from the device, where all of them are. No driver pins biases in the model's file. A copy from the file would
// wait for earlier copies, and the caller would wait with it.
static void copy_bias(em_pass * p, const ggml_tensor & all, const ggml_tensor & places, const em_stage_run & run) {
    ggml_tensor from = em_some_rows(all, run.from, run.n), to = em_some_rows(places, run.place, run.n);
    G.ggml_backend_tensor_copy_async(p->e->device.stream, p->e->device.stream, &from, &to);
}

// Keeps the experts of the runs in RAM until the prompt ends: a stream of the device may read their memory later.
static bool hold_runs(em_pass * p, const em_stage_layout & layout, const em_layer_t & layer) {
    std::vector<em_pair> experts;
    for (const em_stage_run & run : layout.runs) {
        for (int32_t x = run.from; x < run.from + run.n; ++x) {
            experts.push_back({0, 0, x, -1});
        }
    }
    p->prompt.held.push_back(std::make_unique<em_ram_use>(p->e->ram, layer));
    return p->prompt.held.back()->need(experts.data(), int64_t(experts.size()));
}

void em_send_runs(em_pass * p, const em_stage_layout & layout, em_stage & stage, em_stage_part part) {
    em_engine *        e     = p->e;
    const em_layer_t & layer = *e->model.layers[size_t(layout.layer)];
    if (e->ram.on && !hold_runs(p, layout, layer)) {
        p->prompt.unread = true;
    }
    em_event_wait(e->device.stream, p->sync.vacant[part]);
    if (!p->events) {
        G.ggml_backend_synchronize(p->compute);
    }
    for (int i = 0; i < PROJ_COUNT; ++i) {
        if ((i == PROJ_DOWN) != (part == EM_SECOND) || !layer.weight[i]) {
            continue;
        }
        for (const em_stage_run & run : layout.runs) {
            em_send_run(p, layer.window[i], layer.weight[i], stage.places.weight[i], layer.weight[i]->nb[2], run);
            if (layer.bias[i]) {
                copy_bias(p, *p->tables.bias[size_t(layout.layer) * PROJ_COUNT + size_t(i)], *stage.places.bias[i], run);
            }
            e->count.streamed_bytes += int64_t(layer.weight[i]->nb[2]) * run.n;
        }
    }
}
