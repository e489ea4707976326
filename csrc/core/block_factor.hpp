// The Cholesky factor of a covariance in two blocks, their common error, and samples apart: half the work of whitening.
//
// Without the error that all XP samples have in common, Eq. 2's covariance has no elements between the samples of BP
// alone and those of RP alone. With it, u u^T more, C has u_RP u_BP^T there and its factor u_RP p^T, where p is
// G_BP^-1 u_BP: a block of rank one. So a row of RP takes (p . y) of all samples of BP alone together, as if that were
// one sample. The bands have nothing but their diagonal.
//
// Samples come in this order: alone (of the leading block and linked to nothing else), the leading block's others, the
// trailing block as far as `linked`, and those apart. The packed triangle is as it was, but that rows of the trailing
// block have u in the place of sample alone - 1, for which (p . y) stands in; what is left of that is not read. With
// the usual 66 samples (25, 26 and 61) a column is whitened by 1,020 multiply-adds in place of 2,145. Any factor is one
// leading block, with nothing behind it.
#pragma once

#include "views.hpp"
#include "whiten.hpp"

XPKERN_NAMESPACE_BEGIN

// How far rows of sums and products of stored numbers may be from the stored ones by rounding to float, relatively.
constexpr double SAME_PRODUCT = 1e-6;

struct BlockForm {
    int samples, alone, leading, linked;

    static XPKERN_INLINE constexpr BlockForm whole(int samples) { return {samples, 0, samples, samples}; }
    // Where the blocks given are none that a factor of so many samples can have, it is whole.
    static XPKERN_INLINE constexpr BlockForm of(int samples, const SampleBlocks& blocks) {
        const bool possible = blocks.alone > 1 && blocks.leading >= blocks.alone && blocks.linked > blocks.leading &&
                              blocks.linked <= samples;
        return possible ? BlockForm{samples, blocks.alone, blocks.leading, blocks.linked} : whole(samples);
    }
    XPKERN_INLINE constexpr bool has_trailing() const { return linked > leading; }
    XPKERN_INLINE constexpr int trailing() const { return linked - leading; }
    XPKERN_INLINE constexpr int stand_in() const { return alone - 1; }
};

template <class Lane>
struct BlockFactor {
    const Lane* triangle;  // (m (m + 1) / 2,)
    const Lane* along;     // (alone,) p
    BlockForm form;
};

// Whether a factor of one star, packed in float, may be of the form: by two rows and columns of the block that relates
// the trailing rows to the samples alone. It is no more than that, but soon known.
XPKERN_INLINE bool may_be_in_blocks(const float* packed, const BlockForm& form) {
    if (form.trailing() < 2) return true;
    const float *upper = packed + row_start(form.leading), *lower = packed + row_start(form.leading + 1);
    const double one = double(upper[0]) * lower[1], other = double(upper[1]) * lower[0];
    return abs(one - other) <= 4 * SAME_PRODUCT * max(abs(one), abs(other));
}

// Calls work(j, c) for each column, c being one of SUMS in turn where that many are left, else the first.
template <int SUMS, class Work>
XPKERN_INLINE void over_columns(int columns, const Work& work) {
    int j = 0;
    for (; j + SUMS <= columns; j += SUMS) {
        XPKERN_UNROLL
        for (int c = 0; c < SUMS; ++c) work(j + c, c);
    }
    for (; j < columns; ++j) work(j, 0);
}
template <int SUMS, class Lane>
XPKERN_INLINE Lane sum_of(const Lane (&parts)[SUMS]) {
    Lane sum = parts[0];
    XPKERN_UNROLL
    for (int c = 1; c < SUMS; ++c) sum += parts[c];
    return sum;
}

// What is left of a block of rank one is compared with it by squares; below this they may not be numbers of full
// length.
constexpr double SMALLEST_SQUARE = 1e-14;

// u, (trailing,), and p, (alone,), of the block that relates the trailing rows to the samples alone, and the stars
// whose factors are of the form; for any others these are no use.
//
// The sum of the block's rows is along p, and its products with the rows, of terms that have all one sign, along u.
template <class Lane>
XPKERN_KERNEL Mask<Lane> find_common_error(const Lane* triangle, const BlockForm& form, Lane* along, Lane* common) {
    constexpr int SUMS = 5;  // side by side, as each waits for its last
    const Lane zero = lane<Lane>(0);
    int j = 0;
    const auto sum_columns = [&](auto columns) {
        constexpr int COLUMNS = decltype(columns)::value;
        Lane sum[COLUMNS];
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) sum[c] = zero;
        for (int i = form.leading; i < form.linked; ++i) {
            XPKERN_UNROLL
            for (int c = 0; c < COLUMNS; ++c) sum[c] += triangle[row_start(i) + j + c];
        }
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) along[j + c] = sum[c];
        j += COLUMNS;
    };
    while (j + SUMS <= form.alone) sum_columns(Known<SUMS>{});
    while (j < form.alone) sum_columns(Known<1>{});
    Lane square = zero;
    for (j = 0; j < form.alone; ++j) square = fma(along[j], along[j], square);
    const Lane scale = lane<Lane>(1) / select(square > zero, square, lane<Lane>(1));

    // Not of the form: anything that is left of the block, or in rows of samples apart. A NaN stays in the sum.
    Lane excess = zero, total = zero;
    for (int i = form.leading; i < form.linked; ++i) {
        const Lane* row = triangle + row_start(i);
        Lane product[SUMS], size[SUMS], left[SUMS];
        XPKERN_UNROLL
        for (int c = 0; c < SUMS; ++c) product[c] = size[c] = left[c] = zero;
        over_columns<SUMS>(form.alone, [&](int at, int c) {
            product[c] = fma(row[at], along[at], product[c]);
            size[c] = fma(row[at], row[at], size[c]);
        });
        const Lane mine = sum_of(product) * scale, whole = sum_of(size);
        common[i - form.leading] = mine;
        over_columns<SUMS>(form.alone, [&](int at, int c) {
            const Lane apart = fma(-mine, along[at], row[at]);
            left[c] = fma(apart, apart, left[c]);
        });
        excess += max(zero, fma(whole, lane<Lane>(-SAME_PRODUCT * SAME_PRODUCT), sum_of(left)));
        total += whole;
    }
    const Mask<Lane> small = total < lane<Lane>(SMALLEST_SQUARE);
    if (any(small)) {  // then there must be nothing at all, as where BP or RP is missing
        Lane sum = zero;
        for (int i = form.leading; i < form.linked; ++i)
            for (j = 0; j < form.alone; ++j) sum += abs(triangle[row_start(i) + j]);
        excess += select(small, sum, zero);
    }
    for (int i = form.linked; i < form.samples; ++i) {
        Lane size[SUMS];
        XPKERN_UNROLL
        for (int c = 0; c < SUMS; ++c) size[c] = zero;
        over_columns<SUMS>(i, [&](int at, int c) { size[c] += abs(triangle[row_start(i) + at]); });
        excess += sum_of(size);
    }
    return excess == zero;
}

