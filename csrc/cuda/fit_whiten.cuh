// Whitening a star's samples by a warp, a lane having every 32nd of them.
//
// A triangle is solved by strips of 32 rows. The inverse of each strip's own triangle is found once for a star, a
// column a lane, so that whitening is two products a strip, whose terms wait for nothing: 1,100 instructions of a warp
// for six columns, where substitution, row after row, takes 3,500. In float that serves; a residual in double is
// substituted, as it must be right to 1e-5 of the loss.
#pragma once

#include "fit_memory.cuh"

XPKERN_NAMESPACE_BEGIN

// The inverse of each strip's own triangle, a column a lane. A missing sample's row and column are 0, as in the factor.
template <class Wide>
__device__ __forceinline__ void invert_strips(FitStar<Wide>& star) {
    const int lane = lane_in_warp();
    XPKERN_ROLLED
    for (int strip = 0; strip < FitShape::whole_strips; ++strip) {
        const int first = strip * LANES;
        float column[LANES];
        XPKERN_UNROLL
        for (int i = 0; i < LANES; ++i) {
            const float* row = star.factor + row_start(first + i) + first;
            float left = lane == i ? 1.0f : 0.0f, more = 0;  // two sums, as each term waits for the one before
            XPKERN_UNROLL
            for (int j = 0; j < i; ++j) (j % 2 ? more : left) = fma(-row[j], column[j], j % 2 ? more : left);
            column[i] = (left + more) * row[i];
        }
        if (FitStar<Wide>::in_place) __syncwarp();  // no lane still reads the triangle
        XPKERN_UNROLL
        for (int i = 0; i < LANES; ++i)
            if (lane <= i) star.inverse_row(strip, i)[lane] = column[i];
    }
    __syncwarp();
}

// A star's arrays from memory to the warp's place.
template <class Wide>
__device__ __forceinline__ FitStar<Wide>& gather_fit_star(const StarArrays& stars, int64_t row) {
    FitStar<Wide>& star = fit_star<Wide>();
    constexpr int m = FitShape::n_samples;
    __syncwarp();  // no lane is still at the star before
    const int lane = lane_in_warp();
    copy_by_lane_soon<m>(star.flux + lane, stars.flux + row * m + lane);
    copy_by_lane_soon<FitStar<Wide>::packed>(star.factor + lane, stars.whitener + row * FitStar<Wide>::packed + lane);
    wait_for_copies();
    __syncwarp();
    invert_strips(star);
    return star;
}

// Right-hand sides of a lane's samples: (strips, COLUMNS).
template <int COLUMNS>
using Columns = float[FitShape::strips][COLUMNS];

// Lets the warp read one row of right-hand sides of each lane.
template <int COLUMNS>
__device__ __forceinline__ void show(Eight* shown, const float* row) {
    Eight& mine = shown[lane_in_warp()];
    __syncwarp();  // no lane still reads what was shown before
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) mine.number[c] = row[c];
    __syncwarp();
}

// Solves for a strip and takes it from those below; from the last rows, of lanes 0 and 1, each lane its own part:
// rest -= G y.
template <int STRIP, int COLUMNS, class Wide>
__device__ __forceinline__ void whiten_strip(FitStar<Wide>& star, Columns<COLUMNS>& left,
                                             float (&rest)[FitShape::rest * COLUMNS]) {
    const int lane = lane_in_warp();
    show<COLUMNS>(star.shown, left[STRIP]);
    const float* inverse = star.inverse_row(STRIP, lane);
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) left[STRIP][c] = 0;
    XPKERN_UNROLL_FOUR
    for (int j = 0; j < LANES; ++j) {
        const float stored = inverse[j], weight = j <= lane ? stored : 0.0f;
        const Eight b = star.shown[j];
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) left[STRIP][c] = fma(weight, b.number[c], left[STRIP][c]);
    }
    XPKERN_UNROLL
    for (int r = 0; r < FitShape::rest; ++r) {
        const float weight = -star.factor[row_start(FitShape::whole_strips * LANES + r) + STRIP * LANES + lane];
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) rest[r * COLUMNS + c] = fma(weight, left[STRIP][c], rest[r * COLUMNS + c]);
    }
    if constexpr (STRIP + 1 < FitShape::whole_strips) {
        show<COLUMNS>(star.shown, left[STRIP]);
        XPKERN_UNROLL_FOUR
        for (int j = 0; j < LANES; ++j) {
            const Eight y = star.shown[j];
            XPKERN_UNROLL
            for (int s = STRIP + 1; s < FitShape::whole_strips; ++s) {
                const float weight = -star.factor[row_start(lane + s * LANES) + STRIP * LANES + j];
                XPKERN_UNROLL
                for (int c = 0; c < COLUMNS; ++c) left[s][c] = fma(weight, y.number[c], left[s][c]);
            }
        }
        whiten_strip<STRIP + 1, COLUMNS>(star, left, rest);
    }
}

