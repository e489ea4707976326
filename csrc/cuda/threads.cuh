// How work is dealt out to threads, and where a thread keeps what it works on.
//
// An item is a star, or a search of one: a thread takes one after the other, as far apart as the grid has threads. The
// usual sizes are known to the compiler, and what belongs to a star lies in the thread's local memory, which the
// hardware interleaves: neighbouring threads read neighbouring words. Other sizes have memory that the host gives.
#pragma once

#include "arguments.cuh"
#include "core/search.hpp"

namespace kernels = xpkern::XPKERN_ISA;

XPKERN_NAMESPACE_BEGIN

template <class Work>
__device__ __forceinline__ void over_items(int64_t n, const Work& work) {
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t item = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; item < n; item += step) work(item);
}

// Calls work(item, arena) with local memory for each item.
template <int64_t BYTES, class Work>
__device__ __forceinline__ void over_items_locally(int64_t n, const Work& work) {
    alignas(16) char local[BYTES];
    over_items(n, [&](int64_t item) { work(item, Arena{local, 0}); });
}

// The same with the thread's share of memory that the host gave.
template <class Work>
__device__ __forceinline__ void over_items_in(const ThreadScratch& scratch, int64_t n, const Work& work) {
    const int64_t thread = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    char* memory = scratch.memory + thread * scratch.bytes_a_thread;
    over_items(n, [&](int64_t item) { work(item, Arena{memory, 0}); });
}

// Counts one more, and returns how many there were; these have left what they wrote before it for this one to read.
__device__ __forceinline__ unsigned long long arrive(unsigned long long& arrived) {
#if defined(__CUDA_ARCH__)
    unsigned long long before;
    asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], 1;"
                 : "=l"(before)
                 : "l"(__cvta_generic_to_global(&arrived))
                 : "memory");
    return before;
#else
    return atomicAdd(&arrived, 1ull);
#endif
}

// Whether all other blocks have been here before, by every thread of a block. arrived: 0 when the kernel begins, and
// again when it ends.
__device__ __forceinline__ bool is_last_of_grid(unsigned long long& arrived) {
    __shared__ bool is_last;
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = arrive(arrived) + 1 == gridDim.x;
        if (is_last) arrived = 0;
    }
    __syncthreads();
    return is_last;
}

// What a kernel's usual form has room for, besides UsualShape.
constexpr int USUAL_COMPONENTS = 16, USUAL_TYPES = 64;

XPKERN_INLINE constexpr PriorView usual_prior() {
    PriorView prior{};
    prior.n_components = USUAL_COMPONENTS;
    prior.n_dimensions = UsualShape::inputs();
    return prior;
}

// One star in a thread's memory, as numbers of type Real and its constraints as Wide.
template <class Real, class Wide>
struct ThreadStar {
    Real *flux, *factor;
    Wide mean[MAX_PARAMETERS], weight[MAX_PARAMETERS];

    XPKERN_INLINE constexpr ThreadStar(int m, Arena& arena)
        : flux(arena.take<Real>(m)), factor(arena.take<Real>(row_start(m))), mean{}, weight{} {}
    // Its samples stand elsewhere.
    XPKERN_INLINE constexpr ThreadStar(Real* flux, Real* factor) : flux(flux), factor(factor), mean{}, weight{} {}

    XPKERN_INLINE void gather(const StarArrays& stars, int64_t row, int m, int k) {
        gather_constraints(stars, row, k);
        for (int i = 0; i < m; ++i) flux[i] = stars.flux[row * m + i];
        const float* packed = stars.whitener + row * row_start(m);
        for (int at = 0; at < row_start(m); ++at) factor[at] = packed[at];
    }
    XPKERN_INLINE void gather_constraints(const StarArrays& stars, int64_t row, int k) {
        for (int p = 0; p < k; ++p) {
            const double sigma = stars.sigma[row * k + p];
            mean[p] = Wide(stars.mean[row * k + p]);
            weight[p] = Wide(1.0 / (sigma * sigma));
        }
    }
    XPKERN_INLINE StarView<Real, Wide> view() const { return {flux, factor, mean, weight}; }
};

// A star and the memory of an evaluation of its loss.
template <class Real, class Wide>
struct ThreadSpace {
    ThreadStar<Real, Wide> star;
    Workspace<Real, Wide> workspace;

    template <class Shape>
    XPKERN_INLINE constexpr ThreadSpace(const Shape& shape, const PriorView& prior, Arena& arena)
        : star(shape.samples(), arena), workspace(carve_workspace<Real, Wide>(shape, prior, arena)) {}

    template <class Shape>
    static XPKERN_INLINE constexpr int64_t bytes(const Shape& shape, const PriorView& prior) {
        Arena arena{nullptr, 0};
        ThreadSpace(shape, prior, arena);
        return arena.used;
    }
    static XPKERN_INLINE constexpr int64_t usual_bytes() { return bytes(UsualShape(ModelView{}), usual_prior()); }
};

// The shared memory that a launch asks for, which is more than a kernel may have by itself.
#if defined(__CUDACC__)
__device__ __forceinline__ char* dynamic_shared() {
    extern __shared__ int4 memory_of_block[];
    return reinterpret_cast<char*>(memory_of_block);
}
#else
inline char* dynamic_shared() {
    return shim::dynamic_shared();
}
#endif

// Linear parameters, (k,), as u.
XPKERN_INLINE void load_params(const double* params, int k, double* u) {
    for (int p = 0; p < k; ++p) u[p] = params[p];
    u[k - 1] = log(u[k - 1]);
}

XPKERN_NAMESPACE_END

// A kernel, WORK<Shape>(a, item, arena) for each of COUNT items, in its usual form, with so many BYTES of local memory,
// or in the general one where XPKERN_GENERAL asks for that.
#define XPKERN_GENERAL_KERNEL(NAME, ARGUMENTS, COUNT, WORK)                                       \
    extern "C" __global__ void NAME##_any(const __grid_constant__ ARGUMENTS a) {                  \
        kernels::over_items_in(a.scratch, COUNT, [&](int64_t item, const kernels::Arena& arena) { \
            WORK<kernels::AnyShape>(a, item, arena);                                              \
        });                                                                                       \
    }
#if defined(XPKERN_GENERAL)
#define XPKERN_STAR_KERNEL(NAME, ARGUMENTS, COUNT, BYTES, WORK) XPKERN_GENERAL_KERNEL(NAME, ARGUMENTS, COUNT, WORK)
#else
#define XPKERN_STAR_KERNEL(NAME, ARGUMENTS, COUNT, BYTES, WORK)                                                    \
    extern "C" __global__ void NAME(const __grid_constant__ ARGUMENTS a) {                                         \
        kernels::over_items_locally<BYTES>(                                                                        \
            COUNT, [&](int64_t item, const kernels::Arena& arena) { WORK<kernels::UsualShape>(a, item, arena); }); \
    }
#endif
