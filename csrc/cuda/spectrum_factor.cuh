// The linear algebra of calibration by a warp: the factor has a row a lane, inverses a column a lane. The formulas are
// those of core/lane_factor.hpp; here is who computes what.
#pragma once

#include "spectrum_memory.cuh"

XPKERN_NAMESPACE_BEGIN

// COLUMNS columns of cholesky() from column j on. A lane has rows begin + lane, and LANES further, STRIPS of them;
// those of the columns themselves are in STRIP, and what is before it is done.
template <int COLUMNS, int STRIP, int STRIPS>
__device__ __forceinline__ void factor_columns_by_warp(double* triangle, int first, int begin, int end, int j) {
    constexpr int strips = STRIPS - STRIP;
    const int top = begin + STRIP * LANES, lane = lane_in_warp();
    double sum[strips][COLUMNS];
    const double *row[strips], *pivot_row[COLUMNS];
    find_rows<COLUMNS, const double>(triangle, j, pivot_row);
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {  // lanes that have no row of the strip compute what nobody asks for
        const int i = top + s * LANES + lane;
        row[s] = triangle + row_start(i < j ? j : (i < end ? i : end - 1));
    }
    cholesky_sums(row, pivot_row, first, j, sum);
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
        const double reciprocal = rsqrt(from_lane(sum[0][c], j + c - top));
        XPKERN_UNROLL
        for (int s = 0; s < strips; ++s) sum[s][c] *= reciprocal;
        XPKERN_UNROLL
        for (int next = c + 1; next < COLUMNS; ++next) {
            const double pivot = from_lane(sum[0][c], j + next - top);
            XPKERN_UNROLL
            for (int s = 0; s < strips; ++s) sum[s][next] = fma(-sum[s][c], pivot, sum[s][next]);
        }
        sum[0][c] = top + lane == j + c ? reciprocal : sum[0][c];
    }
    __syncwarp();
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const int i = top + s * LANES + lane;
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c)
            if (i >= j + c && i < end) triangle[row_start(i) + j + c] = sum[s][c];
    }
    __syncwarp();
}

template <int STRIP, int STRIPS>
__device__ __forceinline__ void factor_strip_by_warp(double* triangle, int first, int begin, int end) {
    constexpr int COLUMNS = 4;
    static_assert(LANES % COLUMNS == 0, "columns that are found together have their rows in one strip");
    int j = begin + STRIP * LANES;
    const int last = j + LANES < end ? j + LANES : end;
    for (; j + COLUMNS <= last; j += COLUMNS)
        factor_columns_by_warp<COLUMNS, STRIP, STRIPS>(triangle, first, begin, end, j);
    for (; j < last; ++j) factor_columns_by_warp<1, STRIP, STRIPS>(triangle, first, begin, end, j);
    if constexpr (STRIP + 1 < STRIPS) factor_strip_by_warp<STRIP + 1, STRIPS>(triangle, first, begin, end);
}

// The core's cholesky() for a warp.
__device__ __forceinline__ void cholesky_by_warp(int begin, int end, int first) {
    double* const triangle = spectrum_of_warp().triangle;
    XPKERN_UNROLL_BY(1)
    for (int j = first; j < begin; ++j) {
        for (int i = begin + lane_in_warp(); i < end; i += LANES) cholesky_block<1, 1>(triangle, first, i, j);
    }
    __syncwarp();
    factor_strip_by_warp<0, UsualSpectrum::block_strips>(triangle, first, begin, end);
}

// The core's inverse_norm() and, as `link`, link_norm() of a block for a warp: a lane has a column.
struct BlockNorms {
    InverseNorm<double> inverse;
    double link;
};
__device__ __forceinline__ BlockNorms block_norms_by_warp(int begin, int end, int first, int tail) {
    SharedSpectrum& star = spectrum_of_warp();
    const Rows<double> y = rectangle(star.columns.number + lane_in_warp(), LANES);
    BlockNorms norms{};
    for (int at = first; at < end; at += LANES) {
        const int column = at + lane_in_warp(), top = at < begin ? begin : at;
        const bool linked = column < begin;
        const int of_link = linked ? column : 0;
        XPKERN_UNROLL_BY(4)
        for (int i = top; i < end; ++i) {
            const double link = star.triangle[row_start(i) + of_link], unit = i == column ? star.present[i] : 0;
            y[i - top][0] = linked ? link : unit;
        }
        solve_block<1>(star.triangle, top, end, y);
        double all = 0, of_tail = 0;
        XPKERN_UNROLL_BY(4)
        for (int i = top; i < end; ++i) {
            const double element = y[i - top][0];
            all = fma(element, element, all);
            of_tail += i >= tail ? element * element : 0;
        }
        norms.link += linked ? all : 0;
        norms.inverse.all += linked ? 0 : all;
        norms.inverse.tail += linked ? 0 : of_tail;
    }
    __syncwarp();
    return {{sum_over_lanes(norms.inverse.all), sum_over_lanes(norms.inverse.tail)}, sum_over_lanes(norms.link)};
}

