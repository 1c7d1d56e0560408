#include "routing/prefetch.h"
#include "routing/predictor.h"

namespace {
using lookahead = em_lookahead_thread;

void clock_layers(em_prefetch & a, int32_t layer) {
    const int64_t now = em_now_ns();
    if (layer > 0 && a.layer_started_ns) {
        em_note_rate(a.rates.layer_ns, double(now - a.layer_started_ns), EM_SMOOTH_OFTEN);
    }
    a.layer_started_ns = now;
}

// Queues experts that an expert layer of the token under way will miss. Returns how many.
int32_t prefetch_layer(em_prefetch & a, int32_t at) {
    constexpr int32_t MOST   = 16;
    em_layer_t &      target = *a.model.layers[size_t(at)];
    em_residents &    there  = target.residents;
    int32_t           most   = std::min(a.most, MOST);
    if (!a.wait) {
        most = int32_t(em_prefetches_in_time(a.rates, target.expert_bytes, a.lead, em_urgent_waiting(a.residence.uploads), most));
    }
    em_load loads[MOST];
    int32_t n = 0;
    if (most > 0) {
        std::lock_guard<std::mutex> lock(there.mutex);
        if (!there.slots.empty() && target.experts == a.predictor->experts) {
            const auto           pending = std::count(there.state.begin(), there.state.end(), uint8_t(EM_PENDING));
            const int32_t        free    = int32_t(there.slots.size()) - there.count - int32_t(pending);
            std::vector<uint8_t> state   = there.state;
            for (size_t expert = 0; expert < there.pinned.size(); ++expert) {
                state[expert] = there.pinned[expert] && state[expert] == EM_RESIDENT ? uint8_t(EM_PENDING) : state[expert];
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

// The routing of a layer is known: learns from it, and prefetches for a later layer.
void look(em_prefetch & a, const em_snapshot & s) {
    a.predictor->routed(s.layer, s.ids.data(), int64_t(s.ids.size()));
    const int32_t at = s.layer + a.lead, layers = int32_t(a.model.layers.size());
    if (s.layer == layers - 1) {
        a.predictor->end();
    }
    if (at >= layers || a.most == 0) {
        return;
    }
    if (!s.input.empty()) {
        std::vector<float> margins(size_t(a.predictor->experts));
        a.routers[size_t(at)].margins(s.input.data(), a.predictor->top_k, margins.data());
        a.predictor->hint(at, margins.data());
    }
    copy_now(a, prefetch_layer(a, at));
}

void move_to(lookahead & l, lookahead::state_t state) {
    {
        std::lock_guard<std::mutex> lock(l.mutex);
        l.state = state;
    }
    l.changed.notify_all();
}

void lookahead_main(em_prefetch & a) {
    lookahead &                  l = a.lookahead;
    std::unique_lock<std::mutex> lock(l.mutex);
    for (;;) {
        l.changed.wait(lock, [&] { return l.state == lookahead::POSTED || l.state == lookahead::STOPPING; });
        if (l.state == lookahead::STOPPING) {
            return;
        }
        l.state = lookahead::RUNNING;
        lock.unlock();
        look(a, l.snapshot);
        lock.lock();
        if (l.state == lookahead::RUNNING) {
            l.state = lookahead::IDLE;
        }
        l.changed.notify_all();
    }
}

// Copies the input of the block's experts, for the router of the layer to prefetch for. False: that router cannot read the input.
bool copy_input(em_prefetch & a, const em_block & block, std::vector<float> & input) {
    const size_t        at = size_t(block.layer->index + a.lead);
    const ggml_tensor * x  = block.node[0]->src[1];
    input.clear();
    if (a.most == 0 || at >= a.routers.size() || a.routers[at].experts != a.predictor->experts || !x || x->type != TYPE_F32 ||
        x->ne[0] != a.routers[at].width || x->ne[1] * x->ne[2] * x->ne[3] != 1) {
        return false;
    }
    const float * values = static_cast<const float *>(x->data);
    input.assign(values, values + x->ne[0]);
    return true;
}

void settle(em_prefetch & a) {
    lookahead &                  l = a.lookahead;
    std::unique_lock<std::mutex> lock(l.mutex);
    if (l.state == lookahead::POSTED) { // no core was free for the thread: look here, without the router, which takes long
        l.state = lookahead::IDLE;
        lock.unlock();
        l.snapshot.input.clear();
        look(a, l.snapshot);
        return;
    }
    l.changed.wait(lock, [&] { return l.state != lookahead::RUNNING; });
}
} // namespace

void em_prefetch_stop(em_prefetch & a) {
    if (a.lookahead.thread.joinable()) {
        settle(a);
        move_to(a.lookahead, lookahead::STOPPING);
        a.lookahead.thread.join();
        a.lookahead.state = lookahead::IDLE;
    }
}

void em_look_ahead(em_prefetch & a, const em_block & block) {
    lookahead &   l     = a.lookahead;
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
    l.snapshot.layer    = layer;
    l.snapshot.ids.assign(ids, ids + block.k);
    if (!copy_input(a, block, l.snapshot.input)) {
        look(a, l.snapshot);
    } else {
        move_to(l, lookahead::POSTED);
        if (a.wait) {
            std::unique_lock<std::mutex> lock(l.mutex);
            l.changed.wait(lock, [&] { return l.state == lookahead::IDLE; });
        }
    }
    a.count.schedule_ns += em_now_ns() - started;
}

void em_prefetch_begin(em_prefetch & a) { a.spent.assign(a.model.layers.size(), 0); }

void em_prefetch_router(em_prefetch & a, int32_t layer, em_router router) {
    a.routers.resize(a.model.layers.size());
    a.routers[size_t(layer)] = std::move(router);
    if (!a.lookahead.thread.joinable()) {
        a.lookahead.thread = std::thread([&a] { lookahead_main(a); });
    }
}

void em_prefetch_token(em_prefetch & a, int32_t token_id) {
    if (!a.predictor) {
        return;
    }
    settle(a);
    begin_step(a);
    a.begun = true;
    a.predictor->begin(token_id);
    int32_t queued = 0;
    for (int32_t at = 0; a.most > 0 && at < a.lead && at < int32_t(a.model.layers.size()); ++at) {
        queued += prefetch_layer(a, at);
    }
    copy_now(a, queued);
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
