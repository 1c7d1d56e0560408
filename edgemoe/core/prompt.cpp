// A layer of many tokens: put together in the stage, half of it copied while the other half computes.

#include "pass.h"

#include <algorithm>
#include <cstring>

namespace {

// With so many picks per expert practically every one is used, and the next layer's can be sent before they are known.
constexpr int64_t PICKS_FOR_ALL = 16;

int by_host_unforced(em_pass * p, em_block & b) {
    if (!em_view_start(p, b)) {
        return STATUS_ALLOC_FAILED;
    }
    em_view_wait(p);
    return em_by_host_seen(p, b);
}

} // namespace

int em_by_host(em_pass * p, em_block & b) {
    em_force_ids(p, b);
    return by_host_unforced(p, b);
}

void em_record_prompt(em_pass * p) {
    for (const auto & seen : p->prompt) {
        if (em_ids_ok(&seen.ids, seen.layer->experts)) {
            em_record(p->e, seen.layer->block, &seen.ids);
        }
    }
    p->prompt.clear();
}

int em_by_host_seen(em_pass * p, em_block & b) {
    em_block & v = p->view.block;
    if (!em_ids_ok(v.ids, b.layer->experts)) {
        return STATUS_FAILED;
    }
    em_view_tell(p);
    const int status = em_host_block(&p->cpu, v);
    if (status == STATUS_SUCCESS) {
        G.ggml_backend_tensor_set_async(p->inner, b.down(), v.down()->data, 0, G.ggml_nbytes(b.down()));
        G.ggml_backend_synchronize(p->inner);
    }
    return status;
}

em_stage * em_stage_whole(em_pass * p, const em_layer_t & layer) {
    em_stage * stage = p->e->options.stream_tokens > 0 && layer.device_can != 0 ? em_stage_for(p->e, layer) : nullptr;
    return stage && stage->places.count >= layer.experts ? stage : nullptr;
}

