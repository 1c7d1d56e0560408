// A layer of a few tokens: hot pairs where the activations are, cold ones on the CPU, or fetched.

#include "pass.h"

#include <algorithm>
#include <cstring>

namespace {

// Memory of a layer in a region that is written again for the next token only: the device may read it until then.
char * area_of(em_pass * p, em_region & region, size_t & stride, size_t each, const em_layer_t & layer) {
    if (each > stride || stride * p->e->layers.size() > region.size) {
        G.ggml_backend_synchronize(p->inner);
        stride = std::max(stride, each);
        if (!region.ensure(stride * p->e->layers.size())) {
            return nullptr;
        }
    }
    return region.base + stride * size_t(layer.index);
}

} // namespace

void em_before_sending(em_pass * p) {
    if (p->events && !p->traits.sends_in_order) {
        G.ggml_backend_event_record(p->ready, p->inner);
        G.ggml_backend_event_wait(p->inner, p->ready);
    }
}

void em_force_ids(em_pass * p, const em_block & b) {
    em_engine * e = p->e;
    if (e->forced_tokens == 0 || b.k != e->forced_used) {
        return;
    }
    ggml_tensor ids    = *b.ids;
    char *      memory = area_of(p, p->forced_ids, p->forced_stride, em_align(G.ggml_nbytes(b.ids), EM_PASS_ALIGN), *b.layer);
    if (!memory) {
        return;
    }
    ids.data = memory;
    em_force_routing(e, b.layer->index, &ids);
    em_before_sending(p);
    for (int64_t t = 0; t < b.tokens; ++t) {
        const size_t at = size_t(t) * ids.nb[1];
        G.ggml_backend_tensor_set_async(p->inner, b.ids, memory + at, at, size_t(b.k) * 4);
    }
}

namespace {

bool start(em_pass * p, em_layer_t & layer, const em_device_graph & g) {
    if (G.ggml_backend_graph_compute_async(p->inner, g.part[EM_FIRST]) != STATUS_SUCCESS) {
        p->e->count.device_fallbacks += 1;
        return false;
    }
    if (layer.used && p->events) {
        G.ggml_backend_event_record(layer.used, p->inner);
    }
    return true;
}

bool has_hot(const em_layer_t & layer) { return layer.resident > 0 && layer.device_can != 0; }

// Some slot that holds an expert; there is one.
int32_t any_slot(const em_layer_t & layer) {
    return *std::find_if(layer.slot_of.begin(), layer.slot_of.end(), [](int32_t slot) { return slot >= 0; });
}

// Does the device compute a single token's pairs one by one? Then it does not matter that two of them have the same place.
// Its kernels for more tokens, and those for floats, take it for granted that a token's experts differ.
bool one_by_one(const em_pass * p, const em_block & b) {
    bool quantised = true;
    for (const ggml_tensor * w : b.layer->weight) {
        quantised = quantised && (!w || (w->type != TYPE_F32 && w->type != TYPE_F16 && w->type != TYPE_BF16));
    }
    return b.tokens == 1 && (quantised || p->e->device == em_sim_device());
}

} // namespace

bool em_start_by_table(em_pass * p, const em_block & b) {
    em_layer_t & layer = *b.layer;
    const size_t l     = size_t(layer.index);
    if (!has_hot(layer) || !em_graph_for(p, *p->hot[l], b, {&layer.places, p->slot_table[l], false, false})) {
        return false;
    }
    if (p->table_version[l] != layer.version) {
        int32_t *     to  = em_host_table(p, l, false);
        const int32_t any = any_slot(layer);
        for (size_t i = 0; i < layer.slot_of.size(); ++i) {
            to[i] = layer.slot_of[i] >= 0 ? layer.slot_of[i] : any;
        }
        em_before_sending(p);
        G.ggml_backend_tensor_set_async(p->inner, p->slot_table[l], to, 0, layer.slot_of.size() * 4);
        p->table_version[l] = layer.version;
    }
    return start(p, layer, *p->hot[l]);
}

