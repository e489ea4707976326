// What a star says of where its fit starts, before any stellar type is looked at: core/start.hpp explains it.
//
// A guess of its flux, the basis weighted by it and whitened, the normal matrix of these, and what all types share of
// it.
#pragma once

#include "star_loss.hpp"

XPKERN_NAMESPACE_BEGIN

// Memory for choosing starts.
template <class Real>
struct StartSpace {
    Real* guess;   // (m,)
    Real* column;  // (m, c + 1) basis and what it leaves of ln flux, weighted and whitened in place
    Real* score;   // (t,)
    Real* params;  // (t, k) as u
    static XPKERN_INLINE constexpr StartSpace carve(int m, int k, int types, Arena& arena) {
        return {arena.take<Real>(m), arena.take<Real>((START_COLUMNS + 1) * m), arena.take<Real>(types),
                arena.take<Real>(types * k)};
    }
};

// How the grid's mean spectrum is scaled to a star, from sums over its samples of weight * flux and weight * typical
// with weight = typical / variance.
template <class Real>
XPKERN_INLINE Real scale_of_spectrum(const Real& cross, const Real& square) {
    const Real smallest = lane<Real>(START_SMALLEST);
    return max(quotient(cross, max(square, smallest)), smallest);
}

// Sums over the samples that a sample is compared with, of those that exist: fluxes, variances, how many.
template <class Real>
struct WindowSums {
    Real flux, variance, present;
};
template <class Real>
XPKERN_INLINE WindowSums<Real> sums_of_window(const GridView& grid, const Real* flux, const Real* variance, int i) {
    const Real zero = lane<Real>(0);
    WindowSums<Real> sums = {zero, zero, zero};
    for (int j = grid.window[2 * i]; j < grid.window[2 * i + 1]; ++j) {
        const Mask<Real> seen = variance[j] > zero;
        sums.flux += select(seen, flux[j], zero);
        sums.variance += variance[j];
        sums.present += select(seen, lane<Real>(1), zero);
    }
    return sums;
}

// Flux of sample i: the observed one where noise leaves it, else its neighbours' mean, else the grid's mean spectrum; 1
// where missing.
template <class Real>
XPKERN_INLINE Real guess_of_sample(const GridView& grid, const Real& flux, const Real& variance,
                                   const WindowSums<Real>& around, const Real& scale, int i) {
    const Real zero = lane<Real>(0), one = lane<Real>(1);
    const Mask<Real> seen = variance > zero;
    const Real each = quotient(one, max(around.present, one)), noise = around.variance * each * each;
    const Real expected = scale * Real(grid.typical[i]), loose = expected * lane<Real>(START_SPECTRUM_ERROR);
    const Real trusted = quotient(loose * loose, loose * loose + select(seen, noise, one));
    const Real mean =
        max(fma(fma(around.flux, each, -expected), trusted, expected), expected * lane<Real>(START_LEAST_FLUX));
    const Real error = mean * lane<Real>(START_NEIGHBOUR_ERROR), of_mean = fma(error, error, noise * trusted);
    const Real share = quotient(of_mean, select(seen, of_mean + variance, one));
    const Real least = sqrt(variance) * lane<Real>(START_LEAST_FLUX);
    return select(seen, max(fma(flux - mean, share, mean), least), one);
}

// The same of all samples, (m,).
template <class Real>
XPKERN_INLINE void guess_flux(const GridView& grid, const Real* flux, const Real* variance, int m, Real* guess) {
    const Real zero = lane<Real>(0), one = lane<Real>(1);
    Real cross = zero, square = zero;
    for (int i = 0; i < m; ++i) {
        const Mask<Real> seen = variance[i] > zero;
        const Real typical(grid.typical[i]);
        const Real weight = select(seen, typical / select(seen, variance[i], one), zero);
        cross = fma(weight, flux[i], cross);
        square = fma(weight, typical, square);
    }
    const Real scale = scale_of_spectrum(cross, square);
    for (int i = 0; i < m; ++i)
        guess[i] = guess_of_sample(grid, flux[i], variance[i], sums_of_window(grid, flux, variance, i), scale, i);
}

// ln flux of sample i to first order around a guess, less the grid's mean.
template <class Real>
XPKERN_INLINE Real ln_flux_about(const GridView& grid, const Real& guess, const Real& flux, int i) {
    const Real excess =
        clamp(quotient(flux - guess, guess), lane<Real>(-START_LARGEST_EXCESS), lane<Real>(START_LARGEST_EXCESS));
    return log(guess) + excess - Real(grid.mean[i]);
}

// Normal matrix (packed) and right-hand side of x - origin, and the origin, (c,).
template <class Real>
struct StartSystem {
    static constexpr int c = START_COLUMNS;
    Real normal[c * (c + 1) / 2], right[c], origin[c];
};

template <class Real>
XPKERN_INLINE Real with_ridge(const Real& diagonal) {
    return fma(diagonal, lane<Real>(1 + START_RELATIVE_RIDGE), lane<Real>(START_RIDGE));
}

