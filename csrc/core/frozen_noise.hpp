// The covariance of a spectrum under a learned noise, and its factor.
//
//     C = factor C_gaia + (f f^T) o S(Theta),  S(Theta) = sum_g share_g(Theta) S_g       (o: element by element)
//     C_gaia = G G^T - diag((independent f_obs)^2) - sum_q (common_q f_obs) (common_q f_obs)^T
//     C = G' G'^T
//
// f and Theta are those of given parameters, G is the stored factor. For m = 66 samples, 5 of which are bands with
// nothing left of their diagonal in G, and 8 groups a star costs 40 k multiply-adds for G G^T, 19 k for S,
// 10 k for the rest of C and 51 k for its factor. Where G is in blocks (block_factor.hpp) G G^T takes 13 k.
//
// A missing sample is in C a row and column of the identity, in the result zeros.
#pragma once

#include "block_factor.hpp"
#include "lane_factor.hpp"
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
// then the lower triangle of a square block. Elements to the left are still G's, as are the rows above. begin: the
// first column of G that these rows have.
template <int ROWS, int COLUMNS, bool DIAGONAL, class Lane>
XPKERN_INLINE void square_block(Lane* triangle, int begin, int i, int j) {
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
    for (int k = begin; k < j; ++k) {
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

// Rows i ... i + ROWS of G G^T, of the columns from `first` on; the rows above are still G's. Columns from the right to
// the left.
template <int ROWS, class Lane>
XPKERN_INLINE void square_rows(Lane* triangle, int begin, int first, int i) {
    constexpr int COLUMNS = ACCUMULATORS >= 16 ? 4 : 2;
    square_block<ROWS, ROWS, true>(triangle, begin, i, i);
    int j = i;
    for (; (j - first) % COLUMNS != 0; --j) square_block<ROWS, 1, false>(triangle, begin, i, j - 1);
    for (; j > first; j -= COLUMNS) square_block<ROWS, COLUMNS, false>(triangle, begin, i, j - COLUMNS);
}

// All of them from row `first` to `end`.
template <class Lane>
XPKERN_INLINE void square_range(Lane* triangle, int begin, int first, int end) {
    constexpr int ROWS = 4;
    int i = end;
    for (; i >= first + ROWS; i -= ROWS) square_rows<ROWS>(triangle, begin, first, i - ROWS);
    for (; i > first; --i) square_rows<1>(triangle, begin, first, i - 1);
}

// Rows of samples that are related to none.
template <class Lane>
XPKERN_INLINE void square_alone(Lane* triangle, int first, int end) {
    for (int i = first; i < end; ++i) {
        Lane& diagonal = triangle[row_start(i) + i];
        diagonal = diagonal * diagonal;
    }
}

// How many rows there are before those at the end that have nothing left of their diagonal in any star of the lane.
template <class Lane>
XPKERN_INLINE int linked_rows(const Lane* triangle, int m) {
    for (; m > 0; --m) {
        const Lane* row = triangle + row_start(m - 1);
        Mask<Lane> linked = !(lane<Lane>(0) == lane<Lane>(0));
        for (int j = 0; j < m - 1; ++j) linked = linked | !(row[j] == lane<Lane>(0));
        if (any(linked)) break;
    }
    return m;
}

// G G^T in place of G (a packed triangle with its diagonal as it is, no reciprocals). Bands have a row to themselves.
template <class Lane>
XPKERN_KERNEL void square_of_factor(Lane* triangle, int m) {
    const int linked = linked_rows(triangle, m);
    square_alone(triangle, linked, m);
    square_range(triangle, 0, 0, linked);
}

// The same of a factor in blocks, with p and u. In the rows of the trailing block |p| u stands in for the samples
// alone.
template <class Lane>
XPKERN_KERNEL void square_of_blocks(Lane* triangle, const BlockForm& form, const Lane* along, const Lane* common) {
    square_alone(triangle, form.linked, form.samples);
    Lane square = lane<Lane>(0);
    for (int j = 0; j < form.alone; ++j) square = fma(along[j], along[j], square);
    const Lane length = sqrt(square);
    for (int i = form.leading; i < form.linked; ++i)
        triangle[row_start(i) + form.stand_in()] = common[i - form.leading] * length;
    square_range(triangle, form.stand_in(), form.leading, form.linked);
    for (int j = form.leading - 1; j >= 0; --j) {
        const Lane* upper = triangle + row_start(j);
        Lane shared = lane<Lane>(0);
        for (int k = 0; k < form.alone && k <= j; ++k) shared = fma(upper[k], along[k], shared);
        for (int i = form.leading; i < form.linked; ++i) {
            Lane* row = triangle + row_start(i);
            Lane sum = common[i - form.leading] * shared;
            for (int k = form.alone; k <= j; ++k) sum = fma(row[k], upper[k], sum);
            row[j] = sum;
        }
    }
    square_range(triangle, 0, 0, form.leading);
}

// Square of how far a type is from the centre of a group, in units of the groups' scale.
template <class Lane>
XPKERN_INLINE Lane group_distance(const NoiseView& noise, int inputs, const Lane* theta, int group) {
    Lane distance = lane<Lane>(0);
    for (int t = 0; t < inputs; ++t) {
        const Lane apart =
            (theta[t] - lane<Lane>(noise.centre[group * inputs + t])) * lane<Lane>(noise.inverse_scale[t]);
        distance = fma(apart, apart, distance);
    }
    return distance;
}

// What a group weighs at that distance, beside the nearest one's 1.
template <class Lane>
XPKERN_INLINE Lane group_weight(const Lane& distance, const Lane& least) {
    const Lane weight = exp((least - distance) * lane<Lane>(0.5));
    return select(weight < lane<Lane>(LEAST_WEIGHT), lane<Lane>(0), weight);
}

// share_g(Theta) of each group, (g,).
template <class Lane>
XPKERN_INLINE void blend_groups(const NoiseView& noise, int inputs, const Lane* theta, Lane* share) {
    Lane least = lane<Lane>(0);
    for (int g = 0; g < noise.n_groups; ++g) {
        share[g] = group_distance(noise, inputs, theta, g);
        least = g == 0 ? share[g] : min(least, share[g]);
    }
    Lane total = lane<Lane>(0);
    for (int g = 0; g < noise.n_groups; ++g) {
        share[g] = group_weight(share[g], least);
        total += share[g];
    }
    const Lane reciprocal = lane<Lane>(1) / total;
    for (int g = 0; g < noise.n_groups; ++g) share[g] *= reciprocal;
}

// `columns` elements from the j-th on of a row of C in place of those of G G^T. element: of S, in all groups.
//
// own: common errors of the row's sample. mine: f of that sample. predicted: (m,) f.
template <class Lane>
XPKERN_INLINE void model_error_block(const NoiseView& noise, const double* element, const Lane (&own)[COMMON_ERRORS],
                                     const Lane& mine, const Lane* predicted, int j, int columns, Lane* row,
                                     const FreezeSpace<Lane>& space) {
    Lane error[ERROR_COLUMNS];
    XPKERN_UNROLL
    for (int c = 0; c < ERROR_COLUMNS; ++c) error[c] = lane<Lane>(0);
    for (int g = 0; g < noise.n_groups; ++g) {
        const Lane share = space.share[g];
        XPKERN_UNROLL
        for (int c = 0; c < ERROR_COLUMNS; ++c) error[c] = fma(share, lane<Lane>(element[c]), error[c]);
        element += ERROR_COLUMNS;
    }
    const Lane factor = lane<Lane>(noise.factor);
    const Lane* common = space.common + j * COMMON_ERRORS;
    XPKERN_UNROLL
    for (int c = 0; c < ERROR_COLUMNS; ++c) {
        if (c >= columns) break;
        Lane archive = row[j + c];
        XPKERN_UNROLL
        for (int q = 0; q < COMMON_ERRORS; ++q) archive = fnma(own[q], common[c * COMMON_ERRORS + q], archive);
        row[j + c] = fma(mine * predicted[j + c], error[c], archive * factor);
    }
}

// C in place of G G^T. predicted: (m,) f.
template <class Lane>
XPKERN_INLINE void add_model_error(const NoiseView& noise, int m, const Lane* predicted, Lane* triangle,
                                   const FreezeSpace<Lane>& space) {
    for (int i = 0; i < m; ++i) {
        for (int q = 0; q < COMMON_ERRORS; ++q)
            space.common[i * COMMON_ERRORS + q] = space.observed[i] * lane<Lane>(noise.common[q * m + i]);
    }
    const double* element = noise.covariance;
    for (int i = 0; i < m; ++i) {
        Lane* row = triangle + row_start(i);
        Lane own[COMMON_ERRORS];
        XPKERN_UNROLL
        for (int q = 0; q < COMMON_ERRORS; ++q) own[q] = space.common[i * COMMON_ERRORS + q];
        const Lane alone = space.observed[i] * lane<Lane>(noise.independent[i]);
        row[i] = fnma(alone, alone, row[i]);
        const auto add = [&](int j, int columns) {
            model_error_block(noise, element, own, predicted[i], predicted, j, columns, row, space);
            element += noise.n_groups * ERROR_COLUMNS;
        };
        int j = 0;
        for (; j + ERROR_COLUMNS <= i + 1; j += ERROR_COLUMNS) add(j, ERROR_COLUMNS);
        if (j <= i) add(j, i + 1 - j);
    }
}

// Row and column i of C: those of the identity, where a star does not have that sample.
template <class Lane>
XPKERN_INLINE void isolate_sample(Lane* triangle, int m, int i, const Mask<Lane>& here) {
    const Lane zero = lane<Lane>(0);
    Lane* row = triangle + row_start(i);
    for (int j = 0; j < i; ++j) row[j] = select(here, row[j], zero);
    row[i] = select(here, row[i], lane<Lane>(1));
    for (int below = i + 1; below < m; ++below) {
        Lane& element = triangle[row_start(below) + i];
        element = select(here, element, zero);
    }
}

// Whether a reciprocal on the factor's diagonal is one of a covariance that is positive definite.
template <class Lane>
XPKERN_INLINE Mask<Lane> is_usable(const Lane& reciprocal) {
    return (reciprocal > lane<Lane>(0)) & (reciprocal < lane<Lane>(LARGEST_RECIPROCAL));
}

// The factor of C, its diagonal reciprocal, in place of the stored factor. Returns ln det C of the samples that are not
// missing; NaN, and a factor of zeros, where C is not positive definite or there is no sample.
//
// theta: (inputs,) and predicted: (m,) of the given parameters. form: of the factors; along and common: p and u, where
// they are in blocks. space.observed: (m,) input; the rest is working memory.
template <class Lane>
XPKERN_KERNEL Lane freeze_noise(const NoiseView& noise, const BlockForm& form, int inputs, const Lane* theta,
                                const Lane* predicted, const Lane* along, const Lane* common, Lane* triangle,
                                const FreezeSpace<Lane>& space) {
    const int m = form.samples;
    const Lane zero = lane<Lane>(0), one = lane<Lane>(1);
    Lane most = zero;
    for (int i = 0; i < m; ++i) {
        Lane& diagonal = triangle[row_start(i) + i];
        const Mask<Lane> here = diagonal > zero;
        space.present[i] = select(here, one, zero);
        most = max(most, space.present[i]);
        diagonal = select(here, one / diagonal, zero);
    }
    if (form.has_trailing())
        square_of_blocks(triangle, form, along, common);
    else
        square_of_factor(triangle, m);
    blend_groups(noise, inputs, theta, space.share);
    add_model_error(noise, m, predicted, triangle, space);
    for (int i = 0; i < m; ++i) {
        const Mask<Lane> here = space.present[i] > zero;
        if (any(!here)) isolate_sample(triangle, m, i, here);
    }
    const int linked = linked_rows(triangle, m);
    cholesky(triangle, 0, linked, 0);
    for (int i = linked; i < m; ++i) {
        Lane& diagonal = triangle[row_start(i) + i];
        diagonal = one / sqrt(diagonal);
    }
    // of a missing sample the reciprocal is 1 and its logarithm 0
    Lane ln_det = zero;
    Mask<Lane> usable = most > zero;
    for (int i = 0; i < m; ++i) {
        Lane& reciprocal = triangle[row_start(i) + i];
        usable = usable & is_usable(reciprocal);
        ln_det = fma(log(reciprocal), lane<Lane>(-2), ln_det);
        reciprocal = select(space.present[i] > zero, reciprocal, zero);
    }
    if (any(!usable))
        for (int element = 0; element < row_start(m); ++element)
            triangle[element] = select(usable, triangle[element], zero);
    return select(usable, ln_det, lane<Lane>(not_a_number()));
}

XPKERN_NAMESPACE_END
