// Turns a failed assertion of ggml into an exception: em_trap_aborts in edgemoe.h.

#include "edgemoe.h"
#include "errors.h"
#include "ggml/api.h"

#include <cstdio>
#include <mutex>
#include <stdexcept>

namespace {

std::mutex            trap_mutex;
int                   traps           = 0;
thread_local int      traps_here      = 0;
ggml_abort_callback_t callback_before = nullptr;

// Throws a std::runtime_error of llama.cpp's C++ library, so that llama.cpp can catch it. This core may use another library.
void (*thrower)(const char *) = nullptr;

void on_abort(const char * message) {
    if (traps_here) {
        em_fail(EM_ERROR_STATE, message);
        if (thrower) {
            thrower(message);
        }
        throw std::runtime_error(message);
    }
    if (callback_before) {
        callback_before(message);
    } else {
        fprintf(stderr, "%s\n", message);
    }
}

} // namespace

void em_trap_aborts() {
    std::lock_guard<std::mutex> lock(trap_mutex);
    ++traps_here;
    if (traps++ == 0) {
        callback_before = G.ggml_set_abort_callback(on_abort);
    }
}

void em_release_aborts() {
    std::lock_guard<std::mutex> lock(trap_mutex);
    --traps_here;
    if (--traps == 0) {
        G.ggml_set_abort_callback(callback_before);
    }
}

void em_set_thrower(void * function) { thrower = reinterpret_cast<void (*)(const char *)>(function); }
