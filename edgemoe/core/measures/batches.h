#pragma once

// The batch sizes at which the core changes its method. Python knows one of these sizes, too (FEW_TOKENS, planning/placement.py).

#include <cstddef>
#include <cstdint>

//  tokens of a batch        on a device                                              in host memory
//  1                        hot pairs start before the CPU knows the ids             the sum over k is part of the last product
//  < EM_STAGE_TOKENS        hot pairs on the device, cold pairs on the CPU           the same
//  >= EM_STAGE_TOKENS       the layer is put together in the stage                   the same, or streamed
//  >= em_options.prefill_tokens   a prefill: counted apart, and never a reason to load an expert
constexpr int64_t EM_STAGE_TOKENS = 32; // llama.cpp, too, copies experts to the device from this size on

// Tokens per expert: of one expert, or the mean of all.
constexpr int64_t EM_PICKS_ALL     = 16; // with this mean, nearly every expert is used: the core need not wait for the ids
constexpr int64_t EM_PICKS_MOST    = 3;  // with a lower mean, too many of the experts that are sent early would be unused
constexpr int64_t EM_MANY_ROWS     = 8;  // from so many rows on, ggml has other kernels for some types, which round differently
constexpr int64_t EM_ROWS_TOGETHER = 64; // of one expert. A graph may end after so many rows: both parts get the same kernel

// Pairs of one graph.
constexpr int64_t EM_MIN_PAIRS   = 16;   // a graph with fewer pairs gives no rate; graphs are at least this long
constexpr int64_t EM_MAX_PAIRS   = 2048; // bounds a graph's memory (rows of n_embd + 3 n_ff floats each)
constexpr int64_t EM_MAX_ROWS    = 256;  // rows of row products: the rows between gate and down stay in the cache
constexpr size_t  EM_MANY_COPIES = 16;   // from so many rows on, one copy and a scatter are faster than a copy for each row
