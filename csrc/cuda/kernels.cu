// The kernels of the CUDA engine: launch geometry, loads and stores. The mathematics is csrc/core, compiled here with a
// lane of one thread; where a warp has a star, sums of products are the tensor cores', in double.
//
// The same text is compiled by nvcc and by NVRTC at run time: once for the usual sizes, and with XPKERN_GENERAL for
// any, which few need. What kernels are given is in arguments.cuh.
#include "cuda/calibrate.cuh"
#include "cuda/curvature.cuh"
#include "cuda/descent.cuh"
#include "cuda/fit_finish.cuh"
#include "cuda/fit_search.cuh"
#include "cuda/freeze_warp.cuh"
#include "cuda/information.cuh"
#include "cuda/roof.cuh"
#include "cuda/sizes.cuh"
#include "cuda/stars.cuh"
#include "cuda/starts.cuh"
#include "cuda/train.cuh"
