#pragma once

// A block as the CPU sees it: inputs are copied to host memory, and rows are made there. Writer: host_view.cpp.

#include "model/block.h"

struct em_pass;

struct em_host_view {
    em_block    block;
    ggml_tensor tensor[EM_BLOCK_NODES * 3];
    struct arrival {
        const ggml_tensor * from;
        ggml_tensor *       to;
        size_t              scratch; // where a copy lies in the device's scratch memory; 0: no copy
    } arrivals[EM_BLOCK_NODES * 2];
    int  arrival_count = 0;
    bool unreported    = false; // the routing log and the prefetch have not seen the routing yet
};

bool em_view_start(em_pass * p, const em_block & b); // makes room, and begins the copies of the inputs. False: no memory
void em_view_wait(em_pass * p);
// Reports routing to the log and to the prefetch.
void em_report_view(em_pass * p);   // and the routing of a prompt's layers before this one
void em_report_prompt(em_pass * p); // the routing of a prompt's layers that has arrived