template <class Real, class Factor, class Meanwhile>
XPKERN_KERNEL void assemble_start(const GridView& grid, const Real* flux, const Factor& factor, const Real* variance,
                                  int m, const StartSpace<Real>& space, const Meanwhile& meanwhile,
                                  StartSystem<Real>& system) {
    constexpr int c = START_COLUMNS;
    const Real zero = lane<Real>(0), one = lane<Real>(1);
    guess_flux(grid, flux, variance, m, space.guess);
    Real level = zero, present = zero;
    for (int i = 0; i < m; ++i) {
        const Mask<Real> seen = variance[i] > zero;
        Real& ln_flux = space.column[i * (c + 1) + c];
        ln_flux = ln_flux_about(grid, space.guess[i], flux[i], i);
        level += select(seen, ln_flux, zero);
        present += select(seen, one, zero);
    }
    level = level / max(present, one);
    // Any origin serves; one close to the data keeps the numbers small.
    Real origin[c];
    XPKERN_UNROLL
    for (int a = 0; a < c; ++a) origin[a] = zero;
    for (int i = 0; i < m; ++i) {
        Real& ln_flux = space.column[i * (c + 1) + c];
        ln_flux = select(variance[i] > zero, ln_flux - level, zero);
        const Real left = ln_flux;
        XPKERN_UNROLL
        for (int a = 0; a < c; ++a) origin[a] = fma(Real(grid.inverse[i * c + a]), left, origin[a]);
    }
    for (int i = 0; i < m; ++i) {
        Real* column = space.column + i * (c + 1);
        const Real guess = space.guess[i];
        Real left = column[c];
        XPKERN_UNROLL
        for (int a = 0; a < c; ++a) {
            const Real along(grid.basis[i * c + a]);
            left = fma(-along, origin[a], left);
            column[a] = guess * along;
        }
        column[c] = guess * left;
    }
    for (int a = 0; a < c; ++a) system.origin[a] = origin[a];
    system.origin[1] = fma(level, lane<Real>(0.5), origin[1]);
    whiten(factor, m, c + 1, c + 1, space.column, meanwhile);
    normal_equations<(ACCUMULATORS >= 24 ? 4 : 2)>(space.column, m, c, system.normal, system.right);
    for (int a = 0; a < c; ++a) {
        Real& diagonal = system.normal[row_start(a) + a];
        diagonal = with_ridge(diagonal);
    }
}

template <class Real>
XPKERN_INLINE Real reciprocal_of_pivot(const Real& square) {
    return inverse_root(max(square, lane<Real>(START_RIDGE)));
}

// Cholesky factor in place, reciprocals on its diagonal; packed (n, n).
template <int n, class Real>
XPKERN_INLINE void factorise(Real* a) {
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; ++j) {
            Real sum = a[row_start(i) + j];
            for (int k = 0; k < j; ++k) sum = fma(-a[row_start(i) + k], a[row_start(j) + k], sum);
            if (i == j)
                a[row_start(i) + i] = reciprocal_of_pivot(sum);
            else
                a[row_start(i) + j] = sum * a[row_start(j) + j];
        }
    }
}

// The parts of the system that every type shares.
template <class Real>
struct StartLine {
    static constexpr int rest = START_COLUMNS - 2;
    Real factor[rest * (rest + 1) / 2];  // L2, its diagonal as it is
    Real aim[rest];                      // z2
    Real origin[rest];
    Real follow[2][rest];            // (ext, ln plx) = constant + follow u
    Real constant[2];                // the origin's part included
    Real ext_ext, ext_plx, plx_plx;  // their covariance
};

// What row i of the rest contributes, once the system's normal matrix is factorised and its right-hand side solved.
template <class Real>
XPKERN_INLINE void describe_rest(const StartSystem<Real>& system, int i, StartLine<Real>& line) {
    const Real *root = system.normal, *row = root + row_start(i + 2);
    for (int j = 0; j < i; ++j) line.factor[row_start(i) + j] = row[2 + j];
    line.factor[row_start(i) + i] = lane<Real>(1) / row[2 + i];
    line.aim[i] = system.right[2 + i];
    line.origin[i] = system.origin[2 + i];
    line.follow[1][i] = -row[1] * root[2];
    line.follow[0][i] = -fma(root[1], line.follow[1][i], row[0]) * root[0];
}

// The same of (ext, ln plx).
template <class Real>
XPKERN_INLINE void describe_response(const StartSystem<Real>& system, StartLine<Real>& line) {
    const Real* root = system.normal;
    line.constant[1] = system.right[1] * root[2];
    line.constant[0] = fma(-root[1], line.constant[1], system.right[0]) * root[0];
    // (L1 L1^T)^-1 with L1 = [[1 / r0, 0], [b, 1 / r2]]
    line.plx_plx = root[2] * root[2];
    line.ext_plx = -root[1] * root[0] * line.plx_plx;
    line.ext_ext = fma(root[0], root[0], -root[1] * root[0] * line.ext_plx);
    line.constant[0] += system.origin[0];
    line.constant[1] += system.origin[1];
}

template <class Real>
XPKERN_KERNEL void reduce_start(StartSystem<Real>& system, StartLine<Real>& line) {
    constexpr int c = START_COLUMNS, rest = c - 2;
    const Real* root = system.normal;
    factorise<c>(system.normal);
    for (int i = 0; i < c; ++i) {
        Real sum = system.right[i];
        for (int j = 0; j < i; ++j) sum = fma(-root[row_start(i) + j], system.right[j], sum);
        system.right[i] = sum * root[row_start(i) + i];
    }
    for (int i = 0; i < rest; ++i) describe_rest(system, i, line);
    describe_response(system, line);
}

XPKERN_NAMESPACE_END
