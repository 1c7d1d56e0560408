// Copies between host and device, see link.h.

#include "model/clones.h"
#include "pass/pass.h"

ggml_tensor em_some_rows(const ggml_tensor & t, int32_t from, int32_t n) {
    ggml_tensor r = em_leaf(t);
    r.ne[1]       = n;
    r.nb[2] = r.nb[3] = r.nb[1] * size_t(n);
    r.data            = static_cast<char *>(t.data) + size_t(from) * t.nb[1];
    return r;
}

char * em_area_of(em_pass * p, em_layer_region & region, size_t each, const em_layer_t & layer) {
    const size_t layers = p->e->model.layers.size();
    if (each > region.stride || region.stride * layers > region.size) {
        G.ggml_backend_synchronize(p->compute);
        region.stride = std::max(region.stride, each);
        if (!region.ensure(region.stride * layers)) {
            return nullptr;
        }
    }
    return region.base + region.stride * size_t(layer.index);
}

void em_before_sending(em_pass * p) {
    if (p->events && !p->e->device.traits.sends_in_order) {
        G.ggml_backend_event_record(p->sync.ready, p->compute);
        G.ggml_backend_event_wait(p->compute, p->sync.ready);
    }
}

void em_force_ids(em_pass * p, const em_block & b) {
    em_engine * e = p->e;
    if (e->forced.tokens == 0 || b.k != e->forced.top_k) {
        return;
    }
    ggml_tensor ids    = *b.ids;
    char *      memory = em_area_of(p, p->memory.forced_ids, em_align(G.ggml_nbytes(b.ids), EM_PASS_ALIGN), *b.layer);
    if (!memory) {
        return;
    }
    ids.data = memory;
    em_force_routing(e->forced, b.layer->index, &ids);
    em_before_sending(p);
    for (int64_t t = 0; t < b.tokens; ++t) {
        const size_t at = size_t(t) * ids.nb[1];
        G.ggml_backend_tensor_set_async(p->compute, b.ids, memory + at, at, size_t(b.k) * 4);
    }
}

void em_send_run(em_pass * p, const em_window & w, const ggml_tensor * from, ggml_tensor * to, size_t each,
                 const em_stage_run & run) {
    const char * source = static_cast<const char *>(from->data) + size_t(run.from) * each;
    const char * end    = source + size_t(run.n) * each;
    size_t       offset = size_t(run.place) * each;
    auto         piece  = [&](const char * until) {
        if (until > source) {
            G.ggml_backend_tensor_set_async(p->e->device.stream, to, source, offset, size_t(until - source));
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
    ggml_backend * stream  = p->e->device.stream;
    const bool     reports = p->e->device.traits.reports_failed_copies;
    em_event_record(p->sync.filled[part], stream);
    if (!p->events || reports) {
        G.ggml_backend_synchronize(stream);
    }
    return !reports || !em_device_failed(stream);
}

em_put_rows::em_put_rows(int64_t width, int64_t height, int64_t n) {
    const int64_t ne[3][2] = {{width, height}, {width, n}, {n, 1}};
    all                    = G.ggml_new_tensor(ctx, TYPE_F32, 2, ne[0]);
    rows                   = G.ggml_new_tensor(ctx, TYPE_F32, 2, ne[1]);
    numbers                = G.ggml_new_tensor(ctx, TYPE_I32, 2, ne[2]);
    put                    = G.ggml_set_rows(ctx, all, rows, numbers);
    graph                  = G.ggml_new_graph_custom(ctx, 8, false);
    G.ggml_build_forward_expand(graph, put);
}

// Copies rows and their numbers to the scratch memory where the view's inputs lay. From there the device puts the rows in place.
static int put_rows(em_pass * p, ggml_tensor * out, const char * rows, const char * numbers, size_t n, char * scratch) {
    const size_t  row  = size_t(out->ne[0]) * 4;
    auto          kept = std::make_unique<em_put_rows>(out->ne[0], out->ne[1] * out->ne[2], int64_t(n));
    em_put_rows & r    = *kept;
    r.rows->data = scratch, r.rows->buffer = p->memory.scratch.buffer;
    r.numbers->data = scratch + n * row, r.numbers->buffer = p->memory.scratch.buffer;
    r.put->data = r.all->data = out->data;
    r.put->buffer = r.all->buffer = em_buffer_of(out);
    em_before_sending(p);
    G.ggml_backend_tensor_set_async(p->compute, r.rows, rows, 0, n * row);
    G.ggml_backend_tensor_set_async(p->compute, r.numbers, numbers, 0, n * 4);
    const int status = G.ggml_backend_graph_compute_async(p->compute, r.graph);
    if (!p->e->device.traits.keeps_nothing) {
        p->memory.put.push_back(std::move(kept));
    }
    return status;
}

int em_send_rows(em_pass * p, const em_block & b) {
    ggml_tensor * out  = b.down();
    char *        rows = static_cast<char *>(p->view.block.down()->data);
    const size_t  row = size_t(out->ne[0]) * 4, n = p->misses.cold.size(), ids = em_ids_bytes(b);
    const size_t  most = p->tables.puts_rows && p->memory.scratch.size > ids ? (p->memory.scratch.size - ids) / (row + 4) : 0;
    std::vector<int32_t> number;
    for (const em_pair & c : p->misses.cold) {
        number.push_back(int32_t(c.token * b.k + c.k)); // rows of a multiplication follow each other in memory
    }
    std::sort(number.begin(), number.end());
    if (n < EM_MANY_COPIES || most == 0) {
        em_before_sending(p);
        for (size_t i = 0; i < n;) {
            const size_t from = size_t(number[i]) * row;
            size_t       to   = from + row;
            for (++i; i < n && size_t(number[i]) * row == to; ++i) {
                to += row;
            }
            G.ggml_backend_tensor_set_async(p->compute, out, rows + from, from, to - from);
        }
        return STATUS_SUCCESS;
    }
    for (size_t i = 0; i < n; ++i) {
        memmove(rows + i * row, rows + size_t(number[i]) * row, row);
    }
    char * numbers = rows + n * row; // may overwrite the view's inputs, which are not read any more
    memcpy(numbers, number.data(), n * 4);
    int status = STATUS_SUCCESS;
    for (size_t i = 0; i < n && status == STATUS_SUCCESS; i += most) {
        status = put_rows(p, out, rows + i * row, numbers + i * 4, std::min(most, n - i), p->memory.scratch.base + ids);
    }
    return status;
}
