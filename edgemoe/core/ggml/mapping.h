#pragma once

// llama.cpp's mapping of a file, without the reading of the whole file.
//
// llama.cpp maps a file and lets the system read all of it at once. A file that does not fit in RAM drives itself out again. On a
// machine with several NUMA nodes llama.cpp only maps the file. So during such a load this thread is told that there are nodes.
//
// Owner: the thread that loads. The replaced function of ggml-cpu's registry passes all other threads and names on.

void em_map_lazily(bool on);
bool em_maps_lazily();
// On a machine with NUMA nodes llama.cpp asks for pages one by one. Undoes that for the mapping that holds this address.
void em_read_in_pieces(const void * address);
