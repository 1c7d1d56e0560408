// See mapping.h.

#include "ggml/mapping.h"
#include "ggml/api.h"

#include <cstdio>
#include <mutex>

#if defined(__linux__)
#    include <sys/mman.h>
#endif

namespace {
typedef void * (*lookup_t)(ggml_backend_reg *, const char *);

thread_local bool lazily = false;
lookup_t          before = nullptr;

bool yes() { return true; }

void * lookup(ggml_backend_reg * reg, const char * name) {
    if (lazily && strcmp(name, "ggml_backend_cpu_is_numa") == 0) {
        return reinterpret_cast<void *>(yes);
    }
    return before(reg, name);
}
} // namespace

void em_map_lazily(bool on) {
    static std::once_flag once;
    std::call_once(once, [] {
        ggml_backend_reg * reg      = G.ggml_backend_dev_backend_reg(G.ggml_backend_dev_by_type(DEV_CPU));
        before                      = reg->iface.get_proc_address;
        reg->iface.get_proc_address = lookup;
    });
    lazily = on;
}

bool em_maps_lazily() { return lazily; }

void em_read_in_pieces(const void * address) {
#if defined(__linux__)
    FILE *          maps = fopen("/proc/self/maps", "r");
    char            line[512];
    const uintptr_t wanted = reinterpret_cast<uintptr_t>(address);
    unsigned long   from, to;
    while (maps && fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%lx-%lx", &from, &to) == 2 && from <= wanted && wanted < to) {
            madvise(reinterpret_cast<void *>(from), to - from, MADV_NORMAL);
            break;
        }
    }
    if (maps) {
        fclose(maps);
    }
#endif
}
