// A prefill with cold experts that are streamed through the stage.

#include "split/run.h"

namespace {
using pairs_by_expert = std::vector<std::vector<em_pair>>;

// Puts the experts that are in RAM first. The others are read from the disk meanwhile.
void plan_reads(em_ram_use & ram, pairs_by_expert & experts) {
    std::vector<em_pair> order;
    for (size_t i = 0; i < experts.size(); ++i) {
        order.push_back(experts[i][0]);
        order.back().place = int32_t(i);
    }
    ram.plan(order, 0, int64_t(order.size()));
    pairs_by_expert sorted;
    for (const em_pair & p : order) {
        sorted.push_back(std::move(experts[size_t(p.place)]));
    }
    experts = std::move(sorted);
}

// Streams experts in waves of half the stage: while one half computes, the other half is filled.
int stream_waves(em_run & r, pairs_by_expert experts, em_stage & stage, std::vector<em_pair> & failed) {
    em_engine *          e = r.e;
    em_ram_use           ram(e->ram, *r.b.layer);
    const int32_t        half = std::min(stage.places.count / 2, em_ram_most(e->ram, *r.b.layer));
    em_device_pairs      device{r, stage.places, {}};
    std::vector<em_pair> next;
    if (!e->exchange.stage.ensure(r.b.layer->expert_bytes * size_t(half))) {
        for (const auto & pairs : experts) {
            failed.insert(failed.end(), pairs.begin(), pairs.end());
        }
        return STATUS_SUCCESS;
    }
    plan_reads(ram, experts);
    size_t at     = 0;
    bool   in_ram = true;
    for (int wave = 0; at < experts.size() && in_ram && !e->turn.cancelled; ++wave) {
        next.clear();
        for (int32_t i = 0; i < half && at < experts.size(); ++i, ++at) {
            if (i > 0 && int64_t(next.size() + experts[at].size()) > r.hot_at_once()) {
                break;
            }
            in_ram = in_ram && ram.need(experts[at].data(), 1);
            if (!in_ram) {
                break;
            }
            const int32_t place   = (wave % 2) * half + i;
            char *        staging = e->exchange.stage.base + size_t(i) * r.b.layer->expert_bytes;
            em_upload_expert(e->count, e->device.stream, staging, *r.b.layer, stage.places, experts[at][0].expert, place);
            e->count.streamed_bytes += int64_t(r.b.layer->expert_bytes);
            for (em_pair p : experts[at]) {
                p.place = place;
                next.push_back(p);
            }
        }
        G.ggml_backend_synchronize(e->device.stream);
        ram.release(); // without pinned memory, the stream took the weights from staging
        const bool arrived = !em_device_failed(e->device.stream);
        device.finish_all(); // the wave before, computed while this wave was copied
        if (!arrived) {
            failed.insert(failed.end(), next.begin(), next.end());
            continue;
        }
        device.pairs = next;
        device.from  = 0;
        device.start();
    }
    device.finish_all();
    failed.insert(failed.end(), device.failed.begin(), device.failed.end());
    return e->turn.cancelled ? STATUS_ABORTED : in_ram ? STATUS_SUCCESS : STATUS_FAILED;
}

// Takes experts with many tokens away from the cold pairs.
pairs_by_expert take_streamed(em_run & r, std::vector<em_pair> & cold) {
    pairs_by_expert experts(size_t(r.b.layer->experts)), streamed;
    for (const em_pair & p : cold) {
        experts[size_t(p.expert)].push_back(p);
    }
    cold.clear();
    const int64_t enough = em_stream_from(r.e->rates, r.b.layer->expert_bytes, r.e->options.stream_tokens);
    for (auto & pairs : experts) {
        if (int64_t(pairs.size()) >= enough) {
            r.e->count.prefill_streamed += int64_t(pairs.size());
            streamed.push_back(std::move(pairs));
        } else {
            cold.insert(cold.end(), pairs.begin(), pairs.end());
        }
    }
    return streamed;
}
} // namespace

int em_compute_prefill(em_run & r, em_split s) {
    em_engine *           e        = r.e;
    const bool            any      = e->options.stream_tokens > 0 && em_device_usable(e->device, *r.b.layer);
    em_stage *            stage    = any ? em_stage_for(e->residence, *r.b.layer) : nullptr;
    const pairs_by_expert streamed = stage ? take_streamed(r, s.cold) : pairs_by_expert();
    e->count.prefill_hits += int64_t(s.hot.size());
    e->count.prefill_misses += int64_t(s.cold.size());
    int status = r.compute(s);
    if (status != STATUS_SUCCESS || streamed.empty()) {
        return status;
    }
    std::vector<em_pair> failed;
    const int64_t        started = em_now_ns();
    status                       = stream_waves(r, streamed, *stage, failed);
    if (status != STATUS_SUCCESS) {
        return status;
    }
    em_note_rate(e->rates.stream_byte_ns, double(em_now_ns() - started) / double(streamed.size() * r.b.layer->expert_bytes));
    return failed.empty() ? status : r.compute_cold(failed);
}
