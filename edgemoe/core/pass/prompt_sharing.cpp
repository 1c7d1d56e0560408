// Short prompts: the link and the CPU share a layer's experts.
//
// 64 tokens use most experts of a layer, each for a few tokens only. The CPU computes the experts with the fewest tokens while
// the link copies the others to the stage. The experts are shared out so that both sides end at the same time. The speeds are
// learnt from layer to layer. Between two layers the CPU waits for the ids of the next layer. Meanwhile the link copies experts
// that the next layer will need in all likelihood.

#include "pass/pass.h"

// An expert that is not copied from its slot has to be sent.
static bool needs_sending(const em_layer_t & layer, int32_t expert) {
    const bool filling = layer.residents.count != int32_t(layer.residents.slots.size());
    return filling || layer.residents.slot_of[size_t(expert)] < 0;
}

double em_wait_and_learn(em_pass * p, int turn) {
    em_shared_layer & s = p->prompt.shared;
    if (s.turn != turn || !p->events) {
        em_view_wait(p);
        return 0;
    }
    constexpr int64_t AT_ONCE = 20000; // ns: a shorter wait is no wait
    const int64_t     began   = em_now_ns();
    G.ggml_backend_event_synchronize(p->sync.filled[EM_SECOND]);
    const int64_t done = em_now_ns();
    em_learn_sharing(p->e->rates, s.plan, done - began > AT_ONCE ? double(done - s.cpu_end) : 0, s.link_first);
    em_view_wait(p);
    const double idle = double(em_now_ns() - done);
    em_note_rate(p->e->rates.short_idle_ns, idle);
    return idle;
}

std::vector<uint8_t> em_share_out(em_pass * p, const em_layer_t & layer, const ggml_tensor * ids, const em_stage_layout & layout,
                                  double idle) {
    em_rates &                 rates  = p->e->rates;
    const std::vector<int64_t> tokens = em_tokens_of_experts(ids, layer.experts);
    std::vector<int32_t>       cold; // fewest tokens first
    for (int32_t x = 0; x < layer.experts; ++x) {
        if (tokens[size_t(x)] && !layout.sent_early[size_t(x)] && needs_sending(layer, x)) {
            cold.push_back(x);
        }
    }
    std::stable_sort(cold.begin(), cold.end(), [&](int32_t a, int32_t b) { return tokens[size_t(a)] < tokens[size_t(b)]; });
    std::vector<int64_t> cold_tokens;
    for (int32_t x : cold) {
        cold_tokens.push_back(tokens[size_t(x)]);
    }
    // Without events no layer corrects the rate, so each layer begins with the rate of uploads.
    rates.short_byte_ns   = p->events ? rates.short_byte_ns : 0;
    p->prompt.shared.plan = em_share(rates, layer.expert_bytes, cold_tokens, layout.sent, idle);
    std::vector<uint8_t> sent(size_t(layer.experts)), ours(size_t(layer.experts));
    for (size_t i = 0; i < cold.size(); ++i) {
        (i < p->prompt.shared.plan.kept ? ours : sent)[size_t(cold[i])] = 1;
    }
    em_each_pair(ids, [&](int32_t token, int32_t k, int32_t expert) {
        if (ours[size_t(expert)]) {
            p->misses.cold.push_back({token, k, expert, -1});
        }
    });
    em_sort_by_expert(p->misses.cold);
    return sent;
}

void em_send_early(em_pass * p, em_stage_layout & layout, const em_block & b, em_stage & stage) {
    em_layer_t &     layer = *b.layer;
    const em_rates & rates = p->e->rates;
    em_host_register(p->e->residence, layer);
    int64_t left =
        std::min(int64_t(rates.short_idle_ns / (rates.short_byte_ns * double(layer.expert_bytes))), int64_t(layer.experts / 2));
    for (int i = 0; i < PROJ_COUNT; ++i) {
        // The device cannot read such a tensor, so the thread that sends it would have to wait.
        left = layer.weight[i] && !layer.window[i].from ? 0 : left;
    }
    left        = b.k * b.tokens < EM_PICKS_MOST * layer.experts ? 0 : left;
    layout.sent = 0;
    layout.sent_early.assign(size_t(layer.experts), 0);
    for (int32_t x = 0; x < layer.experts && left > 0; ++x) {
        if (needs_sending(layer, x)) {
            layout.sent_early[size_t(x)] = 1;
            left -= 1;
        }
    }
    em_lay_out(layout, layer, &layout.sent_early);
    for (em_stage_part part : {EM_FIRST, EM_SECOND}) {
        em_send_runs(p, layout, stage, part);
    }
}
