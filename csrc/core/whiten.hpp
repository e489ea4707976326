// Whitening by forward substitution: y = G^-1 b, G the Cholesky factor of the covariance, C = G G^T.
//
// The factor is the packed lower triangle by rows, (m (m + 1) / 2,), its diagonal holding 1 / G_jj. A missing sample
// has zeros in its row, column and reciprocal diagonal, so that its y is 0. Cost: m^2 / 2 fused multiply-adds a column.
#pragma once

#include "math.hpp"

XPKERN_NAMESPACE_BEGIN

XPKERN_INLINE constexpr int row_start(int row) {
    return row * (row + 1) / 2;
}

// Right-hand sides lie side by side, (m, stride), the first of them at `column`; they are whitened in place. One more,
// (m,), may be carried along in a wider type than the factor: none where WIDE = 0. begin: the first column of the
// factor that these rows have.
template <int ROWS, int COLUMNS, int WIDE, class Lane, class Wide, class Meanwhile>
XPKERN_INLINE void whiten_rows(const Lane* factor, int begin, int i, int stride, Lane* column, Wide* wide,
                               const Meanwhile& meanwhile) {
    Lane minus[ROWS][COLUMNS > 0 ? COLUMNS : 1];  // what is left of the right-hand sides, negated
    Wide wide_minus[ROWS];
    const Lane* row[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        row[r] = factor + row_start(i + r);
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) minus[r][c] = -column[(i + r) * stride + c];
        if constexpr (WIDE) wide_minus[r] = -wide[i + r];
    }
    for (int j = begin; j < i; ++j) {
        meanwhile();
        if constexpr (COLUMNS < ROWS) {  // the fewer operands are those that are held in registers
            Lane y[COLUMNS > 0 ? COLUMNS : 1];
            XPKERN_UNROLL
            for (int c = 0; c < COLUMNS; ++c) y[c] = held(column[j * stride + c]);
            XPKERN_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const Lane g = COLUMNS > 1 ? held(row[r][j]) : row[r][j];
                XPKERN_UNROLL
                for (int c = 0; c < COLUMNS; ++c) minus[r][c] = fma(g, y[c], minus[r][c]);
            }
        } else {
            Lane g[ROWS];
            XPKERN_UNROLL
            for (int r = 0; r < ROWS; ++r) g[r] = held(row[r][j]);
            XPKERN_UNROLL
            for (int c = 0; c < COLUMNS; ++c) {
                const Lane y = held(column[j * stride + c]);
                XPKERN_UNROLL
                for (int r = 0; r < ROWS; ++r) minus[r][c] = fma(g[r], y, minus[r][c]);
            }
        }
        if constexpr (WIDE) {
            const Wide y = held(wide[j]);
            XPKERN_UNROLL
            for (int r = 0; r < ROWS; ++r) wide_minus[r] = fma(convert<Wide>(row[r][j]), y, wide_minus[r]);
        }
    }
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const Lane minus_reciprocal = -row[r][i + r];
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) {
            const Lane y = minus[r][c] * minus_reciprocal;
            column[(i + r) * stride + c] = y;
            XPKERN_UNROLL
            for (int below = r + 1; below < ROWS; ++below) minus[below][c] = fma(row[below][i + r], y, minus[below][c]);
        }
        if constexpr (WIDE) {
            const Wide y = wide_minus[r] * -convert<Wide>(row[r][i + r]);
            wide[i + r] = y;
            XPKERN_UNROLL
            for (int below = r + 1; below < ROWS; ++below)
                wide_minus[below] = fma(convert<Wide>(row[below][i + r]), y, wide_minus[below]);
        }
    }
}

// Rows of a factor that go through a product together, of so many accumulators each.
XPKERN_INLINE constexpr int rows_of_block(int registers) {
    const int wanted = ACCUMULATORS / registers;
    return wanted < 1 ? 1 : (wanted > 8 ? 8 : wanted);
}

