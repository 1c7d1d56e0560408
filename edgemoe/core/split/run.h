#pragma once

// Inside split/: a layer under way. Owner: the thread that computes it, on its stack.

#include "split/split.h"

struct em_split {
    std::vector<em_pair> hot, cold;
    std::vector<em_pair> fetched; // cold pairs, their experts on the way to the stage
    int64_t              fetch_started = 0;
    double               both_ns       = 0; // expected time of the longer side, the fetch or the cold pairs
};

// executor.cpp
// Gives the end of the graph that begins at pair `at`: about `most` pairs later, at most `all`.
int64_t em_graph_end(const std::vector<em_pair> & pairs, int64_t at, int64_t all, int64_t most);
// Gives the number of rows below which an expert goes to row products. 0: none. Such row products are faster than
// ggml, and equal to the last bit.
int64_t em_row_product_limit(const em_block & b);
// Moves pairs of experts with fewer than `fewer` rows to the front, and returns their number. The pairs are sorted by expert.
int64_t em_few_first(std::vector<em_pair> & pairs, int64_t fewer);
bool    em_mostly_row_products(const em_block & b); // true: most of the used experts go to row products
bool    em_fusable(
    const em_block & b); // whether a block of a single token can compute its last projection and the sum as one operation

struct em_run {
    em_context *   c;
    em_engine *    e;
    em_block &     b;
    em_side_task * task = nullptr;

    em_side cpu_side(bool by_rows) const {
        return {c->cpu, false, b.layer->weight, b.layer->bias, &e->cpu.scratch, nullptr, &e->cpu.prepared, task, by_rows};
    }
    double  cold_ns() const { return em_pair_ns(b.layer->pair_multiplications(), e->rates.cold_pair_ns); }
    double  hot_ns() const { return em_pair_ns(b.layer->pair_multiplications(), e->rates.hot_pair_ns); }
    int64_t hot_at_once() const { return em_pairs_of_graph(e->options.graph_us, hot_ns()); }
    int     compute(const em_split & s); // hot and cold pairs
    int     compute_cold(std::vector<em_pair> pairs);

  private:
    int cold_graph(const em_pair * pairs, int64_t n, bool by_rows);
};

// Pairs on the device, in short graphs: nothing can stop a graph on a device.
struct em_device_pairs {
    em_run &             r;
    const em_places &    places;
    std::vector<em_pair> pairs;
    std::vector<em_pair> failed = {};
    int64_t              from = 0, to = 0, started = 0; // of the graph under way
    em_launch            launch = {};

    ~em_device_pairs() {
        if (running()) { // left early: the device must not write into memory that is gone
            G.ggml_backend_synchronize(r.e->device.exec);
        }
    }
    bool left() const { return from < int64_t(pairs.size()); }
    bool running() const { return launch.ctx; }
    bool due() const { return double(em_now_ns() - started) >= r.hot_ns() * double(to - from); }
    void start();  // the next graph
    void finish(); // waits for the graph under way; pairs go to `failed` if the device fails
    void finish_all();

  private:
    bool join();
};

// miss_fetch.cpp
void em_fetch_now(em_run & r, em_split & s); // moves misses worth a fetch from cold to fetched, and sends their experts
int  em_finish_fetch(em_run & r, const em_split & s);

// streamed_prefill.cpp: resident experts on the device, experts of many tokens streamed there, the others on the CPU
int em_compute_prefill(em_run & r, em_split s);
