#pragma once

#include <cstddef>

// Host memory for long or scattered reads: aligned to cache lines, and in pages of 2 MiB where the piece is large and the
// system has such pages. Null: no memory.
void * em_memory_alloc(std::size_t bytes);
void   em_memory_free(void * p);
