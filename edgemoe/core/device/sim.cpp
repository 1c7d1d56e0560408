// sim: a GPU in software. Memory the host may not touch, a worker thread as stream, a link with bandwidth and latency, and
// faults on demand. Kernels are ggml-cpu's, so its results are exact.
//
// llama.cpp never sees it as a GPU: it gets the device that stands for it, see shown.cpp. Streams opened with the
// parameter "async" have a worker, and faults. The option `streams` says where the streams of a pass compute:
//
//   - EM_SIM_CALLER: in the calling thread. Nothing of a pass overlaps then.
//   - EM_SIM_ORDERED: in a worker each. A stream does everything in the order of the calls, and streams wait for each
//     other's events, as with CUDA.
//   - EM_SIM_TRANSFER: in a worker each, and every stream, also one of "async", sends by a queue of its own beside its
//     computations. A copy to the device waits for the events that its stream waits for and for nothing else; a
//     computation waits for all copies before it. So ggml-vulkan does where the card has a transfer queue.

#include "device/sim.h"
#include "errors.h"
#include "memory/region.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

namespace {

struct sim_state {
    std::mutex      mutex; // guards everything here
    em_sim_options  options{sizeof(em_sim_options), 0, 0, int64_t(1) << 40, 0, 0, 0, 0, 0, 1, 0, 0, 0, EM_SIM_CALLER};
    int64_t         used = 0, allocations = 0, copies = 0, computations = 0, registrations = 0, registered = 0;
    std::mt19937_64 random{1};
    std::mutex      link; // one transfer at a time
};

sim_state & state() {
    static sim_state s;
    return s;
}

// ---- faults and delays ----

bool nth(int64_t & counter, int32_t period, bool once) {
    std::lock_guard<std::mutex> lock(state().mutex);
    ++counter;
    return period > 0 && (once ? counter == period : counter % period == 0);
}

void jitter() {
    int64_t us = 0;
    {
        std::lock_guard<std::mutex> lock(state().mutex);
        if (state().options.jitter_us > 0) {
            us = int64_t(state().random() % uint64_t(state().options.jitter_us + 1));
        }
    }
    if (us > 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(us));
    }
}

// What a device does to host memory that fetches by itself.
void read_once(const char * from, size_t size) {
    constexpr size_t LINE = 64;
    [[maybe_unused]] static volatile uint64_t seen; // else the compiler leaves the reading out
    uint64_t sum = 0;
    for (size_t at = 0; at + 8 <= size; at += LINE) {
        uint64_t word;
        memcpy(&word, from + at, 8);
        sum += word;
    }
    seen = sum;
}

void transfer(void * to, const void * from, size_t size, bool to_host) {
    em_sim_options o;
    {
        std::lock_guard<std::mutex> lock(state().mutex);
        o = state().options;
    }
    double us = o.latency_us;
    if (o.bandwidth > 0) {
        us += double(size) / double(o.bandwidth) * 1e6;
    }
    if (us > 0) {
        std::lock_guard<std::mutex> lock(state().link);
        std::this_thread::sleep_for(std::chrono::duration<double, std::micro>(us));
    }
    if (o.compute_rate > 0) {
        if (to_host) {
            memset(to, 0, size);
        } else {
            read_once(static_cast<const char *>(from), size);
        }
        return;
    }
    memcpy(to, from, size);
}

// A device that only pretends takes the time to read the weights of every pair.
void pretend(const ggml_cgraph * graph, int64_t rate) {
    double bytes = 0;
    for (int i = 0; i < G.ggml_graph_n_nodes(const_cast<ggml_cgraph *>(graph)); ++i) {
        const ggml_tensor * t = G.ggml_graph_node(const_cast<ggml_cgraph *>(graph), i);
        if (t->op == OP.mul_mat_id) {
            bytes += double(t->src[0]->nb[2]) * double(t->src[2]->ne[0] * t->src[2]->ne[1]);
        }
    }
    std::this_thread::sleep_for(std::chrono::duration<double>(bytes / double(rate)));
}

// ---- memory ----

