#include "processor.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

#    include <cpuid.h>

namespace {

struct registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

bool all(unsigned value, unsigned bits) { return (value & bits) == bits; }

registers leaf(unsigned number, unsigned part) {
    registers r;
    __get_cpuid_count(number, part, &r.a, &r.b, &r.c, &r.d); // zeros where the processor has no such leaf
    return r;
}

// The registers that the operating system keeps, a bit each.
unsigned kept() {
    constexpr unsigned SAVED = 1u << 27; // OSXSAVE
    if (!all(leaf(1, 0).c, SAVED)) {
        return 0;
    }
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

constexpr unsigned YMM = 0x6, ZMM = 0xe6;

bool runs_avx2() {
    constexpr unsigned FMA = 1u << 12, AVX = 1u << 28, F16C = 1u << 29, AVX2 = 1u << 5;
    return all(kept(), YMM) && all(leaf(1, 0).c, FMA | AVX | F16C) && all(leaf(7, 0).b, AVX2);
}

bool runs_avxvnni() {
    constexpr unsigned VNNI = 1u << 4;
    return runs_avx2() && all(leaf(7, 1).a, VNNI);
}

bool runs_avx512() {
    constexpr unsigned BMI2 = 1u << 8, F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31, VNNI = 1u << 11;
    const registers    r = leaf(7, 0);
    return runs_avx2() && all(kept(), ZMM) && all(r.b, BMI2 | F | DQ | BW | VL) && all(r.c, VNNI);
}

bool runs_avx512_bits() {
    constexpr unsigned VBMI = 1u << 1, BITALG = 1u << 12;
    return runs_avx512() && all(leaf(7, 0).c, VBMI | BITALG);
}

} // namespace

// The processor is asked once. In a virtual machine cpuid stops the machine, for tens of microseconds: with a question per layer,
// decode was 15 % slower.

bool em_has_avx2() {
    static const bool has = runs_avx2();
    return has;
}

bool em_has_avxvnni() {
    static const bool has = runs_avxvnni();
    return has;
}

bool em_has_avx512() {
    static const bool has = runs_avx512();
    return has;
}

bool em_has_avx512_bits() {
    static const bool has = runs_avx512_bits();
    return has;
}

#endif
