// Cholesky factors of many small matrices at once, their updates and inverses: each star of a lane has its own.
//
// A triangle is packed by rows; a factor holds the reciprocals 1 / G_jj on its diagonal, as stored whiteners do.
// Every element is accumulated in one fixed order, as those of lane_product.hpp are.
#pragma once

#include "lane_product.hpp"

XPKERN_NAMESPACE_BEGIN

// The rows of a triangle from some row on.
template <int ROWS, class Element>
XPKERN_INLINE void find_rows(Element* triangle, int first, Element* (&row)[ROWS]) {
    row[0] = triangle + row_start(first);
    XPKERN_UNROLL
    for (int r = 1; r < ROWS; ++r) row[r] = row[r - 1] + first + r;
}

// sum = C_ij - sum_k G_ik G_jk, k = first ... j - 1, of ROWS rows of a triangle and COLUMNS columns from j on.
// pivot_row: the rows of these columns.
template <int ROWS, int COLUMNS, class Element, class Lane>
XPKERN_INLINE void cholesky_sums(Element* const (&row)[ROWS], Element* const (&pivot_row)[COLUMNS], int first, int j,
                                 Lane (&sum)[ROWS][COLUMNS]) {
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const Lane* element = row[r] + j;
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) sum[r][c] = element[c];
    }
    for (int k = first; k < j; ++k) {
        Lane factor[ROWS];
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) factor[r] = row[r][k];
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) {
            const Lane pivot = pivot_row[c][k];
            XPKERN_UNROLL
            for (int r = 0; r < ROWS; ++r) sum[r][c] = fnma(factor[r], pivot, sum[r][c]);
        }
    }
}

// Elements of ROWS rows and COLUMNS columns of a Cholesky factor, below its diagonal:
// G_ij = (C_ij - sum_k G_ik G_jk) / G_jj, k = first ... j - 1.
template <int ROWS, int COLUMNS, class Lane>
XPKERN_INLINE void cholesky_block(Lane* triangle, int first, int i, int j) {
    Lane sum[ROWS][COLUMNS];
    Lane *row[ROWS], *pivot_row[COLUMNS];
    find_rows(triangle, i, row);
    find_rows(triangle, j, pivot_row);
    cholesky_sums(row, pivot_row, first, j, sum);
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
        const Lane* pivot = pivot_row[c] + j;
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            XPKERN_UNROLL
            for (int k = 0; k < c; ++k) sum[r][c] = fnma(sum[r][k], pivot[k], sum[r][c]);
            sum[r][c] = sum[r][c] * pivot[c];
            row[r][j + c] = sum[r][c];
        }
    }
}

// The block of a Cholesky factor on its diagonal at columns j ... j + COLUMNS, reciprocals on the diagonal itself. All
// of its sums run together: one alone would wait for each of its multiply-adds.
template <int COLUMNS, class Lane>
XPKERN_INLINE void cholesky_corner(Lane* triangle, int first, int j) {
    Lane sum[COLUMNS][COLUMNS];
    Lane* row[COLUMNS];
    find_rows(triangle, j, row);
    XPKERN_UNROLL
    for (int r = 0; r < COLUMNS; ++r) {
        XPKERN_UNROLL
        for (int c = 0; c <= r; ++c) sum[r][c] = row[r][j + c];
    }
    for (int k = first; k < j; ++k) {
        XPKERN_UNROLL
        for (int r = 0; r < COLUMNS; ++r) {
            const Lane factor = row[r][k];
            XPKERN_UNROLL
            for (int c = 0; c <= r; ++c) sum[r][c] = fnma(factor, row[c][k], sum[r][c]);
        }
    }
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
        XPKERN_UNROLL
        for (int k = 0; k < c; ++k) {
            XPKERN_UNROLL
            for (int r = c; r < COLUMNS; ++r) sum[r][c] = fnma(sum[r][k], sum[c][k], sum[r][c]);
        }
        const Lane reciprocal = lane<Lane>(1) / sqrt(sum[c][c]);
        row[c][j + c] = reciprocal;
        XPKERN_UNROLL
        for (int r = c + 1; r < COLUMNS; ++r) {
            sum[r][c] = sum[r][c] * reciprocal;
            row[r][j + c] = sum[r][c];
        }
    }
}

template <int COLUMNS, class Lane>
XPKERN_INLINE void cholesky_columns(Lane* triangle, int first, int begin, int end, int j) {
    int i = begin;
    if (j >= begin) {
        cholesky_corner<COLUMNS>(triangle, first, j);
        i = j + COLUMNS;
    }
    for (; i + 4 <= end; i += 4) cholesky_block<4, COLUMNS>(triangle, first, i, j);
    for (; i < end; ++i) cholesky_block<1, COLUMNS>(triangle, first, i, j);
}

