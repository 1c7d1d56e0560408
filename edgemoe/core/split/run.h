#pragma once

// Inside split/: a layer under way. Owner: the thread that computes it, on its stack.

#include "split/split.h"

struct em_split {
    std::vector<em_pair> hot, cold;
    std::vector<em_pair> fetched; // cold as well, on their way to the stage
    int64_t fetch_started = 0;
    double  both_ns = 0; // expected time of the longer side, the fetch or the cold pairs
};

// cut.cpp: where a layer's pairs are cut into graphs, and whose kernels compute them
constexpr int64_t EM_MAX_PAIRS = 2048; // of one graph: bounds its memory (rows of n_embd + 3 n_ff floats each)
constexpr int64_t EM_MAX_ROWS  = 256;  // of a graph of row products: what lies between gate and down stays in the cache
// The end of a graph of pairs [at, all) that begins at `at`, about `most` later.
int64_t em_graph_end(const std::vector<em_pair> & pairs, int64_t at, int64_t all, int64_t most);
// An expert with fewer rows than this goes to row products: faster than ggml there, and equal to the last bit.
int64_t em_rows_for_us(const em_block & b);
// Of pairs sorted by experts, moves those of experts with fewer rows to the front. Returns how many.
int64_t em_few_first(std::vector<em_pair> & pairs, int64_t fewer);
bool    em_mostly_for_us(const em_block & b); // most of the experts that are used go to row products

bool    em_fusable(const em_block & b); // a single token whose projections and sum can be one operation

// executor.cpp
struct em_run {
    em_context *   c;
    em_engine *    e;
    em_block &     b;
    em_side_task * task = nullptr;

    em_side cpu_side(bool by_rows) const {
        return {c->cpu, false, b.layer->weight, b.layer->bias, &e->cpu.scratch, nullptr, &e->cpu.prepared, task, by_rows};
    }
    em_side device_side(const em_places & p) const {
        return {e->device.exec, true, p.weight, p.bias, &e->exchange.device, &e->exchange.host};
    }
    double  cold_ns() const { return em_pair_ns(b.layer->pair_multiplications(), e->rates.cold_pair_ns); }
    double  hot_ns() const { return em_pair_ns(b.layer->pair_multiplications(), e->rates.hot_pair_ns); }
    int64_t pairs_at_once(double ns) const;
    // Waits for the device and brings its rows home. False: the device failed, nothing was written.
    bool join(em_launch & launch, const em_pair * pairs, int64_t n, int64_t started);
    int  redo_on_cpu(const em_pair * pairs, int64_t n);
    int  compute(const em_split & s); // hot and cold pairs

  private:
    int cold_graph(const em_pair * pairs, int64_t n, bool by_rows);
};

// miss_fetch.cpp
void em_fetch_now(em_run & r, em_split & s); // moves misses worth a fetch from cold to fetched, and sends their experts
int  em_finish_fetch(em_run & r, const em_split & s);

// streamed_prefill.cpp: resident experts on the device, well used others streamed there, the rest on the CPU
int em_compute_prefill(em_run & r, em_split s);
