#include "routing/predictor.h"

#include "routing/rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace {
constexpr float SHARE = 1.0f / 255; // unit of em_token_memory
// All experts of a layer correct the same weight of a token's shares or of a router, so each corrects less.
constexpr float FEW_STEP = 0.1f;

// Rows lie anywhere in a table of megabytes: asks the cache for a row before the row is needed.
void touch(const float * row, int32_t n) {
#if defined(__GNUC__)
    for (int32_t i = 0; i < n; i += 16) {
        __builtin_prefetch(row + i);
    }
#endif
}

// Calls f with every id that is known.
template <typename F> void each_known(const int32_t * ids, int64_t n, F f) {
    for (int64_t i = 0; i < n; ++i) {
        if (ids[i] >= 0) {
            f(ids[i]);
        }
    }
}
} // namespace

void em_predictor::begin(int32_t id) {
    token_id = id;
    shares   = seen.shares(id);
    kind     = shares ? seen.kind(id) : 0;
}

void em_predictor::end() {
    const std::vector<int32_t> routed_to = ids;
    seen.note(token_id, routed_to.data(), top_k);
    token(routed_to.data());
    ++done;
}

// Place of two weights: of an expert's share, and a constant.
size_t em_predictor::token_weights(int32_t layer, int32_t lead) const {
    return (size_t((lead - 1) * layers + layer) * EM_TOKEN_TIMES + size_t(kind)) * 2;
}

// Touches all rows that token() will read of a layer.
void em_predictor::touch_rows(const int32_t * latest, int32_t l) const {
    each_known(latest + l * top_k, l < layers ? top_k : 0, [&](int32_t e) {
        touch(row(keep_again, l, e), experts);
        for (int32_t m = 0; m < memories; ++m) {
            touch(row(keep_memory, m * layers + l, e), experts);
        }
        for (int32_t a = 0; a < leads; ++a) {
            touch(row(next_again, a * layers + l, e), experts);
        }
    });
}

void em_predictor::token(const int32_t * now) {
    std::lock_guard<std::mutex> lock(keep_mutex);
    std::fill(ids.begin(), ids.end(), -1);
    touch_rows(now, 0);
    for (int32_t l = 0; l < layers; ++l) {
        touch_rows(now, l + 1);
        const int32_t * row_ids = now + l * top_k;
        for (int32_t d = 0; d < decays; ++d) {
            float * f = &frequency[size_t(l * decays + d) * size_t(experts)];
            em_rows.scale(f, decay[size_t(d)], experts);
            each_known(row_ids, top_k, [&](int32_t e) { f[e] += 1.0f - decay[size_t(d)]; });
        }
        for (int32_t m = 0; m < memories; ++m) {
            float *     h    = &memory[size_t(m * layers + l) * size_t(experts)];
            const float rate = memory_rate[size_t(m)];
            em_rows.scale(h, rate, experts);
            each_known(row_ids, top_k,
                       [&](int32_t e) { em_rows.add_scaled(h, row(keep_memory, m * layers + l, e), 1.0f - rate, experts); });
        }
        std::copy_n(&keep[size_t(l) * size_t(experts)], experts, chance.begin());
        refresh(l, now);
        if (rate > 0 && tokens > 0) {
            learn_keep(l, now, chance.data());
        }
    }
    shares   = nullptr;
    token_id = -1;
    std::fill(looked.begin(), looked.end(), uint8_t(0));
    std::copy_n(now, size_t(layers) * size_t(top_k), latest.begin());
    std::fill(predicted_lead.begin(), predicted_lead.end(), 0);
    ++tokens;
}

// Learns quickly at first, when no knowledge can be spoilt.
float em_predictor::quickness() const { return rate * (1.0f + 3.0f / (1.0f + float(tokens) / 500.0f)); }

void em_predictor::add_to_rows(em_table & table, int64_t block, const int32_t * of, const float * values) {
    each_known(of, top_k, [&](int32_t e) {
        em_rows.add(&table[(size_t(block) * size_t(experts) + size_t(e)) * size_t(experts)], values, experts);
    });
}

