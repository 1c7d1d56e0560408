#pragma once

// Who is where: slots on the device, uploads into them, the stage for prompts, and host memory that the device reads by itself.
//
// Writer of em_residents (model/layer.h): this room only, under the mutex of the layer.
// em_uploads: the queue under `queue_mutex`; `mutex` is held during one upload, during a prompt (hold), and while slots are
// reallocated. begin_step and begin_layer are called by the thread that computes; their fields are atomic.
// em_readers and em_stages: the thread that computes, under em_turn::computing; the list of streams has a lock of its own.
// Order of locks: computing, uploads.mutex, residents.mutex, queue_mutex.

#include "device/device.h"
#include "edgemoe.h"
#include "measures/measures.h"
#include "memory/region.h"
#include "model/block.h"

#include <condition_variable>
#include <deque>
#include <thread>

// An upload in the queue. A prefetch is worth nothing once its layer has run.
struct em_request {
    em_load load;
    int64_t step = -1; // of a prefetch: the step that it is for
};

// Requests in, residency out.
struct em_uploads {
    std::thread             thread;
    std::mutex              queue_mutex;
    std::condition_variable queue_changed;
    std::deque<em_request>  urgent, queue; // prefetches, and loads for later
    bool                    copying = false; // an upload is under way
    bool                    stopping = false;
    std::mutex              mutex;
    std::atomic<bool>       wanted{false}; // `mutex`, by a prompt: the copy thread lets it go first
    em_region               staging;       // the copy thread's
    std::atomic<int64_t>    step{0};       // decode steps begun
    std::atomic<int32_t>    layer_now{-1}; // expert layer of this step that runs

    void begin_step() {
        step += 1;
        layer_now = -1;
    }
    void begin_layer(int32_t layer) { layer_now = layer; }
    void wake() { queue_changed.notify_all(); } // there are requests
    std::unique_lock<std::mutex> hold() {       // no upload is under way
        wanted = true;
        std::unique_lock<std::mutex> lock(mutex);
        wanted = false;
        return lock;
    }
};

// Who may read slots.
struct em_readers {
    ggml_backend_event *        read = nullptr; // as of a layer, of a graph that read the slots of all of them
    std::mutex                  mutex;
    std::vector<ggml_backend *> streams; // of passes
};

// Staging places for experts that are streamed through in a prefill; one set of tensors per weight shape.
struct em_stage {
    const em_layer_t * like = nullptr;
    em_places          places;
};

struct em_stages {
    std::vector<std::unique_ptr<em_stage>> all;
    bool                  made = false;
    ggml_backend_buffer * memory = nullptr; // of stages that can share: a part of one lies where that of another does
    size_t                second = 0;       // where the second part begins
    std::atomic<int64_t>  bytes{0};
};

struct em_residence {
    const em_options & options;
    em_model &         model;
    em_device &        device;
    em_turn &          turn;
    em_counters &      count;
    em_rates &         rates;
    em_readers         readers = {};
    em_uploads         uploads = {};
    em_stages          stages  = {};
    int64_t            pinned_bytes = 0; // of expert pages; under em_uploads::mutex
};

// slots.cpp: the only writer of em_residents
void em_residents_begin(em_residence & r); // empty tables for every layer, events where the device has them
void em_residents_end(em_residence & r);   // no slots, no events
bool em_slots_claim(em_layer_t & layer, const em_load & load, bool prefetch); // COLD -> PENDING; false: it was not cold
int  em_slot_load(em_layer_t & layer, const em_load & load, bool missed, ggml_backend * copy); // the slot to fill; -1: none
void em_slot_loaded(em_layer_t & layer, const em_load & load, int32_t slot, bool ok);
int  em_slots_set(em_residence & r, const int32_t * slots); // of each layer
int  em_expert_pin(em_residence & r, int32_t layer, int32_t expert, bool pinned);
bool em_readers_join(em_readers & readers, ggml_backend * stream); // false: another is there
void em_readers_leave(em_readers & readers, ggml_backend * stream);
void em_readers_wait(em_readers & readers); // until their streams have done what was started
void em_note_use(em_layer_t & layer, const int32_t * ids, int64_t n); // needs the layer's mutex

// uploads.cpp
void em_copy_start(em_residence & r);
void em_copy_stop(em_residence & r);
bool em_queue(em_residence & r, const em_load & load, int64_t step); // step -1: not a prefetch. False: nothing to load
void em_queue_clear(em_uploads & u);
bool em_uploads_wait(em_uploads & u, int32_t timeout_ms); // until the queue is empty. False: it is not
bool em_link_idle(em_uploads & u);
size_t em_urgent_waiting(em_uploads & u); // uploads before the next prefetch
// Copies all weights and biases of an expert; staging holds expert_bytes and must stay until the stream was waited for.
void em_upload_expert(em_counters & count, ggml_backend * stream, char * staging, const em_layer_t & layer, const em_places & to,
                      int32_t expert, int32_t place);

// places.cpp: device memory for experts
// Tensors without memory; bytes of the first part, and of the second one, the down projection.
void em_places_make(em_places & places, ggml_backend_device * device, const em_layer_t & layer, int32_t count, size_t bytes[2]);
void em_places_put(em_places & places, ggml_backend_buffer * buffer, size_t second); // gives them memory
bool em_places_alloc(em_places & places, ggml_backend_device * device, const em_layer_t & layer, int32_t count); // both
void em_places_free(em_places & places);

// stage.cpp
bool       em_device_usable(const em_device & device, const em_layer_t & layer);
em_stage * em_stage_for(em_residence & r, const em_layer_t & layer); // null: no memory
void       em_stages_make(em_residence & r); // before they are needed: memory is had or not while the model loads
void       em_stages_release(em_stages & s);

// pinned_pages.cpp
void em_host_register(em_residence & r, em_layer_t & layer); // once per layer; may take long, needs uploads.mutex
void em_host_unregister(em_residence & r);
bool em_host_readable(const em_layer_t & layer, int projection, const char * from, size_t bytes);
