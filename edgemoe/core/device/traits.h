#pragma once

struct ggml_backend_device;

// What ggml's interface does not tell of a device.
struct em_device_traits {
    // A stream sends in the order of its computations. Otherwise it may send beside them, and only events make it wait.
    bool sends_in_order = false;
    // A stream frees its commands when they have run, and an event takes no more memory however often it is recorded.
    // Otherwise somebody must wait for the stream and the event now and then.
    bool keeps_nothing = false;
    // graph_optimize leaves the nodes where they are: it only tells llama.cpp which tensors a fusion needs for longer.
    bool optimizes_in_place = false;
};

em_device_traits em_traits_of(ggml_backend_device * device);
em_device_traits em_traits_of_registry(const char * name); // a registry of ggml's
