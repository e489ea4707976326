// Whitening a star's residual by a warp, and the way back: by substitution in G, or as products with G^-1 where that
// was made as the stars arrived. Of a substitution's 17 steps each waits for the one before; the products wait for
// nothing. A lane has every 32nd sample.
#pragma once

#include "train_memory.cuh"

XPKERN_NAMESPACE_BEGIN

// What is left to be done once the copies are there: the squares on the diagonal are inverted, one by a lane. On that
// diagonal G has the inverses of its numbers.
__device__ __forceinline__ void invert_squares(SharedStar& star) {
    constexpr int m = WarpShape::samples();
    __syncwarp();
    const int lane = lane_in_warp(), first = lane * SOLVED_ROWS;
    if (lane < SharedStar::squares) {
        float inverse[SOLVED_ROWS][SOLVED_ROWS];
        XPKERN_UNROLL
        for (int r = 0; r < SOLVED_ROWS; ++r) {
            const bool there = first + r < m;
            const float* row = star.factor + row_start(there ? first + r : m - 1) + first;
            inverse[r][r] = there ? row[r] : 1.0f;
            XPKERN_UNROLL
            for (int c = 0; c < r; ++c) {
                float sum = 0;
                XPKERN_UNROLL
                for (int between = c; between < r; ++between)
                    sum = fma(there ? row[between] : 0.0f, inverse[between][c], sum);
                inverse[r][c] = -inverse[r][r] * sum;
            }
        }
        XPKERN_UNROLL
        for (int r = 0; r < SOLVED_ROWS; ++r) {
            XPKERN_UNROLL
            for (int c = 0; c <= r; ++c) star.inverse[lane][row_start(r) + c] = inverse[r][c];
        }
    }
    __syncwarp();
}

// Of four numbers that of the lane.
__device__ __forceinline__ float of_lane(const float* number) {
    const bool odd = lane_in_warp() % 2 == 1, upper = lane_in_warp() / 2 % 2 == 1;
    const float low = odd ? number[1] : number[0], high = odd ? number[3] : number[2];
    return upper ? high : low;
}

// y = M x and M^T x, M being the inverse of a square on the diagonal, of its first ROWS rows.
template <int ROWS>
__device__ __forceinline__ void solve_square(const float* inverse, const float* x, float* y) {
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        y[r] = inverse[row_start(r)] * x[0];
        XPKERN_UNROLL
        for (int c = 1; c <= r; ++c) y[r] = fma(inverse[row_start(r) + c], x[c], y[r]);
    }
}
template <int ROWS>
__device__ __forceinline__ void solve_square_back(const float* inverse, const float* x, float* y) {
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        y[r] = inverse[row_start(r) + r] * x[r];
        XPKERN_UNROLL
        for (int c = r + 1; c < ROWS; ++c) y[r] = fma(inverse[row_start(c) + r], x[c], y[r]);
    }
}

// Strips of which each lane has a sample, and samples beyond.
constexpr int WHOLE_STRIPS = WarpShape::samples() / LANES, REST = WarpShape::samples() % LANES;
static_assert(REST > 0 && REST <= SOLVED_ROWS && SOLVED_ROWS == 4);

// What is left of the lane's samples, (strips,), becomes y = G^-1 b in the rows of a strip: every lane solves
// SOLVED_ROWS of them for itself by the inverse of their square, so that what all wait for is one exchange, and takes
// them from what is left of its own. Lanes compute what they have no use for rather than branch. Not unrolled, as code
// that runs once takes longer to arrive than to run.
template <int STRIP>
__device__ __forceinline__ void whiten_strip(const SharedStar& star, float* left) {
    const int lane = lane_in_warp();
    XPKERN_ROLLED
    for (int begin = 0; begin < LANES; begin += SOLVED_ROWS) {
        const int first = STRIP * LANES + begin;
        float x[SOLVED_ROWS], y[SOLVED_ROWS];
        XPKERN_UNROLL
        for (int r = 0; r < SOLVED_ROWS; ++r) x[r] = from_lane(left[STRIP], begin + r);
        solve_square<SOLVED_ROWS>(star.inverse[first / SOLVED_ROWS], x, y);
        const float mine = of_lane(y), before = left[STRIP];
        XPKERN_UNROLL
        for (int s = STRIP; s < WHOLE_STRIPS; ++s) {
            const float* factor = star.factor + row_start(lane + s * LANES) + first;
            XPKERN_UNROLL
            for (int r = 0; r < SOLVED_ROWS; ++r) left[s] = fma(-factor[r], y[r], left[s]);
        }
        if (lane < begin + SOLVED_ROWS) left[STRIP] = lane < begin ? before : mine;
    }
    if constexpr (STRIP + 1 < WHOLE_STRIPS) whiten_strip<STRIP + 1>(star, left);
}