// Cholesky factor in place of rows begin ... end of C, whose elements left of column `first` are zero.
//
// Rows before `begin` hold their factor already. A covariance that is not positive definite leaves NaN or infinity.
// Cost: the number of elements times a third or more of a row's length, as of any Cholesky factor.
template <class Lane>
XPKERN_KERNEL void cholesky(Lane* triangle, int begin, int end, int first) {
    constexpr int COLUMNS = ACCUMULATORS >= 16 ? 4 : 2;
    for (int j = first; j < end;) {
        const int boundary = j < begin ? begin : end;
        if (j + COLUMNS <= boundary) {
            cholesky_columns<COLUMNS>(triangle, first, begin, end, j);
            j += COLUMNS;
        } else {
            cholesky_columns<1>(triangle, first, begin, end, j);
            ++j;
        }
    }
}

// ROWS rows of y = G^-1 y, from row i on.
template <int ROWS, int COLUMNS, class Lane>
XPKERN_INLINE void solve_rows(const Lane* factor, int begin, int i, const Rows<Lane>& y) {
    Lane sum[ROWS][COLUMNS];
    const Lane* row[ROWS];
    find_rows(factor, i, row);
    Lane* const out = y[i - begin];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) sum[r][c] = (out + r * y.columns)[c];
    }
    const Lane* known = y.origin;
    for (int k = begin; k < i; ++k) {
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const Lane element = row[r][k];
            XPKERN_UNROLL
            for (int c = 0; c < COLUMNS; ++c) sum[r][c] = fnma(element, known[c], sum[r][c]);
        }
        known += y.columns;
    }
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const Lane* element = row[r] + i;
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) {
            XPKERN_UNROLL
            for (int k = 0; k < r; ++k) sum[r][c] = fnma(element[k], sum[k][c], sum[r][c]);
            sum[r][c] = sum[r][c] * element[r];
            (out + r * y.columns)[c] = sum[r][c];
        }
    }
}

// y = G^-1 y for the square block of a factor at rows and columns begin ... end. y: (end - begin, COLUMNS), in place.
template <int COLUMNS, class Lane>
XPKERN_INLINE void solve_block(const Lane* factor, int begin, int end, const Rows<Lane>& y) {
    constexpr int ROWS = ACCUMULATORS >= 4 * COLUMNS ? 4 : 2;
    int i = begin;
    for (; i + ROWS <= end; i += ROWS) solve_rows<ROWS, COLUMNS>(factor, begin, i, y);
    for (; i < end; ++i) solve_rows<1, COLUMNS>(factor, begin, i, y);
}

// Sums of squares of a block's inverse: of all its rows, and of those from some row on.
template <class Lane>
struct InverseNorm {
    Lane all, tail;
};

constexpr int INVERSE_COLUMNS = 4;  // columns of an inverse found at once

// Squared Frobenius norm of the inverse of the block begin ... end of a factor; the tail starts at row `tail`.
//
// present: (m,) 1, or 0 for a sample whose row and column are those of the identity, which are then not counted.
// work: (end - begin, INVERSE_COLUMNS).
template <class Lane>
XPKERN_KERNEL InverseNorm<Lane> inverse_norm(const Lane* factor, int begin, int end, int tail, const Lane* present,
                                             Lane* work) {
    InverseNorm<Lane> norm = {lane<Lane>(0), lane<Lane>(0)};
    for (int j = begin; j < end; j += INVERSE_COLUMNS) {
        fill(work, (end - j) * INVERSE_COLUMNS, 0);
        for (int c = 0; c < INVERSE_COLUMNS && j + c < end; ++c) work[c * INVERSE_COLUMNS + c] = present[j + c];
        solve_block<INVERSE_COLUMNS>(factor, j, end, rectangle(work, INVERSE_COLUMNS));
        for (int i = j; i < end; ++i) {
            Lane square = lane<Lane>(0);
            XPKERN_UNROLL
            for (int c = 0; c < INVERSE_COLUMNS; ++c) {
                const Lane element = work[(i - j) * INVERSE_COLUMNS + c];
                square = fma(element, element, square);
            }
            norm.all += square;
            if (i >= tail) norm.tail += square;
        }
    }
    return norm;
}

