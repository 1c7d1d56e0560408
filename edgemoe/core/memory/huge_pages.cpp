#include "memory/huge_pages.h"

#include <cstdlib>

#if defined(__linux__)
#    include <sys/mman.h>
#endif
#if defined(_WIN32)
#    include <malloc.h>
#endif

static constexpr std::size_t CACHE_LINE = 64;

#if defined(_WIN32)

void * em_memory_alloc(std::size_t bytes) { return _aligned_malloc(bytes, CACHE_LINE); }
void   em_memory_free(void * p) { _aligned_free(p); }

#else

void * em_memory_alloc(std::size_t bytes) {
    std::size_t alignment = CACHE_LINE;
    void *      p         = nullptr;
#    if defined(__linux__)
    constexpr std::size_t PAGE = std::size_t(1) << 21;
    alignment                  = bytes >= PAGE ? PAGE : alignment;
#    endif
    if (posix_memalign(&p, alignment, bytes) != 0) {
        return nullptr;
    }
#    if defined(__linux__)
    if (alignment == PAGE) {
        madvise(p, bytes, MADV_HUGEPAGE); // if the system refuses, small pages work too
    }
#    endif
    return p;
}

void em_memory_free(void * p) { free(p); }

#endif
