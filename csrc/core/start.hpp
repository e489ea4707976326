// Where a fit starts: the best candidates of a grid, scored in broad bands with diagonal weights.
//
// With v_i = sum_j G_ij^2 the variance of sample i: o_b = mean flux of band b, var_b = mean v_i + (0.05 o_b)^2, no
// weight if a sample of the band is missing. Candidate c, of band flux f at plx = 1, has plx^2 = sum w f o / sum w f^2
// and
//   score = sum w (plx^2 f - o)^2 - 2 ln p_c + (plx - plx_obs)^2 / (sigma^2 + (0.1 plx)^2).
// Further starts are the best candidates whose types differ from those already taken, within a gate of the best score.
// Cost: 5 b fused multiply-adds a candidate, ~2.2k for the variances.
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
        const Real floor = mean * lane<Real>(START_BAND_ERROR);
        const Mask<Real> whole = smallest > lane<Real>(0);
        const Real band_variance = fma(floor, floor, total_variance / count);
        bands.observed[b] = select(whole, mean, lane<Real>(0));
        bands.weight[b] = select(whole, lane<Real>(1) / select(whole, band_variance, lane<Real>(1)), lane<Real>(0));
    }
    return bands;
}

// Score and parallax of every candidate, (c,) each. mean, weight: the observed parallax's constraint.
template <class Real>
XPKERN_INLINE void score_candidates(const GridView& grid, const BandFlux<Real>& bands, const Real& mean,
                                    const Real& weight, Real* scores, Real* parallaxes) {
    const Mask<Real> has_parallax = weight > lane<Real>(0);
    const Real variance = lane<Real>(1) / select(has_parallax, weight, lane<Real>(1));
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
        Real plx = min(sqrt(scale), lane<Real>(1e3));
        plx = select(unseen, select(mean > lane<Real>(1e-4), mean, lane<Real>(1)), plx);
        Real score = lane<Real>(grid.minus_two_ln_prior[c]);
        for (int b = 0; b < grid.n_bands; ++b) {
            const Real difference = fma(scale, lane<Real>(flux[b]), -bands.observed[b]);
            score = fma(bands.weight[b] * difference, difference, score);
        }
        const Real off = plx - mean;
        const Real soft = plx * lane<Real>(START_PLX_SOFTENING);
        score += select(has_parallax, off * off / fma(soft, soft, variance), lane<Real>(0));
        scores[c] = score;
        parallaxes[c] = plx;
    }
}

// One star's start of a lane: candidate's index (as a number), parallax, score (infinite if none was left).
template <class Real>
struct Candidate {
    Real index, plx, score;
};

// The best candidate that is left. It and all of similar type are struck from the list.
template <class Real>
XPKERN_INLINE Candidate<Real> take_candidate(const GridView& grid, int inputs, Real* scores, const Real* parallaxes) {
    Candidate<Real> best{lane<Real>(0), parallaxes[0], infinity<Real>()};
    Real type[MAX_INPUTS];
    for (int t = 0; t < inputs; ++t) type[t] = lane<Real>(grid.types[t]);
    for (int c = 0; c < grid.n_candidates; ++c) {
        const Mask<Real> better = scores[c] < best.score;
        best.score = select(better, scores[c], best.score);
        best.index = select(better, lane<Real>(c), best.index);
        best.plx = select(better, parallaxes[c], best.plx);
        for (int t = 0; t < inputs; ++t) type[t] = select(better, lane<Real>(grid.types[c * inputs + t]), type[t]);
    }
    for (int c = 0; c < grid.n_candidates; ++c) {
        Mask<Real> similar = scores[c] == scores[c];
        for (int t = 0; t < inputs; ++t)
            similar = similar & (abs(lane<Real>(grid.types[c * inputs + t]) - type[t]) <= lane<Real>(grid.apart[t]));
        scores[c] = select(similar, infinity<Real>(), scores[c]);
    }
    return best;
}

XPKERN_NAMESPACE_END
