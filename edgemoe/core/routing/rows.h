#pragma once

// Loops over rows of numbers, for the predictor's tables and the routers. Each loop exists in a version for every group of
// processors. All versions round alike, so their results are equal to the last bit. Fixed when the core is loaded; no lock.

#include <cstdint>
#include <vector>

struct em_row_loops {
    float (*dot)(const uint16_t * row, const float * x, int32_t n); // a row of bfloat16
    void (*to_probabilities)(float * x, int32_t n);                 // within 2e-7 of 1 / (1 + exp(-x))
    void (*add)(float * to, const float * row, int32_t n);
    void (*add_four)(float * to, const float * const * rows, int32_t n);
    void (*add_scaled)(float * to, const float * row, float factor, int32_t n);
    void (*add_shares)(float * to, const uint8_t * share, float factor, float constant, int32_t n);
    void (*scale)(float * to, float factor, int32_t n);
};

// The versions that this processor runs, the fastest one first.
std::vector<em_row_loops> em_row_versions();

// The fastest version.
extern const em_row_loops em_rows;
