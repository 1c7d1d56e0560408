#pragma once

// The buffer type that llama.cpp places expert tensors in, straight from its mmap; it finds the layers by the tensors' names.
//
// Writer: the thread that loads a model. Which model that is, and how our devices show themselves meanwhile, belongs to that
// thread (thread_local). No lock.

#include "model/layer.h"

ggml_backend_buffer_type * em_buft(); // its device is set by backend/registry.cpp

void       em_set_loading(em_model * model, bool stands_in); // null: over
em_model * em_loading();
bool       em_accelerates(); // llama.cpp sees the expert device on this thread

// Memory of the caller's as a buffer of this type, for the model that loads.
ggml_backend_buffer * em_expert_buffer_from(void * memory, size_t size);

bool         em_is_ours(const ggml_tensor * t);
em_layer_t * em_layer_of(const ggml_tensor * weight, em_engine ** engine);
