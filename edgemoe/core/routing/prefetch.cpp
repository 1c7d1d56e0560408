// Loading experts ahead of need, while a token is under way.

#include "engine.h"
#include "predict.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr double SMOOTH = 0.1;

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
            std::vector<uint8_t> state = target.state;
            for (size_t expert = 0; expert < target.pinned.size(); ++expert) {
                state[expert] = target.pinned[expert] && state[expert] == EM_RESIDENT ? uint8_t(EM_PENDING) : state[expert];
            }
            n = a.predictor->choose(at, a.lead, state.data(), std::max(free, 0), most, a.gain, loads);
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
    std::fill(e->ahead.spent.begin(), e->ahead.spent.end(), 0);
}

void copy_now(em_engine * e, int32_t queued) {
    if (queued > 0) {
        e->queue_changed.notify_all();
        if (e->ahead.wait) {
            em_wait_uploads(e, 10000);
        }
    }
}

// The routing of a layer is known: learn from it, and fetch for a later one.
void look(em_engine * e, const em_glimpse & g) {
    em_ahead & a = e->ahead;
    a.predictor->routed(g.layer, g.ids.data(), int64_t(g.ids.size()));
    const int32_t at = g.layer + a.lead, layers = int32_t(e->layers.size());
    if (g.layer == layers - 1) {
        a.predictor->end();
    }
    if (at >= layers || a.most == 0) {
        return;
    }
    if (!g.input.empty()) {
        std::vector<float> margins(size_t(a.predictor->experts));
        e->routers[size_t(at)].margins(g.input.data(), a.predictor->used, margins.data());
        a.predictor->hint(at, margins.data());
    }
    copy_now(e, fetch_ahead(e, at));
}

void looker_main(em_engine * e) {
    em_looker &                  l = e->looker;
    std::unique_lock<std::mutex> lock(l.mutex);
    for (;;) {
        l.changed.wait(lock, [&] { return l.state == em_looker::POSTED || l.state == em_looker::STOPPING; });
        if (l.state == em_looker::STOPPING) {
            return;
        }
        l.state = em_looker::RUNNING;
        lock.unlock();
        look(e, l.glimpse);
        lock.lock();
        if (l.state == em_looker::RUNNING) {
            l.state = em_looker::IDLE;
        }
        l.changed.notify_all();
    }
}

// What the experts of the block read, where the router of the layer to fetch for can look at it.
bool see(em_engine * e, const em_block & block, std::vector<float> & input) {
    const size_t at = size_t(block.layer->index + e->ahead.lead);
    input.clear();
    if (e->ahead.most == 0 || at >= e->routers.size() || e->routers[at].experts != e->ahead.predictor->experts) {
        return false;
    }
    const ggml_tensor * x = block.node[0]->src[1];
    if (!x || x->type != TYPE_F32 || x->ne[0] != e->routers[at].width || x->ne[1] * x->ne[2] * x->ne[3] != 1) {
        return false;
    }
    const float * values = static_cast<const float *>(x->data);
    input.assign(values, values + x->ne[0]);
    return true;
}

} // namespace

void em_look_settle(em_engine * e) {
    em_looker &                  l = e->looker;
    std::unique_lock<std::mutex> lock(l.mutex);
    if (l.state == em_looker::POSTED) { // no core was free for it: better late than a router behind
        l.state = em_looker::IDLE;
        lock.unlock();
        l.glimpse.input.clear();
        look(e, l.glimpse);
        return;
    }
    l.changed.wait(lock, [&] { return l.state != em_looker::RUNNING; });
}

void em_look_stop(em_engine * e) {
    em_looker & l = e->looker;
    if (!l.thread.joinable()) {
        return;
    }
    em_look_settle(e);
    {
        std::lock_guard<std::mutex> lock(l.mutex);
        l.state = em_looker::STOPPING;
    }
    l.changed.notify_all();
    l.thread.join();
    l.state = em_looker::IDLE;
}

