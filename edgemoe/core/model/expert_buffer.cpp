#include "model/expert_buffer.h"
#include "ggml/mapping.h"
#include "memory/huge_pages.h"

#include <cstdio>

namespace {
thread_local em_model * loading     = nullptr;
thread_local bool       accelerates = false;

struct buffer_context {
    em_model * model;
    void *     base;
    bool       owned;
};

constexpr size_t ALIGNMENT = 64; // a cache line; ggml-cpu's is 32

buffer_context * context_of(ggml_backend_buffer * b) { return static_cast<buffer_context *>(b->context); }

struct tensor_name { // projection -1: not a tensor of experts
    int  block = -1, projection = -1;
    bool bias = false;
};

tensor_name parse_name(const char * name) {
    constexpr const char * PARTS[PROJ_COUNT] = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_up_exps"};
    char                   part[20], kind[8];
    int                    block = -1, end = 0;
    if (sscanf(name, "blk.%9d.%19[^.].%7s%n", &block, part, kind, &end) != 3 || name[end]) {
        return {};
    }
    const auto at   = std::find_if(PARTS, PARTS + PROJ_COUNT, [&](const char * known) { return strcmp(known, part) == 0; });
    const bool bias = strcmp(kind, "bias") == 0;
    return at == PARTS + PROJ_COUNT || (!bias && strcmp(kind, "weight") != 0) ? tensor_name{}
                                                                              : tensor_name{block, int(at - PARTS), bias};
}

em_layer_t * layer_for(em_model & m, int block) {
    auto at = std::find_if(m.layers.begin(), m.layers.end(), [&](const auto & l) { return l->block >= block; });
    if (at == m.layers.end() || (*at)->block != block) {
        at           = m.layers.insert(at, std::make_unique<em_layer_t>());
        (*at)->block = block;
    }
    return at->get();
}

int buffer_init_tensor(ggml_backend_buffer * buffer, ggml_tensor * t) {
    em_model *        m = context_of(buffer)->model;
    const tensor_name n = parse_name(t->name);
    if (!m || m->loaded || n.projection < 0 || n.block >= m->blocks || t->view_src) {
        return STATUS_SUCCESS;
    }
    em_layer_t * layer = layer_for(*m, n.block);
    if (n.bias) {
        layer->bias[n.projection] = t;
        layer->expert_bytes += t->nb[1];
    } else {
        layer->weight[n.projection] = t;
        m->layer_of[t]              = layer;
        layer->experts              = int32_t(t->ne[2]);
        layer->expert_bytes += t->nb[2];
    }
    return STATUS_SUCCESS;
}

void buffer_free(ggml_backend_buffer * buffer) {
    buffer_context * c = context_of(buffer);
    if (c->owned) {
        em_memory_free(c->base);
    }
    delete c;
}

void * buffer_base(ggml_backend_buffer * buffer) { return context_of(buffer)->base; }

void buffer_memset(ggml_backend_buffer *, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    memset(static_cast<char *>(t->data) + offset, value, size);
}
void buffer_set(ggml_backend_buffer *, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    memcpy(static_cast<char *>(t->data) + offset, data, size);
}
void buffer_get(ggml_backend_buffer *, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    memcpy(data, static_cast<const char *>(t->data) + offset, size);
}
bool buffer_copy(ggml_backend_buffer *, const ggml_tensor * src, ggml_tensor * dst) {
    const ggml_backend_buffer * from = em_buffer_of(src);
    if (!from || !G.ggml_backend_buft_is_host(from->buft)) {
        return false;
    }
    memcpy(dst->data, src->data, G.ggml_nbytes(src));
    return true;
}
void buffer_clear(ggml_backend_buffer * buffer, uint8_t value) { memset(context_of(buffer)->base, value, buffer->size); }

// clang-format off
constexpr ggml_backend_buffer_i BUFFER = {
    /* free_buffer, get_base, init_tensor       */ buffer_free, buffer_base, buffer_init_tensor,
    /* memset_tensor, set_tensor, get_tensor    */ buffer_memset, buffer_set, buffer_get,
    /* set_tensor_2d, get_tensor_2d, cpy_tensor */ nullptr, nullptr, buffer_copy,
    /* clear, reset                             */ buffer_clear, nullptr};
// clang-format on

const char * buft_name(ggml_backend_buffer_type *) { return "EdgeMoE"; }

ggml_backend_buffer * buft_alloc(ggml_backend_buffer_type * buft, size_t size) {
    void * base = em_memory_alloc(size + 1);
    if (!base) {
        return nullptr;
    }
    return G.ggml_backend_buffer_init(buft, BUFFER, new buffer_context{loading, base, true}, size);
}

size_t buft_alignment(ggml_backend_buffer_type *) { return ALIGNMENT; }
bool   buft_is_host(ggml_backend_buffer_type *) { return true; }
} // namespace

em_model * em_loading() { return loading; }
bool       em_accelerates() { return accelerates; }

void em_set_loading(em_model * model, bool stands_in) {
    loading     = model;
    accelerates = model && !stands_in;
}

void em_set_accelerates(bool on) { accelerates = on; }

ggml_backend_buffer * em_expert_buffer_from(void * memory, size_t size) {
    if (em_maps_lazily()) {
        em_read_in_pieces(memory);
    }
    return G.ggml_backend_buffer_init(em_buft(), BUFFER, new buffer_context{loading, memory, false}, size);
}

void em_model_loaded(em_model & m) {
    for (size_t i = 0; i < m.layers.size();) {
        em_layer_t & l     = *m.layers[i];
        const bool   whole = l.weight[PROJ_DOWN] && (l.weight[PROJ_UP] || l.weight[PROJ_GATE_UP]);
        if (whole) {
            l.index = int32_t(i++);
            continue;
        }
        for (const ggml_tensor * w : l.weight) {
            m.layer_of.erase(w);
        }
        m.layers.erase(m.layers.begin() + long(i));
    }
    m.loaded = true;
}

bool em_is_ours(const ggml_tensor * t) { return t && t->buffer && t->buffer->buft == em_buft(); }

em_layer_t * em_layer_of(const ggml_tensor * weight, em_engine ** engine) {
    em_model * m = em_is_ours(weight) ? context_of(weight->buffer)->model : nullptr;
    if (!m) {
        return nullptr;
    }
    *engine       = m->engine;
    const auto it = m->layer_of.find(weight);
    return it == m->layer_of.end() ? nullptr : it->second;
}

int em_projection_of(const em_layer_t & layer, const ggml_tensor * weight) {
    const auto at = std::find(std::begin(layer.weight), std::end(layer.weight), weight);
    return at == std::end(layer.weight) ? -1 : int(at - std::begin(layer.weight));
}

ggml_backend_buffer_type * em_buft() {
    static ggml_backend_buffer_type buft = {/* get_name, alloc_buffer, get_alignment, get_max_size */ {
                                                buft_name, buft_alloc, buft_alignment, nullptr,
                                                /* get_alloc_size, is_host                             */ nullptr, buft_is_host},
                                            nullptr, nullptr};
    return &buft;
}
