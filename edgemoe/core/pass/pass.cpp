// The graph of a pass. Parts between the expert blocks run as they are; each layer's experts are computed between two parts. See
// pass.h.

#include "pass/pass.h"

namespace {
// Numbers of parts, far from ggml's own.
constexpr uint64_t PARTS_UID = uint64_t(1) << 62;

// Runs nodes [from, to) on the device.
int run_part(em_pass * p, ggml_cgraph * graph, int from, int to) {
    if (from >= to) {
        return STATUS_SUCCESS;
    }
    ggml_cgraph part = *graph;
    part.size = part.n_leafs = 0;
    part.nodes += from;
    part.n_nodes = to - from;
    part.grads = part.grad_accs = part.leafs = nullptr;
    part.uid = graph->uid ? PARTS_UID | graph->uid << 20 | uint64_t(from) : 0; // a device may know graphs by their numbers alone
    const int64_t began  = em_now_ns();
    const int     status = G.ggml_backend_graph_compute_async(p->compute, &part);
    // The whole computation if the device computes in the calling thread, as sim does.
    p->e->count.device_ns += em_now_ns() - began;
    return status;
}

// A device on the CPU's cores: the host computes a layer that takes long, in graphs that end soon.
bool takes_long(const em_pass * p, const em_block & b) {
    constexpr double GRAPHS = 2; // graphs of options.graph_us each: a shorter layer does not take long
    const double     us     = em_pair_ns(b.layer->pair_multiplications(), 0) * double(b.k * b.tokens) / 1e3;
    return p->e->device.traits.shares_cpu && us > GRAPHS * double(p->e->options.graph_us);
}

// ggml-vulkan and ggml-metal free the commands of a stream when a thread waits for the stream. ggml-vulkan takes a new event for
// every record until a thread waits for the event. In a pass only streams wait. So the thread that computes waits for all streams
// and events now and then, between two graphs, when nothing is under way.
void wait_for_all(em_pass * p) {
    constexpr int64_t EVERY = 64, LATEST = 256; // graphs; each token is one graph
    em_engine *       e = p->e;
    if (e->device.traits.keeps_nothing || ++p->unwaited < EVERY) {
        return;
    }
    std::unique_lock<std::mutex> frozen(e->residence.uploads.mutex, std::try_to_lock);
    if (!frozen.owns_lock()) { // an upload under way may wait for an event that would be reset
        if (p->unwaited < LATEST) {
            return;
        }
        frozen = e->residence.uploads.hold();
    }
    p->unwaited = 0;
    for (ggml_backend * stream : std::initializer_list<ggml_backend *>{p->compute, p->to_host, e->device.stream}) {
        G.ggml_backend_synchronize(stream);
    }
    p->memory.put.clear();
    for (const em_event * event : p->sync.all()) {
        em_event_synchronize(*event);
    }
    em_event_synchronize(e->residence.readers.read);
    for (auto & layer : e->model.layers) {
        em_event_synchronize(layer->residents.read);
    }
}

enum class mode {
    PLAIN,  // no expert of ours in the graph
    WHOLE,  // every expert in the slot of its number: the graph runs as it is
    PROMPT, // layers put together in the stage
    LAYERS, // every layer in the way that suits it
};

// Whether every layer of a prompt fits in the stage, and its cold experts in RAM; makes room for the ids. Needs uploads.mutex.
bool fits_stage(em_pass * p) {
    em_layer_region & ids = p->memory.prompt_ids;
    ids.stride            = 0;
    for (const em_block & b : p->reading.blocks) {
        if (b.layer->unsupported() || !(b.layer->all_resident() || em_stage_whole(p, *b.layer)) ||
            !em_ram_fits(p->e->ram, *b.layer, b.layer->experts - b.layer->residents.count)) {
            return false;
        }
        ids.stride = std::max(ids.stride, em_align(G.ggml_nbytes(b.ids), EM_PASS_ALIGN));
    }
    return ids.ensure(ids.stride * p->reading.blocks.size());
}

// Chooses the way to compute a graph. `frozen` keeps uploads out while the graph is computed WHOLE or as a PROMPT.
mode choose_mode(em_pass * p, std::unique_lock<std::mutex> & frozen) {
    em_engine *                   e      = p->e;
    const std::vector<em_block> & blocks = p->reading.blocks;
    if (p->reading.stops.empty()) {
        return mode::PLAIN;
    }
    const bool    known  = p->reading.stops.size() == blocks.size();
    const int64_t tokens = blocks.empty() ? 0 : blocks.front().tokens;
    const bool    read   = e->watching.every == 1 || (tokens == 1 && ++p->whole.unread >= e->watching.every);
    frozen               = std::unique_lock<std::mutex>(e->residence.uploads.mutex, std::defer_lock);
    if (known && e->forced.tokens == 0 && !read && frozen.try_lock()) { // if the lock is not free, an upload is under way
        if (em_whole_resident(p, blocks)) {
            return mode::WHOLE;
        }
        frozen.unlock();
    }
    p->whole.unread = 0;
    if (known && tokens >= EM_STAGE_TOKENS && !takes_long(p, blocks.front())) {
        frozen = e->residence.uploads.hold();
        if (fits_stage(p)) {
            return mode::PROMPT;
        }
        frozen.unlock();
    }
    return mode::LAYERS;
}

// `turn` counts the layers of a prompt.
int compute_stop(em_pass * p, ggml_cgraph * graph, size_t i, mode how, int & turn) {
    const std::vector<em_stop> & stops = p->reading.stops;
    em_block * const             b     = stops[i].block;
    const auto many = [&](size_t n) { return n < stops.size() && stops[n].block && stops[n].block->tokens >= EM_STAGE_TOKENS; };
    if (!b) {
        return em_run_unrecognised(p, graph->nodes[stops[i].first]);
    }
    em_force_ids(p, *b);
    if (how == mode::PROMPT && many(i)) {
        return em_prompt_layer(p, *b, many(i + 1) ? stops[i + 1].block : nullptr, turn++);
    }
    return many(i) && !b->layer->unsupported() ? em_by_host(p, *b) : em_decode_layer(p, *b);
}

// Parts of the graph and the stops between them, in turn.
int compute_parts(em_pass * p, ggml_cgraph * graph, mode how) {
    int status = STATUS_SUCCESS, at = 0, turn = 0;
    p->prompt.routing.clear();
    p->prompt.routing.reserve(p->reading.blocks.size());
    for (size_t i = 0; i <= p->reading.stops.size() && status == STATUS_SUCCESS; ++i) {
        const bool    last = i == p->reading.stops.size();
        const em_stop s    = last ? em_stop{graph->n_nodes, graph->n_nodes, nullptr} : p->reading.stops[i];
        status             = run_part(p, graph, at, s.first);
        at                 = s.last + 1;
        if (p->view.unreported) {
            em_report_view(p);
        }
        if (last || status != STATUS_SUCCESS) {
            break;
        }
        const int64_t began = em_now_ns();
        status              = compute_stop(p, graph, i, how, turn);
        em_cut_off(p->edits, graph->nodes[s.last]);
        p->e->count.moe_ns += em_now_ns() - began;
        status = p->e->turn.cancelled ? int(STATUS_ABORTED) : status;
    }
    if (p->view.unreported) {
        em_report_view(p);
    }
    return status;
}

int run_graph(em_pass * p, ggml_cgraph * graph) {
    em_read_graph(p, graph);
    p->view.arrival_count = 0; // of another graph
    for (const em_patch & x : p->reading.biases) {
        em_patch_in(p->edits, x.where, x.what);
    }
    std::unique_lock<std::mutex> frozen;
    const mode                   how = choose_mode(p, frozen);
    if (how == mode::PLAIN) {
        return run_part(p, graph, 0, graph->n_nodes);
    }
    if (how == mode::WHOLE) {
        return em_run_whole(p, graph, p->reading.blocks);
    }
    p->prompt.active = !p->reading.blocks.empty() && !p->e->decodes(p->reading.blocks.front().tokens);
    const int status = compute_parts(p, graph, how);
    if (how == mode::PROMPT) {
        em_end_prompt(p);
    } else if (status != STATUS_SUCCESS) {
        G.ggml_backend_synchronize(p->compute); // nothing is under way when the caller frees its memory
    }
    return status;
}
} // namespace

int em_pass_compute(em_pass * p, ggml_cgraph * graph) {
    if (!p->e->model.loaded || p->e->model.layers.empty()) {
        return G.ggml_backend_graph_compute_async(p->compute, graph);
    }
    std::lock_guard<std::mutex> compute(p->e->turn.computing);
    const em_pool_use           use(p->cpu.threads);
    em_readers_take(p->e->residence.readers, p->compute);
    if (!em_tables_make(p)) {
        return STATUS_ALLOC_FAILED;
    }
    wait_for_all(p);
    const int status = run_graph(p, graph);
    em_undo(p->edits);
    return status;
}
