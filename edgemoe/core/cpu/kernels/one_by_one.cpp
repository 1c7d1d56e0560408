// Rows times tokens, one token at a time, for types without a kernel for several tokens; see kernels.h.

#include "kernels.h"

void em_one_by_one(const em_kernel & k, const em_weight_rows & rows, const em_activations & tokens, int64_t from, int64_t to,
                   int64_t first) {
    for (int64_t t = first; t < tokens.count; ++t) {
        for (int64_t r = from; r < to; ++r) {
            k.dot(k, rows.width, rows.at(r), tokens.prepared[t], &tokens.out[t][r]);
        }
    }
}