void buffer_free(ggml_backend_buffer * b) {
    {
        std::lock_guard<std::mutex> lock(state().mutex);
        state().used -= int64_t(b->size);
    }
    free(b->context);
}
void * buffer_base(ggml_backend_buffer * b) {
    return em_align(b->context, 128);
}
void buffer_memset(ggml_backend_buffer *, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
    memset(static_cast<char *>(t->data) + offset, value, size);
}
void buffer_set(ggml_backend_buffer *, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    transfer(static_cast<char *>(t->data) + offset, data, size, false);
}
void buffer_get(ggml_backend_buffer *, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    transfer(data, static_cast<const char *>(t->data) + offset, size, true);
}
void buffer_clear(ggml_backend_buffer * b, uint8_t value) { memset(buffer_base(b), value, b->size); }

const char * buft_name(ggml_backend_buffer_type *) { return "SIM"; }

ggml_backend_buffer * buft_alloc(ggml_backend_buffer_type * buft, size_t size) {
    sim_state & s = state();
    const bool fail = size > 0 && nth(s.allocations, s.options.fail_alloc, true);
    {
        std::lock_guard<std::mutex> lock(s.mutex);
        if (fail || s.used + int64_t(size) > s.options.capacity) {
            return nullptr;
        }
        s.used += int64_t(size);
    }
    void * memory = malloc(size + 256);
    if (!memory) {
        std::lock_guard<std::mutex> lock(s.mutex);
        s.used -= int64_t(size);
        return nullptr;
    }
    ggml_backend_buffer_i i{};
    i.free_buffer   = buffer_free;
    i.get_base      = buffer_base;
    i.memset_tensor = buffer_memset;
    i.set_tensor    = buffer_set;
    i.get_tensor    = buffer_get;
    i.clear         = buffer_clear;
    return G.ggml_backend_buffer_init(buft, i, memory, size);
}

size_t buft_alignment(ggml_backend_buffer_type *) { return 128; }
bool   buft_is_host(ggml_backend_buffer_type *) { return false; }

// ---- stream ----

// Tasks that a thread does one after the other.
class sim_queue {
  public:
    sim_queue() : thread([this] { run(); }) {}
    ~sim_queue() {
        {
            std::lock_guard<std::mutex> lock(mutex);
            stopping = true;
        }
        changed.notify_all();
        thread.join();
    }
    int64_t submit(std::function<void()> task) { // gives the task's number
        int64_t n;
        {
            std::lock_guard<std::mutex> lock(mutex);
            tasks.push_back(std::move(task));
            n = ++submitted;
        }
        changed.notify_all();
        return n;
    }
    void wait(int64_t n) { // until the task of this number, and all before it, are done
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&] { return done >= n; });
    }

  private:
    void run() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            changed.wait(lock, [&] { return stopping || !tasks.empty(); });
            if (tasks.empty()) {
                return; // stopping, and everything done
            }
            {
                const auto task = std::move(tasks.front());
                tasks.pop_front();
                lock.unlock();
                jitter();
                task();
            }
            lock.lock();
            ++done;
            changed.notify_all();
        }
    }
    std::mutex                        mutex;
    std::condition_variable           changed;
    std::deque<std::function<void()>> tasks;
    int64_t                           submitted = 0, done = 0;
    bool                              stopping  = false;
    std::thread                       thread; // last: it uses all of the above
};

struct sim_stream {
    ggml_backend *                     cpu    = nullptr;
    bool                               faulty = false; // errors are injected, and its user asks for them
    std::unique_ptr<sim_queue>         compute;        // null: the calling thread computes
    std::unique_ptr<sim_queue>         transfer;       // null: what is sent goes the way of the computations
    std::vector<std::function<void()>> unsent;         // for the transfer queue, which gets them together
    int64_t                            sent = 0;    // the latest submission to that queue
    int64_t                            awaited = 0; // the one that the computations wait for
    int64_t                            latest = 0;  // task of the computations
    std::atomic<bool>                  failed{false};

