#pragma once

// The buffer type that llama.cpp places expert tensors in, straight from its mmap. The tensors' names give the layers.
//
// Writer: the thread that loads a model. Two things belong to that thread (thread_local): the model under way, and the type that
// our devices report during the load. No lock.

#include "model/layer.h"

ggml_backend_buffer_type * em_buft(); // its device is set by backend/registry.cpp

void       em_set_loading(em_model * model, bool stands_in); // null: the load is over
em_model * em_loading();
bool       em_accelerates(); // llama.cpp sees the expert device on this thread

// Wraps the caller's memory in a buffer of this type, for the model that loads.
ggml_backend_buffer * em_expert_buffer_from(void * memory, size_t size);

bool         em_is_ours(const ggml_tensor * t);
em_layer_t * em_layer_of(const ggml_tensor * weight, em_engine ** engine);
