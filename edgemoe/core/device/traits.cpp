#include "device/traits.h"
#include "device/sim.h"

#include <cstdlib>

em_device_traits em_traits_of_registry(const char * name) {
    // ggml-cuda's registry has one of three names. ggml-vulkan sends beside its computations on some cards, and no function of
    // ggml names these cards.
    constexpr const char * CUDA[] = {"CUDA", "ROCm", "MUSA"};
    const auto             same   = [&](const char * known) { return strcmp(name, known) == 0; };
    const bool             cuda   = std::any_of(std::begin(CUDA), std::end(CUDA), same);
    const char *           moves  = getenv("GGML_CUDA_GRAPH_OPT"); // asks ggml-cuda to reorder a graph for several streams
    em_device_traits       traits;
    traits.sends_in_order     = cuda;
    traits.keeps_nothing      = cuda;
    traits.optimizes_in_place = cuda && !(moves && atoi(moves) == 1);
    return traits;
}

static em_device_traits traits_of_sim() {
    const em_sim_options o = em_sim_options_now();
    em_device_traits     traits;
    traits.sends_in_order         = o.streams != EM_SIM_TRANSFER;
    traits.optimizes_in_place     = true;
    traits.starts_early           = o.early != 0;
    traits.takes_pairs_one_by_one = true;
    traits.shares_cpu             = true;
    traits.reports_failed_copies  = o.fail_copy != 0;
    traits.fetches_all_but        = o.fetch_all;
    traits.stream_params          = "async";
    return traits;
}

em_device_traits em_traits_of(ggml_backend_device * device) {
    if (device == em_sim_device()) {
        return traits_of_sim();
    }
    ggml_backend_reg * registry = G.ggml_backend_dev_backend_reg(device);
    return em_traits_of_registry(registry ? registry->iface.get_name(registry) : "");
}
