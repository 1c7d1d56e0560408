// The graph of a pass: parts of it as they are, with every layer's experts between. See pass.h.

#include "pass.h"

#include <algorithm>
#include <cstring>

int32_t * em_host_table(em_pass * p, size_t layer, bool stage) {
    size_t at = 0;
    for (size_t l = 0; l < layer; ++l) {
        at += 2 * em_align(size_t(p->e->layers[l]->experts) * 4, 64);
    }
    at += stage ? em_align(size_t(p->e->layers[layer]->experts) * 4, 64) : 0;
    return reinterpret_cast<int32_t *>(p->tables.base + at);
}

namespace {

bool prepare(em_pass * p) {
    if (p->ctx) {
        return p->buffer && p->tables.base;
    }
    em_engine *  e = p->e;
    const size_t n = e->layers.size();
    ggml_backend_buffer_type * buft  = G.ggml_backend_dev_buffer_type(e->device);
    const size_t               align = std::max(G.ggml_backend_buft_get_alignment(buft), size_t(64));
    p->ctx = G.ggml_init({G.ggml_tensor_overhead() * n * (2 + PROJ_COUNT) + 256, nullptr, true});
    p->bias.assign(n * PROJ_COUNT, nullptr);
    p->rows_arena.resize(em_put_rows::bytes());
    ggml_context * asking = G.ggml_init({p->rows_arena.size(), p->rows_arena.data(), true});
    p->puts_rows = G.ggml_backend_dev_supports_op(e->device, em_put_rows(asking, 32, 2, 1).put);
    G.ggml_free(asking);
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
        p->hot.push_back(std::make_unique<em_device_graph>());
        p->staged.push_back(std::make_unique<em_device_graph>());
        p->fetched.push_back(std::make_unique<em_device_graph>());
    }
    p->table_version.assign(n, -1);
    p->whole_version.assign(n, -1);
    p->buffer = G.ggml_backend_buft_alloc_buffer(buft, device);
    if (!p->buffer || !p->tables.ensure(host)) {
        return false;
    }
    char * at = em_align(G.ggml_backend_buffer_get_base(p->buffer), align);
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
    return true;
}

// Numbers of parts and of whole graphs, far from those that ggml gives.
constexpr uint64_t PARTS_UID = uint64_t(1) << 62, WHOLE_UID = uint64_t(1) << 61;

// Nodes [from, to) on the device.
int run_part(em_pass * p, ggml_cgraph * graph, int from, int to) {
    if (from >= to) {
        return STATUS_SUCCESS;
    }
    ggml_cgraph part = *graph;
    part.size = part.n_leafs = 0;
    part.nodes += from;
    part.n_nodes = to - from;
    part.grads = part.grad_accs = part.leafs = nullptr;
    part.uid = graph->uid ? PARTS_UID | graph->uid << 20 | uint64_t(from) : 0; // a device may know a graph by its number alone
    const int64_t began  = em_now_ns();
    const int     status = G.ggml_backend_graph_compute_async(p->inner, &part);
    p->e->count.device_ns += em_now_ns() - began; // all of it where the device computes in the calling thread, as sim does
    return status;
}

// What was computed here is a leaf for the rest of the graph: a device in another process is sent all that a node hangs
// on. The leaf is a view of nothing and not a tensor without an operation: before ggml-cuda and ggml-vulkan fuse nodes,
// they look for sources that the result would overwrite, and take a source without an operation for a constant.
void cut(em_pass * p, ggml_tensor * t) {
    em_cut c{t, t->op, {}};
    std::copy(std::begin(t->src), std::end(t->src), c.src);
    p->cuts.push_back(c);
    t->op = OP.view;
    std::fill(std::begin(t->src), std::end(t->src), nullptr);
}

void unpatch(em_pass * p) {
    for (const em_cut & c : p->cuts) {
        c.node->op = c.op;
        std::copy(std::begin(c.src), std::end(c.src), c.node->src);
    }
    p->cuts.clear();
    for (const em_patch & x : p->patches) {
        *x.where = x.what;
    }
    p->patches.clear();
}

void put(em_pass * p, ggml_tensor ** where, ggml_tensor * what) {
    p->patches.push_back({where, *where});
    *where = what;
}

// Is every expert of these layers in the slot of its number, and has the device every operation? Needs copy_mutex.
bool nothing_to_do(em_pass * p, const std::vector<em_block> & blocks) {
    for (const em_block & b : blocks) {
        em_layer_t &                layer = *b.layer;
        std::lock_guard<std::mutex> lock(layer.mutex);
        const size_t                l = size_t(layer.index);
        if (!em_all_resident(layer) || layer.device_can == 0) {
            return false;
        }
        if (p->whole_version[l] != layer.version) {
            for (int32_t x = 0; x < layer.experts; ++x) {
                if (layer.slot_of[size_t(x)] != x) {
                    return false;
                }
            }
            p->whole_version[l] = layer.version;
        }
        if (layer.device_can < 0 && !em_graph_for(p, *p->hot[l], b, {&layer.places, p->slot_table[l], false, false})) {
            return false;
        }
    }
    return true;
}

