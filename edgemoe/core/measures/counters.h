#pragma once

// Counters. Every thread adds, each field is atomic, em_stats reads them at any time.

#include <atomic>
#include <chrono>
#include <cstdint>

inline int64_t em_now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct em_counters {
    std::atomic<int64_t> tokens{0}, hits{0}, misses{0}, prefill_hits{0}, prefill_streamed{0}, prefill_misses{0}, fetched{0};
    std::atomic<int64_t> uploads{0}, upload_bytes{0}, streamed_bytes{0}, direct_bytes{0}, failed_uploads{0}, joins{0},
        device_fallbacks{0};
    std::atomic<int64_t> moe_ns{0}, device_ns{0}, cpu_ns{0}, join_ns{0}, schedule_ns{0}, dropped_events{0};
};
