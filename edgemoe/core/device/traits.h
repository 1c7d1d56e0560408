#pragma once

// Properties of a device that ggml's interface does not offer. Filled once, when the device opens; fixed afterwards.

#include <cstdint>

struct ggml_backend_device;

struct em_device_traits {
    // The copies and computations of a stream run in the order of the calls. Otherwise copies may overtake computations,
    // and only events make a copy wait.
    bool sends_in_order = false;
    // A stream frees its commands when they have run, and an event takes no more memory however often it is recorded. Otherwise a
    // thread must wait for the stream and the event now and then.
    bool keeps_nothing = false;
    // graph_optimize does not move nodes. It only tells llama.cpp how long a fusion needs a tensor.
    bool optimizes_in_place = false;
    // Hot pairs may be started before the CPU knows the ids.
    bool starts_early = true;
    // Kernels take the pairs of a single token one by one, also with float weights. So two pairs may have the same place.
    bool takes_pairs_one_by_one = false;
    // The device computes on the CPU's own cores.
    bool shares_cpu = false;
    // A copy may fail, and em_device_failed reports that.
    bool reports_failed_copies = false;
    // Misses of a decode step to fetch. 1: all; n > 1: all but one of every n misses of a layer; 0: measured rates decide.
    int64_t fetches_all_but = 0;
    // Parameter of the streams that copy and compute beside a pass.
    const char * stream_params = nullptr;
};

em_device_traits em_traits_of(ggml_backend_device * device);
em_device_traits em_traits_of_registry(const char * name); // by the name of a registry in ggml
