// Streams and events of sim; see sim_parts.h.

#include "device/sim_parts.h"
#include "ggml/owned.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>
#include <unordered_map>

namespace {
// A thread that does its tasks one after the other.
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
    int64_t submit(std::function<void()> task) { // returns the task's number
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
                em_sim_jitter();
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
    bool                              stopping = false;
    std::thread                       thread; // last: the thread uses everything above
};

struct sim_stream {
    em_stream                          cpu;
    bool                               faulty = false; // the stream takes part in the injected faults; its user checks for errors
    std::vector<std::function<void()>> unsent;         // copies for the transfer queue, submitted together
    int64_t                            sent    = 0;       // latest submission to the transfer queue
    int64_t                            awaited = 0;    // submission that the computations wait for
    int64_t                            latest  = 0;     // latest task of the compute queue
    std::atomic<bool>                  failed{false};
    std::shared_ptr<sim_queue>         transfer;       // null: copies go through the compute queue
    // Null: the calling thread computes. This queue ends before `transfer`, because its tasks wait for `transfer`.
    std::shared_ptr<sim_queue> compute;

    // Adds a task to the computations. Copies that were sent before are done first.
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

// A copy of a graph at the moment of submission. Like a device's command buffer, the copy outlives the original.
class sim_graph {
  public:
    explicit sim_graph(const ggml_cgraph * from)
        : ctx(G.ggml_init({G.ggml_graph_overhead_custom(size_t(from->n_nodes), false) + 256, nullptr, true})) {
        graph = G.ggml_new_graph_custom(ctx, size_t(from->n_nodes), false);
        for (int n = 0; n < from->n_nodes; ++n) {
            const ggml_tensor * node = from->nodes[n];
            ggml_tensor *       c    = copy(node);
            std::transform(std::begin(node->src), std::end(node->src), c->src, [&](const ggml_tensor * s) { return copy(s); });
            c->view_src = copy(node->view_src);
            G.ggml_graph_add_node(graph, c);
        }
    }
    sim_graph(const sim_graph &) = delete;

    ggml_cgraph * get() const { return graph; }

  private:
    ggml_tensor * copy(const ggml_tensor * t) { // a copy without its sources; the same tensor always gives the same copy
        ggml_tensor *& known = copies[t];
        if (t && !known) {
            tensors.push_back(*t);
            known = &tensors.back();
            std::fill(std::begin(known->src), std::end(known->src), nullptr);
            known->view_src = nullptr;
        }
        return known;
    }
    std::unordered_map<const ggml_tensor *, ggml_tensor *> copies; // null -> null
    std::deque<ggml_tensor>                                tensors;
    em_arena                                               ctx;
    ggml_cgraph *                                          graph;
};

sim_stream * stream_of(ggml_backend * b) { return static_cast<sim_stream *>(b->context); }

const uint8_t GUID[16] = {0xed, 0x9e, 0x30, 0xe0, 0x11, 0x22, 0x4d, 0x0e, 0x9a, 0x51, 0x70, 0x6f, 0x72, 0x74, 0x73, 0x02};

const char * backend_name(ggml_backend *) { return "SIM"; }

void backend_free(ggml_backend * b) {
    stream_of(b)->wait();
    delete stream_of(b);
    delete b;
}

void backend_set_async(ggml_backend * b, ggml_tensor * t, const void * data, size_t offset, size_t size) {
    sim_stream * s  = stream_of(b);
    char *       to = static_cast<char *>(t->data) + offset;
    s->send([=] {
        if (s->faulty && em_sim_fails(SIM_COPY)) {
            memset(to, 0xff, size); // NaN in every float format
            s->failed = true;
            return;
        }
        em_sim_transfer(to, data, size, false);
    });
}

void backend_get_async(ggml_backend * b, const ggml_tensor * t, void * data, size_t offset, size_t size) {
    const char * from = static_cast<const char *>(t->data) + offset;
    stream_of(b)->submit([=] { em_sim_transfer(data, from, size, true); });
}

// Copies on the device, in the order of the computations. Without a worker this returns false. Then ggml waits and copies, to the
// same effect.
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
            // After an error the stream runs nothing until the error is taken, because inputs may be garbage.
            return;
        }
        const int64_t rate = s->faulty ? em_sim_options_now().compute_rate : 0;
        if (rate > 0) {
            em_sim_pretend(kept->get(), rate);
            return;
        }
        const bool fails = s->faulty && em_sim_fails(SIM_COMPUTE);
        if (fails || G.ggml_backend_graph_compute(s->cpu, kept->get()) != STATUS_SUCCESS) {
            s->failed = true;
        }
    });
    return STATUS_SUCCESS;
}

