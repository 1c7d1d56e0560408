#include "traits.h"

#include "engine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

em_device_traits em_traits_of_registry(const char * name) {
    // ggml-cuda has three names. ggml-vulkan sends beside its computations on some cards; no function tells on which.
    constexpr const char * CUDA[] = {"CUDA", "ROCm", "MUSA"};
    const auto   same  = [&](const char * known) { return strcmp(name, known) == 0; };
    const bool   cuda  = std::any_of(std::begin(CUDA), std::end(CUDA), same);
    const char * moves = getenv("GGML_CUDA_GRAPH_OPT"); // asks ggml-cuda to reorder a graph for several streams
    em_device_traits traits;
    traits.sends_in_order     = cuda;
    traits.keeps_nothing      = cuda;
    traits.optimizes_in_place = cuda && !(moves && atoi(moves) == 1);
    return traits;
}

em_device_traits em_traits_of(ggml_backend_device * device) {
    if (device == em_sim_device()) {
        em_device_traits traits;
        traits.sends_in_order     = em_sim_streams() != EM_SIM_TRANSFER;
        traits.optimizes_in_place = true;
        return traits;
    }
    ggml_backend_reg * registry = G.ggml_backend_dev_backend_reg(device);
    return em_traits_of_registry(registry ? registry->iface.get_name(registry) : "");
}
