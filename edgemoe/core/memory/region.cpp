// See region.h.

#include "memory/region.h"

#include <new>

bool em_region::ensure(size_t bytes) {
    if (bytes <= size) {
        return true;
    }
    release();
    const size_t wanted = bytes + bytes / 4;
    if (buft) {
        buffer = G.ggml_backend_buft_alloc_buffer(buft, wanted);
        if (!buffer) {
            return false;
        }
        base = static_cast<char *>(G.ggml_backend_buffer_get_base(buffer));
    } else {
        try {
            plain.resize(wanted);
        } catch (const std::bad_alloc &) {
            return false;
        }
        base = plain.data();
    }
    size = wanted;
    return true;
}

void em_region::release() {
    if (buffer) {
        G.ggml_backend_buffer_free(buffer);
        buffer = nullptr;
    }
    std::vector<char>().swap(plain);
    base = nullptr;
    size = 0;
}
