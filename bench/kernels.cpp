// Measure how fast threads read expert weights from memory. In turns: ggml's dot products, the same with touched rows, and our own.
// Then our own with 2, 4 and 8 activations at once.
//
//     cmake -S edgemoe/core -B build/core -DEDGEMOE_TESTS=ON && cmake --build build/core --target kernel_bench
//     build/core/kernel_bench FOLDER_OF_GGML_LIBRARIES [threads [auto|avx2|avxvnni|avx512|neon [type]]]
//
// Medians of 5 rounds over 192 MiB, in GB/s of the slowest thread's processor time, which neighbours change least. Memory is in large
// pages where the system gives them, and in small ones, as a mapped file's is.

#include "cpu/kernels/kernels.h"
#include "memory/huge_pages.h"
#include "tests/harness.h"

#include <algorithm>
#include <ctime>
#include <thread>

#if defined(__linux__)
#    include <sys/mman.h>
#endif

namespace {

constexpr size_t BYTES = size_t(192) << 20, TAIL = size_t(2) << 20; // the tail is fetched ahead of need, never read
constexpr int    ROUNDS = 5, TILE = 64;

struct weights {
    const char * name;
    int          type;
    int64_t      width; // width of a row, as in real models
};

constexpr weights WEIGHTS[] = {{"Q4_0", 2, 2048},     {"Q5_0", 6, 1408},    {"Q8_0", 8, 1408},     {"Q2_K", 10, 2048},
                               {"Q3_K", 11, 2048},    {"Q4_K", 12, 2048},   {"Q5_K", 13, 2048},    {"Q6_K", 14, 2048},
                               {"IQ4_NL", 20, 2048},  {"IQ4_XS", 23, 2048}, {"IQ2_XXS", 16, 2048}, {"IQ2_S", 22, 2048},
                               {"IQ3_XXS", 18, 2048}, {"IQ3_S", 21, 2048},  {"MXFP4", 39, 2880}};

enum way { GGML, AHEAD, OWN, OWN_2, OWN_4, OWN_8, WAYS };
constexpr int MOST_TOKENS = 8, PIECE = 16; // rows at once, as rows.cpp takes them

char * memory_of(bool large) {
    void * memory = em_memory_alloc(BYTES + TAIL);
#if defined(__linux__)
    if (!large) {
        madvise(memory, BYTES + TAIL, MADV_NOHUGEPAGE);
    }
#endif
    return static_cast<char *>(memory);
}

int64_t processor_ns() { // of the calling thread
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

void fetch_row(const char * at, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) {
        __builtin_prefetch(at + i, 0, 3);
    }
}

struct reader {
    const weights &   w;
    em_kernel         kernel;
    bool              ahead;
    int               tokens;
    size_t            row_bytes = G.ggml_row_size(w.type, w.width);
    int64_t           rows      = int64_t(BYTES / row_bytes);
    std::vector<char> activation;

    reader(const weights & weight, bool own, bool fetch, int many = 1)
        : w(weight), kernel(em_kernel_for(w.type, w.width, own)), ahead(fetch), tokens(many) {
        activation.resize(size_t(tokens) * vector() + 64);
        for (int t = 0; t < tokens; ++t) {
            kernel.prepare(kernel, random_floats(size_t(w.width), 1, unsigned(8 + t)).data(), w.width, prepared(t));
        }
    }
    size_t vector() const { return em_align(kernel.activation_bytes(w.width), 64); }
    char * prepared(int token) { return em_align(activation.data(), 64) + size_t(token) * vector(); }

