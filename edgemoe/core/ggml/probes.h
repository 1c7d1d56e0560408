#pragma once

#include <string>

struct ggml_context;

// Each returns the name of the first thing that differs from ggml/abi.h, empty if nothing does. `ctx` has room for a few tensors.

// Calls ggml's functions on objects of ours. Each function must use the entry of a table that ggml/abi.h names.
std::string em_probe_tables(ggml_context * ctx);
// Compares the sizes of all weight types, and the CPU's functions for them.
std::string em_probe_types(ggml_context * ctx);
// Reads the properties of the CPU's device through our declaration.
std::string em_probe_properties(ggml_context * ctx);

// Whether ggml computes rows of this type with kernels of its own from eight tokens on. The probe finds such kernels by the
// memory that ggml plans for them.
bool em_probe_many(int type);
