// Small symmetric systems, one per star: (n, n) with n = 5 for the usual parameters, packed lower triangles by rows.
#pragma once

#include "views.hpp"
#include "whiten.hpp"

XPKERN_NAMESPACE_BEGIN

XPKERN_INLINE int packed_index(int row, int column) {
    return row >= column ? row_start(row) + column : row_start(column) + row;
}

// Solves (A + damping diag(D)) x = b after scaling A and b to a unit diagonal of D > 0. Stars whose damped matrix is
// not positive definite get mask 0 and a meaningless x. A, D: packed; b, x: (n,).
// SIZE: n where it is known to the compiler, which then keeps the factor in registers; else 0.
template <int SIZE, class Lane>
XPKERN_STEP Mask<Lane> solve_of_size(int size, const Lane* a, const Lane* scale_of, const Lane& damping, const Lane* b,
                                     Lane* x) {
    const int n = SIZE > 0 ? SIZE : size;
    Lane unit[MAX_PARAMETERS], factor[MAX_TRIANGLE];
    for (int i = 0; i < n; ++i) unit[i] = inverse_root(max(scale_of[packed_index(i, i)], lane<Lane>(1e-30)));
    Mask<Lane> positive = damping >= lane<Lane>(0);
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; ++j) {
            Lane sum = a[row_start(i) + j] * unit[i] * unit[j];
            if (i == j) sum += damping;
            for (int k = 0; k < j; ++k) sum -= factor[row_start(i) + k] * factor[row_start(j) + k];
            if (i == j) {
                // Below rounding of the unit diagonal nothing is known of a pivot.
                positive = positive & (sum > lane<Lane>(sizeof(Scalar<Lane>) == 4 ? 2e-7 : 1e-14));
                factor[row_start(i) + i] = inverse_root(sum);
            } else {
                factor[row_start(i) + j] = sum * factor[row_start(j) + j];
            }
        }
    }
    for (int i = 0; i < n; ++i) {
        Lane sum = b[i] * unit[i];
        for (int k = 0; k < i; ++k) sum -= factor[row_start(i) + k] * x[k];
        x[i] = sum * factor[row_start(i) + i];
    }
    for (int i = n - 1; i >= 0; --i) {
        Lane sum = x[i];
        for (int k = i + 1; k < n; ++k) sum -= factor[row_start(k) + i] * x[k];
        x[i] = sum * factor[row_start(i) + i];
    }
    for (int i = 0; i < n; ++i) x[i] = x[i] * unit[i];
    return positive;
}

// The same for any n. Parameters are five as a rule, and stellar types have three.
template <class Lane>
XPKERN_INLINE Mask<Lane> solve_damped(int n, const Lane* a, const Lane* scale_of, const Lane& damping, const Lane* b,
                                      Lane* x) {
#if !defined(__CUDACC__)  // there it is part of its caller, which may know n
    if (n == 5) return solve_of_size<5>(n, a, scale_of, damping, b, x);
    if (n == 3) return solve_of_size<3>(n, a, scale_of, damping, b, x);
#endif
    return solve_of_size<0>(n, a, scale_of, damping, b, x);
}

XPKERN_NAMESPACE_END
