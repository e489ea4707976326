// Calibration of a star by a warp, for spectra of the archive's size: all of a star stands in shared memory.
//
// A Sigma A^T is multiplied out as it is written, by tiles of 8 by 8 (tensor cores): (A diag(e)) rho, rho in single
// precision as it was stored, then that times (A diag(e))^T. A lane's two elements of a tile of the first product are
// neighbours in a row; taken as elements of two steps of the second product, whose columns are then counted in another
// order, they need not change places. The formulas are those of core/calibrate.hpp; here is who computes what.
#pragma once

#include "spectrum_factor.cuh"

XPKERN_NAMESPACE_BEGIN

// By all threads of a block.
__device__ __forceinline__ void copy_design(const SideView& side, int first_row) {
    double* const out = shared_design().number + first_row * SharedDesign::stride;
    for (int at = int(threadIdx.x); at < side.rows * SharedDesign::stride; at += int(blockDim.x)) {
        const int i = at / SharedDesign::stride, k = at % SharedDesign::stride;
        out[at] = k < side.coefficients ? side.design[k * side.rows + i] : 0;
    }
}

// One side of a star, its numbers as they are stored. Returns the lane's share of their sum times 0, which is 0 or NaN.
__device__ __forceinline__ double load_side_by_warp(const CalibrationView& view, const SideRows& rows, int64_t row) {
    constexpr int n = UsualSpectrum::coefficients, pairs = UsualSpectrum::pairs;
    SharedSide& side = spectrum_of_warp().side;
    const Taken<n, LANES, double> coefficients(rows.coefficients + row * n);
    const Taken<n, LANES, float> error(rows.error + row * n);
    const Taken<pairs, LANES, float> correlation(rows.correlation + row * pairs);
    const double scale = view.unit_variance ? 1 / double(rows.standard_deviation[row]) : 1;
    double poison = 0;
    float poison_of_floats = 0;
    __syncwarp();  // no lane is still at the side before
    coefficients.hand_over([&](int at, double number) {
        side.coefficients[at] = number;
        poison = fma(number, 0.0, poison);
    });
    error.hand_over([&](int at, float number) {
        side.error[at] = double(number) * scale;
        poison = fma(side.error[at], 0.0, poison);
    });
    correlation.hand_over([&](int at, float number) {
        side.correlation[at] = number;
        poison_of_floats = fma(number, 0.0f, poison_of_floats);
    });
    for (int at = n + lane_in_warp(); at < UsualSpectrum::columns; at += LANES)
        side.coefficients[at] = side.error[at] = 0;
    for (int at = pairs + lane_in_warp(); at < row_start(UsualSpectrum::columns); at += LANES) side.correlation[at] = 0;
    __syncwarp();
    return poison + double(poison_of_floats);
}

__device__ __forceinline__ double correlation_of(const float* strict, int a, int b) {
    const int row = a > b ? a : b, column = a > b ? b : a;
    const double number = strict[row_start(row) - row + column];
    return row == column ? 1.0 : number;
}

