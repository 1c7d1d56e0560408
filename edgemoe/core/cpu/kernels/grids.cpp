#include "grids.h"

#include "q8.h"

#include <cmath>

namespace {

using em_q8::q8_k;

constexpr uint16_t ONE        = 0x3c00; // 1.0 as a 16-bit float
constexpr int      MOST_BYTES = 512; // more than any block has

struct layout { // of a block of 256 weights
    int   type, count, width;
    int   high;  // offset of the bits for numbers above 255; 0: the type has no such numbers
    float scale; // multiplies ggml's result for the smallest scale
};

constexpr layout LAYOUTS[] = {
    {TYPE_IQ2_XXS, 256, 8, 0, 8},
    {TYPE_IQ2_S, 1024, 8, 66, 8},
    {TYPE_IQ3_XXS, 256, 4, 0, 4},
    {TYPE_IQ3_S, 512, 4, 66, 1},
};

// A block with entries `first`, `first` + 1 and so on; all signs positive, all scales the smallest.
void fill_block(const layout & l, int first, uint8_t * block) {
    memset(block, 0, MOST_BYTES);
    memcpy(block, &ONE, 2);
    for (int i = 0; i < 256 / l.width; ++i) {
        const int entry = first + i, place = l.type == TYPE_IQ2_XXS ? i / 4 * 8 + i % 4 : i;
        block[2 + place] = uint8_t(entry);
        if (l.high) { // of 32 weights in one byte: two bits each for 8 weights, one bit each for 4
            const int each = l.width == 8 ? 2 : 1, in_byte = 32 / l.width;
            block[l.high + i / in_byte] |= uint8_t(entry >> 8 << i % in_byte * each);
        }
    }
}

em_grid read_grid(const layout & l) {
    em_grid    grid{l.count, l.width, {}};
    const auto dot = G.ggml_get_type_traits_cpu(l.type)->vec_dot;
    for (int first = 0; first < l.count; first += 256 / l.width) {
        uint8_t block[MOST_BYTES];
        fill_block(l, first, block);
        for (int i = 0; i < 256; ++i) {
            q8_k  one{1, {}, {}};
            float product    = 0;
            one.q[i]         = 1;
            one.sums[i / 16] = 1;
            dot(256, &product, 0, block, 0, &one, 0, 1);
            grid.weight[first * l.width + i] = int8_t(std::lround(product * l.scale));
        }
    }
    return grid;
}

} // namespace

const em_grid * em_grid_of(int type) {
    switch (type) {
    case TYPE_IQ2_XXS: {
        static const em_grid grid = read_grid(LAYOUTS[0]);
        return &grid;
    }
    case TYPE_IQ2_S: {
        static const em_grid grid = read_grid(LAYOUTS[1]);
        return &grid;
    }
    case TYPE_IQ3_XXS: {
        static const em_grid grid = read_grid(LAYOUTS[2]);
        return &grid;
    }
    case TYPE_IQ3_S: {
        static const em_grid grid = read_grid(LAYOUTS[3]);
        return &grid;
    }
    default: return nullptr;
    }
}
