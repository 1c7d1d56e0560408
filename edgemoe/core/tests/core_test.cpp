// The core's own tests, without Python: core_test FOLDER_OF_GGML_LIBRARIES [rounds]
//
// In the place of the rounds, a name runs one part only: "streams" the tests of streams.cpp, "disk" those of disk.cpp, "kernels" the
// dot products and the loops over rows, "threads" the pool of threads.

#include "tests/harness.h"

#include "cpu/kernels/kernels.h"
#include "routing/rows.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

namespace {

int rounds = 1000;

ggml_backend * our_backend() { return em_buft()->device->iface.init_backend(em_buft()->device, nullptr); }

void set_one_thread(ggml_backend * b) { G.ggml_backend_cpu_set_n_threads(static_cast<em_context *>(b->context)->cpu, 1); }

// Rows of n weights of `type` times `tokens` activations: products equal ggml's to the last bit, one by one and together.
void check_kernel(int type, int64_t n, int64_t rows, int64_t tokens) {
    const auto               values = random_floats(n * rows, 0.05f, 7), x = random_floats(n * tokens, 1.0f, 8);
    const std::vector<float> importance(size_t(n), 1.0f); // two-bit types cannot be quantised without importance
    const size_t             row_bytes = G.ggml_row_size(type, n);
    std::vector<char>        packed(row_bytes * rows);
    T.ggml_quantize_chunk(type, values.data(), packed.data(), 0, rows, n, importance.data());
    const em_kernel ours = em_kernel_for(type, n, true), ggml = em_kernel_for(type, n, false);
    CHECK(ours.dot != ggml.dot);
    const size_t              own_bytes = em_align(ours.activation_bytes(n), 64);
    char *                    a         = static_cast<char *>(aligned_alloc(64, own_bytes * tokens));
    void *                    b         = aligned_alloc(64, em_align(ggml.activation_bytes(n), 64));
    std::vector<float>        got(rows * tokens), want(rows * tokens), single(rows * tokens);
    std::vector<const void *> prepared;
    std::vector<float *>      out;
    for (int64_t t = 0; t < tokens; ++t) {
        prepared.push_back(a + size_t(t) * own_bytes);
        out.push_back(&got[size_t(t * rows)]);
        ours.prepare(ours, &x[size_t(t * n)], n, a + size_t(t) * own_bytes);
        ggml.prepare(ggml, &x[size_t(t * n)], n, b);
        for (int64_t r = 0; r < rows; ++r) {
            ours.dot(ours, n, packed.data() + size_t(r) * row_bytes, prepared.back(), &single[size_t(t * rows + r)]);
            ggml.dot(ggml, n, packed.data() + size_t(r) * row_bytes, b, &want[size_t(t * rows + r)]);
        }
    }
    ours.dots(ours, {packed.data(), row_bytes, rows, n}, {prepared.data(), out.data(), tokens});
    if (largest_difference(single, want) != 0 || largest_difference(got, want) != 0) {
        printf("kernel %s, type %d, %d weights, %d rows, %d tokens: %.2g alone, %.2g together\n",
               em_family_name(em_kernels_family()), type, int(n), int(rows), int(tokens), largest_difference(single, want),
               largest_difference(got, want));
        CHECK(false);
    }
    free(a);
    free(b);
}

// Every kernel of every family that runs here, for 1 to 16 tokens and any number of rows.
void test_kernels() {
    const std::vector<std::pair<int, int64_t>> types = {
        {TYPE_Q4_0, 1536},  {TYPE_Q4_0, 1568},    {TYPE_Q5_0, 1536},   {TYPE_Q5_0, 1568},    {TYPE_Q8_0, 1536},
        {TYPE_Q8_0, 1568},  {TYPE_Q2_K, 1536},    {TYPE_Q3_K, 1536},   {TYPE_Q4_K, 1536},    {TYPE_Q5_K, 1536},
        {TYPE_Q6_K, 1536},  {TYPE_IQ4_NL, 1536},  {TYPE_IQ4_NL, 1568}, {TYPE_IQ4_XS, 1536},  {TYPE_MXFP4, 1536},
        {TYPE_MXFP4, 1568}, {TYPE_IQ2_XXS, 1536}, {TYPE_IQ2_S, 1536},  {TYPE_IQ3_XXS, 1536}, {TYPE_IQ3_S, 1536}};
    for (const em_family family : {em_family::avx2, em_family::avxvnni, em_family::avx512, em_family::neon}) {
        const char * name = em_family_name(family);
        if (!em_family_runs(family)) {
            CHECK(!em_kernels_choose(name).empty());
            printf("kernels %s do not run here\n", name);
            continue;
        }
        CHECK(em_kernels_choose(name).empty() && em_kernels_family() == family);
        int own = 0;
        for (const auto & [type, n] : types) {
            if (!em_kernel_own(type, n)) {
                printf("kernels %s: none for %d weights of type %d\n", name, int(n), type);
                continue;
            }
            ++own;
            for (int64_t tokens = 1; tokens <= 16; ++tokens) {
                check_kernel(type, n, tokens == 15 ? 62 : 13, tokens);
            }
        }
        printf("kernels %s: %d of %d equal ggml's to the last bit\n", name, own, int(types.size()));
    }
    CHECK(em_kernels_choose("off").empty() && !em_kernel_own(TYPE_Q4_K, 1536));
    CHECK(!em_kernels_choose("best").empty() && em_kernels_family() == em_family::none);
    CHECK(em_kernels_choose("auto").empty());
}

// Results equal ggml-cpu's for any share of hot experts, any batch, streamed or not, in one graph or in many.
void test_parity() {
    ggml_backend * cpu = cpu_backend();
    for (const int type : {TYPE_F32, 8, 12, 14}) {
        for (const int share : {0, 2, 4, 8}) {
            for (const int way : {0, 1, 2, 3}) {
                configure_sim({});
                em_engine * e = new_engine("sim", way & 1 ? 2 : 0, way & 2 ? 1 : 60000);
                {
                    test_shape s;
                    s.type = type;
                    test_model     model(s, e);
                    ggml_backend * ours = our_backend();
                    set_one_thread(ours);
                    make_hot(e, s, share);
                    for (const int64_t tokens : {1, 2, 5, 16, 40, 300}) {
                        test_graph   g(model, int(tokens) % s.layers, tokens, uint64_t(tokens));
                        const auto   want       = g.run(cpu);
                        const double difference = largest_difference(g.run(ours), want);
                        CHECK(difference == 0);
                    }
                    G.ggml_backend_free(ours);
                    em_engine_stop(e);
                }
                em_engine_free(e);
            }
        }
    }
    G.ggml_backend_free(cpu);
    puts("parity holds");
}

// Results equal ggml-cpu's if the device computes the graph. Hot pairs start before the CPU knows the ids, or after. The device fetches
// no miss, every miss, or all but every second miss. A stage for prompts holds a whole layer or half a layer.
void test_pass_parity() {
    ggml_backend * cpu = cpu_backend();
    for (const int type : {TYPE_F32, 8, 12}) {
        for (const int share : {0, 2, 4, 8}) {
            for (int way = 0; way < 12; ++way) {
                em_sim_options o{};
                o.early = way % 2, o.fetch_all = way / 2 % 3;
                configure_sim(o);
                em_engine * e = new_engine("sim", 2, 60000, way / 6 ? 4 : 8);
                {
                    test_shape s;
                    s.type = type;
                    test_model model(s, e);
                    make_hot(e, s, share);
                    test_pass pass(e);
                    for (const int64_t tokens : {1, 2, 5, 16, 40, 300, 1}) {
                        test_graph g(model, int(tokens) % s.layers, tokens, uint64_t(tokens), pass.buffer);
                        const auto want = g.run(cpu);
                        // sim computes with ggml-cpu, which rounds differently for experts with more rows
                        const double most = o.early && tokens > 1 ? 1e-6 : 0;
                        CHECK(largest_difference(g.run(pass.stream), want) <= most);
                        CHECK(largest_difference(g.run(pass.stream), want) <= most); // a second run uses the kept graphs
                    }
                    em_engine_stop(e); // llama.cpp frees its streams later
                }
                em_engine_free(e);
            }
        }
    }
    G.ggml_backend_free(cpu);
    puts("parity holds where the device computes the graph");
}

// Several layers in one graph, as in a model. In short prompts experts are sent before the ids of their layer are known. The rows of
// every layer are right. A batch in between that uses all experts gets all experts.
void test_prompts_of_layers() {
    ggml_backend * cpu = cpu_backend();
    for (const int type : {TYPE_F32, TYPE_Q4_K}) {
        for (const int share : {0, 4}) {
            for (const int way : {0, 1, 2, 3}) {
                em_sim_options o{};
                o.early = way % 2, o.jitter_us = way / 2 * 50;
                configure_sim(o);
                em_engine * e = new_engine("sim", 2, 60000, 8);
                {
                    test_shape s;
                    s.layers = 5, s.type = type;
                    test_model model(s, e);
                    make_hot(e, s, share);
                    test_pass pass(e);
                    int64_t   ahead = 0;
                    for (const bool mixed : {false, true}) {
                        for (uint64_t seed = 1; seed < 4; ++seed) {
                            std::vector<std::unique_ptr<test_graph>> layers;
                            for (int l = 0; l < s.layers; ++l) {
                                layers.push_back(std::make_unique<test_graph>(model, l, mixed && l == 2 ? 300 : 40,
                                                                              seed * 10 + uint64_t(l), pass.buffer));
                            }
                            std::vector<std::vector<float>> want;
                            for (auto & g : layers) {
                                want.push_back(g->run(cpu));
                            }
                            test_chain chain(layers);
                            e->rates.short_idle_ns = 1e9; // sim brings ids at once, so the link would have no time to send
                            chain.run(pass.stream);
                            for (size_t l = 0; l < layers.size(); ++l) {
                                CHECK(largest_difference(layers[l]->result(), want[l]) == 0);
                            }
                            const auto & layouts = static_cast<em_pass *>(pass.stream->context)->prompt.layout;
                            for (const auto & l : layouts) {
                                ahead += std::count(l.sent_early.begin(), l.sent_early.end(), 1);
                            }
                        }
                    }
                    CHECK(ahead > 0);
                    em_engine_stop(e);
                }
                em_engine_free(e);
            }
        }
    }
    configure_sim({});
    G.ggml_backend_free(cpu);
    puts("prompts through several layers agree, with experts sent ahead");
}

// Link and CPU share the experts of a short prompt so that both finish at once. The shares follow the times of earlier layers.
void test_sharing() {
    em_sim_options o{};
    o.latency_us = 5000;
    configure_sim(o);
    em_engine * e = new_engine("sim", 2, 60000, 8);
    {
        test_shape   s;
        test_model   model(s, e);
        test_pass    pass(e);
        em_pass *    p     = static_cast<em_pass *>(pass.stream->context);
        em_layer_t & layer = *e->model.layers[0];
        test_graph   g(model, 0, 1, 1);
        CHECK(G.ggml_backend_graph_compute(pass.stream, g.graph) == STATUS_SUCCESS); // the pass knows its layers
        std::vector<int32_t> picks; // expert x for x + 1 tokens
        for (int32_t x = 0; x < s.experts; ++x) {
            picks.insert(picks.end(), size_t(x) + 1, x);
        }
        ggml_tensor ids{};
        ids.ne[0] = 1, ids.ne[1] = int64_t(picks.size()), ids.ne[2] = ids.ne[3] = 1;
        ids.nb[0] = ids.nb[1] = 4, ids.nb[2] = ids.nb[3] = 4 * picks.size();
        ids.type = TYPE_I32, ids.data = picks.data();
        em_stage_layout layout;
        layout.sent_early.assign(size_t(s.experts), 0);
        const double pair = e->rates.short_pair_ns = 1000;
        auto         share                         = [&](double copy_ns) {
            p->misses.cold.clear();
            e->rates.short_byte_ns = copy_ns / double(layer.expert_bytes);
            return em_share_out(p, layer, &ids, layout, 0);
        };
        for (const double copy : {1.0, 2000.0, 5000.0, 8000.0, 1e9}) {
            const auto sent = share(copy);
            const auto n    = std::count(sent.begin(), sent.end(), 1);
            CHECK(std::is_sorted(sent.begin(), sent.end())); // the CPU computes the experts with the fewest tokens
            CHECK(int64_t(p->misses.cold.size()) == (s.experts - n) * (s.experts - n + 1) / 2);
            const auto both = [&](int64_t sends) {
                return std::max(copy * double(sends), pair * double((s.experts - sends) * (s.experts - sends + 1) / 2));
            };
            for (int64_t other = 0; other <= s.experts; ++other) {
                CHECK(both(n) <= both(other));
            }
            CHECK(copy != 1.0 || n == s.experts);
            CHECK(copy != 1e9 || n == 0);
        }
        layout.sent_early[7] = 1, layout.sent = 1; // the expert is on the link already
        CHECK(!share(2000)[7] &&
              std::none_of(p->misses.cold.begin(), p->misses.cold.end(), [](const em_pair & c) { return c.expert == 7; }));

        // On a busy machine a wait may be seen that was none, or a real wait may be missed: one of three tries counts.
        const auto once_of_three = [](auto holds) { return holds() || holds() || holds(); };
        CHECK(once_of_three([&] {
            p->prompt.shared = {
                {0, 1e6, 1e6, 0.9e6, 1e5}, 1, 0, 0}; // the plan expected the link to finish last, but it finished first
            e->rates.short_byte_ns = 1;
            em_wait_and_learn(p, 1);
            const double once = e->rates.short_byte_ns;
            em_wait_and_learn(p, 1);
            const double twice = e->rates.short_byte_ns;
            em_wait_and_learn(p, 2);
            CHECK(e->rates.short_byte_ns == twice); // a layer that was not shared teaches nothing
            return once < 1 && twice / once < once; // the link gets more experts, and each time a larger step
        }));
        const auto after_a_wait = [&](double planned_ns) {
            p->prompt.shared = {{0, 1e7, 1e7, 1e7 - planned_ns, 1e6}, 1, em_now_ns(), 0};
            G.ggml_backend_tensor_set_async(e->device.stream, p->tables.slots[0], picks.data(), 0, 4); // takes 5 ms
            G.ggml_backend_event_record(p->sync.filled[EM_SECOND], e->device.stream);
            e->rates.short_byte_ns = 1;
            em_wait_and_learn(p, 1);
            return e->rates.short_byte_ns;
        };
        CHECK(once_of_three([&] { return after_a_wait(0) > 1; })); // the CPU waited for the link: the link gets fewer experts
        CHECK(once_of_three([&] { return after_a_wait(1e9) < 1; })); // the CPU waited less than planned
        p->prompt.shared       = {{0, 1e6, 0, 0, 1e6}, 1, 0, 0};
        e->rates.short_byte_ns = 1;
        em_wait_and_learn(p, 1);
        CHECK(e->rates.short_byte_ns == 1); // all was sent ahead: nothing to learn
        em_engine_stop(e);
    }
    em_engine_free(e);
    configure_sim({});
    puts("link and CPU share out short prompts");
}

// Decisions made from measured rates, without an engine.
void test_rates() {
    em_rates r;
    CHECK(em_pair_ns(1000, 0) == 20 && em_pair_ns(1000, 7) == 7);
    CHECK(em_pairs_of_graph(60000, 1) == EM_MAX_PAIRS && em_pairs_of_graph(1, 1e9) == EM_MIN_PAIRS);
    CHECK(em_divide_misses(r, 1000, 8, 0, 0).fetches == 0); // nothing is known
    r.copy_ns_per_byte = 1;
    em_note_cold(r, 1, 1000);
    CHECK(r.miss_pair_ns == 1000 && em_cold_ns(r, 1) == 1000 && em_cold_ns(r, 5) == 5000 && em_cold_ns(r, 0) == 0);
    CHECK(em_divide_misses(r, 1000, 8, 0, 0).fetches == 4); // both sides take the same time
    CHECK(em_divide_misses(r, 1000, 8, 0, 1e9).fetches == 0);
    CHECK(em_divide_misses(r, 1000000, 8, 0, 0).fetches == 0);
    const double fetch = r.fetch_ns;
    em_note_fetch(r, 1e12); // one slow moment
    CHECK(r.fetch_ns > fetch && r.fetch_ns < 2 * fetch);
    em_fade(r.fetch_ns);
    CHECK(r.fetch_ns < 2 * fetch);
    CHECK(em_stream_from(r, 1000, 8) == 8);
    r.cold_pair_ns = 100, r.stream_byte_ns = 1;
    CHECK(em_stream_from(r, 1000, 8) == 11 && em_stream_from(r, 1, 8) == 2 && em_stream_from(r, 1000000, 8) == 8 * 16);
    CHECK(em_prefetches_in_time(r, 1000, 2, 0, 5) == 5); // no layer was timed
    r.layer_ns = 2000;
    CHECK(em_prefetches_in_time(r, 1000, 2, 1, 5) == 3 && em_prefetches_in_time(r, 1000, 2, 9, 5) == 0);
    r.short_pair_ns = 1000, r.short_byte_ns = 1;
    const em_sharing s = em_share(r, 2000, {1, 2, 3, 4}, 0, 0);
    CHECK(s.kept == 2 && s.cpu_ns == 3000 && s.sent_ns == 4000 && s.link_ns == 4000 && s.expert_ns == 2000);
    CHECK(em_share(r, 2000, {1, 2, 3, 4}, 3, 5000).link_ns == 1000 + em_share(r, 2000, {1, 2, 3, 4}, 3, 5000).sent_ns);
    double rate = 0;
    em_note_rate(rate, 10);
    em_note_rate(rate, 20);
    CHECK(rate == 12);
    puts("decisions follow from rates");
}

// A stop does not wait for the end of the layer. Graphs under way finish and no other graph begins, for hot, cold and streamed pairs.
void test_stop() {
    for (const int share : {0, 4, 8}) {
        configure_sim({});
        em_engine * e = new_engine("sim", share == 0 ? 2 : 0, 1);
        {
            test_shape     s;
            test_model     model(s, e);
            ggml_backend * ours = our_backend();
            set_one_thread(ours);
            make_hot(e, s, share);
            test_graph g(model, 0, 300, 1);
            auto       parts = [&](bool cancelled) {
                em_stats_t before, after;
                em_cancel(e, cancelled);
                em_stats(e, &before);
                CHECK(G.ggml_backend_graph_compute(ours, g.graph) == (cancelled ? STATUS_ABORTED : STATUS_SUCCESS));
                em_stats(e, &after);
                return after.joins - before.joins;
            };
            CHECK(parts(false) > 3);
            CHECK(parts(true) <= 1);
            CHECK(parts(false) > 3);
            G.ggml_backend_free(ours);
            em_engine_stop(e);
        }
        em_engine_free(e);
    }
    puts("a stop waits for no layer");
}

// A predictor without any training is asked all the time.
em_predictor * ignorant_predictor(const test_shape & s) {
    const size_t             experts = size_t(s.experts), layers = 2;
    const std::vector<float> zeros(layers * experts * experts * 3, 0.0f);
    em_predictor_tables      t{};
    t.struct_bytes = int32_t(sizeof(t));
    t.layers = 2, t.experts = s.experts, t.top_k = s.k, t.decays = t.memories = t.leads = 1, t.reach = 3;
    t.rate = 0.1f, t.horizon = 0.8f;
    t.decay = t.keep_bias = t.keep_decay = t.keep_again = t.memory_rate = t.keep_memory = zeros.data();
    t.next_bias = t.next_decay = t.next_again = t.next_rows = t.next_token = t.next_router = zeros.data();
    em_predictor * p                                                                       = em_predictor_new(&t);
    CHECK(p);
    return p;
}

// Random evictions, uploads and prefetches while the model computes never give a wrong number. Also runs under the thread sanitizer.
void test_churn(bool by_pass, em_sim_streams_t streams) {
    ggml_backend * cpu = cpu_backend();
    em_sim_options slow{};
    slow.jitter_us = 50;
    slow.fetch_all = 2, slow.early = 1, slow.streams = streams;
    configure_sim(slow);
    em_engine * e = new_engine("sim", 4, 60000, by_pass ? 8 : 4);
    {
        test_shape s;
        s.width = s.ffn = 64;
        test_model                 model(s, e);
        std::unique_ptr<test_pass> pass = by_pass ? std::make_unique<test_pass>(e) : nullptr;
        ggml_backend *             ours = by_pass ? pass->stream : our_backend();
        if (!by_pass) {
            set_one_thread(ours);
        }
        std::atomic<bool>    done{false};
        std::thread          mover([&] {
            std::mt19937_64 random(5);
            while (!done) {
                if (random() % 200 == 0) {
                    const int32_t n        = int32_t(random() % 5);
                    const int32_t slots[2] = {n, 4 - n};
                    em_set_slots(e, slots, 2);
                }
                const em_load load{int32_t(random() % 2), int32_t(random() % 8), int32_t(random() % 9) - 1};
                em_submit(e, &load, 1);
                em_stats_t stats;
                em_stats(e, &stats);
            }
        });
        std::vector<int32_t> events(1 << 16);
        em_predictor *       predictor = ignorant_predictor(s);
        CHECK(em_set_prefetch(e, predictor, 1, 2, -10.0f, 0) == EM_OK);
        const std::vector<uint16_t> weight(size_t(s.experts) * 64, 0x3f80); // 1.0
        const std::vector<float>    bias(size_t(s.experts), 0.5f);
        CHECK(em_set_router(e, 1, weight.data(), bias.data(), nullptr, s.experts, 64) == EM_OK);
        CHECK(em_set_router(e, 2, weight.data(), bias.data(), nullptr, s.experts, 64) == EM_ERROR_ARGUMENT);
        for (int i = 0; i < rounds; ++i) {
            if (i % 3 == 0) {
                CHECK(em_begin_token(e, i % 5) == EM_OK);
            }
            test_graph g(model, i % 2, i % 9 == 0 ? 33 : 1 + i % 5 / 3, uint64_t(i), by_pass ? pass->buffer : nullptr);
            CHECK(g.run(ours) == g.run(cpu));
            if (i % 2) {
                const int32_t token[4] = {g.ids[0], g.ids[1], g.ids[1], -1}; // two layers, two experts each
                const int32_t id       = i % 5;
                CHECK(em_end_step(e) == EM_OK);
                em_predictor_seen(predictor, &id, token, 1);
                em_predictor_token(predictor, token);
            }
            CHECK(em_drain(e, events.data(), int64_t(events.size())) > 0);
        }
        done = true;
        mover.join();
        CHECK(em_set_prefetch(e, nullptr, 1, 0, 0.0f, 0) == EM_OK);
        em_predictor_free(predictor);
        if (!by_pass) {
            G.ggml_backend_free(ours);
        }
        em_engine_stop(e);
    }
    em_engine_free(e);
    G.ggml_backend_free(cpu);
    constexpr const char * STREAMS[] = {"", ", in order", ", with a transfer queue"};
    const char *           where     = by_pass ? " where the device computes the graph" : "";
    printf("no wrong number under churn%s%s\n", where, STREAMS[streams]);
}

// Every kind of fault of the device, again and again: results stay right, because the CPU computes the failed parts.
void test_faults() {
    ggml_backend * cpu = cpu_backend();
    for (int period = 1; period <= 12; ++period) {
        for (int kind = 0; kind < 4; ++kind) {
            em_sim_options o{};
            o.fetch_all                                                                                         = period % 3;
            (kind == 0 ? o.fail_alloc : kind == 1 ? o.fail_copy : kind == 2 ? o.fail_compute : o.fail_register) = period;
            configure_sim(o);
            em_engine * e = new_engine("sim", 2);
            {
                test_shape s;
                s.width = s.ffn = 64;
                test_model     model(s, e);
                ggml_backend * ours = our_backend();
                set_one_thread(ours);
                const int32_t slots[2] = {4, 4};
                const int     status   = em_set_slots(e, slots, 2);
                CHECK(status == EM_OK || (kind == 0 && status == EM_ERROR_NO_MEMORY));
                const auto loads = loads_of(s, 4);
                em_submit(e, loads.data(), int32_t(loads.size()));
                for (int i = 0; i < 12; ++i) {
                    test_graph g(model, i % 2, i % 3 == 0 ? 33 : 1, uint64_t(i));
                    CHECK(g.run(ours) == g.run(cpu));
                }
                G.ggml_backend_free(ours);
                em_engine_stop(e);
            }
            em_engine_free(e);
        }
    }
    configure_sim({});
    G.ggml_backend_free(cpu);
    puts("no wrong number under faults");
}

// An engine starts, loads, begins uploads and stops at once.
void test_start_stop() {
    em_sim_options o{};
    o.latency_us = 20;
    configure_sim(o);
    for (int i = 0; i < rounds; ++i) {
        em_engine * e = new_engine("sim", 2);
        {
            test_shape s;
            s.width = s.ffn = 32;
            test_model    model(s, e);
            const int32_t slots[2] = {8, 8};
            CHECK(em_set_slots(e, slots, 2) == EM_OK);
            const auto loads = loads_of(s, 8);
            em_submit(e, loads.data(), int32_t(loads.size()));
            em_engine_stop(e);
        }
        em_engine_free(e);
    }
    size_t free_bytes = 0, total = 0;
    em_sim_device()->iface.get_memory(em_sim_device(), &free_bytes, &total);
    CHECK(free_bytes == total);
    CHECK(em_sim_registered() == 0);
    printf("%d starts and stops, device memory all returned\n", rounds);
}

// Experts of blocks that the model does not run get no layer.
void test_blocks() {
    configure_sim({});
    em_engine * e = new_engine("sim", 2);
    CHECK(em_set_blocks(e, 0) == EM_ERROR_STATE);
    CHECK(em_set_blocks(e, 1) == EM_OK);
    {
        test_model    model(test_shape{}, e);
        const int32_t slots[1] = {4};
        CHECK(em_layer_count(e) == 1);
        CHECK(em_set_slots(e, slots, 1) == EM_OK);
        CHECK(em_set_blocks(e, 2) == EM_ERROR_STATE);
        em_engine_stop(e);
    }
    em_engine_free(e);
    puts("blocks that do not run have no layer");
}

// An id that names no expert, as from a manipulated file, is an error. ggml does not check ids, so it must never get such an id.
void test_bad_ids() {
    for (const int32_t id : {-1, 8, 1 << 30}) {
        configure_sim({});
        em_engine * e = new_engine("sim", 2);
        {
            test_model     model(test_shape{}, e);
            ggml_backend * ours = our_backend();
            set_one_thread(ours);
            make_hot(e, model.shape, 4);
            for (const int64_t tokens : {1, 5, 40}) {
                test_graph g(model, 0, tokens, 1);
                g.ids.back() = id;
                CHECK(G.ggml_backend_graph_compute(ours, g.graph) == STATUS_FAILED);
            }
            G.ggml_backend_free(ours);
            test_pass pass(e);
            for (const int64_t tokens : {1, 5}) {
                test_graph g(model, 0, tokens, 1, pass.buffer);
                g.ids.back() = id;
                CHECK(G.ggml_backend_graph_compute(pass.stream, g.graph) == STATUS_FAILED);
            }
            em_engine_stop(e); // llama.cpp frees its streams later
        }
        em_engine_free(e);
    }
    puts("ids of no expert are an error");
}

int64_t threads_of_process() { // 0: this system does not list them
    std::error_code                           unknown;
    const std::filesystem::directory_iterator tasks("/proc/self/task", unknown);
    return std::distance(begin(tasks), end(tasks));
}

// Where ggml was built without OpenMP, the threads stay from graph to graph. With any number of threads, results are those of one.
void test_thread_pool() {
    typedef void (*set_n_threads_t)(ggml_backend *, int);
    ggml_backend * cpu = cpu_backend();
    em_engine *    e   = new_engine("", 0);
    {
        test_model     model(test_shape{}, e);
        ggml_backend * ours = our_backend();
        const auto     set  = reinterpret_cast<set_n_threads_t>(
            ours->device->reg->iface.get_proc_address(ours->device->reg, "ggml_backend_set_n_threads"));
        const bool    pool    = static_cast<em_context *>(ours->context)->threads.own();
        const int64_t before  = threads_of_process();
        const bool    counted = pool && before > 0;
        int           most    = 1;
        for (const int threads : {2, 1, 3, 2}) {
            set(ours, threads);
            most = std::max(most, threads);
            for (const int64_t tokens : {1, 5, 40}) {
                test_graph g(model, 0, tokens, uint64_t(tokens));
                const auto want = g.run(cpu);
                CHECK(largest_difference(g.run(ours), want) == 0);
                CHECK(largest_difference(g.run(ours), want) == 0);
                CHECK(!counted || threads_of_process() == before + most - 1);
            }
        }
        G.ggml_backend_free(ours);
        CHECK(!counted || threads_of_process() == before);
        em_engine_stop(e);
        puts(pool ? "the threads stay from graph to graph" : "ggml was built with OpenMP, which keeps its threads");
    }
    em_engine_free(e);
    G.ggml_backend_free(cpu);
}

// Every version of the predictor's loops that runs here gives the plain version's results, to the last bit.
void test_rows() {
    const std::vector<em_row_loops> versions = em_row_versions();
    for (const int32_t n : {1, 8, 31, 60, 128, 513}) {
        std::vector<float>    rows[4];
        const float *         four[4];
        std::vector<uint16_t> halves;
        std::vector<uint8_t>  shares;
        for (int i = 0; i < 4; ++i) {
            rows[i] = random_floats(n, 3.0f, uint64_t(n + i));
            four[i] = rows[i].data();
        }
        for (const float value : rows[3]) {
            uint32_t bits;
            memcpy(&bits, &value, 4);
            halves.push_back(uint16_t(bits >> 16));
            shares.push_back(uint8_t(bits >> 8));
        }
        std::vector<std::vector<float>> results;
        for (const em_row_loops & loops : versions) {
            std::vector<float> row = rows[0];
            loops.add(row.data(), four[1], n);
            loops.add_four(row.data(), four, n);
            loops.add_scaled(row.data(), four[2], 0.3f, n);
            loops.add_shares(row.data(), shares.data(), 0.01f, -0.2f, n);
            loops.scale(row.data(), 0.7f, n);
            const float product = loops.dot(halves.data(), row.data(), n);
            loops.to_probabilities(row.data(), n);
            row.push_back(product);
            results.push_back(row);
        }
        for (const std::vector<float> & result : results) {
            CHECK(memcmp(result.data(), results.back().data(), result.size() * 4) == 0);
        }
    }
    printf("loops over rows: %d versions\n", int(versions.size()));
}

} // namespace

