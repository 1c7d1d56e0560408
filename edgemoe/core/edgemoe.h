#pragma once

// The whole C interface between the core and Python. The core is the mechanism; the policy is in Python.
//
// Ownership: the caller owns every pointer that it hands in, output buffers included. A buffer without a capacity has the shape
// that the comment of its function gives.
// Errors: functions return EM_OK or a negative EM_ERROR_*; em_last_error() gives the text for the calling thread.
// Threads: all functions may be called from any thread, except that one engine is created, loaded and freed by one
// thread at a time. em_cancel, em_residency, em_stats and em_drain may be called while the model computes.
//
// Ordering, and why no computation reads a slot that a copy writes:
//   - a slot is in exactly one state of em_slot_state (model/layer.h), changed only under its layer's mutex;
//   - the thread that computes looks an expert up under the layer's mutex. The thread holds the mutex until the device has
//     finished, or until the thread has started the computation and then recorded an event. The copy stream waits for that
//     event (pass/pass.h);
//   - the copy thread writes a slot's bytes only in state LOADING, and no lookup returns a slot in that state;
//   - LOADING becomes RESIDENT under the mutex, after the copy stream was synchronised.

#include <stdint.h>

#if defined(_WIN32)
#    define EM_API extern "C" __declspec(dllexport)
#else
#    define EM_API extern "C" __attribute__((visibility("default")))
#endif

#define EM_ABI_VERSION 8

enum em_status {
    EM_OK              = 0,
    EM_ERROR_ARGUMENT  = -1,
    EM_ERROR_MISMATCH  = -2, // the loaded ggml is not the one the core was written against
    EM_ERROR_DEVICE    = -3, // no such device, or it cannot be opened
    EM_ERROR_NO_MEMORY = -4, // the device has too little memory
    EM_ERROR_STATE     = -5, // called in the wrong order
    EM_UNSEEN          = 1,  // em_end_step succeeded, and the step has no routing events
};

enum em_expert_state { EM_COLD = 0, EM_PENDING = 1, EM_RESIDENT = 2 };

typedef struct em_engine em_engine;

// Settings of a new engine.
typedef struct {
    int32_t      struct_bytes;
    int32_t      prefill_tokens;   // fewest tokens of a prefill
    int32_t      stream_tokens;    // prefill: fewest tokens to stream a cold expert, until rates are known; 0: also no fetches
    int32_t      stream_slots;     // experts that the stage on the device holds, an even number; 0 none
    int32_t      graph_us;         // wanted time of one graph. Nothing can stop a graph on a device, so a graph must be short
    int64_t      pin_bytes; // most bytes of experts in host memory that the device's driver may pin, for reads by the device
    const char * device; // ggml device name, NULL or empty for none
} em_options;

// The threads of a pass on sim: its streams compute in the calling thread, or each in a worker. See device/sim.cpp.
enum em_sim_streams_t { EM_SIM_CALLER = 0, EM_SIM_ORDERED = 1, EM_SIM_TRANSFER = 2 };

// Behaviour of the sim device, process-wide; see SimConfig in config.py for the fields.
typedef struct {
    int32_t  struct_bytes;
    int32_t  latency_us;
    int64_t  bandwidth;
    int64_t  capacity;
    int32_t  fail_alloc;
    int32_t  fail_copy;
    int32_t  fail_compute;
    int32_t  fail_register;
    int32_t  jitter_us;
    uint64_t seed;
    int64_t  compute_rate;
    int64_t  fetch_all;
    int64_t  early;
    int64_t  streams; // em_sim_streams_t
} em_sim_options;

// One expert layer, in the order the layers run.
typedef struct {
    int32_t struct_bytes;
    int32_t block; // number in the tensor names
    int32_t experts;
    int32_t slots;
    int32_t pattern; // 1: recognised; 0: unknown, so the layer runs as in llama.cpp; -1: not seen yet
    int32_t support; // 1: the device has every operation; 0: it lacks one, so the CPU computes; -1: not asked yet
    int64_t expert_bytes; // one expert, all projections
} em_layer_info;

// One upload: expert into the slot of victim (-1: a free slot).
typedef struct {
    int32_t layer;
    int32_t expert;
    int32_t victim;
} em_load;

