// Experts in RAM of our own and on the disk: results stay right for any budget, and a read that fails is an error.

#include "tests/harness.h"

#include <unistd.h>

namespace {

// The weights of a model in a file. The model's own memory is cleared: who reads it gets wrong results.
struct test_file {
    std::string                  path = "/tmp/edgemoe-core-test-XXXXXX";
    std::vector<em_expert_place> places;
    int64_t                      expert_bytes = 0;

    explicit test_file(test_model & m) {
        const int handle = mkstemp(path.data());
        CHECK(handle >= 0);
        for (int32_t l = 0; l < m.shape.layers; ++l) {
            const ggml_tensor * tensors[] = {m.gate[size_t(l)], m.up[size_t(l)], m.down[size_t(l)]};
            for (int32_t p = 0; p < 3; ++p) {
                places.push_back({l, p, 0, static_cast<char *>(tensors[p]->data) - m.memory.data()});
                expert_bytes += l == 0 ? int64_t(tensors[p]->nb[2]) : 0;
            }
        }
        CHECK(write(handle, m.memory.data(), m.memory.size()) == ssize_t(m.memory.size()));
        CHECK(close(handle) == 0);
        std::fill(m.memory.begin(), m.memory.end(), char(0x55));
    }
    ~test_file() { unlink(path.c_str()); }

