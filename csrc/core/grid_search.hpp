// The candidate of a grid of stellar types and extinctions at which the full chi^2 of a star is lowest.
//
// Candidate (t, e) has the flux s f_i, f_i = base_ti attenuation_ie, attenuation = exp(-E_e R_i), and s = plx^2 from
// the ratio of observed to predicted flux. A lane holds candidates, all of one type and one star: the star's factor and
// the type's flux are scalars, and the tables of all candidates, (t, m) and (m, e), stay in the nearest caches.
// A partial sum over the first rows of the whitened residual is a lower bound of chi^2: a lane is left as soon as none
// of its candidates can win. That is exact, and saves most of the m^2 / 2 fused multiply-adds a candidate.
#pragma once

#include "views.hpp"
#include "whiten.hpp"

XPKERN_NAMESPACE_BEGIN

// One star, as it is stored.
struct OneStar {
    const float* flux;    // (m,)
    const float* factor;  // (m (m + 1) / 2,)
    float plx;            // measured
    float plx_weight;     // 1 / sigma^2, 0 where there is none
};

// Flux scale s = plx^2 of a lane's candidates. window: (n_window,) samples that exist.
template <class Lane>
XPKERN_INLINE Lane flux_scale(const CandidateView& grid, const OneStar& star, const int32_t* window, int n_window,
                              const float* base, int e) {
    Lane sum = lane<Lane>(0);
    double observed = 0;  // faint fluxes of either sign cancel
    for (int w = 0; w < n_window; ++w) {
        const int i = window[w];
        const Lane flux = Lane(base[i]) * load<Lane>(grid.attenuation + i * grid.n_stored + e);
        observed += star.flux[i];
        if (grid.mean_of_ratios)
            sum += max(Lane(star.flux[i]) / flux, lane<Lane>(0));
        else
            sum += flux;
    }
    Lane scale = grid.mean_of_ratios ? sum * lane<Lane>(1.0 / n_window) : Lane(static_cast<float>(observed)) / sum;
    // Without a sample to compare, the measured parallax serves, or 1 mas.
    if (n_window == 0) scale = lane<Lane>(star.plx_weight > 0 && star.plx > 0 ? star.plx * star.plx : 1.0f);
    return clamp(scale, lane<Lane>(grid.plx_lower * grid.plx_lower), lane<Lane>(grid.plx_upper * grid.plx_upper));
}

// Rows i ... i + ROWS of one star's whitened residual for a lane of candidates, in place. column: (m,).
template <int ROWS, class Lane>
XPKERN_INLINE void substitute_rows(const float* factor, int i, Lane* column) {
    Lane left[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) left[r] = column[i + r];
    for (int j = 0; j < i; ++j) {
        const Lane y = held(column[j]);
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) left[r] = fma(Lane(-factor[row_start(i + r) + j]), y, left[r]);
    }
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const Lane y = left[r] * Lane(factor[row_start(i + r) + i + r]);
        column[i + r] = y;
        XPKERN_UNROLL
        for (int below = r + 1; below < ROWS; ++below)
            left[below] = fma(Lane(-factor[row_start(i + below) + i + r]), y, left[below]);
    }
}

// chi^2 of rows i ... i + ROWS, added to a score. column: (m,) the whitened residual of the rows before.
template <int ROWS, class Lane>
XPKERN_INLINE Lane add_rows(const CandidateView& grid, const OneStar& star, const float* base, int e, const Lane& scale,
                            int i, Lane* column, Lane score) {
    for (int r = i; r < i + ROWS; ++r)
        column[r] =
            fma(Lane(base[r]) * load<Lane>(grid.attenuation + r * grid.n_stored + e), scale, Lane(-star.flux[r]));
    substitute_rows<ROWS>(star.factor, i, column);
    for (int r = i; r < i + ROWS; ++r) score = fma(column[r], column[r], score);
    return score;
}

struct BestCandidate {
    float score;
    int type, ext;
    float plx;
};

// Of equal candidates the first wins.
XPKERN_INLINE bool is_better(const BestCandidate& one, const BestCandidate& other) {
    if (one.score != other.score) return one.score < other.score;
    return one.type != other.type ? one.type < other.type : one.ext < other.ext;
}

// The best candidate of the types first_type, first_type + type_step ...: all of them where nothing is said. column:
// scratch (m,); window: scratch (grid.n_window,). Where no score is a number it is the first.
template <class Lane>
XPKERN_KERNEL BestCandidate search_candidates(const CandidateView& grid, const OneStar& star, Lane* column,
                                              int32_t* window, int first_type = 0, int type_step = 1) {
    constexpr int ROWS = 8;
    const int m = grid.n_samples;
    int n_window = 0;
    for (int w = 0; w < grid.n_window; ++w)
        if (star.factor[row_start(grid.window[w]) + grid.window[w]] > 0) window[n_window++] = grid.window[w];

    BestCandidate best{infinity<float>(), first_type, 0, 0};
    for (int t = first_type; t < grid.n_types; t += type_step) {
        const float* base = grid.base_flux + t * m;
        for (int e = 0; e < grid.n_ext; e += LaneTraits<Lane>::width) {
            const Lane scale = flux_scale<Lane>(grid, star, window, n_window, base, e);
            const Lane plx = sqrt(scale);
            if (t == first_type && e == 0) best.plx = get(plx, 0);
            Lane score = lane<Lane>(grid.minus_two_ln_prior[t]);
            if (grid.score_parallax) {
                const Lane off = plx - Lane(star.plx);
                score = fma(Lane(star.plx_weight) * off, off, score);
            }
            bool left = true;
            int i = 0;
            for (; left && i + ROWS <= m; i += ROWS) {
                score = add_rows<ROWS>(grid, star, base, e, scale, i, column, score);
                left = any(score < Lane(best.score));
            }
            for (; left && i < m; ++i) score = add_rows<1>(grid, star, base, e, scale, i, column, score);
            for (int s = 0; left && s < LaneTraits<Lane>::width && e + s < grid.n_ext; ++s)
                if (get(score, s) < best.score) best = {get(score, s), t, e + s, get(plx, s)};
        }
    }
    return best;
}

XPKERN_NAMESPACE_END
