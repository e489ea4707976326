// Calibration: from the coefficients of a spectrum to its flux and whitener (Eqs. 2-4).
//
//     f = f_BP + f_RP,  f_side = A_side c_side
//     C = sum over sides of A_side Sigma_side A_side^T + side^2 f_side f_side^T     Sigma = diag(e) rho diag(e)
//         + diag((independent f)^2)                                                => C_b, of two blocks and their link
//         + common^2 f f^T
//     C = G G^T
//
// on the XP samples. The photometric bands have covariances with nothing: G_jj^2 = error^2 + (independent f)^2.
//
// Sigma enters as half = its strict lower triangle plus half its diagonal, Sigma = half + half^T, and A in the factored
// form of SideView, A = lower upper (1 | ratio), which acts on Sigma from the right to the left: every product is then
// of triangles or of a short rectangle. With r samples and d = n - r further coefficients that is
//     r d (d + 1) / 2 + r (r + 1) d + r (r + 1) (r + 2)
// multiply-adds: 51,324 for BP (r = 26, n = 55) and 82,764 for RP (36, 55), where A Sigma A^T as written takes
// r n^2 + r (r + 1) n / 2 = 97,955 and 145,530.
// C_b has no elements between the samples of BP alone and of RP alone, and C is C_b plus rank one: its factor takes
// 11 k (blocks) + 4 k (update), a certificate on C_b 4 k, in place of 38 k each. With 3.4 k for the flux a star costs
// 157 k multiply-adds.
//
// The floor: an eigenvalue of C below `floor` is raised to it. lambda_min(C) >= lambda_min(C_b) >=
// 1 / |G_b^-1|_F^2, so where that exceeds the floor there is nothing to do; any other star is left to
// floor_and_factor(). A bound of the norm is enough for nearly all stars, the norm itself is found for the others.
//
// A missing sample is in C a row and column of the identity, in the result zeros.
#pragma once

#include "calibration_view.hpp"
#include "eigen_floor.hpp"
#include "lane_factor.hpp"
#include "status.hpp"

XPKERN_NAMESPACE_BEGIN

// Within these every flux, element of a factor and reciprocal of its diagonal is an ordinary float32 number.
constexpr double SMALLEST_VARIANCE = 1e-70, LARGEST_VARIANCE = 1e+70, LARGEST_FLUX = 1e+35;

// Where the stages of one lane of stars leave their results. m samples, x of them XP, n coefficients of a side.
template <class Lane>
struct CalibrationScratch {
    Lane* coefficients;  // (n,) input of add_side
    Lane* error;         // (n,) input of HalfCovariance
    Lane* half;          // (n (n + 1) / 2,) input of add_side
    Lane* product;       // (rows, rows)
    Lane* side_flux;     // (x,)
    Lane* flux;          // (m,) that of the bands is input of finish_blocks
    Lane* band_error;    // (m - x,) input of finish_blocks
    Lane* present;       // (m,) 1 or 0
    Lane* triangle;      // (m (m + 1) / 2,) C, then the factor; of the bands the factor from the beginning
    Lane* work;          // (4 x,) or (x, INVERSE_COLUMNS)

    // Hands out consecutive parts of `memory`; returns how many lanes that takes. With nullptr it only counts.
    XPKERN_KERNEL int64_t divide(const CalibrationView& view, Lane* memory) {
        const int n = larger(view.bp.coefficients, view.rp.coefficients);
        const int rows = larger(view.bp.rows, view.rp.rows);
        int64_t used = 0;
        const auto take = [&](int64_t count) {
            Lane* part = memory == nullptr ? nullptr : memory + used;
            used += count;
            return part;
        };
        coefficients = take(n);
        error = take(n);
        half = take(row_start(n));
        product = take(rows * rows);
        side_flux = take(view.xp_samples);
        flux = take(view.samples);
        band_error = take(view.samples - view.xp_samples);
        present = take(view.samples);
        triangle = take(row_start(view.samples));
        work = take(4 * view.xp_samples);
        return used;
    }

    static XPKERN_INLINE int larger(int a, int b) { return a > b ? a : b; }
};

