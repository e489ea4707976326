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

// A bit for each lane of which something holds, the same in all of them.
__device__ __forceinline__ unsigned lanes_of_which(bool holds) {
    return __ballot_sync(0xffffffffu, holds);
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

// Has the second-level cache fetch what lies around an address.
__device__ __forceinline__ void expect([[maybe_unused]] const void* address) {
#if defined(__CUDA_ARCH__)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

// Asks for COUNT numbers that the warp is going to read: they are then near, in the second-level cache.
template <int COUNT, class Number>
__device__ __forceinline__ void ask_for(const Number* from) {
    constexpr int line = 128 / int(sizeof(Number)), lines = COUNT / line + 2;  // a row begins anywhere in a line
    XPKERN_UNROLL
    for (int first = 0; first < lines; first += LANES) {
        const int at = (first + lane_in_warp()) * line;
        expect(from + (at < COUNT ? at : COUNT - 1));
    }
}

// Neighbours that are loaded together.
struct alignas(16) Pair {
    double at[2];
};

#if defined(__CUDACC__)
// multiply_tiles() where there are no tensor cores for it: called, because it is needed hundreds of times.
struct TileSums {
    double first, second;
};
__device__ __noinline__ TileSums multiply_tiles_without_cores(double left, double right, TileSums sum) {
    const int lane = lane_in_warp(), column = lane % 4 * 2;
    for (int k = 0; k < 4; ++k) {
        const double factor = from_lane(left, lane / 4 * 4 + k);
        sum.first = fma(factor, from_lane(right, column * 4 + k), sum.first);
        sum.second = fma(factor, from_lane(right, (column + 1) * 4 + k), sum.second);
    }
    return sum;
}
#endif

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
    const TileSums after = multiply_tiles_without_cores(left, right, {sum[0], sum[1]});
    sum[0] = after.first, sum[1] = after.second;
#endif
}

// The same of two left matrices, one below the other, and their sums: on GPUs that can, at once.
__device__ __forceinline__ void multiply_two_tiles(double upper, double lower, double right, double (&upper_sum)[2],
                                                   double (&lower_sum)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("mma.sync.aligned.m16n8k4.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+d"(upper_sum[0]), "+d"(upper_sum[1]), "+d"(lower_sum[0]), "+d"(lower_sum[1])
                 : "d"(upper), "d"(lower), "d"(right));
#else
    multiply_tiles(upper, right, upper_sum);
    multiply_tiles(lower, right, lower_sum);
#endif
}

// The same of COUNT such pairs side by side, left(j), and as many right matrices below one another: on GPUs that can,
// two or four of them at once.
template <int COUNT, class Left>
__device__ __forceinline__ void multiply_row_of_tiles(const Left& left, const double* right, double (&upper_sum)[2],
                                                      double (&lower_sum)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (COUNT == 4) {
        const Pair a = left(0), b = left(1), c = left(2), d = left(3);
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7, %8, %9, %10, %11}, "
            "{%12, %13, %14, %15}, {%0, %1, %2, %3};"
            : "+d"(upper_sum[0]), "+d"(upper_sum[1]), "+d"(lower_sum[0]), "+d"(lower_sum[1])
            : "d"(a.at[0]), "d"(a.at[1]), "d"(b.at[0]), "d"(b.at[1]), "d"(c.at[0]), "d"(c.at[1]), "d"(d.at[0]),
              "d"(d.at[1]), "d"(right[0]), "d"(right[1]), "d"(right[2]), "d"(right[3]));
    } else if constexpr (COUNT == 2) {
        const Pair a = left(0), b = left(1);
        asm volatile(
            "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+d"(upper_sum[0]), "+d"(upper_sum[1]), "+d"(lower_sum[0]), "+d"(lower_sum[1])
            : "d"(a.at[0]), "d"(a.at[1]), "d"(b.at[0]), "d"(b.at[1]), "d"(right[0]), "d"(right[1]));
    } else
#endif
    {
        XPKERN_UNROLL
        for (int j = 0; j < COUNT; ++j) {
            const Pair pair = left(j);
            multiply_two_tiles(pair.at[0], pair.at[1], right[j], upper_sum, lower_sum);
        }
    }
}

// The same of the tiles from ... TILES of a column of left matrices, left(s), and sums, sum(s).
template <int TILES, class Left, class Sum>
__device__ __forceinline__ void multiply_column(int from, const Left& left, double right, const Sum& sum) {
    int s = from;
    XPKERN_UNROLL
    for (; s + 2 <= TILES; s += 2) multiply_two_tiles(left(s), left(s + 1), right, sum(s), sum(s + 1));
    XPKERN_UNROLL
    for (; s < TILES; ++s) multiply_tiles(left(s), right, sum(s));
}

XPKERN_NAMESPACE_END