void backend_optimize(ggml_backend *, ggml_cgraph *, ggml_backend_graph_optimize_params *) {}

// The latest task before the record, and the queue of that task; null: the calling thread has done everything.
struct sim_event {
    std::mutex                 mutex;
    std::shared_ptr<sim_queue> queue;
    int64_t                    task = 0;

    std::function<void()> wait() { // gives a function that waits for the tasks before the latest record
        std::lock_guard<std::mutex> lock(mutex);
        return [queue = queue, task = task] {
            if (queue) {
                queue->wait(task);
            }
        };
    }
};

sim_event * event_of(ggml_backend_event * event) { return static_cast<sim_event *>(event->context); }

void event_record(ggml_backend * b, ggml_backend_event * event) {
    sim_stream * s = stream_of(b);
    s->send_now();
    s->await_sent();
    std::lock_guard<std::mutex> lock(event_of(event)->mutex);
    event_of(event)->queue = s->compute;
    event_of(event)->task  = s->latest;
}

void event_wait(ggml_backend * b, ggml_backend_event * event) {
    sim_stream * s    = stream_of(b);
    const auto   wait = event_of(event)->wait();
    s->submit(wait);
    if (s->transfer) {
        s->unsent.insert(s->unsent.begin(), wait); // copies that are not sent yet wait for the event, too: they go together
    }
}

// clang-format off
constexpr ggml_backend_i STREAM = {
    /* get_name, free, set_tensor_async, get_tensor_async     */ backend_name, backend_free, backend_set_async, backend_get_async,
    /* set_tensor_2d_async, get_tensor_2d_async, cpy_tensor_async, synchronize */ nullptr, nullptr, backend_copy_async, backend_synchronize,
    /* graph_plan_create, _free, _update, _compute            */ nullptr, nullptr, nullptr, nullptr,
    /* graph_compute, event_record, event_wait, graph_optimize */ backend_compute, event_record, event_wait, backend_optimize};
// clang-format on
} // namespace

ggml_backend * em_sim_stream_new(ggml_backend_device * dev, const char * params) {
    auto s = std::make_unique<sim_stream>();
    s->cpu = G.ggml_backend_cpu_init();
    if (!s->cpu) {
        return nullptr;
    }
    s->faulty             = params && strcmp(params, "async") == 0;
    const int64_t streams = em_sim_options_now().streams;
    if (s->faulty || streams != EM_SIM_CALLER) {
        G.ggml_backend_cpu_set_n_threads(s->cpu, 1); // more threads would compete with the threads of the CPU side
        s->compute = std::make_shared<sim_queue>();
        if (streams == EM_SIM_TRANSFER) {
            s->transfer = std::make_shared<sim_queue>();
        }
    }
    return new ggml_backend{GUID, STREAM, dev, s.release()};
}

ggml_backend_event * em_sim_event_new(ggml_backend_device * dev) { return new ggml_backend_event{dev, new sim_event}; }

void em_sim_event_free(ggml_backend_device *, ggml_backend_event * event) {
    delete event_of(event);
    delete event;
}

void em_sim_event_synchronize(ggml_backend_device *, ggml_backend_event * event) { event_of(event)->wait()(); }
bool em_sim_take_error(ggml_backend * b) { return b->guid == GUID && stream_of(b)->failed.exchange(false); }

void em_sim_set_threads(ggml_backend * b, int n) {
    if (!stream_of(b)->compute) { // a worker computes with one thread
        G.ggml_backend_cpu_set_n_threads(stream_of(b)->cpu, n);
    }
}

void em_sim_set_abort(ggml_backend * b, ggml_abort_callback fn, void * data) {
    if (!stream_of(b)->compute) {
        G.ggml_backend_cpu_set_abort_callback(stream_of(b)->cpu, fn, data);
    }
}