// Puts u, (trailing,), into its places.
template <class Lane>
XPKERN_INLINE void place_common_error(const BlockForm& form, const Lane* common, Lane* triangle) {
    for (int i = form.leading; i < form.linked; ++i)
        triangle[row_start(i) + form.stand_in()] = common[i - form.leading];
}

// (p . y) of some columns (m, stride).
template <int COLUMNS, class Real, class Lane>
XPKERN_INLINE void sums_along(const Real* along, int alone, int stride, const Lane* column, Lane* sum) {
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) sum[c] = lane<Lane>(0);
    for (int j = 0; j < alone; ++j) {
        const Lane p = convert<Lane>(along[j]);
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) sum[c] = fma(p, column[j * stride + c], sum[c]);
    }
}

// As whiten_columns() of a packed triangle.
template <int COLUMNS, int WIDE, class Lane, class Wide, class Meanwhile = Nothing>
XPKERN_STEP void whiten_columns(const BlockFactor<Lane>& factor, int, int stride, Lane* column, Wide* wide,
                                const Meanwhile& meanwhile = {}) {
    const BlockForm& form = factor.form;
    Lane* const stand_in = column + form.stand_in() * stride;
    Lane sample[COLUMNS > 0 ? COLUMNS : 1];
    Wide wide_sample[1];
    int begin = 0, first = 0, end = form.leading;
    for (;;) {  // both blocks go through the same code, which is long
        whiten_range<COLUMNS, WIDE>(factor.triangle, begin, first, end, stride, column, wide, meanwhile);
        if (end == form.linked) break;
        begin = form.stand_in();
        first = form.leading;
        end = form.linked;
        Lane sum[COLUMNS > 0 ? COLUMNS : 1];
        sums_along<COLUMNS>(factor.along, form.alone, stride, column, sum);
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) {
            sample[c] = stand_in[c];
            stand_in[c] = sum[c];
        }
        if constexpr (WIDE) {
            Wide wide_sum[1];
            sums_along<1>(factor.along, form.alone, 1, wide, wide_sum);
            wide_sample[0] = wide[begin];
            wide[begin] = wide_sum[0];
        }
    }
    if (begin > 0) {
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) stand_in[c] = sample[c];
        if constexpr (WIDE) wide[begin] = wide_sample[0];
    }
    for (int i = form.linked; i < form.samples; ++i) {
        const Lane reciprocal = factor.triangle[row_start(i) + i];
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) column[i * stride + c] *= reciprocal;
        if constexpr (WIDE) wide[i] *= convert<Wide>(reciprocal);
    }
}

// As unwhiten() of a packed triangle.
template <class Lane, class Meanwhile = Nothing>
XPKERN_INLINE void unwhiten(const BlockFactor<Lane>& factor, int, Lane* y, const Meanwhile& meanwhile = {}) {
    const BlockForm& form = factor.form;
    for (int i = form.linked; i < form.samples; ++i) y[i] *= factor.triangle[row_start(i) + i];
    if (form.has_trailing()) {
        Lane& stand_in = y[form.stand_in()];
        const Lane sample = stand_in;
        stand_in = lane<Lane>(0);
        unwhiten_range(factor.triangle, form.stand_in(), form.leading, form.linked, y, meanwhile);
        const Lane left = stand_in;  // -u . w
        stand_in = sample;
        for (int j = 0; j < form.alone; ++j) y[j] = fma(factor.along[j], left, y[j]);
    }
    unwhiten_range(factor.triangle, 0, 0, form.leading, y, meanwhile);
}

// Variance of each sample, (m,); 0 where it is missing.
template <class Lane>
XPKERN_INLINE void sample_variance(const BlockFactor<Lane>& factor, int, Lane* variance) {
    const BlockForm& form = factor.form;
    variance_of_range(factor.triangle, 0, lane<Lane>(1), 0, form.leading, variance);
    if (form.has_trailing()) {
        Lane square = lane<Lane>(0);
        for (int j = 0; j < form.alone; ++j) square = fma(factor.along[j], factor.along[j], square);
        variance_of_range(factor.triangle, form.stand_in(), square, form.leading, form.linked, variance);
    }
    for (int i = form.linked; i < form.samples; ++i)
        variance[i] = variance_of_sample(factor.triangle[row_start(i) + i], lane<Lane>(0));
}

XPKERN_NAMESPACE_END
