#pragma once

// The whole C interface between the core and Python. Mechanism here, policy there.
//
// Ownership: every pointer handed in stays the caller's; every output buffer is the caller's and comes with its capacity.
// Errors: functions return EM_OK or a negative EM_ERROR_*; em_last_error() gives the text for the calling thread.
// Threads: all functions may be called from any thread, except that one engine is created, loaded and freed by one
// thread at a time. em_cancel, em_residency, em_stats and em_drain may be called while the model computes.
//
// Ordering, and why no computation reads a slot that a copy writes:
//   - a slot is in exactly one state of em_slot_state (model/layer.h), changed only under its layer's mutex;
//   - the compute thread holds the layer's mutex from looking an expert up until the device has finished with it, or has been
//     started and an event recorded behind it, for which the copy stream waits (pass/pass.h);
//   - the copy thread writes a slot's bytes only in state LOADING, in which no lookup can return it;
//   - LOADING becomes RESIDENT under the mutex, after the copy stream was synchronised.

#include <stdint.h>

#if defined(_WIN32)
#    define EM_API extern "C" __declspec(dllexport)
#else
#    define EM_API extern "C" __attribute__((visibility("default")))
#endif

#define EM_ABI_VERSION 4

enum em_status {
    EM_OK               = 0,
    EM_ERROR_ARGUMENT   = -1,
    EM_ERROR_MISMATCH   = -2, // the loaded ggml is not the one the core was written against
    EM_ERROR_DEVICE     = -3, // no such device, or it cannot be opened
    EM_ERROR_NO_MEMORY  = -4, // the device has no room for what was asked
    EM_ERROR_STATE      = -5, // called in the wrong order
    EM_UNSEEN           = 1,  // no error
};

enum em_expert_state { EM_COLD = 0, EM_PENDING = 1, EM_RESIDENT = 2 };

typedef struct em_engine em_engine;

// What Python asks of an engine when it is made.
typedef struct {
    int32_t struct_bytes;
    int32_t prefill_tokens;   // a batch of at least so many tokens is a prefill
    int32_t stream_tokens;    // prefill: a cold expert with so many tokens is streamed; 0 never
    int32_t stream_slots;     // staging places of an expert on the device for prefill, an even number; 0 none
    int32_t graph_us;         // about how long one graph of a prefill may take, for nothing can stop it
    int64_t pin_bytes;        // most bytes of experts in host memory that the device's driver may pin, to read them by itself
    const char * device;      // ggml device name, NULL or empty for none
} em_options;

// Where the streams of a pass on sim compute, see device/sim.cpp.
enum em_sim_streams_t { EM_SIM_CALLER = 0, EM_SIM_ORDERED = 1, EM_SIM_TRANSFER = 2 };

// Behaviour of the sim device, process-wide; see SimConfig in config.py for the fields.
typedef struct {
    int32_t struct_bytes;
    int32_t latency_us;
    int64_t bandwidth;
    int64_t capacity;
    int32_t fail_alloc;
    int32_t fail_copy;
    int32_t fail_compute;
    int32_t fail_register;
    int32_t jitter_us;
    uint64_t seed;
    int64_t  compute_rate;
    int64_t  fetch_all;
    int64_t  early;
    int64_t  streams; // em_sim_streams_t
} em_sim_options;

// One expert layer, in the order the layers run.
typedef struct {
    int32_t struct_bytes;
    int32_t block;        // number in the tensor names
    int32_t experts;
    int32_t slots;
    int32_t understood;   // 1 fused, 0 runs as plain llama.cpp, -1 not seen yet
    int32_t device_can;   // 1 the device has every operation, 0 not: the CPU computes, -1 not asked yet
    int64_t expert_bytes; // one expert, all projections
} em_layer_info;

// One upload: expert into the slot of victim (-1: a free slot).
typedef struct {
    int32_t layer;
    int32_t expert;
    int32_t victim;
} em_load;

// Counters since the engine was made; nanoseconds and bytes. Meanings in types.py, ExpertStats.
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
    int64_t dropped_events;
} em_stats_t;

// --- predictor: no engine and no ggml needed; one thread at a time ---

typedef struct em_predictor em_predictor;

