#pragma once

// The part of ggml's binary interface that the core touches, declared here so that the core builds without ggml's headers.
//
// Nothing below is trusted. Before any use, ggml/check.cpp and ggml/probes.cpp compare sizes, field positions, table entries, op
// names and types with the loaded ggml, and run a probe graph. Layouts are those of ggml 0.13.1 to 0.25.3, backend API version 2.
// The third argument of graph_optimize came with 0.25.3. Older versions neither pass nor read it.

#include <cstddef>
#include <cstdint>

constexpr int GGML_BACKEND_API = 2;
constexpr int GGML_DIMS        = 4;
constexpr int GGML_SOURCES     = 10;

enum ggml_status_t : int { STATUS_ALLOC_FAILED = -2, STATUS_FAILED = -1, STATUS_SUCCESS = 0, STATUS_ABORTED = 1 };
enum ggml_dev_type_t : int { DEV_CPU = 0, DEV_GPU = 1, DEV_IGPU = 2, DEV_ACCEL = 3 };
enum ggml_usage_t : int { USAGE_ANY = 0, USAGE_WEIGHTS = 1, USAGE_COMPUTE = 2 };

constexpr int TYPE_F32 = 0, TYPE_F16 = 1, TYPE_BF16 = 30;
constexpr int TYPE_Q4_0 = 2, TYPE_Q5_0 = 6, TYPE_Q8_0 = 8, TYPE_Q2_K = 10, TYPE_Q3_K = 11, TYPE_Q4_K = 12, TYPE_Q5_K = 13,
              TYPE_Q6_K = 14, TYPE_Q8_K = 15, TYPE_IQ2_XXS = 16, TYPE_IQ2_XS = 17, TYPE_IQ3_XXS = 18, TYPE_IQ1_S = 19,
              TYPE_IQ4_NL = 20, TYPE_IQ3_S = 21, TYPE_IQ2_S = 22, TYPE_IQ4_XS = 23, TYPE_IQ1_M = 29, TYPE_MXFP4 = 39;
constexpr int TYPE_I32 = 26;

constexpr int32_t TENSOR_FLAG_COMPUTE = 16;

struct ggml_context;
struct ggml_tensor;
struct ggml_backend;
struct ggml_backend_buffer;
struct ggml_backend_buffer_type;
struct ggml_backend_device;
struct ggml_backend_reg;
struct ggml_backend_event;
struct ggml_backend_graph_optimize_params;
struct ggml_threadpool;

struct ggml_tensor {
    int                   type;
    ggml_backend_buffer * buffer;
    int64_t               ne[GGML_DIMS];
    size_t                nb[GGML_DIMS];
    int                   op;
    int32_t               op_params[16];
    int32_t               flags;
    ggml_tensor *         src[GGML_SOURCES];
    ggml_tensor *         view_src;
    size_t                view_offs;
    void *                data;
    char                  name[64];
    void *                extra;
    char                  padding[8];
};

struct ggml_hash_set {
    size_t         size;
    uint32_t *     used;
    ggml_tensor ** keys;
};

struct ggml_cgraph {
    int           size, n_nodes, n_leafs;
    ggml_tensor **nodes, **grads, **grad_accs, **leafs;
    int32_t *     use_counts; // uses of each tensor, by its index in the hash set
    ggml_hash_set visited;
    int           order;
    uint64_t      uid; // graphs with the same number are equal; 0: the graph has no number
};

struct ggml_init_params {
    size_t mem_size;
    void * mem_buffer;
    bool   no_alloc;
};

struct ggml_backend_dev_caps {
    bool async;
    bool host_buffer;
    bool buffer_from_host_ptr;
    bool events;
    bool mmap_support;
};

struct ggml_backend_dev_props {
    const char *          name;
    const char *          description;
    size_t                memory_free;
    size_t                memory_total;
    int                   type;
    const char *          device_id;
    ggml_backend_dev_caps caps;
};

struct ggml_backend_buffer_type_i {
    const char * (*get_name)(ggml_backend_buffer_type *);
    ggml_backend_buffer * (*alloc_buffer)(ggml_backend_buffer_type *, size_t);
    size_t (*get_alignment)(ggml_backend_buffer_type *);
    size_t (*get_max_size)(ggml_backend_buffer_type *);
    size_t (*get_alloc_size)(ggml_backend_buffer_type *, const ggml_tensor *);
    bool (*is_host)(ggml_backend_buffer_type *);
};

