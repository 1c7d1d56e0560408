#include "memory/pages.h"

#include <cstdio>

#if defined(_WIN32)

void * em_pages_reserve(std::size_t) { return nullptr; }
void   em_pages_release(void *, std::size_t) {}
void   em_pages_empty(char *, std::size_t) {}
void   em_pages_move(char *, char *, std::size_t) {}
bool   em_pages_movable(std::size_t) { return false; }

#else

#    include <sys/mman.h>

void * em_pages_reserve(std::size_t bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#    if defined(MAP_NORESERVE)
    flags |= MAP_NORESERVE;
#    endif
    void * p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (p == MAP_FAILED) {
        return nullptr;
    }
#    if defined(MADV_NOHUGEPAGE)
    madvise(p, bytes, MADV_NOHUGEPAGE); // a huge page would reach into the places of others
#    endif
    return p;
}

void em_pages_release(void * range, std::size_t bytes) { munmap(range, bytes); }

void em_pages_empty(char * from, std::size_t bytes) {
#    if defined(__linux__)
    madvise(from, bytes, MADV_DONTNEED);
#    else
    mmap(from, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
#    endif
}

void em_pages_move(char * from, char * to, std::size_t bytes) {
#    if defined(MREMAP_DONTUNMAP)
    if (mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, to) == to) {
        return;
    }
#    endif
    em_pages_empty(from, bytes);
}

bool em_pages_movable(std::size_t pieces) {
#    if defined(MREMAP_DONTUNMAP)
    constexpr double SHARE = 0.75; // of the limit; the rest is for others
    std::size_t      most  = 0;
    if (FILE * file = fopen("/proc/sys/vm/max_map_count", "r")) {
        most = fscanf(file, "%zu", &most) == 1 ? most : 0;
        fclose(file);
    }
    return double(pieces) <= SHARE * double(most);
#    else
    return false;
#    endif
}

#endif
