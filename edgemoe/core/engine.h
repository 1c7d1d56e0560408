#pragma once

// One engine: the state of every room, put together. A room's header names the writer and the lock of its member.
//
// Owner: the caller of em_engine_new. `options` is fixed from then on. Members are made in this order and destroyed in reverse.

#include "cpu/cpu.h"
#include "ram/ram.h"
#include "residency/residency.h"
#include "routing/log.h"
#include "routing/prefetch.h"

// Memory for the copies between host and device in one layer. Writer: the thread that computes, under em_turn::computing.
struct em_exchange {
    em_region device, host; // inputs and results of the hot pairs
    em_region stage;        // host side of the stage
};

// A step of a wholly resident model teaches the policy little. So the core reads the routing of few such steps.
struct em_watching {
    std::atomic<int32_t> every{64};     // read the routing of every n-th token at least; any thread writes
    std::atomic<bool>    unseen{false}; // the latest step was not read; the thread that computes writes
};

struct em_engine {
    em_options          options{};
    em_turn             turn;
    em_device           device;
    em_model            model{this};
    em_counters         count;
    em_rates            rates;
    em_ram              ram{model, rates};
    em_residence        residence{options, model, device, turn, count, rates, ram};
    em_routing_log      log{model, count};
    em_forced           forced;
    em_prefetch         prefetch{model, residence, count, rates};
    em_cpu              cpu;
    em_exchange         exchange;
    em_watching         watching;
    ggml_backend_device stand_in{}; // llama.cpp's device in the place of `device`, see backend/stand_in.cpp

    bool decodes(int64_t tokens) const { return tokens < options.prefill_tokens; } // otherwise a batch is a prefill
};
