// Plain views of what calibration reads and writes: no functions, so that every build may share these types.
#pragma once

#include "integers.hpp"

namespace xpkern {

// How one side of the spectrograph, BP or RP, turns its n coefficients into flux on the r samples that it reaches.
//
// `design` is A, weight of the merge included. A = lower upper (1 | ratio), s = min(r, n): `lower` is (r, s) lower
// triangular, `upper` (s, s) upper triangular with ones on its diagonal, `ratio` (s, n - s). (1 | ratio) acts on the
// coefficients in another order: element k of their packed covariance is element place[k] in that order, whose first s
// coefficients are those of the triangles backwards, so that `upper` too becomes a lower triangle: `upper_reversed`.
// Matrices are stored transposed, so that the numbers that a register block needs are neighbours.
struct SideView {
    int first_sample, rows, coefficients, inner;  // inner: s
    const double* design;                         // (n, r)
    const double* lower;                          // (s, r)
    const double* upper_reversed;                 // (s, s)
    const double* ratio;                          // (n - s, s)
    const int32_t* place;                         // (n (n + 1) / 2,)
};

// Calibration and noise model (Eq. 2), fixed for a run.
struct CalibrationView {
    SideView bp, rp;
    int samples, xp_samples;  // m, and those that are not photometric bands
    int leading_end,
        link;  // XP samples from `leading_end` on are covariant with none before `link`, apart from `common`
    const double* independent;  // (m,)
    double common, bp_error, rp_error;
    double floor;
    bool unit_variance;  // sigma = "zgr23": Sigma / s^2
};

// One side of n stars as the archive stores it; see Coefficients in xpkern/engine/contract.py.
struct SideRows {
    const double* coefficients;
    const float* error;
    const float* correlation;
    const float* standard_deviation;
    const bool* exists;
};

// What goes in and comes out of calibration, a row a star; see Calibrated in xpkern/engine/contract.py.
struct CalibrationRows {
    SideRows bp, rp;
    const double* band_flux;   // (n, m - x)
    const double* band_error;  // (n, m - x)
    float* flux;               // (n, m)
    float* whitener;           // (n, m (m + 1) / 2)
    uint32_t* status;          // (n,)
};

}  // namespace xpkern
