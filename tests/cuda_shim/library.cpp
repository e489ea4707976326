// The kernels as a library: launch() takes a kernel by its name and its parameters as the driver does.
//
// kernel_names.inc is made by tests/cuda_library.py from the kernels' text: XPKERN_NAME(name) for each.
#include "shim.hpp"

#include "cuda/kernels.cu"

// Whether the threads of a kernel meet.
static bool has_barriers(const char* name) {
    for (const char* one : {"calibrate", "freeze_noise", "predict", "descend", "evaluate", "start", "fit_begin",
                            "fit_start", "fit_search", "fit_finish", "roof_tiles", "invert_whiteners", "train_stars",
                            "train_model", "train_star_steps"})
        if (std::strcmp(name, one) == 0) return true;
    return false;
}

// Returns 0, or 1 where there is no kernel of that name.
extern "C" int launch(const char* name, int64_t grid, int64_t block, int64_t shared, void** parameters) {
#define XPKERN_NAME(kernel)                                                                 \
    if (std::strcmp(name, #kernel) == 0) {                                                  \
        shim::launch_bytes(kernel, grid, block, parameters, has_barriers(#kernel), shared); \
        return 0;                                                                           \
    }
#include "kernel_names.inc"
#undef XPKERN_NAME
    return 1;
}