// The graph as it is, with the slots in the place of the weights.
int run_whole(em_pass * p, ggml_cgraph * graph, const std::vector<em_block> & blocks) {
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
                if (ggml_tensor * w = s ? em_device_weight(b, b.layer->places, s) : nullptr) {
                    put(p, &s, w);
                }
            }
        }
    }
    p->nodes.assign(1, &p->marker); // graphs are known by their first node: this one is not the parts'
    p->nodes.insert(p->nodes.end(), graph->nodes, graph->nodes + graph->n_nodes);
    ggml_cgraph all = *graph;
    all.size = all.n_leafs = 0;
    all.nodes   = p->nodes.data();
    all.n_nodes = graph->n_nodes + 1;
    all.grads = all.grad_accs = all.leafs = nullptr;
    all.uid = graph->uid ? WHOLE_UID | (serials & 0xfffff) << 40 | graph->uid : 0;
    const int64_t began  = em_now_ns();
    const int     status = G.ggml_backend_graph_compute_async(p->inner, &all);
    e->count.device_ns += em_now_ns() - began;
    if (p->events) {
        G.ggml_backend_event_record(e->used, p->inner);
    }
    return status;
}

// An operation on experts that is not understood: on the CPU, its inputs brought there and its result back.
int run_odd(em_pass * p, ggml_tensor * t) {
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
        sources[size_t(i)].buffer = nullptr, sources[size_t(i)].view_src = nullptr, sources[size_t(i)].view_offs = 0,
        sources[size_t(i)].op = OP.none;
        G.ggml_backend_tensor_get_async(p->inner, t->src[i], sources[size_t(i)].data, 0, G.ggml_nbytes(t->src[i]));
        node.src[i] = &sources[size_t(i)];
    }
    G.ggml_backend_synchronize(p->inner);
    node.data = room(t), node.buffer = nullptr, node.view_src = nullptr, node.view_offs = 0;
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

// Where the device is only a processor, a layer that takes long is exchanged with the host, in graphs that end soon.
bool takes_long(const em_pass * p, const em_block & b) {
    constexpr double MULTIPLICATIONS = 50; // a ns: about what two cores do
    constexpr double GRAPHS          = 2;  // of options.graph_us: longer than these is long
    double all = 0;
    for (const ggml_tensor * w : b.layer->weight) {
        all += w ? double(w->ne[0]) * double(w->ne[1]) : 0;
    }
    const double us = all * double(b.k * b.tokens) / MULTIPLICATIONS / 1e3;
    return p->e->device == em_sim_device() && us > GRAPHS * double(p->e->options.graph_us);
}

