// A layer of many tokens: put together in the stage; one half is copied while the other half computes.

#include "pass/pass.h"

namespace {
bool send_part(em_pass * p, const em_stage_layout & layout, em_stage & stage, em_stage_part part) {
    em_send_runs(p, layout, stage, part);
    return em_sent(p, part);
}

// Copies hot experts to the first places of the stage, on the device.
void copy_hot(em_pass * p, const em_layer_t & layer, em_stage & stage, em_stage_part part) {
    for (int i = 0; i < PROJ_COUNT; ++i) {
        if ((i == PROJ_DOWN) != (part == EM_SECOND)) {
            continue;
        }
        const em_places & slots = layer.residents.places;
        for (auto [from, to] :
             {std::pair(slots.weight[i], stage.places.weight[i]), std::pair(slots.bias[i], stage.places.bias[i])}) {
            if (from) {
                ggml_tensor target = *from; // a tensor with as many places as there are slots
                target.data = to->data, target.buffer = to->buffer, target.view_src = nullptr;
                G.ggml_backend_tensor_copy_async(p->compute, p->compute, from, &target);
            }
        }
    }
}

// Copies the ids for the routing history, without a wait.
void note_routing(em_pass * p, em_block & b, int turn) {
    p->prompt.routing.push_back({b.layer, *b.ids});
    ggml_tensor & ids = p->prompt.routing.back().ids;
    ids.data          = p->memory.prompt_ids.base + size_t(turn) * p->memory.prompt_ids.stride;
    G.ggml_backend_tensor_get_async(p->compute, b.ids, ids.data, 0, G.ggml_nbytes(b.ids));
    em_look_ahead(p->e->prefetch, b);
}

int all_hot(em_pass * p, em_block & b, int turn) {
    const auto start = [&] {
        std::lock_guard<std::mutex> lock(b.layer->residents.mutex);
        return em_start_by_table(p, b);
    };
    if (!start()) {
        return em_by_host(p, b);
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
    em_stage_layout &layout, &next_layout;
    em_stage *       stage, *next_stage; // of this layer; of the layer after it, null if that layer needs none
    em_layer_t *     next;
    bool             arrives   = true;  // no copy to the stage has failed
    bool             sent_next = false; // something of the next layer was sent
    int              status    = STATUS_SUCCESS;

    // Starts the device's part. `send`: the layer was not sent before; `which`: experts to send now, null: all.
    void start(bool send, const std::vector<uint8_t> * which, bool send_next) {
        em_layer_t & layer = *b.layer;
        const size_t l     = size_t(layer.index);
        if (send) {
            em_host_register(p->e->residence, layer);
            em_lay_out(layout, layer, which);
            const bool first = send_part(p, layout, *stage, EM_FIRST);
            arrives          = send_part(p, layout, *stage, EM_SECOND) && first;
            if (!arrives) {
                return;
            }
        }
        note_routing(p, b, turn);
        int32_t * table = p->tables.host_table(l, true);
        std::copy(layout.place.begin(), layout.place.end(), table);
        G.ggml_backend_tensor_set_async(p->compute, p->tables.stage[l], table, 0, layout.place.size() * 4);
        sent_next = send_next && next_stage;
        if (sent_next) {
            em_host_register(p->e->residence, *next);
            next_layout.sent = 0;
            em_lay_out(next_layout, *next, nullptr);
        }
        for (em_stage_part part : {EM_FIRST, EM_SECOND}) {
            if (layout.hot) {
                copy_hot(p, layer, *stage, part);
            }
            em_event_wait(p->compute, p->sync.filled[part]);
            status = G.ggml_backend_graph_compute_async(p->compute, p->graphs.staged[l]->part[part]);
            if (status != STATUS_SUCCESS) {
                return;
            }
            em_event_record(p->sync.vacant[part], p->compute);
            sent_next = sent_next && send_part(p, next_layout, *next_stage, part);
        }
    }

    // Computes the CPU's part, while the device computes its own.
    void compute() {
        const bool any = arrives && status == STATUS_SUCCESS && !p->misses.cold.empty();
        if (any) {
            status = em_cold_pairs(&p->cpu, p->view.block, p->misses.cold, em_cold::OF_A_PROMPT);
        }
        p->prompt.shared.cpu_end = em_now_ns();
        if (any && status == STATUS_SUCCESS) {
            status = em_send_rows(p, b);
        }
    }

    void count() const {
        em_counters & c      = p->e->count;
        const int64_t missed = int64_t(p->misses.cold.size()), met = b.k * b.tokens - missed;
        const int64_t streamed =
            layout.sent ? met * layout.sent / (layout.sent + layout.hot) : 0; // the experts' share of the pairs
        c.prefill_misses += missed;
        c.prefill_streamed += streamed;
        c.prefill_hits += met - streamed;
    }
};
} // namespace

int em_prompt_layer(em_pass * p, em_block & b, const em_block * next, int turn) {
    em_engine *  e     = p->e;
    em_layer_t & layer = *b.layer;
    if (layer.all_resident()) {
        return all_hot(p, b, turn);
    }
    em_layer_t * after = next && !next->layer->all_resident() ? next->layer : nullptr;
    em_stage *   stage = em_stage_whole(p, layer), *next_stage = after ? em_stage_whole(p, *after) : nullptr;
    staged       s{p, b, turn, p->prompt.layout[turn % 2], p->prompt.layout[(turn + 1) % 2], stage, next_stage, after};
    const bool   all   = b.k * b.tokens >= EM_PICKS_ALL * layer.experts;
    const bool   known = s.layout.layer == layer.index; // something of this layer was sent before
    const bool   sent  = known && s.layout.whole;
    const bool   seen  = !all && !sent; // the ids are needed
    double       idle  = 0;
    if (seen) {
        if (!em_view_start(p, b)) {
            return STATUS_ALLOC_FAILED;
        }
        idle = em_wait_and_learn(p, turn);
        if (!em_ids_ok(p->view.block.ids, layer.experts)) {
            return STATUS_FAILED;
        }
    }
    if (!em_graph_for(p, *p->graphs.staged[size_t(layer.index)], b,
                      {&s.stage->places, p->tables.stage[size_t(layer.index)], true, false})) {
        s.layout.layer = -1;
        return seen ? em_by_host_seen(p, b) : em_by_host(p, b);
    }
    if (!known || (all && !sent)) { // the experts that were sent early do not count
        s.layout.sent = 0;
        s.layout.sent_early.assign(size_t(layer.experts), 0);
    }
    p->misses.cold.clear();
    std::vector<uint8_t> chosen;
    if (seen) {
        chosen                = em_share_out(p, layer, p->view.block.ids, s.layout, idle);
        p->prompt.shared.turn = turn + 1;
    }
    s.start(!sent, seen ? &chosen : nullptr, all);
    s.compute();
    s.layout.layer = -1;
    if (!s.arrives) {
        e->count.device_fallbacks += 1;
        return seen ? em_by_host_seen(p, b) : em_by_host(p, b);
    }
    if (s.status != STATUS_SUCCESS || p->prompt.unread) {
        return p->prompt.unread ? int(STATUS_FAILED) : s.status;
    }
    if (seen && s.next_stage && p->events) {
        em_send_early(p, s.next_layout, *next, *s.next_stage);
        s.sent_next = true;
    }
    s.next_layout.layer = s.sent_next ? s.next_layout.layer : -1;
    // No more than two layers are under way, so that a stop comes soon.
    em_event_record(p->sync.done[turn % 2], p->compute);
    if (turn > 0) {
        em_event_synchronize(p->sync.done[(turn + 1) % 2]);
    }
    s.count();
    return STATUS_SUCCESS;
}

void em_end_prompt(em_pass * p) {
    G.ggml_backend_synchronize(p->compute);
    G.ggml_backend_synchronize(p->e->device.stream);
    p->prompt.layout[0].layer = p->prompt.layout[1].layer = -1;
    p->prompt.shared.turn                                 = -1;
    p->prompt.unread                                      = false;
    p->prompt.held.clear();
    em_report_prompt(p);
}
