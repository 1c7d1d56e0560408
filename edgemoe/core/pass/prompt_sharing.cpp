// Short prompts: the link and the CPU share out a layer's experts.
//
// 64 tokens use most experts of a layer, each for a few tokens only: the CPU computes those with the fewest while the link brings
// the others to the stage, so that both are done at once. What each takes is learnt from layer to layer. Between two layers,
// when the CPU has nothing to do because the ids of the next one are not known, the link brings what will be wanted in all
// likelihood.

#include "pass/pass.h"

#include <algorithm>

namespace {

constexpr double FIRST_CPU_RATE = 20, FIRST_LINK_RATE = 20; // bytes a ns, until they are measured

double link_ns(const em_engine * e, const em_layer_t & layer) { // an expert's way to the stage
    return e->rates.short_byte_ns * double(layer.expert_bytes);
}

// Not copied from their slots: those have to be brought in.
bool stays_out(const em_layer_t & layer, int32_t expert) {
    const bool filling = layer.residents.count != int32_t(layer.residents.slots.size());
    return filling || layer.residents.slot_of[size_t(expert)] < 0;
}

// The layer before was shared out by what the link was thought to take. By how much it or the CPU was done sooner than planned tells
// if that was right; a clock would not, for the link is slower beside a CPU that reads as well. `waited`: from the CPU's end to the
// link's, 0 if that was not later.
void learn(em_pass * p, double waited) {
    constexpr double GAIN = 0.5, MOST = 4; // of an error, as a share of what was planned
    constexpr double STEP = 0.04;          // how much less the link may take, where it was to be about last and was not; the more often
    constexpr int    MOST_STEPS = 5;       // in a row, the more
    constexpr double PATIENCE = 0.01;      // the same where the CPU got everything
    em_sharing & s    = p->prompt.sharing;
    double &     rate = p->e->rates.short_byte_ns;
    if (s.sent_ns <= 0) {
        rate *= s.cpu_ns > 0 ? 1 - PATIENCE : 1;
    } else if (waited > 0) {
        const double error = waited - std::max(0.0, s.link_ns - s.cpu_ns);
        rate *= 1 + GAIN * std::clamp(error / s.link_ns, -1.0, MOST);
        s.link_first = 0;
    } else if (s.cpu_ns > 0 && s.link_ns + s.expert_ns >= s.cpu_ns) {
        s.link_first = std::min(s.link_first + 1, MOST_STEPS);
        rate *= 1 - STEP * s.link_first;
    }
}

} // namespace

double em_wait_and_learn(em_pass * p, int turn) {
    if (p->prompt.sharing.turn != turn || !p->events) {
        em_view_wait(p);
        return 0;
    }
    constexpr int64_t AT_ONCE = 20000; // ns: no wait
    const int64_t     began   = em_now_ns();
    G.ggml_backend_event_synchronize(p->sync.filled[EM_SECOND]);
    const int64_t done = em_now_ns();
    learn(p, done - began > AT_ONCE ? double(done - p->prompt.sharing.cpu_end) : 0);
    em_view_wait(p);
    const double idle = double(em_now_ns() - done);
    em_note_rate(p->e->rates.short_idle_ns, idle);
    return idle;
}

std::vector<uint8_t> em_share_out(em_pass * p, const em_layer_t & layer, const ggml_tensor * ids, const em_stage_plan & plan, double idle) {
    em_engine *                e      = p->e;
    const std::vector<int64_t> tokens = em_tokens_of_experts(ids, layer.experts);
    std::vector<int32_t> cold;
    for (int32_t x = 0; x < layer.experts; ++x) {
        if (tokens[size_t(x)] && !plan.sent_early[size_t(x)] && stays_out(layer, x)) {
            cold.push_back(x);
        }
    }
    std::sort(cold.begin(), cold.end(), [&](int32_t a, int32_t b) {
        return tokens[size_t(a)] != tokens[size_t(b)] ? tokens[size_t(a)] < tokens[size_t(b)] : a < b;
    });
    if (e->rates.short_byte_ns <= 0 || !p->events) { // nothing is learnt then
        e->rates.short_byte_ns = e->rates.copy_ns_per_byte > 0 ? double(e->rates.copy_ns_per_byte) : 1 / FIRST_LINK_RATE;
    }
    const double pair = e->rates.short_pair_ns > 0 ? e->rates.short_pair_ns : double(layer.expert_bytes) / FIRST_CPU_RATE;
    const double copy = link_ns(e, layer), busy = std::max(0.0, copy * plan.sent - idle);
    size_t kept = 0;
    double cpu = 0, cpu_kept = 0, least = busy + copy * double(cold.size()); // until both are done
    for (size_t n = 1; n <= cold.size(); ++n) {
        cpu += pair * double(tokens[size_t(cold[n - 1])]);
        const double both = std::max(cpu, busy + copy * double(cold.size() - n));
        if (both < least) {
            kept     = n;
            cpu_kept = cpu;
            least    = both;
        }
    }
    p->prompt.sharing.cpu_ns    = cpu_kept;
    p->prompt.sharing.expert_ns = copy;
    p->prompt.sharing.sent_ns   = copy * double(cold.size() - kept);
    p->prompt.sharing.link_ns   = busy + p->prompt.sharing.sent_ns;
    std::vector<uint8_t> sent(size_t(layer.experts)), ours(size_t(layer.experts));
    for (size_t i = 0; i < cold.size(); ++i) {
        (i < kept ? ours : sent)[size_t(cold[i])] = 1;
    }
    for (int64_t t = 0; t < ids->ne[1]; ++t) {
        const int32_t * row = em_ids_row(ids, t);
        for (int64_t i = 0; i < ids->ne[0]; ++i) {
            if (ours[size_t(row[i])]) {
                p->misses.cold.push_back({int32_t(t), int32_t(i), row[i], -1});
            }
        }
    }
    em_sort_by_expert(p->misses.cold);
    return sent;
}

void em_send_early(em_pass * p, em_stage_plan & plan, const em_block & b, em_stage & stage) {
    constexpr int64_t LEAST_PICKS = 3; // of an expert: with fewer too many are not used at all
    em_layer_t & layer = *b.layer;
    em_host_register(p->e->residence, layer);
    int64_t left = std::min(int64_t(p->e->rates.short_idle_ns / link_ns(p->e, layer)), int64_t(layer.experts / 2));
    for (int i = 0; i < PROJ_COUNT; ++i) {
        left = layer.weight[i] && !layer.window[i].from ? 0 : left; // who sends would have to wait
    }
    left = b.k * b.tokens < LEAST_PICKS * layer.experts ? 0 : left;
    plan.sent = 0;
    plan.sent_early.assign(size_t(layer.experts), 0);
    for (int32_t x = 0; x < layer.experts && left > 0; ++x) {
        if (stays_out(layer, x)) {
            plan.sent_early[size_t(x)] = 1;
            left -= 1;
        }
    }
    em_plan_stage(plan, layer, &plan.sent_early);
    for (em_stage_part part : {EM_FIRST, EM_SECOND}) {
        em_send_runs(p, plan, stage, part);
    }
}
