#pragma once

// A pass: llama.cpp's whole graph on a device, with every layer's experts where they are.
//
// llama.cpp gets a device of ours in the place of the ggml device that it stands for. Memory, transfers and all operations
// but those on experts go straight through to that one, in one stream. So one backend computes all of a token, activations
// stay on the device, and nothing is copied between backends. Of a layer's experts
//
//   - few tokens: the hot pairs are computed where the activations are; what they read is copied home meanwhile, the CPU
//     computes the cold pairs, and their rows are put in place. For one token the device maps experts to slots by a table of
//     its own, so that it need not wait for the CPU to do it: cold pairs are mapped to some slot, too, and replaced. The CPU
//     waits once per layer, for the ids; the device only where there is a miss.
//   - many tokens: the layer's experts are put together in the stage, hot ones from their slots and the others from host
//     memory, and the layer is computed as llama.cpp would. One half of a layer is copied while the other computes. Of a
//     short prompt the CPU computes the experts that have the fewest tokens while others are copied.
//   - all experts resident, each in the slot of its number: nothing of ours is in the way.
//
// Ordering. Everything runs on one stream (`inner`) in the order of the graph, but for two kinds of copies:
//   - home (`home`): begins when `ready` was reached on inner, which is after the layer's inputs were computed, and copied
//     where the layer itself overwrites them. The CPU waits for `arrived` before it gives inner more than the layer's hot pairs.
//   - the stage (`engine->stream`): part h is written after `vacant[h]` was reached on inner, which is after the layer before
//     has read it; inner waits for `filled[h]` before it reads it. Layers of different types may have a part's memory in common.
// The CPU's rows, places and tables are sent on inner itself. They wait for the computations before them: by the order
// of the stream, or, where a device sends beside its computations, by `ready` (em_before_sending).
// A slot is not overwritten while it is read: under the layer's mutex the hot pairs are started and `layer.used` is recorded
// on inner; the copy thread marks the slot under the same mutex, then lets its stream wait for `layer.used`. A prompt, and a
// graph over all slots, keep the copy thread out by its mutex; the latter records `engine->used`. Where a device has no events,
// whoever would wait for one waits for the stream.

#include "engine.h"
#include "traits.h"

#include <array>

// From so many tokens on llama.cpp, too, brings experts to the device rather than compute them on the CPU.
constexpr int64_t EM_MANY_TOKENS = 32;
constexpr size_t  EM_PASS_ALIGN  = 256;
// Numbers of our own graphs, above all of ggml's.
constexpr uint64_t EM_FIRST_UID = uint64_t(1) << 48;

enum em_stage_part { EM_FIRST, EM_SECOND, EM_PARTS }; // gate and up; down

// What a block's nodes are to be computed over.
struct em_graph_kind {
    const em_places * places = nullptr;
    ggml_tensor *     table  = nullptr; // of the device, from experts to places; null: the places are sent
    bool              parted = false;   // down in a graph of its own
    bool              aside  = false;   // the rows go to memory of their own

    bool operator==(const em_graph_kind & o) const {
        return places == o.places && table == o.table && parted == o.parted && aside == o.aside;
    }
};

// A block's nodes once more, with weights that lie on the device; kept while nothing that it was made from changes.
struct em_device_graph {
    std::vector<char>        arena;
    ggml_context *           ctx = nullptr;
    ggml_cgraph *            part[EM_PARTS] = {}; // the second one is empty where the first holds everything
    ggml_tensor *            ids = nullptr;    // the places, where they are sent
    ggml_tensor *            down = nullptr;
    std::vector<ggml_tensor> made_of;
    em_graph_kind               kind;
    int64_t                  serial = -1; // of the places
    int64_t                  memory = -1; // of what lies aside

    ~em_device_graph() { clear(); }
    void clear() {
        if (ctx) {
            G.ggml_free(ctx);
            ctx = nullptr;
        }
    }
};

// A block as the CPU sees it: what it reads is copied to host memory, and so are its rows made there.
struct em_host_view {
    em_block    block;
    ggml_tensor tensor[EM_BLOCK_NODES * 3];
    struct arrival {
        const ggml_tensor * from;
        ggml_tensor *       to;
        size_t              aside; // where its copy lies on the device, 0: it stays where it is
    } arrivals[EM_BLOCK_NODES * 2];
    int count = 0, arrival_count = 0;
};

// Experts [from, from + n) of a layer to stage places from `place` on.
struct em_stage_run {
    int32_t from, n, place;
};

// How a layer's experts lie in the stage.
struct em_stage_plan {
    int32_t                layer = -1;
    std::vector<int32_t>   place; // of each expert
    int32_t                hot = 0; // so many slots are copied as they are, to the first places
    std::vector<em_stage_run> runs; // to be sent now
    bool                   whole = false; // all that are not hot are sent
    int32_t                sent  = 0;     // experts: the runs, and before them
    std::vector<uint8_t>   ahead;         // which those were
};

