// Loading experts ahead of need, while a token is under way.

#include "predict.h"
#include "engine.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr double SMOOTH = 0.1;

const int32_t * first_row(const ggml_tensor * ids) { return static_cast<const int32_t *>(ids->data); }

// How many more experts reach the device before a layer that many layers ahead runs, at the speeds measured so far.
int32_t link_has_time_for(em_engine * e, const em_layer_t & target, int32_t most) {
    const double per_expert = e->copy_ns_per_byte * double(target.expert_bytes);
    if (e->ahead.wait || per_expert <= 0 || e->ahead.layer_ns <= 0) {
        return most;
    }
    size_t waiting;
    {
        std::lock_guard<std::mutex> lock(e->queue_mutex);
        waiting = e->urgent.size() + (e->copying ? 1 : 0);
    }
    const double left = e->ahead.layer_ns * e->ahead.lead - per_expert * double(waiting);
    return std::clamp(int32_t(left / per_expert), 0, most);
}

void clock_layers(em_engine * e, int32_t layer) {
    em_ahead &    a   = e->ahead;
    const int64_t now = em_now_ns();
    if (layer > 0 && a.layer_started_ns) {
        const double took = double(now - a.layer_started_ns);
        a.layer_ns = a.layer_ns > 0 ? a.layer_ns + SMOOTH * (took - a.layer_ns) : took;
    }
    a.layer_started_ns = now;
}

// Queues what an expert layer of the token under way will miss. Returns how many.
int32_t fetch_ahead(em_engine * e, int32_t at) {
    em_ahead &    a      = e->ahead;
    em_layer_t &  target = *e->layers[size_t(at)];
    const int32_t most   = link_has_time_for(e, target, std::min<int32_t>(a.most, 16));
    em_load       loads[16];
    int32_t       n = 0;
    if (most > 0) {
        std::lock_guard<std::mutex> lock(target.mutex);
        if (!target.slots.empty() && target.experts == a.predictor->experts) {
            const auto pending = std::count(target.state.begin(), target.state.end(), uint8_t(EM_PENDING));
            const int32_t free = int32_t(target.slots.size()) - target.resident - int32_t(pending);
            n = a.predictor->choose(at, a.lead, target.state.data(), std::max(free, 0), most, a.gain, loads);
        }
    }
    for (int32_t i = 0; i < n; ++i) {
        a.spent[size_t(at)] += em_queue(e, loads[i], e->step);
    }
    return n;
}

void begin_step(em_engine * e) {
    e->step += 1;
    e->layer_now = -1;
}

void copy_now(em_engine * e, int32_t queued, int64_t started) {
    e->count.schedule_ns += em_now_ns() - started;
    if (queued > 0) {
        e->queue_changed.notify_all();
        if (e->ahead.wait) {
            em_wait_uploads(e, 10000);
        }
    }
}

} // namespace

// Benchmarks replay real routing on weights that have none. Decode only: a row of the trace per token.
void em_force_routing(em_engine * e, int32_t layer, ggml_tensor * ids) {
    if (e->forced_tokens == 0 || ids->ne[1] != 1 || ids->ne[0] != e->forced_used) {
        return;
    }
    if (layer == 0) {
        e->forced_at = (e->forced_at + 1) % e->forced_tokens;
    }
    if (e->forced_at >= 0) {
        const size_t row = (size_t(e->forced_at) * e->layers.size() + size_t(layer)) * size_t(e->forced_used);
        memcpy(ids->data, &e->forced[row], size_t(e->forced_used) * 4);
    }
}

void em_note_use(em_layer_t & layer, const int32_t * ids, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        uint8_t & ahead = layer.ahead[size_t(ids[i])];
        if (ahead) {
            ahead = 0;
            (layer.slot_of[size_t(ids[i])] >= 0 ? layer.ahead_useful : layer.ahead_late) += 1;
        }
    }
}

void em_look_ahead(em_engine * e, int32_t layer, const ggml_tensor * ids) {
    em_ahead & a = e->ahead;
    if (layer == 0 && !a.begun) {
        begin_step(e);
    }
    a.begun      = false;
    e->layer_now = layer;
    if (!a.predictor || ids->ne[1] != 1) {
        return;
    }
    const int64_t started = em_now_ns();
    clock_layers(e, layer);
    a.predictor->routed(layer, first_row(ids), ids->ne[0]);
    const int32_t at = layer + a.lead;
    copy_now(e, at < int32_t(e->layers.size()) ? fetch_ahead(e, at) : 0, started);
}

int32_t em_begin_token(em_engine * e, int32_t token_id) {
    std::lock_guard<std::mutex> compute(e->compute_mutex);
    em_ahead & a = e->ahead;
    if (!a.predictor) {
        return EM_OK;
    }
    const int64_t started = em_now_ns();
    begin_step(e);
    a.begun = true;
    a.predictor->begin(token_id);
    int32_t queued = 0;
    for (int32_t at = 0; at < a.lead && at < int32_t(e->layers.size()); ++at) {
        queued += fetch_ahead(e, at);
    }
    copy_now(e, queued, started);
    return EM_OK;
}

int32_t em_set_ahead(em_engine * e, em_predictor * predictor, int32_t lead, int32_t most, float gain, int32_t wait) {
    std::lock_guard<std::mutex> compute(e->compute_mutex);
    if (predictor && (predictor->layers != int32_t(e->layers.size()) || lead < 1 || lead > predictor->leads)) {
        return em_fail(EM_ERROR_ARGUMENT, "the predictor is for another model");
    }
    e->ahead.predictor = predictor;
    e->ahead.lead = lead, e->ahead.most = most, e->ahead.gain = gain, e->ahead.wait = wait != 0;
    e->ahead.layer_started_ns = 0;
    e->ahead.spent.assign(e->layers.size(), 0);
    return EM_OK;
}

int32_t em_ahead_spent(em_engine * e, int32_t * out, int32_t capacity) {
    if (capacity < int32_t(e->ahead.spent.size())) {
        return em_fail(EM_ERROR_ARGUMENT, "the buffer is too small");
    }
    std::copy(e->ahead.spent.begin(), e->ahead.spent.end(), out);
    std::fill(e->ahead.spent.begin(), e->ahead.spent.end(), 0);
    return EM_OK;
}

int32_t em_force(em_engine * e, const int32_t * ids, int64_t tokens, int32_t used) {
    std::lock_guard<std::mutex> compute(e->compute_mutex);
    const size_t n = size_t(tokens) * e->layers.size() * size_t(used);
    for (size_t i = 0; i < n; ++i) {
        if (ids[i] < 0 || ids[i] >= e->layers[i / size_t(used) % e->layers.size()]->experts) {
            return em_fail(EM_ERROR_ARGUMENT, "an expert of the trace is not in the model");
        }
    }
    e->forced.assign(ids, ids + n);
    e->forced_tokens = tokens, e->forced_used = used, e->forced_at = -1;
    return EM_OK;
}
