#include "routing/token_memory.h"

#include <algorithm>
#include <cstring>
#include <new>

static constexpr size_t  MOST_BYTES  = size_t(64) << 20;
static constexpr int32_t MOST_PLACES = 1 << 18;
// A share follows the latest uses of a token; earlier uses matter less and less.
static constexpr int32_t LATEST_TIMES = 8;

void em_token_memory::make(int32_t layer_count, int32_t expert_count) {
    layers = layer_count, experts = expert_count;
    const size_t bytes = size_t(layers) * size_t(experts);
    places             = int32_t(std::clamp<size_t>(MOST_BYTES / bytes, 1, MOST_PLACES));
    token_of.assign(size_t(places), -1);
    times.assign(size_t(places), 0);
    share.reset(static_cast<uint8_t *>(calloc(size_t(places), bytes)));
    if (!share) {
        throw std::bad_alloc();
    }
}

void em_token_memory::note(int32_t token, const int32_t * ids, int32_t top_k) {
    if (token < 0) {
        return;
    }
    const size_t at = place(token);
    if (token_of[at] != token) {
        token_of[at] = token;
        times[at]    = 0;
    }
    times[at]       = uint8_t(std::min(times[at] + 1, 255));
    const int32_t n = std::min<int32_t>(times[at], LATEST_TIMES);
    for (int32_t l = 0; l < layers; ++l) {
        const int32_t * chosen = ids + l * top_k;
        uint8_t *       s      = row(at) + size_t(l) * size_t(experts);
        if (n > 1 && std::all_of(chosen, chosen + top_k, [](int32_t e) { return e < 0; })) {
            continue; // this layer did not compute this token
        }
        for (int32_t e = 0; e < experts; ++e) {
            s[e] = uint8_t(s[e] * (n - 1) / n);
        }
        for (int32_t i = 0; i < top_k; ++i) {
            if (chosen[i] >= 0) {
                s[chosen[i]] = uint8_t(s[chosen[i]] + 255 / n);
            }
        }
    }
}

const uint8_t * em_token_memory::shares(int32_t token) const {
    if (token < 0) {
        return nullptr;
    }
    const size_t at = place(token);
    return token_of[at] == token ? row(at) : nullptr;
}

int32_t em_token_memory::kind(int32_t token) const {
    const int32_t n = times[place(token)];
    return n < 2 ? 0 : n < 5 ? 1 : 2;
}