    // Room for so many experts beside those that are on their way.
    void open(em_engine * e, int experts, int at_once = 2) const {
        const char * const paths[] = {path.c_str()};
        CHECK(em_open_ram(e, paths, 1, places.data(), int32_t(places.size()), expert_bytes * (experts + at_once), at_once) == EM_OK);
    }
};

em_stats_t stats_of(em_engine * e) {
    em_stats_t stats;
    CHECK(em_stats(e, &stats) == EM_OK);
    return stats;
}

ggml_backend * our_stream() {
    ggml_backend * b = em_buft()->device->iface.init_backend(em_buft()->device, nullptr);
    G.ggml_backend_cpu_set_n_threads(static_cast<em_context *>(b->context)->cpu, 1);
    return b;
}

// Any share of experts in RAM and on the device, any batch; the experts' sizes are whole pages or not.
void test_results(const char * device, bool by_pass, int64_t ffn) {
    ggml_backend * cpu = cpu_backend();
    for (const int type : {TYPE_F32, TYPE_Q8_0, TYPE_Q4_K}) {
        for (const int experts : {0, 3, 9, 16}) {
            configure_sim({});
            em_engine *e = new_engine(device, *device ? 2 : 0, 60000, by_pass ? 8 : 4), *plain = new_engine("", 0);
            {
                test_shape s;
                s.type = type, s.ffn = ffn;
                test_model      model(s, e), reference(s, plain);
                const test_file file(model);
                file.open(e, experts);
                if (*device) {
                    make_hot(e, s, 2);
                }
                CHECK(em_fill_ram(e, nullptr) == EM_OK);
                auto           pass = by_pass ? std::make_unique<test_pass>(e) : nullptr;
                ggml_backend * ours = by_pass ? pass->stream : our_stream();
                for (const int64_t tokens : {1, 2, 1, 5, 16, 40, 300, 1}) {
                    test_graph want(reference, int(tokens) % s.layers, tokens, uint64_t(tokens));
                    test_graph got(model, int(tokens) % s.layers, tokens, uint64_t(tokens), by_pass ? pass->buffer : nullptr);
                    CHECK(got.run(ours) == want.run(cpu));
                }
                const em_stats_t stats = stats_of(e);
                CHECK(stats.disk_bytes > 0 && stats.ram_budget == file.expert_bytes * (experts + 2));
                if (!by_pass) {
                    G.ggml_backend_free(ours);
                }
                em_engine_stop(e);
            }
            em_engine_free(e);
            em_engine_free(plain);
        }
    }
    G.ggml_backend_free(cpu);
}

// Everything has room: each expert is read once.
void test_one_read() {
    em_engine * e = new_engine("", 0);
    {
        test_shape      s;
        test_model      model(s, e);
        const test_file file(model);
        file.open(e, s.layers * s.experts);
        ggml_backend * ours = our_stream();
        for (int i = 0; i < 200; ++i) {
            test_graph(model, i % s.layers, i % 7 == 0 ? 64 : 1, uint64_t(i)).run(ours);
        }
        const em_stats_t stats = stats_of(e);
        CHECK(stats.disk_bytes == s.layers * s.experts * file.expert_bytes);
        CHECK(stats.missed_bytes == stats.disk_bytes && stats.ram_bytes == stats.disk_bytes);
        G.ggml_backend_free(ours);
        em_engine_stop(e);
    }
    em_engine_free(e);
}

// The file loses its end: the computation fails, and the reason names the file. What is in RAM still computes.
void test_cut_file() {
    em_engine * e = new_engine("", 0);
    {
        test_shape s;
        s.layers = 1;
        test_model      model(s, e);
        const test_file file(model);
        file.open(e, s.experts);
        ggml_backend * ours = our_stream();
        test_graph     first(model, 0, 1, 1);
        const auto     want = first.run(ours);
        CHECK(truncate(file.path.c_str(), 4096) == 0);
        CHECK(first.run(ours) == want);
        test_graph all(model, 0, 64, 2);
        CHECK(G.ggml_backend_graph_compute(ours, all.graph) == STATUS_FAILED);
        CHECK(em_disk_state(e) == EM_ERROR_STATE);
        CHECK(std::string(em_last_error()).find("edgemoe-core-test") != std::string::npos);
        CHECK(em_disk_state(e) == EM_OK); // told once
        CHECK(first.run(ours) == want);
        G.ggml_backend_free(ours);
        em_engine_stop(e);
    }
    em_engine_free(e);
}

// Uploads, evictions and a budget that changes, while the model computes.
void test_disk_churn(int rounds) {
    ggml_backend * cpu = cpu_backend();
    em_sim_options slow{};
    slow.jitter_us = 50, slow.early = 1, slow.streams = EM_SIM_ORDERED;
    configure_sim(slow);
    em_engine *e = new_engine("sim", 4, 60000, 8), *plain = new_engine("", 0);
    {
        test_shape s;
        s.width = s.ffn = 64;
        test_model      model(s, e), reference(s, plain);
        const test_file file(model);
        file.open(e, 6);
        make_hot(e, s, 2);
        test_pass         pass(e);
        std::atomic<bool> done{false};
        std::thread       mover([&] {
            std::mt19937_64 random(5);
            while (!done) {
                const em_load load{int32_t(random() % 2), int32_t(random() % 8), int32_t(random() % 9) - 1};
                em_submit(e, &load, 1);
                CHECK(stats_of(e).ram_bytes >= 0);
                if (random() % 20 == 0) {
                    em_resize_ram(e, file.expert_bytes * int64_t(2 + random() % 12));
                    em_fill_ram(e, nullptr);
                }
                std::this_thread::yield();
            }
        });
        for (int i = 0; i < rounds; ++i) {
            const int64_t tokens = i % 9 == 0 ? 33 : 1;
            test_graph    want(reference, i % 2, tokens, uint64_t(i)), got(model, i % 2, tokens, uint64_t(i), pass.buffer);
            CHECK(largest_difference(got.run(pass.stream), want.run(cpu)) <= (tokens > 1 ? 1e-6 : 0));
        }
        done = true;
        mover.join();
        em_engine_stop(e);
    }
    em_engine_free(e);
    em_engine_free(plain);
    configure_sim({});
    G.ggml_backend_free(cpu);
}
} // namespace

void test_disk(int rounds) {
    test_results("", false, 256);
    test_results("", false, 512);
    test_results("sim", false, 256);
    test_results("sim", true, 256);
    test_one_read();
    test_cut_file();
    test_disk_churn(rounds);
    puts("no wrong number with experts on the disk");
}