// Counters since the engine was made; nanoseconds and bytes. ExpertStats in types.py describes each.
typedef struct {
    int64_t tokens;
    int64_t hits, misses, fetched;
    int64_t prefill_hits, prefill_streamed, prefill_misses;
    int64_t uploads, upload_bytes, streamed_bytes, direct_bytes, failed_uploads;
    int64_t joins, device_fallbacks;
    int64_t moe_ns, device_ns, cpu_ns, join_ns, schedule_ns;
    int64_t prefetch_useful, prefetch_late, prefetch_wasted;
    int64_t slots, slot_bytes, resident, pending, stage_bytes;
    int64_t fused_layers, plain_layers;
    int64_t disk_bytes, disk_reads, missed_bytes, disk_wait_ns;
    int64_t ram_bytes, ram_budget;
    int64_t dropped_events;
} em_stats_t;

// Where a tensor of experts lies in a file of the model.
typedef struct {
    int32_t block;
    int32_t projection; // 0 gate, 1 up, 2 down, 3 gate and up
    int32_t file;
    int64_t offset;
} em_expert_place;

// --- predictor: no engine and no ggml needed; one thread at a time ---

typedef struct em_predictor em_predictor;

// Log-linear tables, float32; the core copies them. E experts, L layers, D decays, M memories. Index a of the leads predicts
// a + 1 layers ahead. `reach`: number of earlier layers with rows.
typedef struct {
    int32_t       struct_bytes;
    int32_t       layers, experts, top_k, decays, memories, leads, reach;
    float         rate; // learning rate, applied to every token; 0: the tables stay as they are
    float         horizon; // weight of "use soon": a use n tokens from now counts (1 - horizon) * horizon^(n - 1)
    int64_t       tokens; // number of tokens that the tables have learnt from
    const float * decay; // [D] share of a frequency that is left after a token
    const float * keep_bias; // [L, E] for "use soon". Its logit: bias + decay . frequency + rows of the latest token + memories
    const float * keep_decay; // [L, D]
    const float * keep_again; // [L, E, E]
    const float * memory_rate; // [M]
    const float * keep_memory; // [M, L, E, E]
    const float * next_bias; // [leads, L, E] for "use next": the token under way uses the expert in layer l
    const float * next_decay; // [leads, L, D]
    const float * next_again; // [leads, L, E, E] a row for each expert that the token before used in layer l
    const float * next_rows; // [leads, reach, L, E, E] a row for each expert that the token under way used in layer l - lead - j
    // [leads, L, 3, 2] a weight and a constant. The weight is for an expert's share in the earlier uses of the token's id. There
    // are 3 pairs: for an id that came once, 2 to 4 times, or more often.
    const float * next_token;
    const float *
        next_router; // [leads, L] weight of the margins that the layer's router gives when it is run ahead (routing/router.h)
} em_predictor_tables;

EM_API em_predictor * em_predictor_new(const em_predictor_tables * tables); // NULL: the sizes make no sense
EM_API void           em_predictor_free(em_predictor * p);
EM_API void           em_predictor_seed(em_predictor * p, const float * use); // [L, E] uses per token so far
// Learn from a computed token: its experts [L, top_k], -1 unknown. Does nothing if an engine has learnt from this token already
// (em_set_prefetch).
EM_API void em_predictor_token(em_predictor * p, const int32_t * ids);
EM_API void em_predictor_begin(em_predictor * p, int32_t token_id); // begin a token; -1: its id is unknown
// Remember the experts [n, L, top_k] of n computed tokens, by the ids of the tokens.
EM_API void em_predictor_seen(em_predictor * p, const int32_t * token_ids, const int32_t * ids, int64_t n);
EM_API void em_predictor_routed(em_predictor * p, int32_t layer, const int32_t * ids, int32_t n); // experts of the token under way
EM_API void em_predictor_next(em_predictor * p, int32_t layer, int32_t lead, float * out); // [E] probabilities
EM_API void em_predictor_keep(em_predictor * p, float * out); // [L, E] probabilities
// Copies the tables; returns the number of tokens that they have learnt from.
EM_API int64_t em_predictor_learnt(em_predictor * p, float * keep_bias, float * keep_again, float * next_bias, float * next_again,
                                   float * next_rows, float * next_token, float * next_router);
