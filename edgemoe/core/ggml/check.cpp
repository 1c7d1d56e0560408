// Meets ggml: fills the symbol table, and proves that the loaded ggml agrees with ggml/abi.h.

#include "errors.h"
#include "ggml/api.h"
#include "ggml/probes.h"

#include <atomic>
#include <cmath>

ggml_api G  = {};
em_ops   OP = {};

namespace {

std::atomic<bool> checked{false};

const char * const SYMBOL_NAMES[] = {
#define X(result, name, args) #name,
    EM_GGML_FUNCTIONS(X)
#undef X
};

constexpr int SYMBOL_COUNT = sizeof(SYMBOL_NAMES) / sizeof(SYMBOL_NAMES[0]);

// Op numbers below this limit are looked up. ggml's table of names ends with GLU, below the limit in every release so far.
constexpr int OP_LIMIT = 112;

bool find_ops(std::string & missing) {
    struct {
        const char * name;
        int *        value;
    } wanted[] = {
        {"NONE", &OP.none},     {"VIEW", &OP.view},   {"RESHAPE", &OP.reshape},   {"MUL_MAT_ID", &OP.mul_mat_id},
        {"ADD_ID", &OP.add_id}, {"UNARY", &OP.unary}, {"CLAMP", &OP.clamp},       {"SCALE", &OP.scale},
        {"MUL", &OP.mul},       {"ADD", &OP.add},     {"SQR", &OP.sqr},           {"CONT", &OP.cont},
        {"CUSTOM", &OP.custom}, {"GLU", &OP.glu},     {"GET_ROWS", &OP.get_rows}, {"FLASH_ATTN_EXT", &OP.flash_attn},
    };
    for (auto & w : wanted) {
        *w.value = -1;
    }
    for (int op = 0; op < OP_LIMIT; ++op) {
        const char * name = G.ggml_op_name(op);
        for (auto & w : wanted) {
            if (*w.value < 0 && strcmp(name, w.name) == 0) {
                *w.value = op;
            }
        }
        if (strcmp(name, "GLU") == 0) {
            break; // the last op: reading on would leave ggml's table
        }
    }
    for (auto & w : wanted) {
        if (*w.value < 0) {
            missing = w.name;
            return false;
        }
    }
    return true;
}

// A tensor made by ggml must read back through our declaration of it.
std::string check_tensor_layout(ggml_context * ctx) {
    const int64_t ne[4] = {32, 3, 5, 7};
    ggml_tensor * t     = G.ggml_new_tensor(ctx, TYPE_F32, 4, ne);
    G.ggml_set_name(t, "edgemoe-probe");
    if (t->type != TYPE_F32 || memcmp(t->ne, ne, sizeof(ne)) != 0) {
        return "tensor shape";
    }
    if (t->nb[0] != 4 || t->nb[1] != 128 || t->nb[2] != 384 || t->nb[3] != 1920) {
        return "tensor strides";
    }
    if (t->op != OP.none || t->src[0] || t->view_src || t->data || t->buffer || strcmp(t->name, "edgemoe-probe") != 0) {
        return "tensor fields";
    }
    return "";
}

// The CPU's device must give the same answers through our declarations as through ggml's public functions.
std::string check_cpu_device(ggml_context *) {
    ggml_backend_device * cpu = G.ggml_backend_dev_by_type(DEV_CPU);
    if (!cpu || cpu->iface.get_type(cpu) != DEV_CPU || !cpu->reg || cpu->reg->api_version != GGML_BACKEND_API ||
        strcmp(cpu->iface.get_name(cpu), G.ggml_backend_dev_name(cpu)) != 0) {
        return "the CPU device";
    }
    ggml_backend_buffer_type * buft   = G.ggml_backend_cpu_buffer_type();
    ggml_backend_buffer *      buffer = G.ggml_backend_buft_alloc_buffer(buft, 256);
    if (!buffer) {
        return "the CPU's buffer allocation";
    }
    const bool same =
        buffer->buft == buft && buffer->size >= 256 && buffer->iface.get_base(buffer) == G.ggml_backend_buffer_get_base(buffer);
    G.ggml_backend_buffer_free(buffer);
    return same ? "" : "the CPU buffer";
}

// Eight experts, three tokens, top-2: ggml-cpu must compute our graph to about the result of a plain double loop.
std::string check_probe_graph(ggml_context * ctx) {
    const int64_t        we[3] = {32, 4, 8}, xe[3] = {32, 1, 3}, ie[2] = {2, 3};
    ggml_tensor *        w   = G.ggml_new_tensor(ctx, TYPE_F32, 3, we);
    ggml_tensor *        x   = G.ggml_new_tensor(ctx, TYPE_F32, 3, xe);
    ggml_tensor *        ids = G.ggml_new_tensor(ctx, TYPE_I32, 2, ie);
    ggml_tensor *        y   = G.ggml_mul_mat_id(ctx, w, x, ids);
    std::vector<float>   wd(32 * 4 * 8), xd(32 * 3), yd(4 * 2 * 3, NAN);
    std::vector<int32_t> id = {7, 0, 3, 4, 1, 6};
    for (size_t i = 0; i < wd.size(); ++i) {
        wd[i] = float(int(i * 37 % 64) - 32) / 64.0f;
    }
    for (size_t i = 0; i < xd.size(); ++i) {
        xd[i] = float(int(i * 11 % 32) - 16) / 16.0f;
    }
    w->data = wd.data(), x->data = xd.data(), ids->data = id.data(), y->data = yd.data();
    if (y->op != OP.mul_mat_id || y->src[0] != w || y->src[1] != x || y->src[2] != ids || y->ne[0] != 4 || y->ne[1] != 2) {
        return "operation layout";
    }
    ggml_cgraph * graph = G.ggml_new_graph_custom(ctx, 8, false);
    G.ggml_build_forward_expand(graph, y);
    if (G.ggml_graph_n_nodes(graph) != 1 || !(y->flags & TENSOR_FLAG_COMPUTE) || graph->size != 8 || graph->n_nodes != 1 ||
        graph->nodes != G.ggml_graph_nodes(graph) || graph->n_leafs != 3 || graph->uid != 0 || graph->visited.size < 16 ||
        reinterpret_cast<ggml_cgraph *>(graph->nodes) != graph + 1) { // the nodes follow the graph in memory
        return "graph layout";
    }
    ggml_backend * cpu = G.ggml_backend_cpu_init();
    if (!cpu) {
        return "CPU backend";
    }
    G.ggml_backend_cpu_set_n_threads(cpu, 1);
    const int status = G.ggml_backend_graph_compute(cpu, graph);
    G.ggml_backend_free(cpu);
    for (int i = 0; i < 24 && status == STATUS_SUCCESS; ++i) {
        double sum = 0;
        for (int j = 0; j < 32; ++j) {
            sum += double(wd[(size_t(id[i / 4]) * 4 + i % 4) * 32 + j]) * xd[(i / 8) * 32 + j];
        }
        if (!(std::fabs(sum - yd[i]) < 1e-4)) {
            return "probe graph result";
        }
    }
    return status == STATUS_SUCCESS ? "" : "probe graph";
}

} // namespace

