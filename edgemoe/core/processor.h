#pragma once

// The instructions of an x86 processor, by cpuid: the check of some compilers is a stub that finds no instruction.

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

// Each is true only where the operating system keeps the registers, too.
bool em_has_avx2(); // with FMA and F16C
bool em_has_avxvnni();
bool em_has_avx512();      // F, BW, VL, DQ and VNNI, with BMI2
bool em_has_avx512_bits(); // VBMI and BITALG as well

#endif