struct ggml_backend_buffer_type {
    ggml_backend_buffer_type_i iface;
    ggml_backend_device *      device;
    void *                     context;
};

struct ggml_backend_buffer_i {
    void (*free_buffer)(ggml_backend_buffer *);
    void * (*get_base)(ggml_backend_buffer *);
    int (*init_tensor)(ggml_backend_buffer *, ggml_tensor *);
    void (*memset_tensor)(ggml_backend_buffer *, ggml_tensor *, uint8_t, size_t, size_t);
    void (*set_tensor)(ggml_backend_buffer *, ggml_tensor *, const void *, size_t, size_t);
    void (*get_tensor)(ggml_backend_buffer *, const ggml_tensor *, void *, size_t, size_t);
    void (*set_tensor_2d)(ggml_backend_buffer *, ggml_tensor *, const void *, size_t, size_t, size_t, size_t, size_t);
    void (*get_tensor_2d)(ggml_backend_buffer *, const ggml_tensor *, void *, size_t, size_t, size_t, size_t, size_t);
    bool (*cpy_tensor)(ggml_backend_buffer *, const ggml_tensor *, ggml_tensor *);
    void (*clear)(ggml_backend_buffer *, uint8_t);
    void (*reset)(ggml_backend_buffer *);
};

struct ggml_backend_buffer {
    ggml_backend_buffer_i      iface;
    ggml_backend_buffer_type * buft;
    void *                     context;
    size_t                     size;
    int                        usage;
};

struct ggml_backend_i {
    const char * (*get_name)(ggml_backend *);
    void (*free)(ggml_backend *);
    void (*set_tensor_async)(ggml_backend *, ggml_tensor *, const void *, size_t, size_t);
    void (*get_tensor_async)(ggml_backend *, const ggml_tensor *, void *, size_t, size_t);
    void (*set_tensor_2d_async)(ggml_backend *, ggml_tensor *, const void *, size_t, size_t, size_t, size_t, size_t);
    void (*get_tensor_2d_async)(ggml_backend *, const ggml_tensor *, void *, size_t, size_t, size_t, size_t, size_t);
    bool (*cpy_tensor_async)(ggml_backend *, ggml_backend *, const ggml_tensor *, ggml_tensor *);
    void (*synchronize)(ggml_backend *);
    void * (*graph_plan_create)(ggml_backend *, const ggml_cgraph *);
    void (*graph_plan_free)(ggml_backend *, void *);
    void (*graph_plan_update)(ggml_backend *, void *, const ggml_cgraph *);
    int (*graph_plan_compute)(ggml_backend *, void *);
    int (*graph_compute)(ggml_backend *, ggml_cgraph *);
    void (*event_record)(ggml_backend *, ggml_backend_event *);
    void (*event_wait)(ggml_backend *, ggml_backend_event *);
    void (*graph_optimize)(ggml_backend *, ggml_cgraph *, ggml_backend_graph_optimize_params *);
};

struct ggml_backend {
    const uint8_t *       guid;
    ggml_backend_i        iface;
    ggml_backend_device * device;
    void *                context;
};

struct ggml_backend_device_i {
    const char * (*get_name)(ggml_backend_device *);
    const char * (*get_description)(ggml_backend_device *);
    void (*get_memory)(ggml_backend_device *, size_t *, size_t *);
    int (*get_type)(ggml_backend_device *);
    void (*get_props)(ggml_backend_device *, ggml_backend_dev_props *);
    ggml_backend * (*init_backend)(ggml_backend_device *, const char *);
    ggml_backend_buffer_type * (*get_buffer_type)(ggml_backend_device *);
    ggml_backend_buffer_type * (*get_host_buffer_type)(ggml_backend_device *);
    ggml_backend_buffer * (*buffer_from_host_ptr)(ggml_backend_device *, void *, size_t, size_t);
    bool (*supports_op)(ggml_backend_device *, const ggml_tensor *);
    bool (*supports_buft)(ggml_backend_device *, ggml_backend_buffer_type *);
    bool (*offload_op)(ggml_backend_device *, const ggml_tensor *);
    ggml_backend_event * (*event_new)(ggml_backend_device *);
    void (*event_free)(ggml_backend_device *, ggml_backend_event *);
    void (*event_synchronize)(ggml_backend_device *, ggml_backend_event *);
};

