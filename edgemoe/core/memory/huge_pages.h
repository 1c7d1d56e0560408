#pragma once

#include <cstddef>

// Host memory for what is read in long streams or all over: on cache lines, large pieces in pages of 2 MiB where the system has them,
// which spare most of the searches for where they are. Null: there is none.
void * em_memory_alloc(std::size_t bytes);
void   em_memory_free(void * p);