    void read(const char * memory, int64_t from, int64_t to) {
        constexpr size_t DISTANCE = 8192;
        float            out      = 0;
        for (int64_t r = from; r < to; ++r) {
            const char * row = memory + size_t(r) * row_bytes;
            if (ahead) {
                fetch_row(row + DISTANCE, row_bytes);
            }
            kernel.dot(kernel, w.width, row, prepared(0), &out);
        }
    }
    void read_many(const char * memory, int64_t from, int64_t to) {
        float        rows[MOST_TOKENS][PIECE];
        const void * activations[MOST_TOKENS];
        float *      out[MOST_TOKENS];
        for (int t = 0; t < tokens; ++t) {
            activations[t] = prepared(t);
            out[t]         = rows[t];
        }
        for (int64_t r = from; r < to; r += PIECE) {
            kernel.dots(kernel, {memory + size_t(r) * row_bytes, row_bytes, std::min<int64_t>(PIECE, to - r), w.width},
                        {activations, out, tokens});
        }
    }
    double gigabytes_per_second(const char * memory, int threads) {
        std::vector<std::thread> team;
        std::vector<int64_t>     took(size_t(threads), 0);
        for (int t = 0; t < threads; ++t) {
            team.emplace_back([&, t] {
                const int64_t began = processor_ns();
                const int64_t from = rows * t / threads, to = rows * (t + 1) / threads;
                kernel.block_bytes ? read_many(memory, from, to) : read(memory, from, to);
                took[size_t(t)] = processor_ns() - began;
            });
        }
        for (std::thread & t : team) {
            t.join();
        }
        return double(rows) * double(row_bytes) / double(*std::max_element(took.begin(), took.end()));
    }
};

double median(std::vector<double> & all) {
    std::nth_element(all.begin(), all.begin() + int64_t(all.size()) / 2, all.end());
    return all[all.size() / 2];
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: kernel_bench FOLDER_OF_GGML_LIBRARIES [threads]\n");
        return 2;
    }
    setvbuf(stdout, nullptr, _IOLBF, 0);
    meet_ggml(argv[1]);
    const int threads = argc > 2 ? atoi(argv[2]) : int(std::thread::hardware_concurrency());
    if (const std::string refused = em_kernels_choose(argc > 3 ? argv[3] : "auto"); !refused.empty()) {
        fprintf(stderr, "%s\n", refused.c_str());
        return 2;
    }
    char * memory[2] = {memory_of(false), memory_of(true)};
    printf(
        "%d threads, kernels %s, GB/s: ggml, with rows fetched ahead, ours, ours for 2, 4 and 8 tokens | the same in large pages\n",
        threads, em_family_name(em_kernels_family()));
    for (const weights & w : WEIGHTS) {
        if (argc > 4 && strcmp(argv[4], w.name) != 0) {
            continue;
        }
        const auto               values = random_floats(size_t(w.width) * TILE, 0.05f, 7);
        const size_t             tile   = G.ggml_row_size(w.type, w.width) * TILE;
        std::vector<char>        packed(tile);
        const std::vector<float> importance(size_t(w.width), 1.0f); // two-bit types cannot be quantised without
        T.ggml_quantize_chunk(w.type, values.data(), packed.data(), 0, TILE, w.width, importance.data());
        for (char * m : memory) {
            for (size_t at = 0; at < BYTES; at += tile) {
                memcpy(m + at, packed.data(), std::min(tile, BYTES - at));
            }
        }
        reader              readers[WAYS] = {{w, false, false},   {w, false, true},    {w, true, false},
                                             {w, true, false, 2}, {w, true, false, 4}, {w, true, false, 8}};
        std::vector<double> speeds[2][WAYS];
        for (int round = 0; round < ROUNDS; ++round) {
            for (int large = 0; large < 2; ++large) {
                for (int way = GGML; way < (em_kernel_own(w.type, w.width) ? WAYS : OWN); ++way) {
                    speeds[large][way].push_back(readers[way].gigabytes_per_second(memory[large], threads));
                }
            }
        }
        printf("%-7s", w.name);
        for (auto & pages : speeds) {
            for (auto & all : pages) {
                all.empty() ? printf("      -") : printf(" %6.1f", median(all));
            }
            printf(&pages == &speeds[0] ? "  |" : "\n");
        }
    }
}
