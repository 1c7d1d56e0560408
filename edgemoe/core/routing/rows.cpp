#include "routing/rows.h"

#include "processor.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// The versions are chosen here and not by the compiler's `target_clones`: some compilers' check of the processor knows none.
namespace {

namespace plain {
#define EM_TARGET
#include "rows.inc"
#undef EM_TARGET
} // namespace plain

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))

namespace avx2 {
#    define EM_TARGET __attribute__((target("avx2")))
#    include "rows.inc"
#    undef EM_TARGET
} // namespace avx2

namespace avx512 {
#    define EM_TARGET __attribute__((target("avx512f")))
#    include "rows.inc"
#    undef EM_TARGET
} // namespace avx512

#endif

} // namespace

std::vector<em_row_loops> em_row_versions() {
    std::vector<em_row_loops> found;
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    if (em_has_avx512()) {
        found.push_back(avx512::LOOPS);
    }
    if (em_has_avx2()) {
        found.push_back(avx2::LOOPS);
    }
#endif
    found.push_back(plain::LOOPS);
    return found;
}

const em_row_loops em_rows = em_row_versions().front();
