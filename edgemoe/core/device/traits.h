#pragma once

// Properties of a device that ggml's interface does not offer. Filled once, when the device opens; fixed afterwards.

#include <cstdint>

struct ggml_backend_device;

struct em_device_traits {
    // A stream sends in the order of its computations. Otherwise the stream may send beside them, and only events make it wait.
    bool sends_in_order = false;
    // A stream frees its commands when they have run, and an event takes no more memory however often it is recorded.
    // Otherwise somebody must wait for the stream and the event now and then.
    bool keeps_nothing = false;
    // graph_optimize does not move nodes: it only reports to llama.cpp which tensors a fusion needs for longer.
    bool optimizes_in_place = false;
    // Hot pairs may be started before the CPU knows the ids.
    bool starts_early = true;
    // Kernels take the pairs of a single token one by one, also pairs of floats: two pairs may have the same place.
    bool takes_pairs_one_by_one = false;
    // The device computes on the CPU's own cores.
    bool shares_cpu = false;
    // A copy may fail, and em_device_failed reports that.
    bool reports_failed_copies = false;
    // 1: fetch every miss of a decode step; n: all but every n-th of a layer; 0: decide by measured rates.
    int64_t fetches_all_but = 0;
    // Parameter of the streams that copy and compute beside a pass.
    const char * stream_params = nullptr;
};

em_device_traits em_traits_of(ggml_backend_device * device);
em_device_traits em_traits_of_registry(const char * name); // by the name of a registry in ggml
