// Misses of a decode step: computed on the CPU, or fetched to the device now. pass/decode_layer.cpp uses the same choice, and
// leaves the rows on the device.

#include "split/run.h"

// Gives how many of n cold pairs the device should fetch while the CPU computes the others.
static int64_t worth_fetching(em_engine * e, const em_layer_t & layer, int64_t n, double after, double beside, double * both_ns) {
    if (!e->options.stream_tokens || e->ram.on) { // an expert that comes from the disk is computed where it arrives
        return 0;
    }
    if (const int64_t all_but = e->device.traits.fetches_all_but) {
        return n - (all_but > 1 ? n / all_but : 0);
    }
    const em_division best = em_divide_misses(e->rates, layer.expert_bytes, n, after, beside);
    if (best.fetches && n < em_rates::MISSES) {
        em_fade(e->rates.misses_ns[n]);
    }
    *both_ns = best.both_ns;
    return best.fetches && em_link_idle(e->residence.uploads) ? best.fetches : 0;
}

// Whether a fetch of the expert is worth a try. If the device cannot read it by itself, the CPU would have to copy it instead of
// computing.
static bool fetchable(em_engine * e, const em_layer_t & layer, int32_t expert) {
    bool all = e->device.stream && e->device.stream->iface.set_tensor_async;
    for (int p = 0; p < PROJ_COUNT && all; ++p) {
        all = !layer.weight[p] || em_host_readable(layer, p, expert);
    }
    return all || e->device.traits.fetches_all_but;
}

// Sends experts to the stage. False: nothing is under way.
static bool start_fetch(em_run & r, em_split & s) {
    em_engine *        e     = r.e;
    const em_layer_t & layer = *r.b.layer;
    em_stage *         stage = em_stage_for(e->residence, layer);
    if (!stage || !e->exchange.stage.ensure(layer.expert_bytes * s.fetched.size())) {
        return false;
    }
    s.fetch_started = em_now_ns();
    char * staging  = e->exchange.stage.base;
    for (em_pair & p : s.fetched) {
        p.place = int32_t(&p - s.fetched.data());
        em_upload_expert(e->count, e->device.stream, staging, layer, stage->places, p.expert, p.place);
        staging += layer.expert_bytes;
    }
    return true;
}

std::vector<em_pair> em_take_fetched(em_engine * e, const em_layer_t & layer, std::vector<em_pair> & cold, double after,
                                     double beside, double * both_ns) {
    std::vector<em_pair> fetched;
    int64_t              wanted = worth_fetching(e, layer, int64_t(cold.size()), after, beside, both_ns);
    if (wanted > 0) {
        const em_stage * stage = em_stage_for(e->residence, layer);
        wanted                 = stage ? std::min<int64_t>(wanted, stage->places.count) : 0;
    }
    for (size_t i = cold.size(); i-- > 0 && int64_t(fetched.size()) < wanted;) {
        if (fetchable(e, layer, cold[i].expert)) {
            fetched.push_back(cold[i]);
            cold.erase(cold.begin() + int64_t(i));
        }
    }
    return fetched;
}

void em_fetch_now(em_run & r, em_split & s) {
    const auto cold = s.cold;
    s.fetched       = em_take_fetched(r.e, *r.b.layer, s.cold, 0, r.e->rates.fetch_ns, &s.both_ns);
    if (s.fetched.empty()) {
        em_fade(r.e->rates.fetch_ns);
    } else if (!start_fetch(r, s)) {
        s.cold = cold; // in the old order, because the order of a token's pairs must stay
        s.fetched.clear();
    }
}

int em_finish_fetch(em_run & r, const em_split & s) {
    em_engine *   e = r.e;
    const int64_t n = int64_t(s.fetched.size());
    G.ggml_backend_synchronize(e->device.stream);
    if (em_device_failed(e->device.stream)) {
        e->count.device_fallbacks += 1;
        return r.compute_cold(s.fetched);
    }
    em_device_pairs device{r, em_stage_for(e->residence, *r.b.layer)->places, s.fetched};
    device.start();
    device.finish_all();
    if (!device.failed.empty()) {
        return r.compute_cold(device.failed);
    }
    e->count.fetched += n;
    e->count.streamed_bytes += n * int64_t(r.b.layer->expert_bytes);
    em_note_fetch(e->rates, double(em_now_ns() - s.fetch_started) - s.both_ns);
    return STATUS_SUCCESS;
}