// A layer of a short prompt that was shared out between link and CPU.
struct em_sharing {
    int     turn       = -1;    // of the layer after it
    double  link_ns    = 0;     // what the link was thought to take, with what had been sent ahead
    double  sent_ns    = 0;     // without that
    double  cpu_ns     = 0;     // what the CPU was thought to take
    double  expert_ns  = 0;     // what the link was thought to take for one more
    int64_t cpu_end    = 0;     // when it was done
    int     link_first = 0;     // layers in a row of which the link was done first, though it was to be last
};

struct em_patch {
    ggml_tensor ** where;
    ggml_tensor *  what; // is put there; or was there before
};

struct em_stop { // in a graph: what the device cannot do by itself
    int        first, last; // nodes
    em_block * block;       // null: not understood
};

// What a graph holds of ours. llama.cpp computes the same graph again and again, and its number tells that it is the same.
struct em_reading {
    uint64_t              uid = 0;
    std::vector<em_block> blocks;
    std::vector<em_stop>  stops;
    std::vector<em_patch> biases; // of projections, to be read on the device
};

struct em_cut {
    ggml_tensor * node;
    int           op;
    ggml_tensor * src[GGML_SOURCES];
};

struct em_pass {
    em_context     cpu; // cold experts
    em_engine *    e     = nullptr;
    ggml_backend * inner = nullptr;
    ggml_backend * home  = nullptr;

    em_device_traits     traits;
    bool                 events = false;
    bool                 early  = false; // hot pairs may be started before the CPU knows the ids
    ggml_backend_event * ready = nullptr, * arrived = nullptr;
    ggml_backend_event * filled[EM_PARTS] = {}, * vacant[EM_PARTS] = {}, * done[2] = {};

    std::array<ggml_backend_event **, 8> all_events() {
        return {&ready, &arrived, &filled[EM_FIRST], &filled[EM_SECOND], &vacant[EM_FIRST], &vacant[EM_SECOND], &done[0], &done[1]};
    }

    em_region mirror;     // host copies of a layer's inputs, and its rows
    em_region tables;     // host side of the tables: per layer one of the slots, one of the stage
    em_region prompt_ids; // of all layers of a prompt
    em_region places;     // of the pairs of all layers, where the host knows them first
    em_region forced_ids; // of all layers, where a trace replaces the routers
    em_region aside;      // on the device, of one layer: places of the pairs, inputs that would be overwritten, fetched pairs
    int64_t   aside_serial = 0;

    ggml_context *                     ctx    = nullptr; // of what follows, on the device
    ggml_backend_buffer *              buffer = nullptr;
    std::vector<ggml_tensor *>         slot_table, stage_table; // [1, experts]
    std::vector<const ggml_tensor *>   bias;                    // [layer * PROJ_COUNT + projection] all experts' biases
    std::vector<int64_t>               table_version, whole_version; // of slot_of, when the table was sent; when all was in order
    std::vector<std::unique_ptr<em_device_graph>> hot, staged, fetched;
    std::vector<char>                  rows_arena;
    bool                               puts_rows = false; // can the device put rows in place that it was given together?
    ggml_tensor                        marker{}; // does nothing: the first node of graphs that leave nothing out

    em_reading                reading;
    em_host_view              view;
    bool                   untold = false; // the view's routing
    em_stage_plan             plan[2];
    std::vector<em_pair>   cold, fetched_pairs;
    std::vector<em_cut>    cuts;
    std::vector<em_patch>     patches;
    std::vector<ggml_tensor *> nodes;
    struct of_prompt {
        em_layer_t * layer;
        ggml_tensor  ids; // in host memory
    };
    std::vector<of_prompt> prompt; // routing of a prompt that is not recorded yet
    bool                   in_prompt = false;
    em_sharing             sharing;
    size_t                 ids_stride = 0, places_stride = 0, forced_stride = 0; // of a layer, in the regions of these names
    uint64_t next_uid = EM_FIRST_UID;
    int64_t  unseen   = 0;
    int64_t  kept     = 0; // graphs since everything was waited for
};

// n rows of a matrix, as a tensor of their own.
inline ggml_tensor em_some_rows(const ggml_tensor & t, int32_t from, int32_t n) {
    ggml_tensor r = t;
    r.ne[1] = n;
    r.nb[2] = r.nb[3] = r.nb[1] * size_t(n);
    r.data     = static_cast<char *>(t.data) + size_t(from) * t.nb[1];
    r.buffer   = em_buffer_of(&t);
    r.view_src  = nullptr;
    r.view_offs = 0; // a device may add it to `data`
    return r;
}