// Rows first ... end, once those above are whitened. Rows that do not fill a block come first, where they are short.
template <int COLUMNS, int WIDE, class Lane, class Wide, class Meanwhile>
XPKERN_INLINE void whiten_range(const Lane* factor, int begin, int first, int end, int stride, Lane* column, Wide* wide,
                                const Meanwhile& meanwhile) {
    constexpr int ROWS = rows_of_block(COLUMNS * LaneTraits<Lane>::registers + WIDE * LaneTraits<Wide>::registers);
    int i = first;
    for (; i < first + (end - first) % ROWS; ++i)
        whiten_rows<1, COLUMNS, WIDE>(factor, begin, i, stride, column, wide, meanwhile);
    for (; i < end; i += ROWS) {
        whiten_rows<ROWS, COLUMNS, WIDE>(factor, begin, i, stride, column, wide, meanwhile);
        meanwhile.between_blocks();
    }
}

// A function of its own on a CPU: amid other code the compiler keeps constants of that in registers, and some of the
// sums in memory.
template <int COLUMNS, int WIDE, class Lane, class Wide, class Meanwhile = Nothing>
XPKERN_STEP void whiten_columns(const Lane* factor, int m, int stride, Lane* column, Wide* wide,
                                const Meanwhile& meanwhile = {}) {
    whiten_range<COLUMNS, WIDE>(factor, 0, 0, m, stride, column, wide, meanwhile);
}

// The first `columns` of the right-hand sides column: (m, stride), six at a time (a residual and five slopes).
// Factor: a pointer to what is described above, or another form of it, such as BlockFactor.
template <class Factor, class Lane, class Meanwhile = Nothing>
XPKERN_INLINE void whiten(const Factor& factor, int m, int columns, int stride, Lane* column,
                          const Meanwhile& meanwhile = {}) {
    Lane* const none = nullptr;
    int c = 0;
    for (; c + 6 <= columns; c += 6) whiten_columns<6, 0>(factor, m, stride, column + c, none, meanwhile);
    for (; c + 3 <= columns; c += 3) whiten_columns<3, 0>(factor, m, stride, column + c, none, meanwhile);
    for (; c < columns; ++c) whiten_columns<1, 0>(factor, m, stride, column + c, none, meanwhile);
}

// How often a right-hand side's way there and back calls meanwhile().
template <class Lane>
XPKERN_INLINE constexpr int calls_of_whitening(int m) {
    constexpr int ROWS = rows_of_block(LaneTraits<Lane>::registers);
    int calls = 0;
    for (int i = 0; i < m; i += i < m % ROWS ? 1 : ROWS) calls += i;
    return 2 * calls;
}

// A single right-hand side, (m,).
template <class Factor, class Lane, class Meanwhile>
XPKERN_INLINE void whiten_one(const Factor& factor, int m, Lane* column, const Meanwhile& meanwhile) {
    Lane* const none = nullptr;
    whiten_columns<1, 0>(factor, m, 1, column, none, meanwhile);
}

// The same with wide: (m,) beside them. Changing the factor's precision is as much work as a multiply-add, on units
// that have nothing else to do while the columns are whitened; where registers are few, though, the columns need them.
template <class Factor, class Lane, class Wide, class Meanwhile>
XPKERN_INLINE void whiten_with(const Factor& factor, int m, int columns, int stride, Lane* column, Wide* wide,
                               const Meanwhile& meanwhile) {
    constexpr bool together = ACCUMULATORS >= 3 * (5 * LaneTraits<Lane>::registers + LaneTraits<Wide>::registers);
    int c = 0;
    if (columns >= 5) {
        whiten_columns<5, together>(factor, m, stride, column, wide, meanwhile);
        c = 5;
    } else if (together) {
        whiten_columns<1, 1>(factor, m, stride, column, wide, meanwhile);
        c = 1;
    }
    if (!together) whiten_columns<0, 1>(factor, m, stride, column, wide);
    whiten(factor, m, columns - c, stride, column + c);
}

