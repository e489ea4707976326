// The kernels of one instruction set; the build defines XPKERN_ISA and the flags that go with it.
#include "isa_kernels.hpp"
