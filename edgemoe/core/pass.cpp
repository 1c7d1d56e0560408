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
//     where the layer itself overwrites them. The CPU waits for `arrived` before it gives inner anything else.
//   - the stage (`engine->stream`): part h is written after `vacant[h]` was reached on inner, which is after the layer before
//     has read it; inner waits for `filled[h]` before it reads it. Layers of different types have stages of their own, and wait
//     for each other all the same.
// A slot is not overwritten while it is read: under the layer's mutex the hot pairs are started and `layer.used` is recorded
// on inner; the copy thread marks the slot under the same mutex, then lets its stream wait for `layer.used`. A prompt keeps
// the copy thread out altogether, by its mutex. Where a device has no events, whoever would wait for one waits for the stream.

#include "engine.h"

#include <algorithm>
#include <cstring>

namespace {

// From so many tokens on llama.cpp, too, brings experts to the device rather than compute them on the CPU.
constexpr int64_t MANY_TOKENS = 32;
// With so many picks per expert practically every one is used, and the next layer's can be sent before they are known.
constexpr int64_t PICKS_FOR_ALL = 16;
constexpr size_t  ALIGN = 256;
// Numbers of our own graphs, above all of ggml's.
constexpr uint64_t FIRST_UID = uint64_t(1) << 48;

enum stage_part { FIRST, SECOND, PARTS }; // gate and up; down

// What a block's nodes are to be computed over.
struct graph_kind {
    const em_places * places = nullptr;
    ggml_tensor *     table  = nullptr; // of the device, from experts to places; null: the places are sent
    bool              parted = false;   // down in a graph of its own
    bool              aside  = false;   // the rows go to memory of their own

    bool operator==(const graph_kind & o) const {
        return places == o.places && table == o.table && parted == o.parted && aside == o.aside;
    }
};

// A block's nodes once more, with weights that lie on the device; kept while nothing that it was made from changes.
struct device_graph {
    std::vector<char>        arena;
    ggml_context *           ctx = nullptr;
    ggml_cgraph *            part[PARTS] = {}; // the second one is empty where the first holds everything
    ggml_tensor *            ids = nullptr;    // the places, where they are sent
    ggml_tensor *            down = nullptr;
    std::vector<ggml_tensor> made_of;
    graph_kind               kind;
    int64_t                  serial = -1; // of the places
    int64_t                  memory = -1; // of what lies aside

    ~device_graph() { clear(); }
    void clear() {
        if (ctx) {
            G.ggml_free(ctx);
            ctx = nullptr;
        }
    }
};

// A block as the CPU sees it: what it reads is copied to host memory, and so are its rows made there.
struct host_view {
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
struct stage_run {
    int32_t from, n, place;
};

// How a layer's experts lie in the stage.
struct stage_plan {
    int32_t                layer = -1;
    std::vector<int32_t>   place; // of each expert
    int32_t                hot = 0; // so many slots are copied as they are, to the first places
    std::vector<stage_run> runs;
};

struct patch {
    ggml_tensor ** where;
    ggml_tensor *  before;
};

struct pass {
    em_context     cpu; // cold experts
    em_engine *    e     = nullptr;
    ggml_backend * inner = nullptr;
    ggml_backend * home  = nullptr;

    bool                 events = false;
    bool                 early  = false; // hot pairs may be started before the CPU knows the ids
    ggml_backend_event * ready = nullptr, * arrived = nullptr;
    ggml_backend_event * filled[PARTS] = {}, * vacant[PARTS] = {}, * done[2] = {};

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
    std::vector<int64_t>               table_version;
    std::vector<std::unique_ptr<device_graph>> hot, staged, fetched;
    ggml_tensor                        marker{}; // does nothing: the first node of graphs that leave nothing out

    host_view              view;
    bool                   untold = false; // the view's routing
    stage_plan             plan[2];
    std::vector<em_pair>   cold, fetched_pairs;
    std::vector<patch>     patches;
    std::vector<ggml_tensor *> nodes;
    std::vector<ggml_tensor>   prompt; // ids of the layers of a prompt, in host memory
    uint64_t next_uid = FIRST_UID;
    int64_t  unseen   = 0;
};

pass * pass_of(ggml_backend * b) { return static_cast<pass *>(b->context); }

// ---- what the layers need on the device, made when the model is known ----

int32_t * host_table(pass * p, size_t layer, bool stage) {
    size_t at = 0;
    for (size_t l = 0; l < layer; ++l) {
        at += 2 * em_align(size_t(p->e->layers[l]->experts) * 4, 64);
    }
    at += stage ? em_align(size_t(p->e->layers[layer]->experts) * 4, 64) : 0;
    return reinterpret_cast<int32_t *>(p->tables.base + at);
}

bool prepare(pass * p) {
    if (p->ctx) {
        return p->buffer != nullptr;
    }
    em_engine *  e = p->e;
    const size_t n = e->layers.size();
    ggml_backend_buffer_type * buft  = G.ggml_backend_dev_buffer_type(e->device);
    const size_t               align = std::max(G.ggml_backend_buft_get_alignment(buft), size_t(64));
    p->ctx = G.ggml_init({G.ggml_tensor_overhead() * n * (2 + PROJ_COUNT) + 256, nullptr, true});
    p->bias.assign(n * PROJ_COUNT, nullptr);
    std::vector<ggml_tensor *> all;
    size_t host = 0, device = align;
    auto make = [&](int type, int64_t ne0, int64_t ne1) {
        const int64_t ne[2] = {ne0, ne1};
        ggml_tensor * t     = G.ggml_new_tensor(p->ctx, type, 2, ne);
        device += em_align(G.ggml_backend_buft_get_alloc_size(buft, t), align);
        all.push_back(t);
        return t;
    };
    for (size_t l = 0; l < n; ++l) {
        const em_layer_t & layer = *e->layers[l];
        p->slot_table.push_back(make(TYPE_I32, 1, layer.experts));
        p->stage_table.push_back(make(TYPE_I32, 1, layer.experts));
        host += 2 * em_align(size_t(layer.experts) * 4, 64);
        for (int i = 0; i < PROJ_COUNT; ++i) {
            if (const ggml_tensor * b = layer.bias[i]) {
                p->bias[l * PROJ_COUNT + size_t(i)] = make(b->type, b->ne[0], b->ne[1]);
            }
        }
        p->hot.push_back(std::make_unique<device_graph>());
        p->staged.push_back(std::make_unique<device_graph>());
        p->fetched.push_back(std::make_unique<device_graph>());
    }
    p->table_version.assign(n, -1);
    p->buffer = G.ggml_backend_buft_alloc_buffer(buft, device);
    if (!p->buffer || !p->tables.ensure(host)) {
        return false;
    }
    char * at = reinterpret_cast<char *>(em_align(reinterpret_cast<size_t>(G.ggml_backend_buffer_get_base(p->buffer)), align));
    for (ggml_tensor * t : all) {
        G.ggml_backend_tensor_alloc(p->buffer, t, at);
        at += em_align(G.ggml_backend_buft_get_alloc_size(buft, t), align);
    }
    for (size_t i = 0; i < p->bias.size(); ++i) {
        if (p->bias[i]) {
            const ggml_tensor * from = e->layers[i / PROJ_COUNT]->bias[i % PROJ_COUNT];
            G.ggml_backend_tensor_set(const_cast<ggml_tensor *>(p->bias[i]), from->data, 0, G.ggml_nbytes(from));
        }
    }
    for (auto & layer : e->layers) { // may stay null: then the device has no events
        if (!layer->used) {
            layer->used = G.ggml_backend_event_new(e->device);
        }
    }
    return true;
}

// ---- a block's nodes once more ----

ggml_tensor * device_weight(const em_block & b, const em_places & places, const ggml_tensor * t) {
    for (int i = 0; i < PROJ_COUNT; ++i) {
        if (b.layer->weight[i] == t) {
            return places.weight[i];
        }
        if (b.layer->bias[i] && b.layer->bias[i] == t) {
            return places.bias[i];
        }
    }
    return nullptr;
}

struct cloner {
    pass *             p;
    device_graph &     g;
    const em_block &   b;
    const graph_kind & kind;
    const ggml_tensor * from[EM_BLOCK_NODES * 3];
    ggml_tensor *       to[EM_BLOCK_NODES * 3];
    int                 count = 0;

