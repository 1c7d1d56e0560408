#pragma once

// The layers with routed experts: their tensors, and the tables of the experts on the device.
//
// em_model and the tensors of a layer: written by the thread that loads (expert_buffer.cpp), fixed after em_model_loaded.
// `pattern` and `support`: written by the thread that computes, atomic.
// em_window: written by the copy thread or by the thread that computes a prompt (residency/pinned_pages.cpp), valid when
// `registered` is true.
// em_residents: written by residency/ only, under its mutex.

#include "ggml/api.h"
#include "ggml/owned.h"

#include <atomic>
#include <mutex>
#include <unordered_map>

struct em_engine;

enum em_projection { PROJ_GATE, PROJ_UP, PROJ_DOWN, PROJ_GATE_UP, PROJ_COUNT };

// A piece of host memory that the device may read by itself.
struct em_window {
    const char * from = nullptr;
    const char * to   = nullptr;
};

// Device memory for a number of experts of one shape.
struct em_places {
    em_arena      ctx;
    em_buffer     buffer; // null: the tensors have no memory, or memory of another owner
    ggml_tensor * weight[PROJ_COUNT] = {}; // [K, N, count]
    ggml_tensor * bias[PROJ_COUNT]   = {}; // [N, count]
    size_t        bytes              = 0;
    int32_t       count              = 0;
    int64_t       serial             = 0; // a number that differs for every allocation
};

enum class em_slot_state : uint8_t { FREE, LOADING, RESIDENT }; // transitions: residency/slots.cpp

struct em_slot {
    em_slot_state state  = em_slot_state::FREE;
    int32_t       expert = -1;
};

struct em_residents {
    std::mutex           mutex; // guards everything below
    std::vector<em_slot> slots;
    std::vector<int32_t> slot_of;    // expert -> slot in state RESIDENT, or -1
    std::vector<uint8_t> state;      // expert -> em_expert_state
    int32_t              count   = 0;  // experts in state RESIDENT
    int64_t              version = 0; // changes with every change of slot_of
    em_places            places;     // device memory of the slots
    em_event             read;       // recorded on a pass's stream: the work before the event has read the slots
    std::vector<uint8_t> pinned;     // expert -> 1 is never evicted; empty: none
    std::vector<uint8_t> prefetched; // expert -> 1 queued or uploaded as a prefetch, and not used since
    int64_t              useful = 0, late = 0, wasted = 0; // prefetches
};

// The values are those of em_layer_info.
enum class em_pattern : int32_t { UNSEEN = -1, UNKNOWN = 0, BLOCK = 1 };
enum class em_support : int32_t { NOT_ASKED = -1, LACKING = 0, FULL = 1 };

struct em_layer_t {
    int32_t                 block              = -1; // number in the tensor names
    int32_t                 index              = -1; // among the layers with routed experts
    int32_t                 experts            = 0;
    ggml_tensor *           weight[PROJ_COUNT] = {}; // the model's tensors, host memory, [K, N, experts]
    ggml_tensor *           bias[PROJ_COUNT]   = {}; // [N, experts] or null
    size_t                  expert_bytes       = 0;  // weights and biases of one expert
    em_window               window[PROJ_COUNT];      // the part of the weights that the device reads by itself
    std::atomic<bool>       registered{false}; // the registration was tried
    std::atomic<em_pattern> pattern{em_pattern::UNSEEN};
    std::atomic<em_support> support{em_support::NOT_ASKED}; // whether the device has the layer's operations
    em_residents            residents;

    bool   all_resident() const { return residents.count == experts; }
    bool   unsupported() const { return support == em_support::LACKING; }
    double pair_multiplications() const {
        double all = 0;
        for (const ggml_tensor * w : weight) {
            all += w ? double(w->ne[0]) * double(w->ne[1]) : 0;
        }
        return all;
    }
};

struct em_model {
    explicit em_model(em_engine * e) : engine(e) {}

    em_engine * const                        engine; // the owner
    std::vector<std::unique_ptr<em_layer_t>> layers; // in the order of their block numbers
    // A pointer in the tensor's `extra` field would be simpler, but ggml-cpu reads this field as the mark of a repacked weight.
    std::unordered_map<const ggml_tensor *, em_layer_t *> layer_of;
    int32_t blocks = INT32_MAX; // blocks that the model runs; experts of later blocks get no layer
    bool    loaded = false;
};

// Ends the load: drops layers that lack weights, and numbers the others.
void em_model_loaded(em_model & model);
int  em_projection_of(const em_layer_t & layer, const ggml_tensor * weight); // -1: not of this layer
