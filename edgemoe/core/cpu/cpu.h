#pragma once

// Computes pairs of a block as a graph of their own: on ggml-cpu, by ggml's kernels or by ours, or on the device.
//
// Owner: the thread that computes, under em_turn::computing. em_cpu belongs to the engine. Inside a graph the threads of
// ggml-cpu's team share a job (row_products.cpp), by atomics alone.

#include "memory/region.h"
#include "model/block.h"

#include <cstdint>
#include <exception>
#include <functional>

struct em_cpu {
    em_region scratch;            // inputs and intermediates
    em_region prepared;           // activations in the kernels' layout
};

// A job that the calling thread does once, at the start of a pair graph, while the other threads already compute.
struct em_side_task {
    std::function<void()> work;
    int64_t               apart_ns = 0;     // part of the job's time that schedule_ns has counted
    bool                  done     = false;
    bool                  late     = false; // the other threads were done before the job was
    std::exception_ptr    thrown;           // kept for the caller: all threads of the team must end their work first

    void run() {
        if (!done) {
            done = true;
            try {
                work();
            } catch (...) {
                thrown = std::current_exception();
            }
        }
    }
};

struct em_side { // the side on which a pair graph runs
    ggml_backend *        backend;
    bool                  device;
    ggml_tensor * const * weight; // per projection
    ggml_tensor * const * bias;
    em_region *           memory;  // inputs and intermediates
    em_region *           staging; // device only: host side of inputs and results
    em_region *           prepared = nullptr; // CPU only: activations in the kernels' layout
    em_side_task *        task     = nullptr;     // CPU only
    bool                  by_rows  = false;    // CPU only: by row_products.cpp, not by ggml
};

struct em_launch { // a pair graph under way; ctx is null if there is none
    em_arena      ctx;
    const float * result =
        nullptr; // [n_embd, pairs], valid after the backend was synchronised; null: the rows are in their final place
    int status = STATUS_SUCCESS;
};

// Starts the computation of pairs. On the device it returns before the end of the computation. With a tail (CPU, all pairs of a
// single token in order) it writes the sum to its place, and gives no result.
em_launch em_pairs_launch(const em_side & side, const em_block & block, const em_pair * pairs, int64_t n, const em_tail * tail);
// Copies rows to the place of the block's result.
void em_pairs_scatter(const em_block & block, const em_pair * pairs, int64_t n, const float * rows);

// row_products.cpp: one or two projections of all pairs, as a custom operation inside ggml-cpu's thread team
struct em_rows_job;
struct em_rows_place {
    ggml_tensor * tensor = nullptr;
    // True: a tensor of the block; em_row_offset finds the row of a pair. False: a tensor of the pair graph, with a row for each
    // pair, or one row for all pairs.
    bool of_block = false;
};
// task: thread 0 runs the task before it takes rows; null: no task
em_rows_job * em_rows_new(const em_pair * pairs, int64_t n, const ggml_tensor * weight, em_side_task * task);
// Adds a second projection of the same input. False: the job has two already, or the heights differ.
bool em_rows_second(em_rows_job * job, const ggml_tensor * weight);
void em_rows_connect(em_rows_job * job, em_rows_place input, em_rows_place first, em_rows_place second);
// Prepares the job for its computation. False: no memory for the prepared input. Jobs that run one after the other share that
// memory.
bool em_rows_ready(em_rows_job * job, const em_block & block, em_region & prepared);
// Makes the job write the weighted sum over k instead of the rows.
void em_rows_sum(em_rows_job * job, const em_tail & tail);
void em_rows_compute(ggml_tensor * dst, int ith, int nth, void * job);
void em_rows_free(em_rows_job * job);
bool em_rows_supported(const ggml_tensor * weight);
