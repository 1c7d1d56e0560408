#pragma once

// sim: a GPU in software, for tests and benchmarks without a GPU. See sim.cpp.
//
// Owner: device/sim*.cpp. Their state belongs to the process and has a lock of its own. em_sim_configure changes the options
// at any time. An engine keeps the options of the moment when it opened the device (traits.h), but for faults and delays.

#include "edgemoe.h"
#include "ggml/api.h"

ggml_backend_device * em_sim_device();
em_sim_options        em_sim_options_now();
int64_t em_sim_registered(); // pieces of host memory that are still registered
void    em_sim_set_threads(ggml_backend * stream, int n);
void    em_sim_set_abort(ggml_backend * stream, ggml_abort_callback fn, void * data);

// Functions of sim's registry, as ggml-cuda offers them.
bool em_sim_register(void * from, size_t bytes);
void em_sim_unregister(void * from);
bool em_sim_take_error(ggml_backend * stream);
