// The covariance of a spectrum under a learned noise, and its factor.
//
//     C = factor C_gaia + (f f^T) o S(Theta),  S(Theta) = sum_g share_g(Theta) S_g       (o: element by element)
//     C_gaia = G G^T - diag((independent f_obs)^2) - sum_q (common_q f_obs) (common_q f_obs)^T
//     C = G' G'^T
//
// f and Theta are those of given parameters, G is the stored factor. For m = 66 samples and 8 groups a star costs 51 k
// multiply-adds for G G^T, 18 k for S, 10 k for the rest of C and 51 k for its factor.
//
// A missing sample is in C a row and column of the identity, in the result zeros.
#pragma once

#include "lane_matrix.hpp"
#include "views.hpp"

XPKERN_NAMESPACE_BEGIN

// Of a factor's diagonal, as an ordinary float32 number.
constexpr double LARGEST_RECIPROCAL = 1e+35;

// Lanes that freeze_noise() works in, (m,) each but for the share of each group.
template <class Lane>
struct FreezeSpace {
    Lane *observed, *present, *share, *common;

    static XPKERN_INLINE constexpr int64_t size(int groups, int m) { return (2 + COMMON_ERRORS) * m + groups; }
    XPKERN_INLINE FreezeSpace(int groups, int m, Lane* memory)
        : observed(memory), present(memory + m), share(memory + 2 * m), common(memory + 2 * m + groups) {}
};

// Elements (i + r, j + c) of G G^T, r < ROWS, c < COLUMNS, into the place of those of G; i >= j + COLUMNS, or i = j and
// then the lower triangle of a square block. Elements to the left are still G's, as are the rows above.
template <int ROWS, int COLUMNS, bool DIAGONAL, class Lane>
XPKERN_INLINE void square_block(Lane* triangle, int i, int j) {
    Lane sum[ROWS][COLUMNS];
    Lane* row[ROWS];
    const Lane* other[COLUMNS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        row[r] = triangle + row_start(i + r);
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) sum[r][c] = lane<Lane>(0);
    }
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) other[c] = triangle + row_start(j + c);
    for (int k = 0; k < j; ++k) {
        Lane right[COLUMNS];
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) right[c] = other[c][k];
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const Lane left = row[r][k];
            XPKERN_UNROLL
            for (int c = 0; c < (DIAGONAL ? r + 1 : COLUMNS); ++c) sum[r][c] = fma(left, right[c], sum[r][c]);
        }
    }
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
        XPKERN_UNROLL
        for (int k = 0; k <= c; ++k) {
            const Lane right = other[c][j + k];
            XPKERN_UNROLL
            for (int r = DIAGONAL ? c : 0; r < ROWS; ++r) sum[r][c] = fma(row[r][j + k], right, sum[r][c]);
        }
    }
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        XPKERN_UNROLL
        for (int c = 0; c < (DIAGONAL ? r + 1 : COLUMNS); ++c) row[r][j + c] = sum[r][c];
    }
}

// Rows i ... i + ROWS of G G^T; the rows above are still G's. Columns from the right to the left.
template <int ROWS, class Lane>
XPKERN_INLINE void square_rows(Lane* triangle, int i) {
    constexpr int COLUMNS = ACCUMULATORS >= 16 ? 4 : 2;
    square_block<ROWS, ROWS, true>(triangle, i, i);
    int j = i;
    for (; j % COLUMNS != 0; --j) square_block<ROWS, 1, false>(triangle, i, j - 1);
    for (; j > 0; j -= COLUMNS) square_block<ROWS, COLUMNS, false>(triangle, i, j - COLUMNS);
}

// G G^T in place of G (a packed triangle with its diagonal as it is, no reciprocals).
template <class Lane>
XPKERN_KERNEL void square_of_factor(Lane* triangle, int m) {
    constexpr int ROWS = 4;
    int i = m;
    for (; i >= ROWS; i -= ROWS) square_rows<ROWS>(triangle, i - ROWS);
    for (; i > 0; --i) square_rows<1>(triangle, i - 1);
}

// share_g(Theta) of each group, and which groups any star of the lane has a share of: returns how many.
template <class Lane>
XPKERN_INLINE int blend_groups(const NoiseView& noise, int inputs, const Lane* theta, Lane* share, int* group) {
    const Lane zero = lane<Lane>(0);
    Lane least = zero;
    for (int g = 0; g < noise.n_groups; ++g) {
        Lane distance = zero;
        for (int t = 0; t < inputs; ++t) {
            const Lane apart =
                (theta[t] - lane<Lane>(noise.centre[g * inputs + t])) * lane<Lane>(noise.inverse_scale[t]);
            distance = fma(apart, apart, distance);
        }
        share[g] = distance;
        least = g == 0 ? distance : min(least, distance);
    }
    Lane total = zero;
    for (int g = 0; g < noise.n_groups; ++g) {
        const Lane weight = exp((least - share[g]) * lane<Lane>(0.5));
        share[g] = select(weight < lane<Lane>(LEAST_WEIGHT), zero, weight);
        total += share[g];
    }
    const Lane reciprocal = lane<Lane>(1) / total;
    int found = 0;
    for (int g = 0; g < noise.n_groups; ++g) {
        share[g] *= reciprocal;
        if (any(!(share[g] == zero))) group[found++] = g;  // the others add exactly nothing
    }
    return found;
}

