// What the GPU could do: multiply-adds on registers, and copies from memory to memory, as the kernels are compiled. The
// benchmarks hold everything else against them.
#pragma once

#include "warps.cuh"

namespace xpkern {

struct alignas(16) Quad {
    float number[4];
};

struct RoofArguments {
    const Quad* from;  // roof_copy: (n,)
    Quad* to;
    double* sink;  // the others: (threads,), so that nothing is optimised away
    int64_t n;     // quads to copy; rounds of multiply-adds or of products
};

constexpr int ROOF_CHAINS = 8;  // multiply-adds, or products of two tiles, in flight in each thread

}  // namespace xpkern

namespace {

// ROOF_CHAINS multiply-adds a round.
template <class Real>
__device__ void run_roof(const xpkern::RoofArguments& a) {
    Real chain[xpkern::ROOF_CHAINS];
    for (int c = 0; c < xpkern::ROOF_CHAINS; ++c) chain[c] = Real(threadIdx.x + c);
    const Real factor = Real(0.999), term = Real(1e-3);
    for (int64_t round = 0; round < a.n; ++round) {
        XPKERN_UNROLL
        for (int c = 0; c < xpkern::ROOF_CHAINS; ++c) chain[c] = xpkern::XPKERN_ISA::fma(chain[c], factor, term);
    }
    Real sum = 0;
    for (int c = 0; c < xpkern::ROOF_CHAINS; ++c) sum += chain[c];
    a.sink[int64_t(blockIdx.x) * blockDim.x + threadIdx.x] = sum;
}

}  // namespace

extern "C" __global__ void roof_float(const __grid_constant__ xpkern::RoofArguments a) {
    run_roof<float>(a);
}

extern "C" __global__ void roof_double(const __grid_constant__ xpkern::RoofArguments a) {
    run_roof<double>(a);
}

// ROOF_CHAINS products a round of two tiles of 8 by 4 with one of 4 by 8, in double: 16 multiply-adds a thread each.
extern "C" __global__ void roof_tiles(const __grid_constant__ xpkern::RoofArguments a) {
    double chain[xpkern::ROOF_CHAINS][2][2] = {};
    const double left = 0.25, right = 1e-3 * double(threadIdx.x);
    for (int64_t round = 0; round < a.n; ++round) {
        XPKERN_UNROLL
        for (auto& sums : chain) kernels::multiply_two_tiles(left, left, right, sums[0], sums[1]);
    }
    double sum = 0;
    for (const auto& sums : chain) sum += sums[0][0] + sums[0][1] + sums[1][0] + sums[1][1];
    a.sink[int64_t(blockIdx.x) * blockDim.x + threadIdx.x] = sum;
}

extern "C" __global__ void roof_copy(const __grid_constant__ xpkern::RoofArguments a) {
    const int64_t step = int64_t(gridDim.x) * blockDim.x;
    for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < a.n; at += step) a.to[at] = a.from[at];
}
