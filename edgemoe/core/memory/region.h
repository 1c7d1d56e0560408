#pragma once

// Memory that grows. Owner and writer: the room that has the region as a member, under the lock of that room.

#include "ggml/api.h"
#include "ggml/owned.h"

inline size_t em_align(size_t n, size_t a) { return (n + a - 1) / a * a; }
inline char * em_align(void * p, size_t a) { return reinterpret_cast<char *>(em_align(reinterpret_cast<size_t>(p), a)); }

struct em_region {
    ggml_backend_buffer_type * buft = nullptr; // null: plain host memory
    em_buffer                  buffer;
    char *                     base = nullptr;
    size_t                     size = 0;

    // Makes the region at least this large. If the region grows, its contents are lost. False: no memory.
    bool ensure(size_t bytes) {
        if (bytes <= size) {
            return true;
        }
        release();
        const size_t wanted = bytes + bytes / 4;
        buffer              = G.ggml_backend_buft_alloc_buffer(buft ? buft : G.ggml_backend_cpu_buffer_type(), wanted);
        if (buffer) {
            base = static_cast<char *>(G.ggml_backend_buffer_get_base(buffer));
            size = wanted;
        }
        return buffer;
    }
    void release() {
        buffer = nullptr;
        base   = nullptr;
        size   = 0;
    }
};
