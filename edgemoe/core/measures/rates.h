#pragma once

// Measured speeds, and every decision made from them. The functions are pure: they take rates and sizes and know no engine.
//
// Writer: the thread that computes, under em_turn::computing. The copy thread writes copy_ns_per_byte, which is atomic.

#include "measures/batches.h"

#include <atomic>
#include <cstddef>
#include <vector>

// All in ns. 0: not measured yet. fetch_ns begins with a guess.
struct em_rates {
    static constexpr int64_t MISSES = 17;

    double cold_pair_ns = 0, hot_pair_ns = 0; // prefill: a pair on the CPU; a pair on the device
    double stream_byte_ns    = 0;                // prefill: a byte of an expert that is streamed
    double miss_pair_ns      = 0;                  // decode: a pair on the CPU
    double misses_ns[MISSES] = {};            // decode: n pairs of one layer on the CPU, by n
    double fetch_ns          = 100e3;                  // decode: a fetch, without its copy
    double layer_ns          = 0;                      // decode: from one expert layer to the next
    double short_pair_ns     = 0;                 // short prompt: a pair on the CPU while the device computes others
    double short_byte_ns = 0, short_idle_ns = 0; // short prompt: a byte on the link; the link's idle time between two layers
    double              disk_ns_per_byte = 0; // decode and prefill: a byte of an expert that is not in RAM
    std::atomic<double> copy_ns_per_byte{0};  // uploads
};

constexpr double EM_SMOOTH = 0.2; // weight of a new measurement
// A smaller weight for uploads and layers, measured hundreds of times a second: a single stall must not stop the prefetches.
constexpr double EM_SMOOTH_OFTEN = 0.1;

// Adds a measurement to a smoothed rate.
template <typename RATE> void em_note_rate(RATE & rate, double value, double smooth = EM_SMOOTH) {
    const double known = rate;
    rate               = known > 0 ? known + smooth * (value - known) : value;
}
// Lets a rate fade while it is not measured, so that one slow moment does not decide for ever.
inline void em_fade(double & rate) { rate *= 0.999; }

// Time of a pair of so many multiplications: `measured`, or a cautious guess if that is 0.
double em_pair_ns(double multiplications, double measured);
// Pairs of a graph that takes about graph_us.
int64_t em_pairs_of_graph(int64_t graph_us, double pair_ns);
// Time of n misses of one layer of a token on the CPU: as measured, or in proportion.
double em_cold_ns(const em_rates & rates, int64_t n);
void   em_note_cold(em_rates & rates, int64_t n, double ns);
void   em_note_fetch(em_rates & rates, double ns); // one slow moment counts for at most four times the known rate

// A division of a layer's misses: the device fetches `fetches` of them, and both sides are done after `both_ns`.
struct em_division {
    int64_t fetches = 0;
    double  both_ns = 0;
};
// The device is done `after` ns after the last fetched expert has arrived. A fetch delays both sides by `beside` ns.
em_division em_divide_misses(const em_rates & rates, size_t expert_bytes, int64_t n, double after, double beside);
// Fewest tokens of an expert for which a copy to the device is faster than the CPU; `given` if rates are not measured yet.
int64_t em_stream_from(const em_rates & rates, size_t expert_bytes, int64_t given);
// Number of experts, at most `most`, that can still reach the device before a layer `lead` layers ahead begins. `waiting` uploads
// come first.
int64_t em_prefetches_in_time(const em_rates & rates, size_t expert_bytes, int64_t lead, size_t waiting, int64_t most);

// A layer of a short prompt, shared between link and CPU: the CPU computes the experts with the fewest tokens.
struct em_sharing {
    size_t kept      = 0; // experts for the CPU
    double link_ns   = 0; // expected time of the link, with experts that were sent early
    double sent_ns   = 0; // expected time of the link without the experts that were sent early
    double cpu_ns    = 0; // expected time of the CPU
    double expert_ns = 0; // expected time of the link for one more expert
};
// Shares experts between CPU and link. `tokens` holds the tokens of each expert, the fewest first. The link has `sent_early`
// experts under way; it was idle for `idle_ns`.
em_sharing em_share(em_rates & rates, size_t expert_bytes, const std::vector<int64_t> & tokens, int64_t sent_early, double idle_ns);
// Corrects short_byte_ns by the outcome. `waited_ns`: time from the CPU's end to the link's end, 0 if the link was done first.
// `link_first`: number of successive layers in which the link was done first against the plan.
void em_learn_sharing(em_rates & rates, const em_sharing & plan, double waited_ns, int & link_first);
