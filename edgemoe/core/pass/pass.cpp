// The graph of a pass: parts of it as they are, with every layer's experts between. See pass.h.

#include "pass/pass.h"

#include <algorithm>
#include <initializer_list>

namespace {

// Numbers of parts, far from those that ggml gives.
constexpr uint64_t PARTS_UID = uint64_t(1) << 62;

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

// Where the device is only a processor, a layer that takes long is exchanged with the host, in graphs that end soon.
bool takes_long(const em_pass * p, const em_block & b) {
    constexpr double GRAPHS = 2; // of options.graph_us: longer than these is long
    const double us = em_pair_ns(b.layer->pair_multiplications(), 0) * double(b.k * b.tokens) / 1e3;
    return p->e->device.traits.shares_cpu && us > GRAPHS * double(p->e->options.graph_us);
}

// ggml-vulkan and ggml-metal free the commands of a stream when somebody waits for the stream, and ggml-vulkan takes a
// new event for every record until somebody waits for the event. A pass lets other streams wait instead. So the
// computing thread waits for all of them now and then, between two graphs, when nothing is under way.
void let_go(em_pass * p) {
    constexpr int64_t EVERY = 64, LATEST = 256; // graphs; a token is one
    em_engine * e = p->e;
    if (p->e->device.traits.keeps_nothing || ++p->kept < EVERY) {
        return;
    }
    std::unique_lock<std::mutex> frozen(e->residence.uploads.mutex, std::try_to_lock);
    if (!frozen.owns_lock()) { // an upload under way may wait for an event that would be reset
        if (p->kept < LATEST) {
            return;
        }
        frozen = e->residence.uploads.hold();
    }
    p->kept = 0;
    for (ggml_backend * stream : std::initializer_list<ggml_backend *>{p->inner, p->home, e->device.stream}) {
        G.ggml_backend_synchronize(stream);
    }
    auto wait = [](ggml_backend_event * event) {
        if (event) {
            G.ggml_backend_event_synchronize(event);
        }
    };
    for (ggml_backend_event ** event : p->sync.all()) {
        wait(*event);
    }
    wait(e->residence.readers.read);
    for (auto & layer : e->model.layers) {
        wait(layer->residents.read);
    }
}

int run_graph(em_pass * p, ggml_cgraph * graph) {
    em_engine * e = p->e;
    em_read_graph(p, graph);
    std::vector<em_block> &      blocks = p->reading.blocks;
    const std::vector<em_stop> & stops  = p->reading.stops;
    p->view.arrival_count = 0; // of another graph
    for (const em_patch & x : p->reading.biases) {
        em_patch_in(p->edits, x.where, x.what);
    }
    if (stops.empty()) {
        return run_part(p, graph, 0, graph->n_nodes);
    }
    const bool    known  = stops.size() == blocks.size();
    const int64_t tokens = blocks.empty() ? 0 : blocks.front().tokens;
    const bool    look   = e->watching.every == 1 || (tokens == 1 && ++p->whole.unseen >= e->watching.every);
    std::unique_lock<std::mutex> frozen(e->residence.uploads.mutex, std::defer_lock);
    if (known && e->forced.tokens == 0 && !look && frozen.try_lock()) { // an upload is under way otherwise
        if (em_whole_resident(p, blocks)) {
            return em_run_whole(p, graph, blocks);
        }
        frozen.unlock();
    }
    p->whole.unseen    = 0;
    p->prompt.active = tokens >= e->options.prefill_tokens;
    bool prompt  = known && tokens >= EM_MANY_TOKENS && !takes_long(p, blocks.front());
    if (prompt) {
        frozen = e->residence.uploads.hold();
        p->memory.ids_stride  = 0;
        for (const em_block & b : blocks) {
            prompt        = prompt && b.layer->device_can != 0 && (b.layer->all_resident() || em_stage_whole(p, *b.layer));
            p->memory.ids_stride = std::max(p->memory.ids_stride, em_align(G.ggml_nbytes(b.ids), EM_PASS_ALIGN));
        }
        prompt = prompt && p->memory.prompt_ids.ensure(p->memory.ids_stride * blocks.size());
    }
    if (!prompt && frozen.owns_lock()) {
        frozen.unlock();
    }
    p->prompt.routing.clear();
    p->prompt.routing.reserve(blocks.size());
    int    status = STATUS_SUCCESS, at = 0, turn = 0;
    for (size_t i = 0; i < stops.size() && status == STATUS_SUCCESS; ++i) {
        const em_stop & s = stops[i];
        status = run_part(p, graph, at, s.first);
        at     = s.last + 1;
        if (p->view.unreported) {
            em_report_view(p);
        }
        if (status != STATUS_SUCCESS) {
            break;
        }
        const int64_t began = em_now_ns();
        if (!s.block) {
            status = em_run_unrecognised(p, graph->nodes[s.first]);
        } else if (prompt && s.block->tokens >= EM_MANY_TOKENS) {
            const em_block * next = i + 1 < stops.size() && stops[i + 1].block->tokens >= EM_MANY_TOKENS ? stops[i + 1].block : nullptr;
            status = em_prompt_layer(p, *s.block, next, turn++);
        } else if (s.block->tokens < EM_MANY_TOKENS || (s.block->layer->device_can == 0)) {
            status = em_decode_layer(p, *s.block);
        } else {
            status = em_by_host(p, *s.block);
        }
        em_cut_off(p->edits, graph->nodes[s.last]);
        e->count.moe_ns += em_now_ns() - began;
        if (e->turn.cancelled) {
            status = STATUS_ABORTED;
        }
    }
    if (status == STATUS_SUCCESS) {
        status = run_part(p, graph, at, graph->n_nodes);
    }
    if (p->view.unreported) {
        em_report_view(p);
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
    if (!p->e->model.loaded || p->e->model.layers.empty()) {
        return G.ggml_backend_graph_compute_async(p->inner, graph);
    }
    std::lock_guard<std::mutex> compute(p->e->turn.computing);
    if (!em_tables_make(p)) {
        return STATUS_ALLOC_FAILED;
    }
    let_go(p);
    const int status = run_graph(p, graph);
    em_undo(p->edits);
    return status;
}