// left = G^-1 left.
template <int COLUMNS, class Wide>
__device__ __forceinline__ void whiten_columns_by_warp(FitStar<Wide>& star, Columns<COLUMNS>& left) {
    constexpr int first = FitShape::whole_strips * LANES;
    const int lane = lane_in_warp();
    float rest[FitShape::rest * COLUMNS];
    XPKERN_UNROLL
    for (int r = 0; r < FitShape::rest; ++r) {
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) rest[r * COLUMNS + c] = lane == r ? left[FitShape::whole_strips][c] : 0.0f;
    }
    whiten_strip<0, COLUMNS>(star, left, rest);
    sum_over_lanes<LANES / 2>(rest);
    const float* above = star.factor + row_start(first) + first;
    const float* below = star.factor + row_start(first + 1) + first;
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
        const float y = rest[c] * above[0], next = fma(-below[0], y, rest[COLUMNS + c]) * below[1];
        left[FitShape::whole_strips][c] = lane == 0 ? y : (lane == 1 ? next : 0.0f);
    }
}

// w = G^-T y of one column, from the last strip up. Lanes read columns of the triangles, which lie side by side.
template <class Wide>
__device__ __forceinline__ void unwhiten_by_strips(FitStar<Wide>& star, float (&left)[FitShape::strips]) {
    const int lane = lane_in_warp();
    constexpr int row = FitShape::whole_strips * LANES;
    const float end = star.factor[row_start(row + 1) + row + 1], below = star.factor[row_start(row + 1) + row];
    float w[FitShape::rest];
    w[1] = from_lane(left[FitShape::whole_strips], 1) * end;
    w[0] = fma(-below, w[1], from_lane(left[FitShape::whole_strips], 0)) * star.factor[row_start(row) + row];
    left[FitShape::whole_strips] = lane < FitShape::rest ? (lane == 0 ? w[0] : w[1]) : 0.0f;
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::whole_strips; ++s) {
        XPKERN_UNROLL
        for (int r = 0; r < FitShape::rest; ++r)
            left[s] = fma(-star.factor[row_start(row + r) + s * LANES + lane], w[r], left[s]);
    }
    XPKERN_UNROLL
    for (int strip = FitShape::whole_strips - 1; strip >= 0; --strip) {
        const float y = left[strip];
        float solved = 0;
        XPKERN_UNROLL_FOUR
        for (int j = 0; j < LANES; ++j) {
            const float stored = star.inverse_row(strip, j)[lane], weight = j >= lane ? stored : 0.0f;
            solved = fma(weight, from_lane(y, j), solved);
        }
        left[strip] = solved;
        if (strip == 0) continue;
        XPKERN_UNROLL
        for (int s = 0; s < strip; ++s) {
            XPKERN_UNROLL_FOUR
            for (int j = 0; j < LANES; ++j)
                left[s] =
                    fma(-star.factor[row_start(strip * LANES + j) + s * LANES + lane], from_lane(solved, j), left[s]);
        }
    }
}

// One right-hand side in double, by substitution: every lane solves ROWS rows for itself, so that what all wait for is
// one exchange, and takes them from what is left of its own.
template <int ROWS, int STRIP>
__device__ __forceinline__ void whiten_wide_rows(const float* factor, int first, double (&left)[FitShape::strips]) {
    double y[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) y[r] = from_lane(left[STRIP], (first + r) % LANES);
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        y[r] *= double(factor[row_start(first + r) + first + r]);
        XPKERN_UNROLL
        for (int below = r + 1; below < ROWS; ++below)
            y[below] = fma(-double(factor[row_start(first + below) + first + r]), y[r], y[below]);
    }
    XPKERN_UNROLL
    for (int s = STRIP; s < FitShape::strips; ++s) {
        const int i = lane_in_warp() + s * LANES, row = i < FitShape::n_samples ? i : FitShape::n_samples - 1;
        double less = left[s];
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) less = fma(-double(factor[row_start(row) + first + r]), y[r], less);
        if (s > STRIP || i >= first + ROWS) left[s] = less;
    }
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r)
        if (lane_in_warp() == (first + r) % LANES) left[STRIP] = y[r];
}
template <int STRIP>
__device__ __forceinline__ void whiten_wide_strips(const float* factor, double (&left)[FitShape::strips]) {
    constexpr int begin = STRIP * LANES, rows = STRIP < FitShape::whole_strips ? LANES : FitShape::rest;
    constexpr int together = rows < SOLVED_ROWS ? rows : SOLVED_ROWS;
    XPKERN_ROLLED
    for (int row = 0; row < rows; row += together) whiten_wide_rows<together, STRIP>(factor, begin + row, left);
    if (STRIP == FitShape::whole_strips && lane_in_warp() >= FitShape::rest) left[STRIP] = 0;
    if constexpr (STRIP + 1 < FitShape::strips) whiten_wide_strips<STRIP + 1>(factor, left);
}

XPKERN_NAMESPACE_END
