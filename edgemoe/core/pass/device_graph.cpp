// A block's nodes once more, over memory of the device. See device_graph.h.

#include "model/clones.h"
#include "pass/pass.h"

namespace {
struct builder {
    em_pass *             p;
    em_device_graph &     g;
    const em_block &      b;
    const em_graph_kind & kind;
    size_t                at; // of the next node in scratch memory
    em_clones             clones = {};

    ggml_tensor * make(const ggml_tensor & t) {
        ggml_tensor * c = G.ggml_new_tensor(g.ctx, t.type, 4, t.ne);
        *c              = t;
        return c;
    }
    ggml_tensor * outside(const ggml_tensor * t) {
        ggml_tensor * c = make(em_leaf(*t));
        for (int i = 0; kind.to_scratch && i < p->view.arrival_count; ++i) {
            if (p->view.arrivals[i].from == t && p->view.arrivals[i].scratch) {
                in_scratch(c, p->view.arrivals[i].scratch);
            }
        }
        return c;
    }
    void in_scratch(ggml_tensor * t, size_t offset) {
        t->data   = p->memory.scratch.base + offset;
        t->buffer = p->memory.scratch.buffer;
    }
    ggml_tensor * sent_places() {
        const int64_t ne[2] = {b.k, b.tokens};
        g.ids               = G.ggml_new_tensor(g.ctx, TYPE_I32, 2, ne);
        G.ggml_backend_tensor_alloc(p->memory.scratch.buffer, g.ids, p->memory.scratch.base);
        return g.ids;
    }
    ggml_tensor * places_by_table() {
        const int64_t te[3] = {1, kind.table->ne[1], b.tokens}, re[3] = {1, b.k, b.tokens}, ie[2] = {b.k, b.tokens};
        ggml_tensor * all = G.ggml_new_tensor(g.ctx, TYPE_I32, 3, te); // the same table for every token
        all->nb[2] = all->nb[3] = 0;
        all->data = kind.table->data, all->buffer = kind.table->buffer;
        ggml_tensor * rows = G.ggml_new_tensor(g.ctx, TYPE_I32, 3, re);
        rows->op = OP.get_rows, rows->src[0] = all, rows->src[1] = outside(b.ids);
        G.ggml_backend_tensor_alloc(p->memory.scratch.buffer, rows, p->memory.scratch.base);
        ggml_tensor * flat = G.ggml_new_tensor(g.ctx, TYPE_I32, 2, ie);
        flat->op = OP.reshape, flat->src[0] = rows, flat->view_src = rows;
        flat->data = rows->data, flat->buffer = rows->buffer;
        return flat;
    }
    void nodes() {
        clones.bind(*b.layer, kind.places->weight, kind.places->bias);
        clones.add(b.ids, kind.table ? places_by_table() : sent_places());
        for (int i = 0; i < b.count; ++i) {
            ggml_tensor * c = clones.connect(b.node[i], make(*b.node[i]), [&](const ggml_tensor * s) { return outside(s); });
            if (c->view_src) {
                ggml_tensor * source = clones.find(c->view_src);
                c->view_src          = source ? source : clones.add(c->view_src, outside(c->view_src));
                c->data              = kind.to_scratch ? static_cast<char *>(c->view_src->data) + c->view_offs : c->data;
                c->buffer            = c->view_src->buffer;
            } else if (kind.to_scratch) { // the block's own memory holds the rows of other pairs
                in_scratch(c, at);
                at += em_align(G.ggml_nbytes(c), EM_PASS_ALIGN);
            }
        }
        g.down = clones.find(b.down());
    }
};

// Whether `of` holds for every tensor of a block's graph except the weights. Stops at the first tensor for which it does not
// hold.
template <typename F> bool all_sources(const em_block & b, F of) {
    for (int i = 0; i < b.count; ++i) {
        if (!of(b.node[i])) {
            return false;
        }
        for (const ggml_tensor * s : b.node[i]->src) {
            if (s && em_projection_of(*b.layer, s) < 0 && !of(s)) {
                return false;
            }
        }
    }
    return true;
}

void remember(const em_block & b, std::vector<ggml_tensor> & out) {
    out.clear();
    all_sources(b, [&](const ggml_tensor * t) {
        out.push_back(*t);
        return true;
    });
}

bool unchanged(const em_device_graph & g, const em_block & b) {
    size_t at   = 0;
    auto   same = [&](const ggml_tensor * t) { return at < g.made_of.size() && memcmp(&g.made_of[at++], t, sizeof(*t)) == 0; };
    return all_sources(b, same) && at == g.made_of.size();
}
} // namespace

size_t em_ids_bytes(const em_block & b) { return em_align(size_t(b.k * b.tokens) * 4, EM_PASS_ALIGN); }

size_t em_inputs_bytes(const em_pass * p) {
    size_t total = 0;
    for (int i = 0; i < p->view.arrival_count; ++i) {
        total += em_align(G.ggml_nbytes(p->view.arrivals[i].from), EM_PASS_ALIGN);
    }
    return total;
}

bool em_ensure_scratch(em_pass * p, const em_block & b, bool nodes) {
    size_t needed = em_ids_bytes(b) + em_inputs_bytes(p) + EM_PASS_ALIGN;
    for (int i = 0; nodes && i < b.count; ++i) {
        needed += em_align(G.ggml_nbytes(b.node[i]), EM_PASS_ALIGN);
    }
    if (needed > p->memory.scratch.size) {
        G.ggml_backend_synchronize(p->compute);
        p->memory.scratch_serial += 1;
        return p->memory.scratch.ensure(needed);
    }
    return true;
}

bool em_graph_for(em_pass * p, em_device_graph & g, const em_block & b, const em_graph_kind & kind) {
    if (!em_ensure_scratch(p, b, kind.to_scratch)) {
        return false;
    }
    if (g.ctx && g.kind == kind && g.serial == kind.places->serial && g.memory == p->memory.scratch_serial && unchanged(g, b)) {
        return b.layer->support == em_support::FULL;
    }
    constexpr size_t nodes = 64;
    g.ctx                  = nullptr;
    g.arena.resize(G.ggml_tensor_overhead() * EM_BLOCK_NODES * 4 + 2 * G.ggml_graph_overhead_custom(nodes, false) + 1024);
    g.ctx = G.ggml_init({g.arena.size(), g.arena.data(), true});
    builder{p, g, b, kind, em_ids_bytes(b) + em_inputs_bytes(p)}.nodes();
    for (int part = 0; part < EM_PARTS; ++part) {
        g.part[part] = part == EM_FIRST || kind.parted ? G.ggml_new_graph_custom(g.ctx, nodes, false) : nullptr;
        if (g.part[part]) {
            g.part[part]->uid = ++p->graphs.uid;
        }
    }
    G.ggml_build_forward_expand(g.part[EM_FIRST], kind.parted ? g.down->src[1] : g.down);
    if (kind.parted) {
        G.ggml_graph_add_node(g.part[EM_SECOND], g.down);
    }
    g.kind = kind, g.serial = kind.places->serial, g.memory = p->memory.scratch_serial;
    remember(b, g.made_of);
    return em_device_supports(p->e->device.handle, *b.layer, {g.part[EM_FIRST], g.part[EM_SECOND]});
}
