#pragma once

// Shared parts of the core's own tests: ggml by dlopen, checks, and a model of random experts made without llama.cpp.

#include "device/sim.h"
#include "model/expert_buffer.h"
#include "pass/pass.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <random>
#include <tuple>

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                      \
        }                                                                                 \
    } while (0)

// Functions of ggml that only the tests need.
#define EM_TEST_FUNCTIONS(X)                                                                                        \
    X(void, ggml_backend_register, (ggml_backend_reg * reg))                                                        \
    X(size_t, ggml_quantize_chunk,                                                                                  \
      (int type, const float * src, void * dst, int64_t start, int64_t rows, int64_t width, const float * imatrix)) \
    X(ggml_tensor *, ggml_swiglu_split, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b))                     \
    X(ggml_tensor *, ggml_mul, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b))                              \
    X(ggml_tensor *, ggml_add, (ggml_context * ctx, ggml_tensor * a, ggml_tensor * b))                              \
    X(ggml_tensor *, ggml_view_2d, (ggml_context * ctx, ggml_tensor * a, int64_t ne0, int64_t ne1, size_t nb1, size_t offset))

struct test_api {
#define X(result, name, args) result(*name) args;
    EM_TEST_FUNCTIONS(X)
#undef X
};
inline test_api T;

// Opens the ggml of a llama-cpp-python installation, checks it and registers our devices.
inline void meet_ggml(const std::string & folder) {
    std::vector<void *> libraries;
    for (const char * name : {"libggml-base.so.0", "libggml-cpu.so.0", "libggml.so.0"}) {
        void * library = dlopen((folder + "/" + name).c_str(), RTLD_NOW | RTLD_GLOBAL);
        if (!library) {
            fprintf(stderr, "%s\n", dlerror());
            exit(1);
        }
        libraries.push_back(library);
    }
    auto find = [&](const char * name) {
        void * address = nullptr;
        for (void * library : libraries) {
            address = address ? address : dlsym(library, name);
        }
        CHECK(address);
        return address;
    };
    for (int32_t i = 0; i < em_symbol_count(); ++i) {
        em_symbol_set(i, find(em_symbol_name(i)));
    }
#define X(result, name, args) T.name = reinterpret_cast<decltype(T.name)>(find(#name));
    EM_TEST_FUNCTIONS(X)
#undef X
    CHECK(em_check() == EM_OK);
    T.ggml_backend_register(static_cast<ggml_backend_reg *>(ggml_backend_init()));
}

inline std::vector<float> random_floats(size_t n, float scale, uint64_t seed) {
    std::mt19937_64                 random(seed);
    std::normal_distribution<float> normal(0, scale);
    std::vector<float>              out(n);
    for (float & x : out) {
        x = normal(random);
    }
    return out;
}

struct test_shape {
    int     layers = 2, experts = 8, k = 2;
    int64_t width = 256, ffn = 256;
    int     type = TYPE_F32;
};

// Expert tensors in memory that our device wraps, as llama.cpp does with its mmap.
struct test_model {
    test_shape                 shape;
    em_engine *                engine;
    std::vector<char>          memory;
    ggml_context *             ctx;
    ggml_backend_buffer *      buffer;
    std::vector<ggml_tensor *> gate, up, down;

    test_model(const test_shape & s, em_engine * e) : shape(s), engine(e) {
        const size_t row_in = G.ggml_row_size(s.type, s.width), row_out = G.ggml_row_size(s.type, s.ffn);
        const size_t layer = size_t(s.experts) * (2 * size_t(s.ffn) * row_in + size_t(s.width) * row_out);
        memory.resize(layer * size_t(s.layers) + 64);
        ctx = G.ggml_init({G.ggml_tensor_overhead() * size_t(3 * s.layers), nullptr, true});
        CHECK(em_begin_load(e, 0) == EM_OK);
        ggml_backend_device * device = em_buft()->device;
        char *                at     = em_align(memory.data(), 64);
        buffer                       = device->iface.buffer_from_host_ptr(device, at, memory.size() - 64, 0);
        buffer->usage                = USAGE_WEIGHTS;
        for (int l = 0; l < s.layers; ++l) {
            gate.push_back(add("gate", l, s.width, s.ffn, at));
            up.push_back(add("up", l, s.width, s.ffn, at));
            down.push_back(add("down", l, s.ffn, s.width, at));
        }
        CHECK(em_end_load(e) == EM_OK);
    }
    ~test_model() {
        G.ggml_backend_buffer_free(buffer);
        G.ggml_free(ctx);
    }

