// See prefetch.h.

#include "routing/prefetch.h"

#include "routing/predictor.h"

#include <algorithm>
#include <cstring>

namespace {

constexpr double SMOOTH = 0.1;

// How many more experts reach the device before a layer that many layers ahead runs, at the speeds measured so far.
int32_t link_has_time_for(em_prefetch & a, const em_layer_t & target, int32_t most) {
    const double per_expert = a.rates.copy_ns_per_byte * double(target.expert_bytes);
    if (a.wait || per_expert <= 0 || a.layer_ns <= 0) {
        return most;
    }
    const size_t waiting = em_urgent_waiting(a.residence.uploads);
    const double left = a.layer_ns * a.lead - per_expert * double(waiting);
    return std::clamp(int32_t(left / per_expert), 0, most);
}

void clock_layers(em_prefetch & a, int32_t layer) {
    const int64_t now = em_now_ns();
    if (layer > 0 && a.layer_started_ns) {
        const double took = double(now - a.layer_started_ns);
        a.layer_ns = a.layer_ns > 0 ? a.layer_ns + SMOOTH * (took - a.layer_ns) : took;
    }
    a.layer_started_ns = now;
}

// Queues what an expert layer of the token under way will miss. Returns how many.
int32_t prefetch_layer(em_prefetch & a, int32_t at) {
    em_layer_t &  target = *a.model.layers[size_t(at)];
    const int32_t most   = link_has_time_for(a, target, std::min<int32_t>(a.most, 16));
    em_load       loads[16];
    int32_t       n = 0;
    if (most > 0) {
        std::lock_guard<std::mutex> lock(target.residents.mutex);
        if (!target.residents.slots.empty() && target.experts == a.predictor->experts) {
            const auto pending = std::count(target.residents.state.begin(), target.residents.state.end(), uint8_t(EM_PENDING));
            const int32_t free = int32_t(target.residents.slots.size()) - target.residents.count - int32_t(pending);
            std::vector<uint8_t> state = target.residents.state;
            for (size_t expert = 0; expert < target.residents.pinned.size(); ++expert) {
                state[expert] = target.residents.pinned[expert] && state[expert] == EM_RESIDENT ? uint8_t(EM_PENDING) : state[expert];
            }
            n = a.predictor->choose(at, a.lead, state.data(), std::max(free, 0), most, a.gain, loads);
        }
    }
    for (int32_t i = 0; i < n; ++i) {
        a.spent[size_t(at)] += em_queue(a.residence, loads[i], a.residence.uploads.step);
    }
    return n;
}

void begin_step(em_prefetch & a) {
    a.residence.uploads.begin_step();
    std::fill(a.spent.begin(), a.spent.end(), 0);
}

void copy_now(em_prefetch & a, int32_t queued) {
    if (queued > 0) {
        a.residence.uploads.wake();
        if (a.wait) {
            em_uploads_wait(a.residence.uploads, 10000);
        }
    }
}

// The routing of a layer is known: learn from it, and fetch for a later one.
void look(em_prefetch & a, const em_glimpse & g) {
    a.predictor->routed(g.layer, g.ids.data(), int64_t(g.ids.size()));
    const int32_t at = g.layer + a.lead, layers = int32_t(a.model.layers.size());
    if (g.layer == layers - 1) {
        a.predictor->end();
    }
    if (at >= layers || a.most == 0) {
        return;
    }
    if (!g.input.empty()) {
        std::vector<float> margins(size_t(a.predictor->experts));
        a.routers[size_t(at)].margins(g.input.data(), a.predictor->used, margins.data());
        a.predictor->hint(at, margins.data());
    }
    copy_now(a, prefetch_layer(a, at));
}

void looker_main(em_prefetch & a) {
    em_looker &                  l = a.looker;
    std::unique_lock<std::mutex> lock(l.mutex);
    for (;;) {
        l.changed.wait(lock, [&] { return l.state == em_looker::POSTED || l.state == em_looker::STOPPING; });
        if (l.state == em_looker::STOPPING) {
            return;
        }
        l.state = em_looker::RUNNING;
        lock.unlock();
        look(a, l.glimpse);
        lock.lock();
        if (l.state == em_looker::RUNNING) {
            l.state = em_looker::IDLE;
        }
        l.changed.notify_all();
    }
}

// What the experts of the block read, where the router of the layer to fetch for can look at it.
bool see(em_prefetch & a, const em_block & block, std::vector<float> & input) {
    const size_t at = size_t(block.layer->index + a.lead);
    input.clear();
    if (a.most == 0 || at >= a.routers.size() || a.routers[at].experts != a.predictor->experts) {
        return false;
    }
    const ggml_tensor * x = block.node[0]->src[1];
    if (!x || x->type != TYPE_F32 || x->ne[0] != a.routers[at].width || x->ne[1] * x->ne[2] * x->ne[3] != 1) {
        return false;
    }
    const float * values = static_cast<const float *>(x->data);
    input.assign(values, values + x->ne[0]);
    return true;
}

} // namespace