bool em_host_checked() { return checked; }

int32_t em_check(void) {
    for (int i = 0; i < SYMBOL_COUNT; ++i) {
        if (!reinterpret_cast<void **>(&G)[i]) {
            return em_fail(EM_ERROR_MISMATCH, std::string("function ") + SYMBOL_NAMES[i] + " is missing");
        }
    }
    std::string missing;
    if (!find_ops(missing)) {
        return em_fail(EM_ERROR_MISMATCH, "operation " + missing + " is missing");
    }
    // ggml keeps an object header of 32 bytes before every tensor.
    if (G.ggml_tensor_overhead() != sizeof(ggml_tensor) + 32) {
        return em_fail(EM_ERROR_MISMATCH, "tensor size " + std::to_string(G.ggml_tensor_overhead() - 32) + " instead of " +
                                              std::to_string(sizeof(ggml_tensor)));
    }
    ggml_context * ctx = G.ggml_init({16 * G.ggml_tensor_overhead() + 2 * G.ggml_graph_overhead_custom(8, false), nullptr, true});
    if (!ctx) {
        return em_fail(EM_ERROR_MISMATCH, "ggml has no memory for a context");
    }
    std::string difference;
    for (const auto & check :
         {check_tensor_layout, em_probe_tables, em_probe_properties, check_cpu_device, em_probe_types, check_probe_graph}) {
        difference = difference.empty() ? check(ctx) : difference;
    }
    G.ggml_free(ctx);
    if (!difference.empty()) {
        return em_fail(EM_ERROR_MISMATCH, difference + " differs");
    }
    checked = true;
    return EM_OK;
}

int32_t em_abi_version(void) { return EM_ABI_VERSION; }
int32_t em_symbol_count(void) { return SYMBOL_COUNT; }

const char * em_symbol_name(int32_t i) { return i >= 0 && i < SYMBOL_COUNT ? SYMBOL_NAMES[i] : nullptr; }

int32_t em_symbol_set(int32_t i, void * address) {
    if (i < 0 || i >= SYMBOL_COUNT) {
        return em_fail(EM_ERROR_ARGUMENT, "there is no symbol of this number");
    }
    reinterpret_cast<void **>(&G)[i] = address;
    return EM_OK;
}