void read(em_pass * p, ggml_cgraph * graph) {
    em_engine *  e = p->e;
    em_reading & r = p->reading;
    if (graph->uid != 0 && graph->uid == r.uid) {
        return;
    }
    r.uid = graph->uid;
    r.blocks.clear(), r.stops.clear(), r.biases.clear();
    r.blocks.reserve(e->layers.size() + 1); // stops point there
    for (int i = 0; i < graph->n_nodes; ++i) {
        ggml_tensor * t = graph->nodes[i];
        if (t->op == OP.add_id && em_is_ours(t->src[1])) { // the last projection's: after the block
            for (size_t x = 0; x < p->bias.size(); ++x) {
                if (p->bias[x] && e->layers[x / PROJ_COUNT]->bias[x % PROJ_COUNT] == t->src[1]) {
                    r.biases.push_back({&t->src[1], const_cast<ggml_tensor *>(p->bias[x])});
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
        if (found == em_found::BLOCK && b.engine == e && r.blocks.size() < e->layers.size()) {
            r.blocks.push_back(b);
            r.stops.push_back({b.first, b.last, &r.blocks.back()});
            i = b.last;
        } else {
            r.stops.push_back({i, i, nullptr});
        }
    }
}

// ggml-vulkan and ggml-metal free the commands of a stream when somebody waits for the stream, and ggml-vulkan takes a
// new event for every record until somebody waits for the event. A pass lets other streams wait instead. So the
// computing thread waits for all of them now and then, between two graphs, when nothing is under way.
void let_go(em_pass * p) {
    constexpr int64_t EVERY = 64, LATEST = 256; // graphs; a token is one
    em_engine * e = p->e;
    if (p->traits.keeps_nothing || ++p->kept < EVERY) {
        return;
    }
    std::unique_lock<std::mutex> frozen(e->copy_mutex, std::try_to_lock);
    if (!frozen.owns_lock()) { // an upload under way may wait for an event that would be reset
        if (p->kept < LATEST) {
            return;
        }
        e->copy_wanted = true;
        frozen.lock();
        e->copy_wanted = false;
    }
    p->kept = 0;
    for (ggml_backend * stream : {p->inner, p->home, e->stream}) {
        G.ggml_backend_synchronize(stream);
    }
    auto wait = [](ggml_backend_event * event) {
        if (event) {
            G.ggml_backend_event_synchronize(event);
        }
    };
    for (ggml_backend_event ** event : p->all_events()) {
        wait(*event);
    }
    wait(e->used);
    for (auto & layer : e->layers) {
        wait(layer->used);
    }
}

int run_graph(em_pass * p, ggml_cgraph * graph) {
    em_engine * e = p->e;
    read(p, graph);
    std::vector<em_block> &      blocks = p->reading.blocks;
    const std::vector<em_stop> & stops  = p->reading.stops;
    p->view.arrival_count = 0; // of another graph
    for (const em_patch & x : p->reading.biases) {
        put(p, x.where, x.what);
    }
    if (stops.empty()) {
        return run_part(p, graph, 0, graph->n_nodes);
    }
    const bool    known  = stops.size() == blocks.size();
    const int64_t tokens = blocks.empty() ? 0 : blocks.front().tokens;
    const bool    look   = e->watch_every == 1 || (tokens == 1 && ++p->unseen >= e->watch_every);
    std::unique_lock<std::mutex> frozen(e->copy_mutex, std::defer_lock);
    if (known && e->forced_tokens == 0 && !look && frozen.try_lock()) { // an upload is under way otherwise
        if (nothing_to_do(p, blocks)) {
            return run_whole(p, graph, blocks);
        }
        frozen.unlock();
    }
    p->unseen    = 0;
    p->in_prompt = tokens >= e->options.prefill_tokens;
    bool prompt  = known && tokens >= EM_MANY_TOKENS && !takes_long(p, blocks.front());
    if (prompt) {
        e->copy_wanted = true;
        frozen.lock();
        e->copy_wanted = false;
        p->ids_stride  = 0;
        for (const em_block & b : blocks) {
            prompt        = prompt && b.layer->device_can != 0 && (em_all_resident(*b.layer) || em_stage_whole(p, *b.layer));
            p->ids_stride = std::max(p->ids_stride, em_align(G.ggml_nbytes(b.ids), EM_PASS_ALIGN));
        }
        prompt = prompt && p->prompt_ids.ensure(p->ids_stride * blocks.size());
    }
    if (!prompt && frozen.owns_lock()) {
        frozen.unlock();
    }
    p->prompt.clear();
    p->prompt.reserve(blocks.size());
    int    status = STATUS_SUCCESS, at = 0, turn = 0;
    for (size_t i = 0; i < stops.size() && status == STATUS_SUCCESS; ++i) {
        const em_stop & s = stops[i];
        status = run_part(p, graph, at, s.first);
        at     = s.last + 1;
        if (p->untold) {
            em_view_tell(p);
        }
        if (status != STATUS_SUCCESS) {
            break;
        }
        const int64_t began = em_now_ns();
        if (!s.block) {
            status = run_odd(p, graph->nodes[s.first]);
        } else if (prompt && s.block->tokens >= EM_MANY_TOKENS) {
            const em_block * next = i + 1 < stops.size() && stops[i + 1].block->tokens >= EM_MANY_TOKENS ? stops[i + 1].block : nullptr;
            status = em_many_tokens(p, *s.block, next, turn++);
        } else if (s.block->tokens < EM_MANY_TOKENS || (s.block->layer->device_can == 0)) {
            status = em_few_tokens(p, *s.block);
        } else {
            status = em_by_host(p, *s.block);
        }
        cut(p, graph->nodes[s.last]);
        e->count.moe_ns += em_now_ns() - began;
        if (e->cancelled) {
            status = STATUS_ABORTED;
        }
    }
    if (status == STATUS_SUCCESS) {
        status = run_part(p, graph, at, graph->n_nodes);
    }
    if (p->untold) {
        em_view_tell(p);
    }
    if (prompt) {
        em_end_prompt(p);
    } else if (status != STATUS_SUCCESS) {
        G.ggml_backend_synchronize(p->inner); // nothing is under way when the caller frees its memory
    }
    return status;
}

} // namespace

int em_pass_compute(em_pass * p, ggml_cgraph * graph) {
    if (!p->e->loaded || p->e->layers.empty()) {
        return G.ggml_backend_graph_compute_async(p->inner, graph);
    }
    std::lock_guard<std::mutex> compute(p->e->compute_mutex);
    if (!prepare(p)) {
        return STATUS_ALLOC_FAILED;
    }
    let_go(p);
    const int status = run_graph(p, graph);
    unpatch(p);
    return status;
}
