#pragma once

// The buffer type for expert tensors. llama.cpp wraps its mapped file in such buffers, without a copy. The names of the tensors
// give the layers.
//
// Writer: the thread that loads a model. Thread-local: the model that loads, and the type that our devices report. No lock.

#include "model/layer.h"

ggml_backend_buffer_type * em_buft(); // backend/accelerator.cpp sets its device

void       em_set_loading(em_model * model, bool stands_in); // null: the load is over
em_model * em_loading();
bool       em_accelerates(); // llama.cpp sees our device as an accelerator on this thread
void       em_set_accelerates(bool on); // a model is loaded, and gets one more context

// Wraps the caller's memory in a buffer of this type, for the model that loads.
ggml_backend_buffer * em_expert_buffer_from(void * memory, size_t size);

bool         em_is_ours(const ggml_tensor * t);
em_layer_t * em_layer_of(const ggml_tensor * weight, em_engine ** engine);
