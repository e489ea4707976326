// Dense linear algebra of many small matrices at once: each star of a lane has its own, all of one shape.
//
// A triangle is packed by rows; a factor holds the reciprocals 1 / G_jj on its diagonal, as stored whiteners do.
// Every element is accumulated in one fixed order, whatever the blocking: results do not depend on the lane's width.
#pragma once

#include "whiten.hpp"

XPKERN_NAMESPACE_BEGIN

// What walks over a matrix goes from row to row by a pointer: addresses that are computed of indices take as many
// instructions as the multiply-adds, and more registers than there are.

// Rows of a rectangle in memory.
template <class Lane>
struct Rows {
    using Element = Lane;
    Lane* origin;
    int columns;
    XPKERN_INLINE Lane* operator[](int k) const { return origin + k * columns; }
    XPKERN_INLINE int step(int) const { return columns; }  // from row k to row k + 1
};

// Rows of a part of a packed triangle, which start further and further apart: the part begins in this row of it.
template <class Lane>
struct PackedRows {
    using Element = Lane;
    Lane* origin;
    int first;
    XPKERN_INLINE Lane* operator[](int k) const { return origin + k * first + row_start(k); }
    XPKERN_INLINE int step(int k) const { return first + k + 1; }
};

// A packed triangle of n rows with its indices counted from the end: element (i, j) is element (n - 1 - j, n - 1 - i).
template <class Lane>
struct FlippedTriangle {
    Lane* triangle;
    int n;
};

// visit(p, q, element (i + p, j + q)) for p < P, q < Q; of a block on the diagonal only q <= p.
template <bool DIAGONAL, int P, int Q, class Lane, class Visit>
XPKERN_INLINE void visit_block(const PackedRows<Lane>& rows, int i, int j, const Visit& visit) {
    Lane* row = rows[i] + j;
    XPKERN_UNROLL
    for (int p = 0; p < P; ++p) {
        XPKERN_UNROLL
        for (int q = 0; q < (DIAGONAL ? p + 1 : Q); ++q) visit(p, q, row[q]);
        row += rows.step(i + p);
    }
}
template <bool DIAGONAL, int P, int Q, class Lane, class Visit>
XPKERN_INLINE void visit_block(const FlippedTriangle<Lane>& flipped, int i, int j, const Visit& visit) {
    const int last = flipped.n - 1;
    Lane* row = flipped.triangle + row_start(last - j) + last - i;
    XPKERN_UNROLL
    for (int q = 0; q < Q; ++q) {
        XPKERN_UNROLL
        for (int p = DIAGONAL ? q : 0; p < P; ++p) visit(p, q, row[-p]);
        row -= last - j - q;
    }
}

template <class Lane>
XPKERN_INLINE Rows<Lane> rectangle(Lane* origin, int columns) {
    return {origin, columns};
}

// The part of a packed triangle that starts at (row, column).
template <class Lane>
XPKERN_INLINE PackedRows<Lane> part_of_triangle(Lane* triangle, int row, int column) {
    return {triangle + row_start(row) + column, row};
}

template <class Lane>
XPKERN_INLINE void fill(Lane* out, int count, double value) {
    for (int k = 0; k < count; ++k) out[k] = lane<Lane>(value);
}

// What a factor of a product is: all of a rectangle, or lower triangular.
enum class Shape { rectangle, lower };

// What a product is added to.
enum class Onto { zero, out };