template <class Lane>
XPKERN_KERNEL void clear(const CalibrationView& view, CalibrationScratch<Lane>& scratch) {
    fill(scratch.flux, view.xp_samples, 0);
    fill(scratch.present, view.samples, 1);
    fill(scratch.triangle, row_start(view.xp_samples), 0);
}

// Builds half = strict lower triangle of diag(e) rho diag(e) plus half its diagonal, coefficients in the order of
// SideView, from the elements of rho as they come, row by row. scratch.error: e.
template <class Lane>
struct HalfCovariance {
    const int32_t* place;
    const Lane* error;
    Lane* half;
    int row = 0, column = 0;

    XPKERN_INLINE HalfCovariance(const SideView& side, const CalibrationScratch<Lane>& scratch)
        : place(side.place), error(scratch.error), half(scratch.half) {
        next_row();
    }
    XPKERN_INLINE void take(const Lane& correlation) {
        half[*place++] = error[row] * error[column] * correlation;
        if (++column == row) next_row();
    }

  private:
    // The diagonal of a row, then the row below it.
    XPKERN_INLINE void next_row() {
        half[*place++] = error[row] * error[row] * lane<Lane>(0.5);
        ++row;
        column = 0;
    }
};

// Adds one side to flux and C, from its coefficients and half covariance in scratch.
//
// exists: stars that have this side. Where it does not exist, or a number is not finite, its samples are marked missing
// and hold anything. fraction: error common to the samples of this side.
template <class Lane>
XPKERN_KERNEL void add_side(const SideView& side, const Mask<Lane>& exists, double fraction,
                            CalibrationScratch<Lane>& scratch) {
    const int rows = side.rows, inner = side.inner, rest = side.coefficients - side.inner;
    if (rows == 0) return;

    Lane* flux = scratch.side_flux;
    product<Shape::rectangle, Shape::rectangle, Onto::zero>(
        side.design, rows, side.coefficients, rectangle(scratch.coefficients, 1), 1, rectangle(flux, rows));
    const PackedRows<Lane> half = part_of_triangle(scratch.half, 0, 0);
    if (rest > 0) {
        // half of (1 | ratio) Sigma (1 | ratio)^T, in the leading block of `half`
        const PackedRows<Lane> link = part_of_triangle(scratch.half, inner, 0);
        product<Shape::rectangle, Shape::lower, Onto::out>(side.ratio, inner, rest,
                                                           part_of_triangle(scratch.half, inner, inner), rest, link);
        symmetric_product<Shape::rectangle, Onto::out>(side.ratio, inner, rest, link, 0.5, half);
    }
    // upper (...) upper^T, then lower (...) lower^T. What comes out backwards is put back in order.
    const Rows<Lane> by_upper = rectangle(scratch.product, inner), by_lower = rectangle(scratch.product, rows);
    product<Shape::lower, Shape::lower, Onto::zero>(side.upper_reversed, inner, inner, half, inner, by_upper);
    symmetric_product<Shape::lower, Onto::zero>(side.upper_reversed, inner, inner, by_upper, 0.5,
                                                FlippedTriangle<Lane>{scratch.half, inner});
    product<Shape::lower, Shape::lower, Onto::zero>(side.lower, rows, inner, half, inner, by_lower);
    const PackedRows<Lane> covariance = part_of_triangle(scratch.triangle, side.first_sample, side.first_sample);
    symmetric_product<Shape::lower, Onto::out>(side.lower, rows, inner, by_lower, 1, covariance);

    // Every coefficient enters flux[0], every element of half some by_lower[k][rows - 1]: these times 0 are 0, or else
    // NaN.
    const Lane zero = lane<Lane>(0);
    Lane poison = flux[0] * zero;
    for (int k = 0; k < inner; ++k) poison = fma(by_lower[k][rows - 1], zero, poison);
    const Lane present = select(exists & (poison == zero), lane<Lane>(1), zero);
    const Lane variance = lane<Lane>(fraction * fraction);
    for (int i = 0; i < rows; ++i) {
        const Lane scaled = variance * flux[i];
        Lane* row = covariance[i];
        for (int j = 0; j <= i; ++j) row[j] = fma(scaled, flux[j], row[j]);
        scratch.flux[side.first_sample + i] += flux[i];
        scratch.present[side.first_sample + i] *= present;
    }
}

