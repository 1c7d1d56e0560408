#pragma once

// State of one engine and the functions of the core's rooms. See edgemoe.h for the ordering rules.

#include "edgemoe.h"
#include "ggml_abi.h"
#include "routers.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

// Op numbers of the ggml that is loaded, looked up by name.
struct em_ops {
    int none, view, reshape, mul_mat_id, add_id, glu, unary, clamp, scale, mul, add, sqr, cont, custom, get_rows;
};
extern em_ops OP;

int  em_fail(int status, const std::string & text); // remembers the text for em_last_error, returns status
bool em_host_checked();

inline int64_t em_now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline size_t em_align(size_t n, size_t a) { return (n + a - 1) / a * a; }
inline char * em_align(void * p, size_t a) { return reinterpret_cast<char *>(em_align(reinterpret_cast<size_t>(p), a)); }

inline ggml_backend_buffer * em_buffer_of(const ggml_tensor * t) { return t->view_src ? t->view_src->buffer : t->buffer; }

// ---- slots ----

// Legal transitions, all in em_slot_move: FREE -> LOADING -> RESIDENT -> LOADING, LOADING -> FREE (copy failed).
enum class em_slot_state : uint8_t { FREE, LOADING, RESIDENT };

struct em_slot {
    em_slot_state state  = em_slot_state::FREE;
    int32_t       expert = -1;
};

enum em_projection { PROJ_GATE, PROJ_UP, PROJ_DOWN, PROJ_GATE_UP, PROJ_COUNT };

// A piece of host memory that the device may read by itself.
struct em_window {
    const char * from = nullptr;
    const char * to   = nullptr;
};

// Device memory for a number of experts of one shape.
struct em_places {
    ggml_context *        ctx    = nullptr;
    ggml_backend_buffer * buffer = nullptr;
    ggml_tensor *         weight[PROJ_COUNT] = {}; // [K, N, count]
    ggml_tensor *         bias[PROJ_COUNT]   = {}; // [N, count]
    size_t                bytes = 0;
    int32_t               count = 0;
    int64_t               serial = 0; // no two allocations have the same
};

struct em_layer_t {
    int32_t       block   = -1; // number in the tensor names
    int32_t       index   = -1; // among the layers with routed experts
    int32_t       experts = 0;
    ggml_tensor * weight[PROJ_COUNT] = {}; // the model's tensors, host memory, [K, N, experts]
    ggml_tensor * bias[PROJ_COUNT]   = {}; // [N, experts] or null
    size_t        expert_bytes       = 0; // weights and biases of one expert
    em_window         window[PROJ_COUNT]; // what of the weights the device reads by itself; valid when registered
    std::atomic<bool> registered{false};  // tried, by the copy thread
    std::atomic<int> understood{-1}; // is its pattern? -1 not seen yet
    std::atomic<int> device_can{-1}; // has the device every operation of it? -1 not asked yet

    std::mutex            mutex; // guards everything below
    std::vector<em_slot>  slots;
    std::vector<int32_t>  slot_of; // expert -> slot in state RESIDENT, else -1
    std::vector<uint8_t>  state;   // expert -> em_expert_state
    int32_t               resident = 0;
    int64_t               version = 0; // of slot_of: another one after every change
    em_places             places; // device memory of the slots
    ggml_backend_event *  used = nullptr; // on a pass's stream: what has been started so far has read the slots
    std::vector<uint8_t>  pinned; // expert -> 1 is never evicted; empty: none
    std::vector<uint8_t>  ahead;  // expert -> 1 loaded or asked for ahead of need, and not used since
    int64_t               ahead_useful = 0, ahead_late = 0, ahead_wasted = 0;
};

// A growing piece of memory: on the host (pinned where the device offers it) or on the device.
struct em_region {
    ggml_backend_buffer_type * buft = nullptr;
    ggml_backend_buffer *      buffer = nullptr;
    std::vector<char>          plain; // when buft is null
    char *                     base = nullptr;
    size_t                     size = 0;

    bool ensure(size_t bytes); // contents are lost when it grows; false: no memory
    void release();
};