void em_predictor::learn_next(int32_t l, const int32_t * chosen, int64_t n) {
    const int32_t lead  = predicted_lead[size_t(l)];
    const size_t  block = size_t((lead - 1) * layers + l);
    const float   step  = quickness();
    const float * p     = &predicted[size_t(l) * size_t(experts)];
    for (int32_t e = 0; e < experts; ++e) {
        error[size_t(e)] = -step * p[e];
    }
    each_known(chosen, n, [&](int32_t e) { error[size_t(e)] += step; });
    em_rows.add(&next_bias[block * size_t(experts)], error.data(), experts);
    add_to_rows(next_again, int64_t(block), &latest[size_t(l * top_k)], error.data());
    for (int32_t j = 0; j < reach && l - lead - j >= 0; ++j) {
        add_to_rows(next_rows, (int64_t(lead - 1) * reach + j) * layers + l, &ids[size_t((l - lead - j) * top_k)], error.data());
    }
    if (looked[size_t(l)]) {
        const float * margin = &margins[size_t(l) * size_t(experts)];
        float         slope  = 0;
        for (int32_t e = 0; e < experts; ++e) {
            slope += error[size_t(e)] * margin[e];
        }
        next_router[size_t((lead - 1) * layers + l)] += FEW_STEP * slope;
    }
    if (shares) {
        const uint8_t * share  = shares + size_t(l) * size_t(experts);
        float *         weight = &next_token[token_weights(l, lead)];
        float           slope = 0, constant = 0;
        for (int32_t e = 0; e < experts; ++e) {
            slope += error[size_t(e)] * float(share[e]) * SHARE;
            constant += error[size_t(e)];
        }
        weight[0] += FEW_STEP * slope;
        weight[1] += FEW_STEP * constant;
    }
}

// The target of the last prediction: the experts of this token, and the new prediction for the tokens after it.
void em_predictor::learn_keep(int32_t l, const int32_t * now, const float * before) {
    const float   step  = 4 * quickness();
    const float * after = &keep[size_t(l) * size_t(experts)];
    for (int32_t e = 0; e < experts; ++e) {
        error[size_t(e)] = step * (horizon * after[e] - before[e]);
    }
    each_known(now + l * top_k, top_k, [&](int32_t e) { error[size_t(e)] += step * (1 - horizon); });
    em_rows.add(&keep_bias[size_t(l) * size_t(experts)], error.data(), experts);
    add_to_rows(keep_again, l, &latest[size_t(l * top_k)], error.data());
}

void em_predictor::seed(const float * use) {
    std::fill(memory.begin(), memory.end(), 0.0f);
    std::fill(ids.begin(), ids.end(), -1);
    for (int32_t l = 0; l < layers; ++l) {
        for (int32_t d = 0; d < decays; ++d) {
            memcpy(&frequency[size_t(l * decays + d) * size_t(experts)], use + size_t(l) * size_t(experts), size_t(experts) * 4);
        }
        for (int32_t m = 0; m < memories; ++m) {
            const int32_t block = m * layers + l;
            for (int32_t e = 0; e < experts; ++e) {
                em_rows.add_scaled(&memory[size_t(block) * size_t(experts)], row(keep_memory, block, e), use[l * experts + e],
                                   experts);
            }
        }
        refresh(l, nullptr);
    }
}

void em_predictor::refresh(int32_t l, const int32_t * latest) {
    auto logits = [&](float * to, const float * bias, const float * weight, const em_table & again, int64_t block) {
        memcpy(to, bias, size_t(experts) * 4);
        for (int32_t d = 0; d < decays; ++d) {
            em_rows.add_scaled(to, &frequency[size_t(l * decays + d) * size_t(experts)], weight[d], experts);
        }
        each_known(latest + l * top_k, latest ? top_k : 0, [&](int32_t e) { em_rows.add(to, row(again, block, e), experts); });
    };
    float * k = &keep[size_t(l) * size_t(experts)];
    logits(k, &keep_bias[size_t(l) * size_t(experts)], &keep_decay[size_t(l * decays)], keep_again, l);
    for (int32_t m = 0; m < memories; ++m) {
        em_rows.add(k, &memory[size_t(m * layers + l) * size_t(experts)], experts);
    }
    em_rows.to_probabilities(k, experts);
    for (int32_t a = 0; a < leads; ++a) {
        const size_t block = size_t(a * layers + l);
        const size_t at    = block * size_t(experts);
        logits(&base[at], &next_bias[at], &next_decay[block * size_t(decays)], next_again, int64_t(block));
    }
}

