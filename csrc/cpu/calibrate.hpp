// Calibration on the CPU: rows of a block go into lanes, through core/calibrate.hpp, and back into rows.
//
// The entry is calibrate_rows(view, rows, begin, end, scratch); any split of the rows among threads gives the same
// bytes. `scratch` is one thread's: calibration_scratch_size(view) doubles, on a 64-byte boundary.
#pragma once

#include "../core/calibrate.hpp"
#include "transpose.hpp"

XPKERN_NAMESPACE_BEGIN

#if defined(__AVX2__) || defined(__aarch64__)
using CalibrationLane = Pack<double, DOUBLE_WIDTH>;
#else
using CalibrationLane = double;
#endif

inline int64_t calibration_scratch_size(const CalibrationView& view) {
    CalibrationScratch<CalibrationLane> of_lane;
    CalibrationScratch<double> of_star;
    const int64_t lane = of_lane.divide(view, nullptr) * LaneTraits<CalibrationLane>::width;
    const int64_t star = of_star.divide(view, nullptr) + 3 * int64_t(view.xp_samples) * view.xp_samples;
    return lane > star ? lane : star;
}

template <class Lane>
inline void load_and_add_side(const CalibrationView& view, const SideView& side, const SideRows& rows, double fraction,
                              const int64_t* row, CalibrationScratch<Lane>& scratch) {
    constexpr int width = LaneTraits<Lane>::width;
    const int n = side.coefficients;
    double exists[width], scale[width];
    for (int star = 0; star < width; ++star) {
        exists[star] = rows.exists[row[star]];
        scale[star] = view.unit_variance ? 1 / double(rows.standard_deviation[row[star]]) : 1;
    }
    const Lane error_scale = load<Lane>(scale);
    load_rows(rows.coefficients, row, n, scratch.coefficients);
    for_each_column<Lane, Next::any>(rows.error, row, n,
                                     [&](int k, const Lane& error) { scratch.error[k] = error * error_scale; });
    HalfCovariance<Lane> half(side, scratch);
    for_each_column<Lane, Next::following>(rows.correlation, row, n * (n - 1) / 2,
                                           [&](int, const Lane& correlation) { half.take(correlation); });
    add_side(side, load<Lane>(exists) > lane<Lane>(0), fraction, scratch);
}

// The stars of one lane, up to C_b. row: (width,) which rows they are.
template <class Lane>
inline void load_stars(const CalibrationView& view, const CalibrationRows& rows, const int64_t* row,
                       CalibrationScratch<Lane>& scratch) {
    const int bands = view.samples - view.xp_samples;
    clear(view, scratch);
    load_and_add_side(view, view.bp, rows.bp, view.bp_error, row, scratch);
    load_and_add_side(view, view.rp, rows.rp, view.rp_error, row, scratch);
    load_rows(rows.band_flux, row, bands, scratch.flux + view.xp_samples);
    load_rows(rows.band_error, row, bands, scratch.band_error);
    finish_blocks(view, scratch);
}

// Writes the first `count` stars of a lane.
template <class Lane>
inline void store_stars(const CalibrationView& view, const CalibrationScratch<Lane>& scratch, const int64_t* row,
                        int count, const CalibrationRows& rows) {
    store_rows(scratch.flux, view.samples, row, count, rows.flux);
    store_rows<Next::following>(scratch.triangle, row_start(view.samples), row, count, rows.whitener);
    Lane present = scratch.present[0];
    for (int i = 1; i < view.samples; ++i) present = max(present, scratch.present[i]);
    for (int star = 0; star < count; ++star) rows.status[row[star]] = get(present, star) > 0 ? 0u : uint32_t(NO_DATA);
}

// One star that may need the eigenvalue floor.
inline void calibrate_star_with_floor(const CalibrationView& view, const CalibrationRows& rows, int64_t row,
                                      double* memory) {
    CalibrationScratch<double> scratch;
    const int64_t used = scratch.divide(view, memory);
    load_stars(view, rows, &row, scratch);
    const uint32_t status = floor_and_factor(view, scratch, memory + used);
    store_stars(view, scratch, &row, 1, rows);
    rows.status[row] |= status;
}

// Calibrates rows begin ... end.
inline void calibrate_rows(const CalibrationView& view, const CalibrationRows& rows, int64_t begin, int64_t end,
                           double* memory) {
    using Lane = CalibrationLane;
    constexpr int width = LaneTraits<Lane>::width;
    CalibrationScratch<Lane> scratch;
    for (int64_t first = begin; first < end; first += width) {
        scratch.divide(view, reinterpret_cast<Lane*>(memory));
        const int count = end - first < width ? int(end - first) : width;
        int64_t row[width];
        for (int star = 0; star < width; ++star) row[star] = first + (star < count ? star : count - 1);
        load_stars(view, rows, row, scratch);
        const Mask<Lane> certain = factor_blocks(view, scratch);
        store_stars(view, scratch, row, count, rows);
        for (int star = 0; star < count; ++star) {
            if (!get(certain, star)) calibrate_star_with_floor(view, rows, row[star], memory);
        }
    }
}

XPKERN_NAMESPACE_END
