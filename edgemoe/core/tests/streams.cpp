// A pass over streams that compute in threads of their own: what it sends, computes and copies must wait for each other by
// events and not by luck.

#include "harness.h"

namespace {

constexpr int JITTER_US = 200;

test_shape shape_of(int type, int layers) {
    test_shape s;
    s.type = type, s.layers = layers, s.width = s.ffn = 128;
    return s;
}

// Counts graphs, and those of which a row was wrong.
struct tally {
    int graphs = 0, wrong = 0;

    void add(bool right, const em_sim_options & o, const char * what, int type, int share, int64_t tokens) {
        constexpr int SHOWN = 8;
        graphs += 1;
        wrong += !right;
        if (!right && wrong <= SHOWN) {
            printf("  wrong: %s of type %d, %d of 8 hot, %d tokens, early %d, fetches %d\n", what, type, share, int(tokens), int(o.early),
                   int(o.fetch_all));
        }
    }
};

// ggml-cpu, which sim computes with, rounds otherwise for experts with more rows.
double most_difference(const em_sim_options & o, int64_t tokens) { return o.early && tokens > 1 ? 1e-6 : 0; }

// What ggml-cpu makes of a graph, which is the same for every engine.
const std::vector<float> & wanted(test_graph & g, int type, uint64_t seed, ggml_backend * cpu) {
    static std::map<std::pair<int, uint64_t>, std::vector<float>> known;
    auto & want = known[{type, seed}];
    if (want.empty()) {
        want = g.run(cpu);
    }
    return want;
}

// One layer in a graph. From 64 tokens on practically all of its experts are used.
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
            for (int again = 0; again < 2; ++again) { // its graphs are kept
                t.add(largest_difference(g.run(pass.stream), want) <= most_difference(o, tokens), o, "a layer", type, share, tokens);
            }
        }
        em_engine_stop(e); // llama.cpp lets go of its streams later
    }
    em_engine_free(e);
}

// Several layers in a graph, whose memory and tables are used one after the other.
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
                e->short_idle_ns = 1e9; // experts are sent ahead
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
            }
        }
    }
    G.ggml_backend_free(cpu);
    printf("streams %s, jitter %d us: %d of %d graphs wrong\n", streams == EM_SIM_ORDERED ? "in order" : "with a transfer queue", jitter_us,
           t.wrong, t.graphs);
    CHECK(t.wrong == 0);
}

} // namespace

void test_streams() {
    for (const em_sim_streams_t streams : {EM_SIM_ORDERED, EM_SIM_TRANSFER}) {
        for (const int jitter_us : {0, JITTER_US}) {
            test_parity_of(streams, jitter_us);
        }
    }
    configure_sim({});
}
