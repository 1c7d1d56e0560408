// Decisions that are made of measured speeds.

#include "measures/measures.h"

namespace {

constexpr double GUESS    = 50;  // multiplications per ns: about the speed of two cores
constexpr double WORTH_IT = 0.9; // fetch only if it takes less than 90 % of the time without

constexpr int64_t LEAST_SHARE = 4, MOST_TIMES = 16; // how far from the given number measurements may lead

} // namespace

double em_pair_ns(double multiplications, double measured) { return measured > 0 ? measured : multiplications / GUESS; }

double em_cold_ns(const em_rates & rates, int64_t n) {
    if (n == 0) {
        return 0;
    }
    const double known = n < em_rates::FEW_MISSES ? rates.misses_ns[n] : 0;
    return known > 0 ? known : rates.miss_pair_ns * double(n);
}

void em_note_cold(em_rates & rates, int64_t n, double ns) {
    em_note_rate(rates.miss_pair_ns, ns / double(n));
    if (n < em_rates::FEW_MISSES) {
        em_note_rate(rates.misses_ns[n], ns);
    }
}

em_division em_divide_misses(const em_rates & rates, size_t expert_bytes, int64_t n, double after, double beside) {
    em_division  best;
    const double fetch = rates.copy_ns_per_byte * double(expert_bytes);
    if (rates.miss_pair_ns <= 0 || fetch <= 0) {
        return best;
    }
    double least = WORTH_IT * em_cold_ns(rates, n);
    for (int64_t m = 1; m <= n; ++m) {
        const double both = std::max(em_cold_ns(rates, n - m), fetch * double(m) + after);
        if (both + beside < least) {
            best  = {m, both};
            least = both + beside;
        }
    }
    return best;
}

int64_t em_stream_from(const em_rates & rates, size_t expert_bytes, int64_t given) {
    if (rates.cold_pair_ns <= 0 || rates.stream_byte_ns <= 0) {
        return given;
    }
    // An expert is worth its copy from the token on whose computing would last longer.
    const int64_t tokens = int64_t(rates.stream_byte_ns * double(expert_bytes) / rates.cold_pair_ns) + 1;
    return std::clamp(tokens, std::max<int64_t>(given / LEAST_SHARE, 1), given * MOST_TIMES);
}