// The core's add_side() for a warp; `design` is the side's first row in shared memory, TILES as many as hold its rows.
template <int TILES>
__device__ __forceinline__ void add_side_by_warp(const SideView& view, const double* design, double poison,
                                                 double fraction) {
    constexpr int tile = UsualSpectrum::tile, column_tiles = UsualSpectrum::column_tiles;
    SharedSpectrum& star = spectrum_of_warp();
    SharedSide& side = star.side;
    const int row = lane_in_warp() / 4, pair = lane_in_warp() % 4 * 2;
    const auto pair_at = [&](const double* numbers, int column) {
        return *reinterpret_cast<const Pair*>(numbers + column + pair);
    };
    const double* design_row[TILES];  // beyond the last sample that one's again
    XPKERN_UNROLL
    for (int s = 0; s < TILES; ++s) {
        const int i = s * tile + row;
        design_row[s] = design + (i < view.rows ? i : view.rows - 1) * SharedDesign::stride;
    }

    double product[TILES][column_tiles][2] = {}, flux[TILES] = {};
    XPKERN_UNROLL_BY(1)
    for (int k = 0; k < column_tiles * tile; k += tile) {
        const Pair coefficients = pair_at(side.coefficients, k), error = pair_at(side.error, k);
        double left[TILES][2];
        XPKERN_UNROLL
        for (int s = 0; s < TILES; ++s) {
            const Pair element = pair_at(design_row[s], k);
            XPKERN_UNROLL
            for (int h = 0; h < 2; ++h) {
                flux[s] = fma(element.at[h], coefficients.at[h], flux[s]);
                left[s][h] = element.at[h] * error.at[h];
            }
        }
        XPKERN_UNROLL
        for (int n = 0; n < column_tiles; ++n) {
            XPKERN_UNROLL
            for (int h = 0; h < 2; ++h) {
                const double right = correlation_of(side.correlation, k + pair + h, n * tile + row);
                multiply_column<TILES>(
                    0, [&](int s) { return left[s][h]; }, right, [&](int s) -> double (&)[2] { return product[s][n]; });
            }
        }
    }
    XPKERN_UNROLL
    for (int s = 0; s < TILES; ++s) {
        flux[s] += from_lane(flux[s], lane_in_warp() ^ 1);
        flux[s] += from_lane(flux[s], lane_in_warp() ^ 2);
        if (pair == 0) side.flux[s * tile + row] = flux[s];
        poison = fma(flux[s], 0.0, poison);
    }
    const bool present = sum_over_lanes(poison) == 0;
    __syncwarp();

    const double variance = fraction * fraction;
    XPKERN_UNROLL
    for (int t = 0; t < TILES; ++t) {
        double sum[TILES][2] = {};
        XPKERN_UNROLL
        for (int n = 0; n < column_tiles; ++n) {
            const Pair element = pair_at(design_row[t], n * tile), error = pair_at(side.error, n * tile);
            XPKERN_UNROLL
            for (int h = 0; h < 2; ++h) {
                const double right = element.at[h] * error.at[h];
                multiply_column<TILES>(
                    t, [&](int s) { return product[s][n][h]; }, right, [&](int s) -> double (&)[2] { return sum[s]; });
            }
        }
        XPKERN_UNROLL
        for (int s = t; s < TILES; ++s) {
            const int i = s * tile + row;
            XPKERN_UNROLL
            for (int h = 0; h < 2; ++h) {
                const int j = t * tile + pair + h;
                if (i >= view.rows || j > i) continue;
                double& element = star.triangle[row_start(view.first_sample + i) + view.first_sample + j];
                element += fma(variance * flux[s], side.flux[j], sum[s][h]);
            }
        }
    }
    for (int i = lane_in_warp(); i < view.rows; i += LANES) {
        star.flux[view.first_sample + i] += side.flux[i];
        star.present[view.first_sample + i] *= present ? 1 : 0;
    }
    __syncwarp();
}

template <int TILES>
__device__ __forceinline__ void take_side_by_warp(const CalibrationView& view, const SideView& side,
                                                  const SideRows& rows, int first_row, double fraction, int64_t row) {
    if (side.rows == 0) return;
    SharedSpectrum& star = spectrum_of_warp();
    if (rows.exists[row]) {
        const double poison = load_side_by_warp(view, rows, row);
        add_side_by_warp<TILES>(side, shared_design().number + first_row * SharedDesign::stride, poison, fraction);
    } else {
        for (int i = lane_in_warp(); i < side.rows; i += LANES) star.present[side.first_sample + i] = 0;
        __syncwarp();
    }
}

// work(i) for the lane's XP samples.
template <class Work>
__device__ __forceinline__ void over_samples(const Work& work) {
    for (int i = lane_in_warp(); i < UsualSpectrum::xp_samples; i += LANES) work(i);
}

// What is going to be read of a star.
__device__ __forceinline__ void ask_for_star(const CalibrationRows& rows, int64_t row) {
    constexpr int n = UsualSpectrum::coefficients, pairs = UsualSpectrum::pairs, bands = UsualSpectrum::bands;
    const auto ask_for_side = [&](const SideRows& side) {
        ask_for<n>(side.coefficients + row * n);
        ask_for<n>(side.error + row * n);
        ask_for<pairs>(side.correlation + row * pairs);
    };
    ask_for_side(rows.bp);
    ask_for_side(rows.rp);
    ask_for<bands>(rows.band_flux + row * bands);
    ask_for<bands>(rows.band_error + row * bands);
}

