// Where a fit starts: the best of a grid of candidates, scored in broad bands with diagonal weights.
//
// With v_i = sum_j G_ij^2 the variance of sample i: o_b = mean flux of band b, var_b = mean v_i + (0.05 o_b)^2, no
// weight if a sample of the band is missing. Candidate c, of band flux f at plx = 1, has plx^2 = sum w f o / sum w f^2
// and
//   score = sum w (plx^2 f - o)^2 - 2 ln p_c + (plx - plx_obs)^2 / (sigma^2 + (0.1 plx)^2).
// Cost: 2 b fused multiply-adds a candidate, ~2.2k for the variances.
#pragma once

#include "star_loss.hpp"

XPKERN_NAMESPACE_BEGIN

template <class Real>
struct BandFlux {
    Real observed[MAX_BANDS];
    Real weight[MAX_BANDS];
};

// Variance of each sample, (m,); 0 where it is missing.
template <class Real>
XPKERN_INLINE void sample_variance(const Real* factor, int m, Real* variance) {
    for (int i = 0; i < m; ++i) {
        const Real* row = factor + row_start(i);
        const Real reciprocal = row[i];
        const Mask<Real> present = reciprocal > lane<Real>(0);
        const Real diagonal = lane<Real>(1) / select(present, reciprocal, lane<Real>(1));
        Real sum = diagonal * diagonal;
        for (int j = 0; j < i; ++j) sum = fma(row[j], row[j], sum);
        variance[i] = select(present, sum, lane<Real>(0));
    }
}

template <class Real>
XPKERN_INLINE BandFlux<Real> band_flux(const GridView& grid, const Real* flux, const Real* variance, int m) {
    BandFlux<Real> bands;
    for (int b = 0; b < grid.n_bands; ++b) {
        Real sum = lane<Real>(0), total_variance = lane<Real>(0), smallest = lane<Real>(1e30), count = lane<Real>(0);
        for (int i = 0; i < m; ++i) {
            if (grid.band_of_sample[i] != b) continue;
            sum += flux[i];
            total_variance += variance[i];
            smallest = min(smallest, variance[i]);
            count += lane<Real>(1);
        }
        const Real mean = sum / count;
        const Real floor = mean * lane<Real>(0.05);
        const Mask<Real> whole = smallest > lane<Real>(0);
        const Real band_variance = fma(floor, floor, total_variance / count);
        bands.observed[b] = select(whole, mean, lane<Real>(0));
        bands.weight[b] = select(whole, lane<Real>(1) / select(whole, band_variance, lane<Real>(1)), lane<Real>(0));
    }
    return bands;
}

// Best candidate of each star: its index (as a number) and parallax. mean, weight: the observed parallax's constraint.
template <class Real>
XPKERN_INLINE void best_candidate(const GridView& grid, const BandFlux<Real>& bands, const Real& mean,
                                  const Real& weight, Real& index, Real& plx) {
    const Mask<Real> has_parallax = weight > lane<Real>(0);
    const Real variance = lane<Real>(1) / select(has_parallax, weight, lane<Real>(1));
    Real best = infinity<Real>();
    index = lane<Real>(0);
    plx = lane<Real>(1);
    Real total_weight = lane<Real>(0);
    for (int b = 0; b < grid.n_bands; ++b) total_weight += bands.weight[b];
    const Mask<Real> unseen = total_weight <= lane<Real>(0);
    for (int c = 0; c < grid.n_candidates; ++c) {
        const float* flux = grid.band_flux + c * grid.n_bands;
        Real cross = lane<Real>(0), square = lane<Real>(0);
        for (int b = 0; b < grid.n_bands; ++b) {
            const Real weighted = bands.weight[b] * lane<Real>(flux[b]);
            cross = fma(weighted, bands.observed[b], cross);
            square = fma(weighted, lane<Real>(flux[b]), square);
        }
        const Real scale = max(cross / max(square, lane<Real>(1e-30)), lane<Real>(1e-8));
        Real candidate_plx = min(sqrt(scale), lane<Real>(1e3));
        candidate_plx = select(unseen, select(mean > lane<Real>(1e-4), mean, lane<Real>(1)), candidate_plx);
        Real score = lane<Real>(grid.minus_two_ln_prior[c]);
        for (int b = 0; b < grid.n_bands; ++b) {
            const Real difference = fma(scale, lane<Real>(flux[b]), -bands.observed[b]);
            score = fma(bands.weight[b] * difference, difference, score);
        }
        const Real off = candidate_plx - mean;
        const Real soft = candidate_plx * lane<Real>(0.1);
        score += select(has_parallax, off * off / fma(soft, soft, variance), lane<Real>(0));
        const Mask<Real> better = score < best;
        best = select(better, score, best);
        index = select(better, lane<Real>(c), index);
        plx = select(better, candidate_plx, plx);
    }
}

XPKERN_NAMESPACE_END
