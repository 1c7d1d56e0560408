#pragma once

// What the routing so far says about the routing to come: log-linear, evaluated by adding rows of tables, and corrected by every
// token (a logistic regression, one step of gradient descent per prediction). Pure arithmetic on ids; neither ggml nor an engine is
// needed, so that a replay asks the very same code. The tables come from Python (predictor/) and go back there to be kept.

#include "edgemoe.h"
#include "memory/huge_pages.h"
#include "routing/token_memory.h"

#include <cstddef>
#include <mutex>
#include <new>
#include <vector>

// Rows of a table are read all over it.
template <typename T> struct em_huge_pages {
    typedef T value_type;
    em_huge_pages() = default;
    template <typename U> em_huge_pages(const em_huge_pages<U> &) {}
    T *  allocate(std::size_t n) {
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
    int32_t layers, experts, used, decays, memories, leads, reach;
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
    std::vector<float> base;      // [leads, layers, experts], what is known of the next token before it begins

    // The token under way.
    std::vector<int32_t> ids;     // [layers, used], -1 unknown
    int32_t              token_id = -1;
    const uint8_t *      shares = nullptr; // [layers, experts] of its id, null where that is not known
    int32_t              kind   = 0;       // of its id
    em_token_memory      seen;
    std::vector<float>   margins; // [layers, experts], of the routers' look-ahead
    std::vector<uint8_t> looked;  // [layers], 1 where there are margins for this token

    std::vector<float> chance;    // [experts], scratch of choose
    std::vector<int32_t> latest;  // [layers, used], experts of the token before the one under way
    std::vector<float> said;      // [layers, experts], what was predicted of the token under way
    std::vector<int32_t> said_lead; // [layers], and how far ahead; 0 not at all
    std::vector<float> error;     // [experts], scratch of learning
    float              rate = 0, horizon = 0;
    int64_t            tokens = 0; // learnt from

    int32_t              done = 0; // tokens that were learnt by end() and will be told again

    // Whoever asks what to keep need not be who computes: guards keep while token() and seed() write it.
    std::mutex keep_mutex;

    // A token of this id is under way.
    void begin(int32_t id);
    // It was routed through all layers: learn from it.
    void end();
    // A token has been computed: learn from it what is used soon, and say what will be; ids is [layers, used], -1 where unknown.
    void token(const int32_t * ids);
    // Start from use per token, [layers, experts].
    void seed(const float * use);
    // The token under way uses these experts in a layer: learn from what was said of it.
    void routed(int32_t layer, const int32_t * ids, int64_t n);
    // The router of a layer was looked at ahead: em_router::margins.
    void hint(int32_t layer, const float * values);
    // Probability that the token under way uses each expert of a layer, known lead layers ahead.
    void next(int32_t layer, int32_t lead, float * out);
    // The best exchanges for a layer that will run lead layers from now; returns how many.
    int32_t choose(int32_t layer, int32_t lead, const uint8_t * state, int32_t free_slots, int32_t most, float gain, em_load * out);

  private:
    const float * row(const em_table & table, int64_t block, int32_t expert) const {
        return &table[(std::size_t(block) * std::size_t(experts) + std::size_t(expert)) * std::size_t(experts)];
    }
    void refresh(int32_t layer, const int32_t * latest);
    size_t token_weights(int32_t layer, int32_t lead) const;
    void  learn_next(int32_t layer, const int32_t * chosen, int64_t n);
    void  learn_keep(int32_t layer, const int32_t * now, const float * before);
    void  add_to_rows(em_table & table, int64_t block, const int32_t * of, const float * values);
    float quickness() const;
    void fetch_rows(const int32_t * latest, int32_t layer) const;
};
