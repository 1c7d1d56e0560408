#pragma once

// Look-ahead: the router of a later layer applied to what an earlier layer reads. Between them lie one attention and the experts,
// which change the hidden state little, so most of its choices are the same. The norms of both layers are folded into the weights.

#include <cstdint>
#include <vector>

struct em_router {
    int32_t               width = 0, experts = 0;
    std::vector<uint16_t> weight; // [experts, width], bfloat16: half the bytes to read
    std::vector<float>    bias;   // [experts], added to the logits
    std::vector<float>    select; // [experts], added to their sigmoids, which are compared then; empty: the logits are

    // How far each expert's score lies above the border between chosen and not, in standard deviations; x is [width].
    void margins(const float * x, int32_t used, float * out) const;
};
