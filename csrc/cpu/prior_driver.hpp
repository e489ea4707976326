// How the prior bends at the stellar types of a block of stars: core/prior.hpp, a lane of stars at a time.
#pragma once

#include "../core/prior.hpp"
#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

inline int64_t prior_scratch_bytes(const PriorView& prior) {
    return prior_scratch(prior, prior.n_dimensions) * static_cast<int64_t>(sizeof(DoubleLane));
}

// theta: (n, d); curvature: (n, d, d), minus the Hessian of ln p.
inline void curve_prior(const PriorView& prior, const double* theta, double* curvature, int64_t begin, int64_t end,
                        char* scratch) {
    with_known<MAX_INPUTS>(prior.n_dimensions, [&](auto known) {
        constexpr int d = decltype(known)::value;
        for (int64_t first = begin; first < end; first += Members<DoubleLane>::width) {
            const Members<DoubleLane> members(first, end);
            DoubleLane at[d];
            for (int i = 0; i < d; ++i)
                at[i] = lane_of<DoubleLane>([&](int s) { return theta[members.row[s] * d + i]; });
            const PriorValue<DoubleLane> value =
                evaluate_mixture<d>(prior.in_double, prior.n_components, at, reinterpret_cast<DoubleLane*>(scratch));
            for (int i = 0; i < d; ++i)
                for (int j = 0; j < d; ++j) {
                    const DoubleLane bend = value.curvature(i, j);
                    for (int s = 0; s < members.count; ++s) curvature[(members.row[s] * d + i) * d + j] = get(bend, s);
                }
        }
    });
}

XPKERN_NAMESPACE_END