    // The next task of the computations. What went to the transfer queue before it is done first.
    void submit(std::function<void()> task) {
        if (!compute) {
            task();
            return;
        }
        await_sent();
        latest = compute->submit(std::move(task));
    }
    void send(std::function<void()> task) {
        if (transfer) {
            unsent.push_back(std::move(task));
        } else {
            submit(std::move(task));
        }
    }
    void send_now() {
        if (!unsent.empty()) {
            sent = transfer->submit([tasks = std::exchange(unsent, {})] {
                for (const auto & task : tasks) {
                    task();
                }
            });
        }
    }
    void await_sent() {
        if (awaited < sent) {
            awaited = sent;
            latest  = compute->submit([this, n = sent] { transfer->wait(n); });
        }
    }
    void wait() {
        send_now();
        await_sent();
        if (compute) {
            compute->wait(latest);
        }
    }
};

// A graph as it was when it was submitted: like a device's command buffer it outlives what it was made from.
class sim_graph {
  public:
    explicit sim_graph(const ggml_cgraph * from) : copies(size_t(from->n_nodes)) {
        const size_t n = copies.size();
        std::unordered_map<const ggml_tensor *, ggml_tensor *> known;
        for (size_t i = 0; i < n; ++i) {
            copies[i] = *from->nodes[i];
            known[from->nodes[i]] = &copies[i];
        }
        auto copy = [&](ggml_tensor * t) {
            auto [at, is_new] = known.insert({t, nullptr});
            if (is_new) {
                leaves.push_back(*t);
                at->second = &leaves.back();
                std::fill(std::begin(at->second->src), std::end(at->second->src), nullptr);
                at->second->view_src = nullptr;
            }
            return at->second;
        };
        arena.resize(G.ggml_graph_overhead_custom(n, false) + 256);
        ctx   = G.ggml_init({arena.size(), arena.data(), true});
        graph = G.ggml_new_graph_custom(ctx, n, false);
        for (ggml_tensor & t : copies) {
            for (ggml_tensor *& s : t.src) {
                s = s ? copy(s) : nullptr;
            }
            t.view_src = t.view_src ? copy(t.view_src) : nullptr;
            G.ggml_graph_add_node(graph, &t);
        }
    }
    ~sim_graph() { G.ggml_free(ctx); }
    sim_graph(const sim_graph &) = delete;

    ggml_cgraph * get() const { return graph; }

  private:
    std::vector<ggml_tensor> copies;
    std::deque<ggml_tensor>  leaves;
    std::vector<char>        arena;
    ggml_context *           ctx;
    ggml_cgraph *            graph;
};

sim_stream * stream_of(ggml_backend * b) { return static_cast<sim_stream *>(b->context); }

const uint8_t GUID[16] = {0xed, 0x9e, 0x30, 0xe0, 0x11, 0x22, 0x4d, 0x0e, 0x9a, 0x51, 0x70, 0x6f, 0x72, 0x74, 0x73, 0x02};

const char * backend_name(ggml_backend *) { return "SIM"; }

void backend_free(ggml_backend * b) {
    sim_stream * s = stream_of(b);
    s->wait();
    s->compute.reset(); // it may wait for the other
    s->transfer.reset();
    G.ggml_backend_free(s->cpu);
    delete s;
    delete b;
}

void backend_set_async(ggml_backend * b, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    sim_stream * s  = stream_of(b);
    char *       to = static_cast<char *>(t->data) + offset;
    s->send([=] {
        if (s->faulty && nth(state().copies, state().options.fail_copy, false)) {
            memset(to, 0xff, size); // NaN in every float format
            s->failed = true;
            return;
        }
        transfer(to, data, size, false);
    });
}

void backend_get_async(ggml_backend * b, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    const char * from = static_cast<const char *>(t->data) + offset;
    stream_of(b)->submit([=] { transfer(data, from, size, true); });
}

// On the device, in the order of the computations. Without a worker ggml waits and copies, which is the same.
bool backend_copy_async(ggml_backend * from, ggml_backend * b, const ggml_tensor * source, ggml_tensor * target) {
    if (from != b || !stream_of(b)->compute) {
        return false;
    }
    stream_of(b)->submit([data = source->data, to = target->data, n = G.ggml_nbytes(source)] { memcpy(to, data, n); });
    return true;
}

void backend_synchronize(ggml_backend * b) { stream_of(b)->wait(); }