// Log-linear tables, float32, copied. E experts, L layers, D decays, M memories; lead a + 1 is that many layers ahead.
typedef struct {
    int32_t struct_bytes;
    int32_t layers, experts, used, decays, memories, leads, reach;
    float   rate;    // of learning from every token; 0: the tables stay as they are
    float   horizon; // use soon: a use n tokens from now counts (1 - horizon) * horizon^(n - 1)
    int64_t tokens;  // the tables have learnt from
    const float * decay;       // [D] what is left of a frequency after a token
    const float * keep_bias;   // [L, E] use soon: logit = bias + decay . frequency + rows of the latest token + memories
    const float * keep_decay;  // [L, D]
    const float * keep_again;  // [L, E, E]
    const float * memory_rate; // [M]
    const float * keep_memory; // [M, L, E, E]
    const float * next_bias;   // [leads, L, E] use by the token under way, of layer l
    const float * next_decay;  // [leads, L, D]
    const float * next_again;  // [leads, L, E, E] rows: experts of layer l of the token before
    const float * next_rows;   // [leads, reach, L, E, E] rows: experts of layer l - lead - j
    const float * next_token;  // [leads, L, 3, 2] of how often the token's id used an expert before, where it came once, 2 to 4 times,
                               // more often: weight of that share, and a constant
    const float * next_router; // [leads, L] of how far an expert lies above the border of what the layer's router would choose if it
                               // saw what an earlier layer sees, in standard deviations
} em_predictor_tables;

EM_API em_predictor * em_predictor_new(const em_predictor_tables * tables); // NULL: sizes make no sense
EM_API void           em_predictor_free(em_predictor * p);
EM_API void           em_predictor_seed(em_predictor * p, const float * use);   // [L, E] uses per token so far
// Learn from a computed token, [L, used], -1 unknown; nothing where an engine has done that already, see em_set_ahead.
EM_API void           em_predictor_token(em_predictor * p, const int32_t * ids);
EM_API void           em_predictor_begin(em_predictor * p, int32_t token_id);    // of the token under way, -1 unknown
// What n computed tokens of these ids used, [n, L, used].
EM_API void           em_predictor_seen(em_predictor * p, const int32_t * token_ids, const int32_t * ids, int64_t n);
EM_API void           em_predictor_routed(em_predictor * p, int32_t layer, const int32_t * ids, int32_t n); // of the one under way
EM_API void           em_predictor_next(em_predictor * p, int32_t layer, int32_t lead, float * out);      // [E] probabilities
EM_API void           em_predictor_keep(em_predictor * p, float * out);                                   // [L, E] probabilities
// The tables as they are now; returns the tokens they have learnt from.
EM_API int64_t        em_predictor_learnt(em_predictor * p, float * keep_bias, float * keep_again, float * next_bias,
                                          float * next_again, float * next_rows, float * next_token,
                                          float * next_router);
// Exchanges that gain at least so much expected use; state is em_expert_state [E]. Returns how many of at most `most`.
EM_API int32_t        em_predictor_choose(em_predictor * p, int32_t layer, int32_t lead, const uint8_t * state, int32_t free_slots,
                                          int32_t most, float gain, em_load * out);

// --- meeting ggml ---
EM_API int32_t      em_abi_version(void);
EM_API int32_t      em_struct_bytes(int32_t which); // 0 options, 1 sim options, 2 layer info, 3 load, 4 stats
EM_API const char * em_last_error(void);
EM_API int32_t      em_symbol_count(void);
EM_API const char * em_symbol_name(int32_t i);
EM_API int32_t      em_symbol_set(int32_t i, void * address);
// The std::__throw_runtime_error of the C++ library that ggml uses; NULL where that is this core's own.
EM_API void         em_set_thrower(void * function);
// Compare everything assumed of ggml with what is loaded. On EM_ERROR_MISMATCH em_last_error names the difference.
EM_API int32_t      em_check(void);
// The registry entry, for ggml_backend_load; NULL before a successful em_check.
EM_API void *       ggml_backend_init(void);
// The buffer type for llama_model_params.tensor_buft_overrides.
EM_API void *       em_buffer_type(void);
// Calls llama_decode(context, *batch); an assertion of ggml that fails on this thread is an error instead of the end of the
// process. The context cannot be used afterwards, only freed.
EM_API int32_t      em_decode(void * llama_decode, void * context, const void * batch, int32_t * result);
// Address of bool (*)(void * engine): true once em_cancel was called; for llama_set_abort_callback.
EM_API void *       em_abort_callback(void);

// --- kernels of the CPU, for the whole process ---
// Choose them: auto, off, avx2, avxvnni, avx512 or neon. EM_ERROR_ARGUMENT: there are none of this name, or this processor cannot run them.
EM_API int32_t      em_kernels(const char * name);
EM_API const char * em_kernels_name(void); // of those in use
// 1: they compute rows of so many weights of a ggml type, 0: ggml does. Valid after em_check.
EM_API int32_t      em_kernels_know(int32_t type, int64_t width);

