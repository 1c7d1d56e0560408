// IQ2_XXS, IQ2_S, IQ3_XXS and IQ3_S with AVX-512: blocks of 256 weights that name groups of 8 or 4 weights by number.
//
// A group has a code of 16 bits, two or three bits for each weight. Registers hold the codes, so 32 groups are looked up at once.
// One instruction makes bytes of the bits of 64 weights.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#    define EM_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx512bitalg,bmi2,f16c,fma")))
#endif

#include "avx512_blocks.h"
#include "grids.h"
#include "processor.h"

#include <algorithm>

#ifdef EM_AVX512

namespace {

constexpr int RAISED = 64; // weights are at most 62

struct alignas(64) codes {
    uint16_t of[1024]; // the code of each group; the lowest bits belong to its first weight
    uint8_t  low[512], high[512]; // the low and high bytes of the codes, if the type has at most 512 groups
    int8_t   plus[64], minus[64]; // raised weights by their bits, in four copies
};

codes codes_of(int type) {
    const em_grid & grid  = *em_grid_of(type);
    const int       total = grid.count * grid.width, bits = 16 / grid.width == 2 ? 2 : 3;
    codes           out{};
    int8_t          values[8];
    int             count = 0;
    for (int i = 0; i < total; ++i) {
        const int8_t value = grid.weight[i];
        int          code  = int(std::find(values, values + count, value) - values);
        if (code == count) {
            values[count++] = value;
        }
        out.of[i / grid.width] |= uint16_t(code << i % grid.width * bits);
    }
    for (int i = 0; i < 512; ++i) {
        out.low[i] = uint8_t(out.of[i]), out.high[i] = uint8_t(out.of[i] >> 8);
    }
    for (int i = 0; i < 64; ++i) {
        const int8_t value = i % 16 < count ? values[i % 16] : 0;
        out.plus[i] = int8_t(RAISED + value), out.minus[i] = int8_t(RAISED - value);
    }
    return out;
}

// The codes of 32 groups.
template <int COUNT> EM_TARGET static inline __m512i look_up(const codes & table, __m512i numbers) {
    __m512i found[COUNT / 64];
    EM_UNROLL
    for (int i = 0; i < COUNT / 64; ++i) {
        found[i] =
            _mm512_permutex2var_epi16(_mm512_load_si512(table.of + 64 * i), numbers, _mm512_load_si512(table.of + 64 * i + 32));
    }
    EM_UNROLL
    for (int left = COUNT / 64, bit = 64; left > 1; left /= 2, bit *= 2) {
        const __mmask32 odd = _mm512_test_epi16_mask(numbers, _mm512_set1_epi16(short(bit)));
        EM_UNROLL
        for (int i = 0; i < left / 2; ++i) {
            found[i] = _mm512_mask_mov_epi16(found[2 * i], odd, found[2 * i + 1]);
        }
    }
    return found[0];
}

// Looks up 64 bytes of a table by numbers of nine bits: eight bits in `numbers`, the ninth in a mask.
template <int COUNT> EM_TARGET static inline __m512i look_up_bytes(const uint8_t * table, __m512i numbers, __mmask64 ninth) {
    const __mmask64 eighth = _mm512_movepi8_mask(numbers);
    auto            found  = [&](int at) EM_TARGET {
        return _mm512_permutex2var_epi8(_mm512_load_si512(table + at), numbers, _mm512_load_si512(table + at + 64));
    };
    const __m512i first = _mm512_mask_mov_epi8(found(0), eighth, found(128));
    return COUNT == 256 ? first : _mm512_mask_mov_epi8(first, ninth, _mm512_mask_mov_epi8(found(256), eighth, found(384)));
}

// The codes of 64 groups, in two registers.
struct two_codes {
    __m512i first, second;

    // Each bit of `ninth` is the ninth bit of one number.
    template <int COUNT> EM_TARGET static inline two_codes of(const codes & table, __m512i numbers, uint64_t ninth) {
        // The groups of eight numbers are reordered: unpacklo and unpackhi then give the codes in the order of the numbers.
        const __m512i   mixed = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), numbers);
        const __m128i   bits  = _mm_shuffle_epi8(_mm_cvtsi64_si128(int64_t(ninth)),
                                                 _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, -1, -1, -1, -1, -1, -1, -1, -1));
        const __mmask64 above = __mmask64(_mm_cvtsi128_si64(bits));
        const __m512i   low = look_up_bytes<COUNT>(table.low, mixed, above), high = look_up_bytes<COUNT>(table.high, mixed, above);
        return {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
    }
};

// 64 weights from 8 codes with two bits per weight (`twos`) or 16 codes with three (`threes`). Each bit of `minus` is the sign of a weight.
EM_TARGET static inline __m512i weights_of_twos(const codes & table, __m128i eight, uint64_t minus) {
    const __m512i each = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x0e0c0a0806040200), _mm512_cvtepu16_epi64(eight));
    const __m512i code = _mm512_and_si512(each, _mm512_set1_epi8(3));
    return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(_mm512_load_si512(table.plus), code), minus, _mm512_load_si512(table.minus),
                                    code);
}