void em_predictor::routed(int32_t layer, const int32_t * chosen, int64_t n) {
    if (rate > 0 && predicted_lead[size_t(layer)] > 0) {
        learn_next(layer, chosen, n);
        predicted_lead[size_t(layer)] = 0;
    }
    for (int32_t i = 0; i < top_k; ++i) {
        ids[size_t(layer * top_k + i)] = i < n ? chosen[i] : -1;
    }
}

void em_predictor::hint(int32_t layer, const float * values) {
    std::copy_n(values, experts, &margins[size_t(layer) * size_t(experts)]);
    looked[size_t(layer)] = 1;
}

void em_predictor::next(int32_t layer, int32_t lead, float * out) {
    const float * rows[128];
    int32_t       count = 0;
    if (shares) {
        touch(reinterpret_cast<const float *>(shares + size_t(layer) * size_t(experts)), (experts + 3) / 4);
    }
    for (int32_t j = 0; j < reach && layer - lead - j >= 0; ++j) {
        const int32_t * from  = &ids[size_t((layer - lead - j) * top_k)];
        const int64_t   block = (int64_t(lead - 1) * reach + j) * layers + layer;
        each_known(from, std::min(top_k, 128 - count), [&](int32_t e) {
            rows[count] = row(next_rows, block, e);
            touch(rows[count++], experts);
        });
    }
    memcpy(out, &base[size_t((lead - 1) * layers + layer) * size_t(experts)], size_t(experts) * 4);
    int32_t done_rows = 0;
    for (; done_rows + 4 <= count; done_rows += 4) {
        em_rows.add_four(out, rows + done_rows, experts);
    }
    for (; done_rows < count; ++done_rows) {
        em_rows.add(out, rows[done_rows], experts);
    }
    if (looked[size_t(layer)]) {
        em_rows.add_scaled(out, &margins[size_t(layer) * size_t(experts)], next_router[size_t((lead - 1) * layers + layer)],
                           experts);
    }
    if (shares) {
        const float * weight = &next_token[token_weights(layer, lead)];
        em_rows.add_shares(out, shares + size_t(layer) * size_t(experts), weight[0] * SHARE, weight[1], experts);
    }
    em_rows.to_probabilities(out, experts);
    memcpy(&predicted[size_t(layer) * size_t(experts)], out, size_t(experts) * 4);
    predicted_lead[size_t(layer)] = lead;
}

// The worth of an expert on the device: used now, or used soon. An exchange must gain enough to pay for its upload.
int32_t em_predictor::choose(int32_t layer, int32_t lead, const uint8_t * state, int32_t free_slots, int32_t most, float gain,
                             em_load * out) {
    next(layer, lead, chance.data());
    em_rows.add(chance.data(), &keep[size_t(layer) * size_t(experts)], experts);
    std::vector<uint8_t> left(state, state + experts); // EM_PENDING: not to be exchanged any more
    int32_t              n = 0;
    for (; n < most; ++n) {
        int32_t newcomer = -1, victim = -1;
        for (int32_t e = 0; e < experts; ++e) {
            const float c = chance[size_t(e)];
            newcomer      = left[size_t(e)] == EM_COLD && (newcomer < 0 || c > chance[size_t(newcomer)]) ? e : newcomer;
            victim        = left[size_t(e)] == EM_RESIDENT && (victim < 0 || c < chance[size_t(victim)]) ? e : victim;
        }
        victim = n < free_slots ? -1 : victim;
        if (newcomer < 0 || (n >= free_slots && (victim < 0 || chance[size_t(newcomer)] < chance[size_t(victim)] + gain))) {
            break;
        }
        out[n]                 = {layer, newcomer, victim};
        left[size_t(newcomer)] = left[size_t(victim < 0 ? newcomer : victim)] = EM_PENDING;
    }
    return n;
}

// ---- the C interface ----

