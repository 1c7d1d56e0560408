// Probes of the ggml that is loaded: every table that crosses the boundary, the weight types, and the kernels for many tokens.
//
// A table is probed from outside: ggml's public functions get an object with a function of ours in each entry. Each public function
// must call the entry that ggml/abi.h names. This finds an added or moved entry before anything breaks.

#include "ggml/probes.h"

#include "ggml/api.h"

#include <array>
#include <cmath>
#include <functional>

namespace {

constexpr size_t SLOTS = 40; // entries of the probe object, more than any table has
// A plan with kernels for many tokens takes 512 KiB a thread. Without such kernels this plan takes a few hundred bytes.
constexpr size_t MANY_BYTES = 64 * 1024;

int       reached;
uintptr_t answer;

template <size_t slot> uintptr_t note() {
    reached = int(slot);
    return answer;
}

using stand_in = std::array<uintptr_t (*)(), SLOTS>;

template <size_t... slots> stand_in make_stand_in(std::index_sequence<slots...>) { return {note<slots>...}; }

struct probe {
    const char *          name;
    size_t                offset;
    std::function<void()> call;
};

// Gives the name of the first function that calls a wrong entry; empty: none does.
std::string check_entries(const std::vector<probe> & probes) {
    for (const probe & p : probes) {
        reached = -1;
        p.call();
        if (reached != int(p.offset / sizeof(void *))) {
            return p.name;
        }
    }
    return "";
}

// Whether ggml read a field behind the table at the offset that ggml/abi.h declares.
bool is_slot(const stand_in & object, size_t offset, const void * found) {
    return found == reinterpret_cast<const void *>(object[offset / sizeof(void *)]);
}

#define ENTRY(object, entry, call)                                                                               \
    probe {                                                                                                      \
        "the entry " #entry " of " #object, offsetof(object, iface) + offsetof(object##_i, entry), [&] { call; } \
    }

std::string probe_buffer_type(stand_in & object, const ggml_tensor * t) {
    auto * buft                  = reinterpret_cast<ggml_backend_buffer_type *>(&object);
    answer                       = G.ggml_nbytes(t);
    const std::string difference = check_entries({
        ENTRY(ggml_backend_buffer_type, get_name, G.ggml_backend_buft_name(buft)),
        ENTRY(ggml_backend_buffer_type, alloc_buffer, G.ggml_backend_buft_alloc_buffer(buft, 64)),
        ENTRY(ggml_backend_buffer_type, get_alignment, G.ggml_backend_buft_get_alignment(buft)),
        ENTRY(ggml_backend_buffer_type, get_max_size, G.ggml_backend_buft_get_max_size(buft)),
        ENTRY(ggml_backend_buffer_type, get_alloc_size, G.ggml_backend_buft_get_alloc_size(buft, t)),
        ENTRY(ggml_backend_buffer_type, is_host, G.ggml_backend_buft_is_host(buft)),
    });
    if (difference.empty() && !is_slot(object, offsetof(ggml_backend_buffer_type, device), G.ggml_backend_buft_get_device(buft))) {
        return "the end of ggml_backend_buffer_type";
    }
    return difference;
}

std::string probe_buffer(stand_in & object, ggml_tensor * t) {
    auto * buffer                = reinterpret_cast<ggml_backend_buffer *>(&object);
    float  data[64]              = {};
    t->buffer                    = buffer;
    t->data                      = data;
    answer                       = uintptr_t(data);
    const std::string difference = check_entries({
        ENTRY(ggml_backend_buffer, get_base, G.ggml_backend_buffer_get_base(buffer)),
        ENTRY(ggml_backend_buffer, init_tensor, G.ggml_backend_buffer_init_tensor(buffer, t)),
        ENTRY(ggml_backend_buffer, memset_tensor, G.ggml_backend_tensor_memset(t, 0, 0, 4)),
        ENTRY(ggml_backend_buffer, set_tensor, G.ggml_backend_tensor_set(t, data, 0, 4)),
        ENTRY(ggml_backend_buffer, get_tensor, G.ggml_backend_tensor_get(t, data, 0, 4)),
        ENTRY(ggml_backend_buffer, set_tensor_2d, G.ggml_backend_tensor_set_2d(t, data, 0, 4, 2, 8, 8)),
        ENTRY(ggml_backend_buffer, get_tensor_2d, G.ggml_backend_tensor_get_2d(t, data, 0, 4, 2, 8, 8)),
        ENTRY(ggml_backend_buffer, clear, G.ggml_backend_buffer_clear(buffer, 0)),
        ENTRY(ggml_backend_buffer, reset, G.ggml_backend_buffer_reset(buffer)),
    });
    t->buffer                    = nullptr;
    t->data                      = nullptr;
    if (!difference.empty()) {
        return difference;
    }
    const void * size = reinterpret_cast<const void *>(G.ggml_backend_buffer_get_size(buffer));
    int          usage;
    memcpy(&usage, reinterpret_cast<const char *>(&object) + offsetof(ggml_backend_buffer, usage), sizeof(usage));
    if (!is_slot(object, offsetof(ggml_backend_buffer, buft), G.ggml_backend_buffer_get_type(buffer)) ||
        !is_slot(object, offsetof(ggml_backend_buffer, size), size) || G.ggml_backend_buffer_get_usage(buffer) != usage) {
        return "the end of ggml_backend_buffer";
    }
    return "";
}

std::string probe_device(stand_in & object) {
    auto *                 device = reinterpret_cast<ggml_backend_device *>(&object);
    ggml_backend_event     event{device, nullptr};
    std::array<char, 1024> props{};
    size_t                 free = 0, total = 0;
    answer                       = 0;
    const std::string difference = check_entries({
        ENTRY(ggml_backend_device, get_name, G.ggml_backend_dev_name(device)),
        ENTRY(ggml_backend_device, get_description, G.ggml_backend_dev_description(device)),
        ENTRY(ggml_backend_device, get_memory, G.ggml_backend_dev_memory(device, &free, &total)),
        ENTRY(ggml_backend_device, get_type, G.ggml_backend_dev_type(device)),
        ENTRY(ggml_backend_device, get_props, G.ggml_backend_dev_get_props(device, props.data())),
        ENTRY(ggml_backend_device, init_backend, G.ggml_backend_dev_init(device, nullptr)),
        ENTRY(ggml_backend_device, get_buffer_type, G.ggml_backend_dev_buffer_type(device)),
        ENTRY(ggml_backend_device, get_host_buffer_type, G.ggml_backend_dev_host_buffer_type(device)),
        ENTRY(ggml_backend_device, buffer_from_host_ptr, G.ggml_backend_dev_buffer_from_host_ptr(device, nullptr, 0, 0)),
        ENTRY(ggml_backend_device, supports_op, G.ggml_backend_dev_supports_op(device, nullptr)),
        ENTRY(ggml_backend_device, supports_buft, G.ggml_backend_dev_supports_buft(device, nullptr)),
        ENTRY(ggml_backend_device, offload_op, G.ggml_backend_dev_offload_op(device, nullptr)),
        ENTRY(ggml_backend_device, event_new, G.ggml_backend_event_new(device)),
        ENTRY(ggml_backend_device, event_free, G.ggml_backend_event_free(&event)),
        ENTRY(ggml_backend_device, event_synchronize, G.ggml_backend_event_synchronize(&event)),
    });
    if (difference.empty() && !is_slot(object, offsetof(ggml_backend_device, reg), G.ggml_backend_dev_backend_reg(device))) {
        return "the end of ggml_backend_device";
    }
    return difference;
}

std::string probe_backend(stand_in & object, ggml_tensor * t, ggml_cgraph * graph) {
    auto *             backend  = reinterpret_cast<ggml_backend *>(&object);
    float              data[64] = {};
    ggml_backend_event event{nullptr, nullptr};
    t->data                      = data;
    answer                       = 1;
    const std::string difference = check_entries({
        ENTRY(ggml_backend, get_name, G.ggml_backend_name(backend)),
        ENTRY(ggml_backend, free, G.ggml_backend_free(backend)),
        ENTRY(ggml_backend, set_tensor_async, G.ggml_backend_tensor_set_async(backend, t, data, 0, 4)),
        ENTRY(ggml_backend, get_tensor_async, G.ggml_backend_tensor_get_async(backend, t, data, 0, 4)),
        ENTRY(ggml_backend, set_tensor_2d_async, G.ggml_backend_tensor_set_2d_async(backend, t, data, 0, 4, 2, 8, 8)),
        ENTRY(ggml_backend, get_tensor_2d_async, G.ggml_backend_tensor_get_2d_async(backend, t, data, 0, 4, 2, 8, 8)),
        ENTRY(ggml_backend, synchronize, G.ggml_backend_synchronize(backend)),
        ENTRY(ggml_backend, graph_plan_create, G.ggml_backend_graph_plan_create(backend, graph)),
        ENTRY(ggml_backend, graph_plan_free, G.ggml_backend_graph_plan_free(backend, nullptr)),
        ENTRY(ggml_backend, graph_plan_compute, G.ggml_backend_graph_plan_compute(backend, nullptr)),
        ENTRY(ggml_backend, graph_compute, G.ggml_backend_graph_compute_async(backend, graph)),
        ENTRY(ggml_backend, event_record, G.ggml_backend_event_record(&event, backend)),
        ENTRY(ggml_backend, event_wait, G.ggml_backend_event_wait(backend, &event)),
    });
    t->data                      = nullptr;
    if (difference.empty() && !is_slot(object, offsetof(ggml_backend, device), G.ggml_backend_get_device(backend))) {
        return "the end of ggml_backend";
    }
    return difference;
}

std::string probe_registry(stand_in & object) {
    auto * reg = reinterpret_cast<ggml_backend_reg *>(&object);
    answer     = 0;
    return check_entries({
        ENTRY(ggml_backend_reg, get_name, G.ggml_backend_reg_name(reg)),
        ENTRY(ggml_backend_reg, get_device_count, G.ggml_backend_reg_dev_count(reg)),
        ENTRY(ggml_backend_reg, get_device, G.ggml_backend_reg_dev_get(reg, 0)),
        ENTRY(ggml_backend_reg, get_proc_address, G.ggml_backend_reg_get_proc_address(reg, "")),
    });
}

#undef ENTRY

struct weight_type {
    int    type;
    size_t bytes; // of 256 weights
    int    dot; // the type of the activations
};

constexpr weight_type WEIGHT_TYPES[] = {
    {TYPE_F32, 1024, TYPE_F32},   {TYPE_F16, 512, TYPE_F16},     {TYPE_BF16, 512, TYPE_BF16},   {TYPE_Q4_0, 144, TYPE_Q8_0},
    {TYPE_Q5_0, 176, TYPE_Q8_0},  {TYPE_Q8_0, 272, TYPE_Q8_0},   {TYPE_Q2_K, 84, TYPE_Q8_K},    {TYPE_Q3_K, 110, TYPE_Q8_K},
    {TYPE_Q4_K, 144, TYPE_Q8_K},  {TYPE_Q5_K, 176, TYPE_Q8_K},   {TYPE_Q6_K, 210, TYPE_Q8_K},   {TYPE_IQ2_XXS, 66, TYPE_Q8_K},
    {TYPE_IQ2_XS, 74, TYPE_Q8_K}, {TYPE_IQ3_XXS, 98, TYPE_Q8_K}, {TYPE_IQ1_S, 50, TYPE_Q8_K},   {TYPE_IQ4_NL, 144, TYPE_Q8_0},
    {TYPE_IQ3_S, 110, TYPE_Q8_K}, {TYPE_IQ2_S, 82, TYPE_Q8_K},   {TYPE_IQ4_XS, 136, TYPE_Q8_K}, {TYPE_IQ1_M, 56, TYPE_Q8_K},
    {TYPE_MXFP4, 136, TYPE_Q8_0},
};

// Rounds a row to Q8_0 and multiplies it with itself. The product must be near the sum of squares.
bool functions_of_q8_work() {
    const ggml_type_traits_cpu * q8 = G.ggml_get_type_traits_cpu(TYPE_Q8_0);
    float                        x[32], dot = 0, squares = 0;
    char                         rounded[34];
    for (int i = 0; i < 32; ++i) {
        x[i] = float(i - 16) / 16;
        squares += x[i] * x[i];
    }
    q8->from_float(x, rounded, 32);
    q8->vec_dot(32, &dot, 0, rounded, 0, rounded, 0, 1);
    return std::fabs(dot - squares) < 0.02f * squares;
}

} // namespace

