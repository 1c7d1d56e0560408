// See predictor.h.

#include "routing/predictor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// Several versions of the loops, the best one chosen at load time. (The thread sanitizer starts too late for that.)
#if defined(__GNUC__) && defined(__x86_64__) && defined(__linux__) && !defined(__SANITIZE_THREAD__)
#    define EM_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#    define EM_CLONES
#endif

namespace {

constexpr float SHARE = 1.0f / 255; // unit of em_token_memory
// All experts of a layer correct the same weight of a token's shares or of a router, so each corrects less.
constexpr float FEW_STEP = 0.1f;

// Within 2e-7 of 1 / (1 + exp(-x)), without a call. 2^y is made of the bits of a whole number and a polynomial for the rest.
EM_CLONES void to_probabilities(float * x, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        const float   y     = std::min(std::max(x[i], -80.0f), 80.0f) * -1.44269504f;
        const float   whole = std::floor(y + 0.5f);
        const float   r     = (y - whole) * 0.69314718f;
        const float   power = 1 + r * (1 + r * (0.5f + r * (0.16666667f + r * (0.041666667f + r * (0.0083333333f + r * 0.0013888889f)))));
        const int32_t bits  = (int32_t(whole) + 127) << 23;
        float         scale;
        memcpy(&scale, &bits, 4);
        x[i] = 1.0f / (1.0f + power * scale);
    }
}

EM_CLONES void add(float * to, const float * row, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        to[i] += row[i];
    }
}

EM_CLONES void add_four(float * to, const float * const * rows, int32_t n) {
    const float * a = rows[0], * b = rows[1], * c = rows[2], * d = rows[3];
    for (int32_t i = 0; i < n; ++i) {
        to[i] += (a[i] + b[i]) + (c[i] + d[i]);
    }
}

EM_CLONES void add_scaled(float * to, const float * row, float factor, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        to[i] += factor * row[i];
    }
}

EM_CLONES void add_shares(float * to, const uint8_t * share, float factor, float constant, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        to[i] += constant + factor * float(share[i]);
    }
}

EM_CLONES void scale(float * to, float factor, int32_t n) {
    for (int32_t i = 0; i < n; ++i) {
        to[i] *= factor;
    }
}

// Rows lie anywhere in a table of megabytes: asks the cache for a row before the row is needed.
void touch(const float * row, int32_t n) {
#if defined(__GNUC__)
    for (int32_t i = 0; i < n; i += 16) {
        __builtin_prefetch(row + i);
    }
#endif
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
    for (int32_t i = 0; l < layers && i < top_k; ++i) {
        const int32_t e = latest[l * top_k + i];
        if (e < 0) {
            continue;
        }
        touch(row(keep_again, l, e), experts);
        for (int32_t m = 0; m < memories; ++m) {
            touch(row(keep_memory, m * layers + l, e), experts);
        }
        for (int32_t a = 0; a < leads; ++a) {
            touch(row(next_again, a * layers + l, e), experts);
        }
    }
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
            scale(f, decay[size_t(d)], experts);
            for (int32_t i = 0; i < top_k; ++i) {
                if (row_ids[i] >= 0) {
                    f[row_ids[i]] += 1.0f - decay[size_t(d)];
                }
            }
        }
        for (int32_t m = 0; m < memories; ++m) {
            float *     h    = &memory[size_t(m * layers + l) * size_t(experts)];
            const float rate = memory_rate[size_t(m)];
            scale(h, rate, experts);
            for (int32_t i = 0; i < top_k; ++i) {
                if (row_ids[i] >= 0) {
                    add_scaled(h, row(keep_memory, m * layers + l, row_ids[i]), 1.0f - rate, experts);
                }
            }
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
    for (int32_t i = 0; i < top_k; ++i) {
        if (of[i] >= 0) {
            add(&table[(size_t(block) * size_t(experts) + size_t(of[i])) * size_t(experts)], values, experts);
        }
    }
}

void em_predictor::learn_next(int32_t l, const int32_t * chosen, int64_t n) {
    const int32_t lead  = predicted_lead[size_t(l)];
    const size_t  block = size_t((lead - 1) * layers + l);
    const float   step  = quickness();
    const float * p     = &predicted[size_t(l) * size_t(experts)];
    for (int32_t e = 0; e < experts; ++e) {
        error[size_t(e)] = -step * p[e];
    }
    for (int64_t i = 0; i < n; ++i) {
        if (chosen[i] >= 0) {
            error[size_t(chosen[i])] += step;
        }
    }
    add(&next_bias[block * size_t(experts)], error.data(), experts);
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
    for (int32_t i = 0; i < top_k; ++i) {
        if (now[l * top_k + i] >= 0) {
            error[size_t(now[l * top_k + i])] += step * (1 - horizon);
        }
    }
    add(&keep_bias[size_t(l) * size_t(experts)], error.data(), experts);
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
            for (int32_t e = 0; e < experts; ++e) {
                add_scaled(&memory[size_t(m * layers + l) * size_t(experts)], row(keep_memory, m * layers + l, e), use[l * experts + e],
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
            add_scaled(to, &frequency[size_t(l * decays + d) * size_t(experts)], weight[d], experts);
        }
        for (int32_t i = 0; latest && i < top_k; ++i) {
            if (latest[l * top_k + i] >= 0) {
                add(to, row(again, block, latest[l * top_k + i]), experts);
            }
        }
    };
    float * k = &keep[size_t(l) * size_t(experts)];
    logits(k, &keep_bias[size_t(l) * size_t(experts)], &keep_decay[size_t(l * decays)], keep_again, l);
    for (int32_t m = 0; m < memories; ++m) {
        add(k, &memory[size_t(m * layers + l) * size_t(experts)], experts);
    }
    to_probabilities(k, experts);
    for (int32_t a = 0; a < leads; ++a) {
        const size_t block = size_t(a * layers + l);
        logits(&base[block * size_t(experts)], &next_bias[block * size_t(experts)], &next_decay[block * size_t(decays)], next_again,
               int64_t(block));
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
        for (int32_t i = 0; i < top_k && count < 128; ++i) {
            if (from[i] >= 0) {
                rows[count] = row(next_rows, block, from[i]);
                touch(rows[count++], experts);
            }
        }
    }
    memcpy(out, &base[size_t((lead - 1) * layers + layer) * size_t(experts)], size_t(experts) * 4);
    int32_t done_rows = 0;
    for (; done_rows + 4 <= count; done_rows += 4) {
        add_four(out, rows + done_rows, experts);
    }
    for (; done_rows < count; ++done_rows) {
        add(out, rows[done_rows], experts);
    }
    if (looked[size_t(layer)]) {
        add_scaled(out, &margins[size_t(layer) * size_t(experts)], next_router[size_t((lead - 1) * layers + layer)], experts);
    }
    if (shares) {
        const float * weight = &next_token[token_weights(layer, lead)];
        add_shares(out, shares + size_t(layer) * size_t(experts), weight[0] * SHARE, weight[1], experts);
    }
    to_probabilities(out, experts);
    memcpy(&predicted[size_t(layer) * size_t(experts)], out, size_t(experts) * 4);
    predicted_lead[size_t(layer)] = lead;
}