em_predictor * em_predictor_new(const em_predictor_tables * t) {
    if (!t || t->struct_bytes != int32_t(sizeof(*t)) || t->layers < 1 || t->experts < 1 || t->top_k < 1 || t->leads < 1 ||
        t->reach < 1) {
        return nullptr;
    }
    auto * p  = new em_predictor;
    p->layers = t->layers, p->experts = t->experts, p->top_k = t->top_k, p->decays = t->decays, p->memories = t->memories;
    p->leads = t->leads, p->reach = t->reach, p->rate = t->rate, p->horizon = t->horizon, p->tokens = t->tokens;
    const int64_t le = int64_t(t->layers) * t->experts, lee = le * t->experts, ld = int64_t(t->layers) * t->decays;
    const int64_t leads = t->leads, lk = int64_t(t->layers) * t->top_k;
    auto          copy = [](auto & to, const float * from, int64_t n) { to.assign(from, from + n); };
    auto          fill = [](auto & to, int64_t n, auto value) { to.assign(size_t(n), value); };
    copy(p->decay, t->decay, t->decays);
    copy(p->keep_bias, t->keep_bias, le), copy(p->keep_decay, t->keep_decay, ld), copy(p->keep_again, t->keep_again, lee);
    copy(p->memory_rate, t->memory_rate, t->memories), copy(p->keep_memory, t->keep_memory, t->memories * lee);
    copy(p->next_bias, t->next_bias, leads * le), copy(p->next_decay, t->next_decay, leads * ld);
    copy(p->next_again, t->next_again, leads * lee), copy(p->next_rows, t->next_rows, leads * t->reach * lee);
    copy(p->next_token, t->next_token, leads * t->layers * EM_TOKEN_TIMES * 2),
        copy(p->next_router, t->next_router, leads * t->layers);
    p->seen.make(t->layers, t->experts);
    fill(p->frequency, le * t->decays, 0.0f), fill(p->memory, le * t->memories, 0.0f), fill(p->keep, le, 0.0f),
        fill(p->base, le * leads, 0.0f);
    fill(p->margins, le, 0.0f), fill(p->looked, t->layers, uint8_t(0)), fill(p->ids, lk, -1), fill(p->latest, lk, -1);
    fill(p->predicted, le, 0.0f), fill(p->predicted_lead, t->layers, 0), fill(p->chance, t->experts, 0.0f),
        fill(p->error, t->experts, 0.0f);
    p->seed(std::vector<float>(size_t(le), 0.0f).data());
    return p;
}

void em_predictor_free(em_predictor * p) { delete p; }
void em_predictor_seed(em_predictor * p, const float * use) {
    std::lock_guard<std::mutex> lock(p->keep_mutex);
    p->seed(use);
}
void em_predictor_token(em_predictor * p, const int32_t * ids) {
    if (p->done > 0) {
        --p->done;
    } else {
        p->token(ids);
    }
}
void em_predictor_begin(em_predictor * p, int32_t token_id) { p->begin(token_id); }

void em_predictor_seen(em_predictor * p, const int32_t * token_ids, const int32_t * ids, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        p->seen.note(token_ids[i], ids + i * p->layers * p->top_k, p->top_k);
    }
}

void em_predictor_routed(em_predictor * p, int32_t layer, const int32_t * ids, int32_t n) { p->routed(layer, ids, n); }
void em_predictor_next(em_predictor * p, int32_t layer, int32_t lead, float * out) { p->next(layer, lead, out); }

void em_predictor_keep(em_predictor * p, float * out) {
    std::lock_guard<std::mutex> lock(p->keep_mutex);
    memcpy(out, p->keep.data(), p->keep.size() * 4);
}

int64_t em_predictor_learnt(em_predictor * p, float * keep_bias, float * keep_again, float * next_bias, float * next_again,
                            float * next_rows, float * next_token, float * next_router) {
    std::copy(p->keep_bias.begin(), p->keep_bias.end(), keep_bias);
    std::copy(p->keep_again.begin(), p->keep_again.end(), keep_again);
    std::copy(p->next_bias.begin(), p->next_bias.end(), next_bias);
    std::copy(p->next_again.begin(), p->next_again.end(), next_again);
    std::copy(p->next_rows.begin(), p->next_rows.end(), next_rows);
    std::copy(p->next_token.begin(), p->next_token.end(), next_token);
    std::copy(p->next_router.begin(), p->next_router.end(), next_router);
    return p->tokens;
}

int32_t em_predictor_choose(em_predictor * p, int32_t layer, int32_t lead, const uint8_t * state, int32_t free_slots, int32_t most,
                            float gain, em_load * out) {
    return p->choose(layer, lead, state, free_slots, most, gain, out);
}
