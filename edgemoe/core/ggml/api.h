#pragma once

// ggml as this core uses it: its functions (G), its operation numbers (OP), and the proof that both are right.
//
// Owner: Python fills G through em_symbol_set, em_check fills OP; both are fixed afterwards. No lock.
// The traps for failed assertions (aborts.cpp) have a lock of their own, because ggml has one callback for the whole process.

#include "ggml/abi.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

// Op numbers of the ggml that is loaded, looked up by name.
struct em_ops {
    int none, view, reshape, mul_mat_id, add_id, glu, unary, clamp, scale, mul, add, sqr, cont, custom, get_rows,
        flash_attn;
};
extern em_ops OP;

bool em_host_checked(); // em_check has succeeded

inline ggml_backend_buffer * em_buffer_of(const ggml_tensor * t) { return t->view_src ? t->view_src->buffer : t->buffer; }
