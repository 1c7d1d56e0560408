// A block's nodes once more, over memory of the device: slots, the stage, or memory aside.

#include "pass/pass.h"
#include "model/expert_buffer.h"

#include <algorithm>
#include <cstring>

ggml_tensor * em_device_weight(const em_block & b, const em_places & places, const ggml_tensor * t) {
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

namespace {

struct cloner {
    em_pass *             p;
    em_device_graph &     g;
    const em_block &   b;
    const em_graph_kind & kind;
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
        c->buffer   = em_buffer_of(t);
        for (int i = 0; kind.aside && i < p->view.arrival_count; ++i) {
            if (p->view.arrivals[i].from == t && p->view.arrivals[i].aside) {
                c->data   = p->memory.aside.base + p->view.arrivals[i].aside;
                c->buffer = p->memory.aside.buffer;
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
        G.ggml_backend_tensor_alloc(p->memory.aside.buffer, g.ids, p->memory.aside.base);
        return g.ids;
    }
    ggml_tensor * places_by_table(const ggml_tensor * ids, ggml_tensor * table) {
        const int64_t te[3] = {1, table->ne[1], b.tokens}, re[3] = {1, b.k, b.tokens}, ie[2] = {b.k, b.tokens};
        ggml_tensor * all = G.ggml_new_tensor(g.ctx, TYPE_I32, 3, te); // the same table for every token
        all->nb[2] = all->nb[3] = 0;
        all->data = table->data, all->buffer = table->buffer;
        ggml_tensor * rows = G.ggml_new_tensor(g.ctx, TYPE_I32, 3, re);
        rows->op = OP.get_rows, rows->src[0] = all, rows->src[1] = leaf(ids);
        G.ggml_backend_tensor_alloc(p->memory.aside.buffer, rows, p->memory.aside.base);
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
                    ggml_tensor * w = em_device_weight(b, *kind.places, s);
                    s = w ? w : s == b.ids ? places_ids : find(s);
                }
            }
            if (c->view_src) {
                c->view_src = find(c->view_src);
                c->data     = kind.aside ? static_cast<char *>(c->view_src->data) + c->view_offs : c->data;
                c->buffer   = c->view_src->buffer;
            } else if (kind.aside) { // the block's own memory holds rows by now
                c->data   = p->memory.aside.base + at;
                c->buffer = p->memory.aside.buffer;
                at += em_align(G.ggml_nbytes(c), EM_PASS_ALIGN);
            }
        }
    }
    size_t at = 0; // of the next node's memory
};

// Whether `of` holds for every tensor that a block's graph is made from, but for weights; ends at the first for which it does not.
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

bool still(const em_device_graph & g, const em_block & b) {
    size_t at = 0;
    auto   same = [&](const ggml_tensor * t) { return at < g.made_of.size() && memcmp(&g.made_of[at++], t, sizeof(*t)) == 0; };
    return all_sources(b, same) && at == g.made_of.size();
}

} // namespace

// Memory aside: ids, inputs, nodes.
size_t em_ids_bytes(const em_block & b) { return em_align(size_t(b.k * b.tokens) * 4, EM_PASS_ALIGN); }

size_t em_inputs_bytes(const em_pass * p) {
    size_t total = 0;
    for (int i = 0; i < p->view.arrival_count; ++i) {
        total += em_align(G.ggml_nbytes(p->view.arrivals[i].from), EM_PASS_ALIGN);
    }
    return total;
}

bool em_ensure_aside(em_pass * p, const em_block & b, bool nodes) {
    size_t needed = em_ids_bytes(b) + em_inputs_bytes(p) + EM_PASS_ALIGN; // of the view, which comes first where it is needed
    for (int i = 0; nodes && i < b.count; ++i) {
        needed += em_align(G.ggml_nbytes(b.node[i]), EM_PASS_ALIGN);
    }
    if (needed > p->memory.aside.size) {
        G.ggml_backend_synchronize(p->inner);
        p->memory.aside_serial += 1;
        return p->memory.aside.ensure(needed);
    }
    return true;
}

bool em_graph_for(em_pass * p, em_device_graph & g, const em_block & b, const em_graph_kind & kind) {
    if (!em_ensure_aside(p, b, kind.aside)) {
        return false;
    }
    if (g.ctx && g.kind == kind && g.serial == kind.places->serial && g.memory == p->memory.aside_serial && still(g, b)) {
        return b.layer->device_can == 1;
    }
    g.clear();
    constexpr size_t nodes = 64;
    g.arena.resize(G.ggml_tensor_overhead() * EM_BLOCK_NODES * 4 + 2 * G.ggml_graph_overhead_custom(nodes, false) + 1024);
    g.ctx = G.ggml_init({g.arena.size(), g.arena.data(), true});
    cloner c{p, g, b, kind, {}, {}};
    c.at = em_ids_bytes(b) + em_inputs_bytes(p);
    c.nodes(kind.table ? c.places_by_table(b.ids, kind.table) : c.sent_places());
    g.down = c.find(b.down());
    g.part[EM_FIRST]  = G.ggml_new_graph_custom(g.ctx, nodes, false);
    g.part[EM_SECOND] = nullptr;
    if (kind.parted) {
        g.part[EM_SECOND] = G.ggml_new_graph_custom(g.ctx, nodes, false);
        G.ggml_graph_add_node(g.part[EM_SECOND], g.down);
        G.ggml_build_forward_expand(g.part[EM_FIRST], g.down->src[1]);
        g.part[EM_SECOND]->uid = ++p->graphs.next_uid;
    } else {
        G.ggml_build_forward_expand(g.part[EM_FIRST], g.down);
    }
    g.part[EM_FIRST]->uid = ++p->graphs.next_uid;
    g.kind = kind, g.serial = kind.places->serial, g.memory = p->memory.aside_serial;
    remember(b, g.made_of);
    if (b.layer->device_can < 0) {
        bool all = true;
        for (ggml_cgraph * part : g.part) {
            for (int i = 0; part && i < part->n_nodes; ++i) {
                all = all && (part->nodes[i]->op == OP.reshape || G.ggml_backend_dev_supports_op(p->e->device.handle, part->nodes[i]));
            }
        }
        b.layer->device_can = all;
    }
    return b.layer->device_can == 1;
}
