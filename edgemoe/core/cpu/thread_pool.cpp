// See thread_pool.h.

#include "cpu/thread_pool.h"

#include <exception>

namespace {
// An entry of ggml's list of CPU features. The last entry has no name.
struct feature {
    const char * name;
    const char * value;
};

bool built_with_openmp() {
    ggml_backend_reg * reg  = G.ggml_backend_dev_backend_reg(G.ggml_backend_dev_by_type(DEV_CPU));
    auto * const       list = reinterpret_cast<const feature * (*)(ggml_backend_reg *)>(
        G.ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features"));
    for (const feature * f = list ? list(reg) : nullptr; f && f->name; ++f) {
        if (strcmp(f->name, "OPENMP") == 0) {
            return true;
        }
    }
    return !list; // without a list, ggml counts as built with OpenMP
}

ggml_threadpool * new_pool(int threads) {
    alignas(16) char params[4096]; // room for the struct of any release; only ggml writes and reads it
    G.ggml_threadpool_params_init(params, threads);
    return G.ggml_threadpool_new(params);
}
} // namespace

bool em_thread_pool::own() {
    static const bool openmp = built_with_openmp();
    return !openmp;
}

void em_thread_pool::set_threads(ggml_backend * cpu, int threads) {
    G.ggml_backend_cpu_set_n_threads(cpu, threads);
    if (!own()) {
        return;
    }
    if (threads == 1) {
        G.ggml_backend_cpu_set_threadpool(cpu, nullptr);
        return;
    }
    if (threads > size) {
        G.ggml_backend_cpu_set_threadpool(cpu, nullptr); // the stream lets go of the pool that ends here
        pool = new_pool(threads);
        size = threads;
        G.ggml_threadpool_pause(pool);
    }
    G.ggml_backend_cpu_set_threadpool(cpu, pool);
}

em_pool_use::em_pool_use(em_thread_pool & threads) : threads(threads), exceptions(std::uncaught_exceptions()) {}

// After a failed assertion the pool's threads wait for the calling thread for ever. So the pool is never freed:
// ggml_threadpool_free would wait for these threads.
em_pool_use::~em_pool_use() {
    if (!threads.pool) {
        return;
    }
    if (std::uncaught_exceptions() > exceptions) {
        threads.pool.release();
    } else {
        G.ggml_threadpool_pause(threads.pool);
    }
}
