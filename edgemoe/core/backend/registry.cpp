// The registry through which ggml meets our two devices: the one that claims expert operations, and sim.

#include "backend/backend.h"
#include "device/sim.h"
#include "edgemoe.h"
#include "model/expert_buffer.h"

#include <cstring>

namespace {

// One registry, two devices: what is set for all streams of a registry arrives here for both.
bool is_sim(const ggml_backend * b) { return b->device == em_sim_device(); }

void set_n_threads(ggml_backend * b, int n) {
    if (is_sim(b)) {
        em_sim_set_threads(b, n);
    } else {
        em_accelerator_set_threads(b, n);
    }
}

void set_abort_callback(ggml_backend * b, ggml_abort_callback fn, void * data) {
    if (is_sim(b)) {
        em_sim_set_abort(b, fn, data);
    } else {
        em_accelerator_set_abort(b, fn, data);
    }
}

const char * reg_name(ggml_backend_reg *) { return "EdgeMoE"; }
size_t       reg_count(ggml_backend_reg *) { return 2; }

ggml_backend_device * reg_device(ggml_backend_reg *, size_t i) { return i == 0 ? em_accelerator() : em_sim_device(); }

void * reg_proc(ggml_backend_reg *, const char * name) {
    if (strcmp(name, "ggml_backend_set_n_threads") == 0) {
        return reinterpret_cast<void *>(set_n_threads);
    }
    if (strcmp(name, "ggml_backend_set_abort_callback") == 0) {
        return reinterpret_cast<void *>(set_abort_callback);
    }
    if (strcmp(name, "ggml_backend_register_host_buffer") == 0) { // as ggml-cuda calls it
        return reinterpret_cast<void *>(em_sim_register);
    }
    if (strcmp(name, "ggml_backend_unregister_host_buffer") == 0) {
        return reinterpret_cast<void *>(em_sim_unregister);
    }
    if (strcmp(name, "edgemoe_take_error") == 0) {
        return reinterpret_cast<void *>(em_sim_take_error);
    }
    return nullptr;
}

ggml_backend_reg * registry() {
    static ggml_backend_reg reg = [] {
        ggml_backend_reg r{};
        r.api_version            = GGML_BACKEND_API;
        r.iface.get_name         = reg_name;
        r.iface.get_device_count = reg_count;
        r.iface.get_device       = reg_device;
        r.iface.get_proc_address = reg_proc;
        return r;
    }();
    em_accelerator()->reg = &reg;
    em_sim_device()->reg  = &reg;
    em_buft()->device     = em_accelerator();
    return &reg;
}

} // namespace

void * ggml_backend_init(void) { return em_host_checked() ? registry() : nullptr; }
void * em_buffer_type(void) { return em_buft(); }
