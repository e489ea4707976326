// The kernels as a library: launch() takes a kernel by its name and its parameters as the driver does.
//
// kernel_names.inc is made by tests/cuda_library.py from the kernels' text: XPKERN_NAME(name) for each.
#include "shim.hpp"

#include "cuda/kernels.cu"

// Kernels whose threads meet.
static bool has_barriers(const char* name) {
    return std::strcmp(name, "train_loss") == 0 || std::strcmp(name, "train_step") == 0;
}

// Returns 0, or 1 where there is no kernel of that name.
extern "C" int launch(const char* name, int64_t grid, int64_t block, int64_t, void** parameters) {
#define XPKERN_NAME(kernel)                                                         \
    if (std::strcmp(name, #kernel) == 0) {                                          \
        shim::launch_bytes(kernel, grid, block, parameters, has_barriers(#kernel)); \
        return 0;                                                                   \
    }
#include "kernel_names.inc"
#undef XPKERN_NAME
    return 1;
}