// Benchmarks replay real routing on weights that have none: a row of the trace per token. The last layer of a long batch
// computes only the tokens that are asked for, which are its last ones.
void em_force_routing(em_engine * e, int32_t layer, ggml_tensor * ids) {
    if (e->forced_tokens == 0 || ids->ne[0] != e->forced_used) {
        return;
    }
    const int64_t tokens = ids->ne[1];
    if (layer == 0) {
        e->forced_at = (e->forced_at + tokens) % e->forced_tokens;
    }
    for (int64_t t = 0; t < tokens; ++t) {
        const int64_t back = (tokens - 1 - t) % e->forced_tokens;
        const int64_t at   = (e->forced_at - back + e->forced_tokens) % e->forced_tokens;
        const size_t  row  = (size_t(at) * e->layers.size() + size_t(layer)) * size_t(e->forced_used);
        memcpy(static_cast<char *>(ids->data) + t * ids->nb[1], &e->forced[row], size_t(e->forced_used) * 4);
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

void em_look_ahead(em_engine * e, const em_block & block) {
    em_ahead &    a     = e->ahead;
    em_looker &   l     = e->looker;
    const int32_t layer = block.layer->index;
    if (layer == 0) {
        if (!a.begun) {
            begin_step(e);
        }
        a.begun = false;
        a.alone = block.tokens == 1; // in the last layer llama.cpp computes one token of a long batch, too
    }
    e->layer_now = layer;
    if (!a.predictor || !a.alone || block.tokens != 1) {
        return;
    }
    const int64_t started = em_now_ns();
    em_look_settle(e);
    clock_layers(e, layer);
    const int32_t * ids = static_cast<const int32_t *>(block.ids->data);
    l.glimpse.layer     = layer;
    l.glimpse.ids.assign(ids, ids + block.k);
    if (!see(e, block, l.glimpse.input)) {
        look(e, l.glimpse);
    } else {
        {
            std::lock_guard<std::mutex> lock(l.mutex);
            l.state = em_looker::POSTED;
        }
        l.changed.notify_all();
        if (a.wait) {
            std::unique_lock<std::mutex> lock(l.mutex);
            l.changed.wait(lock, [&] { return l.state == em_looker::IDLE; });
        }
    }
    e->count.schedule_ns += em_now_ns() - started;
}

int32_t em_set_router(em_engine * e, int32_t layer, const uint16_t * weight, const float * bias, const float * select, int32_t experts,
                      int32_t width) {
    std::lock_guard<std::mutex> compute(e->compute_mutex);
    if (layer < 0 || layer >= int32_t(e->layers.size()) || experts < 2 || width < 1) {
        return em_fail(EM_ERROR_ARGUMENT, "no such layer, or no router");
    }
    e->routers.resize(e->layers.size());
    em_router & r = e->routers[size_t(layer)];
    r.experts = experts, r.width = width;
    r.weight.assign(weight, weight + size_t(experts) * size_t(width));
    r.bias.assign(bias, bias + experts);
    r.select = select ? std::vector<float>(select, select + experts) : std::vector<float>();
    if (!e->looker.thread.joinable()) {
        e->looker.thread = std::thread(looker_main, e);
    }
    return EM_OK;
}

int32_t em_begin_token(em_engine * e, int32_t token_id) {
    std::lock_guard<std::mutex> compute(e->compute_mutex);
    em_ahead & a = e->ahead;
    if (!a.predictor) {
        return EM_OK;
    }
    const int64_t started = em_now_ns();
    em_look_settle(e);
    begin_step(e);
    a.begun = true;
    a.predictor->begin(token_id);
    int32_t queued = 0;
    for (int32_t at = 0; a.most > 0 && at < a.lead && at < int32_t(e->layers.size()); ++at) {
        queued += fetch_ahead(e, at);
    }
    copy_now(e, queued);
    e->count.schedule_ns += em_now_ns() - started;
    return EM_OK;
}

int32_t em_set_ahead(em_engine * e, em_predictor * predictor, int32_t lead, int32_t most, float gain, int32_t wait) {
    std::lock_guard<std::mutex> compute(e->compute_mutex);
    if (predictor && (predictor->layers != int32_t(e->layers.size()) || lead < 1 || lead > predictor->leads)) {
        return em_fail(EM_ERROR_ARGUMENT, "the predictor is for another model");
    }
    em_look_settle(e);
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
    return EM_OK;
}

int32_t em_end_step(em_engine * e) {
    em_look_settle(e);
    e->ahead.begun = e->ahead.alone = false;
    return e->unseen.exchange(false) ? EM_UNSEEN : EM_OK;
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
