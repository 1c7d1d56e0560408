// A layer of many tokens: put together in the stage, half of it copied while the other half computes.

#include "pass/pass.h"

#include <algorithm>

namespace {

// With so many picks per expert practically every one is used, and the next layer's can be sent before they are known.
constexpr int64_t PICKS_FOR_ALL = 16;

bool send_part(em_pass * p, const em_stage_plan & plan, em_stage & stage, em_stage_part part) {
    em_send_runs(p, plan, stage, part);
    return em_sent(p, part);
}

// Hot experts to the first places of the stage, on the device.
void copy_hot(em_pass * p, const em_layer_t & layer, em_stage & stage, em_stage_part part) {
    for (int i = 0; i < PROJ_COUNT; ++i) {
        if ((i == PROJ_DOWN) != (part == EM_SECOND)) {
            continue;
        }
        for (auto [from, to] : {std::pair(layer.residents.places.weight[i], stage.places.weight[i]), std::pair(layer.residents.places.bias[i], stage.places.bias[i])}) {
            if (from) {
                ggml_tensor target = *from; // as many places
                target.data = to->data, target.buffer = to->buffer, target.view_src = nullptr;
                G.ggml_backend_tensor_copy_async(p->inner, p->inner, from, &target);
            }
        }
    }
}

// The ids are wanted for the routing history, when there is time.
void note_routing(em_pass * p, em_block & b, int turn) {
    p->prompt.routing.push_back({b.layer, *b.ids});
    ggml_tensor & ids = p->prompt.routing.back().ids;
    ids.data = p->memory.prompt_ids.base + size_t(turn) * p->memory.ids_stride;
    G.ggml_backend_tensor_get_async(p->inner, b.ids, ids.data, 0, G.ggml_nbytes(b.ids));
    em_look_ahead(p->e->prefetch, b);
}

int all_hot(em_pass * p, em_block & b, int turn) {
    std::unique_lock<std::mutex> lock(b.layer->residents.mutex);
    const bool                   started = em_start_by_table(p, b);
    lock.unlock();
    if (!started) {
        return em_by_host_unforced(p, b);
    }
    p->e->count.prefill_hits += b.k * b.tokens;
    note_routing(p, b, turn);
    return STATUS_SUCCESS;
}

// A layer over the stage.
struct staged {
    em_pass *        p;
    em_block &       b;
    int              turn;
    em_stage_plan &  plan, & next_plan;
    em_stage *       stage, * next_stage; // of the layer after it; null: that one needs none
    em_layer_t *     next;
    bool             arrives = true, ahead = false; // what was sent; something of the next layer was
    int              status  = STATUS_SUCCESS;

    // The device's part. `sent`: what is to be sent now, nothing where all of it was; null: everything.
    void start(bool send, const std::vector<uint8_t> * sent, bool send_next) {
        em_layer_t & layer = *b.layer;
        const size_t l     = size_t(layer.index);
        if (send) {
            em_host_register(p->e->residence, layer);
            em_plan_stage(plan, layer, sent);
            const bool first = send_part(p, plan, *stage, EM_FIRST), second = send_part(p, plan, *stage, EM_SECOND);
            arrives = first && second;
            if (!arrives) {
                return;
            }
        }
        note_routing(p, b, turn);
        int32_t * table = em_host_table(p, l, true);
        std::copy(plan.place.begin(), plan.place.end(), table);
        G.ggml_backend_tensor_set_async(p->inner, p->tables.stage[l], table, 0, plan.place.size() * 4);
        ahead = send_next && next_stage;
        if (ahead) {
            em_host_register(p->e->residence, *next);
            next_plan.sent = 0;
            em_plan_stage(next_plan, *next, nullptr);
        }
        for (em_stage_part part : {EM_FIRST, EM_SECOND}) {
            if (plan.hot) {
                copy_hot(p, layer, *stage, part);
            }
            if (p->events) {
                G.ggml_backend_event_wait(p->inner, p->sync.filled[part]);
            }
            status = G.ggml_backend_graph_compute_async(p->inner, p->graphs.staged[l]->part[part]);
            if (status != STATUS_SUCCESS) {
                return;
            }
            if (p->events) {
                G.ggml_backend_event_record(p->sync.vacant[part], p->inner);
            }
            ahead = ahead && send_part(p, next_plan, *next_stage, part);
        }
    }

