#pragma once

// What ggml's interface does not tell of a device. Filled once, when the device opens; nobody writes it afterwards.

#include <cstdint>

struct ggml_backend_device;

struct em_device_traits {
    // A stream sends in the order of its computations. Otherwise it may send beside them, and only events make it wait.
    bool sends_in_order = false;
    // A stream frees its commands when they have run, and an event takes no more memory however often it is recorded.
    // Otherwise somebody must wait for the stream and the event now and then.
    bool keeps_nothing = false;
    // graph_optimize leaves the nodes where they are: it only tells llama.cpp which tensors a fusion needs for longer.
    bool optimizes_in_place = false;
    // Hot pairs may be started before the CPU knows the ids.
    bool starts_early = true;
    // Kernels take the pairs of a single token one by one, also those of floats: two of them may have the same place.
    bool takes_pairs_one_by_one = false;
    // The device computes on the CPU's own cores.
    bool shares_cpu = false;
    // A copy may fail, and the stream can be asked (em_device_failed).
    bool reports_failed_copies = false;
    // 1: every miss of a decode step is fetched; n: all but every n-th of a layer; 0: as measured rates say.
    int64_t fetches_all_but = 0;
    // Parameter of the streams that copy and compute beside a pass.
    const char * stream_params = nullptr;
};

em_device_traits em_traits_of(ggml_backend_device * device);
em_device_traits em_traits_of_registry(const char * name); // a registry of ggml's