  private:
    ggml_tensor * add(const char * what, int layer, int64_t in, int64_t out, char *& at) {
        const int64_t ne[3] = {in, out, shape.experts};
        ggml_tensor * t     = G.ggml_new_tensor(ctx, shape.type, 3, ne);
        char          name[64];
        snprintf(name, sizeof(name), "blk.%d.ffn_%s_exps.weight", layer, what);
        G.ggml_set_name(t, name);
        // Every model has the same values.
        static std::map<std::tuple<int, int64_t, int64_t, int, uint64_t>, std::vector<char>> made;
        const int64_t                                                                        rows = out * shape.experts;
        const uint64_t                                                                       seed = uint64_t(layer * 3 + what[0]);
        auto & bytes = made[{shape.type, in, out, shape.experts, seed}];
        if (bytes.empty()) {
            const auto values = random_floats(size_t(in * rows), 0.06f, seed);
            bytes.resize(G.ggml_nbytes(t));
            if (shape.type == TYPE_F32) {
                memcpy(bytes.data(), values.data(), bytes.size());
            } else {
                T.ggml_quantize_chunk(shape.type, values.data(), bytes.data(), 0, rows, in, nullptr);
            }
        }
        memcpy(at, bytes.data(), bytes.size());
        CHECK(G.ggml_backend_tensor_alloc(buffer, t, at) == STATUS_SUCCESS);
        at += G.ggml_nbytes(t);
        return t;
    }
};

// llama.cpp's expert block for one layer, with its own inputs and memory. A given buffer of the device is used for the memory.
struct test_graph {
    ggml_context *                  ctx;
    ggml_cgraph *                   graph;
    ggml_tensor *                   out;
    ggml_tensor *                   input;
    std::vector<float>              values; // the values of the input
    std::vector<std::vector<float>> memory;
    std::vector<int32_t>            ids;
    ggml_backend_buffer *           buffer;

    test_graph(const test_model & m, int layer, int64_t tokens, uint64_t seed, ggml_backend_buffer * buffer = nullptr)
        : buffer(buffer) {
        const test_shape & s = m.shape;
        ctx                 = G.ggml_init({G.ggml_tensor_overhead() * 64 + G.ggml_graph_overhead_custom(64, false), nullptr, true});
        const int64_t xe[3] = {s.width, 1, tokens}, ie[2] = {s.k, tokens}, we[3] = {1, s.k, tokens};
        ggml_tensor * x   = give(G.ggml_new_tensor(ctx, TYPE_F32, 3, xe), 1.0f, seed);
        input             = x;
        values            = memory.back();
        ggml_tensor *   w = give(G.ggml_new_tensor(ctx, TYPE_F32, 3, we), 0.5f, seed + 1);
        ggml_tensor *   i = G.ggml_new_tensor(ctx, TYPE_I32, 2, ie);
        std::mt19937_64 random(seed);
        for (int64_t t = 0; t < tokens; ++t) {
            const int first = int(random() % uint64_t(s.experts));
            for (int k = 0; k < s.k; ++k) {
                ids.push_back((first + k * 3) % s.experts);
            }
        }
        i->data            = ids.data();
        i->buffer          = buffer;
        ggml_tensor * gate = give(G.ggml_mul_mat_id(ctx, m.gate[size_t(layer)], x, i));
        ggml_tensor * up   = give(G.ggml_mul_mat_id(ctx, m.up[size_t(layer)], x, i));
        ggml_tensor * act  = give(T.ggml_swiglu_split(ctx, gate, up));
        ggml_tensor * down = give(G.ggml_mul_mat_id(ctx, m.down[size_t(layer)], act, i));
        if (buffer) { // llama.cpp gives a node the memory of a tensor that is not needed any more
            x->data = down->data;
        }
        ggml_tensor *              rows = give(T.ggml_mul(ctx, down, w));
        std::vector<ggml_tensor *> terms;
        for (int k = 0; k < s.k; ++k) {
            terms.push_back(T.ggml_view_2d(ctx, rows, s.width, tokens, rows->nb[2], size_t(k) * rows->nb[1]));
            terms.back()->data   = static_cast<char *>(rows->data) + terms.back()->view_offs;
            terms.back()->buffer = buffer;
        }
        out = terms[0];
        for (int k = 1; k < s.k; ++k) {
            out = give(T.ggml_add(ctx, out, terms[size_t(k)]));
        }
        static uint64_t uids = 0; // llama.cpp numbers its graphs, too
        graph                = G.ggml_new_graph_custom(ctx, 64, false);
        graph->uid           = ++uids;
        G.ggml_build_forward_expand(graph, rows);
        for (ggml_tensor * t : terms) {
            G.ggml_build_forward_expand(graph, t);
        }
        G.ggml_build_forward_expand(graph, out);
    }
    ~test_graph() { G.ggml_free(ctx); }

    std::vector<float> run(ggml_backend * backend) {
        begin();
        CHECK(G.ggml_backend_graph_compute(backend, graph) == STATUS_SUCCESS);
        return result();
    }
    void begin() {
        memset(out->data, 0xff, size_t(out->ne[0] * out->ne[1]) * 4);
        memcpy(input->data, values.data(), values.size() * 4); // an earlier run may have overwritten the input
    }
    std::vector<float> result() const {
        const float * d = static_cast<const float *>(out->data);
        return std::vector<float>(d, d + out->ne[0] * out->ne[1]);
    }

