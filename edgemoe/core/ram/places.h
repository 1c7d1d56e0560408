#pragma once

// Places of experts: their ranges of addresses, their parts of the file, and the share of each layer. Inside ram/.

#include "ram/ram.h"

// Finds the places of a layer's tensors, and gets their ranges. False: a tensor has no place in a file, or there are no addresses.
bool em_place_layer(em_ram_layer & here, const em_layer_t & layer, const std::vector<em_expert_place> & places);
void em_place_use(const em_ram_layer & here, const em_layer_t & layer, bool ours); // the tensors' data: our range, or the mapping
void em_place_free(em_ram_layer & here);
std::vector<em_disk_read> em_place_reads(const em_ram_layer & layer, int32_t expert, int64_t key);
// The reads get the pages of a victim, which nobody uses any more. Returns how many reads do; the victim's key comes back with them.
int em_place_inherit(std::vector<em_disk_read> & reads, const em_ram_layer & from, int32_t victim, int64_t key);
void                      em_place_empty(const em_ram_layer & layer, int32_t expert); // its pages go back to the system
void                      em_share_budget(em_ram & ram);                        // sets the quotas and the reserve; needs the mutex
