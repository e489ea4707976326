// What the core needs of the outside world: integers, inlining, and the namespace of one build.
//
// The core is compiled once per instruction set (and by NVRTC, which has no standard headers). Each build lives in a
// namespace of its own, so that no inline function of an AVX-512 object can be picked by the linker for a baseline one.
#pragma once

#include "integers.hpp"

#ifndef XPKERN_ISA
#error "XPKERN_ISA must name this build (scalar, avx2, avx512, neon, cuda); the build system defines it"
#endif

#define XPKERN_NAMESPACE_BEGIN \
    namespace xpkern {         \
    namespace XPKERN_ISA {
#define XPKERN_NAMESPACE_END \
    }                        \
    }

// Lanes live in registers only where everything small is inlined; a whole evaluation is called, not copied.
#if defined(__CUDACC__)
#define XPKERN_INLINE __host__ __device__ __forceinline__
#define XPKERN_KERNEL __host__ __device__ __noinline__
#else
#define XPKERN_INLINE inline __attribute__((always_inline))
#define XPKERN_KERNEL inline __attribute__((noinline))
#endif

// Loops over the registers of a pack or over a handful of accumulators must be unrolled, or the accumulators spill.
#if defined(__CUDACC__) || defined(__clang__)
#define XPKERN_UNROLL _Pragma("unroll")
#else
#define XPKERN_UNROLL _Pragma("GCC unroll 64")
#endif

// Whether a fused multiply-add is one instruction of this build; where it is not, fma() rounds twice.
#if defined(__FMA__) || defined(__aarch64__) || defined(__CUDACC__)
#define XPKERN_FUSED 1
#else
#define XPKERN_FUSED 0
#endif