struct em_counters {
    std::atomic<int64_t> tokens{0}, hits{0}, misses{0}, prefill_hits{0}, prefill_streamed{0}, prefill_misses{0}, fetched{0};
    std::atomic<int64_t> uploads{0}, upload_bytes{0}, streamed_bytes{0}, direct_bytes{0}, failed_uploads{0}, joins{0}, device_fallbacks{0};
    std::atomic<int64_t> moe_ns{0}, device_ns{0}, cpu_ns{0}, join_ns{0}, schedule_ns{0}, dropped_events{0};
};

// Staging places for experts that are streamed through in a prefill; one set of tensors per weight shape.
struct em_stage {
    const em_layer_t * like = nullptr;
    em_places          places;
};

// An upload in the queue. A prefetch is worth nothing once its layer has run.
struct em_request {
    em_load load;
    int64_t step = -1; // of a prefetch: the step that it is for
};

// What the compute thread leaves for the thread that looks ahead: one layer's routing and what its experts read.
struct em_glimpse {
    int32_t              layer = -1;
    std::vector<int32_t> ids;
    std::vector<float>   input;
};

// Runs routers ahead, while the compute thread is busy with the experts of the layer.
// Ordering: the predictor belongs to the compute thread; from post to settle it belongs to this one. The compute thread settles
// before it touches the predictor again: a glimpse that was not begun is taken back, one under way is waited for.
struct em_looker {
    enum state_t { IDLE, POSTED, RUNNING, STOPPING };
    std::thread             thread;
    std::mutex              mutex;
    std::condition_variable changed;
    state_t                 state = IDLE;
    em_glimpse              glimpse; // the compute thread's while IDLE, the looker's otherwise
};

// Loading ahead of need: set between steps, read by the compute thread.
struct em_ahead {
    em_predictor *       predictor = nullptr;
    int32_t              lead = 1, most = 0;
    float                gain = 0;
    bool                 wait = false; // for every prefetch to arrive, as a replay assumes
    bool                 begun = false; // the step under way, by em_begin_token
    bool                 alone = false; // one token is under way and nothing else
    std::vector<int32_t> spent;        // loads of each layer in this step
    int64_t              layer_started_ns = 0;
    double               layer_ns = 0; // from one expert layer to the next, smoothed
};

struct em_engine {
    em_options  options{};
    std::string device_name;

    // Filled while the model loads, then fixed.
    std::vector<std::unique_ptr<em_layer_t>> layers; // in the order of their block numbers
    // The extra field of a tensor would be the shorter way, but ggml-cpu takes it for the mark of a repacked weight.
    std::unordered_map<const ggml_tensor *, em_layer_t *> layer_of;
    int32_t blocks = INT32_MAX; // blocks the model runs: experts of later ones get no layer
    bool    loaded = false;

    // Device side. Null when there is none.
    ggml_backend_device * device = nullptr;
    ggml_backend *        exec   = nullptr; // stream of the hot pairs
    ggml_backend *        stream = nullptr; // stream of prefill staging
    ggml_backend *        copy   = nullptr; // stream of the uploads, owned by copy_thread
    ggml_backend_device   shown{};          // what llama.cpp gets in the place of device, see shown.cpp
    ggml_backend_event *        used = nullptr; // as of a layer, of a graph that read the slots of all of them
    std::mutex                  passes_mutex;
    std::vector<ggml_backend *> passes;     // streams that may read slots

    bool own_kernels = true; // off: ggml's dot products only, bit for bit ggml-cpu's results