int backend_compute(ggml_backend * b, ggml_cgraph * graph) {
    sim_stream * s = stream_of(b);
    if (!s->compute) {
        return G.ggml_backend_graph_compute(s->cpu, graph);
    }
    s->send_now();
    s->submit([s, kept = std::make_shared<sim_graph>(graph)] {
        if (s->failed) {
            return; // after an error nothing more runs on a stream until the error is taken: inputs may be garbage
        }
        const int64_t rate = s->faulty ? state().options.compute_rate : 0;
        if (rate > 0) {
            pretend(kept->get(), rate);
            return;
        }
        const bool fails = s->faulty && nth(state().computations, state().options.fail_compute, false);
        if (fails || G.ggml_backend_graph_compute(s->cpu, kept->get()) != STATUS_SUCCESS) {
            s->failed = true;
        }
    });
    return STATUS_SUCCESS;
}

void backend_optimize(ggml_backend *, ggml_cgraph *, ggml_backend_graph_optimize_params *) {}

// ---- events ----

struct sim_event {
    std::mutex              mutex;
    std::condition_variable changed;
    int64_t                 recorded = 0, reached = 0;

    void wait(int64_t n) {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&] { return reached >= n; });
    }
    int64_t latest() {
        std::lock_guard<std::mutex> lock(mutex);
        return recorded;
    }
};

sim_event * event_of(ggml_backend_event * event) { return static_cast<sim_event *>(event->context); }

ggml_backend_event * event_new(ggml_backend_device * dev) { return new ggml_backend_event{dev, new sim_event}; }

void event_free(ggml_backend_device *, ggml_backend_event * event) {
    delete event_of(event);
    delete event;
}

void event_synchronize(ggml_backend_device *, ggml_backend_event * event) { event_of(event)->wait(event_of(event)->latest()); }

void event_record(ggml_backend * b, ggml_backend_event * event) {
    sim_event * e = event_of(event);
    int64_t     n;
    stream_of(b)->send_now();
    {
        std::lock_guard<std::mutex> lock(e->mutex);
        n = ++e->recorded;
    }
    stream_of(b)->submit([=] {
        std::lock_guard<std::mutex> lock(e->mutex);
        e->reached = std::max(e->reached, n);
        e->changed.notify_all();
    });
}

void event_wait(ggml_backend * b, ggml_backend_event * event) {
    sim_event *   e = event_of(event);
    sim_stream *  s = stream_of(b);
    const int64_t n = e->latest();
    s->submit([=] { e->wait(n); });
    if (s->transfer) {
        s->unsent.insert(s->unsent.begin(), [=] { e->wait(n); }); // what is sent together waits together
    }
}

// ---- device ----

ggml_backend_device device;

const char * device_name(ggml_backend_device *) { return "sim"; }
const char * device_description(ggml_backend_device *) { return "simulated GPU"; }
int          device_type(ggml_backend_device *) { return DEV_CPU; }

void device_memory(ggml_backend_device *, size_t * free, size_t * total) {
    std::lock_guard<std::mutex> lock(state().mutex);
    *total = size_t(state().options.capacity);
    *free  = size_t(state().options.capacity - state().used);
}

void device_props(ggml_backend_device * dev, ggml_backend_dev_props * props) {
    *props = {};
    props->name        = device_name(dev);
    props->description = device_description(dev);
    props->type        = device_type(dev);
    device_memory(dev, &props->memory_free, &props->memory_total);
}