// Rows i ... i + ROWS of w = G^-T y; what they contribute to the rows above is subtracted there.
template <int ROWS, class Lane, class Meanwhile>
XPKERN_INLINE void unwhiten_rows(const Lane* factor, int begin, int i, Lane* y, const Meanwhile& meanwhile) {
    Lane minus[ROWS];
    const Lane* row[ROWS];
    XPKERN_UNROLL
    for (int r = ROWS - 1; r >= 0; --r) {
        row[r] = factor + row_start(i + r);
        Lane left = y[i + r];
        XPKERN_UNROLL
        for (int below = ROWS - 1; below > r; --below) left = fma(row[below][i + r], minus[below], left);
        y[i + r] = left * row[r][i + r];
        minus[r] = -y[i + r];
    }
    for (int j = i - 1; j >= begin; --j) {
        meanwhile();
        Lane left = y[j];
        XPKERN_UNROLL
        for (int r = ROWS - 1; r >= 0; --r) left = fma(row[r][j], minus[r], left);
        y[j] = left;
    }
}

// Rows first ... end, once those below have left the others theirs.
template <class Lane, class Meanwhile>
XPKERN_INLINE void unwhiten_range(const Lane* factor, int begin, int first, int end, Lane* y,
                                  const Meanwhile& meanwhile) {
    constexpr int ROWS = rows_of_block(LaneTraits<Lane>::registers);
    int i = end;
    for (; i >= first + ROWS; i -= ROWS) {
        unwhiten_rows<ROWS>(factor, begin, i - ROWS, y, meanwhile);
        meanwhile.between_blocks();
    }
    for (; i > first; --i) unwhiten_rows<1>(factor, begin, i - 1, y, meanwhile);
}

// w = G^-T y = C^-1 b, in place of y: (m,).
template <class Lane, class Meanwhile = Nothing>
XPKERN_INLINE void unwhiten(const Lane* factor, int m, Lane* y, const Meanwhile& meanwhile = {}) {
    unwhiten_range(factor, 0, 0, m, y, meanwhile);
}

// Of a sample, from the reciprocal on its diagonal and the sum of squares to the left of that; 0 where it is missing.
template <class Real>
XPKERN_INLINE Real variance_of_sample(const Real& reciprocal, const Real& sum) {
    const Mask<Real> present = reciprocal > lane<Real>(0);
    const Real diagonal = lane<Real>(1) / select(present, reciprocal, lane<Real>(1));
    return select(present, fma(diagonal, diagonal, sum), lane<Real>(0));
}

// Variance of samples i ... i + ROWS: sums of several rows at a time, as each is a chain of additions that wait for one
// another. begin: the first column of the factor that these rows have, and weight of its squares.
template <int ROWS, class Real>
XPKERN_INLINE void variance_of_rows(const Real* factor, int begin, const Real& weight, int i, Real* variance) {
    Real sum[ROWS];
    const Real* row[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        row[r] = factor + row_start(i + r);
        sum[r] = begin < i ? row[r][begin] * row[r][begin] * weight : lane<Real>(0);
    }
    for (int j = begin + 1; j < i; ++j) {
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) sum[r] = fma(row[r][j], row[r][j], sum[r]);
    }
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        for (int j = i; j < i + r; ++j) sum[r] = fma(row[r][j], row[r][j], sum[r]);
        variance[i + r] = variance_of_sample(row[r][i + r], sum[r]);
    }
}

template <class Real>
XPKERN_INLINE void variance_of_range(const Real* factor, int begin, const Real& weight, int first, int end,
                                     Real* variance) {
    constexpr int ROWS = 8;
    int i = first;
    for (; i < first + (end - first) % ROWS; ++i) variance_of_rows<1>(factor, begin, weight, i, variance);
    for (; i < end; i += ROWS) variance_of_rows<ROWS>(factor, begin, weight, i, variance);
}

// Variance of each sample, (m,); 0 where it is missing.
template <class Real>
XPKERN_INLINE void sample_variance(const Real* factor, int m, Real* variance) {
    variance_of_range(factor, 0, lane<Real>(1), 0, m, variance);
}

XPKERN_NAMESPACE_END