    ggml_tensor * add(const ggml_tensor * t) {
        ggml_tensor * c = G.ggml_new_tensor(g.ctx, t->type, 4, t->ne);
        *c = *t;
        from[count] = t, to[count] = c, ++count;
        return c;
    }
    // What is computed elsewhere is a leaf here.
    ggml_tensor * leaf(const ggml_tensor * t) {
        ggml_tensor * c = add(t);
        c->op       = OP.none;
        c->buffer   = t->view_src ? t->view_src->buffer : t->buffer;
        for (int i = 0; kind.aside && i < p->view.arrival_count; ++i) {
            if (p->view.arrivals[i].from == t && p->view.arrivals[i].aside) {
                c->data   = p->aside.base + p->view.arrivals[i].aside;
                c->buffer = p->aside.buffer;
            }
        }
        c->view_src = nullptr;
        c->view_offs = 0;
        std::fill(std::begin(c->src), std::end(c->src), nullptr);
        return c;
    }
    ggml_tensor * find(const ggml_tensor * t) {
        for (int i = 0; i < count; ++i) {
            if (from[i] == t) {
                return to[i];
            }
        }
        return leaf(t);
    }
    ggml_tensor * sent_places() {
        const int64_t ne[2] = {b.k, b.tokens};
        g.ids = G.ggml_new_tensor(g.ctx, TYPE_I32, 2, ne);
        G.ggml_backend_tensor_alloc(p->aside.buffer, g.ids, p->aside.base);
        return g.ids;
    }
    ggml_tensor * places_by_table(const ggml_tensor * ids, ggml_tensor * table) {
        const int64_t te[3] = {1, table->ne[1], b.tokens}, re[3] = {1, b.k, b.tokens}, ie[2] = {b.k, b.tokens};
        ggml_tensor * all = G.ggml_new_tensor(g.ctx, TYPE_I32, 3, te); // the same table for every token
        all->nb[2] = all->nb[3] = 0;
        all->data = table->data, all->buffer = table->buffer;
        ggml_tensor * rows = G.ggml_new_tensor(g.ctx, TYPE_I32, 3, re);
        rows->op = OP.get_rows, rows->src[0] = all, rows->src[1] = leaf(ids);
        G.ggml_backend_tensor_alloc(p->aside.buffer, rows, p->aside.base);
        ggml_tensor * flat = G.ggml_new_tensor(g.ctx, TYPE_I32, 2, ie);
        flat->op = OP.reshape, flat->src[0] = rows, flat->view_src = rows;
        flat->data = rows->data, flat->buffer = rows->buffer;
        return flat;
    }
    void nodes(ggml_tensor * places_ids) {
        for (int i = 0; i < b.count; ++i) {
            ggml_tensor * c = add(b.node[i]);
            for (ggml_tensor *& s : c->src) {
                if (s) {
                    ggml_tensor * w = device_weight(b, *kind.places, s);
                    s = w ? w : s == b.ids ? places_ids : find(s);
                }
            }
            if (c->view_src) {
                c->view_src = find(c->view_src);
                c->data     = kind.aside ? static_cast<char *>(c->view_src->data) + c->view_offs : c->data;
                c->buffer   = c->view_src->buffer;
            } else if (kind.aside) { // the block's own memory holds rows by now
                c->data   = p->aside.base + at;
                c->buffer = p->aside.buffer;
                at += em_align(G.ggml_nbytes(c), ALIGN);
            }
        }
    }
    size_t at = 0; // of the next node's memory
};

void remember(const em_block & b, std::vector<ggml_tensor> & out) {
    out.clear();
    for (int i = 0; i < b.count; ++i) {
        out.push_back(*b.node[i]);
        for (const ggml_tensor * s : b.node[i]->src) {
            if (s && em_projection_of(*b.layer, s) < 0) {
                out.push_back(*s);
            }
        }
    }
}

bool still(const device_graph & g, const em_block & b) {
    size_t at = 0;
    auto   same = [&](const ggml_tensor * t) { return at < g.made_of.size() && memcmp(&g.made_of[at++], t, sizeof(*t)) == 0; };
    for (int i = 0; i < b.count; ++i) {
        if (!same(b.node[i])) {
            return false;
        }
        for (const ggml_tensor * s : b.node[i]->src) {
            if (s && em_projection_of(*b.layer, s) < 0 && !same(s)) {
                return false;
            }
        }
    }
    return at == g.made_of.size();
}

size_t ids_bytes(const em_block & b) { return em_align(size_t(b.k * b.tokens) * 4, ALIGN); }

// Memory aside: ids, inputs, nodes.
size_t inputs_bytes(const pass * p) {
    size_t total = 0;
    for (int i = 0; i < p->view.arrival_count; ++i) {
        total += em_align(G.ggml_nbytes(p->view.arrivals[i].from), ALIGN);
    }
    return total;
}

bool ensure_aside(pass * p, const em_block & b, bool nodes) {
    size_t needed = ids_bytes(b) + inputs_bytes(p) + ALIGN; // of the view, which comes first where it is needed
    for (int i = 0; nodes && i < b.count; ++i) {
        needed += em_align(G.ggml_nbytes(b.node[i]), ALIGN);
    }
    if (needed > p->aside.size) {
        G.ggml_backend_synchronize(p->inner);
        p->aside_serial += 1;
        return p->aside.ensure(needed);
    }
    return true;
}

// The graph of a block; asks the device once whether it can. False: it cannot, or there is no memory.
bool graph_for(pass * p, device_graph & g, const em_block & b, const graph_kind & kind) {
    if (!ensure_aside(p, b, kind.aside)) {
        return false;
    }
    if (g.ctx && g.kind == kind && g.serial == kind.places->serial && g.memory == p->aside_serial && still(g, b)) {
        return b.layer->device_can == 1;
    }
    g.clear();
    constexpr size_t nodes = 64;
    g.arena.resize(G.ggml_tensor_overhead() * EM_BLOCK_NODES * 4 + 2 * G.ggml_graph_overhead_custom(nodes, false) + 1024);
    g.ctx = G.ggml_init({g.arena.size(), g.arena.data(), true});
    cloner c{p, g, b, kind, {}, {}};
    c.at = ids_bytes(b) + inputs_bytes(p);
    c.nodes(kind.table ? c.places_by_table(b.ids, kind.table) : c.sent_places());
    g.down = c.find(b.down());
    g.part[FIRST]  = G.ggml_new_graph_custom(g.ctx, nodes, false);
    g.part[SECOND] = nullptr;
    if (kind.parted) {
        g.part[SECOND] = G.ggml_new_graph_custom(g.ctx, nodes, false);
        G.ggml_graph_add_node(g.part[SECOND], g.down);
        G.ggml_build_forward_expand(g.part[FIRST], g.down->src[1]);
        g.part[SECOND]->uid = ++p->next_uid;
    } else {
        G.ggml_build_forward_expand(g.part[FIRST], g.down);
    }
    g.part[FIRST]->uid = ++p->next_uid;
    g.kind = kind, g.serial = kind.places->serial, g.memory = p->aside_serial;
    remember(b, g.made_of);
    if (b.layer->device_can < 0) {
        bool all = true;
        for (ggml_cgraph * part : g.part) {
            for (int i = 0; part && i < part->n_nodes; ++i) {
                all = all && (part->nodes[i]->op == OP.reshape || G.ggml_backend_dev_supports_op(p->e->device, part->nodes[i]));
            }
        }
        b.layer->device_can = all;
    }
    return b.layer->device_can == 1;
}

// ---- few tokens ----

ggml_tensor aside_copy(pass * p, const host_view::arrival & a) {
    ggml_tensor t = *a.from;
    t.data     = p->aside.base + a.aside;
    t.buffer   = p->aside.buffer;
    t.view_src = nullptr;
    return t;
}

// llama.cpp gives a block's nodes the memory of inputs that they no longer need: those are copied before they are overwritten,
// for whoever reads them later than the nodes do.
bool move_aside(pass * p, const em_block & b) {
    if (!ensure_aside(p, b, false)) {
        return false;
    }
    auto overwritten = [&](const ggml_tensor * t) {
        const char * from = static_cast<const char *>(t->data), * to = from + G.ggml_nbytes(t);
        for (int i = 0; i < b.count; ++i) {
            const char * n = static_cast<const char *>(b.node[i]->data);
            if (n < to && from < n + G.ggml_nbytes(b.node[i])) {
                return true;
            }
        }
        return false;
    };
    size_t at = ids_bytes(b);
    for (int i = 0; i < p->view.arrival_count; ++i) {
        host_view::arrival & a = p->view.arrivals[i];
        if (overwritten(a.from)) {
            a.aside = at;
            ggml_tensor from = *a.from, to = aside_copy(p, a);
            from.buffer = from.view_src ? from.view_src->buffer : from.buffer;
            from.view_src = nullptr;
            G.ggml_backend_tensor_copy_async(p->inner, p->inner, &from, &to);
        }
        at += em_align(G.ggml_nbytes(a.from), ALIGN);
    }
    return true;
}

// The layer's routing, to the history and to what is fetched ahead.
void tell(pass * p) {
    p->untold = false;
    em_record(p->e, p->view.block.layer->block, p->view.block.ids);
    em_look_ahead(p->e, p->view.block);
}

// The host's copy of a block: makes room, and starts the copies of what it reads. False: no memory.
bool start_view(pass * p, const em_block & b) {
    host_view & v = p->view;
    const ggml_tensor * from[EM_BLOCK_NODES * 3];
    v.block = b, v.count = v.arrival_count = 0;
    auto add = [&](const ggml_tensor * t) {
        from[v.count]     = t;
        v.tensor[v.count] = *t;
        v.tensor[v.count].buffer = nullptr;
        return &v.tensor[v.count++];
    };
    auto find = [&](const ggml_tensor * t) -> ggml_tensor * {
        for (int i = 0; i < v.count; ++i) {
            if (from[i] == t) {
                return &v.tensor[i];
            }
        }
        return nullptr;
    };
    auto outside = [&](const ggml_tensor * t) {
        ggml_tensor * c = add(t);
        c->op       = OP.none;
        c->view_src = nullptr;
        std::fill(std::begin(c->src), std::end(c->src), nullptr);
        v.arrivals[v.arrival_count++] = {t, c, 0};
        return c;
    };
    v.block.ids = outside(b.ids);
    for (int i = 0; i < b.count; ++i) {
        ggml_tensor * c = add(b.node[i]);
        v.block.node[i] = c;
        c->data         = nullptr;
        for (ggml_tensor *& s : c->src) {
            if (s && !em_is_ours(s)) {
                ggml_tensor * known = find(s);
                s = known ? known : outside(s);
            }
        }
        c->view_src = c->view_src ? find(c->view_src) : nullptr;
    }
    const size_t rows = em_align(G.ggml_nbytes(b.down()), ALIGN);
    size_t       total = rows + ALIGN;
    for (int i = 0; i < v.arrival_count; ++i) {
        total += em_align(G.ggml_nbytes(v.arrivals[i].from), ALIGN);
    }
    if (total > p->mirror.size) {
        G.ggml_backend_synchronize(p->inner);
        if (!p->mirror.ensure(total)) {
            return false;
        }
    }
    char * at = reinterpret_cast<char *>(em_align(reinterpret_cast<size_t>(p->mirror.base), ALIGN));
    v.block.down()->data = at;
    at += rows;
    if (p->early && !move_aside(p, b)) {
        return false;
    }
    ggml_backend * stream = p->inner;
    if (p->events) {
        G.ggml_backend_event_record(p->ready, p->inner);
        G.ggml_backend_event_wait(p->home, p->ready);
        stream = p->home;
    }
    for (int i = 0; i < v.arrival_count; ++i) {
        const host_view::arrival & a     = v.arrivals[i];
        const size_t               bytes = G.ggml_nbytes(a.from);
        a.to->data = at;
        if (a.aside) {
            ggml_tensor copy = aside_copy(p, a);
            G.ggml_backend_tensor_get_async(stream, &copy, at, 0, bytes);
        } else {
            G.ggml_backend_tensor_get_async(stream, a.from, at, 0, bytes);
        }
        at += em_align(bytes, ALIGN);
    }
    if (p->events) {
        G.ggml_backend_event_record(p->arrived, p->home);
    }
    return true;
}

void wait_for_view(pass * p) {
    const int64_t began = em_now_ns();
    if (p->events) {
        G.ggml_backend_event_synchronize(p->arrived);
    } else {
        G.ggml_backend_synchronize(p->inner);
    }
    p->e->count.joins += 1;
    p->e->count.join_ns += em_now_ns() - began;
}

bool ids_ok(const ggml_tensor * ids, int32_t experts) {
    for (int64_t t = 0; t < ids->ne[1]; ++t) {
        const int32_t * row = reinterpret_cast<const int32_t *>(static_cast<const char *>(ids->data) + t * ids->nb[1]);
        if (std::any_of(row, row + ids->ne[0], [&](int32_t id) { return id < 0 || id >= experts; })) {
            return false;
        }
    }
    return true;
}

// Memory of a layer in a region that is written again for the next token only: the device may read it until then.
char * area_of(pass * p, em_region & region, size_t each, const em_layer_t & layer) {
    const size_t all = each * p->e->layers.size();
    if (all > region.size) {
        G.ggml_backend_synchronize(p->inner);
        if (!region.ensure(all)) {
            return nullptr;
        }
    }
    return region.base + each * size_t(layer.index);
}

// Where a trace says so, the ids on the device are replaced.
void force(pass * p, const em_block & b) {
    em_engine * e = p->e;
    if (e->forced_tokens == 0 || b.k != e->forced_used) {
        return;
    }
    ggml_tensor ids    = *b.ids;
    char *      memory = area_of(p, p->forced_ids, em_align(G.ggml_nbytes(b.ids), ALIGN), *b.layer);
    if (!memory) {
        return;
    }
    ids.data = memory;
    em_force_routing(e, b.layer->index, &ids);
    for (int64_t t = 0; t < b.tokens; ++t) {
        const size_t at = size_t(t) * ids.nb[1];
        G.ggml_backend_tensor_set_async(p->inner, b.ids, memory + at, at, size_t(b.k) * 4);
    }
}

bool start(pass * p, em_layer_t & layer, const device_graph & g) {
    if (G.ggml_backend_graph_compute_async(p->inner, g.part[FIRST]) != STATUS_SUCCESS) {
        p->e->count.device_fallbacks += 1;
        return false;
    }
    if (layer.used && p->events) {
        G.ggml_backend_event_record(layer.used, p->inner);
    }
    return true;
}

bool has_hot(const pass * p, const em_layer_t & layer) { return layer.resident > 0 && layer.device_can != 0 && !p->e->device_dead; }

// Does the device compute a single token's pairs one by one? Then it does not matter that two of them have the same place.
// Its kernels for more tokens, and those for floats, take it for granted that a token's experts differ.
bool one_by_one(const pass * p, const em_block & b) {
    constexpr int F32 = 0, F16 = 1, BF16 = 30; // file format numbers
    bool quantised = true;
    for (const ggml_tensor * w : b.layer->weight) {
        quantised = quantised && (!w || (w->type != F32 && w->type != F16 && w->type != BF16));
    }
    return b.tokens == 1 && (quantised || p->e->device == em_sim_device());
}

// Starts all pairs by the table. Cold ones go to some slot, unless every expert is resident. Needs the layer's mutex.
bool start_by_table(pass * p, const em_block & b) {
    em_layer_t & layer = *b.layer;
    const size_t l     = size_t(layer.index);
    if (!has_hot(p, layer) || !graph_for(p, *p->hot[l], b, {&layer.places, p->slot_table[l], false, false})) {
        return false;
    }
    if (p->table_version[l] != layer.version) {
        int32_t *     to  = host_table(p, l, false);
        const int32_t any = *std::find_if(layer.slot_of.begin(), layer.slot_of.end(), [](int32_t slot) { return slot >= 0; });
        for (size_t i = 0; i < layer.slot_of.size(); ++i) {
            to[i] = layer.slot_of[i] >= 0 ? layer.slot_of[i] : any;
        }
        G.ggml_backend_tensor_set_async(p->inner, p->slot_table[l], to, 0, layer.slot_of.size() * 4);
        p->table_version[l] = layer.version;
    }
    return start(p, layer, *p->hot[l]);
}

// Starts all pairs, with slots that the host sends. A token's cold pairs go to slots that it does not use otherwise; false
// where there are too few of those. Needs the layer's mutex.
bool start_sent(pass * p, const em_block & b, const ggml_tensor * ids) {
    em_layer_t &   layer = *b.layer;
    const size_t   l     = size_t(layer.index);
    device_graph & g     = *p->hot[l];
    if (!has_hot(p, layer) || !graph_for(p, g, b, {&layer.places, nullptr, false, false})) {
        return false;
    }
    int32_t * places = reinterpret_cast<int32_t *>(area_of(p, p->places, ids_bytes(b), layer));
    if (!places) {
        return false;
    }
    const int32_t        any = *std::find_if(layer.slot_of.begin(), layer.slot_of.end(), [](int32_t slot) { return slot >= 0; });
    std::vector<uint8_t> taken;
    for (int64_t t = 0; t < b.tokens; ++t) {
        const int32_t * row = reinterpret_cast<const int32_t *>(static_cast<const char *>(ids->data) + t * ids->nb[1]);
        taken.assign(layer.slots.size(), 0);
        for (int64_t i = 0; i < b.k; ++i) {
            const int32_t slot = layer.slot_of[size_t(row[i])];
            places[t * b.k + i] = slot;
            if (slot >= 0) {
                taken[size_t(slot)] = 1;
            }
        }
        size_t next = 0;
        for (int64_t i = 0; i < b.k; ++i) {
            if (places[t * b.k + i] < 0) {
                while (next < taken.size() && (taken[next] || layer.slots[next].state != em_slot_state::RESIDENT)) {
                    ++next;
                }
                if (next < taken.size()) {
                    places[t * b.k + i] = int32_t(next++);
                } else if (one_by_one(p, b)) {
                    places[t * b.k + i] = any;
                } else {
                    return false;
                }
            }
        }
    }
    G.ggml_backend_tensor_set_async(p->inner, g.ids, places, 0, size_t(b.k * b.tokens) * 4);
    return start(p, layer, g);
}

// One tensor's experts to the stage. What the device may read by itself is one copy; the ragged ends of it are others.
void send_run(pass * p, const em_window & w, const ggml_tensor * from, ggml_tensor * to, size_t each, const stage_run & run) {
    const char * source = static_cast<const char *>(from->data) + size_t(run.from) * each;
    const char * end    = source + size_t(run.n) * each;
    size_t       offset = size_t(run.place) * each;
    auto piece = [&](const char * until) {
        if (until > source) {
            G.ggml_backend_tensor_set_async(p->e->stream, to, source, offset, size_t(until - source));
            offset += size_t(until - source);
            source = until;
        }
    };
    if (w.from) {
        piece(std::clamp(w.from, source, end));
        piece(std::clamp(w.to, source, end));
    }
    piece(end);
}

// After the copies to a part of the stage. False: they failed, of which only sim can tell.
bool sent(pass * p, stage_part part) {
    ggml_backend * stream = p->e->stream;
    const bool     tells  = p->e->device == em_sim_device();
    if (p->events) {
        G.ggml_backend_event_record(p->filled[part], stream);
    }
    if (!p->events || tells) {
        G.ggml_backend_synchronize(stream);
    }
    return !tells || !em_device_failed(stream);
}

// Sends cold experts to the stage, whose first places they take.
bool send_fetched(pass * p, const em_block & b) {
    em_engine *        e     = p->e;
    const em_layer_t & layer = *b.layer;
    em_stage *         stage = em_stage_for(e, layer);
    if (!stage || stage->places.count < int32_t(p->fetched_pairs.size()) ||
        !graph_for(p, *p->fetched[size_t(layer.index)], b, {&stage->places, nullptr, false, true})) {
        return false;
    }
    G.ggml_backend_event_wait(e->stream, p->vacant[FIRST]);
    for (size_t n = 0; n < p->fetched_pairs.size(); ++n) {
        const stage_run run = {p->fetched_pairs[n].expert, 1, int32_t(n)};
        for (int i = 0; i < PROJ_COUNT; ++i) {
            if (const ggml_tensor * w = layer.weight[i]) {
                send_run(p, layer.window[i], w, stage->places.weight[i], w->nb[2], run);
            }
            if (const ggml_tensor * bias = layer.bias[i]) {
                send_run(p, {}, bias, stage->places.bias[i], bias->nb[1], run);
            }
        }
    }
    if (!sent(p, FIRST)) {
        return false;
    }
    e->count.fetched += int64_t(p->fetched_pairs.size());
    e->count.streamed_bytes += int64_t(p->fetched_pairs.size() * layer.expert_bytes);
    return true;
}

// When they are there, all pairs are computed over the stage, aside, and the rows of the fetched ones put in place.
int compute_fetched(pass * p, const em_block & b) {
    const device_graph & g      = *p->fetched[size_t(b.layer->index)];
    int32_t *            places = reinterpret_cast<int32_t *>(area_of(p, p->places, ids_bytes(b), *b.layer));
    if (!places) {
        return STATUS_ALLOC_FAILED;
    }
    std::fill(places, places + b.k, 0);
    for (size_t n = 0; n < p->fetched_pairs.size(); ++n) {
        places[p->fetched_pairs[n].k] = int32_t(n);
    }
    G.ggml_backend_event_wait(p->inner, p->filled[FIRST]);
    G.ggml_backend_tensor_set_async(p->inner, g.ids, places, 0, size_t(b.k) * 4);
    const int status = G.ggml_backend_graph_compute_async(p->inner, g.part[FIRST]);
    G.ggml_backend_event_record(p->vacant[FIRST], p->inner);
    auto row = [](const ggml_tensor * t, int32_t k) {
        ggml_tensor r = *t;
        r.ne[1] = 1;
        r.nb[2] = r.nb[3] = r.nb[1];
        r.data   = static_cast<char *>(t->data) + size_t(k) * t->nb[1];
        r.buffer = t->view_src ? t->view_src->buffer : t->buffer;
        r.view_src = nullptr;
        return r;
    };
    for (const em_pair & f : p->fetched_pairs) {
        ggml_tensor from = row(g.down, f.k), to = row(b.down(), f.k);
        G.ggml_backend_tensor_copy_async(p->inner, p->inner, &from, &to);
    }
    return status;
}

// Puts the CPU's rows in place, neighbours together.
void send_rows(pass * p, const em_block & b) {
    ggml_tensor * out  = b.down();
    const char *  rows = static_cast<const char *>(p->view.block.down()->data);
    const size_t  row  = size_t(out->ne[0]) * 4;
    auto offset = [&](const em_pair & c) { return size_t(c.k) * out->nb[1] + size_t(c.token) * out->nb[2]; };
    std::sort(p->cold.begin(), p->cold.end(), [&](const em_pair & x, const em_pair & y) { return offset(x) < offset(y); });
    for (size_t i = 0; i < p->cold.size();) {
        const size_t from = offset(p->cold[i]);
        size_t       to   = from + row;
        for (++i; i < p->cold.size() && offset(p->cold[i]) == to; ++i) {
            to += row;
        }
        G.ggml_backend_tensor_set_async(p->inner, out, rows + from, from, to - from);
    }
}

int by_host(pass * p, em_block & b);
int by_host_seen(pass * p, em_block & b);

int few_tokens(pass * p, em_block & b) {
    if (!p->early && b.tokens > 1) {
        return by_host(p, b);
    }
    em_engine *  e     = p->e;
    em_layer_t & layer = *b.layer;
    const bool   decode = b.tokens < e->options.prefill_tokens;
    force(p, b);
    std::unique_lock<std::mutex> lock(layer.mutex);
    if (!start_view(p, b)) {
        return STATUS_ALLOC_FAILED;
    }
    em_block & v     = p->view.block;
    const bool early = p->early && one_by_one(p, b);
    bool       hot   = early && start_by_table(p, b);
    wait_for_view(p);
    if (!ids_ok(v.ids, layer.experts)) {
        return STATUS_FAILED;
    }
    if (!early) {
        hot = start_sent(p, b, v.ids);
        if (!hot && has_hot(p, layer)) { // fewer slots than a token has experts
            lock.unlock();
            return by_host_seen(p, b);
        }
    }
    p->cold.clear();
    for (int64_t t = 0; t < b.tokens; ++t) {
        const int32_t * row = reinterpret_cast<const int32_t *>(static_cast<const char *>(v.ids->data) + t * v.ids->nb[1]);
        for (int64_t i = 0; i < b.k; ++i) {
            if (!hot || layer.slot_of[size_t(row[i])] < 0) {
                p->cold.push_back({int32_t(t), int32_t(i), row[i], -1});
            }
        }
        if (decode) {
            em_note_use(layer, row, b.k);
        }
    }
    const int64_t missed = int64_t(p->cold.size()), met = b.tokens * b.k - missed;
    (decode ? e->count.hits : e->count.prefill_hits) += met;
    (decode ? e->count.misses : e->count.prefill_misses) += missed;
    if (!p->events) {
        G.ggml_backend_synchronize(p->inner); // else the slots could be overwritten while they are read
    }
    lock.unlock();
    if (missed == 0) {
        p->untold = true; // the device has work: first what comes next
        return STATUS_SUCCESS;
    }
    tell(p);
    if (b.tokens > EM_FUSED_TOKENS) {
        std::stable_sort(p->cold.begin(), p->cold.end(), [](const em_pair & x, const em_pair & y) { return x.expert < y.expert; });
    }
    p->fetched_pairs.clear();
    if (early && b.layer->device_can == 1) {
        p->fetched_pairs = em_take_fetched(e, layer, p->cold);
        if (!p->fetched_pairs.empty() && !send_fetched(p, b)) {
            p->cold.insert(p->cold.end(), p->fetched_pairs.begin(), p->fetched_pairs.end());
            p->fetched_pairs.clear();
        }
    }
    int status = STATUS_SUCCESS;
    if (!p->cold.empty()) {
        status = em_cold_pairs(&p->cpu, v, p->cold, early ? em_cold::OF_A_TOKEN : em_cold::OF_A_TOKEN_OR_FETCHED);
        if (status == STATUS_SUCCESS) {
            send_rows(p, b);
        }
    }
    if (!p->fetched_pairs.empty()) {
        const int there = compute_fetched(p, b);
        status = status == STATUS_SUCCESS ? there : status;
    }
    return status;
}

// ---- many tokens ----

// Rows are exchanged with the host: of a prompt for which the stage is too small, and of a batch where there is nothing to gain.
int by_host(pass * p, em_block & b) {
    force(p, b);
    if (!start_view(p, b)) {
        return STATUS_ALLOC_FAILED;
    }
    wait_for_view(p);
    return by_host_seen(p, b);
}

// The view is there.
int by_host_seen(pass * p, em_block & b) {
    em_block & v = p->view.block;
    if (!ids_ok(v.ids, b.layer->experts)) {
        return STATUS_FAILED;
    }
    tell(p);
    const int status = em_host_block(&p->cpu, v);
    if (status == STATUS_SUCCESS) {
        G.ggml_backend_tensor_set_async(p->inner, b.down(), v.down()->data, 0, G.ggml_nbytes(b.down()));
        G.ggml_backend_synchronize(p->inner);
    }
    return status;
}

bool whole(const em_layer_t & layer) { return layer.resident == layer.experts; }

em_stage * stage_of(pass * p, const em_layer_t & layer) {
    em_stage * stage = p->e->options.stream_tokens > 0 && layer.device_can != 0 ? em_stage_for(p->e, layer) : nullptr;
    return stage && stage->places.count >= layer.experts ? stage : nullptr;
}

// `sent`: of each expert whether it is to be sent, should it not be hot; the others have places all the same, and rows that are
// replaced. Null: all are.
void make_plan(stage_plan & plan, const em_layer_t & layer, const std::vector<uint8_t> * sent) {
    const int32_t slots = int32_t(layer.slots.size());
    plan.layer = layer.index;
    plan.hot   = layer.resident == slots ? slots : 0; // a slot that is being filled must not be copied
    plan.place.assign(size_t(layer.experts), 0);
    plan.runs.clear();
    int32_t at = plan.hot;
    for (int32_t x = 0; x < layer.experts; ++x) {
        const int32_t slot = plan.hot ? layer.slot_of[size_t(x)] : -1;
        if (slot >= 0) {
            plan.place[size_t(x)] = slot;
            continue;
        }
        plan.place[size_t(x)] = at;
        if (sent && !(*sent)[size_t(x)]) {
            at += 1;
            continue;
        }
        if (!plan.runs.empty() && plan.runs.back().from + plan.runs.back().n == x) {
            plan.runs.back().n += 1;
        } else {
            plan.runs.push_back({x, 1, at});
        }
        at += 1;
    }
}

// Which experts of a short prompt are to be sent to the stage: those that are used, but for the ones with the fewest tokens, as
// long as the CPU computes those sooner than the others are copied. p->cold gets the CPU's pairs.
std::vector<uint8_t> share_out(pass * p, const em_layer_t & layer, const ggml_tensor * ids, bool hot_too) {
    constexpr double FIRST_CPU_RATE = 20, FIRST_LINK_RATE = 20; // bytes a ns, until they are measured
    em_engine *          e = p->e;
    std::vector<int64_t> tokens(size_t(layer.experts));
    auto row_of = [&](int64_t t) { return reinterpret_cast<const int32_t *>(static_cast<const char *>(ids->data) + t * ids->nb[1]); };
    for (int64_t t = 0; t < ids->ne[1]; ++t) {
        for (int64_t i = 0; i < ids->ne[0]; ++i) {
            tokens[size_t(row_of(t)[i])] += 1;
        }
    }
    std::vector<int32_t> cold;
    for (int32_t x = 0; x < layer.experts; ++x) {
        if (tokens[size_t(x)] && (hot_too || layer.slot_of[size_t(x)] < 0)) {
            cold.push_back(x);
        }
    }
    std::sort(cold.begin(), cold.end(), [&](int32_t a, int32_t b) {
        return tokens[size_t(a)] != tokens[size_t(b)] ? tokens[size_t(a)] < tokens[size_t(b)] : a < b;
    });
    const double bytes = double(layer.expert_bytes);
    const double pair  = e->short_pair_ns > 0 ? e->short_pair_ns : bytes / FIRST_CPU_RATE;
    const double copy  = e->copy_ns_per_byte > 0 ? e->copy_ns_per_byte * bytes : bytes / FIRST_LINK_RATE;
    size_t kept = 0;
    double cpu  = 0;
    while (kept < cold.size()) {
        const double more = cpu + pair * double(tokens[size_t(cold[kept])]);
        if (more > copy * double(cold.size() - kept - 1)) {
            break;
        }
        cpu = more;
        kept += 1;
    }
    std::vector<uint8_t> sent(size_t(layer.experts));
    for (size_t i = kept; i < cold.size(); ++i) {
        sent[size_t(cold[i])] = 1;
    }
    p->cold.clear();
    std::vector<uint8_t> ours(size_t(layer.experts));
    for (size_t i = 0; i < kept; ++i) {
        ours[size_t(cold[i])] = 1;
    }
    for (int64_t t = 0; t < ids->ne[1]; ++t) {
        for (int64_t i = 0; i < ids->ne[0]; ++i) {
            if (ours[size_t(row_of(t)[i])]) {
                p->cold.push_back({int32_t(t), int32_t(i), row_of(t)[i], -1});
            }
        }
    }
    std::stable_sort(p->cold.begin(), p->cold.end(), [](const em_pair & x, const em_pair & y) { return x.expert < y.expert; });
    return sent;
}

bool send_part(pass * p, const stage_plan & plan, em_stage & stage, stage_part part) {
    em_engine *        e     = p->e;
    const em_layer_t & layer = *e->layers[size_t(plan.layer)];
    if (p->events) {
        G.ggml_backend_event_wait(e->stream, p->vacant[part]);
    } else {
        G.ggml_backend_synchronize(p->inner);
    }
    for (int i = 0; i < PROJ_COUNT; ++i) {
        if ((i == PROJ_DOWN) != (part == SECOND) || !layer.weight[i]) {
            continue;
        }
        for (const stage_run & run : plan.runs) {
            send_run(p, layer.window[i], layer.weight[i], stage.places.weight[i], layer.weight[i]->nb[2], run);
            if (layer.bias[i]) {
                send_run(p, {}, layer.bias[i], stage.places.bias[i], layer.bias[i]->nb[1], run);
            }
            e->count.streamed_bytes += int64_t(layer.weight[i]->nb[2]) * run.n;
        }
    }
    return sent(p, part);
}

// Hot experts to the first places of the stage, on the device.
void copy_hot(pass * p, const em_layer_t & layer, em_stage & stage, stage_part part) {
    for (int i = 0; i < PROJ_COUNT; ++i) {
        if ((i == PROJ_DOWN) != (part == SECOND)) {
            continue;
        }
        for (auto [from, to] : {std::pair(layer.places.weight[i], stage.places.weight[i]), std::pair(layer.places.bias[i], stage.places.bias[i])}) {
            if (from) {
                ggml_tensor target = *from; // as many places
                target.data = to->data, target.buffer = to->buffer, target.view_src = nullptr;
                G.ggml_backend_tensor_copy_async(p->inner, p->inner, from, &target);
            }
        }
    }
}

// Every layer of a prompt: `next` is the one after it, null where that is not computed this way.
int many_tokens(pass * p, em_block & b, const em_block * next, int turn) {
    em_engine *  e     = p->e;
    em_layer_t & layer = *b.layer;
    const size_t l     = size_t(layer.index);
    force(p, b);
    // The ids are wanted for the routing history, after the pass.
    p->prompt.push_back(*b.ids);
    ggml_tensor & ids = p->prompt.back();
    ids.data = p->prompt_ids.base + size_t(turn) * em_align(G.ggml_nbytes(b.ids), ALIGN);
    G.ggml_backend_tensor_get_async(p->inner, b.ids, ids.data, 0, G.ggml_nbytes(b.ids));
    em_look_ahead(e, b);
    if (whole(layer)) {
        std::lock_guard<std::mutex> lock(layer.mutex);
        e->count.prefill_hits += b.k * b.tokens;
        return start_by_table(p, b) ? STATUS_SUCCESS : STATUS_FAILED;
    }
    em_stage *   stage = stage_of(p, layer);
    stage_plan & plan  = p->plan[turn % 2];
    const bool   all   = b.k * b.tokens >= PICKS_FOR_ALL * layer.experts;
    const bool   seen  = !all && plan.layer != layer.index; // else it was sent ahead, or the ids are not needed
    if (seen) {
        if (!start_view(p, b)) {
            return STATUS_ALLOC_FAILED;
        }
        wait_for_view(p);
        if (!ids_ok(p->view.block.ids, layer.experts)) {
            return STATUS_FAILED;
        }
    }
    if (!graph_for(p, *p->staged[l], b, {&stage->places, p->stage_table[l], true, false})) {
        plan.layer = -1;
        return by_host(p, b);
    }
    p->cold.clear();
    if (plan.layer != layer.index) { // not sent ahead
        std::vector<uint8_t> chosen;
        if (seen) {
            const bool filling = layer.resident != int32_t(layer.slots.size()); // its slots are not copied then
            chosen = share_out(p, layer, p->view.block.ids, filling);
        }
        em_host_register(e, layer);
        make_plan(plan, layer, seen ? &chosen : nullptr);
        const bool first = send_part(p, plan, *stage, FIRST), second = send_part(p, plan, *stage, SECOND);
        if (!first || !second) {
            plan.layer = -1;
            e->count.device_fallbacks += 1;
            return by_host(p, b);
        }
    }
    int32_t * table = host_table(p, l, true);
    std::copy(plan.place.begin(), plan.place.end(), table);
    G.ggml_backend_tensor_set_async(p->inner, p->stage_table[l], table, 0, plan.place.size() * 4);
    stage_plan & ahead = p->plan[(turn + 1) % 2];
    em_stage *   other = next && all && !whole(*next->layer) ? stage_of(p, *next->layer) : nullptr;
    bool         more  = other != nullptr;
    if (more) {
        em_host_register(e, *next->layer);
        make_plan(ahead, *next->layer, nullptr);
    }
    for (stage_part part : {FIRST, SECOND}) {
        if (plan.hot) {
            copy_hot(p, layer, *stage, part);
        }
        if (p->events) {
            G.ggml_backend_event_wait(p->inner, p->filled[part]);
        }
        const int status = G.ggml_backend_graph_compute_async(p->inner, p->staged[l]->part[part]);
        if (status != STATUS_SUCCESS) {
            return status;
        }
        if (p->events) {
            G.ggml_backend_event_record(p->vacant[part], p->inner);
        }
        more = more && send_part(p, ahead, *other, part);
    }
    if (!p->cold.empty()) {
        const int status = em_cold_pairs(&p->cpu, p->view.block, p->cold, em_cold::OF_A_PROMPT);
        if (status != STATUS_SUCCESS) {
            return status;
        }
        send_rows(p, b);
    }
    plan.layer = -1;
    ahead.layer = more ? ahead.layer : -1;
    // So that a stop is soon: no more than two layers are under way.
    if (p->events) {
        G.ggml_backend_event_record(p->done[turn % 2], p->inner);
        if (turn > 0) {
            G.ggml_backend_event_synchronize(p->done[(turn + 1) % 2]);
        }
    }
    int64_t streamed = 0;
    for (const stage_run & run : plan.runs) {
        streamed += run.n;
    }
    const int64_t on_cpu = int64_t(p->cold.size()), pairs = b.k * b.tokens - on_cpu;
    const int64_t there = streamed + plan.hot ? pairs * streamed / (streamed + plan.hot) : 0; // in proportion to experts
    e->count.prefill_misses += on_cpu;
    e->count.prefill_streamed += there;
    e->count.prefill_hits += pairs - there;
    return STATUS_SUCCESS;
}

void end_prompt(pass * p, const std::vector<em_block> & blocks, size_t computed) {
    G.ggml_backend_synchronize(p->inner);
    G.ggml_backend_synchronize(p->e->stream);
    p->plan[0].layer = p->plan[1].layer = -1;
    for (size_t i = 0; i < std::min(computed, p->prompt.size()); ++i) {
        if (ids_ok(&p->prompt[i], blocks[i].layer->experts)) {
            em_record(p->e, blocks[i].layer->block, &p->prompt[i]);
        }
    }
    p->prompt.clear();
}

// ---- the graph ----

// Nodes [from, to) on the device.
int run_part(pass * p, ggml_cgraph * graph, int from, int to) {
    if (from >= to) {
        return STATUS_SUCCESS;
    }
    ggml_cgraph part = *graph;
    part.size = part.n_leafs = 0;
    part.nodes += from;
    part.n_nodes = to - from;
    part.grads = part.grad_accs = part.leafs = nullptr;
    return G.ggml_backend_graph_compute_async(p->inner, &part);
}

void unpatch(pass * p) {
    for (const patch & x : p->patches) {
        *x.where = x.before;
    }
    p->patches.clear();
}

void put(pass * p, ggml_tensor ** where, ggml_tensor * what) {
    p->patches.push_back({where, *where});
    *where = what;
}

// Is every expert of these layers in the slot of its number, and has the device every operation? Needs copy_mutex.
bool nothing_to_do(pass * p, const std::vector<em_block> & blocks) {
    for (const em_block & b : blocks) {
        em_layer_t &                layer = *b.layer;
        std::lock_guard<std::mutex> lock(layer.mutex);
        if (!whole(layer) || layer.device_can == 0) {
            return false;
        }
        for (int32_t x = 0; x < layer.experts; ++x) {
            if (layer.slot_of[size_t(x)] != x) {
                return false;
            }
        }
        const size_t l = size_t(layer.index);
        if (layer.device_can < 0 && !graph_for(p, *p->hot[l], b, {&layer.places, p->slot_table[l], false, false})) {
            return false;
        }
    }
    return true;
}

// The graph as it is, with the slots in the place of the weights.
int run_whole(pass * p, ggml_cgraph * graph, const std::vector<em_block> & blocks) {
    em_engine * e = p->e;
    uint64_t    serials = 0;
    e->unseen = true;
    for (const em_block & b : blocks) {
        const bool decode = b.tokens < e->options.prefill_tokens;
        (decode ? e->count.hits : e->count.prefill_hits) += b.k * b.tokens;
        e->count.tokens += b.layer->index == 0 ? b.tokens : 0;
        serials += uint64_t(b.layer->places.serial);
        for (int i = 0; i < b.count; ++i) {
            for (ggml_tensor *& s : b.node[i]->src) {
                if (ggml_tensor * w = s ? device_weight(b, b.layer->places, s) : nullptr) {
                    put(p, &s, w);
                }
            }
        }
    }
    p->nodes.assign(graph->nodes, graph->nodes + graph->n_nodes);
    p->nodes.insert(p->nodes.begin(), &p->marker); // graphs are known by their first node: this one is not the parts'
    ggml_cgraph all = *graph;
    all.size = all.n_leafs = 0;
    all.nodes   = p->nodes.data();
    all.n_nodes = graph->n_nodes + 1;
    all.grads = all.grad_accs = all.leafs = nullptr;
    all.uid = graph->uid ? graph->uid + (serials << 40) : 0;
    return G.ggml_backend_graph_compute_async(p->inner, &all);
}

// An operation on experts that is not understood: on the CPU, its inputs brought there and its result back.
int run_odd(pass * p, ggml_tensor * t) {
    std::vector<std::vector<char>> memory;
    std::vector<ggml_tensor>       sources(GGML_SOURCES);
    ggml_tensor                    node = *t;
    auto room = [&](const ggml_tensor * x) {
        memory.emplace_back(G.ggml_nbytes(x) + 64);
        return memory.back().data();
    };
    for (int i = 0; i < GGML_SOURCES; ++i) {
        if (!t->src[i] || em_is_ours(t->src[i])) {
            continue;
        }
        sources[size_t(i)] = *t->src[i];
        sources[size_t(i)].data = room(t->src[i]);
        sources[size_t(i)].buffer = nullptr, sources[size_t(i)].view_src = nullptr, sources[size_t(i)].op = OP.none;
        G.ggml_backend_tensor_get_async(p->inner, t->src[i], sources[size_t(i)].data, 0, G.ggml_nbytes(t->src[i]));
        node.src[i] = &sources[size_t(i)];
    }
    G.ggml_backend_synchronize(p->inner);
    node.data = room(t), node.buffer = nullptr, node.view_src = nullptr;
    std::vector<char> arena(G.ggml_graph_overhead_custom(4, false) + 256);
    ggml_context *    ctx   = G.ggml_init({arena.size(), arena.data(), true});
    ggml_cgraph *     graph = G.ggml_new_graph_custom(ctx, 4, false);
    G.ggml_graph_add_node(graph, &node);
    const int status = G.ggml_backend_graph_compute(p->cpu.cpu, graph);
    G.ggml_free(ctx);
    if (status == STATUS_SUCCESS) {
        G.ggml_backend_tensor_set_async(p->inner, t, node.data, 0, G.ggml_nbytes(t));
        G.ggml_backend_synchronize(p->inner);
    }
    return status;
}

struct stop_at {
    int        first, last;
    em_block * block; // null: not understood
};

int run_graph(pass * p, ggml_cgraph * graph) {
    em_engine *           e = p->e;
    std::vector<em_block> blocks;
    std::vector<stop_at>  stops;
    blocks.reserve(e->layers.size() + 1);
    for (int i = 0; i < graph->n_nodes; ++i) {
        ggml_tensor * t = graph->nodes[i];
        if (t->op == OP.add_id && em_is_ours(t->src[1])) { // the last projection's: after the block
            for (size_t x = 0; x < p->bias.size(); ++x) {
                if (p->bias[x] && e->layers[x / PROJ_COUNT]->bias[x % PROJ_COUNT] == t->src[1]) {
                    put(p, &t->src[1], const_cast<ggml_tensor *>(p->bias[x]));
                }
            }
        }
        if (t->op != OP.mul_mat_id || !em_is_ours(t->src[0])) {
            continue;
        }
        em_block b;
        b.on_device = true;
        const em_found found = em_block_find(graph, i, graph->n_nodes, &b);
        if (b.layer) {
            b.layer->understood = b.layer->understood == 0 ? 0 : found == em_found::BLOCK;
        }
        if (found == em_found::BLOCK && b.engine == e && blocks.size() < e->layers.size()) {
            blocks.push_back(b);
            stops.push_back({b.first, b.last, &blocks.back()});
            i = b.last;
        } else {
            stops.push_back({i, i, nullptr});
        }
    }
    if (stops.empty()) {
        return run_part(p, graph, 0, graph->n_nodes);
    }
    const bool known  = stops.size() == blocks.size();
    const int64_t tokens = blocks.empty() ? 0 : blocks.front().tokens;
    const bool look = e->watch_every == 1 || (tokens == 1 && ++p->unseen >= e->watch_every);
    std::unique_lock<std::mutex> frozen(e->copy_mutex, std::defer_lock);
    if (known && e->forced_tokens == 0 && !look) {
        frozen.lock();
        if (nothing_to_do(p, blocks)) {
            return run_whole(p, graph, blocks);
        }
        frozen.unlock();
    }
    p->unseen = 0;
    bool prompt = known && tokens >= MANY_TOKENS && !e->device_dead;
    if (prompt) {
        frozen.lock();
        size_t ids = 0;
        for (const em_block & b : blocks) {
            prompt = prompt && (whole(*b.layer) || stage_of(p, *b.layer));
            ids    = std::max(ids, em_align(G.ggml_nbytes(b.ids), ALIGN));
        }
        p->prompt.clear();
        p->prompt.reserve(blocks.size());
        prompt = prompt && p->prompt_ids.ensure(ids * blocks.size());
    }
    if (!prompt && frozen.owns_lock()) {
        frozen.unlock();
    }
    int    status = STATUS_SUCCESS, at = 0, turn = 0;
    size_t computed = 0;
    for (size_t i = 0; i < stops.size() && status == STATUS_SUCCESS; ++i) {
        const stop_at & s = stops[i];
        status = run_part(p, graph, at, s.first);
        at     = s.last + 1;
        if (p->untold) {
            tell(p);
        }
        if (status != STATUS_SUCCESS) {
            break;
        }
        const int64_t began = em_now_ns();
        if (!s.block) {
            status = run_odd(p, graph->nodes[s.first]);
        } else if (prompt && s.block->tokens >= MANY_TOKENS) {
            const em_block * next = i + 1 < stops.size() && stops[i + 1].block->tokens >= MANY_TOKENS ? stops[i + 1].block : nullptr;
            status = many_tokens(p, *s.block, next, turn++);
            computed += status == STATUS_SUCCESS;
        } else if (s.block->tokens < MANY_TOKENS || (s.block->layer->device_can == 0)) {
            status = few_tokens(p, *s.block);
        } else {
            status = by_host(p, *s.block);
        }
        e->count.moe_ns += em_now_ns() - began;
        if (e->cancelled) {
            status = STATUS_ABORTED;
        }
    }
    if (status == STATUS_SUCCESS) {
        status = run_part(p, graph, at, graph->n_nodes);
    }
    if (p->untold) {
        tell(p);
    }
    if (prompt) {
        end_prompt(p, blocks, computed);
    } else if (status != STATUS_SUCCESS) {
        G.ggml_backend_synchronize(p->inner); // nothing is under way when the caller frees its memory
    }
    return status;
}

int pass_compute(ggml_backend * b, ggml_cgraph * graph) {
    pass * p = pass_of(b);
    if (!p->e->loaded || p->e->layers.empty()) {
        return G.ggml_backend_graph_compute_async(p->inner, graph);
    }
    std::lock_guard<std::mutex> compute(p->e->compute_mutex);
    if (!prepare(p)) {
        return STATUS_ALLOC_FAILED;
    }
    const int status = run_graph(p, graph);
    unpatch(p);
    return status;
}

// ---- stream ----

const uint8_t GUID[16] = {0xed, 0x9e, 0x30, 0xe0, 0x11, 0x22, 0x4d, 0x0e, 0x9a, 0x51, 0x70, 0x6f, 0x72, 0x74, 0x73, 0x03};

const char * pass_name(ggml_backend * b) { return pass_of(b)->inner->iface.get_name(pass_of(b)->inner); }

void pass_free(ggml_backend * b) {
    pass * p = pass_of(b);
    G.ggml_backend_synchronize(p->inner);
    {
        std::lock_guard<std::mutex> lock(p->e->passes_mutex);
        auto & all = p->e->passes;
        all.erase(std::remove(all.begin(), all.end(), p->inner), all.end());
    }
    for (ggml_backend_event * event : {p->ready, p->arrived, p->filled[0], p->filled[1], p->vacant[0], p->vacant[1], p->done[0], p->done[1]}) {
        if (event) {
            G.ggml_backend_event_free(event);
        }
    }
    p->hot.clear();
    p->staged.clear();
    p->fetched.clear();
    for (em_region * r : {&p->mirror, &p->tables, &p->prompt_ids, &p->places, &p->forced_ids, &p->aside}) {
        r->release();
    }
    if (p->buffer) {
        G.ggml_backend_buffer_free(p->buffer);
    }
    if (p->ctx) {
        G.ggml_free(p->ctx);
    }
    for (ggml_backend * stream : {p->inner, p->home, p->cpu.cpu}) {
        if (stream) {
            G.ggml_backend_free(stream);
        }
    }
    delete p;
    delete b;
}

void pass_set(ggml_backend * b, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    G.ggml_backend_tensor_set_async(pass_of(b)->inner, t, data, offset, size);
}
void pass_get(ggml_backend * b, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    G.ggml_backend_tensor_get_async(pass_of(b)->inner, t, data, offset, size);
}
void pass_synchronize(ggml_backend * b) { G.ggml_backend_synchronize(pass_of(b)->inner); }

void set_n_threads(ggml_backend * b, int n) {
    pass * p = pass_of(b);
    G.ggml_backend_cpu_set_n_threads(p->cpu.cpu, n);
    if (p->inner->device == em_sim_device()) {
        em_sim_set_threads(p->inner, n);
    }
}

void set_abort_callback(ggml_backend * b, ggml_abort_callback fn, void * data) {
    pass * p = pass_of(b);
    G.ggml_backend_cpu_set_abort_callback(p->cpu.cpu, fn, data);
    if (p->inner->device == em_sim_device()) {
        em_sim_set_abort(p->inner, fn, data);
    }
}

// ---- device ----

em_engine *           engine_of(ggml_backend_device * dev) { return static_cast<em_engine *>(dev->context); }
ggml_backend_device * device_of(ggml_backend_device * dev) { return engine_of(dev)->device; }

const char * shown_name(ggml_backend_device * dev) { return device_of(dev)->iface.get_name(device_of(dev)); }
const char * shown_description(ggml_backend_device * dev) { return device_of(dev)->iface.get_description(device_of(dev)); }
void         shown_memory(ggml_backend_device * dev, size_t * free, size_t * total) { G.ggml_backend_dev_memory(device_of(dev), free, total); }
int          shown_type(ggml_backend_device *) { return DEV_GPU; }

void shown_props(ggml_backend_device * dev, ggml_backend_dev_props * props) {
    device_of(dev)->iface.get_props(device_of(dev), props);
    props->type                      = DEV_GPU;
    props->caps.buffer_from_host_ptr = false;
    props->caps.events               = false;
}

ggml_backend * shown_init(ggml_backend_device * dev, const char *) {
    em_engine * e = engine_of(dev);
    auto        p = std::make_unique<pass>();
    p->e       = e;
    p->inner   = G.ggml_backend_dev_init(e->device, nullptr);
    p->home    = p->inner ? G.ggml_backend_dev_init(e->device, nullptr) : nullptr;
    p->cpu.cpu = p->home ? G.ggml_backend_cpu_init() : nullptr;
    if (!p->cpu.cpu) {
        return nullptr;
    }
    for (ggml_backend_event ** event : {&p->ready, &p->arrived, &p->filled[0], &p->filled[1], &p->vacant[0], &p->vacant[1], &p->done[0], &p->done[1]}) {
        *event = G.ggml_backend_event_new(e->device);
    }
    p->events = p->ready && p->inner->iface.event_record && p->inner->iface.event_wait;
    p->early  = p->events && (e->device != em_sim_device() || em_sim_early());
    ggml_backend_buffer_type * host = G.ggml_backend_dev_host_buffer_type(e->device);
    p->mirror.buft = p->tables.buft = p->prompt_ids.buft = p->places.buft = p->forced_ids.buft = host;
    p->aside.buft = G.ggml_backend_dev_buffer_type(e->device);
    p->marker.op = OP.none;
    std::fill(std::begin(p->marker.ne), std::end(p->marker.ne), 1);
    std::fill(std::begin(p->marker.nb), std::end(p->marker.nb), 4);
    {
        std::lock_guard<std::mutex> lock(e->passes_mutex);
        e->passes.push_back(p->inner);
    }
    ggml_backend * b = new ggml_backend{};
    b->guid                   = GUID;
    b->iface.get_name         = pass_name;
    b->iface.free             = pass_free;
    b->iface.set_tensor_async = pass_set;
    b->iface.get_tensor_async = pass_get;
    b->iface.synchronize      = pass_synchronize;
    b->iface.graph_compute    = pass_compute;
    b->device                 = dev;
    b->context                = p.release();
    return b;
}

ggml_backend_buffer_type * shown_buft(ggml_backend_device * dev) { return G.ggml_backend_dev_buffer_type(device_of(dev)); }
ggml_backend_buffer_type * shown_host_buft(ggml_backend_device * dev) { return G.ggml_backend_dev_host_buffer_type(device_of(dev)); }

bool shown_supports_op(ggml_backend_device * dev, const ggml_tensor * t) {
    if (t->op == OP.mul_mat_id && em_is_ours(t->src[0])) {
        return t->src[1]->type == TYPE_F32;
    }
    if (t->op == OP.add_id && em_is_ours(t->src[1])) {
        return true;
    }
    for (const ggml_tensor * s : t->src) {
        if (em_is_ours(s)) {
            return false;
        }
    }
    return G.ggml_backend_dev_supports_op(device_of(dev), t);
}

bool shown_supports_buft(ggml_backend_device * dev, ggml_backend_buffer_type * buft) {
    return buft == em_buft() || device_of(dev)->iface.supports_buft(device_of(dev), buft);
}

bool shown_offload_op(ggml_backend_device * dev, const ggml_tensor * t) {
    return device_of(dev)->iface.offload_op && device_of(dev)->iface.offload_op(device_of(dev), t);
}

const char *          shown_reg_name(ggml_backend_reg *) { return "EdgeMoE"; }
size_t                shown_reg_count(ggml_backend_reg *) { return 0; }
ggml_backend_device * shown_reg_device(ggml_backend_reg *, size_t) { return nullptr; }

void * shown_reg_proc(ggml_backend_reg *, const char * name) {
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void *>(set_n_threads);
    }
    if (strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return reinterpret_cast<void *>(set_abort_callback);
    }
    return nullptr;
}

ggml_backend_reg * shown_reg() {
    static ggml_backend_reg reg = [] {
        ggml_backend_reg r{};
        r.api_version            = GGML_BACKEND_API;
        r.iface.get_name         = shown_reg_name;
        r.iface.get_device_count = shown_reg_count;
        r.iface.get_device       = shown_reg_device;
        r.iface.get_proc_address = shown_reg_proc;
        return r;
    }();
    return &reg;
}

} // namespace

void * em_shown_device(em_engine * e) {
    if (!e->device) {
        return nullptr;
    }
    ggml_backend_device & d = e->shown;
    d.iface.get_name             = shown_name;
    d.iface.get_description      = shown_description;
    d.iface.get_memory           = shown_memory;
    d.iface.get_type             = shown_type;
    d.iface.get_props            = shown_props;
    d.iface.init_backend         = shown_init;
    d.iface.get_buffer_type      = shown_buft;
    d.iface.get_host_buffer_type = shown_host_buft;
    d.iface.buffer_from_host_ptr = nullptr;
    d.iface.supports_op          = shown_supports_op;
    d.iface.supports_buft        = shown_supports_buft;
    d.iface.offload_op           = shown_offload_op;
    d.iface.event_new            = nullptr;
    d.iface.event_free           = nullptr;
    d.iface.event_synchronize    = nullptr;
    d.reg     = shown_reg();
    d.context = e;
    return &d;
}
