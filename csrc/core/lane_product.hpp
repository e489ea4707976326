// Products of many small matrices at once: each star of a lane has its own, all of one shape, times a matrix of numbers
// common to all.
//
// A triangle is packed by rows. Every element is accumulated in one fixed order, whatever the blocking: results do not
// depend on the lane's width.
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

XPKERN_NAMESPACE_END