ggml_backend * device_init(ggml_backend_device * dev, const char * params) {
    ggml_backend * cpu = G.ggml_backend_cpu_init();
    if (!cpu) {
        return nullptr;
    }
    sim_stream * s = new sim_stream;
    s->cpu    = cpu;
    s->faulty = params && strcmp(params, "async") == 0;
    const int64_t streams = em_sim_options_now().streams;
    if (s->faulty || streams != EM_SIM_CALLER) {
        G.ggml_backend_cpu_set_n_threads(cpu, 1); // a team of its own would spin against ggml-cpu's
        s->compute = std::make_unique<sim_queue>();
        if (streams == EM_SIM_TRANSFER) {
            s->transfer = std::make_unique<sim_queue>();
        }
    }
    ggml_backend * b = new ggml_backend{};
    b->guid                   = GUID;
    b->iface.get_name         = backend_name;
    b->iface.free             = backend_free;
    b->iface.set_tensor_async = backend_set_async;
    b->iface.get_tensor_async = backend_get_async;
    b->iface.cpy_tensor_async = backend_copy_async;
    b->iface.synchronize      = backend_synchronize;
    b->iface.graph_compute    = backend_compute;
    b->iface.event_record     = event_record;
    b->iface.event_wait       = event_wait;
    b->iface.graph_optimize   = backend_optimize;
    b->device                 = dev;
    b->context                = s;
    return b;
}

ggml_backend_buffer_type * device_buft(ggml_backend_device *) {
    static ggml_backend_buffer_type buft = [] {
        ggml_backend_buffer_type b{};
        b.iface.get_name      = buft_name;
        b.iface.alloc_buffer  = buft_alloc;
        b.iface.get_alignment = buft_alignment;
        b.iface.is_host       = buft_is_host;
        b.device              = &device;
        return b;
    }();
    return &buft;
}

bool device_supports_op(ggml_backend_device *, const ggml_tensor * op) {
    return G.ggml_backend_dev_supports_op(G.ggml_backend_dev_by_type(DEV_CPU), op);
}

bool device_supports_buft(ggml_backend_device * dev, ggml_backend_buffer_type * buft) { return buft == device_buft(dev); }

} // namespace

// A driver that pins the caller's memory. It must be given back piece by piece.
bool em_sim_register(void *, size_t) {
    if (nth(state().registrations, state().options.fail_register, true)) {
        return false;
    }
    std::lock_guard<std::mutex> lock(state().mutex);
    state().registered += 1;
    return true;
}
void em_sim_unregister(void *) {
    std::lock_guard<std::mutex> lock(state().mutex);
    state().registered -= 1;
}

int64_t em_sim_registered() {
    std::lock_guard<std::mutex> lock(state().mutex);
    return state().registered;
}

bool em_sim_take_error(ggml_backend * b) { return b->device == &device && stream_of(b)->failed.exchange(false); }

void em_sim_set_threads(ggml_backend * b, int n) {
    if (!stream_of(b)->compute) {
        G.ggml_backend_cpu_set_n_threads(stream_of(b)->cpu, n);
    }
}

void em_sim_set_abort(ggml_backend * b, ggml_abort_callback fn, void * data) {
    if (!stream_of(b)->compute) {
        G.ggml_backend_cpu_set_abort_callback(stream_of(b)->cpu, fn, data);
    }
}

ggml_backend_device * em_sim_device() {
    [[maybe_unused]] static const bool filled = [] {
        ggml_backend_device_i & d = device.iface;
        d.get_name          = device_name;
        d.get_description   = device_description;
        d.get_memory        = device_memory;
        d.get_type          = device_type;
        d.get_props         = device_props;
        d.init_backend      = device_init;
        d.get_buffer_type   = device_buft;
        d.supports_op       = device_supports_op;
        d.supports_buft     = device_supports_buft;
        d.event_new         = event_new;
        d.event_free        = event_free;
        d.event_synchronize = event_synchronize;
        return true;
    }();
    return &device;
}

em_sim_options_read em_sim_options_now() {
    std::lock_guard<std::mutex> lock(state().mutex);
    const em_sim_options & o = state().options;
    return {o.fetch_all, o.streams, o.early != 0, o.fail_copy != 0};
}

int32_t em_sim_configure(const em_sim_options * o) {
    if (!o || o->struct_bytes != int32_t(sizeof(*o)) || o->capacity < 0 || o->streams < EM_SIM_CALLER ||
        o->streams > EM_SIM_TRANSFER) {
        return em_fail(EM_ERROR_ARGUMENT, "sim options");
    }
    std::lock_guard<std::mutex> lock(state().mutex);
    state().options = *o;
    state().allocations = state().copies = state().computations = state().registrations = 0;
    state().random.seed(o->seed);
    return EM_OK;
}
