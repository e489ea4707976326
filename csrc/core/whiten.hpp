// Whitening by forward substitution: y = G^-1 b, G the Cholesky factor of the covariance, C = G G^T.
//
// The factor is the packed lower triangle by rows, (m (m + 1) / 2,), its diagonal holding 1 / G_jj. A missing sample
// has zeros in its row, column and reciprocal diagonal, so that its y is 0. Cost: m^2 / 2 fused multiply-adds a column.
#pragma once

#include "math.hpp"

XPKERN_NAMESPACE_BEGIN

XPKERN_INLINE int row_start(int row) {
    return row * (row + 1) / 2;
}

// Rows i ... i + ROWS of COLUMNS right-hand sides, in place. column[c]: (m,). The factor may be narrower than the
// columns.
template <int ROWS, int COLUMNS, class Factor, class Lane>
XPKERN_INLINE void whiten_rows(const Factor* factor, int i, Lane* const* column) {
    Lane sum[ROWS][COLUMNS];
    const Factor* row[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        row[r] = factor + row_start(i + r);
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) sum[r][c] = lane<Lane>(0);
    }
    for (int j = 0; j < i; ++j) {
        Lane y[COLUMNS];
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) y[c] = column[c][j];
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const Lane g = convert<Lane>(row[r][j]);
            XPKERN_UNROLL
            for (int c = 0; c < COLUMNS; ++c) sum[r][c] = fma(g, y[c], sum[r][c]);
        }
    }
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const Lane reciprocal = convert<Lane>(row[r][i + r]);
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) {
            const Lane y = (column[c][i + r] - sum[r][c]) * reciprocal;
            column[c][i + r] = y;
            XPKERN_UNROLL
            for (int below = r + 1; below < ROWS; ++below)
                sum[below][c] = fma(convert<Lane>(row[below][i + r]), y, sum[below][c]);
        }
    }
}

template <int ROWS, int COLUMNS, class Factor, class Lane>
XPKERN_INLINE void whiten_columns(const Factor* factor, int m, Lane* const* column) {
    int i = 0;
    for (; i + ROWS <= m; i += ROWS) whiten_rows<ROWS, COLUMNS>(factor, i, column);
    for (; i < m; ++i) whiten_rows<1, COLUMNS>(factor, i, column);
}

// Any number of columns, six at a time (a residual and five slopes).
template <class Factor, class Lane>
XPKERN_INLINE void whiten(const Factor* factor, int m, int columns, Lane* const* column) {
    constexpr int registers = LaneTraits<Lane>::registers;
    constexpr int room = ACCUMULATORS / registers;
    int c = 0;
    for (; c + 6 <= columns; c += 6) whiten_columns<(room >= 12 ? 2 : 1), 6>(factor, m, column + c);
    for (; c + 5 <= columns; c += 5) whiten_columns<(room >= 10 ? 2 : 1), 5>(factor, m, column + c);
    for (; c < columns; ++c) whiten_columns<(room >= 8 ? 8 : 4), 1>(factor, m, column + c);
}

// w = G^-T y = C^-1 b, in place of y. Column-free: a solved element is subtracted along its row of the factor.
template <class Lane>
XPKERN_INLINE void unwhiten(const Lane* factor, int m, Lane* y) {
    for (int i = m - 1; i >= 0; --i) {
        const Lane* row = factor + row_start(i);
        const Lane w = y[i] * row[i];
        y[i] = w;
        const Lane minus = -w;
        for (int j = 0; j < i; ++j) y[j] = fma(row[j], minus, y[j]);
    }
}

XPKERN_NAMESPACE_END