int main(int argc, char ** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: core_test FOLDER_OF_GGML_LIBRARIES [rounds | streams | disk | kernels | threads]\n");
        return 2;
    }
    setvbuf(stdout, nullptr, _IOLBF, 0);
    meet_ggml(argv[1]);
    if (argc > 2 && strcmp(argv[2], "streams") == 0) {
        test_streams();
        return 0;
    }
    if (argc > 2 && strcmp(argv[2], "disk") == 0) {
        test_disk(rounds);
        return 0;
    }
    if (argc > 2 && strcmp(argv[2], "kernels") == 0) {
        test_kernels();
        test_rows();
        return 0;
    }
    if (argc > 2 && strcmp(argv[2], "threads") == 0) {
        test_thread_pool();
        return 0;
    }
    rounds = argc > 2 ? atoi(argv[2]) : rounds;
    test_kernels();
    test_rows();
    test_parity();
    test_pass_parity();
    test_prompts_of_layers();
    test_streams();
    test_disk(rounds);
    test_rates();
    test_sharing();
    test_stop();
    test_churn(false, EM_SIM_CALLER);
    for (const em_sim_streams_t streams : {EM_SIM_CALLER, EM_SIM_ORDERED, EM_SIM_TRANSFER}) {
        test_churn(true, streams);
    }
    test_faults();
    test_start_stop();
    test_blocks();
    test_bad_ids();
    if (TEAM > 1) {
        test_thread_pool();
    }
    puts("core: all tests passed");
    return 0;
}