// --- the sim device ---
EM_API int32_t em_sim_configure(const em_sim_options * options);

// --- engines: one per loaded model ---
EM_API em_engine * em_engine_new(const em_options * options);
EM_API void        em_engine_free(em_engine * engine);
// The device that llama.cpp is to use in the place of the engine's: it computes the whole graph there, and the experts where
// they are. For llama_model_params.devices; NULL without a device. It is the engine's.
EM_API void *      em_shown_device(em_engine * engine);
// The model runs its first blocks only: experts of later blocks (an MTP head) get no layer. Call it before em_begin_load;
// otherwise all blocks run.
EM_API int32_t     em_set_blocks(em_engine * engine, int32_t blocks);
// Between begin and end, on the same thread, expert tensors may be given to our buffer type. shown: llama.cpp uses
// em_shown_device for its graph; else it sees an accelerator that computes expert layers in host memory, and never otherwise.
EM_API int32_t     em_begin_load(em_engine * engine, int32_t shown);
EM_API int32_t     em_end_load(em_engine * engine);
// Stop copies and let go of the device; must precede the freeing of the model.
EM_API int32_t     em_engine_stop(em_engine * engine);
EM_API int32_t     em_layer_count(em_engine * engine);
EM_API int32_t     em_layer(em_engine * engine, int32_t layer, em_layer_info * out);
// (Re)allocate device slots: slots[layer]; the first time also the staging places of prefills. Residency of changed layers
// is lost. EM_ERROR_NO_MEMORY leaves that layer and those after it without slots.
EM_API int32_t     em_set_slots(em_engine * engine, const int32_t * slots, int32_t count);
// Queue uploads; returns how many were taken.
EM_API int32_t     em_submit(em_engine * engine, const em_load * loads, int32_t count);
// Let the predictor learn from every token that is decoded alone, and load ahead of need: at most `most` experts per layer and
// step, `lead` layers ahead, where an exchange gains `gain` expected uses. NULL: neither. The predictor stays the caller's and must
// outlive its use here; between em_begin_token and em_end_step it is the engine's. wait: compute goes on only when they have arrived.
EM_API int32_t     em_set_ahead(em_engine * engine, em_predictor * predictor, int32_t lead, int32_t most, float gain, int32_t wait);
// Routers, for looking ahead: layer's, as seen from `lead` layers before it. weight is bfloat16 [experts, width] and copied, bias
// [experts], select [experts] or NULL: added to sigmoids, see routing/router.h.
EM_API int32_t     em_set_router(em_engine * engine, int32_t layer, const uint16_t * weight, const float * bias, const float * select,
                                 int32_t experts, int32_t width);
// A token of this id is about to be decoded (-1 unknown): load ahead for the layers that come too soon for anything else.
EM_API int32_t     em_begin_token(em_engine * engine, int32_t token_id);
// A step is over, or was cut short: the predictor is the caller's again. Returns EM_UNSEEN where it passed without a look at its
// routing, because every expert is resident; there are no events of it then.
EM_API int32_t     em_end_step(em_engine * engine);
// Look at the routing of every n-th token at least, also where every expert is resident; 1: of every token and prompt.
EM_API int32_t     em_watch(em_engine * engine, int32_t every);
// Prefetches of each layer in the latest step.
EM_API int32_t     em_ahead_spent(em_engine * engine, int32_t * out, int32_t capacity);
// Decode steps take their experts from this trace, [tokens, layers, used], over and over, instead of from the router; 0 tokens:
// from the router again. For benchmarks.
EM_API int32_t     em_force(em_engine * engine, const int32_t * ids, int64_t tokens, int32_t used);
// Never evict this expert, or allow it again. It is not loaded by this.
EM_API int32_t     em_pin(em_engine * engine, int32_t layer, int32_t expert, int32_t pinned);
// Wait until the queue is empty; EM_ERROR_STATE after timeout_ms.
EM_API int32_t     em_wait_uploads(em_engine * engine, int32_t timeout_ms);
// em_expert_state per (layer, expert), row by row.
EM_API int32_t     em_residency(em_engine * engine, uint8_t * out, int64_t capacity);
EM_API int32_t     em_stats(em_engine * engine, em_stats_t * out);
// Routing events since the last call: records {layer, tokens, k, ids[tokens * k]}. Returns the int32 count written.
EM_API int64_t     em_drain(em_engine * engine, int32_t * out, int64_t capacity);
EM_API int32_t     em_cancel(em_engine * engine, int32_t cancelled);
// Free and total bytes of the engine's device.
EM_API int32_t     em_device_memory(em_engine * engine, int64_t * free_bytes, int64_t * total_bytes);
