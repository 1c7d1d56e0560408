// Rows of expert weights times activations, inside ggml-cpu's own thread team.
//
// A job is one node of a ggml graph: gate and up of all pairs at once, down, or a single token's down with the weighted sum over
// k. Each thread has a share of consecutive rows, because memory is fastest with long streams. The thread takes its share in small
// pieces and multiplies each piece with all tokens of its expert. After its own share it takes pieces of other shares. So a slow
// core, or a core that is busy with something else, does less. The first thread that needs an activation prepares (quantises) it,
// and the other threads wait for this activation. That costs less than a barrier.

#include "cpu/cpu.h"
#include "cpu/kernels/kernels.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <thread>

// Divides the work items [0, total) among threads.
class em_shares {
  public:
    // Gives thread `ith` of `n` its next items [from, to), from its own share or another share. The items lie within one group of
    // `group` items. `most(left)` limits their number by the number of items that are left in the share. False: no items are left.
    template <class Most> bool take(int ith, int n, int64_t total, Most most, int64_t group, int64_t & from, int64_t & to) {
        const int lanes = std::min(n, LANES);
        for (int i = 0; i < lanes; ++i) {
            const int              lane  = (ith + i) % lanes;
            const int64_t          begin = total * lane / lanes, end = total * (lane + 1) / lanes;
            std::atomic<int64_t> & next = lane_next[lane].value;
            int64_t                at   = next.load(std::memory_order_relaxed);
            while (begin + at < end) {
                from = begin + at;
                to   = std::min({from + most(end - from), end, (from / group + 1) * group});
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
    const em_pair *      pairs = nullptr;
    int64_t              n     = 0;
    std::vector<int64_t> group; // index of each expert's first pair; n at the end
    const ggml_tensor *  weight[2] = {};
    em_kernel            kernel[2] = {};
    em_rows_place        out[2]    = {};
    int                  outputs   = 1;
    em_rows_place        input;
    em_shares            shares;
    em_side_task *       task = nullptr;

    // Activations in the kernels' layout. The first thread that needs an activation prepares it.
    em_region * prepared       = nullptr;
    size_t      prepared_bytes = 0; // of one activation vector
    int         sets           = 1; // 2: gate and up have different types, and each has prepared activations of its own
    int64_t     tokens         = 0; // tokens of the block: pairs of one token share an activation; 0: each pair has its own
    std::unique_ptr<std::atomic<uint8_t>[]> state;

    // For a job with the sum over k: all pairs belong to one token.
    const em_tail *    tail = nullptr;
    std::vector<float> router; // a copy of the router's weights: the sum may overwrite the original
};

namespace {

// Number of rows that a thread takes at once. Pieces of its own share follow each other in memory.
constexpr int64_t PIECE = 16;
// For a job with a sum, k experts take turns, and longer pieces are faster (measured: 32 rows 6.9 ms a token, 512 rows 3.8). A piece
// is half of the rest of a share. The last pieces are therefore short, and no thread waits long for a slow core (docs/log.md).
constexpr int64_t MIN_PIECE = 16, MAX_PIECE = 512;

constexpr size_t ALIGN = 64; // alignment of prepared activations

// A pair's row.
float * row_of(const em_rows_job & job, const em_rows_place & at, int64_t pair) {
    const ggml_tensor * t   = at.tensor;
    const bool          one = t->ne[1] * t->ne[2] == 1;
    return reinterpret_cast<float *>(static_cast<char *>(t->data) + (at.of_block ? em_row_offset(t, job.pairs[pair])
                                                                     : one       ? 0
                                                                                 : size_t(pair * t->ne[0]) * 4));
}

class worker {
  public:
    explicit worker(em_rows_job & j) : job(j), width(j.input.tensor->ne[0]) {}

    // Computes rows [from, from + n) of one expert for its `count` pairs from `pair` on. `where` gives the place of a pair's rows.
    template <class Where> void rows(int64_t pair, int64_t count, int output, int64_t from, int64_t n, Where where) {
        constexpr int64_t   MOST = 8;
        const ggml_tensor * w    = job.weight[output];
        const em_kernel &   k    = job.kernel[output];
        const char *        first =
            static_cast<const char *>(w->data) + size_t(job.pairs[pair].expert) * w->nb[2] + size_t(from) * w->nb[1];
        for (int64_t done = 0; done < count; done += MOST) {
            const void *  prepared[MOST];
            float *       to[MOST];
            const int64_t tokens = std::min(MOST, count - done);
            for (int64_t t = 0; t < tokens; ++t) {
                prepared[t] = activation(pair + done + t, output);
                to[t]       = where(pair + done + t);
            }
            k.dots(k, {first, w->nb[1], n, width}, {prepared, to, tokens});
        }
    }

    // All threads need the activations of all pairs at the same time, so each thread begins with another pair.
    void prepare_all(int ith) {
        for (int64_t i = 0; i < job.n; ++i) {
            prepare((ith + i) % job.n, 0);
        }
    }

  private:
    enum : uint8_t { NONE, BEGUN, READY };

    int64_t vector_of(int64_t pair, int output) const {
        const int64_t set = output % job.sets;
        return job.tokens > 0 ? job.pairs[pair].token + set * job.tokens : pair + set * job.n;
    }
    char * place_of(int64_t vector) const { return em_align(job.prepared->base, ALIGN) + size_t(vector) * job.prepared_bytes; }

    void prepare(int64_t pair, int output) {
        const int64_t          v     = vector_of(pair, output);
        std::atomic<uint8_t> & state = job.state[size_t(v)];
        uint8_t                none  = NONE;
        if (state.load(std::memory_order_relaxed) == NONE &&
            state.compare_exchange_strong(none, BEGUN, std::memory_order_relaxed)) {
            job.kernel[output].prepare(job.kernel[output], row_of(job, job.input, pair), width, place_of(v));
            state.store(READY, std::memory_order_release);
        }
    }
    const void * activation(int64_t pair, int output) {
        constexpr int          SOON  = 4000; // looks at a flag before the thread gives up its core
        const int64_t          v     = vector_of(pair, output);
        std::atomic<uint8_t> & state = job.state[size_t(v)];
        prepare(pair, output);
        for (int looks = 0; state.load(std::memory_order_acquire) != READY; ++looks) {
            if (looks > SOON) {
                std::this_thread::yield();
            }
        }
        return place_of(v);
    }

    em_rows_job & job;
    int64_t       width;
};

// False: no rows are left.
bool compute_rows(em_rows_job & j, worker & w, int ith, int threads) {
    bool          any    = false;
    const int64_t height = j.weight[0]->ne[1], experts = int64_t(j.group.size()) - 1;
    for (int64_t from, to;
         j.shares.take(ith, threads, height * experts * j.outputs, [](int64_t) { return PIECE; }, height, from, to);) {
        const int64_t matrix = from / height,
                      row    = from % height; // order: gate and up of an expert, then gate and up of the next expert
        const int64_t expert = matrix / j.outputs, output = matrix % j.outputs;
        const int64_t pair  = j.group[size_t(expert)],
                      pairs = j.group[size_t(expert) + 1] - pair; // the rows stay in the cache for all pairs
        w.rows(pair, pairs, int(output), row, to - from, [&](int64_t p) { return row_of(j, j.out[output], p) + row; });
        any = true;
    }
    return any;
}

void compute_sum(em_rows_job & j, worker & w, int ith, int threads) {
    const int64_t height = j.weight[0]->ne[1];
    const auto    piece  = [](int64_t left) { return std::clamp((left + 1) / 2, MIN_PIECE, MAX_PIECE); };
    float         rows[MAX_PIECE], sum[MAX_PIECE];
    w.prepare_all(ith);
    for (int64_t from, to; j.shares.take(ith, threads, height, piece, height, from, to);) {
        const int64_t n = to - from;
        for (int64_t k = 0; k < j.n; ++k) {
            w.rows(k, 1, 0, from, n, [&](int64_t) { return rows; });
            for (int64_t i = 0; i < n; ++i) {
                const float term = rows[i] * j.router[size_t(k)];
                sum[i]           = k == 0 ? term : sum[i] + term;
            }
        }
        memcpy(static_cast<char *>(j.tail->out->data) + from * 4, sum, size_t(n) * 4);
    }
}

} // namespace

bool em_rows_supported(const ggml_tensor * weight) { return em_kernel_for(weight->type, weight->ne[0], false).dot != nullptr; }

em_rows_job * em_rows_new(const em_pair * pairs, int64_t n, const ggml_tensor * weight, em_side_task * task) {
    auto job   = std::make_unique<em_rows_job>();
    job->pairs = pairs;
    job->n     = n;
    for (int64_t i = 0; i < n; ++i) {
        if (i == 0 || pairs[i].expert != pairs[i - 1].expert) {
            job->group.push_back(i);
        }
    }
    job->group.push_back(n);
    job->weight[0] = weight;
    job->task      = task;
    job->kernel[0] = em_kernel_for(weight->type, weight->ne[0], true);
    return job.release();
}

bool em_rows_second(em_rows_job * job, const ggml_tensor * weight) {
    if (job->outputs == 2 || job->weight[0]->ne[1] != weight->ne[1]) {
        return false;
    }
    job->outputs   = 2;
    job->weight[1] = weight;
    job->kernel[1] = em_kernel_for(weight->type, weight->ne[0], true);
    return true;
}

void em_rows_connect(em_rows_job * job, em_rows_place input, em_rows_place first, em_rows_place second) {
    job->input  = input;
    job->out[0] = first;
    job->out[1] = second;
}

bool em_rows_ready(em_rows_job * job, const em_block & block, em_region & prepared) {
    const ggml_tensor * x = job->input.tensor;
    job->tokens           = job->input.of_block && x->ne[1] == 1 && block.tokens <= job->n ? block.tokens : 0;
    job->prepared         = &prepared;
    job->sets             = job->outputs == 2 && job->weight[0]->type != job->weight[1]->type ? 2 : 1;
    for (int i = 0; i < job->sets; ++i) {
        job->prepared_bytes = std::max(job->prepared_bytes, em_align(job->kernel[i].activation_bytes(x->ne[0]), ALIGN));
    }
    const size_t vectors = size_t(job->tokens > 0 ? job->tokens : job->n) * size_t(job->sets);
    job->state.reset(new std::atomic<uint8_t>[vectors]());
    return job->prepared->ensure(vectors * job->prepared_bytes + ALIGN);
}

void em_rows_sum(em_rows_job * job, const em_tail & tail) {
    job->tail = &tail;
    job->router.resize(size_t(job->n));
    for (int64_t i = 0; i < job->n; ++i) {
        memcpy(&job->router[size_t(i)], static_cast<const char *>(tail.weights->data) + i * tail.weights->nb[1], 4);
    }
}

void em_rows_compute(ggml_tensor *, int ith, int threads, void * data) {
    em_rows_job &  job  = *static_cast<em_rows_job *>(data);
    em_side_task * task = ith == 0 && job.task && !job.task->done ? job.task : nullptr;
    if (task) {
        task->run();
    }
    worker w(job);
    if (job.tail) {
        compute_sum(job, w, ith, threads);
    } else if (!compute_rows(job, w, ith, threads) && task) {
        task->late = true;
    }
}

void em_rows_free(em_rows_job * job) { delete job; }
