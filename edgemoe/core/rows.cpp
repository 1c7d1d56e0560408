// Rows of expert weights times activations, inside ggml-cpu's own thread team.
//
// A job is one node of a ggml graph: gate and up of all pairs at once, or down with the weighted sum over k. Each thread has a
// share of the rows that lies in one piece, for long streams are what memory likes, and takes it in small pieces; when it is
// done it takes pieces of the others' shares, so a core that is slow, or busy with something else, does less. A thread prepares
// (quantises) an activation the first time it needs it: cheaper than a barrier.

#include "engine.h"
#include "kernels.h"

#include <algorithm>
#include <cstring>

// Work that is numbered [0, total), dealt out to threads.
class em_shares {
  public:
    // The next `most` or fewer of thread `ith` of `n`, of its own share or another's, within a group of `group`. False: no more.
    bool take(int ith, int n, int64_t total, int64_t most, int64_t group, int64_t & from, int64_t & to) {
        const int lanes = std::min(n, LANES);
        for (int i = 0; i < lanes; ++i) {
            const int     lane  = (ith + i) % lanes;
            const int64_t begin = total * lane / lanes, end = total * (lane + 1) / lanes;
            std::atomic<int64_t> & next = lane_next[lane].value;
            int64_t at = next.load(std::memory_order_relaxed);
            while (begin + at < end) {
                from = begin + at;
                to   = std::min({from + most, end, (from / group + 1) * group});
                if (next.compare_exchange_weak(at, to - begin, std::memory_order_relaxed)) {
                    return true;
                }
            }
        }
        return false;
    }

  private:
    static constexpr int LANES = 64;
    struct alignas(64) counter {
        std::atomic<int64_t> value{0};
    };
    counter lane_next[LANES];
};

struct em_rows_job {
    const em_pair *     pairs = nullptr;
    int64_t             n     = 0;
    std::vector<int64_t> group; // where in the pairs another expert begins; last, n
    const ggml_tensor * weight[2] = {};
    em_kernel           kernel[2] = {};
    ggml_tensor *       out[2]    = {};
    int                 outputs   = 1;
    bool                own       = true;
    const ggml_tensor * input     = nullptr;
    em_shares           shares;
    em_errand *         errand = nullptr;

    // With a sum: k consecutive pairs belong to a token.
    const em_tail *    tail = nullptr;
    int64_t            k = 0, tokens = 0;
    std::vector<float> router; // copied: the sum may lie where the weights did
};

namespace {

// Rows that a thread takes at once: of its own share they follow each other in any case.
constexpr int64_t PIECE = 16;
// With a sum, k experts take turns: the longer the better (measured: 32 rows 6.9 ms a token, 512 rows 3.8), but every thread
// should find some.
constexpr int64_t MIN_PIECE = 32, MAX_PIECE = 512, PIECES_PER_THREAD = 2;

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

// False: there was nothing left.
bool compute_rows(em_rows_job & j, worker & w, int ith, int threads) {
    bool          any    = false;
    const int64_t height = j.weight[0]->ne[1], experts = int64_t(j.group.size()) - 1;
    for (int64_t from, to; j.shares.take(ith, threads, height * experts * j.outputs, PIECE, height, from, to);) {
        const int64_t matrix = from / height, row = from % height; // gate and up of an expert, then those of the next
        const int64_t expert = matrix / j.outputs, output = matrix % j.outputs;
        for (int64_t pair = j.group[size_t(expert)]; pair < j.group[size_t(expert) + 1]; ++pair) { // rows stay in the cache meanwhile
            w.rows(pair, int(output), row, row + to - from, static_cast<float *>(j.out[output]->data) + pair * height + row);
        }
        any = true;
    }
    return any;
}

void compute_sums(em_rows_job & j, worker & w, int ith, int threads) {
    const int64_t height = j.weight[0]->ne[1];
    const int64_t share  = height * j.tokens / threads + 1;
    const int64_t piece  = std::clamp(share / PIECES_PER_THREAD + 1, MIN_PIECE, MAX_PIECE);
    float         rows[MAX_PIECE], sum[MAX_PIECE];
    for (int64_t from, to; j.shares.take(ith, threads, height * j.tokens, piece, height, from, to);) {
        const int64_t t = from / height, row = from % height, n = to - from;
        for (int64_t k = 0; k < j.k; ++k) {
            const float weight = j.router[size_t(t * j.k + k)];
            w.rows(t * j.k + k, 0, row, row + n, rows);
            for (int64_t i = 0; i < n; ++i) {
                const float term = rows[i] * weight;
                sum[i]           = k == 0 ? term : sum[i] + term;
            }
        }
        memcpy(static_cast<char *>(j.tail->out->data) + t * j.tail->out->nb[1] + row * 4, sum, size_t(n) * 4);
    }
}

} // namespace

bool em_rows_supported(const ggml_tensor * weight) { return em_kernel_for(weight->type, weight->ne[0], false).dot != nullptr; }

em_rows_job * em_rows_new(const em_pair * pairs, int64_t n, const ggml_tensor * weight, bool own_kernels, em_errand * errand) {
    auto job = std::make_unique<em_rows_job>();
    job->pairs     = pairs;
    job->n         = n;
    for (int64_t i = 0; i < n; ++i) {
        if (i == 0 || pairs[i].expert != pairs[i - 1].expert) {
            job->group.push_back(i);
        }
    }
    job->group.push_back(n);
    job->weight[0] = weight;
    job->own       = own_kernels;
    job->errand    = errand;
    job->kernel[0] = em_kernel_for(weight->type, weight->ne[0], own_kernels);
    return job.release();
}

bool em_rows_second(em_rows_job * job, const ggml_tensor * weight) {
    if (job->outputs == 2 || job->weight[0]->ne[1] != weight->ne[1]) {
        return false;
    }
    job->outputs   = 2;
    job->weight[1] = weight;
    job->kernel[1] = em_kernel_for(weight->type, weight->ne[0], job->own);
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

void em_rows_compute(ggml_tensor *, int ith, int threads, void * data) {
    em_rows_job & job = *static_cast<em_rows_job *>(data);
    em_errand *   errand = ith == 0 && job.errand && !job.errand->done ? job.errand : nullptr;
    if (errand) {
        errand->run();
    }
    worker w(job);
    if (job.tail) {
        compute_sums(job, w, ith, threads);
    } else if (!compute_rows(job, w, ith, threads) && errand) {
        errand->late = true;
    }
}

void em_rows_free(em_rows_job * job) { delete job; }