inline bool em_all_resident(const em_layer_t & layer) { return layer.resident == layer.experts; }

// clones.cpp: a block's nodes once more, over memory of the device
ggml_tensor * em_device_weight(const em_block & b, const em_places & places, const ggml_tensor * weight); // null: it is none
size_t        em_ids_bytes(const em_block & b);
size_t        em_inputs_bytes(const em_pass * p); // of copies of what the view reads
bool          em_ensure_aside(em_pass * p, const em_block & b, bool nodes); // false: no memory
// The graph of a block; asks the device once whether it can. False: it cannot, or there is no memory.
bool em_graph_for(em_pass * p, em_device_graph & g, const em_block & b, const em_graph_kind & kind);

// view.cpp: what the CPU sees of a block
bool em_view_start(em_pass * p, const em_block & b); // makes room, and begins the copies of what it reads. False: no memory
void em_view_wait(em_pass * p);
void em_view_tell(em_pass * p); // its routing, to the history and to what is fetched ahead

// Rows that are put in place by their numbers: n into `all`, which has so many.
struct em_put_rows {
    ggml_tensor * all, * rows, * numbers, * put;
    ggml_cgraph * graph;

    em_put_rows(ggml_context * ctx, int64_t width, int64_t height, int64_t n) {
        const int64_t ne[3][2] = {{width, height}, {width, n}, {n, 1}};
        all     = G.ggml_new_tensor(ctx, TYPE_F32, 2, ne[0]);
        rows    = G.ggml_new_tensor(ctx, TYPE_F32, 2, ne[1]);
        numbers = G.ggml_new_tensor(ctx, TYPE_I32, 2, ne[2]);
        put     = G.ggml_set_rows(ctx, all, rows, numbers);
        graph   = G.ggml_new_graph_custom(ctx, 8, false);
        G.ggml_build_forward_expand(graph, put);
    }
    static size_t bytes() { return G.ggml_tensor_overhead() * 4 + G.ggml_graph_overhead_custom(8, false) + 256; }
};

// few.cpp: a layer of a few tokens
void em_before_sending(em_pass * p); // the next copies to inner wait for its computations so far
int  em_few_tokens(em_pass * p, em_block & b);
void em_force_ids(em_pass * p, const em_block & b); // where a trace says so, the ids on the device are replaced
// Starts all pairs by the table. Cold ones go to some slot, unless every expert is resident. Needs the layer's mutex.
bool em_start_by_table(em_pass * p, const em_block & b);
// One tensor's experts to the stage. What the device may read by itself is one copy; the ragged ends of it are others.
void em_send_run(em_pass * p, const em_window & w, const ggml_tensor * from, ggml_tensor * to, size_t each, const em_stage_run & run);
bool em_sent(em_pass * p, em_stage_part part); // after the copies to a part of the stage. False: they failed, as sim can tell
int  em_send_rows(em_pass * p, const em_block & b); // puts the CPU's rows of p->cold in place

// prompt.cpp: a layer of many tokens
// Rows are exchanged with the host: of a prompt for which the stage is too small, and of a batch where there is nothing to gain.
int        em_by_host(em_pass * p, em_block & b);
void       em_record_prompt(em_pass * p); // what has arrived of its routing
int        em_by_host_seen(em_pass * p, em_block & b); // the view is there
em_stage * em_stage_whole(em_pass * p, const em_layer_t & layer); // that holds all of it; null: there is none
// `next` is the layer after it, null where that is not computed this way; `turn` counts the layers of a prompt.
int  em_many_tokens(em_pass * p, em_block & b, const em_block * next, int turn);
void em_end_prompt(em_pass * p);
// `sent`: of each expert whether it is to be sent, should it not be hot; the others have places all the same, and rows that are
// replaced, or they are there already. Null: all are.
void em_plan_stage(em_stage_plan & plan, const em_layer_t & layer, const std::vector<uint8_t> * sent);
void em_send_runs(em_pass * p, const em_stage_plan & plan, em_stage & stage, em_stage_part part);

// sharing.cpp: short prompts
// Waits for the view of a layer, and learns how the one before was shared out. Gives how long the link has been idle, ns.
double em_wait_and_learn(em_pass * p, int turn);
// Which experts are to be sent to the stage; the CPU's pairs go to p->cold. What `plan` says was sent ahead is on its way.
std::vector<uint8_t> em_share_out(em_pass * p, const em_layer_t & layer, const ggml_tensor * ids, const em_stage_plan & plan, double idle);
// Sends as many experts as the link has time for until the layer's ids are known.
void em_send_ahead(em_pass * p, em_stage_plan & plan, const em_block & b, em_stage & stage);

// pass.cpp
int32_t * em_host_table(em_pass * p, size_t layer, bool stage);
int       em_pass_compute(em_pass * p, ggml_cgraph * graph);
