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

// Lanes live in registers only where everything small is inlined; a whole evaluation is called, not copied. What goes
// on between evaluations is called on a CPU and copied on a GPU, where the arrays of what calls it would be memory.
// Tests, which are not optimised, call everything (XPKERN_CALLS): that is a fraction of the code to be compiled.
#if defined(__CUDACC__)
#define XPKERN_INLINE __host__ __device__ __forceinline__
#define XPKERN_KERNEL __host__ __device__ __noinline__
#define XPKERN_STEP XPKERN_INLINE
#else
#if defined(XPKERN_CALLS)
#define XPKERN_INLINE inline
#else
#define XPKERN_INLINE inline __attribute__((always_inline))
#endif
#define XPKERN_KERNEL inline __attribute__((noinline))
#define XPKERN_STEP XPKERN_KERNEL
#endif

// Loops over the registers of a pack or over a handful of accumulators must be unrolled, or the accumulators spill.
// Others are on a GPU a few rounds at a time, or not at all, where their code would not fit its caches.
#if defined(__CUDACC__) || defined(__clang__)
#define XPKERN_UNROLL _Pragma("unroll")
#define XPKERN_UNROLL_FOUR _Pragma("unroll 4")
#define XPKERN_ROLLED _Pragma("unroll 1")
#else
#define XPKERN_UNROLL _Pragma("GCC unroll 64")
#define XPKERN_UNROLL_FOUR _Pragma("GCC unroll 4")
#define XPKERN_ROLLED _Pragma("GCC unroll 1")
#endif

// Loops whose body is a handful of registers on a GPU, and a handful of packs, which are many registers, on a CPU.
#if defined(__CUDACC__)
#define XPKERN_UNROLL_ON_GPU _Pragma("unroll")
#else
#define XPKERN_UNROLL_ON_GPU
#endif

// Whether a fused multiply-add is one instruction of this build; where it is not, fma() rounds twice.
#if defined(__FMA__) || defined(__aarch64__) || defined(__CUDACC__)
#define XPKERN_FUSED 1
#else
#define XPKERN_FUSED 0
#endif