__device__ __forceinline__ void whiten_by_warp(const SharedStar& star, float* left) {
    whiten_strip<0>(star, left);
    const int lane = lane_in_warp();
    float x[REST], y[REST];  // the last rows: a sum over the lanes each
    XPKERN_UNROLL
    for (int r = 0; r < REST; ++r) {
        const float* factor = star.factor + row_start(WHOLE_STRIPS * LANES + r) + lane;
        x[r] = 0;
        XPKERN_UNROLL
        for (int s = 0; s < WHOLE_STRIPS; ++s) x[r] = fma(-factor[s * LANES], left[s], x[r]);
        if (lane == r) x[r] += left[WHOLE_STRIPS];
    }
    XPKERN_UNROLL
    for (int half = LANES / 2; half > 0; half /= 2) {
        XPKERN_UNROLL
        for (int r = 0; r < REST; ++r) x[r] += from_lane(x[r], lane ^ half);
    }
    solve_square<REST>(star.inverse[SharedStar::squares - 1], x, y);
    XPKERN_UNROLL
    for (int r = 0; r < REST; ++r) left[WHOLE_STRIPS] = lane == r ? y[r] : left[WHOLE_STRIPS];
}

// The same from the last row up: w = G^-T y.
template <int STRIP>
__device__ __forceinline__ void unwhiten_strip(const SharedStar& star, float* left) {
    const int lane = lane_in_warp();
    XPKERN_ROLLED
    for (int begin = LANES - SOLVED_ROWS; begin >= 0; begin -= SOLVED_ROWS) {
        const int first = STRIP * LANES + begin;
        float x[SOLVED_ROWS], w[SOLVED_ROWS];
        XPKERN_UNROLL
        for (int r = 0; r < SOLVED_ROWS; ++r) x[r] = from_lane(left[STRIP], begin + r);
        solve_square_back<SOLVED_ROWS>(star.inverse[first / SOLVED_ROWS], x, w);
        const float mine = of_lane(w), before = left[STRIP];
        const float* factor = star.factor + row_start(first) + lane;
        XPKERN_UNROLL
        for (int r = 0; r < SOLVED_ROWS; ++r) {
            XPKERN_UNROLL
            for (int s = 0; s <= STRIP; ++s) left[s] = fma(-factor[s * LANES], w[r], left[s]);
            factor += first + r + 1;  // the next row
        }
        if (lane >= begin) left[STRIP] = lane < begin + SOLVED_ROWS ? mine : before;
    }
    if constexpr (STRIP > 0) unwhiten_strip<STRIP - 1>(star, left);
}

__device__ __forceinline__ void unwhiten_by_warp(const SharedStar& star, float* left) {
    const int lane = lane_in_warp();
    float x[REST], w[REST];
    XPKERN_UNROLL
    for (int r = 0; r < REST; ++r) x[r] = from_lane(left[WHOLE_STRIPS], r);
    solve_square_back<REST>(star.inverse[SharedStar::squares - 1], x, w);
    XPKERN_UNROLL
    for (int r = REST - 1; r >= 0; --r) {
        const float* factor = star.factor + row_start(WHOLE_STRIPS * LANES + r) + lane;
        left[WHOLE_STRIPS] = lane == r ? w[r] : left[WHOLE_STRIPS];
        XPKERN_UNROLL
        for (int s = 0; s < WHOLE_STRIPS; ++s) left[s] = fma(-factor[s * LANES], w[r], left[s]);
    }
    unwhiten_strip<WHOLE_STRIPS - 1>(star, left);
}

// Columns of the triangle, or rows on the way back, that are multiplied at a time. None of it is a loop: addresses
// known to the compiler let all loads be on their way before one is used.
constexpr int MULTIPLIED = 16;

// What all lanes multiply by: the lane's samples, to shared memory.
__device__ __forceinline__ void show_samples(SharedStar& star, const float* mine) {
    __syncwarp();  // no lane still reads what was there
    XPKERN_UNROLL
    for (int s = 0; s < WarpShape::strips; ++s) {
        const int i = lane_in_warp() + s * LANES;
        if (i < WarpShape::samples()) star.given[i] = mine[s];
    }
    __syncwarp();
}

// Two sums a strip, so that one need not wait for the other.
using StripPairs = float[WHOLE_STRIPS][2];

// sums += M b in the columns of a strip, M being G^-1: a row a lane. What is beyond the row's end is loaded, too, and
// multiplied by 0: with loads that are left out in some lanes each would wait for the one before.
template <int STRIP>
__device__ __forceinline__ void multiply_strip(const SharedStar& star, StripPairs& sums) {
    const int lane = lane_in_warp();
    XPKERN_UNROLL
    for (int begin = 0; begin < LANES; begin += MULTIPLIED) {
        const float* const given = star.given + STRIP * LANES + begin;
        XPKERN_UNROLL
        for (int s = STRIP; s < WHOLE_STRIPS; ++s) {
            const float* const row = star.factor + row_start(lane + s * LANES) + STRIP * LANES + begin;
            float factor[MULTIPLIED];
            XPKERN_UNROLL
            for (int c = 0; c < MULTIPLIED; ++c) factor[c] = row[c];
            XPKERN_UNROLL
            for (int c = 0; c < MULTIPLIED; ++c) {
                const bool exists = s > STRIP || begin + c <= lane;
                sums[s][c % 2] = fma(factor[c], exists ? given[c] : 0.0f, sums[s][c % 2]);
            }
        }
    }
    if constexpr (STRIP + 1 < WHOLE_STRIPS) multiply_strip<STRIP + 1>(star, sums);
}

