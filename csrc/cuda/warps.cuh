// What a warp that works at one star together needs: its lanes, what they show one another, and products of tiles.
#pragma once

#include "threads.cuh"

XPKERN_NAMESPACE_BEGIN

constexpr int LANES = 32;

__device__ __forceinline__ int lane_in_warp() {
    return int(threadIdx.x) % LANES;
}
template <class Number>
__device__ __forceinline__ Number from_lane(Number number, int lane) {
    return __shfl_sync(0xffffffffu, number, lane);
}

// The sum of all lanes, the same in each of them.
template <class Number>
__device__ __forceinline__ Number sum_over_lanes(Number number) {
    XPKERN_UNROLL
    for (int half = LANES / 2; half > 0; half /= 2) number += from_lane(number, lane_in_warp() ^ half);
    return number;
}

// COUNT neighbouring numbers, dealt out to so many THREADS. All loads are on their way before one is waited for.
template <int COUNT, int THREADS, class Number>
struct Taken {
    static constexpr int rounds = (COUNT + THREADS - 1) / THREADS;
    Number taken[rounds];

    __device__ __forceinline__ explicit Taken(const Number* from) {
        const int first = int(threadIdx.x) % THREADS;
        from += first;
        XPKERN_UNROLL
        for (int r = 0; r < rounds; ++r)
            if (first + r * THREADS < COUNT) taken[r] = from[r * THREADS];
    }
    // put(at, from[at]) for the thread's share.
    template <class Put>
    __device__ __forceinline__ void hand_over(const Put& put) const {
        const int first = int(threadIdx.x) % THREADS;
        XPKERN_UNROLL
        for (int r = 0; r < rounds; ++r)
            if (first + r * THREADS < COUNT) put(first + r * THREADS, taken[r]);
    }
};

// sum += left right, of matrices 8 by 4 and 4 by 8 that a warp holds together. A lane has element (lane / 4, lane % 4)
// of the left one, (lane % 4, lane / 4) of the right one, and of the sum the two from (lane / 4, 2 (lane % 4)) on.
__device__ __forceinline__ void multiply_tiles(double left, double right, double (&sum)[2]) {
#if defined(XPKERN_MULTIPLY_TILES)  // where a processor stands for the GPU
    XPKERN_MULTIPLY_TILES(left, right, sum);
#elif __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+d"(sum[0]), "+d"(sum[1])
                 : "d"(left), "d"(right));
#else
    const int lane = lane_in_warp();
    XPKERN_UNROLL
    for (int k = 0; k < 4; ++k) {
        const double factor = from_lane(left, lane / 4 * 4 + k);
        XPKERN_UNROLL
        for (int c = 0; c < 2; ++c) sum[c] = fma(factor, from_lane(right, (lane % 4 * 2 + c) * 4 + k), sum[c]);
    }
#endif
}

XPKERN_NAMESPACE_END
