// Calibration: a star a warp (calibrate_warp.cuh), or where a warp has no room for it a star a thread.
#pragma once

#include "calibrate_warp.cuh"

XPKERN_NAMESPACE_BEGIN

XPKERN_INLINE int64_t calibration_doubles(const CalibrationView& view) {
    CalibrationScratch<double> scratch;
    return scratch.divide(view, nullptr);
}

__device__ __forceinline__ void load_side(const CalibrationView& view, const SideView& side, const SideRows& rows,
                                          double fraction, int64_t row, CalibrationScratch<double>& scratch) {
    const int n = side.coefficients, pairs = n * (n - 1) / 2;
    const double scale = view.unit_variance ? 1 / double(rows.standard_deviation[row]) : 1;
    for (int k = 0; k < n; ++k) {
        scratch.coefficients[k] = rows.coefficients[row * n + k];
        scratch.error[k] = double(rows.error[row * n + k]) * scale;
    }
    HalfCovariance<double> half(side, scratch);
    for (int k = 0; k < pairs; ++k) half.take(double(rows.correlation[row * pairs + k]));
    add_side(side, rows.exists[row], fraction, scratch);
}

template <class Shape>
__device__ __forceinline__ void calibrate_star(const CalibrateArguments& a, int64_t row, const Arena& arena) {
    const CalibrationView& view = a.view;
    const int m = view.samples, bands = m - view.xp_samples;
    CalibrationScratch<double> scratch;
    scratch.divide(view, reinterpret_cast<double*>(arena.base));
    clear(view, scratch);
    load_side(view, view.bp, a.rows.bp, view.bp_error, row, scratch);
    load_side(view, view.rp, a.rows.rp, view.rp_error, row, scratch);
    for (int i = 0; i < bands; ++i) {
        scratch.flux[view.xp_samples + i] = a.rows.band_flux[row * bands + i];
        scratch.band_error[i] = a.rows.band_error[row * bands + i];
    }
    finish_blocks(view, scratch);
    a.unfinished[row] = !factor_blocks(view, scratch);

    double present = 0;
    for (int i = 0; i < m; ++i) {
        a.rows.flux[row * m + i] = static_cast<float>(scratch.flux[i]);
        present = max(present, scratch.present[i]);
    }
    for (int at = 0; at < row_start(m); ++at)
        a.rows.whitener[row * row_start(m) + at] = static_cast<float>(scratch.triangle[at]);
    a.rows.status[row] = present > 0 ? 0u : uint32_t(NO_DATA);
}

XPKERN_NAMESPACE_END

// BY_WARP(a), or where XPKERN_GENERAL asks for the general form BY_THREAD<AnyShape>(a, row, arena) for each star.
#if defined(XPKERN_GENERAL)
#define XPKERN_SPECTRUM_KERNEL(NAME, BY_WARP, BY_THREAD) \
    XPKERN_STAR_KERNEL(NAME, xpkern::CalibrateArguments, a.n, 0, BY_THREAD)
#else
#define XPKERN_SPECTRUM_KERNEL(NAME, BY_WARP, BY_THREAD)                                \
    extern "C" __global__ void __launch_bounds__(kernels::MOST_SPECTRA* kernels::LANES) \
        NAME(const __grid_constant__ xpkern::CalibrateArguments a) {                    \
        BY_WARP(a);                                                                     \
    }
#endif

XPKERN_SPECTRUM_KERNEL(calibrate, kernels::calibrate_by_warp, kernels::calibrate_star)