// A register block of product(): out[q ... q + Q)[p ... p + P).
template <Shape RIGHT, Onto ONTO, int P, int Q, class Right, class Out>
XPKERN_INLINE void product_block(const double* left, int n_left, int inner, const Right& right, int q, const Out& out,
                                 int p) {
    using Lane = typename Right::Element;
    Lane sum[Q][P];
    Lane* const begin = out[q] + p;
    Lane* to = begin;
    XPKERN_UNROLL
    for (int j = 0; j < Q; ++j) {
        XPKERN_UNROLL
        for (int i = 0; i < P; ++i) sum[j][i] = ONTO == Onto::out ? to[i] : lane<Lane>(0);
        to += out.step(q + j);
    }
    int k = RIGHT == Shape::lower ? q : 0;
    const double* factor = left + k * n_left + p;
    const Lane* row = right[k] + q;
    const auto add_row = [&](int columns) {
        Lane operand[Q];
        XPKERN_UNROLL
        for (int j = 0; j < columns; ++j) operand[j] = row[j];
        XPKERN_UNROLL
        for (int i = 0; i < P; ++i) {
            const Lane all(factor[i]);
            XPKERN_UNROLL
            for (int j = 0; j < columns; ++j) sum[j][i] = fma(all, operand[j], sum[j][i]);
        }
        row += right.step(k++);
        factor += n_left;
    };
    if constexpr (RIGHT == Shape::lower) {
        XPKERN_UNROLL
        for (int corner = 0; corner < Q; ++corner) add_row(corner + 1);
    }
    while (k < inner) add_row(Q);
    to = begin;
    XPKERN_UNROLL
    for (int j = 0; j < Q; ++j) {
        XPKERN_UNROLL
        for (int i = 0; i < P; ++i) to[i] = sum[j][i];
        to += out.step(q + j);
    }
}

template <Shape LEFT, Shape RIGHT, Onto ONTO, int P, int Q, class Right, class Out>
XPKERN_INLINE int product_panel(const double* left, int n_left, int inner, const Right& right, int q, const Out& out,
                                int p) {
    for (; p + P <= n_left; p += P) {
        const int end = LEFT == Shape::lower && p + P < inner ? p + P : inner;
        product_block<RIGHT, ONTO, P, Q>(left, n_left, end, right, q, out, p);
    }
    return p;
}

template <Shape LEFT, Shape RIGHT, Onto ONTO, int Q, class Right, class Out>
XPKERN_INLINE int product_panels(const double* left, int n_left, int inner, const Right& right, int n_right, int q,
                                 const Out& out) {
    for (; q + Q <= n_right; q += Q) {
        constexpr int P =
            LEFT == Shape::lower && Q == 4 ? 4 : 6;  // a lower block should not reach far above its diagonal
        int p = LEFT == Shape::lower ? q : 0;
        p = product_panel<LEFT, RIGHT, ONTO, P, Q>(left, n_left, inner, right, q, out, p);
        p = product_panel<LEFT, RIGHT, ONTO, 2, Q>(left, n_left, inner, right, q, out, p);
        product_panel<LEFT, RIGHT, ONTO, 1, Q>(left, n_left, inner, right, q, out, p);
    }
    return q;
}

// out[q][p] (+)= sum_k left[k][p] right[k][q]: a matrix of numbers common to all stars times one of each star's own.
//
// left: (inner, n_left); for Shape::lower it is zero where k > p, right is lower too, and only p >= q is found.
// right: (inner, n_right); for Shape::lower inner = n_right, and what is above its diagonal, k < q, is not read.
// out: (n_right, n_left), so that a product can be the right factor of the next. A panel of `right` stays in the
// nearest cache while `left` passes; 6 x 4 accumulators (6 x 2 where there are 16 registers) hide the latency of the
// multiply-adds.
template <Shape LEFT, Shape RIGHT, Onto ONTO, class Right, class Out>
XPKERN_KERNEL void product(const double* left, int n_left, int inner, Right right, int n_right, Out out) {
    constexpr int Q = ACCUMULATORS >= 16 ? 4 : 2;
    int q = product_panels<LEFT, RIGHT, ONTO, Q>(left, n_left, inner, right, n_right, 0, out);
    if constexpr (Q > 2) q = product_panels<LEFT, RIGHT, ONTO, 2>(left, n_left, inner, right, n_right, q, out);
    product_panels<LEFT, RIGHT, ONTO, 1>(left, n_left, inner, right, n_right, q, out);
}