    std::mutex compute_mutex; // one computation at a time; guards the regions and the stages
    em_region  io_device, io_host, stage_host, cpu_scratch, cpu_prepared;
    std::vector<char> arena;
    std::vector<std::unique_ptr<em_stage>> stages;
    bool                  stages_made = false;
    ggml_backend_buffer * stage_memory = nullptr; // of stages that can share: a part of one lies where that of another does
    size_t                stage_second = 0;       // where the second part begins
    std::atomic<int64_t>  stage_bytes{0};
    double cold_pair_ns = 0, hot_pair_ns = 0, stream_byte_ns = 0; // of prefills, measured: a pair on each side, a byte streamed
    double miss_pair_ns = 0, fetch_ns = 0; // of decode: a pair on the CPU; what a fetch costs beside copying
    static constexpr int64_t FEW_MISSES = 17;
    double misses_ns[FEW_MISSES] = {};     // of decode: so many pairs of a layer on the CPU
    double short_pair_ns = 0;              // of short prompts: a pair on the CPU while the device computes others
    double short_byte_ns = 0, short_idle_ns = 0; // a byte on the link meanwhile; how long it has nothing to do between two layers

    // Uploads: requests in, residency out.
    std::thread             copy_thread;
    std::mutex              queue_mutex;
    std::condition_variable queue_changed;
    std::deque<em_request>  urgent, queue; // prefetches, and loads for later
    bool                    copying = false; // an upload is under way
    bool                    stopping = false;
    std::mutex              copy_mutex; // held during one upload, during a prompt, and while slots are reallocated
    std::atomic<bool>       copy_wanted{false}; // by a prompt: the copy thread lets it go first
    em_region               copy_host;

    em_ahead             ahead;
    em_looker            looker;
    std::vector<em_router> routers; // of each layer; without experts: none
    std::atomic<int64_t> step{0};            // decode steps begun
    std::atomic<int32_t> layer_now{-1};      // expert layer of this step that runs
    std::atomic<double>  copy_ns_per_byte{0}; // of uploads, smoothed

    std::vector<int32_t> forced; // [tokens, layers, used]: routing in place of the router's
    int64_t              forced_tokens = 0, forced_used = 0, forced_at = -1;

    std::atomic<bool> cancelled{false};
    std::atomic<int32_t> watch_every{64}; // tokens, of those whose routing makes no difference
    std::atomic<bool>    unseen{false};   // so was the latest step
    em_counters       count;

    std::mutex           ring_mutex;
    std::vector<int32_t> ring;
    size_t               ring_used = 0;
    bool                 ring_full = false; // until it is drained nothing is recorded
};

struct em_block;

// Measured again: smoothed.
inline void em_note_rate(double & rate, double value) {
    constexpr double SMOOTH = 0.2;
    rate = rate > 0 ? rate + SMOOTH * (value - rate) : value;
}

// ---- rooms ----

// host.cpp
int em_host_check();

// api.cpp
void em_record(em_engine * e, int32_t layer, const ggml_tensor * ids);

// ahead.cpp
void em_force_routing(em_engine * e, int32_t layer, ggml_tensor * ids);
void em_look_ahead(em_engine * e, const em_block & block); // before its layer computes
void em_look_settle(em_engine * e);                        // the predictor is the caller's again
void em_look_stop(em_engine * e);
void em_note_use(em_layer_t & layer, const int32_t * ids, int64_t n);      // needs the layer's mutex

// shown.cpp
void * em_shown_device(em_engine * e);

// hostmem.cpp
void em_host_register(em_engine * e, em_layer_t & layer); // once per layer; may take long, needs no lock
void em_host_unregister(em_engine * e);
bool em_host_readable(const em_layer_t & layer, int projection, const char * from, size_t bytes);

// slots.cpp
bool em_queue(em_engine * e, const em_load & load, int64_t step);
int  em_slots_set(em_engine * e, const int32_t * slots, int32_t count);
void em_slots_release(em_engine * e);
void em_copy_start(em_engine * e);
void em_copy_stop(em_engine * e);
bool em_device_failed(ggml_backend * backend); // and clears the failure
void em_upload_expert(em_engine * e, ggml_backend * backend, char * staging, const em_layer_t & layer, const em_places & to,
                      int32_t expert, int32_t place);
void em_places_make(em_places & places, ggml_backend_device * device, const em_layer_t & layer, int32_t count, size_t bytes[2]);
void em_places_put(em_places & places, ggml_backend_buffer * buffer, size_t second);
ggml_backend_buffer * em_device_alloc(ggml_backend_device * device, size_t bytes);
bool em_places_alloc(em_places & places, ggml_backend_device * device, const em_layer_t & layer, int32_t count);
void em_places_free(em_places & places);