namespace {

// Starts all pairs, with slots that the host sends. A token's cold pairs go to slots that it does not use otherwise; false
// where there are too few of those. Needs the layer's mutex.
bool start_sent(em_pass * p, const em_block & b, const ggml_tensor * ids) {
    em_layer_t &   layer = *b.layer;
    const size_t   l     = size_t(layer.index);
    em_device_graph & g     = *p->hot[l];
    if (!has_hot(layer) || !em_graph_for(p, g, b, {&layer.places, nullptr, false, false})) {
        return false;
    }
    int32_t * places = reinterpret_cast<int32_t *>(area_of(p, p->places, p->places_stride, em_ids_bytes(b), layer));
    if (!places) {
        return false;
    }
    const int32_t        any = any_slot(layer);
    std::vector<uint8_t> taken;
    for (int64_t t = 0; t < b.tokens; ++t) {
        const int32_t * row = em_ids_row(ids, t);
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
    // The device rests since the view has arrived: nothing to wait for.
    G.ggml_backend_tensor_set_async(p->inner, g.ids, places, 0, size_t(b.k * b.tokens) * 4);
    return start(p, layer, g);
}

} // namespace

void em_send_run(em_pass * p, const em_window & w, const ggml_tensor * from, ggml_tensor * to, size_t each, const em_stage_run & run) {
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

bool em_sent(em_pass * p, em_stage_part part) {
    ggml_backend * stream = p->e->stream;
    const bool     tells  = p->e->device == em_sim_device() && em_sim_copies_fail();
    if (p->events) {
        G.ggml_backend_event_record(p->filled[part], stream);
    }
    if (!p->events || tells) {
        G.ggml_backend_synchronize(stream);
    }
    return !tells || !em_device_failed(stream);
}

namespace {

// Sends cold experts to the stage, whose first places they take.
bool send_fetched(em_pass * p, const em_block & b) {
    em_engine *        e     = p->e;
    const em_layer_t & layer = *b.layer;
    em_stage *         stage = em_stage_for(e, layer);
    if (!stage || stage->places.count < int32_t(p->fetched_pairs.size()) ||
        !em_graph_for(p, *p->fetched[size_t(layer.index)], b, {&stage->places, nullptr, false, true})) {
        return false;
    }
    G.ggml_backend_event_wait(e->stream, p->vacant[EM_FIRST]);
    for (size_t n = 0; n < p->fetched_pairs.size(); ++n) {
        const em_stage_run run = {p->fetched_pairs[n].expert, 1, int32_t(n)};
        for (int i = 0; i < PROJ_COUNT; ++i) {
            if (const ggml_tensor * w = layer.weight[i]) {
                em_send_run(p, layer.window[i], w, stage->places.weight[i], w->nb[2], run);
            }
            if (const ggml_tensor * bias = layer.bias[i]) {
                em_send_run(p, {}, bias, stage->places.bias[i], bias->nb[1], run);
            }
        }
    }
    if (!em_sent(p, EM_FIRST)) {
        return false;
    }
    e->count.fetched += int64_t(p->fetched_pairs.size());
    e->count.streamed_bytes += int64_t(p->fetched_pairs.size() * layer.expert_bytes);
    return true;
}

// When they are there, all pairs are computed over the stage, aside, and the rows of the fetched ones put in place.
int compute_fetched(em_pass * p, const em_block & b) {
    const em_device_graph & g      = *p->fetched[size_t(b.layer->index)];
    int32_t *            places = reinterpret_cast<int32_t *>(area_of(p, p->places, p->places_stride, em_ids_bytes(b), *b.layer));
    if (!places) {
        return STATUS_ALLOC_FAILED;
    }
    std::fill(places, places + b.k, 0);
    for (size_t n = 0; n < p->fetched_pairs.size(); ++n) {
        places[p->fetched_pairs[n].k] = int32_t(n);
    }
    G.ggml_backend_event_wait(p->inner, p->filled[EM_FIRST]);
    em_before_sending(p);
    G.ggml_backend_tensor_set_async(p->inner, g.ids, places, 0, size_t(b.k) * 4);
    const int status = G.ggml_backend_graph_compute_async(p->inner, g.part[EM_FIRST]);
    G.ggml_backend_event_record(p->vacant[EM_FIRST], p->inner);
    for (const em_pair & f : p->fetched_pairs) {
        ggml_tensor from = em_some_rows(*g.down, f.k, 1), to = em_some_rows(*b.down(), f.k, 1);
        G.ggml_backend_tensor_copy_async(p->inner, p->inner, &from, &to);
    }
    return status;
}

// Copies rows and their numbers to where the view's inputs lay; from there the device puts them in place.
int put_rows(em_pass * p, ggml_tensor * out, const char * rows, const char * numbers, size_t n, char * there) {
    const size_t row = size_t(out->ne[0]) * 4;
    ggml_context * ctx = G.ggml_init({p->rows_arena.size(), p->rows_arena.data(), true});
    const em_put_rows r(ctx, out->ne[0], out->ne[1] * out->ne[2], int64_t(n));
    r.rows->data = there, r.rows->buffer = p->aside.buffer;
    r.numbers->data = there + n * row, r.numbers->buffer = p->aside.buffer;
    r.put->data = r.all->data = out->data;
    r.put->buffer = r.all->buffer = em_buffer_of(out);
    em_before_sending(p);
    G.ggml_backend_tensor_set_async(p->inner, r.rows, rows, 0, n * row);
    G.ggml_backend_tensor_set_async(p->inner, r.numbers, numbers, 0, n * 4);
    const int status = G.ggml_backend_graph_compute_async(p->inner, r.graph);
    G.ggml_free(ctx);
    return status;
}

} // namespace

int em_send_rows(em_pass * p, const em_block & b) {
    constexpr size_t MANY = 16; // as many small copies take longer than to put the rows together
    ggml_tensor * out  = b.down();
    char *        rows = static_cast<char *>(p->view.block.down()->data);
    const size_t  row  = size_t(out->ne[0]) * 4, n = p->cold.size(), ids = em_ids_bytes(b);
    const size_t  most = p->puts_rows && p->aside.size > ids ? (p->aside.size - ids) / (row + 4) : 0;
    std::vector<int32_t> number;
    for (const em_pair & c : p->cold) {
        number.push_back(int32_t(c.token * b.k + c.k)); // a multiplication's rows lie one behind the other
    }
    std::sort(number.begin(), number.end());
    if (n < MANY || most == 0) {
        em_before_sending(p);
        for (size_t i = 0; i < n;) {
            const size_t from = size_t(number[i]) * row;
            size_t       to   = from + row;
            for (++i; i < n && size_t(number[i]) * row == to; ++i) {
                to += row;
            }
            G.ggml_backend_tensor_set_async(p->inner, out, rows + from, from, to - from);
        }
        return STATUS_SUCCESS;
    }
    for (size_t i = 0; i < n; ++i) {
        memmove(rows + i * row, rows + size_t(number[i]) * row, row);
    }
    char * numbers = rows + n * row; // at most where the view's inputs begin, which nobody reads any more
    memcpy(numbers, number.data(), n * 4);
    int status = STATUS_SUCCESS;
    for (size_t i = 0; i < n && status == STATUS_SUCCESS; i += most) {
        status = put_rows(p, out, rows + i * row, numbers + i * 4, std::min(most, n - i), p->aside.base + ids);
    }
    return status;
}

namespace {

// The CPU's pairs, while what is to be fetched is sent and started, and the routing told.
int compute_missed(em_pass * p, const em_block & b, em_cold kind) {
    em_engine * e = p->e;
    bool        sent = true;
    int         status = STATUS_SUCCESS, there = STATUS_SUCCESS;
    em_errand   errand;
    errand.what = [&] {
        sent = p->fetched_pairs.empty() || send_fetched(p, b);
        const int64_t before = e->count.schedule_ns;
        em_view_tell(p);
        errand.apart_ns = e->count.schedule_ns - before;
        if (sent && !p->fetched_pairs.empty()) {
            there = compute_fetched(p, b);
        }
    };
    if (!p->cold.empty()) {
        status = em_cold_pairs(&p->cpu, p->view.block, p->cold, kind, &errand);
    }
    errand.run();
    if (errand.thrown) {
        std::rethrow_exception(errand.thrown);
    }
    if (!sent && status == STATUS_SUCCESS) {
        status = em_cold_pairs(&p->cpu, p->view.block, p->fetched_pairs, em_cold::OF_A_TOKEN);
        p->cold.insert(p->cold.end(), p->fetched_pairs.begin(), p->fetched_pairs.end());
    }
    if (status == STATUS_SUCCESS) {
        status = em_send_rows(p, b);
    }
    return status == STATUS_SUCCESS ? there : status;
}

} // namespace

int em_few_tokens(em_pass * p, em_block & b) {
    if (!p->early && b.tokens > 1) {
        return em_by_host(p, b);
    }
    em_engine *  e     = p->e;
    em_layer_t & layer = *b.layer;
    const bool   decode = b.tokens < e->options.prefill_tokens && !p->in_prompt;
    em_force_ids(p, b);
    std::unique_lock<std::mutex> lock(layer.mutex);
    if (!em_view_start(p, b)) {
        return STATUS_ALLOC_FAILED;
    }
    em_block & v     = p->view.block;
    const bool early = p->early && one_by_one(p, b);
    bool       hot   = early && em_start_by_table(p, b);
    em_view_wait(p);
    if (!em_ids_ok(v.ids, layer.experts)) {
        return STATUS_FAILED;
    }
    if (!early) {
        hot = start_sent(p, b, v.ids);
        if (!hot && has_hot(layer)) { // fewer slots than a token has experts
            lock.unlock();
            return em_by_host_seen(p, b);
        }
    }
    p->cold.clear();
    for (int64_t t = 0; t < b.tokens; ++t) {
        const int32_t * row = em_ids_row(v.ids, t);
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
    if (b.tokens > 1) {
        em_sort_by_expert(p->cold);
    }
    p->fetched_pairs.clear();
    if (decode && early && layer.device_can == 1) {
        p->fetched_pairs = em_take_fetched(e, layer, p->cold);
    }
    return compute_missed(p, b, decode && !early ? em_cold::OF_A_TOKEN_OR_FETCHED : em_cold::OF_A_TOKEN);
}
