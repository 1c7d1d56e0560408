#pragma once

// sim: a GPU in software, for tests and benchmarks without one. See sim.cpp.
//
// Owner: device/sim*.cpp, whose state is the process's and has a lock of its own. em_sim_configure changes it at any time;
// an engine sees the options as they were when it opened the device (traits.h), but for faults and delays.

#include "ggml/api.h"

ggml_backend_device * em_sim_device();
int64_t em_sim_registered(); // pieces of host memory not given back
void    em_sim_set_threads(ggml_backend * stream, int n);
void    em_sim_set_abort(ggml_backend * stream, ggml_abort_callback fn, void * data);

// What its registry offers, as ggml-cuda does.
bool em_sim_register(void * from, size_t bytes);
void em_sim_unregister(void * from);
bool em_sim_take_error(ggml_backend * stream);

struct em_sim_options_read { // of what em_sim_configure set
    int64_t fetch_all, streams; // em_sim_streams_t
    bool    early, copies_fail;
};
em_sim_options_read em_sim_options_now();