// Column j of a rank-one update: z_j, and t before it and after.
struct UpdatedColumn {
    double z, before, after;
};

// z and t of ROWS rows of STRIP from row `first` on; what is left of u in the rows below them. Every lane solves the
// rows for itself, so that what all wait for is one exchange.
template <int ROWS, int STRIP>
__device__ __forceinline__ void solve_rows_by_warp(const double* triangle, int first,
                                                   double (&left)[UsualSpectrum::strips], double& total,
                                                   UpdatedColumn& own) {
    const int lane = lane_in_warp();
    double z[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) z[r] = from_lane(left[STRIP], first + r - STRIP * LANES);
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        z[r] *= triangle[row_start(first + r) + first + r];
        XPKERN_UNROLL
        for (int below = r + 1; below < ROWS; ++below)
            z[below] = fma(-triangle[row_start(first + below) + first + r], z[r], z[below]);
        const UpdatedColumn column = {z[r], total, fma(z[r], z[r], total)};
        if (STRIP * LANES + lane == first + r) own = column;
        total = column.after;
    }
    XPKERN_UNROLL
    for (int s = STRIP; s < UsualSpectrum::strips; ++s) {
        constexpr int last = UsualSpectrum::xp_samples - 1;
        const int i = lane + s * LANES, row = i < last ? i : last;
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) {  // lanes whose row is done compute what nobody asks for
            const int column = first + r < row ? first + r : row;
            left[s] = fma(-triangle[row_start(row) + column], z[r], left[s]);
        }
    }
}

template <int STRIP>
__device__ __forceinline__ void solve_strip_by_warp(const double* triangle, double (&left)[UsualSpectrum::strips],
                                                    double& total, UpdatedColumn (&own)[UsualSpectrum::strips]) {
    constexpr int ROWS = 4, begin = STRIP * LANES, x = UsualSpectrum::xp_samples;
    constexpr int end = begin + LANES < x ? begin + LANES : x, rest = (end - begin) % ROWS;
    XPKERN_UNROLL_BY(1)
    for (int row = begin; row < end - rest; row += ROWS)
        solve_rows_by_warp<ROWS, STRIP>(triangle, row, left, total, own[STRIP]);
    if constexpr (rest > 0) solve_rows_by_warp<rest, STRIP>(triangle, end - rest, left, total, own[STRIP]);
    if constexpr (STRIP + 1 < UsualSpectrum::strips) solve_strip_by_warp<STRIP + 1>(triangle, left, total, own);
}

// The core's rank_one_update() by u = common f for a warp: first z and t, a row a lane, then what they change.
__device__ __forceinline__ void add_common_error_by_warp(double common) {
    constexpr int x = UsualSpectrum::xp_samples, strips = UsualSpectrum::strips;
    if (common == 0) return;
    SharedSpectrum& star = spectrum_of_warp();
    double* const triangle = star.triangle;
    double* const work = star.columns.number;
    const int lane = lane_in_warp();
    double left[strips], total = 1;
    UpdatedColumn own[strips] = {};
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) left[s] = lane + s * LANES < x ? common * star.flux[lane + s * LANES] : 0;
    solve_strip_by_warp<0>(triangle, left, total, own);
    __syncwarp();
    RankOne<double> state = {work, work + x, work + 2 * x, 1, 1, 1};
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const int j = lane + s * LANES;
        if (j >= x) continue;
        state.set_total(own[s].before);
        state.finish_column(j, own[s].z, own[s].after, triangle[row_start(j) + j]);
    }
    __syncwarp();
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const int i = lane + s * LANES;
        if (i >= x) continue;
        double rest = common * star.flux[i];
        for (int j = 0; j < i; ++j) state.change(triangle[row_start(i) + j], rest, j);
    }
    __syncwarp();
}

XPKERN_NAMESPACE_END
