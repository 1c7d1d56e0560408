#pragma once

// Counters and measured speeds.
//
// Counters: every thread adds, each field is atomic, em_stats reads them at any time.
// Rates: written by the thread that computes, under the compute mutex; copy_ns_per_byte by the copy thread, and atomic.
// The decisions in rates.cpp are pure: they take rates and sizes and know no engine.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

inline int64_t em_now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct em_counters {
    std::atomic<int64_t> tokens{0}, hits{0}, misses{0}, prefill_hits{0}, prefill_streamed{0}, prefill_misses{0}, fetched{0};
    std::atomic<int64_t> uploads{0}, upload_bytes{0}, streamed_bytes{0}, direct_bytes{0}, failed_uploads{0}, joins{0}, device_fallbacks{0};
    std::atomic<int64_t> moe_ns{0}, device_ns{0}, cpu_ns{0}, join_ns{0}, schedule_ns{0}, dropped_events{0};
};

// Zero: not measured yet.
struct em_rates {
    static constexpr int64_t FEW_MISSES = 17;

    double cold_pair_ns = 0, hot_pair_ns = 0, stream_byte_ns = 0; // prefill: a pair on each side, a byte streamed
    double miss_pair_ns = 0;              // decode: a pair on the CPU
    double misses_ns[FEW_MISSES] = {};    // decode: n pairs of one layer on the CPU, by n
    double fetch_ns = 0;                  // decode: the cost of a fetch beside its copy
    double short_pair_ns = 0;             // short prompt: a pair on the CPU while the device computes others
    double short_byte_ns = 0, short_idle_ns = 0; // short prompt: a byte on the link; its idle time between two layers
    std::atomic<double> copy_ns_per_byte{0};     // uploads, smoothed
};

// Adds a measurement to a smoothed rate.
inline void em_note_rate(double & rate, double value) {
    constexpr double SMOOTH = 0.2;
    rate = rate > 0 ? rate + SMOOTH * (value - rate) : value;
}

// ns to compute a pair of so many multiplications: as measured, or a slow guess.
double em_pair_ns(double multiplications, double measured);
// ns to compute n misses of one layer of a token on the CPU: as measured, or in proportion.
double em_cold_ns(const em_rates & rates, int64_t n);
void   em_note_cold(em_rates & rates, int64_t n, double ns);

// How to divide the misses of a layer: the device fetches `fetches` of them, both sides are done after `both_ns`.
struct em_division {
    int64_t fetches = 0;
    double  both_ns = 0;
};
// A fetch costs the device `after` ns once it has arrived, and both sides `beside` ns.
em_division em_divide_misses(const em_rates & rates, size_t expert_bytes, int64_t n, double after, double beside);
// Fewest tokens of an expert for which streaming it to the device is faster than the CPU; `given` until there are rates.
int64_t em_stream_from(const em_rates & rates, size_t expert_bytes, int64_t given);
