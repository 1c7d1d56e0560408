#pragma once

// The device that experts are placed on: its streams, its traits, and whose turn it is to use them.
//
// Owner: the engine. em_device is filled by em_device_open and emptied by em_engine_stop; in between nobody writes it.
// The streams: `exec` and `stream` belong to the thread that computes, under em_turn::computing; `copy` to the copy thread.

#include "device/traits.h"
#include "ggml/api.h"

#include <atomic>
#include <mutex>
#include <string>

// A stream that is freed with its owner.
class em_stream {
  public:
    em_stream() = default;
    em_stream(const em_stream &) = delete;
    ~em_stream() { *this = nullptr; }
    em_stream & operator=(ggml_backend * other) {
        if (stream) {
            G.ggml_backend_free(stream);
        }
        stream = other;
        return *this;
    }
    operator ggml_backend *() const { return stream; }
    ggml_backend * operator->() const { return stream; }

  private:
    ggml_backend * stream = nullptr;
};

// All null when there is none.
struct em_device {
    std::string           name;
    ggml_backend_device * handle = nullptr;
    em_stream             exec;   // of the hot pairs
    em_stream             stream; // of prefill staging
    em_stream             copy;   // of the uploads
    em_device_traits      traits;

    ggml_backend_buffer_type * memory() const { return G.ggml_backend_dev_buffer_type(handle); }
    ggml_backend_buffer_type * host_memory() const { return G.ggml_backend_dev_host_buffer_type(handle); }
};

struct em_turn {
    std::mutex        computing;        // one computation at a time; guards the regions and the stages
    std::atomic<bool> cancelled{false}; // by any thread
};

bool em_device_open(em_device & device, const std::string & name); // false: there is none (no handle), or it cannot be opened
bool em_device_failed(ggml_backend * stream);                      // and clears the failure
ggml_backend_buffer * em_device_alloc(ggml_backend_device * device, size_t bytes); // null: no memory