struct ggml_backend_device {
    ggml_backend_device_i iface;
    ggml_backend_reg *    reg;
    void *                context;
};

struct ggml_backend_reg_i {
    const char * (*get_name)(ggml_backend_reg *);
    size_t (*get_device_count)(ggml_backend_reg *);
    ggml_backend_device * (*get_device)(ggml_backend_reg *, size_t);
    void * (*get_proc_address)(ggml_backend_reg *, const char *);
};

struct ggml_backend_reg {
    int                api_version;
    ggml_backend_reg_i iface;
    void *             context;
};

struct ggml_backend_event {
    ggml_backend_device * device;
    void *                context;
};

struct ggml_type_traits_cpu {
    void (*from_float)(const float * x, void * y, int64_t n);
    void (*vec_dot)(int n, float * s, size_t bs, const void * x, size_t bx, const void * y, size_t by, int nrc);
    int     vec_dot_type;
    int64_t nrows;
};

typedef bool (*ggml_abort_callback)(void *);
typedef void (*ggml_custom_op_t)(ggml_tensor * dst, int ith, int nth, void * userdata);

typedef void (*ggml_abort_callback_t)(const char * message);

struct llama_batch {
    int32_t    n_tokens;
    int32_t *  token;
    float *    embd;
    int32_t *  pos;
    int32_t *  n_seq_id;
    int32_t ** seq_id;
    int8_t *   logits;
};
typedef int32_t (*llama_decode_t)(void * context, llama_batch batch);

// The first field of a plan of the CPU. The other fields are never read; they only need room.
struct ggml_cplan {
    size_t work_size;
    char   rest[120];
};