// C in place of G G^T, rows and columns of missing samples those of the identity. group: those that S is blended from.
// predicted: (m,) f.
template <class Lane>
XPKERN_INLINE void add_model_error(const NoiseView& noise, int m, const int* group, int groups, const Lane* predicted,
                                   Lane* triangle, const FreezeSpace<Lane>& space) {
    const Lane factor = lane<Lane>(noise.factor), zero = lane<Lane>(0);
    for (int i = 0; i < m; ++i) {
        for (int q = 0; q < COMMON_ERRORS; ++q)
            space.common[i * COMMON_ERRORS + q] = space.observed[i] * lane<Lane>(noise.common[q * m + i]);
    }
    Lane least = space.present[0];
    for (int i = 1; i < m; ++i) least = min(least, space.present[i]);
    const bool complete = !any(!(least > zero));
    const double* covariance = noise.covariance;
    for (int i = 0; i < m; ++i) {
        Lane* row = triangle + row_start(i);
        const Lane* own = space.common + i * COMMON_ERRORS;
        const Lane alone = space.observed[i] * lane<Lane>(noise.independent[i]);
        row[i] = fma(-alone, alone, row[i]);
        for (int j = 0; j <= i; ++j) {
            Lane error = lane<Lane>(0);
            for (int g = 0; g < groups; ++g)
                error = fma(space.share[group[g]], lane<Lane>(covariance[group[g]]), error);
            covariance += noise.n_groups;
            Lane archive = row[j];
            XPKERN_UNROLL
            for (int q = 0; q < COMMON_ERRORS; ++q)
                archive = fma(-own[q], space.common[j * COMMON_ERRORS + q], archive);
            row[j] = fma(predicted[i] * predicted[j], error, archive * factor);
        }
        if (complete) continue;
        const Mask<Lane> here = space.present[i] > zero;
        for (int j = 0; j < i; ++j) row[j] = select(here & (space.present[j] > zero), row[j], zero);
        row[i] = select(here, row[i], lane<Lane>(1));
    }
}

// The factor of C, its diagonal reciprocal, in place of the stored factor. Returns ln det C of the samples that are not
// missing; NaN, and a factor of zeros, where C is not positive definite or there is no sample.
//
// theta: (inputs,) and predicted: (m,) of the given parameters. space.observed: (m,) input; the rest is working memory.
template <class Lane>
XPKERN_KERNEL Lane freeze_noise(const NoiseView& noise, int m, int inputs, const Lane* theta, const Lane* predicted,
                                Lane* triangle, const FreezeSpace<Lane>& space) {
    const Lane zero = lane<Lane>(0), one = lane<Lane>(1);
    Lane most = zero;
    for (int i = 0; i < m; ++i) {
        Lane& diagonal = triangle[row_start(i) + i];
        const Mask<Lane> here = diagonal > zero;
        space.present[i] = select(here, one, zero);
        most = max(most, space.present[i]);
        diagonal = select(here, one / diagonal, zero);
    }
    square_of_factor(triangle, m);
    int group[MAX_GROUPS];
    const int groups = blend_groups(noise, inputs, theta, space.share, group);
    add_model_error(noise, m, group, groups, predicted, triangle, space);
    cholesky(triangle, 0, m, 0);
    // of a missing sample the reciprocal is 1 and its logarithm 0
    Lane ln_det = zero;
    Mask<Lane> usable = most > zero;
    for (int i = 0; i < m; ++i) {
        const Lane reciprocal = triangle[row_start(i) + i];
        usable = usable & (reciprocal > zero) & (reciprocal < lane<Lane>(LARGEST_RECIPROCAL));
        ln_det = fma(log(reciprocal), lane<Lane>(-2), ln_det);
    }
    for (int i = 0; i < m; ++i) {
        Lane* row = triangle + row_start(i);
        const Mask<Lane> here = usable & (space.present[i] > zero);
        for (int j = 0; j <= i; ++j) row[j] = select(here, row[j], zero);
    }
    return select(usable, ln_det, lane<Lane>(not_a_number()));
}

XPKERN_NAMESPACE_END