namespace {

// `sent`: of each expert whether it is to be sent, should it not be hot; the others have places all the same, and rows that are
// replaced. Null: all are.
void make_plan(em_stage_plan & plan, const em_layer_t & layer, const std::vector<uint8_t> * sent) {
    const int32_t slots = int32_t(layer.slots.size());
    plan.layer = layer.index;
    plan.hot   = layer.resident == slots ? slots : 0; // a slot that is being filled must not be copied
    plan.place.assign(size_t(layer.experts), 0);
    plan.runs.clear();
    int32_t at = plan.hot;
    for (int32_t x = 0; x < layer.experts; ++x) {
        const int32_t slot = plan.hot ? layer.slot_of[size_t(x)] : -1;
        if (slot >= 0) {
            plan.place[size_t(x)] = slot;
            continue;
        }
        plan.place[size_t(x)] = at;
        if (sent && !(*sent)[size_t(x)]) {
            at += 1;
            continue;
        }
        if (!plan.runs.empty() && plan.runs.back().from + plan.runs.back().n == x) {
            plan.runs.back().n += 1;
        } else {
            plan.runs.push_back({x, 1, at});
        }
        at += 1;
    }
}

// Which experts of a short prompt are to be sent to the stage: those that are used, but for the ones with the fewest tokens, as
// long as the CPU computes those sooner than the others are copied. p->cold gets the CPU's pairs.
std::vector<uint8_t> share_out(em_pass * p, const em_layer_t & layer, const ggml_tensor * ids, bool hot_too) {
    constexpr double FIRST_CPU_RATE = 20, FIRST_LINK_RATE = 20; // bytes a ns, until they are measured
    em_engine *          e = p->e;
    std::vector<int64_t> tokens(size_t(layer.experts));
    for (int64_t t = 0; t < ids->ne[1]; ++t) {
        for (int64_t i = 0; i < ids->ne[0]; ++i) {
            tokens[size_t(em_ids_row(ids, t)[i])] += 1;
        }
    }
    std::vector<int32_t> cold;
    for (int32_t x = 0; x < layer.experts; ++x) {
        if (tokens[size_t(x)] && (hot_too || layer.slot_of[size_t(x)] < 0)) {
            cold.push_back(x);
        }
    }
    std::sort(cold.begin(), cold.end(), [&](int32_t a, int32_t b) {
        return tokens[size_t(a)] != tokens[size_t(b)] ? tokens[size_t(a)] < tokens[size_t(b)] : a < b;
    });
    const double bytes = double(layer.expert_bytes);
    const double pair  = e->short_pair_ns > 0 ? e->short_pair_ns : bytes / FIRST_CPU_RATE;
    const double copy  = e->copy_ns_per_byte > 0 ? e->copy_ns_per_byte * bytes : bytes / FIRST_LINK_RATE;
    size_t kept = 0;
    double cpu  = 0;
    while (kept < cold.size()) {
        const double more = cpu + pair * double(tokens[size_t(cold[kept])]);
        if (more > copy * double(cold.size() - kept - 1)) {
            break;
        }
        cpu = more;
        kept += 1;
    }
    std::vector<uint8_t> sent(size_t(layer.experts));
    for (size_t i = kept; i < cold.size(); ++i) {
        sent[size_t(cold[i])] = 1;
    }
    p->cold.clear();
    std::vector<uint8_t> ours(size_t(layer.experts));
    for (size_t i = 0; i < kept; ++i) {
        ours[size_t(cold[i])] = 1;
    }
    for (int64_t t = 0; t < ids->ne[1]; ++t) {
        const int32_t * row = em_ids_row(ids, t);
        for (int64_t i = 0; i < ids->ne[0]; ++i) {
            if (ours[size_t(row[i])]) {
                p->cold.push_back({int32_t(t), int32_t(i), row[i], -1});
            }
        }
    }
    std::stable_sort(p->cold.begin(), p->cold.end(), [](const em_pair & x, const em_pair & y) { return x.expert < y.expert; });
    return sent;
}

bool send_part(em_pass * p, const em_stage_plan & plan, em_stage & stage, em_stage_part part) {
    em_engine *        e     = p->e;
    const em_layer_t & layer = *e->layers[size_t(plan.layer)];
    if (p->events) {
        G.ggml_backend_event_wait(e->stream, p->vacant[part]);
    } else {
        G.ggml_backend_synchronize(p->inner);
    }
    for (int i = 0; i < PROJ_COUNT; ++i) {
        if ((i == PROJ_DOWN) != (part == EM_SECOND) || !layer.weight[i]) {
            continue;
        }
        for (const em_stage_run & run : plan.runs) {
            em_send_run(p, layer.window[i], layer.weight[i], stage.places.weight[i], layer.weight[i]->nb[2], run);
            if (layer.bias[i]) {
                em_send_run(p, {}, layer.bias[i], stage.places.bias[i], layer.bias[i]->nb[1], run);
            }
            e->count.streamed_bytes += int64_t(layer.weight[i]->nb[2]) * run.n;
        }
    }
    return em_sent(p, part);
}

// Hot experts to the first places of the stage, on the device.
void copy_hot(em_pass * p, const em_layer_t & layer, em_stage & stage, em_stage_part part) {
    for (int i = 0; i < PROJ_COUNT; ++i) {
        if ((i == PROJ_DOWN) != (part == EM_SECOND)) {
            continue;
        }
        for (auto [from, to] : {std::pair(layer.places.weight[i], stage.places.weight[i]), std::pair(layer.places.bias[i], stage.places.bias[i])}) {
            if (from) {
                ggml_tensor target = *from; // as many places
                target.data = to->data, target.buffer = to->buffer, target.view_src = nullptr;
                G.ggml_backend_tensor_copy_async(p->inner, p->inner, from, &target);
            }
        }
    }
}

} // namespace

