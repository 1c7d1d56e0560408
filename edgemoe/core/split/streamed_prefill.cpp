// A prefill whose cold experts are streamed through the stage.

#include "split/run.h"

namespace {

// Experts of a prefill that are streamed through the stage, in waves of half its places: while one half computes, the other
// half is filled.
int stream_waves(em_run & r, const std::vector<std::vector<em_pair>> & by_expert, em_stage & stage, std::vector<em_pair> & failed) {
    em_engine *   e    = r.e;
    const int32_t half = stage.places.count / 2;
    em_launch     launch;
    std::vector<em_pair> running, next;
    int64_t from = 0, to = 0, started = 0; // of running, what the device computes
    auto begin = [&] {
        to      = em_graph_end(running, from, int64_t(running.size()), r.pairs_at_once(r.hot_ns()));
        started = em_now_ns();
        launch  = em_pairs_launch(r.device_side(stage.places), r.b, &running[size_t(from)], to - from, nullptr);
    };
    auto finish = [&] {
        while (launch.ctx) {
            if (launch.status != STATUS_SUCCESS || !r.join(launch, &running[size_t(from)], to - from, started)) {
                failed.insert(failed.end(), running.begin() + from, running.begin() + to);
                e->count.device_fallbacks += 1;
            }
            G.ggml_free(launch.ctx);
            launch.ctx = nullptr;
            from = to;
            if (from < int64_t(running.size()) && !e->turn.cancelled) {
                begin();
            }
        }
    };
    if (!e->exchange.stage.ensure(r.b.layer->expert_bytes * size_t(half))) {
        for (const auto & pairs : by_expert) {
            failed.insert(failed.end(), pairs.begin(), pairs.end());
        }
        return STATUS_SUCCESS;
    }
    size_t at = 0;
    for (int wave = 0; at < by_expert.size() && !e->turn.cancelled; ++wave) {
        next.clear();
        for (int32_t i = 0; i < half && at < by_expert.size(); ++i, ++at) {
            const int64_t n = int64_t(next.size() + by_expert[at].size());
            if (i > 0 && n > r.pairs_at_once(r.hot_ns())) {
                break;
            }
            const int32_t place = (wave % 2) * half + i;
            em_upload_expert(e->count, e->device.stream, e->exchange.stage.base + size_t(i) * r.b.layer->expert_bytes, *r.b.layer, stage.places,
                             by_expert[at][0].expert, place);
            e->count.streamed_bytes += int64_t(r.b.layer->expert_bytes);
            for (em_pair p : by_expert[at]) {
                p.place = place;
                next.push_back(p);
            }
        }
        G.ggml_backend_synchronize(e->device.stream);
        const bool arrived = !em_device_failed(e->device.stream);
        finish(); // the wave before, computed while this one was copied
        if (!arrived) {
            failed.insert(failed.end(), next.begin(), next.end());
            continue;
        }
        running.swap(next);
        from = 0;
        begin();
    }
    finish();
    return e->turn.cancelled ? STATUS_ABORTED : STATUS_SUCCESS;
}

} // namespace

int em_compute_prefill(em_run & r, em_split s) {
    em_engine * e     = r.e;
    em_stage *  stage = e->options.stream_tokens > 0 && em_device_usable(e->device, *r.b.layer) ? em_stage_for(e->residence, *r.b.layer) : nullptr;
    std::vector<std::vector<em_pair>> streamed;
    if (stage) {
        std::vector<std::vector<em_pair>> by_expert(size_t(r.b.layer->experts));
        for (const em_pair & p : s.cold) {
            by_expert[size_t(p.expert)].push_back(p);
        }
        s.cold.clear();
        const int64_t enough = em_stream_from(e->rates, r.b.layer->expert_bytes, e->options.stream_tokens);
        for (auto & pairs : by_expert) {
            if (int64_t(pairs.size()) >= enough) {
                e->count.prefill_streamed += int64_t(pairs.size());
                streamed.push_back(std::move(pairs));
            } else {
                s.cold.insert(s.cold.end(), pairs.begin(), pairs.end());
            }
        }
    }
    e->count.prefill_hits += int64_t(s.hot.size());
    e->count.prefill_misses += int64_t(s.cold.size());
    int status = r.compute(s);
    if (status == STATUS_SUCCESS && !streamed.empty()) {
        std::vector<em_pair> failed;
        const int64_t        started = em_now_ns();
        status = stream_waves(r, streamed, *stage, failed);
        if (status == STATUS_SUCCESS) {
            em_note_rate(e->rates.stream_byte_ns, double(em_now_ns() - started) / double(streamed.size() * r.b.layer->expert_bytes));
        }
        if (status == STATUS_SUCCESS && !failed.empty()) {
            s.hot.clear();
            s.cold.swap(failed);
            status = r.compute(s);
        }
    }
    return status;
}
