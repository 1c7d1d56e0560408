#pragma once

// One engine: the state of every room, put together. A room's header names the writer and the lock of its member.
//
// Owner: the caller of em_engine_new. `options` is fixed from then on. Members are made in this order and destroyed in reverse.

#include "cpu/cpu.h"
#include "residency/residency.h"
#include "routing/log.h"
#include "routing/prefetch.h"

// Memory of the thread that computes for what it exchanges with the device, under em_turn::computing.
struct em_exchange {
    em_region device, host; // of the hot pairs
    em_region stage;        // host side of the stage
};

// Steps of a model that is resident as a whole make no difference to the policy, so few of them are looked at.
struct em_watching {
    std::atomic<int32_t> every{64};     // look at the routing of every n-th token at least; by any thread
    std::atomic<bool>    unseen{false}; // the latest step was not looked at; by the thread that computes
};

struct em_engine {
    em_options     options{};
    em_turn        turn;
    em_device      device;
    em_model       model{this};
    em_counters    count;
    em_rates       rates;
    em_residence   residence{options, model, device, turn, count, rates};
    em_routing_log log{model, count};
    em_forced      forced;
    em_prefetch    prefetch{model, residence, count, rates};
    em_cpu         cpu;
    em_exchange    exchange;
    em_watching    watching;
    ggml_backend_device stand_in{}; // what llama.cpp gets in the place of the device, see backend/stand_in.cpp
};