// Chooses at most `most` exchanges that gain at least `gain` expected uses each; state is em_expert_state [E]. Returns their
// number.
EM_API int32_t em_predictor_choose(em_predictor * p, int32_t layer, int32_t lead, const uint8_t * state, int32_t free_slots,
                                   int32_t most, float gain, em_load * out);

// --- meeting ggml ---
EM_API int32_t      em_abi_version(void);
EM_API int32_t      em_struct_bytes(int32_t which); // 0 options, 1 sim options, 2 layer info, 3 load, 4 stats
EM_API const char * em_last_error(void);
EM_API int32_t      em_symbol_count(void);
EM_API const char * em_symbol_name(int32_t i);
EM_API int32_t      em_symbol_set(int32_t i, void * address);
// Set the std::__throw_runtime_error of the C++ library that ggml uses; NULL if ggml uses the library of this core.
EM_API void em_set_thrower(void * function);
// ggml checks the contents of a file by assertions, and ends the process if one fails. Between these two calls, a failed assertion
// on this thread becomes an exception, which llama.cpp catches.
EM_API void em_trap_aborts(void);
EM_API void em_release_aborts(void);
// Compare all assumptions about ggml with the loaded ggml. On EM_ERROR_MISMATCH em_last_error names the difference.
EM_API int32_t em_check(void);
// The registry entry, for ggml_backend_load; NULL before a successful em_check.
EM_API void * ggml_backend_init(void);
// The buffer type for llama_model_params.tensor_buft_overrides.
EM_API void * em_buffer_type(void);
// Calls llama_decode(context, *batch). If an assertion of ggml fails on this thread, the result is an error, and the process goes
// on. After such an error the context can only be freed.
EM_API int32_t em_decode(void * llama_decode, void * context, const void * batch, int32_t * result);
// Address of bool (*)(void * engine): true once em_cancel was called; for llama_set_abort_callback.
EM_API void * em_abort_callback(void);

// --- kernels of the CPU, for the whole process ---
// Choose a family of kernels: auto, off, avx2, avxvnni, avx512 or neon. EM_ERROR_ARGUMENT: no family has this name, or this
// processor cannot run it.
EM_API int32_t      em_kernels(const char * name);
EM_API const char * em_kernels_name(void); // name of the family in use
// 1: the family in use computes rows of `width` weights of this ggml type; 0: ggml computes them. Valid after em_check.
EM_API int32_t em_kernels_know(int32_t type, int64_t width);

// --- the sim device ---
EM_API int32_t em_sim_configure(const em_sim_options * options);

// --- engines: one per loaded model ---
EM_API em_engine * em_engine_new(const em_options * options);
EM_API void        em_engine_free(em_engine * engine);
// The device that llama.cpp uses in the place of the engine's device. It computes the whole graph, and each expert on the
// side where the expert is. For llama_model_params.devices; NULL without a device. The engine owns it.
EM_API void * em_stand_in_device(em_engine * engine);
// The model runs its first blocks only: experts of later blocks (an MTP head) get no layer. Call it before em_begin_load;
// otherwise all blocks run.
EM_API int32_t em_set_blocks(em_engine * engine, int32_t blocks);
// Between em_begin_load and em_end_load, on the same thread, llama.cpp may give expert tensors to our buffer type. stands_in 1:
// llama.cpp uses em_stand_in_device for its graph. 0: llama.cpp sees an accelerator, during the load only. The accelerator computes
// expert layers in host memory.
EM_API int32_t em_begin_load(em_engine * engine, int32_t stands_in);
EM_API int32_t em_end_load(em_engine * engine);
// The next load of this thread maps its files and does not read them; 0: as llama.cpp does it.
EM_API int32_t em_load_lazily(int32_t on);
// The model is larger than the RAM: from now on its experts live in at most `budget` bytes of our own, and the others are read from
// the files when they are needed. Call it after em_end_load and before slots are set. at_once: experts that one computation may need
// at the same time, at least. EM_ERROR_STATE: this is impossible here; the experts stay in llama.cpp's mapping.
EM_API int32_t em_open_ram(em_engine * engine, const char * const * paths, int32_t files, const em_expert_place * places,
                           int32_t count, int64_t budget, int32_t at_once);
