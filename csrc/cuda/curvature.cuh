// How the prior bends at stellar types: a star a thread.
#pragma once

#include "core/prior.hpp"
#include "threads.cuh"

XPKERN_NAMESPACE_BEGIN

XPKERN_INLINE constexpr int64_t curvature_bytes(const PriorView& prior) {
    return prior_scratch(prior, prior.n_dimensions) * int64_t(sizeof(double));
}

template <class Shape>
__device__ __forceinline__ void curve_prior(const CurvatureArguments& a, int64_t row, Arena arena) {
    const auto curve = [&](auto known) {
        constexpr int d = decltype(known)::value;
        double theta[d];
        for (int i = 0; i < d; ++i) theta[i] = a.theta[row * d + i];
        const PriorValue<double> value =
            evaluate_mixture<d>(a.prior.in_double, a.prior.n_components, theta, reinterpret_cast<double*>(arena.base));
        for (int i = 0; i < d; ++i)
            for (int j = 0; j < d; ++j) a.curvature[(row * d + i) * d + j] = value.curvature(i, j);
    };
    if constexpr (SameType<Shape, UsualShape>::value)
        curve(Known<UsualShape::inputs()>{});
    else
        with_known<MAX_INPUTS>(a.prior.n_dimensions, curve);
}

XPKERN_NAMESPACE_END

XPKERN_STAR_KERNEL(prior_curvature, xpkern::CurvatureArguments, a.n, kernels::curvature_bytes(kernels::usual_prior()),
                   kernels::curve_prior)
