#pragma once

// The device that holds experts: its streams, its traits, and the lock of the thread that computes.
//
// Owner: the engine. em_device_open fills em_device, em_engine_stop empties it; in between em_device is fixed.
// Streams: `exec` and `stream` belong to the thread that computes, under em_turn::computing; `copy` to the copy thread.

#include "device/traits.h"
#include "ggml/api.h"
#include "ggml/owned.h"

#include <atomic>
#include <mutex>

// All members are null when there is no device.
struct em_device {
    std::string           name;
    ggml_backend_device * handle = nullptr;
    em_stream             exec;   // computes hot pairs
    em_stream             stream; // fills the stage
    em_stream             copy;   // uploads
    em_device_traits      traits;

    ggml_backend_buffer_type * memory() const { return G.ggml_backend_dev_buffer_type(handle); }
    ggml_backend_buffer_type * host_memory() const { return G.ggml_backend_dev_host_buffer_type(handle); }
};

struct em_turn {
    std::mutex        computing;        // one computation at a time; guards the regions and the stages
    std::atomic<bool> cancelled{false}; // any thread writes
};

bool      em_device_open(em_device &         device,
                         const std::string & name); // false: no device has this name (the handle stays null), or no stream opens
bool      em_device_failed(ggml_backend * stream);                      // whether the stream has failed; clears the failure
em_buffer em_device_alloc(ggml_backend_device * device, size_t bytes);  // null: no memory

// A function that the device's registry offers beside its table. Null: the registry does not know the name.
template <typename F> F em_device_function(ggml_backend_device * device, const char * name) {
    return reinterpret_cast<F>(G.ggml_backend_reg_get_proc_address(G.ggml_backend_dev_backend_reg(device), name));
}