// The worth of an expert on the device: used now, or used soon. An exchange must gain enough to pay for its upload.
int32_t em_predictor::choose(int32_t layer, int32_t lead, const uint8_t * state, int32_t free_slots, int32_t most, float gain, em_load * out) {
    next(layer, lead, chance.data());
    add(chance.data(), &keep[size_t(layer) * size_t(experts)], experts);
    std::vector<uint8_t> gone(size_t(experts), 0);
    int32_t n = 0;
    for (; n < most; ++n) {
        int32_t newcomer = -1, victim = -1;
        for (int32_t e = 0; e < experts; ++e) {
            const float c = chance[size_t(e)];
            if (gone[size_t(e)]) {
                continue;
            }
            if (state[e] == EM_COLD && (newcomer < 0 || c > chance[size_t(newcomer)])) {
                newcomer = e;
            }
            if (state[e] == EM_RESIDENT && (victim < 0 || c < chance[size_t(victim)])) {
                victim = e;
            }
        }
        const bool free_slot = n < free_slots;
        if (newcomer < 0 || (!free_slot && (victim < 0 || chance[size_t(newcomer)] < chance[size_t(victim)] + gain))) {
            break;
        }
        out[n] = {layer, newcomer, free_slot ? -1 : victim};
        gone[size_t(newcomer)] = 1;
        if (!free_slot) {
            gone[size_t(victim)] = 1;
        }
    }
    return n;
}

// ---- the C interface ----

namespace {

std::vector<float> copied(const float * from, int64_t n) { return std::vector<float>(from, from + n); }
em_table           rows_of(const float * from, int64_t n) { return em_table(from, from + n); }

} // namespace

em_predictor * em_predictor_new(const em_predictor_tables * t) {
    if (!t || t->struct_bytes != int32_t(sizeof(*t)) || t->layers < 1 || t->experts < 1 || t->top_k < 1 || t->leads < 1 || t->reach < 1) {
        return nullptr;
    }
    auto *        p = new em_predictor;
    p->layers = t->layers, p->experts = t->experts, p->top_k = t->top_k, p->decays = t->decays, p->memories = t->memories;
    p->leads = t->leads, p->reach = t->reach;
    const int64_t le = int64_t(t->layers) * t->experts, lee = le * t->experts, ld = int64_t(t->layers) * t->decays;
    p->decay       = copied(t->decay, t->decays);
    p->keep_bias   = copied(t->keep_bias, le);
    p->keep_decay  = copied(t->keep_decay, ld);
    p->keep_again  = rows_of(t->keep_again, lee);
    p->memory_rate = copied(t->memory_rate, t->memories);
    p->keep_memory = rows_of(t->keep_memory, t->memories * lee);
    p->next_bias   = copied(t->next_bias, t->leads * le);
    p->next_decay  = copied(t->next_decay, t->leads * ld);
    p->next_again  = rows_of(t->next_again, t->leads * lee);
    p->next_rows   = rows_of(t->next_rows, int64_t(t->leads) * t->reach * lee);
    p->next_token  = copied(t->next_token, le / t->experts * t->leads * EM_TOKEN_TIMES * 2);
    p->next_router = copied(t->next_router, int64_t(t->leads) * t->layers);
    p->margins.assign(size_t(le), 0.0f);
    p->looked.assign(size_t(t->layers), 0);
    p->seen.make(t->layers, t->experts);
    p->frequency.assign(size_t(le * t->decays), 0.0f);
    p->memory.assign(size_t(le * t->memories), 0.0f);
    p->keep.assign(size_t(le), 0.0f);
    p->base.assign(size_t(le * t->leads), 0.0f);
    p->ids.assign(size_t(t->layers) * size_t(t->top_k), -1);
    p->chance.assign(size_t(t->experts), 0.0f);
    p->error.assign(size_t(t->experts), 0.0f);
    p->rate    = t->rate;
    p->horizon = t->horizon;
    p->tokens  = t->tokens;
    p->latest.assign(p->ids.size(), -1);
    p->predicted.assign(size_t(le), 0.0f);
    p->predicted_lead.assign(size_t(t->layers), 0);
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

int64_t em_predictor_learnt(em_predictor * p, float * keep_bias, float * keep_again, float * next_bias, float * next_again, float * next_rows,
                            float * next_token, float * next_router) {
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