// Which stars lack a sample.
template <class Lane>
XPKERN_KERNEL Mask<Lane> incomplete(int samples, const CalibrationScratch<Lane>& scratch) {
    Lane least = scratch.present[0];
    for (int i = 1; i < samples; ++i) least = min(least, scratch.present[i]);
    return !(least > lane<Lane>(0));
}

// blank_missing() of sample i.
template <class Lane>
XPKERN_INLINE void blank_sample(int i, double diagonal, CalibrationScratch<Lane>& scratch) {
    const Lane zero = lane<Lane>(0);
    const Mask<Lane> row_present = scratch.present[i] > zero;
    Lane* row = scratch.triangle + row_start(i);
    scratch.flux[i] = select(row_present, scratch.flux[i], zero);
    for (int j = 0; j < i; ++j) row[j] = select(row_present & (scratch.present[j] > zero), row[j], zero);
    row[i] = select(row_present, row[i], lane<Lane>(diagonal));
}

// Zeros for missing samples: in the flux, and in rows and columns of the triangle, whose diagonal becomes `diagonal`.
template <class Lane>
XPKERN_KERNEL void blank_missing(int samples, double diagonal, CalibrationScratch<Lane>& scratch) {
    if (!any(incomplete(samples, scratch))) return;
    for (int i = 0; i < samples; ++i) blank_sample(i, diagonal, scratch);
}

// Adds to the variance of XP sample i what is independent of all others.
template <class Lane>
XPKERN_INLINE void add_independent_error(const CalibrationView& view, int i, CalibrationScratch<Lane>& scratch) {
    const Lane error = lane<Lane>(view.independent[i]) * scratch.flux[i];
    Lane& variance = scratch.triangle[row_start(i) + i];
    variance = fma(error, error, variance);
}

// What is stored of a photometric band: its flux, whether it is there, and 1 / G_jj; zeros where it is missing.
template <class Lane>
struct Band {
    Lane flux, present, reciprocal;
};

// A band is missing where its error is infinite or a number is not finite. independent: of its sample.
template <class Lane>
XPKERN_INLINE Band<Lane> band_of(const Lane& flux, const Lane& measured, double independent) {
    const Lane zero = lane<Lane>(0), one = lane<Lane>(1);
    const Lane error = lane<Lane>(independent) * flux, size = abs(flux);
    const Lane variance = fma(error, error, measured * measured);
    const Mask<Lane> usable = (variance > lane<Lane>(SMALLEST_VARIANCE)) & (variance < lane<Lane>(LARGEST_VARIANCE)) &
                              (size < lane<Lane>(LARGEST_FLUX));
    return {select(usable, flux, zero), select(usable, one, zero), select(usable, one / sqrt(variance), zero)};
}

// Completes C_b, and the factor of the bands, after both sides were added and the photometry was put in scratch.
template <class Lane>
XPKERN_KERNEL void finish_blocks(const CalibrationView& view, CalibrationScratch<Lane>& scratch) {
    const int x = view.xp_samples;
    blank_missing(x, 1, scratch);
    for (int i = 0; i < x; ++i) add_independent_error(view, i, scratch);
    for (int i = x; i < view.samples; ++i) {
        const Band<Lane> band = band_of(scratch.flux[i], scratch.band_error[i - x], view.independent[i]);
        scratch.present[i] = band.present;
        scratch.flux[i] = band.flux;
        fill(scratch.triangle + row_start(i), i, 0);
        scratch.triangle[row_start(i) + i] = band.reciprocal;
    }
}

// Whether the flux and variance of XP sample i are neither NaN nor too large to be stored.
template <class Lane>
XPKERN_INLINE Mask<Lane> ordinary_sample(int i, const CalibrationScratch<Lane>& scratch) {
    const Lane variance = scratch.triangle[row_start(i) + i], size = abs(scratch.flux[i]);
    return (variance < lane<Lane>(LARGEST_VARIANCE)) & (size < lane<Lane>(LARGEST_FLUX));
}

// Stars all of whose samples are.
template <class Lane>
XPKERN_KERNEL Mask<Lane> ordinary_numbers(int xp_samples, const CalibrationScratch<Lane>& scratch) {
    Mask<Lane> ordinary = lane<Lane>(0) == lane<Lane>(0);
    for (int i = 0; i < xp_samples; ++i) ordinary = ordinary & ordinary_sample(i, scratch);
    return ordinary;
}

