#include "routing/log.h"
#include "errors.h"

#include <algorithm>

namespace {
constexpr size_t CAPACITY = size_t(1) << 20; // int32: 4 MiB, four batches of 512 tokens, 60 layers and top-8

// Events that do not fit are counted and dropped; older events stay.
void append(em_routing_log & log, em_unfinished_pass & pass) {
    log.full = log.full || log.length + pass.events.size() > CAPACITY;
    if (log.full) { // small records too: half a batch would look like a batch
        log.count.dropped_events += pass.events.empty() ? 0 : 1;
    } else if (!pass.events.empty()) {
        log.events.resize(std::max(log.events.size(), log.length + pass.events.size()));
        memcpy(&log.events[log.length], pass.events.data(), pass.events.size() * 4);
        log.length += pass.events.size();
    }
    pass.events.clear();
    pass.block = -1;
}

em_unfinished_pass & pass_of(em_routing_log & log, int64_t context) {
    const auto at = std::find_if(log.passes.begin(), log.passes.end(), [&](const auto & p) { return p.context == context; });
    if (at != log.passes.end()) {
        return *at;
    }
    log.passes.push_back({context});
    return log.passes.back();
}
} // namespace

void em_record(em_routing_log & log, int64_t context, int32_t block, const ggml_tensor * ids) {
    const int64_t k = ids->ne[0], tokens = ids->ne[1];
    if (log.model.layers.front()->block == block) {
        log.count.tokens += tokens;
    }
    std::lock_guard<std::mutex> lock(log.mutex);
    em_unfinished_pass &        pass = pass_of(log, context);
    if (block <= pass.block) { // the pass before ended early
        append(log, pass);
    }
    pass.block            = block;
    std::vector<int32_t> & to = pass.events;
    to.insert(to.end(), {block, int32_t(tokens), int32_t(k)});
    for (int64_t t = 0; t < tokens; ++t) {
        const auto * row = reinterpret_cast<const int32_t *>(static_cast<const char *>(ids->data) + t * ids->nb[1]);
        to.insert(to.end(), row, row + k);
    }
    if (block == log.model.layers.back()->block) {
        append(log, pass);
    }
}

int64_t em_log_drain(em_routing_log & log, int32_t * out, int64_t capacity) {
    std::lock_guard<std::mutex> lock(log.mutex);
    for (em_unfinished_pass & pass : log.passes) {
        append(log, pass);
    }
    log.passes.clear();
    int64_t n = 0;
    while (n < int64_t(log.length)) {
        const int64_t record = 3 + int64_t(log.events[size_t(n) + 1]) * log.events[size_t(n) + 2];
        if (n + record > capacity) {
            break;
        }
        n += record;
    }
    memcpy(out, log.events.data(), size_t(n) * 4);
    memmove(log.events.data(), log.events.data() + n, (log.length - size_t(n)) * 4);
    log.length -= size_t(n);
    log.full = log.full && log.length > 0;
    return n;
}

int em_force_set(em_forced & f, const em_model & model, const int32_t * ids, int64_t tokens, int32_t top_k) {
    const size_t layers = model.layers.size(), n = size_t(tokens) * layers * size_t(top_k);
    for (size_t i = 0; i < n; ++i) {
        if (ids[i] < 0 || ids[i] >= model.layers[i / size_t(top_k) % layers]->experts) {
            return em_fail(EM_ERROR_ARGUMENT, "an expert of the trace is not in the model");
        }
    }
    f = {std::vector<int32_t>(ids, ids + n), tokens, int64_t(layers), top_k, -1};
    return EM_OK;
}

// The last layer of a long batch computes its last tokens only.
void em_force_routing(em_forced & f, int32_t layer, ggml_tensor * ids) {
    if (f.tokens == 0 || ids->ne[0] != f.top_k) {
        return;
    }
    const int64_t tokens = ids->ne[1];
    if (layer == 0) {
        f.at = (f.at + tokens) % f.tokens;
    }
    for (int64_t t = 0; t < tokens; ++t) {
        const int64_t back = (tokens - 1 - t) % f.tokens;
        const int64_t at   = (f.at - back + f.tokens) % f.tokens;
        const size_t  row  = (size_t(at) * size_t(f.layers) + size_t(layer)) * size_t(f.top_k);
        memcpy(static_cast<char *>(ids->data) + t * ids->nb[1], &f.ids[row], size_t(f.top_k) * 4);
    }
}