std::string em_probe_tables(ggml_context * ctx) {
    stand_in      object = make_stand_in(std::make_index_sequence<SLOTS>());
    const int64_t ne[1]  = {64};
    ggml_tensor * t      = G.ggml_new_tensor(ctx, TYPE_F32, 1, ne);
    ggml_cgraph * graph  = G.ggml_new_graph_custom(ctx, 8, false);
    std::string   difference;
    for (const auto & next : std::initializer_list<std::function<std::string()>>{
             [&] { return probe_buffer_type(object, t); }, [&] { return probe_buffer(object, t); },
             [&] { return probe_device(object); }, [&] { return probe_backend(object, t, graph); },
             [&] { return probe_registry(object); }}) {
        difference = difference.empty() ? next() : difference;
    }
    return difference;
}

std::string em_probe_types(ggml_context *) {
    for (const weight_type & w : WEIGHT_TYPES) {
        if (G.ggml_row_size(w.type, 256) != w.bytes) {
            return "the size of weight type " + std::to_string(w.type);
        }
        const ggml_type_traits_cpu * traits = G.ggml_get_type_traits_cpu(w.type);
        if (G.ggml_get_type_traits_cpu(w.type + 1) != traits + 1 || !traits->vec_dot || traits->vec_dot_type != w.dot ||
            traits->nrows < 1) {
            return "the table ggml_type_traits_cpu";
        }
    }
    return functions_of_q8_work() ? "" : "the functions of ggml_type_traits_cpu";
}

