#include "routing/router.h"

#include "routing/rows.h"

#include <algorithm>
#include <cmath>

void em_router::margins(const float * x, int32_t top_k, float * out) const {
    for (int32_t e = 0; e < experts; ++e) {
        out[e] = em_rows.dot(&weight[size_t(e) * size_t(width)], x, width) + bias[size_t(e)];
        if (!select.empty()) {
            out[e] = 1.0f / (1.0f + std::exp(-out[e])) + select[size_t(e)];
        }
    }
    double sum = 0, squares = 0;
    for (int32_t e = 0; e < experts; ++e) {
        sum += out[e];
        squares += double(out[e]) * out[e];
    }
    const double       mean = sum / experts, variance = squares / experts - mean * mean;
    const float        scale = variance > 1e-20 ? float(1 / std::sqrt(variance)) : 0.0f;
    std::vector<float> sorted(out, out + experts);
    const int32_t      k = std::clamp(top_k, 1, experts - 1);
    std::nth_element(sorted.begin(), sorted.begin() + k, sorted.end(), [](float a, float b) { return a > b; });
    const float border = 0.5f * (sorted[size_t(k)] + *std::min_element(sorted.begin(), sorted.begin() + k));
    for (int32_t e = 0; e < experts; ++e) {
        // Three deviations are certain enough: larger numbers would drown the other evidence.
        out[e] = std::isfinite(out[e]) ? std::clamp((out[e] - border) * scale, -3.0f, 3.0f) : 0.0f;
    }
}
