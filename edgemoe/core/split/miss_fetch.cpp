// Misses of a decode step: computed on the CPU, or fetched to the device now.

#include "split/run.h"

namespace {

constexpr double FORGET      = 0.999; // of the cost of a fetch, so that one slow moment is not the last word
constexpr double MOST_AT_ONCE = 4;    // times by which one slow moment may raise that
constexpr double FIRST_GUESS = 100e3; // ns that a fetch costs beside its copy

// How many of n cold pairs the device should fetch while the CPU computes the others.
int64_t worth_fetching(em_engine * e, const em_layer_t & layer, int64_t n, double after, double beside, double * both_ns) {
    if (!e->options.stream_tokens) {
        return 0;
    }
    if (const int64_t all_but = e->device.traits.fetches_all_but) {
        return n - (all_but > 1 ? n / all_but : 0);
    }
    const em_division best = em_divide_misses(e->rates, layer.expert_bytes, n, after, beside);
    if (best.fetches && n < em_rates::FEW_MISSES) {
        e->rates.misses_ns[n] *= FORGET; // not measured now: one slow moment must not be the last word
    }
    if (best.fetches) {
        *both_ns = best.both_ns;
    }
    return best.fetches && em_link_idle(e->residence.uploads) ? best.fetches : 0;
}

// A device that cannot read the expert where it lies would have it copied by the CPU, which has better things to do.
bool fetchable(em_engine * e, const em_layer_t & layer, int32_t expert) {
    if (e->device.traits.fetches_all_but) {
        return true;
    }
    bool all = e->device.stream && e->device.stream->iface.set_tensor_async;
    for (int p = 0; p < PROJ_COUNT && all; ++p) {
        const ggml_tensor * w = layer.weight[p];
        all = !w || em_host_readable(layer, p, static_cast<const char *>(w->data) + size_t(expert) * w->nb[2], w->nb[2]);
    }
    return all;
}

// Sends experts to the stage. False: nothing is under way.
bool start_fetch(em_run & r, em_split & s) {
    em_engine *        e = r.e;
    const em_layer_t & layer = *r.b.layer;
    std::vector<em_pair> & pairs = s.fetched;
    em_stage *             stage = em_stage_for(e->residence, layer);
    if (!stage || stage->places.count < int32_t(pairs.size()) || !e->exchange.stage.ensure(layer.expert_bytes * pairs.size())) {
        return false;
    }
    s.fetch_started = em_now_ns(); // the stage was perhaps made just now, once
    for (size_t i = 0; i < pairs.size(); ++i) {
        pairs[i].place = int32_t(i);
        char * staging = e->exchange.stage.base + i * layer.expert_bytes;
        em_upload_expert(e->count, e->device.stream, staging, layer, stage->places, pairs[i].expert, pairs[i].place);
    }
    return true;
}

} // namespace

int em_finish_fetch(em_run & r, const em_split & s) {
    em_engine *        e = r.e;
    const em_layer_t & layer = *r.b.layer;
    const std::vector<em_pair> & pairs = s.fetched;
    const int64_t                n     = int64_t(pairs.size());
    G.ggml_backend_synchronize(e->device.stream);
    bool ok = !em_device_failed(e->device.stream);
    if (ok) {
        const int64_t began  = em_now_ns();
        em_launch     launch = em_pairs_launch(r.device_side(em_stage_for(e->residence, layer)->places), r.b, pairs.data(), n, nullptr);
        ok = launch.status == STATUS_SUCCESS && r.join(launch, pairs.data(), n, began);
        G.ggml_free(launch.ctx);
    }
    if (!ok) {
        return r.redo_on_cpu(pairs.data(), n);
    }
    e->count.fetched += n;
    e->count.streamed_bytes += n * int64_t(layer.expert_bytes);
    em_note_rate(e->rates.fetch_ns, std::clamp(double(em_now_ns() - s.fetch_started) - s.both_ns, 1.0, MOST_AT_ONCE * e->rates.fetch_ns));
    return STATUS_SUCCESS;
}

// Moves what is worth it from cold to fetched, and sends it on its way.
void em_fetch_now(em_run & r, em_split & s) {
    if (r.e->rates.fetch_ns <= 0) {
        r.e->rates.fetch_ns = FIRST_GUESS;
    }
    const int64_t wanted = worth_fetching(r.e, *r.b.layer, int64_t(s.cold.size()), 0, r.e->rates.fetch_ns, &s.both_ns);
    if (!wanted) {
        r.e->rates.fetch_ns *= FORGET;
    }
    const auto cold = s.cold;
    for (size_t i = s.cold.size(); i-- > 0 && int64_t(s.fetched.size()) < wanted;) {
        if (fetchable(r.e, *r.b.layer, s.cold[i].expert)) {
            s.fetched.push_back(s.cold[i]);
            s.cold.erase(s.cold.begin() + int64_t(i));
        }
    }
    if (!s.fetched.empty() && !start_fetch(r, s)) {
        s.cold = cold; // as it was: their order counts
        s.fetched.clear();
    }
}

std::vector<em_pair> em_take_fetched(em_engine * e, const em_layer_t & layer, std::vector<em_pair> & cold) {
    constexpr double     AFTER = 25e3, BESIDE = 5e3; // ns: a graph on the device, and rows moved there; starting all that
    std::vector<em_pair> fetched;
    double               both   = 0;
    int64_t              wanted = worth_fetching(e, layer, int64_t(cold.size()), AFTER, BESIDE, &both);
    if (wanted > 0) {
        const em_stage * stage = em_stage_for(e->residence, layer);
        wanted = stage ? std::min<int64_t>(wanted, stage->places.count) : 0;
    }
    for (size_t i = cold.size(); i-- > 0 && int64_t(fetched.size()) < wanted;) {
        if (fetchable(e, layer, cold[i].expert)) {
            fetched.push_back(cold[i]);
            cold.erase(cold.begin() + int64_t(i));
        }
    }
    return fetched;
}
