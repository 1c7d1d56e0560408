#pragma once

// Which expert is where: slots on the device, uploads into slots, the stage for prompts, and host memory that the device reads by
// itself.
//
// Writer of em_residents (model/layer.h): this room only, under the mutex of the layer.
// em_uploads: `queue_mutex` guards the queue. `mutex` is held during one upload, during a prompt (hold), and while slots are
// reallocated. The thread that computes calls begin_step and begin_layer; their fields are atomic.
// em_readers and em_stages: the thread that computes, under em_turn::computing; the stream of the pass has a lock of its own.
// Order of locks: computing, uploads.mutex, residents.mutex, queue_mutex.

#include "device/device.h"
#include "edgemoe.h"
#include "measures/counters.h"
#include "measures/rates.h"
#include "memory/region.h"
#include "ram/ram.h"

#include <condition_variable>
#include <deque>
#include <thread>

// An upload in the queue. A prefetch is worth nothing once its layer has run.
struct em_request {
    em_load load;
    int64_t step = -1; // of a prefetch: the step that needs the expert
};

struct em_uploads {
    std::thread             thread;
    std::mutex              queue_mutex;
    std::condition_variable queue_changed;
    std::deque<em_request>  urgent, queue; // prefetches, which come first; all other uploads
    bool                    copying  = false; // an upload is under way
    bool                    stopping = false;
    std::mutex              mutex;
    std::atomic<bool>       wanted{false}; // a prompt waits for `mutex`: the copy thread lets the prompt go first
    em_region               staging;       // the copy thread's
    std::atomic<int64_t>    step{0};       // decode steps begun
    std::atomic<int32_t>    layer_now{-1}; // expert layer of this step that runs

    void begin_step() {
        step += 1;
        layer_now = -1;
    }
    void                         begin_layer(int32_t layer) { layer_now = layer; }
    void                         wake() { queue_changed.notify_all(); }
    std::unique_lock<std::mutex> hold() { // no upload is under way while the caller has the lock
        wanted = true;
        std::unique_lock<std::mutex> lock(mutex);
        wanted = false;
        return lock;
    }
};

// The stream and the event of computations that may read slots.
struct em_readers {
    em_event       read; // on the pass's stream: a graph over all slots has read the slots
    std::mutex     mutex;
    ggml_backend * stream = nullptr; // of the latest pass; nothing is under way on the streams of other passes
};

// Places for experts that are streamed in a prefill. Layers with weights of the same shapes share one stage.
struct em_stage {
    const em_layer_t * like = nullptr; // a layer of this shape
    em_places          places;
};

struct em_stages {
    std::vector<std::unique_ptr<em_stage>> all;
    bool                                   made = false;
    em_buffer                              memory;     // shared by stages: a part has the same position in every stage
    size_t                                 second = 0; // where the second part begins
    std::atomic<int64_t>                   bytes{0};
};

struct em_residence {
    const em_options & options;
    em_model &         model;
    em_device &        device;
    em_turn &          turn;
    em_counters &      count;
    em_rates &         rates;
    em_ram &           ram;
    em_readers         readers      = {};
    em_uploads         uploads      = {};
    em_stages          stages       = {};
    int64_t            pinned_bytes = 0; // of expert pages; under em_uploads::mutex
};

// slots.cpp: the only writer of em_residents
void em_residents_begin(em_residence & r); // empty tables for every layer, events where the device has them
void em_residents_end(em_residence & r);   // no slots, no events
bool em_slots_claim(em_layer_t & layer, const em_load & load, bool prefetch); // COLD -> PENDING; false: the expert was not cold
// Gives the slot to fill for a pending expert, or -1. `missed`: the layer has run already, so the expert comes too late.
int  em_slot_load(em_layer_t & layer, const em_load & load, bool missed, ggml_backend * copy);
void em_slot_loaded(em_layer_t & layer, const em_load & load, int32_t slot, bool ok);
int  em_slots_set(em_residence & r, const int32_t * slots); // of each layer
int  em_expert_pin(em_residence & r, int32_t layer, int32_t expert, bool pinned);
void em_readers_take(em_readers & readers, ggml_backend * stream); // a pass begins: waits for the pass of another context
void em_readers_leave(em_readers & readers, ggml_backend * stream);
void em_readers_wait(em_readers & readers); // until the stream has done everything that was started
void em_note_use(em_layer_t & layer, const ggml_tensor * ids); // needs the layer's mutex

// uploads.cpp
void   em_copy_start(em_residence & r);
void   em_copy_stop(em_residence & r);
bool   em_queue(em_residence & r, const em_load & load, int64_t step); // step -1: not a prefetch. False: nothing to load
void   em_queue_clear(em_uploads & u);
bool   em_uploads_wait(em_uploads & u, int32_t timeout_ms); // until the queue is empty. False: time is over
bool   em_link_idle(em_uploads & u);
size_t em_urgent_waiting(em_uploads & u); // uploads before the next prefetch
// Copies all weights and biases of an expert. `staging` holds expert_bytes; keep it until the stream has been waited for.
void em_upload_expert(em_counters & count, ggml_backend * stream, char * staging, const em_layer_t & layer, const em_places & to,
                      int32_t expert, int32_t place);

// stage.cpp
em_places  em_places_alloc(ggml_backend_device * device, const em_layer_t & layer, int32_t count); // no buffer: no memory
bool       em_device_usable(const em_device & device, const em_layer_t & layer);
em_stage * em_stage_for(em_residence & r, const em_layer_t & layer); // null: no memory
void       em_stages_make(em_residence & r); // ahead of use, so that missing memory is known while the model loads
void       em_stages_release(em_stages & s);

// pinned_pages.cpp
void em_host_register(em_residence & r, em_layer_t & layer); // once per layer; may take long, needs uploads.mutex
void em_host_unregister(em_residence & r);
bool em_host_readable(const em_layer_t & layer, int projection, int32_t expert); // by the device itself
