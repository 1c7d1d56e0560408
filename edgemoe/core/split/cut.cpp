// Cuts a layer's pairs into graphs, and chooses their kernels. See run.h.

#include "cpu/kernels/kernels.h"
#include "split/run.h"

#include <algorithm>
#include <limits>

int64_t em_graph_end(const std::vector<em_pair> & pairs, int64_t at, int64_t all, int64_t most) {
    int64_t end = at;
    while (end < all) {
        const int32_t expert = pairs[size_t(end)].expert;
        int64_t       rows   = 1;
        while (rows < 2 * EM_ROWS_TOGETHER && end + rows < all && pairs[size_t(end + rows)].expert == expert) {
            ++rows;
        }
        rows = rows < 2 * EM_ROWS_TOGETHER ? rows : EM_ROWS_TOGETHER;
        if (end > at && end + rows > at + most) {
            break;
        }
        end += rows;
    }
    return end;
}

int64_t em_row_product_limit(const em_block & b) {
    int64_t fewer = std::numeric_limits<int64_t>::max();
    for (const ggml_tensor * w : b.layer->weight) {
        if (w && !em_rows_supported(w)) {
            return 0;
        }
        if (w && (em_kernel_many(w->type) || !em_kernel_own(w->type, w->ne[0]))) {
            fewer = EM_MANY_ROWS;
        }
    }
    return fewer;
}

int64_t em_few_first(std::vector<em_pair> & pairs, int64_t fewer) {
    std::vector<em_pair> many;
    auto few = pairs.begin();
    for (auto at = pairs.begin(), end = at; at != pairs.end(); at = end) {
        end = std::find_if(at, pairs.end(), [&](const em_pair & p) { return p.expert != at->expert; });
        if (end - at < fewer) {
            few = std::copy(at, end, few);
        } else {
            many.insert(many.end(), at, end);
        }
    }
    std::copy(many.begin(), many.end(), few);
    return few - pairs.begin();
}

bool em_mostly_row_products(const em_block & b) {
    const int64_t fewer = em_row_product_limit(b);
    int64_t       few = 0, many = 0;
    for (int64_t n : em_tokens_of_experts(b.ids, b.layer->experts)) {
        (n < fewer ? few : many) += n > 0;
    }
    return few >= many;
}

bool em_fusable(const em_block & b) { return b.tokens == 1 && em_row_product_limit(b) > 0; }