// The lane's samples, (strips,), become those of M b.
__device__ __forceinline__ void multiply_by_inverse(SharedStar& star, float* mine) {
    const int lane = lane_in_warp();
    show_samples(star, mine);
    float last[REST] = {};  // the last rows: a sum over the lanes each
    XPKERN_UNROLL
    for (int r = 0; r < REST; ++r) {
        const float* const row = star.factor + row_start(WHOLE_STRIPS * LANES + r) + lane;
        XPKERN_UNROLL
        for (int s = 0; s < WHOLE_STRIPS; ++s) last[r] = fma(row[s * LANES], mine[s], last[r]);
        if (lane <= r) last[r] = fma(row[WHOLE_STRIPS * LANES], mine[WHOLE_STRIPS], last[r]);
    }
    StripPairs sums = {};
    multiply_strip<0>(star, sums);
    XPKERN_UNROLL
    for (int s = 0; s < WHOLE_STRIPS; ++s) mine[s] = sums[s][0] + sums[s][1];
    XPKERN_UNROLL
    for (int half = LANES / 2; half > 0; half /= 2) {
        XPKERN_UNROLL
        for (int r = 0; r < REST; ++r) last[r] += from_lane(last[r], lane ^ half);
    }
    XPKERN_UNROLL
    for (int r = 0; r < REST; ++r) mine[WHOLE_STRIPS] = lane == r ? last[r] : mine[WHOLE_STRIPS];
}

// sums += M^T y in the rows of a strip: a column a lane.
template <int STRIP>
__device__ __forceinline__ void multiply_strip_back(const SharedStar& star, StripPairs& sums) {
    const int lane = lane_in_warp();
    XPKERN_UNROLL
    for (int begin = 0; begin < LANES; begin += MULTIPLIED) {
        const int first = STRIP * LANES + begin;
        const float* row = star.factor + row_start(first) + lane;
        float factor[MULTIPLIED][STRIP + 1];
        XPKERN_UNROLL
        for (int r = 0; r < MULTIPLIED; ++r) {
            XPKERN_UNROLL
            for (int s = 0; s <= STRIP; ++s) factor[r][s] = row[s * LANES];
            row += first + r + 1;  // the next one
        }
        XPKERN_UNROLL
        for (int r = 0; r < MULTIPLIED; ++r) {
            XPKERN_UNROLL
            for (int s = 0; s <= STRIP; ++s) {
                const bool exists = s < STRIP || lane <= begin + r;
                sums[s][r % 2] = fma(factor[r][s], exists ? star.given[first + r] : 0.0f, sums[s][r % 2]);
            }
        }
    }
    if constexpr (STRIP + 1 < WHOLE_STRIPS) multiply_strip_back<STRIP + 1>(star, sums);
}

// The lane's samples, (strips,), become those of M^T y.
__device__ __forceinline__ void multiply_by_inverse_back(SharedStar& star, float* mine) {
    constexpr int whole = WHOLE_STRIPS * LANES;
    const int lane = lane_in_warp();
    show_samples(star, mine);
    StripPairs sums = {};
    multiply_strip_back<0>(star, sums);
    mine[WHOLE_STRIPS] = 0;
    XPKERN_UNROLL
    for (int r = 0; r < REST; ++r) {
        const float given = star.given[whole + r];
        const float* const row = star.factor + row_start(whole + r) + lane;
        XPKERN_UNROLL
        for (int s = 0; s < WHOLE_STRIPS; ++s) sums[s][r % 2] = fma(row[s * LANES], given, sums[s][r % 2]);
        if (lane <= r) mine[WHOLE_STRIPS] = fma(row[whole], given, mine[WHOLE_STRIPS]);
    }
    XPKERN_UNROLL
    for (int s = 0; s < WHOLE_STRIPS; ++s) mine[s] = sums[s][0] + sums[s][1];
}

// M in the place of G, packed, in memory: a column a lane, in double. Columns are done in their order, and those yet to
// come need no column that is gone.
__device__ __forceinline__ void invert_whitener(float* packed) {
    constexpr int m = WarpShape::samples();
    const int lane = lane_in_warp();
    XPKERN_ROLLED
    for (int first = 0; first < m; first += LANES) {
        const int column = first + lane;
        double inverse[m];
        XPKERN_ROLLED
        for (int i = first; i < m; ++i) {
            const float* const row = packed + row_start(i);
            double sum[2] = {i == column ? 1.0 : 0.0, 0.0};
            XPKERN_UNROLL_FOUR
            for (int k = first; k < i; ++k) sum[k % 2] = fma(-convert<double>(row[k]), inverse[k], sum[k % 2]);
            inverse[i] = (sum[0] + sum[1]) * convert<double>(row[i]);
            __syncwarp();  // all have read the row
            if (column <= i) packed[row_start(i) + column] = convert<float>(inverse[i]);
        }
    }
}

XPKERN_NAMESPACE_END
