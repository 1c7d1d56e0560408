#pragma once

// Predicts the routing to come from the routing so far: log-linear, evaluated by adding rows of tables, and corrected by every
// token (a logistic regression, one step of gradient descent per prediction). The predictor is pure arithmetic on ids and needs
// neither ggml nor an engine, so a replay runs the same code. Python (routing/predictor/) makes the tables and stores them.

#include "edgemoe.h"
#include "memory/huge_pages.h"
#include "routing/token_memory.h"

#include <cstddef>
#include <mutex>
#include <new>
#include <vector>

// Memory for tables: their rows are read in no order.
template <typename T> struct em_huge_pages {
    typedef T value_type;
    em_huge_pages() = default;
    template <typename U> em_huge_pages(const em_huge_pages<U> &) {}
    T * allocate(std::size_t n) {
        if (void * p = em_memory_alloc(n * sizeof(T))) {
            return static_cast<T *>(p);
        }
        throw std::bad_alloc();
    }
    void deallocate(T * p, std::size_t) { em_memory_free(p); }
    bool operator==(const em_huge_pages &) const { return true; }
    bool operator!=(const em_huge_pages &) const { return false; }
};
typedef std::vector<float, em_huge_pages<float>> em_table;

struct em_predictor {
    int32_t            layers, experts, top_k, decays, memories, leads, reach;
    std::vector<float> decay;                         // [decays]
    std::vector<float> keep_bias, keep_decay;         // [layers, experts], [layers, decays]
    em_table           keep_again;                    // [layers, experts, experts]
    std::vector<float> memory_rate;                   // [memories]
    em_table           keep_memory;                   // [memories, layers, experts, experts]
    std::vector<float> next_bias, next_decay;         // [leads, layers, experts], [leads, layers, decays]
    em_table           next_again;                    // [leads, layers, experts, experts]
    em_table           next_rows;                     // [leads, reach, layers, experts, experts]

    std::vector<float> next_token;                    // [leads, layers, EM_TOKEN_TIMES, 2]
    std::vector<float> next_router;                   // [leads, layers]

    // After the latest whole token.
    std::vector<float> frequency; // [layers, decays, experts], decayed use per token
    std::vector<float> memory;    // [memories, layers, experts], decayed sums of keep_memory rows
    std::vector<float> keep;      // [layers, experts], probability of use soon
    std::vector<float> base;      // [leads, layers, experts], logits of the next token before it begins

    // The token under way.
    std::vector<int32_t> ids;     // [layers, top_k], -1 unknown
    int32_t              token_id = -1;
    const uint8_t *      shares   = nullptr; // [layers, experts] of the token's id, null for an unknown id
    int32_t              kind     = 0;       // of the token's id
    em_token_memory      seen;
    std::vector<float>   margins; // [layers, experts], of the routers that look ahead
    std::vector<uint8_t> looked;  // [layers], 1 where there are margins for this token

    std::vector<float>   chance;    // [experts], scratch of choose
    std::vector<int32_t> latest;  // [layers, top_k], experts of the token before the one under way
    std::vector<float>   predicted; // [layers, experts], chances for the token under way
    std::vector<int32_t> predicted_lead; // [layers], layers ahead of the prediction; 0: no prediction
    std::vector<float>   error;     // [experts], scratch of learning
    float                rate = 0, horizon = 0;
    int64_t              tokens = 0; // learnt from

    int32_t done = 0; // tokens that end() has learnt from; token() will get the same tokens again, and skips them

    // Guards `keep`, which token() and seed() write and other threads read.
    std::mutex keep_mutex;

    // Begins a token of this id.
    void begin(int32_t id);
    // Ends the token, and learns from its routing in all layers.
    void end();
    // Learns from a computed token which experts are used soon, and predicts the next uses. ids is [layers, top_k], -1 where
    // unknown.
    void token(const int32_t * ids);
    // Starts from use per token, [layers, experts].
    void seed(const float * use);
    // Learns from the experts that the token under way uses in a layer.
    void routed(int32_t layer, const int32_t * ids, int64_t n);
    // Takes the margins of a layer's router that was run ahead, see em_router.
    void hint(int32_t layer, const float * values);
    // Gives the probability that the token under way uses each expert of a layer, known `lead` layers ahead.
    void next(int32_t layer, int32_t lead, float * out);
    // Chooses the best exchanges for a layer that runs `lead` layers from now; returns how many.
    int32_t choose(int32_t layer, int32_t lead, const uint8_t * state, int32_t free_slots, int32_t most, float gain, em_load * out);

  private:
    const float * row(const em_table & table, int64_t block, int32_t expert) const {
        return &table[(std::size_t(block) * std::size_t(experts) + std::size_t(expert)) * std::size_t(experts)];
    }
    void   refresh(int32_t layer, const int32_t * latest);
    size_t token_weights(int32_t layer, int32_t lead) const;
    void   learn_next(int32_t layer, const int32_t * chosen, int64_t n);
    void   learn_keep(int32_t layer, const int32_t * now, const float * before);
    void   add_to_rows(em_table & table, int64_t block, const int32_t * of, const float * values);
    float  quickness() const;
    void   touch_rows(const int32_t * latest, int32_t layer) const;
};