// Reads experts into RAM while nothing else is to be read, the hottest first. heat: [layers, experts] uses so far, or NULL.
EM_API int32_t em_fill_ram(em_engine * engine, const float * heat);
EM_API int32_t em_resize_ram(em_engine * engine, int64_t budget);
// EM_ERROR_STATE if a read of the disk failed since the last call; em_last_error names the file and the reason.
EM_API int32_t em_disk_state(em_engine * engine);
// Between em_begin_context and em_end_context, on the same thread, the caller makes one more context of the loaded model. All
// contexts share the residency, the routing history and the predictor. stands_in: as in em_begin_load.
EM_API int32_t em_begin_context(em_engine * engine, int32_t stands_in);
EM_API int32_t em_end_context(em_engine * engine);
// Stop copies and release the device; call it before the model is freed.
EM_API int32_t em_engine_stop(em_engine * engine);
EM_API int32_t em_layer_count(em_engine * engine);
EM_API int32_t em_layer(em_engine * engine, int32_t layer, em_layer_info * out);
// Allocate device slots anew: slots[layer]. The first call also allocates the stage. A layer loses its residents if its number
// of slots changes. EM_ERROR_NO_MEMORY leaves the layer that failed and the layers after it without slots.
EM_API int32_t em_set_slots(em_engine * engine, const int32_t * slots, int32_t count);
// Queue uploads; returns the number of accepted uploads.
EM_API int32_t em_submit(em_engine * engine, const em_load * loads, int32_t count);
// Let the predictor learn from every token that is decoded alone, and choose prefetches. `most`: most prefetches of a layer in a
// step; `lead`: layers ahead; `gain`: least gain of an exchange in expected uses. NULL stops both. The caller owns the predictor,
// and must not free it while it is set. Between em_begin_token and em_end_step only the engine may use it. wait: the computation
// waits for every prefetch.
EM_API int32_t em_set_prefetch(em_engine * engine, em_predictor * predictor, int32_t lead, int32_t most, float gain, int32_t wait);
// Set the router of a layer; it is run `lead` layers ahead. weight is bfloat16 [experts, width]; the core copies it. bias is
// [experts]. select is [experts], added to the sigmoids of the logits, or NULL (routing/router.h).
EM_API int32_t em_set_router(em_engine * engine, int32_t layer, const uint16_t * weight, const float * bias, const float * select,
                             int32_t experts, int32_t width);
// A token of this id is about to be decoded (-1 unknown): prefetch for the first `lead` layers.
EM_API int32_t em_begin_token(em_engine * engine, int32_t token_id);
// A step is over, or was cut short: the predictor is the caller's again. Returns EM_UNSEEN if every expert was resident and the
// step's routing was not read; then the step has no events.
EM_API int32_t em_end_step(em_engine * engine);
// Read the routing of every n-th token at least, also if every expert is resident. 1: read the routing of every token and every
// prompt.
EM_API int32_t em_watch(em_engine * engine, int32_t every);
// Prefetches of each layer in the latest step.
EM_API int32_t em_prefetch_spent(em_engine * engine, int32_t * out, int32_t capacity);
// Replace the routers' choice by this trace, [tokens, layers, top_k]. The trace begins again at its end. 0 tokens: the routers
// choose again. For benchmarks and trial runs.
EM_API int32_t em_force(em_engine * engine, const int32_t * ids, int64_t tokens, int32_t top_k);
// pinned 1: never evict this expert; 0: allow its eviction again. Does not load the expert.
EM_API int32_t em_pin(em_engine * engine, int32_t layer, int32_t expert, int32_t pinned);
// Wait until the queue is empty; EM_ERROR_STATE after timeout_ms.
EM_API int32_t em_wait_uploads(em_engine * engine, int32_t timeout_ms);
// em_expert_state per (layer, expert), row by row.
EM_API int32_t em_residency(em_engine * engine, uint8_t * out, int64_t capacity);
EM_API int32_t em_stats(em_engine * engine, em_stats_t * out);
// Routing events since the last call: records {layer, tokens, k, ids[tokens * k]}. Returns the int32 count written.
EM_API int64_t em_drain(em_engine * engine, int32_t * out, int64_t capacity);
// 1: computations end at the next check for a cancel; 0: they may run again.
EM_API int32_t em_cancel(em_engine * engine, int32_t cancelled);
// Free and total bytes of the engine's device.
EM_API int32_t em_device_memory(em_engine * engine, int64_t * free_bytes, int64_t * total_bytes);
