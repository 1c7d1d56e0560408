#pragma once

// Inside sim: streams and events, see sim.cpp. Owner: sim_stream.cpp; a stream belongs to the thread that opened it, and its
// queues and events have locks of their own.

#include "device/sim.h"

ggml_backend * em_sim_stream_new(ggml_backend_device * device, const char * params);

ggml_backend_event * em_sim_event_new(ggml_backend_device * device);
void em_sim_event_free(ggml_backend_device * device, ggml_backend_event * event);
void em_sim_event_synchronize(ggml_backend_device * device, ggml_backend_event * event);
