#pragma once

// Inside sim: its options, and the link between host and device with its speed and its faults.
//
// Owner: sim_link.cpp. The state is the process's; its mutex guards everything in it.

#include "device/sim.h"
#include "edgemoe.h"

#include <mutex>
#include <random>

struct em_sim_state {
    std::mutex      mutex; // guards everything here
    em_sim_options  options{sizeof(em_sim_options), 0, 0, int64_t(1) << 40, 0, 0, 0, 0, 0, 1, 0, 0, 0, EM_SIM_CALLER};
    int64_t         used = 0, allocations = 0, copies = 0, computations = 0, registrations = 0, registered = 0;
    std::mt19937_64 random{1};
    std::mutex      link; // one transfer at a time
};
em_sim_state & em_sim_state_now();

bool em_sim_nth(int64_t & counter, int32_t period, bool once); // is it this one's turn to fail
void em_sim_jitter();                                           // sleeps for a random while, where that is asked for
void em_sim_transfer(void * to, const void * from, size_t size, bool to_host);
void em_sim_pretend(const ggml_cgraph * graph, int64_t rate);   // takes the time of a device, and computes nothing
