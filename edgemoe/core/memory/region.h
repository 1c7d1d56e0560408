#pragma once

// Memory that grows. Owner and writer: the room that has the region as a member, under the lock of that room.

#include "ggml/api.h"

#include <vector>

inline size_t em_align(size_t n, size_t a) { return (n + a - 1) / a * a; }
inline char * em_align(void * p, size_t a) { return reinterpret_cast<char *>(em_align(reinterpret_cast<size_t>(p), a)); }

// A growing piece of memory: on the host (pinned where the device offers it) or on the device.
struct em_region {
    ggml_backend_buffer_type * buft = nullptr;
    ggml_backend_buffer *      buffer = nullptr;
    std::vector<char>          plain; // when buft is null
    char *                     base = nullptr;
    size_t                     size = 0;

    em_region() = default;
    em_region(const em_region &) = delete;
    ~em_region() { release(); }

    bool ensure(size_t bytes); // contents are lost when it grows; false: no memory
    void release();
};
