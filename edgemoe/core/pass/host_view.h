#pragma once

// A block as the CPU sees it: its inputs are copied to host memory, and its rows made there. Writer: host_view.cpp.

#include "model/block.h"

struct em_pass;

struct em_host_view {
    em_block    block;
    ggml_tensor tensor[EM_BLOCK_NODES * 3];
    struct arrival {
        const ggml_tensor * from;
        ggml_tensor *       to;
        size_t              aside; // where its copy lies on the device, 0: it stays where it is
    } arrivals[EM_BLOCK_NODES * 2];
    int  count = 0, arrival_count = 0;
    bool unreported = false; // its routing
};

bool em_view_start(em_pass * p, const em_block & b); // makes room, and begins the copies of its inputs. False: no memory
void em_view_wait(em_pass * p);

// report.cpp: routing, to the history and to the prefetch
void em_report_view(em_pass * p);   // and what has arrived of a prompt's before it
void em_report_prompt(em_pass * p); // what has arrived of a prompt's