// A register block of symmetric_product(): out(i ... i + P, j ... j + Q), of which i = j needs the lower triangle.
template <Shape SHAPE, Onto ONTO, bool DIAGONAL, int P, int Q, class Lane, class Right, class Out>
XPKERN_INLINE void symmetric_block(const double* left, int n, int inner, const Right& right, int i, int j,
                                   const Lane& diagonal, const Out& out) {
    Lane sum[P][Q];
    XPKERN_UNROLL
    for (int p = 0; p < P; ++p) {
        XPKERN_UNROLL
        for (int q = 0; q < Q; ++q) sum[p][q] = lane<Lane>(0);
    }
    const double *left_i = left + i, *left_j = left + j;
    const Lane *right_i = right.origin + i, *right_j = right.origin + j;
    int k = 0;
    const auto add_row = [&](int column) {  // what is before that column is zero
        XPKERN_UNROLL
        for (int q = column; q < Q; ++q) {
            const Lane factor(left_j[q]);
            XPKERN_UNROLL
            for (int p = DIAGONAL ? q : 0; p < P; ++p) sum[p][q] = fma(factor, right_i[p], sum[p][q]);
        }
        XPKERN_UNROLL
        for (int p = DIAGONAL ? column : 0; p < P; ++p) {
            const Lane factor(left_i[p]);
            XPKERN_UNROLL
            for (int q = column; q < (DIAGONAL ? p + 1 : Q); ++q) sum[p][q] = fma(factor, right_j[q], sum[p][q]);
        }
        left_i += n;
        left_j += n;
        right_i += right.step(k);
        right_j += right.step(k++);
    };
    const int full = SHAPE == Shape::lower && j < inner ? j : inner;
    while (k < full) add_row(0);
    if constexpr (SHAPE == Shape::lower) {
        XPKERN_UNROLL
        for (int corner = 0; corner < Q; ++corner) {
            if (j + corner >= inner) break;
            add_row(corner);
        }
    }
    visit_block<DIAGONAL, P, Q>(out, i, j, [&](int p, int q, Lane& element) {
        const Lane share = DIAGONAL && q == p ? sum[p][q] * diagonal : sum[p][q];
        element = ONTO == Onto::out ? element + share : share;
    });
}

// Square blocks load least; 3 x 3 is what 16 registers hold with the operands of both products.
constexpr int SYMMETRIC_BLOCK = ACCUMULATORS >= 16 ? 4 : 3;

template <Shape SHAPE, Onto ONTO, int P, class Lane, class Right, class Out>
XPKERN_INLINE void symmetric_panel(const double* left, int n, int inner, const Right& right, int i,
                                   const Lane& diagonal, const Out& out) {
    int j = 0;
    for (; j + SYMMETRIC_BLOCK <= i; j += SYMMETRIC_BLOCK)
        symmetric_block<SHAPE, ONTO, false, P, SYMMETRIC_BLOCK>(left, n, inner, right, i, j, diagonal, out);
    for (; j < i; ++j) symmetric_block<SHAPE, ONTO, false, P, 1>(left, n, inner, right, i, j, diagonal, out);
    symmetric_block<SHAPE, ONTO, true, P, P>(left, n, inner, right, i, i, diagonal, out);
}

// out(i, j) (+)= sum_k left[k][i] right[k][j] + left[k][j] right[k][i] for j <= i; on the diagonal, a share of it.
//
// left, right: (inner, n); for Shape::lower they are taken as zero where k > i. out: lower triangle.
template <Shape SHAPE, Onto ONTO, class Right, class Out>
XPKERN_KERNEL void symmetric_product(const double* left, int n, int inner, Right right, double diagonal_share,
                                     Out out) {
    constexpr int P = SYMMETRIC_BLOCK;
    const auto share = lane<typename Right::Element>(diagonal_share);
    int i = 0;
    for (; i + P <= n; i += P) symmetric_panel<SHAPE, ONTO, P>(left, n, inner, right, i, share, out);
    for (; i + 2 <= n; i += 2) symmetric_panel<SHAPE, ONTO, 2>(left, n, inner, right, i, share, out);
    if (i < n) symmetric_panel<SHAPE, ONTO, 1>(left, n, inner, right, i, share, out);
}

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
