// The Cholesky factor of a star in shared memory, four rows after four in whole quarters: what lanes read four numbers
// at a time.
#pragma once

#include "fit_memory.cuh"

XPKERN_NAMESPACE_BEGIN

// Rows 4 b ... 4 b + 3 have 4 (b + 1) numbers each, zeros beyond the diagonal.
struct alignas(16) PaddedFactor {
    static constexpr int rows = FitShape::n_samples, together = 4, blocks = (rows + together - 1) / together;
    static XPKERN_INLINE constexpr int row_at(int i) {
        const int block = i / together;
        return together * (block + 1) * (i % together) + together * together * row_start(block);
    }
    float number[together * blocks * rows - together * together * row_start(blocks - 1)];

    XPKERN_INLINE const float* row(int i) const { return number + row_at(i); }
    XPKERN_INLINE const Four* quarters(int i) const { return reinterpret_cast<const Four*>(number + row_at(i)); }

    // By a warp, once: no star's numbers come here.
    __device__ __forceinline__ void clear_padding() {
        for (int i = lane_in_warp(); i < rows; i += LANES)
            for (int j = i + 1; j < together * (i / together + 1); ++j) number[row_at(i) + j] = 0;
    }
    // By a warp, from a packed triangle; there after wait_for_copies() and a barrier.
    __device__ __forceinline__ void take_soon(const float* packed) {
        take_rows_soon<0, 0>(number + lane_in_warp(), packed + lane_in_warp());
    }
    template <int ROW, int STRIP>
    static __device__ __forceinline__ void take_rows_soon(float* to, const float* from) {
        if constexpr (ROW < rows) {
            constexpr int left = ROW + 1 - STRIP * LANES, at = STRIP * LANES;
            if (left >= LANES || lane_in_warp() < left) copy_soon<4, row_at(ROW) + at, row_start(ROW) + at>(to, from);
            if constexpr (left > LANES)
                take_rows_soon<ROW, STRIP + 1>(to, from);
            else
                take_rows_soon<ROW + 1, 0>(to, from);
        }
    }

    // put(i, variance) by a lane for each sample i; 0 where it is missing. Core: sample_variance().
    template <class Put>
    __device__ __forceinline__ void variance_by_warp(const Put& put) const {
        const int lane = lane_in_warp();
        const auto finish = [&](int i, float sum) {
            const float reciprocal = row(i)[i], diagonal = 1.0f / (reciprocal > 0 ? reciprocal : 1.0f);
            put(i, reciprocal > 0 ? fma(diagonal, diagonal, sum) : 0.0f);
        };
        XPKERN_UNROLL
        for (int s = 0; s < FitShape::whole_strips; ++s) {
            const int i = lane + s * LANES, block = i / together;
            const Four* of_row = quarters(i);
            float sum = 0, more = 0;
            for (int t = 0; t < block; ++t) {
                const Four four = of_row[t];
                sum = fma(four.number[0], four.number[0], fma(four.number[1], four.number[1], sum));
                more = fma(four.number[2], four.number[2], fma(four.number[3], four.number[3], more));
            }
            const Four four = of_row[block];
            XPKERN_UNROLL
            for (int x = 0; x + 1 < together; ++x)
                if (x < i % together) sum = fma(four.number[x], four.number[x], sum);
            finish(i, sum + more);
        }
        constexpr int first = FitShape::whole_strips * LANES;
        float sums[FitShape::rest];
        XPKERN_UNROLL
        for (int r = 0; r < FitShape::rest; ++r) {
            sums[r] = lane < r ? row(first + r)[first + lane] * row(first + r)[first + lane] : 0.0f;
            XPKERN_UNROLL
            for (int s = 0; s < FitShape::whole_strips; ++s) {
                const float g = row(first + r)[lane + s * LANES];
                sums[r] = fma(g, g, sums[r]);
            }
        }
        sum_over_lanes<LANES / 2>(sums);
        XPKERN_UNROLL
        for (int r = 0; r < FitShape::rest; ++r)
            if (lane == r) finish(first + r, sums[r]);
    }
};
static_assert(PaddedFactor::row_at(FitShape::n_samples) == sizeof(PaddedFactor) / sizeof(float), "the last row's end");

XPKERN_NAMESPACE_END