// backend.cpp
ggml_backend_buffer_type * em_buft();
ggml_backend_reg *         em_reg();
em_layer_t *               em_layer_of(const ggml_tensor * weight, em_engine ** engine);
int                        em_projection_of(const em_layer_t & layer, const ggml_tensor * weight); // -1: not of this layer
// llama.cpp asserts what it reads from a file, and ggml ends the process where an assertion fails. Between these two calls a
// failure on this thread is an exception instead.
void                       em_trap_aborts();
void                       em_release_aborts();
em_engine *                em_loading();
void                       em_set_loading(em_engine * e, bool shown);
bool                       em_is_ours(const ggml_tensor * t);

// sim.cpp
ggml_backend_device * em_sim_device();
bool em_sim_register(void * from, size_t bytes);
void em_sim_unregister(void * from);
int64_t em_sim_fetch_all(); // 1: every miss of a decode step is fetched, n: all but every n-th of a layer
bool    em_sim_early();
int64_t em_sim_streams(); // em_sim_streams_t
bool    em_sim_copies_fail(); // now and then
int64_t em_sim_registered(); // pieces of host memory not given back
bool em_sim_take_error(ggml_backend * stream);
void em_sim_set_threads(ggml_backend * stream, int n);
void em_sim_set_abort(ggml_backend * stream, ggml_abort_callback fn, void * data);

// block.cpp: the expert block of one layer, found in a graph
constexpr int EM_BLOCK_NODES = 24;

struct em_block {
    em_engine *   engine = nullptr;
    em_layer_t *  layer  = nullptr;
    int           first = 0, last = 0; // node range in the graph, both included; last is the down projection
    int           count = 0;           // nodes to compute, views included
    bool          on_device = false;   // its tensors are not in host memory
    ggml_tensor * node[EM_BLOCK_NODES];
    ggml_tensor * ids = nullptr;       // [k, tokens]
    int64_t       k = 0, tokens = 0;

    ggml_tensor * down() const { return node[count - 1]; }
};

// What llama.cpp does with the rows of a single token's block: times the router's weights, then summed over k in order.
struct em_tail {
    const ggml_tensor * weights = nullptr; // [1, k]
    ggml_tensor *       out     = nullptr; // [n_embd]
    int                 last    = 0;       // its node
};
bool em_tail_find(ggml_cgraph * graph, const em_block & block, int n_nodes, em_tail * out);
// The tail of rows that lie in block.down(), in the calling thread.
void em_tail_compute(const em_block & block, const em_tail & tail);

// A token's experts, in host memory.
inline const int32_t * em_ids_row(const ggml_tensor * ids, int64_t t) {
    return reinterpret_cast<const int32_t *>(static_cast<const char *>(ids->data) + t * ids->nb[1]);
}
bool em_ids_ok(const ggml_tensor * ids, int64_t experts); // all are experts that there are
std::vector<int64_t> em_tokens_of_experts(const ggml_tensor * ids, int64_t experts); // how many chose each

enum class em_found { NOTHING, UNKNOWN, BLOCK };
// Looks at node i of the graph. UNKNOWN: an expert projection of ours in a pattern that is not understood.
em_found em_block_find(ggml_cgraph * graph, int i, int n_nodes, em_block * out);

// pairs.cpp: a set of (token, slot of k) pairs computed as a graph of their own
struct em_pair {
    int32_t token, k, expert, place; // place: slot or staging place on the device, unused on the CPU
};

void em_sort_by_expert(std::vector<em_pair> & pairs); // in the order they have otherwise

// Where a pair's row begins in a tensor of the block: [width, k or 1, tokens or 1].
inline size_t em_row_offset(const ggml_tensor * t, const em_pair & p) {
    return size_t(t->ne[1] == 1 ? 0 : p.k) * t->nb[1] + size_t(t->ne[2] == 1 ? 0 : p.token) * t->nb[2];
}

