#pragma once

// The groups of weights that IQ types name by number, with ggml's values.

#include "ggml/abi.h"

#include <array>

struct em_grid {
    int    count; // entries
    int    width; // weights of an entry, a byte each: 8 for two bits, 4 for three
    int8_t weight[1024 * 8];
};

// Gives the grid of IQ2_XXS, IQ2_S, IQ3_XXS or IQ3_S; null for other types. It is read from ggml once: ggml multiplies a row of
// chosen entries with vectors that have a single number other than zero.
const em_grid * em_grid_of(int type);

// Signs of 8 weights as bytes, by 7 bits. The eighth sign makes the number of minus signs even.
struct em_even_signs {
    std::array<uint64_t, 128> of{};

    constexpr em_even_signs() {
        for (unsigned i = 0; i < 128; ++i) {
            unsigned odd = 0;
            for (unsigned bit = 0; bit < 7; ++bit) {
                odd ^= i >> bit & 1;
            }
            for (unsigned bit = 0; bit < 8; ++bit) {
                const bool minus = (i | odd << 7) >> bit & 1;
                of[i] |= uint64_t(minus ? 0xff : 0x01) << 8 * bit;
            }
        }
    }
};
inline constexpr em_even_signs EM_EVEN_SIGNS;