// Adds common^2 f f^T to the covariance, in its factor.
template <class Lane>
XPKERN_KERNEL void add_common_error(const CalibrationView& view, CalibrationScratch<Lane>& scratch) {
    const int x = view.xp_samples;
    if (view.common == 0) return;
    for (int i = 0; i < x; ++i) scratch.work[i] = lane<Lane>(view.common) * scratch.flux[i];
    rank_one_update(scratch.triangle, x, scratch.work, scratch.work + x);
}

// Whether no eigenvalue lies below the floor, from the inverses of the two blocks and link_norm(). The block that links
// the inverses is (trailing^-1 times the link) times the tail of leading^-1.
template <class Lane>
XPKERN_INLINE Mask<Lane> above_floor(const CalibrationView& view, const InverseNorm<Lane>& leading,
                                     const InverseNorm<Lane>& trailing, const Lane& link) {
    const Lane norm = leading.all + trailing.all + link * leading.tail;
    return lane<Lane>(view.floor) * norm < lane<Lane>(1);
}

// The factor of C in place of C_b, for the stars of the mask: all others need floor_and_factor().
template <class Lane>
XPKERN_KERNEL Mask<Lane> factor_blocks(const CalibrationView& view, CalibrationScratch<Lane>& scratch) {
    const int x = view.xp_samples, end = view.leading_end, link = view.link;
    const Mask<Lane> ordinary = ordinary_numbers(x, scratch);
    cholesky(scratch.triangle, 0, end, 0);
    cholesky(scratch.triangle, end, x, link);

    const Lane between = link_norm(scratch.triangle, end, x, link, scratch.work);
    const auto certify = [&](const auto& norm) {
        return above_floor(view, norm(0, end, link), norm(end, x, x), between);
    };
    Mask<Lane> certain = certify([&](int from, int to, int tail) {
        return inverse_norm_bound(scratch.triangle, from, to, tail, scratch.present, scratch.work);
    });
    if (!all(certain)) {
        certain = certain | certify([&](int from, int to, int tail) {
                      return inverse_norm(scratch.triangle, from, to, tail, scratch.present, scratch.work);
                  });
    }

    add_common_error(view, scratch);
    blank_missing(x, 0, scratch);
    return ordinary & certain;
}

// As factor_blocks(), for one star whose eigenvalues may lie below the floor. Returns its status bits.
//
// A star without a usable factor is left with no weights, and with its flux where that is a number. work: (3, x, x).
XPKERN_KERNEL uint32_t floor_and_factor(const CalibrationView& view, CalibrationScratch<double>& scratch,
                                        double* work) {
    const int m = view.samples, x = view.xp_samples;
    Floored floored = Floored::failed;
    if (ordinary_numbers(x, scratch)) {
        for (int i = 0; i < x; ++i) {
            const double common = view.common * view.common * scratch.flux[i];
            for (int j = 0; j <= i; ++j) {
                const double element = fma(common, scratch.flux[j], scratch.triangle[row_start(i) + j]);
                work[i * x + j] = work[j * x + i] = element;
            }
        }
        // The identity of a missing sample is an eigenvalue of its own, and cannot be confused with the others.
        floored = floor_eigenvalues(work, x, view.floor, work + x * x);
        for (int i = 0; i < x; ++i) {
            for (int j = 0; j <= i; ++j) scratch.triangle[row_start(i) + j] = work[i * x + j];
        }
        cholesky(scratch.triangle, 0, x, 0);
        for (int i = 0; i < x; ++i) {
            const double reciprocal = scratch.triangle[row_start(i) + i];
            if (!(reciprocal * reciprocal * SMALLEST_VARIANCE < 1)) floored = Floored::failed;
        }
    }
    if (floored == Floored::failed) {
        fill(scratch.triangle, row_start(m), 0);
        for (int i = 0; i < m; ++i) scratch.flux[i] = select(abs(scratch.flux[i]) < LARGEST_FLUX, scratch.flux[i], 0.0);
        return SINGULAR_COVARIANCE;
    }
    blank_missing(x, 0, scratch);
    return floored == Floored::some ? uint32_t(EIGENVALUE_FLOORED) : 0u;
}

XPKERN_NAMESPACE_END
