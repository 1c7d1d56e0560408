#pragma once

// One pool of threads for all graphs of a CPU stream, where ggml was built without OpenMP. Without a pool such a ggml starts
// new threads for every graph.
//
// Owner and writer: the room that has the pool as a member beside its stream; the pool is destroyed after the stream. No lock.

#include "ggml/owned.h"

using em_ggml_pool = em_owned<ggml_threadpool, &ggml_api::ggml_threadpool_free>;

class em_thread_pool {
  public:
    // Sets the number of threads of a CPU stream, and gives the stream a pool if ggml needs one.
    void        set_threads(ggml_backend * cpu, int threads);
    static bool own(); // whether ggml was built without OpenMP, so that it needs a pool

  private:
    friend class em_pool_use;
    em_ggml_pool pool;
    int          size = 0;
};

// Lives while the stream computes. At its end the pool's threads sleep, so that llama.cpp's own threads have the processors.
class em_pool_use {
  public:
    explicit em_pool_use(em_thread_pool & threads);
    em_pool_use(const em_pool_use &) = delete;
    ~em_pool_use();

  private:
    em_thread_pool & threads;
    const int        exceptions;
};