// Bounds of inverse_norm() for a quarter of its work: with the block's halves A and B and the rectangle X between them,
//
//     |G^-1|^2 = |A^-1|^2 + |B^-1|^2 + |B^-1 X A^-1|^2 <= |A^-1|^2 + |B^-1|^2 (1 + |X|^2 |A^-1|^2).
template <class Lane>
XPKERN_KERNEL InverseNorm<Lane> inverse_norm_bound(const Lane* factor, int begin, int end, int tail,
                                                   const Lane* present, Lane* work) {
    constexpr int SUMS = 4;  // side by side, as each waits for its last
    const int half = (begin + end) / 2;
    const InverseNorm<Lane> upper = inverse_norm(factor, begin, half, tail, present, work);
    const InverseNorm<Lane> lower = inverse_norm(factor, half, end, tail, present, work);
    Lane sum[SUMS];
    XPKERN_UNROLL
    for (int c = 0; c < SUMS; ++c) sum[c] = lane<Lane>(0);
    for (int i = half; i < end; ++i) {
        const Lane* row = factor + row_start(i);
        int j = begin;
        for (; j + SUMS <= half; j += SUMS) {
            XPKERN_UNROLL
            for (int c = 0; c < SUMS; ++c) sum[c] = fma(row[j + c], row[j + c], sum[c]);
        }
        for (; j < half; ++j) sum[0] = fma(row[j], row[j], sum[0]);
    }
    const Lane link = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    const Lane growth = fma(link, upper.all, lane<Lane>(1));
    return {fma(lower.all, growth, upper.all), fma(lower.tail, growth, upper.tail)};
}

// Squared Frobenius norm of B^-1 X, B the block begin ... end of a factor, X the columns before it from `first` on.
template <class Lane>
XPKERN_KERNEL Lane link_norm(const Lane* factor, int begin, int end, int first, Lane* work) {
    Lane norm = lane<Lane>(0);
    for (int column = first; column < begin; ++column) {
        for (int i = begin; i < end; ++i) work[i - begin] = factor[row_start(i) + column];
        solve_block<1>(factor, begin, end, rectangle(work, 1));
        for (int i = begin; i < end; ++i) norm = fma(work[i - begin], work[i - begin], norm);
    }
    return norm;
}

// What the rows of an update leave for those below: of each column -z, sqrt(t_j / t_{j-1}), z_j / sqrt(t_j t_{j-1}).
template <class Lane>
struct RankOne {
    Lane *minus_z, *stretch, *share;
    Lane total, root, reciprocal_root;  // t, its root and the reciprocal of that, so far

    XPKERN_INLINE void set_total(const Lane& t) {
        total = t;
        root = sqrt(t);
        reciprocal_root = lane<Lane>(1) / root;
    }
    // An element of column j, and the rest of its row: u_i less what the columns before have taken.
    XPKERN_INLINE void change(Lane& element, Lane& rest, int j) const {
        const Lane before = element;
        rest = fma(before, minus_z[j], rest);
        element = fma(share[j], rest, stretch[j] * before);
    }
    // What column j leaves, and its own diagonal: z and t are now that column's.
    XPKERN_INLINE void finish_column(int j, const Lane& z, const Lane& t, Lane& diagonal) {
        const Lane root_before = root, reciprocal_before = reciprocal_root;
        set_total(t);
        minus_z[j] = -z;
        stretch[j] = root * reciprocal_before;
        share[j] = z * reciprocal_root * reciprocal_before;
        diagonal = diagonal * (root_before * reciprocal_root);
    }
};

template <int ROWS, class Lane>
XPKERN_INLINE void rank_one_rows(Lane* factor, int i, const Lane* u, RankOne<Lane>& state) {
    Lane* row[ROWS];
    Lane rest[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        row[r] = factor + row_start(i + r);
        rest[r] = u[i + r];
    }
    const auto column = [&](int r, int j) { state.change(row[r][j], rest[r], j); };
    for (int j = 0; j < i; ++j) {
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) column(r, j);
    }
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const int j = i + r;
        const Lane z = rest[r] * row[r][j];
        state.finish_column(j, z, fma(z, z, state.total), row[r][j]);
        XPKERN_UNROLL
        for (int below = r + 1; below < ROWS; ++below) column(below, j);
    }
}

// The factor of G G^T + u u^T in place of G: adding a positive term is always stable.
//
//     z = G^-1 u,  t_j = 1 + sum_{k<=j} z_k^2,
//     G'_jj = G_jj sqrt(t_j / t_{j-1}),  G'_ij = G_ij sqrt(t_j / t_{j-1}) + w_ij z_j / sqrt(t_j t_{j-1}),
//     w_ij = u_i - sum_{k<=j} G_ik z_k,
// which is G times the Cholesky factor of 1 + z z^T. Cost: n^2 multiply-adds. u: (n,). work: (3, n).
template <class Lane>
XPKERN_KERNEL void rank_one_update(Lane* factor, int n, const Lane* u, Lane* work) {
    RankOne<Lane> state = {work, work + n, work + 2 * n, lane<Lane>(1), lane<Lane>(1), lane<Lane>(1)};
    int i = 0;
    for (; i + 2 <= n; i += 2) rank_one_rows<2>(factor, i, u, state);
    if (i < n) rank_one_rows<1>(factor, i, u, state);
}

XPKERN_NAMESPACE_END
