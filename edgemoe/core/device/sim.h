#pragma once

// sim: a GPU in software, for tests and benchmarks without a GPU. See sim.cpp.
//
// Owner: device/sim*.cpp. The state of sim belongs to the process and has a lock of its own. em_sim_configure may change the
// options at any time. Most options change at once. An engine keeps `early`, `fetch_all` and the report of failed copies as they
// were when it opened the device (traits.h). A stream keeps `streams`.

#include "edgemoe.h"
#include "ggml/api.h"

ggml_backend_device * em_sim_device();
em_sim_options        em_sim_options_now();
int64_t               em_sim_registered(); // pieces of host memory that are still registered
void                  em_sim_set_threads(ggml_backend * stream, int n);
void                  em_sim_set_abort(ggml_backend * stream, ggml_abort_callback fn, void * data);

// Functions of sim's registry, as ggml-cuda offers them.
bool em_sim_register(void * from, size_t bytes);
void em_sim_unregister(void * from);
bool em_sim_take_error(ggml_backend * stream);
