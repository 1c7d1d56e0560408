// Rows of expert weights times activations, inside ggml-cpu's own thread team.
//
// A job is one node of a ggml graph: gate and up of all pairs at once, or down with the weighted sum over k. Threads take
// chunks of rows from a shared counter, so a slow core does less. A thread prepares (quantises) an activation the first time
// it needs it: cheaper than a barrier.

#include "engine.h"
#include "kernels.h"

#include <algorithm>
#include <cstring>

struct em_rows_job {
    const em_pair *     pairs = nullptr;
    int64_t             n     = 0;
    const ggml_tensor * weight[2] = {};
    em_kernel           kernel[2] = {};
    ggml_tensor *       out[2]    = {};
    int                 outputs   = 1;
    bool                own       = true;
    const ggml_tensor * input     = nullptr;
    std::atomic<int64_t> next{0};

    // With a sum: k consecutive pairs belong to a token.
    const em_tail *    tail = nullptr;
    int64_t            k = 0, tokens = 0;
    std::vector<float> router; // copied: the sum may lie where the weights did
};

namespace {

// Rows of one expert in a chunk: long streams are what memory likes (measured: 32 rows 6.9 ms, 512 rows 3.8 ms a token), but
// every thread should find some chunks.
constexpr int64_t MIN_CHUNK = 32, MAX_CHUNK = 512, CHUNKS_PER_THREAD = 2;

int64_t chunk_rows(int64_t rows, int threads) {
    return std::clamp(rows / (CHUNKS_PER_THREAD * threads), MIN_CHUNK, MAX_CHUNK);
}

// A thread's prepared activations, kept between jobs so that nothing is allocated in a step.
struct scratch {
    std::vector<char>    memory;
    std::vector<uint8_t> ready;
    char *               base = nullptr;

    void begin(size_t vectors, size_t bytes) {
        if (memory.size() < vectors * bytes + 64) {
            memory.resize(vectors * bytes + 64);
        }
        base = reinterpret_cast<char *>(em_align(reinterpret_cast<size_t>(memory.data()), 64));
        ready.assign(vectors, 0);
    }
};

thread_local scratch thread_scratch;

class worker {
  public:
    explicit worker(em_rows_job & j) : job(j), width(j.input->ne[0]) {
        shared = j.input->ne[1] * j.input->ne[2] == 1;
        bytes  = em_align(j.kernel[0].activation_bytes(width), 64);
        // gate and up of different types: each with preparations of its own
        sets = j.outputs == 2 && (j.weight[0]->type != j.weight[1]->type) ? 2 : 1;
        if (sets == 2) {
            bytes = std::max(bytes, em_align(j.kernel[1].activation_bytes(width), size_t(64)));
        }
        vectors = shared ? 1 : j.n;
        thread_scratch.begin(size_t(vectors * sets), bytes);
    }

    void rows(int64_t pair, int output, int64_t from, int64_t to, float * out) {
        const ggml_tensor * w = job.weight[output];
        const em_kernel &   k = job.kernel[output];
        const void *        y = activation(pair, output);
        const char *        row = static_cast<const char *>(w->data) + size_t(job.pairs[pair].expert) * w->nb[2] + size_t(from) * w->nb[1];
        for (int64_t r = from; r < to; ++r, row += w->nb[1]) {
            k.dot(k, width, row, y, out++);
        }
    }

  private:
    const void * activation(int64_t pair, int output) {
        const int64_t v    = (shared ? 0 : pair) + (sets == 2 && output == 1 ? vectors : 0);
        char *        at   = thread_scratch.base + size_t(v) * bytes;
        if (!thread_scratch.ready[size_t(v)]) {
            const float * x = static_cast<const float *>(job.input->data) + (shared ? 0 : pair * width);
            job.kernel[output].prepare(job.kernel[output], x, width, at);
            thread_scratch.ready[size_t(v)] = 1;
        }
        return at;
    }