static void settle(em_prefetch & a) {
    em_looker &                  l = a.looker;
    std::unique_lock<std::mutex> lock(l.mutex);
    if (l.state == em_looker::POSTED) { // no core was free for it: better late than a router behind
        l.state = em_looker::IDLE;
        lock.unlock();
        l.glimpse.input.clear();
        look(a, l.glimpse);
        return;
    }
    l.changed.wait(lock, [&] { return l.state != em_looker::RUNNING; });
}

void em_look_stop(em_prefetch & a) {
    em_looker & l = a.looker;
    if (!l.thread.joinable()) {
        return;
    }
    settle(a);
    {
        std::lock_guard<std::mutex> lock(l.mutex);
        l.state = em_looker::STOPPING;
    }
    l.changed.notify_all();
    l.thread.join();
    l.state = em_looker::IDLE;
}

void em_look_ahead(em_prefetch & a, const em_block & block) {
    em_looker &   l     = a.looker;
    const int32_t layer = block.layer->index;
    if (layer == 0) {
        if (!a.begun) {
            begin_step(a);
        }
        a.begun = false;
        a.alone = block.tokens == 1; // in the last layer llama.cpp computes one token of a long batch, too
    }
    a.residence.uploads.begin_layer(layer);
    if (!a.predictor || !a.alone || block.tokens != 1) {
        return;
    }
    const int64_t started = em_now_ns();
    settle(a);
    clock_layers(a, layer);
    const int32_t * ids = static_cast<const int32_t *>(block.ids->data);
    l.glimpse.layer     = layer;
    l.glimpse.ids.assign(ids, ids + block.k);
    if (!see(a, block, l.glimpse.input)) {
        look(a, l.glimpse);
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
    a.count.schedule_ns += em_now_ns() - started;
}

void em_prefetch_begin(em_prefetch & a) { a.spent.assign(a.model.layers.size(), 0); }

void em_prefetch_router(em_prefetch & a, int32_t layer, em_router router) {
    a.routers.resize(a.model.layers.size());
    a.routers[size_t(layer)] = std::move(router);
    if (!a.looker.thread.joinable()) {
        a.looker.thread = std::thread([&a] { looker_main(a); });
    }
}

void em_prefetch_token(em_prefetch & a, int32_t token_id) {
    if (!a.predictor) {
        return;
    }
    const int64_t started = em_now_ns();
    settle(a);
    begin_step(a);
    a.begun = true;
    a.predictor->begin(token_id);
    int32_t queued = 0;
    for (int32_t at = 0; a.most > 0 && at < a.lead && at < int32_t(a.model.layers.size()); ++at) {
        queued += prefetch_layer(a, at);
    }
    copy_now(a, queued);
    a.count.schedule_ns += em_now_ns() - started;
}

void em_prefetch_set(em_prefetch & a, em_predictor * predictor, int32_t lead, int32_t most, float gain, bool wait) {
    settle(a);
    a.predictor = predictor;
    a.lead = lead, a.most = most, a.gain = gain, a.wait = wait;
    a.layer_started_ns = 0;
    a.spent.assign(a.model.layers.size(), 0);
}

void em_prefetch_end_step(em_prefetch & a) {
    settle(a);
    a.begun = a.alone = false;
}
