// The way into RAM of our own, and back to llama.cpp's mapping. See ram.h.

#include "ram/places.h"

#include <algorithm>

std::string em_ram_open(em_ram & ram, const std::vector<std::string> & paths, const std::vector<em_expert_place> & places,
                        int64_t budget, int32_t at_once) {
    ram.disk.arrived      = [&ram](const em_disk_read & read, bool ok) { em_ram_arrived(ram, read, ok); };
    const std::string why = em_disk_open(ram.disk, paths);
    if (!why.empty()) {
        em_disk_close(ram.disk);
        return why;
    }
    ram.budget = budget, ram.at_once = at_once;
    for (const auto & layer : ram.model.layers) {
        em_ram_layer & here = ram.layers.emplace_back();
        here.index          = size_t(layer->index);
        here.ours           = em_place_layer(here, *layer, places);
        if (here.ours) {
            here.experts.resize(size_t(layer->experts));
            em_place_use(here, *layer, true);
        } else {
            em_place_free(here);
        }
    }
    em_share_budget(ram);
    ram.on = true;
    return "";
}

void em_ram_leave(em_ram & ram, em_layer_t & layer) {
    if (!ram.on || !ram.layers[size_t(layer.index)].ours) {
        return;
    }
    em_ram_layer &               here = ram.layers[size_t(layer.index)];
    std::unique_lock<std::mutex> lock(ram.mutex);
    here.ours = false;
    ram.arrivals.wait(lock, [&] {
        return std::none_of(here.experts.begin(), here.experts.end(),
                            [](const em_ram_expert & x) { return x.held || x.leaves || x.state == em_place_state::READING; });
    });
    em_place_use(here, layer, false);
    ram.used -= here.kept * here.expert_bytes;
    here.kept = here.quota = 0;
    here.experts.assign(here.experts.size(), {});
    em_place_free(here);
}

void em_ram_close(em_ram & ram) {
    em_disk_close(ram.disk);
    for (em_ram_layer & here : ram.layers) {
        em_place_use(here, *ram.model.layers[here.index], false);
        em_place_free(here);
    }
    ram.layers.clear();
    ram.on = false;
}