// What else the calling thread has to do, once: while the other threads of a pair graph are at work already, where there are any.
struct em_errand {
    std::function<void()> what;
    int64_t               apart_ns = 0;     // of its time, what is counted elsewhere; it says so itself
    bool                  done     = false;
    bool                  late     = false; // the others' work was over before
    std::exception_ptr    thrown;           // a team must come to its end

    void run() {
        if (!done) {
            done = true;
            try {
                what();
            } catch (...) {
                thrown = std::current_exception();
            }
        }
    }
};

struct em_side { // where a pair graph runs
    ggml_backend *              backend;
    bool                        device;
    ggml_tensor * const *       weight; // per projection
    ggml_tensor * const *       bias;
    em_region *                 memory;  // inputs and intermediates
    em_region *                 staging; // device only: host side of inputs and results
    em_errand *                 errand = nullptr; // CPU only
    bool                        by_rows = false;  // CPU only: by rows.cpp, not by ggml
};

struct em_launch { // a pair graph under way
    ggml_context * ctx    = nullptr;
    const float *  result = nullptr; // [n_embd, pairs], valid after the backend was synchronised; null: rows are where they belong
    int            status = STATUS_SUCCESS;
};

// Starts the pairs; the device side returns before it has finished. With a tail (CPU, all pairs of a single token in order) the
// sum is written to its place and there is no result.
em_launch em_pairs_launch(em_engine * e, const em_side & side, const em_block & block, const em_pair * pairs, int64_t n,
                          const em_tail * tail);
// Copies rows to where the block's result belongs.
void em_pairs_scatter(const em_block & block, const em_pair * pairs, int64_t n, const float * rows);

// rows.cpp: one or two projections of all pairs, as a custom operation inside ggml-cpu's thread team
struct em_rows_job;
struct em_rows_place {
    ggml_tensor * tensor   = nullptr;
    bool          of_block = false; // the block's own: a row for each token and k, if there are several; else one for each pair, or for all
};
// errand: of thread 0, before it takes rows; null: none
em_rows_job * em_rows_new(const em_pair * pairs, int64_t n, const ggml_tensor * weight, bool own_kernels, em_errand * errand);
bool          em_rows_second(em_rows_job * job, const ggml_tensor * weight); // same input; false: the first is taken already
void          em_rows_connect(em_rows_job * job, em_rows_place input, em_rows_place first, em_rows_place second);
// Before it is computed. False: no memory for the prepared input; jobs that run one after the other share it.
bool          em_rows_ready(em_rows_job * job, const em_block & block);
void          em_rows_sum(em_rows_job * job, const em_tail & tail);
void          em_rows_compute(ggml_tensor * dst, int ith, int nth, void * job);
void          em_rows_free(em_rows_job * job);
bool          em_rows_supported(const ggml_tensor * weight);

// moe.cpp
struct em_context { // one per llama context that opened our backend
    ggml_backend * cpu = nullptr;
    std::vector<char> arena;
};
// Cold pairs of a block whose inputs are in host memory; rows go to its down projection. The compute mutex is the caller's. Where no
// graph came so far the errand was not run.
enum class em_cold { OF_A_TOKEN, OF_A_TOKEN_OR_FETCHED, OF_A_PROMPT }; // fetched: by the device, where that is quicker
int em_cold_pairs(em_context * c, em_block & block, const std::vector<em_pair> & cold, em_cold kind, em_errand * errand = nullptr);
// Takes away those of a token's cold pairs that the device should fetch while the CPU computes the others.
std::vector<em_pair> em_take_fetched(em_engine * e, const em_layer_t & layer, std::vector<em_pair> & cold);
// All pairs of such a block, wherever its experts are. The compute mutex is the caller's.
int em_host_block(em_context * c, em_block & block);
em_stage * em_stage_for(em_engine * e, const em_layer_t & layer); // null: no memory
void em_stages_make(em_engine * e); // before they are needed: memory is had or not while the model loads
int em_graph_compute(em_context * c, ggml_cgraph * graph);