std::string em_probe_properties(ggml_context *) {
    ggml_backend_device *  cpu = G.ggml_backend_dev_by_type(DEV_CPU);
    std::array<char, 1024> memory{}; // ggml's struct may be longer
    G.ggml_backend_dev_get_props(cpu, memory.data());
    ggml_backend_dev_props props;
    memcpy(&props, memory.data(), sizeof(props));
    const bool same = props.name == G.ggml_backend_dev_name(cpu) && props.description == G.ggml_backend_dev_description(cpu) &&
                      props.memory_free <= props.memory_total && props.type == DEV_CPU && !props.device_id && !props.caps.async &&
                      props.caps.buffer_from_host_ptr && !props.caps.events;
    return same ? "" : "ggml_backend_dev_props";
}

bool em_probe_many(int type) {
    ggml_context * ctx = G.ggml_init({G.ggml_tensor_overhead() * 8 + G.ggml_graph_overhead_custom(8, false), nullptr, true});
    if (!ctx) {
        return false;
    }
    const int64_t we[3] = {256, 8, 1}, xe[3] = {256, 1, 8}, ie[2] = {1, 8};
    ggml_tensor * w = G.ggml_new_tensor(ctx, type, 3, we);
    ggml_tensor * y = G.ggml_mul_mat_id(ctx, w, G.ggml_new_tensor(ctx, TYPE_F32, 3, xe), G.ggml_new_tensor(ctx, TYPE_I32, 2, ie));
    ggml_cgraph * graph = G.ggml_new_graph_custom(ctx, 8, false);
    G.ggml_build_forward_expand(graph, y);
    const ggml_cplan plan = G.ggml_graph_plan(graph, 1, nullptr);
    G.ggml_free(ctx);
    return plan.work_size > MANY_BYTES;
}
