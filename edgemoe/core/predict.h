#pragma once

// What the routing so far says about the routing to come: log-linear, evaluated by adding rows of tables. Pure arithmetic on ids;
// neither ggml nor an engine is needed, so that a replay asks the very same code. The tables come from Python (predictor/).

#include "edgemoe.h"

#include <cstddef>
#include <vector>

struct em_predictor {
    int32_t layers, experts, used, decays, memories, leads, reach;
    std::vector<float> decay;                         // [decays]
    std::vector<float> keep_bias, keep_decay;         // [layers, experts], [layers, decays]
    std::vector<float> keep_again;                    // [layers, experts, experts]
    std::vector<float> memory_rate, keep_memory;      // [memories], [memories, layers, experts, experts]
    std::vector<float> next_bias, next_decay;         // [leads, layers, experts], [leads, layers, decays]
    std::vector<float> next_again;                    // [leads, layers, experts, experts]
    std::vector<float> next_rows;                     // [leads, reach, layers, experts, experts]

    // After the latest whole token.
    std::vector<float> frequency; // [layers, decays, experts], decayed use per token
    std::vector<float> memory;    // [memories, layers, experts], decayed sums of keep_memory rows
    std::vector<float> keep;      // [layers, experts], probability of use soon
    std::vector<float> base;      // [leads, layers, experts], what is known of the next token before it begins

    // The token under way.
    std::vector<int32_t> ids;     // [layers, used], -1 unknown

    std::vector<float> chance;    // [experts], scratch of choose

    // A token has been computed; ids is [layers, used], -1 where unknown.
    void token(const int32_t * ids);
    // Start from use per token, [layers, experts].
    void seed(const float * use);
    // The token under way uses these experts in a layer.
    void routed(int32_t layer, const int32_t * ids, int64_t n);
    // Probability that the token under way uses each expert of a layer, known lead layers ahead.
    void next(int32_t layer, int32_t lead, float * out) const;
    // The best exchanges for a layer that will run lead layers from now; returns how many.
    int32_t choose(int32_t layer, int32_t lead, const uint8_t * state, int32_t free_slots, int32_t most, float gain, em_load * out);

  private:
    const float * row(const std::vector<float> & table, int64_t block, int32_t expert) const {
        return &table[(std::size_t(block) * std::size_t(experts) + std::size_t(expert)) * std::size_t(experts)];
    }
    void refresh(const int32_t * latest);
};
