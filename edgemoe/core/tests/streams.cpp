// A pass over streams that compute in threads of their own. Events, and not luck, must make copies and computations wait for
// each other.

#include "tests/harness.h"

namespace {

constexpr int JITTER_US = 200;

test_shape shape_of(int type, int layers) {
    test_shape s;
    s.type = type, s.layers = layers, s.width = s.ffn = 128;
    return s;
}

// Counts graphs, and graphs with a wrong row.
struct tally {
    int graphs = 0, wrong = 0;

    void add(bool right, const em_sim_options & o, const char * what, int type, int share, int64_t tokens) {
        constexpr int SHOWN = 8;
        graphs += 1;
        wrong += !right;
        if (!right && wrong <= SHOWN) {
            printf("  wrong: %s of type %d, %d of 8 hot, %d tokens, early %d, fetches %d\n", what, type, share, int(tokens),
                   int(o.early), int(o.fetch_all));
        }
    }
};

// sim computes with ggml-cpu, which rounds differently for experts with more rows.
double most_difference(const em_sim_options & o, int64_t tokens) { return o.early && tokens > 1 ? 1e-6 : 0; }

// Gives ggml-cpu's result of a graph, which is the same for every engine.
const std::vector<float> & wanted(test_graph & g, int type, uint64_t seed, ggml_backend * cpu) {
    static std::map<std::pair<int, uint64_t>, std::vector<float>> known;
    auto &                                                        want = known[{type, seed}];
    if (want.empty()) {
        want = g.run(cpu);
    }
    return want;
}

// One layer in a graph. A batch of 64 tokens or more uses practically all experts of the layer.
void single_layers(tally & t, const em_sim_options & o, int type, int share, int stage_slots, ggml_backend * cpu) {
    configure_sim(o);
    em_engine * e = new_engine("sim", 2, 60000, stage_slots);
    {
        const test_shape s = shape_of(type, 2);
        test_model       model(s, e);
        make_hot(e, s, share);
        test_pass pass(e);
        for (const int64_t tokens : {1, 2, 5, 16, 40, 70, 1}) {
            test_graph   g(model, 0, tokens, uint64_t(tokens), pass.buffer);
            const auto & want = wanted(g, type, uint64_t(tokens), cpu);
            for (int again = 0; again < 2; ++again) { // a second run uses the kept graphs
                const bool right = largest_difference(g.run(pass.stream), want) <= most_difference(o, tokens);
                t.add(right, o, "a layer", type, share, tokens);
            }
        }
        em_engine_stop(e); // llama.cpp frees its streams later
    }
    em_engine_free(e);
}

// Several layers in a graph. They use the memory and the tables of a pass one after the other.
void chains(tally & t, const em_sim_options & o, int type, int share, ggml_backend * cpu) {
    configure_sim(o);
    em_engine * e = new_engine("sim", 2, 60000, 8);
    {
        const test_shape s = shape_of(type, 4);
        test_model       model(s, e);
        make_hot(e, s, share);
        test_pass pass(e);
        for (const int64_t tokens : {1, 3, 20, 40, 1}) {
            std::vector<std::unique_ptr<test_graph>> layers;
            std::vector<std::vector<float>>          want;
            for (int l = 0; l < s.layers; ++l) {
                const uint64_t seed = uint64_t(tokens * 1000 + l);
                layers.push_back(std::make_unique<test_graph>(model, l, tokens, seed, pass.buffer));
                want.push_back(wanted(*layers.back(), type, seed, cpu));
            }
            test_chain chain(layers);
            for (int again = 0; again < 2; ++again) {
                e->rates.short_idle_ns = 1e9; // experts are sent ahead
                chain.run(pass.stream);
                bool right = true;
                for (size_t l = 0; l < layers.size(); ++l) {
                    right = right && largest_difference(layers[l]->result(), want[l]) <= most_difference(o, tokens);
                }
                t.add(right, o, "layers", type, share, tokens);
            }
        }
        em_engine_stop(e);
    }
    em_engine_free(e);
}

// A trace replaces ids while the router computes them.
void forced(tally & t, const em_sim_options & o, int share, ggml_backend * cpu) {
    configure_sim(o);
    em_engine * e = new_engine("sim", 2, 60000, 8);
    {
        const test_shape s = shape_of(TYPE_F32, 2);
        test_model       model(s, e);
        make_hot(e, s, share);
        test_pass                  pass(e);
        test_graph                 g(model, 0, 1, 1, pass.buffer);
        const auto &               want  = g.run(cpu);
        const std::vector<int32_t> trace = {g.ids[0], g.ids[1], 0, 1}; // ids of both layers
        CHECK(em_force(e, trace.data(), 1, s.k) == EM_OK);
        ggml_tensor *        ids    = g.graph->nodes[0]->src[2];
        ggml_tensor          router = *ids;
        std::vector<int32_t> others = {(g.ids[0] + 1) % s.experts, (g.ids[1] + 1) % s.experts};
        router.data                 = others.data();
        ids->op = OP.cont, ids->src[0] = &router, ids->flags |= TENSOR_FLAG_COMPUTE;
        std::vector<ggml_tensor *> nodes = {ids};
        nodes.insert(nodes.end(), g.graph->nodes, g.graph->nodes + g.graph->n_nodes);
        ggml_cgraph routed = *g.graph;
        routed.nodes       = nodes.data(), routed.n_nodes += 1, routed.uid <<= 16;
        for (int again = 0; again < 10; ++again) {
            g.begin();
            CHECK(G.ggml_backend_graph_compute(pass.stream, &routed) == STATUS_SUCCESS);
            t.add(g.result() == want, o, "a forced layer", TYPE_F32, share, 1);
        }
        em_engine_stop(e);
    }
    em_engine_free(e);
}

void test_parity_of(em_sim_streams_t streams, int jitter_us) {
    ggml_backend * cpu = cpu_backend();
    tally          t;
    for (const int type : {TYPE_F32, TYPE_Q8_0}) {
        for (const int share : {0, 2, 4}) {
            for (int way = 0; way < 6; ++way) {
                em_sim_options o{};
                o.streams = streams, o.jitter_us = jitter_us, o.seed = uint64_t(way + 1);
                o.early = way % 2, o.fetch_all = way / 2;
                single_layers(t, o, type, share, 4, cpu); // half a layer on the stage
                single_layers(t, o, type, share, 8, cpu);
                chains(t, o, type, share, cpu);
                if (type == TYPE_F32) {
                    forced(t, o, share, cpu);
                }
            }
        }
    }
    G.ggml_backend_free(cpu);
    const char * kind = streams == EM_SIM_ORDERED ? "in order" : "with a transfer queue";
    printf("streams %s, jitter %d us: %d of %d graphs wrong\n", kind, jitter_us, t.wrong, t.graphs);
    CHECK(t.wrong == 0);
}

// ---- regular waits of a pass ----

struct {
    std::map<const void *, int> waits; // number of waits for each stream and event
    void (*synchronize)(ggml_backend *);
    void (*event_synchronize)(ggml_backend_device *, ggml_backend_event *);
} counted;

// A device may keep the memory of its streams and events until a thread waits. A pass waits for these every 64 graphs, not more often.
void test_letting_go() {
    constexpr int  GRAPHS = 64 * 3 + 10;
    em_sim_options o{};
    o.streams = EM_SIM_TRANSFER, o.early = 1;
    configure_sim(o);
    em_engine * e = new_engine("sim", 2, 60000, 8);
    {
        const test_shape s = shape_of(TYPE_F32, 2);
        test_model       model(s, e);
        make_hot(e, s, 4);
        test_pass pass(e);
        auto *    p                   = static_cast<em_pass *>(pass.stream->context);
        auto &    device              = em_sim_device()->iface;
        counted                       = {{}, p->to_host->iface.synchronize, device.event_synchronize};
        p->to_host->iface.synchronize = [](ggml_backend * b) {
            counted.waits[b] += 1;
            counted.synchronize(b);
        };
        device.event_synchronize = [](ggml_backend_device * d, ggml_backend_event * event) {
            counted.waits[event] += 1;
            counted.event_synchronize(d, event);
        };
        test_graph g(model, 0, 1, 1, pass.buffer), h(model, 1, 1, 2, pass.buffer);
        for (int i = 0; i < GRAPHS; ++i) {
            (i % 2 ? g : h).run(pass.stream);
        }
        device.event_synchronize      = counted.event_synchronize;
        p->to_host->iface.synchronize = counted.synchronize;
        const void * waited[]         = {p->to_host, p->sync.ready, e->residence.readers.read, e->model.layers[0]->residents.read,
                                         e->model.layers[1]->residents.read};
        for (const void * w : waited) {
            CHECK(counted.waits[w] == GRAPHS / 64);
        }
        em_engine_stop(e);
    }
    em_engine_free(e);
    puts("streams and events are waited for every 64 graphs");
}

// ---- fusions ----

// ggml-cuda and ggml-vulkan make this check before they fuse nodes. True: the result would overwrite a source from outside the nodes.
bool overwrites_a_source(const ggml_cgraph * nodes, const ggml_tensor * result) {
    auto begin = [](const ggml_tensor * t) { return static_cast<const char *>(t->data); };
    auto end   = [](const ggml_tensor * t) { return static_cast<const char *>(t->data) + G.ggml_nbytes(t); };
    for (int i = 0; i < nodes->n_nodes; ++i) {
        for (const ggml_tensor * s : nodes->nodes[i]->src) {
            const bool fused = std::find(nodes->nodes, nodes->nodes + i, s) != nodes->nodes + i;
            if (s && s->op != OP.none && !fused && begin(s) < end(result) && begin(result) < end(s)) {
                return true;
            }
        }
    }
    return false;
}

struct {
    const ggml_tensor * result;
    bool                overwrites, optimized;
    int (*compute)(ggml_backend *, ggml_cgraph *);
} looked;

// The nodes after a layer's experts are a part of their own. The device still sees that a sum would overwrite its rows.
void test_fusions() {
    em_sim_options o{};
    configure_sim(o);
    em_engine * e = new_engine("sim", 2, 60000, 8);
    {
        const test_shape s = shape_of(TYPE_F32, 2);
        test_model       model(s, e);
        make_hot(e, s, 4);
        test_pass pass(e);
        auto *    p                     = static_cast<em_pass *>(pass.stream->context);
        looked.compute                  = p->compute->iface.graph_compute;
        p->compute->iface.graph_compute = [](ggml_backend * b, ggml_cgraph * part) {
            if (part->nodes[part->n_nodes - 1] == looked.result) {
                looked.overwrites = overwrites_a_source(part, looked.result);
            }
            return looked.compute(b, part);
        };
        for (const bool overlap : {false, true}) {
            test_graph    g(model, 0, 1, 1, pass.buffer);
            const auto    want = g.run(pass.stream);
            ggml_tensor * down = nullptr;
            for (int i = 0; i < g.graph->n_nodes; ++i) {
                down = g.graph->nodes[i]->op == OP.mul_mat_id ? g.graph->nodes[i] : down;
            }
            g.out->data   = overlap ? down->data : g.out->data;
            looked.result = g.out;
            CHECK(g.run(pass.stream) == want);
            CHECK(looked.overwrites == overlap);
            CHECK(down->op == OP.mul_mat_id && down->src[2]); // the graph is llama.cpp's again
        }
        p->compute->iface.graph_compute = looked.compute;

        // llama.cpp's graphs reach the device's graph_optimize.
        p->compute->iface.graph_optimize = [](ggml_backend *, ggml_cgraph *, ggml_backend_graph_optimize_params *) {
            looked.optimized = true;
        };
        pass.stream->iface.graph_optimize(pass.stream, nullptr, nullptr);
        CHECK(looked.optimized);
        em_engine_stop(e);
    }
    em_engine_free(e);
    puts("a part shows the device what a fusion would overwrite");
}

void test_traits() {
    for (const char * name : {"CUDA", "ROCm", "MUSA"}) {
        const em_device_traits t = em_traits_of_registry(name);
        CHECK(t.sends_in_order && t.keeps_nothing && t.optimizes_in_place);
    }
    for (const char * name : {"Vulkan", "Metal", "SYCL", "RPC", ""}) {
        const em_device_traits t = em_traits_of_registry(name);
        CHECK(!t.sends_in_order && !t.keeps_nothing && !t.optimizes_in_place);
    }
}

} // namespace

void test_streams() {
    for (const em_sim_streams_t streams : {EM_SIM_ORDERED, EM_SIM_TRANSFER}) {
        for (const int jitter_us : {0, JITTER_US}) {
            test_parity_of(streams, jitter_us);
        }
    }
    test_letting_go();
    test_fusions();
    test_traits();
    configure_sim({});
}