    em_rows_job & job;
    int64_t       width, vectors = 0;
    size_t        bytes  = 0;
    int           sets   = 1;
    bool          shared = false;
};

void compute_rows(em_rows_job & j, worker & w, int threads) {
    const int64_t height = j.weight[0]->ne[1];
    const int64_t chunk  = chunk_rows(height * j.n, threads);
    const int64_t chunks = (height + chunk - 1) / chunk;
    for (int64_t c; (c = j.next.fetch_add(1, std::memory_order_relaxed)) < j.n * chunks;) {
        const int64_t pair = c / chunks, from = c % chunks * chunk, to = std::min(from + chunk, height);
        for (int o = 0; o < j.outputs; ++o) {
            w.rows(pair, o, from, to, static_cast<float *>(j.out[o]->data) + pair * height + from);
        }
    }
}

void compute_sums(em_rows_job & j, worker & w, int threads) {
    const int64_t height = j.weight[0]->ne[1];
    const int64_t chunk  = chunk_rows(height * j.tokens, threads);
    const int64_t chunks = (height + chunk - 1) / chunk;
    float         rows[MAX_CHUNK], sum[MAX_CHUNK];
    for (int64_t c; (c = j.next.fetch_add(1, std::memory_order_relaxed)) < j.tokens * chunks;) {
        const int64_t t = c / chunks, from = c % chunks * chunk, to = std::min(from + chunk, height);
        for (int64_t k = 0; k < j.k; ++k) {
            const float weight = j.router[size_t(t * j.k + k)];
            w.rows(t * j.k + k, 0, from, to, rows);
            for (int64_t i = 0; i < to - from; ++i) {
                const float term = rows[i] * weight;
                sum[i]           = k == 0 ? term : sum[i] + term;
            }
        }
        memcpy(static_cast<char *>(j.tail->out->data) + t * j.tail->out->nb[1] + from * 4, sum, size_t(to - from) * 4);
    }
}

} // namespace

bool em_rows_supported(const ggml_tensor * weight) { return em_kernel_for(weight->type, false).dot != nullptr; }

em_rows_job * em_rows_new(const em_pair * pairs, int64_t n, const ggml_tensor * weight, bool own_kernels) {
    auto job = std::make_unique<em_rows_job>();
    job->pairs     = pairs;
    job->n         = n;
    job->weight[0] = weight;
    job->own       = own_kernels;
    job->kernel[0] = em_kernel_for(weight->type, own_kernels);
    return job.release();
}

bool em_rows_second(em_rows_job * job, const ggml_tensor * weight) {
    if (job->outputs == 2 || job->weight[0]->ne[1] != weight->ne[1]) {
        return false;
    }
    job->outputs   = 2;
    job->weight[1] = weight;
    job->kernel[1] = em_kernel_for(weight->type, job->own);
    return true;
}

void em_rows_outputs(em_rows_job * job, const ggml_tensor * input, ggml_tensor * first, ggml_tensor * second) {
    job->input  = input;
    job->out[0] = first;
    job->out[1] = second;
}

void em_rows_sum(em_rows_job * job, const em_block & block, const em_tail & tail) {
    job->tail   = &tail;
    job->k      = block.k;
    job->tokens = block.tokens;
    job->router.resize(size_t(block.k * block.tokens));
    for (int64_t i = 0; i < block.k * block.tokens; ++i) {
        const char * w = static_cast<const char *>(tail.weights->data) + i % block.k * tail.weights->nb[1] + i / block.k * tail.weights->nb[2];
        memcpy(&job->router[size_t(i)], w, 4);
    }
}

void em_rows_compute(ggml_tensor *, int, int threads, void * data) {
    em_rows_job & job = *static_cast<em_rows_job *>(data);
    worker        w(job);
    if (job.tail) {
        compute_sums(job, w, threads);
    } else {
        compute_rows(job, w, threads);
    }
}

void em_rows_free(em_rows_job * job) { delete job; }
