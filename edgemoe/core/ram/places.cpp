// See places.h.

#include "ram/places.h"
#include "memory/pages.h"
#include "memory/region.h"

#include <algorithm>

namespace {
constexpr int64_t PAGE = int64_t(EM_PAGE);

char * start_of(const em_ram_range & r) { return static_cast<char *>(r.memory) + r.offset % PAGE; }

struct piece {
    char * from;
    size_t bytes;
};

// The pages that belong to an expert alone. It shares its first and last page with its neighbours.
piece whole_pages(char * from, size_t bytes) {
    char * const page = em_align(from, EM_PAGE);
    const size_t left = size_t(page - from);
    return {page, bytes > left ? (bytes - left) / EM_PAGE * EM_PAGE : 0};
}
} // namespace

bool em_place_layer(em_ram_layer & here, const em_layer_t & layer, const std::vector<em_expert_place> & places) {
    for (int p = 0; p < PROJ_COUNT; ++p) {
        const ggml_tensor * w = layer.weight[p];
        if (!w) {
            continue;
        }
        const auto at = std::find_if(places.begin(), places.end(),
                                     [&](const em_expert_place & x) { return x.block == layer.block && x.projection == p; });
        if (at == places.end()) {
            return false;
        }
        em_ram_range & r = here.range[p];
        r.file = at->file, r.offset = at->offset, r.mapped = w->data, r.stride = w->nb[2];
        r.bytes  = em_align(G.ggml_nbytes(w), size_t(PAGE)) + size_t(PAGE);
        r.memory = em_pages_reserve(r.bytes);
        if (!r.memory) {
            return false;
        }
        here.expert_bytes += int64_t(w->nb[2]);
    }
    return true;
}

void em_place_use(const em_ram_layer & here, const em_layer_t & layer, bool ours) {
    for (int p = 0; p < PROJ_COUNT; ++p) {
        if (const em_ram_range & r = here.range[p]; r.memory) {
            layer.weight[p]->data = ours ? start_of(r) : r.mapped;
        }
    }
}

void em_place_free(em_ram_layer & here) {
    for (em_ram_range & r : here.range) {
        if (r.memory) {
            em_pages_release(r.memory, r.bytes);
        }
        r = {};
    }
}

std::vector<em_disk_read> em_place_reads(const em_ram_layer & layer, int32_t expert, int64_t key) {
    std::vector<em_disk_read> reads;
    for (const em_ram_range & r : layer.range) {
        if (r.memory) {
            const size_t at = size_t(expert) * r.stride;
            reads.push_back({key, r.file, r.offset + int64_t(at), r.stride, start_of(r) + at});
        }
    }
    return reads;
}

int em_place_inherit(std::vector<em_disk_read> & reads, const em_ram_layer & from, int32_t victim, int64_t key) {
    size_t at = 0;
    for (const em_ram_range & r : from.range) {
        if (!r.memory) {
            continue;
        }
        const piece old  = whole_pages(start_of(r) + size_t(victim) * r.stride, r.stride);
        size_t      both = 0;
        if (at < reads.size()) {
            em_disk_read & read = reads[at++];
            const piece    own  = whole_pages(read.to, read.bytes);
            both                = std::min(old.bytes, own.bytes);
            read.from           = both > 0 ? old.from : nullptr;
            read.from_to = own.from, read.from_bytes = both, read.from_key = key;
        }
        if (old.bytes > both) {
            em_pages_empty(old.from + both, old.bytes - both);
        }
    }
    return int(at);
}

void em_place_empty(const em_ram_layer & layer, int32_t expert) {
    for (const em_ram_range & r : layer.range) {
        if (r.memory) {
            const piece p = whole_pages(start_of(r) + size_t(expert) * r.stride, r.stride);
            if (p.bytes > 0) {
                em_pages_empty(p.from, p.bytes);
            }
        }
    }
}

void em_share_budget(em_ram & ram) {
    int64_t largest = 0, all = 0;
    size_t  pieces = 0;
    for (const em_ram_layer & layer : ram.layers) {
        pieces += 2 * PROJ_COUNT * layer.experts.size(); // an expert's own pages, and the pages between
        largest = std::max(largest, layer.expert_bytes);
        all += layer.expert_bytes * int64_t(layer.experts.size());
    }
    ram.reserve    = std::min(ram.at_once * largest, ram.budget);
    int64_t    room = ram.budget - ram.reserve;
    const double share = std::min(1.0, double(room) / double(std::max<int64_t>(all, 1)));
    for (em_ram_layer & layer : ram.layers) {
        layer.quota = int32_t(share * double(layer.experts.size()));
        room -= layer.quota * layer.expert_bytes;
    }
    ram.moves = em_pages_movable(pieces);
    for (em_ram_layer & layer : ram.layers) { // the rest, one expert each
        if (layer.quota < int32_t(layer.experts.size()) && layer.expert_bytes <= room) {
            layer.quota += 1;
            room -= layer.expert_bytes;
        }
    }
}
