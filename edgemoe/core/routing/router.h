#pragma once

// The router of a later layer, applied to the input of an earlier layer. Between them lie one attention and the experts, which
// change the hidden state little, so most choices are the same. The norms of both layers are folded into the weights.

#include <cstdint>
#include <vector>

struct em_router {
    int32_t               width = 0, experts = 0;
    std::vector<uint16_t> weight; // [experts, width], bfloat16: half the bytes to read
    std::vector<float>    bias;   // [experts], added to the logits
    std::vector<float>    select; // [experts], added to the sigmoids of the logits; empty: the logits are compared

    // Gives each expert's distance above the border between chosen and not chosen, in standard deviations; x is [width].
    void margins(const float * x, int32_t top_k, float * out) const;
};