EM_TARGET static inline __m512i weights_of_threes(const codes & table, __m256i sixteen, uint64_t minus) {
    const __m512i each = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x2926232009060300), _mm512_cvtepu16_epi32(sixteen));
    const __m512i code = _mm512_and_si512(each, _mm512_set1_epi8(7));
    return _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(_mm512_load_si512(table.plus), code), minus, _mm512_load_si512(table.minus),
                                    code);
}

// Signs of 256 weights, a bit each.
struct signs {
    alignas(32) uint64_t of[4];

    EM_TARGET static inline signs at(const uint8_t * w) {
        signs out;
        memcpy(out.of, w, 32);
        return out;
    }
    // Signs from 8 fields with four groups of 7 bits each. A field begins at bit `first` of 64 bits. An eighth sign makes the
    // number of minus signs in each group even.
    EM_TARGET static inline signs sevens(__m512i fields, int first) {
        const __m512i where = _mm512_set1_epi64(int64_t(uint64_t(first) * 0x01010101 + 0x150e0700));
        const __m256i seven =
            _mm256_and_si256(_mm512_cvtepi64_epi32(_mm512_multishift_epi64_epi8(where, fields)), _mm256_set1_epi8(0x7f));
        const __m256i odd = _mm256_slli_epi16(_mm256_and_si256(_mm256_popcnt_epi8(seven), _mm256_set1_epi8(1)), 7);
        signs         out;
        _mm256_store_si256(reinterpret_cast<__m256i *>(out.of), _mm256_or_si256(seven, odd));
        return out;
    }
};

// The weights of a block. Each lane of `scales` has two scales.
struct block {
    __m512i weights[4], scales[2];

    EM_TARGET inline void set_twos(const codes & table, __m512i groups, const signs & minus) {
        weights[0] = weights_of_twos(table, _mm512_castsi512_si128(groups), minus.of[0]);
        weights[1] = weights_of_twos(table, _mm512_extracti32x4_epi32(groups, 1), minus.of[1]);
        weights[2] = weights_of_twos(table, _mm512_extracti32x4_epi32(groups, 2), minus.of[2]);
        weights[3] = weights_of_twos(table, _mm512_extracti32x4_epi32(groups, 3), minus.of[3]);
    }
    EM_TARGET inline void set_threes(const codes & table, const two_codes & groups, const signs & minus) {
        weights[0] = weights_of_threes(table, _mm512_castsi512_si256(groups.first), minus.of[0]);
        weights[1] = weights_of_threes(table, _mm512_extracti64x4_epi64(groups.first, 1), minus.of[1]);
        weights[2] = weights_of_threes(table, _mm512_castsi512_si256(groups.second), minus.of[2]);
        weights[3] = weights_of_threes(table, _mm512_extracti64x4_epi64(groups.second, 1), minus.of[3]);
    }
    // 8 scales of 32 weights, 16 bits each, in the order 0 2 1 3 4 6 5 7
    EM_TARGET inline void set_scales(__m128i eight) {
        const __m512i all = _mm512_castsi128_si512(eight);
        scales[0]         = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), all);
        scales[1]         = _mm512_permutexvar_epi32(_mm512_setr_epi32(2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3), all);
    }
    template <int TOKENS>
    EM_TARGET inline void add(float d, const prepared_raised * const (&ys)[TOKENS], row_sums<TOKENS> & to) const {
        EM_UNROLL
        for (int t = 0; t < TOKENS; ++t) {
            const prepared_raised & y    = *ys[t];
            auto                    sums = [&](int i) EM_TARGET {
                return _mm512_dpbusd_epi32(_mm512_load_si512(y.start + 16 * i), weights[i], _mm512_load_si512(y.q + 64 * i));
            };
            // sums of four products, at most 62 * 127 * 4, fit 16 bits
            const __m512i total = _mm512_dpwssd_epi32(
                _mm512_dpwssd_epi32(_mm512_setzero_si512(), pair(sums(0), sums(1)), scales[0]), pair(sums(2), sums(3)), scales[1]);
            to.sum[t] = _mm256_fmadd_ps(_mm256_set1_ps(d * y.d), _mm256_cvtepi32_ps(fold(total)), to.sum[t]);
        }
    }
};

// 2 * s + 1
EM_TARGET static inline __m128i odd_scales(__m128i s) { return _mm_or_si128(_mm_add_epi16(s, s), _mm_set1_epi16(1)); }

EM_TARGET static inline __m128i scales_above_28_bits(__m256i fields) {
    return odd_scales(_mm256_cvtepi32_epi16(_mm256_srli_epi32(fields, 28)));
}

inline const codes & codes_in(const em_kernel & k) { return *static_cast<const codes *>(k.table); }

