#pragma once

struct ggml_backend_device;

// What ggml's interface does not tell of a device.
struct em_device_traits {
    // A stream sends in the order of its computations. Otherwise it may send beside them, and only events make it wait.
    bool sends_in_order = false;
    // A stream frees what it has run, and an event takes no more memory however often it is recorded. Otherwise somebody must wait
    // for them now and then.
    bool keeps_nothing = false;
    // graph_optimize leaves the nodes where they are: it tells llama.cpp which tensors to keep for longer, for the sake of fusions.
    bool optimizes_in_place = false;
};

em_device_traits em_traits_of(ggml_backend_device * device);
em_device_traits em_traits_of_registry(const char * name); // a registry of ggml's
