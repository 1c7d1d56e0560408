#pragma once

// The experts that each token id used before. They are known for all layers before a pass begins. Each id has one place; if two
// ids share a place, the later id takes it.

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

constexpr int32_t EM_TOKEN_TIMES = 3; // kinds of tokens: seen once, 2 to 4 times, more often

struct em_token_memory {
    void make(int32_t layers, int32_t experts);
    // Notes a token's routing; ids is [layers, top_k], -1 where unknown.
    void note(int32_t token, const int32_t * ids, int32_t top_k);
    // Gives the share of a token's uses in which it used each expert: [layers, experts], in 1/255. Null for a new token.
    const uint8_t * shares(int32_t token) const;
    int32_t         kind(int32_t token) const; // 0 .. EM_TOKEN_TIMES - 1, of a token that is not new

  private:
    struct release {
        void operator()(uint8_t * p) const { free(p); }
    };
    int32_t                           layers = 0, experts = 0, places = 0;
    std::vector<int32_t>              token_of; // [places], -1 none
    std::vector<uint8_t>              times;    // [places], up to 255
    std::unique_ptr<uint8_t, release> share; // [places, layers, experts]; untouched pages take no memory

    size_t    place(int32_t token) const { return size_t(token) % size_t(places); }
    uint8_t * row(size_t at) const { return share.get() + at * size_t(layers) * size_t(experts); }
};
