// The registry through which ggml meets our two devices: the accelerator, which claims expert operations, and sim.

#include "backend/backend.h"
#include "device/sim.h"
#include "edgemoe.h"
#include "model/expert_buffer.h"

#include <cstring>

namespace {

// Settings for the streams of a registry arrive here for both devices.
bool is_sim(const ggml_backend * b) { return b->device == em_sim_device(); }

void set_n_threads(ggml_backend * b, int n) { (is_sim(b) ? em_sim_set_threads : em_accelerator_set_threads)(b, n); }

void set_abort_callback(ggml_backend * b, ggml_abort_callback fn, void * data) {
    (is_sim(b) ? em_sim_set_abort : em_accelerator_set_abort)(b, fn, data);
}

const char * reg_name(ggml_backend_reg *) { return "EdgeMoE"; }
size_t       reg_count(ggml_backend_reg *) { return 2; }

ggml_backend_device * reg_device(ggml_backend_reg *, size_t i) { return i == 0 ? em_accelerator() : em_sim_device(); }

void * reg_proc(ggml_backend_reg *, const char * name) {
    const struct { const char * name; void * address; } functions[] = {
        {"ggml_backend_set_n_threads", reinterpret_cast<void *>(set_n_threads)},
        {"ggml_backend_set_abort_callback", reinterpret_cast<void *>(set_abort_callback)},
        {"ggml_backend_register_host_buffer", reinterpret_cast<void *>(em_sim_register)}, // ggml-cuda's names
        {"ggml_backend_unregister_host_buffer", reinterpret_cast<void *>(em_sim_unregister)},
        {"edgemoe_take_error", reinterpret_cast<void *>(em_sim_take_error)},
    };
    for (const auto & f : functions) {
        if (strcmp(name, f.name) == 0) {
            return f.address;
        }
    }
    return nullptr;
}

ggml_backend_reg * registry() {
    static ggml_backend_reg reg = {
        GGML_BACKEND_API, /* get_name, get_device_count, get_device, get_proc_address */ {reg_name, reg_count, reg_device, reg_proc}, nullptr};
    em_accelerator()->reg = &reg;
    em_sim_device()->reg  = &reg;
    em_buft()->device     = em_accelerator();
    return &reg;
}

} // namespace

void * ggml_backend_init(void) { return em_host_checked() ? registry() : nullptr; }
void * em_buffer_type(void) { return em_buft(); }