  private:
    ggml_tensor * give(ggml_tensor * t, float scale = 0, uint64_t seed = 0) {
        const size_t n = size_t(t->ne[0] * t->ne[1] * t->ne[2]);
        memory.push_back(scale > 0 ? random_floats(n, scale, seed) : std::vector<float>(n));
        t->data   = memory.back().data();
        t->buffer = buffer;
        return t;
    }
};

// Layers one after the other in one graph, as llama.cpp computes them.
struct test_chain {
    const std::vector<std::unique_ptr<test_graph>> & layers;
    ggml_context * ctx   = G.ggml_init({G.ggml_graph_overhead_custom(1024, false) + 256, nullptr, true});
    ggml_cgraph *  graph = G.ggml_new_graph_custom(ctx, 1024, false);

    explicit test_chain(const std::vector<std::unique_ptr<test_graph>> & all) : layers(all) {
        for (const auto & g : layers) {
            for (int i = 0; i < g->graph->n_nodes; ++i) {
                G.ggml_graph_add_node(graph, g->graph->nodes[i]);
            }
        }
        graph->uid = layers.front()->graph->uid << 16; // no other graph has this number
    }
    ~test_chain() { G.ggml_free(ctx); }

    void run(ggml_backend * backend) {
        for (const auto & g : layers) {
            g->begin();
        }
        CHECK(G.ggml_backend_graph_compute(backend, graph) == STATUS_SUCCESS);
    }
};

inline double largest_difference(const std::vector<float> & a, const std::vector<float> & b) {
    double difference = 0, largest = 1e-30;
    CHECK(a.size() == b.size());
    for (size_t i = 0; i < a.size(); ++i) {
        if (!(a[i] == a[i]) || !(b[i] == b[i])) {
            return 1e30;
        }
        difference = std::max(difference, double(std::abs(a[i] - b[i])));
        largest    = std::max(largest, double(std::abs(b[i])));
    }
    return difference / largest;
}

inline em_engine * new_engine(const char * device, int stream_tokens, int graph_us = 60000, int stream_slots = 4) {
    const em_options options{int32_t(sizeof(em_options)), 16, stream_tokens, stream_slots, graph_us, INT64_MAX, device};
    em_engine *      e = em_engine_new(&options);
    CHECK(e);
    return e;
}

inline void configure_sim(em_sim_options o) {
    o.struct_bytes = int32_t(sizeof(o));
    o.capacity     = o.capacity ? o.capacity : int64_t(1) << 34;
    CHECK(em_sim_configure(&o) == EM_OK);
}

// Number of threads of a pass. The thread sanitizer does not know the barriers of ggml's thread team.
#if defined(__SANITIZE_THREAD__)
constexpr int TEAM = 1;
#else
constexpr int TEAM = 2;
#endif

inline ggml_backend * cpu_backend() {
    ggml_backend * cpu = G.ggml_backend_cpu_init();
    G.ggml_backend_cpu_set_n_threads(cpu, 1);
    return cpu;
}

inline std::vector<em_load> loads_of(const test_shape & s, int share_of_8) {
    std::vector<em_load> loads;
    for (int l = 0; l < s.layers; ++l) {
        for (int e = 0; e < s.experts * share_of_8 / 8; ++e) {
            loads.push_back({l, e, -1});
        }
    }
    return loads;
}

inline void make_hot(em_engine * e, const test_shape & s, int share_of_8) {
    const std::vector<int32_t> slots(size_t(s.layers), s.experts * share_of_8 / 8);
    CHECK(em_set_slots(e, slots.data(), s.layers) == EM_OK);
    const auto loads = loads_of(s, share_of_8);
    CHECK(em_submit(e, loads.data(), int32_t(loads.size())) == int32_t(loads.size()));
    CHECK(em_wait_uploads(e, 20000) == EM_OK);
}

// A stream of our stand-in for sim, as llama.cpp sees it, and a piece of the stand-in's memory.
struct test_pass {
    ggml_backend *        stream;
    ggml_backend_buffer * buffer;

    explicit test_pass(em_engine * e) {
        auto * device = static_cast<ggml_backend_device *>(em_stand_in_device(e));
        typedef void (*set_n_threads_t)(ggml_backend *, int);
        stream = device->iface.init_backend(device, nullptr);
        reinterpret_cast<set_n_threads_t>(device->reg->iface.get_proc_address(device->reg, "ggml_backend_set_n_threads"))(stream,
                                                                                                                          TEAM);
        buffer = G.ggml_backend_buft_alloc_buffer(device->iface.get_buffer_type(device), 64);
    }
    ~test_pass() {
        G.ggml_backend_buffer_free(buffer);
        G.ggml_backend_free(stream);
    }
};

// streams.cpp
void test_streams();
// disk.cpp
void test_disk(int rounds);
