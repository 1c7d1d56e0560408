#include "measures/rates.h"

#include <algorithm>

double em_pair_ns(double multiplications, double measured) {
    constexpr double GUESS = 50; // multiplications per ns: about the speed of two cores
    return measured > 0 ? measured : multiplications / GUESS;
}

int64_t em_pairs_of_graph(int64_t graph_us, double pair_ns) {
    return std::clamp(int64_t(double(graph_us) * 1e3 / pair_ns), EM_MIN_PAIRS, EM_MAX_PAIRS);
}

double em_cold_ns(const em_rates & rates, int64_t n) {
    const double known = n < em_rates::MISSES ? rates.misses_ns[n] : 0;
    return known > 0 ? known : rates.miss_pair_ns * double(n);
}

void em_note_cold(em_rates & rates, int64_t n, double ns) {
    em_note_rate(rates.miss_pair_ns, ns / double(n));
    if (n < em_rates::MISSES) {
        em_note_rate(rates.misses_ns[n], ns);
    }
}

void em_note_fetch(em_rates & rates, double ns) {
    constexpr double MOST_AT_ONCE = 4;
    em_note_rate(rates.fetch_ns, std::clamp(ns, 1.0, MOST_AT_ONCE * rates.fetch_ns));
}

em_division em_divide_misses(const em_rates & rates, size_t expert_bytes, int64_t n, double after, double beside) {
    constexpr double MOST_RATIO = 0.9; // fetch only if both sides take less than 90 % of the time without a fetch
    em_division      best;
    const double     fetch = rates.copy_ns_per_byte * double(expert_bytes);
    if (rates.miss_pair_ns <= 0 || fetch <= 0) {
        return best;
    }
    double least = MOST_RATIO * em_cold_ns(rates, n);
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
    constexpr int64_t LEAST_SHARE = 4, MOST_TIMES = 16; // bounds: a quarter of the given number, 16 times that number
    if (rates.cold_pair_ns <= 0 || rates.stream_byte_ns <= 0) {
        return given;
    }
    // From so many tokens on, the CPU would take longer than a copy.
    const int64_t tokens = int64_t(rates.stream_byte_ns * double(expert_bytes) / rates.cold_pair_ns) + 1;
    return std::clamp(tokens, std::max<int64_t>(given / LEAST_SHARE, 1), given * MOST_TIMES);
}

int64_t em_prefetches_in_time(const em_rates & rates, size_t expert_bytes, int64_t lead, size_t waiting, int64_t most) {
    const double copy = rates.copy_ns_per_byte * double(expert_bytes);
    if (copy <= 0 || rates.layer_ns <= 0) {
        return most;
    }
    const double left = rates.layer_ns * double(lead) - copy * double(waiting);
    return std::clamp<int64_t>(int64_t(left / copy), 0, most);
}

em_sharing em_share(em_rates & rates, size_t expert_bytes, const std::vector<int64_t> & tokens, int64_t sent_early,
                    double idle_ns) {
    constexpr double FIRST_CPU = 20, FIRST_LINK = 20; // bytes per ns, until they are measured
    if (rates.short_byte_ns <= 0) {
        rates.short_byte_ns = rates.copy_ns_per_byte > 0 ? double(rates.copy_ns_per_byte) : 1 / FIRST_LINK;
    }
    const double pair = rates.short_pair_ns > 0 ? rates.short_pair_ns : double(expert_bytes) / FIRST_CPU;
    const double copy = rates.short_byte_ns * double(expert_bytes), busy = std::max(0.0, copy * double(sent_early) - idle_ns);
    em_sharing   best;
    double       cpu = 0, least = busy + copy * double(tokens.size()); // time until both sides are done
    for (size_t n = 1; n <= tokens.size(); ++n) {
        cpu += pair * double(tokens[n - 1]);
        const double both = std::max(cpu, busy + copy * double(tokens.size() - n));
        if (both < least) {
            best.kept   = n;
            best.cpu_ns = cpu;
            least       = both;
        }
    }
    best.expert_ns = copy;
    best.sent_ns   = copy * double(tokens.size() - best.kept);
    best.link_ns   = busy + best.sent_ns;
    return best;
}

// The link alone cannot be timed: it is slower while the CPU reads memory, too. So the estimate follows the outcome: the side that
// finished first, and the time between the two ends.
void em_learn_sharing(em_rates & rates, const em_sharing & plan, double waited_ns, int & link_first) {
    constexpr double GAIN = 0.5, MOST = 4; // share of an error that is corrected; largest error, as a share of the plan
    constexpr double STEP       = 0.04;          // cut of the link's estimate if the link finished first against the plan
    constexpr int    MOST_STEPS = 5;       // the cut grows with each repeat, up to so many steps
    constexpr double PATIENCE   = 0.01;      // cut if the CPU computed everything, so that the link is tried again
    double &         rate       = rates.short_byte_ns;
    if (plan.sent_ns <= 0) {
        rate *= plan.cpu_ns > 0 ? 1 - PATIENCE : 1;
    } else if (waited_ns > 0) {
        const double error = waited_ns - std::max(0.0, plan.link_ns - plan.cpu_ns);
        rate *= 1 + GAIN * std::clamp(error / plan.link_ns, -1.0, MOST);
        link_first = 0;
    } else if (plan.cpu_ns > 0 && plan.link_ns + plan.expert_ns >= plan.cpu_ns) {
        link_first = std::min(link_first + 1, MOST_STEPS);
        rate *= 1 - STEP * link_first;
    }
}
