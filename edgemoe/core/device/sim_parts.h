#pragma once

// Inside sim: the link between host and device with its speed and its faults (sim_link.cpp), streams and events (sim_stream.cpp).
//
// sim_link.cpp guards its state by a mutex. A stream belongs to the thread that opened it; its queues and events have locks.

#include "device/sim.h"

enum em_sim_fault { SIM_ALLOC, SIM_COPY, SIM_COMPUTE, SIM_REGISTER, SIM_FAULTS };

bool em_sim_fails(em_sim_fault kind);   // counts an attempt. True: this attempt is to fail
bool em_sim_reserve(
    int64_t bytes);     // takes bytes of the device's memory; a negative number gives memory back. False: too little is left
int64_t em_sim_free_memory();
void    em_sim_jitter();                   // sleeps for a random time, if the options ask for that
// Copies at the speed of the link. With a compute rate it only takes the time: results in host memory become zeros.
void em_sim_transfer(void * to, const void * from, size_t size, bool to_host);
// Sleeps as long as a device of this rate reads the weights; computes nothing.
void em_sim_pretend(const ggml_cgraph * graph, int64_t rate);

ggml_backend *       em_sim_stream_new(ggml_backend_device * device, const char * params);
ggml_backend_event * em_sim_event_new(ggml_backend_device * device);
void                 em_sim_event_free(ggml_backend_device * device, ggml_backend_event * event);
void                 em_sim_event_synchronize(ggml_backend_device * device, ggml_backend_event * event);
