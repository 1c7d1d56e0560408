#pragma once

// The tables through which ggml and llama.cpp see us: a registry with two devices, the accelerator and sim, and the device that
// stands in for an engine's own.
//
// Owner: the tables belong to the process and are fixed after their first use. No lock. A stand-in belongs to its engine;
// llama.cpp's calls on its streams hold em_turn::computing.

#include "ggml/api.h"

ggml_backend_device * em_accelerator();
void em_accelerator_set_threads(ggml_backend * stream, int n);
void em_accelerator_set_abort(ggml_backend * stream, ggml_abort_callback fn, void * data);