__device__ __forceinline__ void calibrate_star_by_warp(const CalibrateArguments& a, int64_t row) {
    constexpr int x = UsualSpectrum::xp_samples, m = UsualSpectrum::samples, bands = UsualSpectrum::bands;
    const CalibrationView& view = a.view;
    SharedSpectrum& star = spectrum_of_warp();
    CalibrationScratch<double> scratch = scratch_of_warp();
    const int lane = lane_in_warp();
    __syncwarp();  // no lane is still at the star before
    for (int at = lane; at < row_start(x); at += LANES) star.triangle[at] = 0;
    over_samples([&](int i) {
        star.flux[i] = 0;
        star.present[i] = 1;
    });
    if (lane < bands) {
        const double flux = a.rows.band_flux[row * bands + lane], error = a.rows.band_error[row * bands + lane];
        const Band<double> band = band_of(flux, error, view.independent[x + lane]);
        star.flux[x + lane] = band.flux;
        star.present[x + lane] = band.present;
        star.band_reciprocal[lane] = band.reciprocal;
    }
    __syncwarp();
    take_side_by_warp<UsualSpectrum::bp_tiles>(view, view.bp, a.rows.bp, 0, view.bp_error, row);
    take_side_by_warp<UsualSpectrum::rp_tiles>(view, view.rp, a.rows.rp, view.bp.rows, view.rp_error, row);

    int missing = 0, unusual = 0;
    over_samples([&](int i) { missing += star.present[i] > 0 ? 0 : 1; });
    missing = sum_over_lanes(missing);
    if (missing > 0) over_samples([&](int i) { blank_sample(i, 1, scratch); });
    over_samples([&](int i) {
        add_independent_error(view, i, scratch);
        unusual += ordinary_sample(i, scratch) ? 0 : 1;
    });
    unusual = sum_over_lanes(unusual);
    __syncwarp();
    BlockNorms leading{}, trailing{};
    XPKERN_UNROLL_BY(1)
    for (int begin = 0; begin < x;) {
        const bool leads = begin == 0;
        const int end = leads ? view.leading_end : x, first = leads ? 0 : view.link;
        cholesky_by_warp(begin, end, first);
        (leads ? leading : trailing) = block_norms_by_warp(begin, end, first, leads ? view.link : x);
        begin = end;
    }
    add_common_error_by_warp(view.common);
    if (missing > 0) over_samples([&](int i) { blank_sample(i, 0, scratch); });
    __syncwarp();

    int present = 0;
    for (int i = lane; i < m; i += LANES) {
        a.rows.flux[row * m + i] = static_cast<float>(star.flux[i]);
        present += star.present[i] > 0 ? 1 : 0;
    }
    float* const whitener = a.rows.whitener + row * row_start(m);
    for (int at = lane; at < row_start(x); at += LANES) whitener[at] = static_cast<float>(star.triangle[at]);
    XPKERN_UNROLL_BY(1)
    for (int band = 0; band < bands; ++band) {
        for (int j = lane; j <= x + band; j += LANES)
            whitener[row_start(x + band) + j] = j < x + band ? 0.0f : static_cast<float>(star.band_reciprocal[band]);
    }
    present = sum_over_lanes(present);
    if (lane == 0) {
        a.unfinished[row] = unusual > 0 || !above_floor(view, leading.inverse, trailing.inverse, trailing.link);
        a.rows.status[row] = present > 0 ? 0u : uint32_t(NO_DATA);
    }
}

// A warp for each star. Blocks are of whole warps, with as much shared memory as the design and a spectrum a warp take.
__device__ __forceinline__ void calibrate_by_warp(const CalibrateArguments& a) {
    copy_design(a.view.bp, 0);
    copy_design(a.view.rp, a.view.bp.rows);
    __syncthreads();
    const int64_t warps = blockDim.x / LANES, step = int64_t(gridDim.x) * warps;
    for (int64_t row = int64_t(blockIdx.x) * warps + threadIdx.x / LANES; row < a.n; row += step) {
        if (row + step < a.n) ask_for_star(a.rows, row + step);
        calibrate_star_by_warp(a, row);
    }
}

XPKERN_NAMESPACE_END
