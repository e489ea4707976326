// The Cholesky factor of a star in shared memory, four rows after four in whole quarters.
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

    // (rows,) variances, 0 where a sample is missing, for all lanes; put(i, variance) by a lane for each. Core:
    // sample_variance(). Squares are added up tile by tile, where neighbouring lanes have neighbours.
    template <class Put>
    __device__ __forceinline__ void variance_by_warp(float* variance, const Put& put) const {
        const FitLane here;
        XPKERN_UNROLL
        for (int first = 0; first < rows; first += FitTiles::rows) {
            const int i = first + here.row, on_diagonal = here.row % together;
            const bool exists = i < rows, lower = here.row >= together;
            const float* const of_row = row(exists ? i : first) + here.column;
            float sums[2] = {};
            XPKERN_UNROLL
            for (int at = 0; at < first; at += together)
                sums[at / together % 2] = fma(of_row[at], of_row[at], sums[at / together % 2]);
            // of the row's last tile the inverse of what is on the diagonal does not count, beyond it are zeros
            const float last = of_row[first + (exists && lower ? together : 0)], before = of_row[first];
            const float beside = here.column == on_diagonal ? 0.0f : last, below = lower ? before : 0.0f;
            float sum = fma(beside, beside, fma(below, below, sums[0] + sums[1]));
            XPKERN_UNROLL
            for (int half = together / 2; half > 0; half /= 2) sum += from_lane(sum, here.lane ^ half);
            if (exists && here.column == 0) variance[i] = sum;
        }
        __syncwarp();
        XPKERN_UNROLL
        for (int s = 0; s < FitShape::strips; ++s) {
            const int i = here.lane + s * LANES;
            if (i >= rows) continue;
            const float reciprocal = row(i)[i], diagonal = 1.0f / (reciprocal > 0 ? reciprocal : 1.0f);
            const float found = reciprocal > 0 ? fma(diagonal, diagonal, variance[i]) : 0.0f;
            variance[i] = found;
            put(i, found);
        }
        __syncwarp();
    }
};
static_assert(PaddedFactor::row_at(FitShape::n_samples) == sizeof(PaddedFactor) / sizeof(float), "the last row's end");

XPKERN_NAMESPACE_END