// Every ggml function that the core calls: X(result, name, arguments). All are public API.
#define EM_GGML_FUNCTIONS(X)                                                                                                      \
    X(ggml_abort_callback_t, ggml_set_abort_callback, (ggml_abort_callback_t callback))                                           \
    X(const char *, ggml_op_name, (int op))                                                                                       \
    X(size_t, ggml_row_size, (int type, int64_t ne))                                                                              \
    X(size_t, ggml_nbytes, (const ggml_tensor * t))                                                                               \
    X(size_t, ggml_tensor_overhead, ())                                                                                           \
    X(size_t, ggml_graph_overhead_custom, (size_t size, bool grads))                                                              \
    X(ggml_context *, ggml_init, (ggml_init_params params))                                                                       \
    X(void, ggml_free, (ggml_context * ctx))                                                                                      \
    X(ggml_tensor *, ggml_new_tensor, (ggml_context * ctx, int type, int n_dims, const int64_t * ne))                             \
    X(ggml_tensor *, ggml_set_rows, (ggml_context * ctx, ggml_tensor * to, ggml_tensor * rows, ggml_tensor * numbers))            \
    X(ggml_tensor *, ggml_mul_mat_id, (ggml_context * ctx, ggml_tensor * as, ggml_tensor * b, ggml_tensor * ids))                 \
    X(ggml_tensor *, ggml_custom_4d,                                                                                              \
      (ggml_context * ctx, int type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3, ggml_tensor ** args, int n_args,         \
       ggml_custom_op_t fun, int n_tasks, void * userdata))                                                                       \
    X(ggml_tensor *, ggml_set_name, (ggml_tensor * t, const char * name))                                                         \
    X(ggml_cgraph *, ggml_new_graph_custom, (ggml_context * ctx, size_t size, bool grads))                                        \
    X(void, ggml_build_forward_expand, (ggml_cgraph * graph, ggml_tensor * t))                                                    \
    X(void, ggml_graph_add_node, (ggml_cgraph * graph, ggml_tensor * t))                                                          \
    X(int, ggml_graph_n_nodes, (ggml_cgraph * graph))                                                                             \
    X(ggml_tensor *, ggml_graph_node, (ggml_cgraph * graph, int i))                                                               \
    X(ggml_tensor **, ggml_graph_nodes, (ggml_cgraph * graph))                                                                    \
    X(ggml_cplan, ggml_graph_plan, (const ggml_cgraph * graph, int n_threads, void * threadpool))                                 \
    X(ggml_backend_buffer *, ggml_backend_buft_alloc_buffer, (ggml_backend_buffer_type * buft, size_t size))                      \
    X(size_t, ggml_backend_buft_get_alignment, (ggml_backend_buffer_type * buft))                                                 \
    X(size_t, ggml_backend_buft_get_alloc_size, (ggml_backend_buffer_type * buft, const ggml_tensor * t))                         \
    X(bool, ggml_backend_buft_is_host, (ggml_backend_buffer_type * buft))                                                         \
    X(const char *, ggml_backend_buft_name, (ggml_backend_buffer_type * buft))                                                    \
    X(size_t, ggml_backend_buft_get_max_size, (ggml_backend_buffer_type * buft))                                                  \
    X(ggml_backend_device *, ggml_backend_buft_get_device, (ggml_backend_buffer_type * buft))                                     \
    X(ggml_backend_buffer *, ggml_backend_buffer_init,                                                                            \
      (ggml_backend_buffer_type * buft, ggml_backend_buffer_i iface, void * context, size_t size))                                \
    X(void, ggml_backend_buffer_free, (ggml_backend_buffer * buffer))                                                             \
    X(void *, ggml_backend_buffer_get_base, (ggml_backend_buffer * buffer))                                                       \
    X(void, ggml_backend_buffer_clear, (ggml_backend_buffer * buffer, uint8_t value))                                             \
    X(size_t, ggml_backend_buffer_get_size, (ggml_backend_buffer * buffer))                                                       \
    X(ggml_backend_buffer_type *, ggml_backend_buffer_get_type, (ggml_backend_buffer * buffer))                                   \
    X(int, ggml_backend_buffer_get_usage, (ggml_backend_buffer * buffer))                                                         \
    X(int, ggml_backend_buffer_init_tensor, (ggml_backend_buffer * buffer, ggml_tensor * t))                                      \
    X(void, ggml_backend_buffer_reset, (ggml_backend_buffer * buffer))                                                            \
    X(int, ggml_backend_tensor_alloc, (ggml_backend_buffer * buffer, ggml_tensor * t, void * addr))                               \
    X(int, ggml_backend_view_init, (ggml_tensor * t))                                                                             \
    X(void, ggml_backend_tensor_set, (ggml_tensor * t, const void * data, size_t offset, size_t size))                            \
    X(void, ggml_backend_tensor_get, (const ggml_tensor * t, void * data, size_t offset, size_t size))                            \
    X(void, ggml_backend_tensor_memset, (ggml_tensor * t, uint8_t value, size_t offset, size_t size))                             \
    X(void, ggml_backend_tensor_set_2d,                                                                                           \
      (ggml_tensor * t, const void * data, size_t offset, size_t size, size_t n, size_t stride_tensor, size_t stride_data))       \
    X(void, ggml_backend_tensor_get_2d,                                                                                           \
      (const ggml_tensor * t, void * data, size_t offset, size_t size, size_t n, size_t stride_tensor, size_t stride_data))       \
    X(void, ggml_backend_tensor_set_async,                                                                                        \
      (ggml_backend * backend, ggml_tensor * t, const void * data, size_t offset, size_t size))                                   \
    X(void, ggml_backend_tensor_get_async,                                                                                        \
      (ggml_backend * backend, const ggml_tensor * t, void * data, size_t offset, size_t size))                                   \
    X(void, ggml_backend_tensor_set_2d_async,                                                                                     \
      (ggml_backend * backend, ggml_tensor * t, const void * data, size_t offset, size_t size, size_t n, size_t stride_tensor,    \
       size_t stride_data))                                                                                                       \
    X(void, ggml_backend_tensor_get_2d_async,                                                                                     \
      (ggml_backend * backend, const ggml_tensor * t, void * data, size_t offset, size_t size, size_t n, size_t stride_tensor,    \
       size_t stride_data))                                                                                                       \
    X(void, ggml_backend_tensor_copy_async, (ggml_backend * from, ggml_backend * to, const ggml_tensor * src, ggml_tensor * dst)) \
    X(void, ggml_backend_synchronize, (ggml_backend * backend))                                                                   \
    X(ggml_backend_event *, ggml_backend_event_new, (ggml_backend_device * dev))                                                  \
    X(void, ggml_backend_event_free, (ggml_backend_event * event))                                                                \
    X(void, ggml_backend_event_record, (ggml_backend_event * event, ggml_backend * backend))                                      \
    X(void, ggml_backend_event_wait, (ggml_backend * backend, ggml_backend_event * event))                                        \
    X(void, ggml_backend_event_synchronize, (ggml_backend_event * event))                                                         \
    X(int, ggml_backend_graph_compute, (ggml_backend * backend, ggml_cgraph * graph))                                             \
    X(int, ggml_backend_graph_compute_async, (ggml_backend * backend, ggml_cgraph * graph))                                       \
    X(void *, ggml_backend_graph_plan_create, (ggml_backend * backend, ggml_cgraph * graph))                                      \
    X(void, ggml_backend_graph_plan_free, (ggml_backend * backend, void * plan))                                                  \
    X(int, ggml_backend_graph_plan_compute, (ggml_backend * backend, void * plan))                                                \
    X(const char *, ggml_backend_name, (ggml_backend * backend))                                                                  \
    X(ggml_backend_device *, ggml_backend_get_device, (ggml_backend * backend))                                                   \
    X(void, ggml_backend_free, (ggml_backend * backend))                                                                          \
    X(size_t, ggml_backend_dev_count, ())                                                                                         \
    X(ggml_backend_device *, ggml_backend_dev_get, (size_t i))                                                                    \
    X(ggml_backend_device *, ggml_backend_dev_by_type, (int type))                                                                \
    X(const char *, ggml_backend_dev_name, (ggml_backend_device * dev))                                                           \
    X(int, ggml_backend_dev_type, (ggml_backend_device * dev))                                                                    \
    X(void, ggml_backend_dev_memory, (ggml_backend_device * dev, size_t * free, size_t * total))                                  \
    X(const char *, ggml_backend_dev_description, (ggml_backend_device * dev))                                                    \
    X(void, ggml_backend_dev_get_props, (ggml_backend_device * dev, void * props))                                                \
    X(ggml_backend_buffer *, ggml_backend_dev_buffer_from_host_ptr,                                                               \
      (ggml_backend_device * dev, void * data, size_t size, size_t max_tensor_size))                                              \
    X(bool, ggml_backend_dev_supports_buft, (ggml_backend_device * dev, ggml_backend_buffer_type * buft))                         \
    X(bool, ggml_backend_dev_offload_op, (ggml_backend_device * dev, const ggml_tensor * op))                                     \
    X(ggml_backend *, ggml_backend_dev_init, (ggml_backend_device * dev, const char * params))                                    \
    X(ggml_backend_buffer_type *, ggml_backend_dev_buffer_type, (ggml_backend_device * dev))                                      \
    X(ggml_backend_buffer_type *, ggml_backend_dev_host_buffer_type, (ggml_backend_device * dev))                                 \
    X(bool, ggml_backend_dev_supports_op, (ggml_backend_device * dev, const ggml_tensor * op))                                    \
    X(ggml_backend_reg *, ggml_backend_dev_backend_reg, (ggml_backend_device * dev))                                              \
    X(void *, ggml_backend_reg_get_proc_address, (ggml_backend_reg * reg, const char * name))                                     \
    X(const char *, ggml_backend_reg_name, (ggml_backend_reg * reg))                                                              \
    X(size_t, ggml_backend_reg_dev_count, (ggml_backend_reg * reg))                                                               \
    X(ggml_backend_device *, ggml_backend_reg_dev_get, (ggml_backend_reg * reg, size_t i))                                        \
    X(const ggml_type_traits_cpu *, ggml_get_type_traits_cpu, (int type))                                                         \
    X(ggml_backend *, ggml_backend_cpu_init, ())                                                                                  \
    X(ggml_backend_buffer_type *, ggml_backend_cpu_buffer_type, ())                                                               \
    X(void, ggml_backend_cpu_set_n_threads, (ggml_backend * backend, int n))                                                      \
    X(void, ggml_backend_cpu_set_abort_callback, (ggml_backend * backend, ggml_abort_callback fn, void * data))                   \
    X(void, ggml_backend_cpu_set_threadpool, (ggml_backend * backend, ggml_threadpool * pool))                                    \
    X(void, ggml_threadpool_params_init, (void * params, int n_threads))                                                          \
    X(ggml_threadpool *, ggml_threadpool_new, (void * params))                                                                    \
    X(void, ggml_threadpool_free, (ggml_threadpool * pool))                                                                       \
    X(void, ggml_threadpool_pause, (ggml_threadpool * pool))

struct ggml_api {
#define X(result, name, args) result(*name) args;
    EM_GGML_FUNCTIONS(X)
#undef X
};

extern ggml_api G;