int em_many_tokens(em_pass * p, em_block & b, const em_block * next, int turn) {
    em_engine *  e     = p->e;
    em_layer_t & layer = *b.layer;
    const size_t l     = size_t(layer.index);
    em_force_ids(p, b);
    // The ids are wanted for the routing history, when there is time.
    auto note_routing = [&] {
        p->prompt.push_back({&layer, *b.ids});
        ggml_tensor & ids = p->prompt.back().ids;
        ids.data = p->prompt_ids.base + size_t(turn) * p->ids_stride;
        G.ggml_backend_tensor_get_async(p->inner, b.ids, ids.data, 0, G.ggml_nbytes(b.ids));
        em_look_ahead(e, b);
    };
    if (em_all_resident(layer)) {
        std::unique_lock<std::mutex> lock(layer.mutex);
        const bool                   started = em_start_by_table(p, b);
        lock.unlock();
        if (!started) {
            return by_host_unforced(p, b);
        }
        e->count.prefill_hits += b.k * b.tokens;
        note_routing();
        return STATUS_SUCCESS;
    }
    em_stage *   stage = em_stage_whole(p, layer);
    em_stage_plan & plan  = p->plan[turn % 2];
    const bool   all   = b.k * b.tokens >= PICKS_FOR_ALL * layer.experts;
    const bool   seen  = !all && plan.layer != layer.index; // else it was sent ahead, or the ids are not needed
    if (seen) {
        if (!em_view_start(p, b)) {
            return STATUS_ALLOC_FAILED;
        }
        em_view_wait(p);
        if (!em_ids_ok(p->view.block.ids, layer.experts)) {
            return STATUS_FAILED;
        }
    }
    if (!em_graph_for(p, *p->staged[l], b, {&stage->places, p->stage_table[l], true, false})) {
        plan.layer = -1;
        return seen ? em_by_host_seen(p, b) : by_host_unforced(p, b);
    }
    p->cold.clear();
    if (plan.layer != layer.index) { // not sent ahead
        std::vector<uint8_t> chosen;
        if (seen) {
            const bool filling = layer.resident != int32_t(layer.slots.size()); // its slots are not copied then
            chosen = share_out(p, layer, p->view.block.ids, filling);
        }
        em_host_register(e, layer);
        make_plan(plan, layer, seen ? &chosen : nullptr);
        const bool first = send_part(p, plan, *stage, EM_FIRST), second = send_part(p, plan, *stage, EM_SECOND);
        if (!first || !second) {
            plan.layer = -1;
            e->count.device_fallbacks += 1;
            return seen ? em_by_host_seen(p, b) : by_host_unforced(p, b);
        }
    }
    note_routing();
    int32_t * table = em_host_table(p, l, true);
    std::copy(plan.place.begin(), plan.place.end(), table);
    G.ggml_backend_tensor_set_async(p->inner, p->stage_table[l], table, 0, plan.place.size() * 4);
    em_stage_plan & ahead = p->plan[(turn + 1) % 2];
    em_stage *   other = next && all && !em_all_resident(*next->layer) ? em_stage_whole(p, *next->layer) : nullptr;
    bool         more  = other != nullptr;
    if (more) {
        em_host_register(e, *next->layer);
        make_plan(ahead, *next->layer, nullptr);
    }
    for (em_stage_part part : {EM_FIRST, EM_SECOND}) {
        if (plan.hot) {
            copy_hot(p, layer, *stage, part);
        }
        if (p->events) {
            G.ggml_backend_event_wait(p->inner, p->filled[part]);
        }
        const int status = G.ggml_backend_graph_compute_async(p->inner, p->staged[l]->part[part]);
        if (status != STATUS_SUCCESS) {
            return status;
        }
        if (p->events) {
            G.ggml_backend_event_record(p->vacant[part], p->inner);
        }
        more = more && send_part(p, ahead, *other, part);
    }
    if (!p->cold.empty()) {
        const int status = em_cold_pairs(&p->cpu, p->view.block, p->cold, em_cold::OF_A_PROMPT);
        if (status != STATUS_SUCCESS) {
            return status;
        }
        em_send_rows(p, b);
    }
    plan.layer = -1;
    ahead.layer = more ? ahead.layer : -1;
    // So that a stop is soon: no more than two layers are under way.
    if (p->events) {
        G.ggml_backend_event_record(p->done[turn % 2], p->inner);
        if (turn > 0) {
            G.ggml_backend_event_synchronize(p->done[(turn + 1) % 2]);
        }
    }
    int64_t streamed = 0;
    for (const em_stage_run & run : plan.runs) {
        streamed += run.n;
    }
    const int64_t on_cpu = int64_t(p->cold.size()), pairs = b.k * b.tokens - on_cpu;
    const int64_t there = streamed + plan.hot ? pairs * streamed / (streamed + plan.hot) : 0; // in proportion to experts
    e->count.prefill_misses += on_cpu;
    e->count.prefill_streamed += there;
    e->count.prefill_hits += pairs - there;
    return STATUS_SUCCESS;
}

void em_end_prompt(em_pass * p) {
    G.ggml_backend_synchronize(p->inner);
    G.ggml_backend_synchronize(p->e->stream);
    p->plan[0].layer = p->plan[1].layer = -1;
    em_record_prompt(p);
}