    // The CPU's part, with the device's meanwhile.
    void compute() {
        const bool any = arrives && status == STATUS_SUCCESS && !p->misses.cold.empty();
        if (any) {
            status = em_cold_pairs(&p->cpu, p->view.block, p->misses.cold, em_cold::OF_A_PROMPT);
        }
        p->prompt.sharing.cpu_end = em_now_ns();
        if (any && status == STATUS_SUCCESS) {
            status = em_send_rows(p, b);
        }
    }

    void count() const {
        em_counters & c      = p->e->count;
        const int64_t missed = int64_t(p->misses.cold.size()), met = b.k * b.tokens - missed;
        const int64_t there  = plan.sent ? met * plan.sent / (plan.sent + plan.hot) : 0; // in proportion to experts
        c.prefill_misses += missed;
        c.prefill_streamed += there;
        c.prefill_hits += met - there;
    }
};

} // namespace

int em_prompt_layer(em_pass * p, em_block & b, const em_block * next, int turn) {
    em_engine *  e     = p->e;
    em_layer_t & layer = *b.layer;
    em_force_ids(p, b);
    if (layer.all_resident()) {
        return all_hot(p, b, turn);
    }
    em_layer_t * after = next && !next->layer->all_resident() ? next->layer : nullptr;
    staged s{p, b, turn, p->prompt.plan[turn % 2], p->prompt.plan[(turn + 1) % 2], em_stage_whole(p, layer), after ? em_stage_whole(p, *after) : nullptr, after};
    const bool all   = b.k * b.tokens >= PICKS_FOR_ALL * layer.experts;
    const bool known = s.plan.layer == layer.index; // something of it was sent ahead
    const bool sent  = known && s.plan.whole;
    const bool seen  = !all && !sent; // else the ids are not needed
    double     idle  = 0;
    if (seen) {
        if (!em_view_start(p, b)) {
            return STATUS_ALLOC_FAILED;
        }
        idle = em_wait_and_learn(p, turn);
        if (!em_ids_ok(p->view.block.ids, layer.experts)) {
            return STATUS_FAILED;
        }
    }
    if (!em_graph_for(p, *p->graphs.staged[size_t(layer.index)], b, {&s.stage->places, p->tables.stage[size_t(layer.index)], true, false})) {
        s.plan.layer = -1;
        return seen ? em_by_host_seen(p, b) : em_by_host_unforced(p, b);
    }
    if (!known || (all && !sent)) { // nothing that counts
        s.plan.sent = 0;
        s.plan.sent_early.assign(size_t(layer.experts), 0);
    }
    p->misses.cold.clear();
    std::vector<uint8_t> chosen;
    if (seen) {
        chosen = em_share_out(p, layer, p->view.block.ids, s.plan, idle);
        p->prompt.sharing.turn = turn + 1;
    }
    s.start(!sent, seen ? &chosen : nullptr, all);
    s.compute();
    s.plan.layer = -1;
    if (!s.arrives) {
        e->count.device_fallbacks += 1;
        return seen ? em_by_host_seen(p, b) : em_by_host_unforced(p, b);
    }
    if (s.status != STATUS_SUCCESS) {
        return s.status;
    }
    if (seen && s.next_stage && p->events) {
        em_send_early(p, s.next_plan, *next, *s.next_stage);
        s.ahead = true;
    }
    s.next_plan.layer = s.ahead ? s.next_plan.layer : -1;
    // So that a stop is soon: no more than two layers are under way.
    if (p->events) {
        G.ggml_backend_event_record(p->sync.done[turn % 2], p->inner);
        if (turn > 0) {
            G.ggml_backend_event_synchronize(p->sync.done[(turn + 1) % 2]);
        }
    }
    s.count();
    return STATUS_SUCCESS;
}

void em_end_prompt(em_pass * p) {
    G.ggml_backend_synchronize(p->inner);
    G.ggml_backend_synchronize(p->e->device.stream);
    p->prompt.plan[0].layer = p->prompt.plan[1].layer = -1;
    p->prompt.sharing.turn = -1;
    em_report_prompt(p);
}
