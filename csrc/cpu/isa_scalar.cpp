// The kernels of one instruction set; the build defines XPKERN_ISA and the flags that go with it.
// One star at a time: what any machine can run, and what a GPU thread runs.
#define XPKERN_SCALAR_LANES
#include "isa_kernels.hpp"