struct iq2_xxs : without_minima {
    static constexpr int   BYTES  = 66;
    static constexpr float FACTOR = 0.125f;
    using activation              = prepared_raised;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const activation * const (&ys)[TOKENS],
                                     row_sums<TOKENS> & to) {
        const __m512i q = _mm512_loadu_si512(w + 2); // for each 32 weights: four numbers, then 28 bits of signs and a scale
        block         b;
        b.set_twos(codes_in(k), look_up<256>(codes_in(k), _mm512_cvtepu8_epi16(_mm512_cvtepi64_epi32(q))), signs::sevens(q, 32));
        b.set_scales(scales_above_28_bits(_mm512_castsi512_si256(
            _mm512_permutexvar_epi32(_mm512_setr_epi32(1, 5, 3, 7, 9, 13, 11, 15, 0, 0, 0, 0, 0, 0, 0, 0), q))));
        b.add(half_at(w), ys, to);
    }
};

struct iq3_xxs : without_minima {
    static constexpr int   BYTES  = 98;
    static constexpr float FACTOR = 0.25f;
    using activation              = prepared_raised;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const activation * const (&ys)[TOKENS],
                                     row_sums<TOKENS> & to) {
        const __m512i numbers = _mm512_loadu_si512(w + 2);
        const __m256i fields  = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + 66));
        const codes & table   = codes_in(k);
        block         b;
        b.set_threes(table, two_codes::of<256>(table, numbers, 0), signs::sevens(_mm512_cvtepu32_epi64(fields), 0));
        b.set_scales(scales_above_28_bits(_mm256_permutevar8x32_epi32(fields, _mm256_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7))));
        b.add(half_at(w), ys, to);
    }
};

struct iq2_s : without_minima {
    static constexpr int   BYTES  = 82;
    static constexpr float FACTOR = 0.125f;
    using activation              = prepared_raised;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const activation * const (&ys)[TOKENS],
                                     row_sums<TOKENS> & to) {
        const __m512i low = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + 2)));
        const __m512i qh  = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(w + 66)));
        const __m512i high =
            _mm512_and_si512(_mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x0600040002000000), qh), _mm512_set1_epi16(0x0300));
        block b;
        b.set_twos(codes_in(k), look_up<1024>(codes_in(k), _mm512_or_si512(low, high)), signs::at(w + 34));
        // 16 scales of 16 weights each. In each four lanes, the low halves hold a scale of the first 64 weights, the high halves
        // a scale of the next 64.
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(w + 74)), nibble = _mm_set1_epi8(0x0f);
        const __m128i each  = _mm_unpacklo_epi8(_mm_and_si128(bytes, nibble), _mm_and_si128(_mm_srli_epi16(bytes, 4), nibble));
        const __m128i odd   = _mm_or_si128(_mm_add_epi8(each, each), _mm_set1_epi8(1));
        const __m128i mixed = _mm_shuffle_epi8(odd, _mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
        const __m512i pairs = _mm512_castsi256_si512(_mm256_cvtepi8_epi16(mixed));
        b.scales[0]         = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), pairs);
        b.scales[1]         = _mm512_permutexvar_epi32(_mm512_setr_epi32(4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7), pairs);
        b.add(half_at(w), ys, to);
    }
};

struct iq3_s : without_minima {
    static constexpr int BYTES = 110;
    using activation           = prepared_raised;

    template <int TOKENS>
    EM_TARGET static inline void add(const em_kernel & k, const uint8_t * w, const activation * const (&ys)[TOKENS],
                                     row_sums<TOKENS> & to) {
        uint64_t ninth;
        uint32_t nibbles;
        memcpy(&ninth, w + 66, 8);
        memcpy(&nibbles, w + 106, 4);
        const codes & table = codes_in(k);
        block         b;
        b.set_threes(table, two_codes::of<512>(table, _mm512_loadu_si512(w + 2), ninth), signs::at(w + 74));
        const __m128i each = _mm_cvtsi64_si128(int64_t(_pdep_u64(nibbles, 0x0f0f0f0f0f0f0f0f)));
        b.set_scales(odd_scales(
            _mm_cvtepu8_epi16(_mm_shuffle_epi8(each, _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1)))));
        b.add(half_at(w), ys, to);
    }
};

template <class W> void use_with(em_kernel & k, int type) {
    static const codes table = codes_of(type);
    k.table                  = &table;
    use<W>(k, prepare_raised<RAISED, NATURAL>);
}

} // namespace

void em_avx512::use_grids(em_kernel & k, int type) {
    if (!em_has_avx512_bits()) {
        return;
    }
    switch (type) {
    case TYPE_IQ2_XXS: use_with<iq2_xxs>(k, type); break;
    case TYPE_IQ2_S: use_with<iq2_s>(k, type); break;
    case TYPE_IQ3_XXS: use_with<iq3_xxs>(k, type); break;
    case TYPE_IQ3_S: use_with<iq3_s>(k, type); break;
    default: break;
    }
}

#endif
