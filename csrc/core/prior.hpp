// The Gaussian-mixture prior on stellar type (Eq. 18): ln p, gradient and Hessian.
//
// With q_k = ln w_k - ln |2 pi C_k|^(1/2) - |L_k^T d_k|^2 / 2, d_k = Theta - mu_k, P_k = L_k L_k^T and responsibilities
// r_k = e^(q_k) / sum e^q:  grad ln p = -sum r_k P_k d_k =: -g,
// Hessian ln p = -sum r_k P_k + sum r_k (P_k d_k)(P_k d_k)^T - g g^T. The first term alone is the definite part.
#pragma once

#include "network.hpp"
#include "solve.hpp"

XPKERN_NAMESPACE_BEGIN

XPKERN_INLINE const MixtureView<float>& mixture_in(const PriorView& prior, float) {
    return prior.in_float;
}
XPKERN_INLINE const MixtureView<double>& mixture_in(const PriorView& prior, double) {
    return prior.in_double;
}

template <class Lane>
struct PriorValue {
    Lane ln_density;
    Lane gradient[MAX_INPUTS];                          // of ln p
    Lane definite[MAX_INPUTS * (MAX_INPUTS + 1) / 2];   // sum r_k P_k, packed
    Lane remainder[MAX_INPUTS * (MAX_INPUTS + 1) / 2];  // Hessian of ln p + definite

    // Element (i, j) of minus the Hessian of ln p.
    XPKERN_INLINE Lane curvature(int i, int j) const {
        const int packed = i < j ? row_start(j) + i : row_start(i) + j;
        return definite[packed] - remainder[packed];
    }
};

// One Gaussian at theta: q_k, and P_k d_k in slope. theta, slope: (N,).
template <int N, class Lane>
XPKERN_INLINE Lane mixture_exponent(const MixtureView<Scalar<Lane>>& mixture, int k, const Lane* theta, Lane* slope) {
    const Scalar<Lane>*root = mixture.root + k * row_start(N), *mean = mixture.mean + k * N;
    Lane difference[N], projected[N], square = lane<Lane>(0);
    XPKERN_UNROLL
    for (int i = 0; i < N; ++i) difference[i] = theta[i] - Lane(mean[i]);
    XPKERN_UNROLL
    for (int j = 0; j < N; ++j) {
        projected[j] = lane<Lane>(0);
        XPKERN_UNROLL
        for (int i = j; i < N; ++i) projected[j] = fma(Lane(root[row_start(i) + j]), difference[i], projected[j]);
        square = fma(projected[j], projected[j], square);
    }
    XPKERN_UNROLL
    for (int i = 0; i < N; ++i) {
        slope[i] = lane<Lane>(0);
        XPKERN_UNROLL
        for (int j = 0; j <= i; ++j) slope[i] = fma(Lane(root[row_start(i) + j]), projected[j], slope[i]);
    }
    return fma(square, lane<Lane>(-0.5), Lane(mixture.log_weight[k]));
}

// Sums over Gaussians, weighted with exp(q_k - largest).
template <int N, class Lane>
struct MixtureSums {
    static constexpr int packed = row_start(N);
    Lane total = lane<Lane>(0), gradient[N], definite[packed], remainder[packed];
    XPKERN_INLINE MixtureSums() {
        XPKERN_UNROLL
        for (int i = 0; i < N; ++i) gradient[i] = lane<Lane>(0);
        XPKERN_UNROLL
        for (int at = 0; at < packed; ++at) definite[at] = remainder[at] = lane<Lane>(0);
    }
    // slope: (N,) P_k d_k.
    XPKERN_INLINE void add(const MixtureView<Scalar<Lane>>& mixture, int k, const Lane& weight, const Lane* slope) {
        const Scalar<Lane>* precision = mixture.precision + k * packed;
        total += weight;
        XPKERN_UNROLL
        for (int i = 0; i < N; ++i) {
            const Lane weighted = weight * slope[i];
            gradient[i] -= weighted;
            XPKERN_UNROLL
            for (int j = 0; j <= i; ++j) {
                const int at = row_start(i) + j;
                definite[at] = fma(weight, Lane(precision[at]), definite[at]);
                remainder[at] = fma(weighted, slope[j], remainder[at]);
            }
        }
    }
    XPKERN_INLINE PriorValue<Lane> value(const Lane& largest) const {
        PriorValue<Lane> value;
        const Lane inverse = quotient(lane<Lane>(1), total);
        value.ln_density = largest + log(total);
        XPKERN_UNROLL
        for (int i = 0; i < N; ++i) {
            value.gradient[i] = gradient[i] * inverse;
            XPKERN_UNROLL
            for (int j = 0; j <= i; ++j) {
                const int at = row_start(i) + j;
                value.definite[at] = definite[at] * inverse;
                value.remainder[at] = fma(remainder[at], inverse, -(value.gradient[i] * value.gradient[j]));
            }
        }
        return value;
    }
};

constexpr double LEAST_EXPONENT = -1e30;

// theta: (N,); scratch: (K, N + 1).
template <int N, class Lane>
XPKERN_INLINE PriorValue<Lane> evaluate_mixture(const MixtureView<Scalar<Lane>>& mixture, int n_components,
                                                const Lane* theta, Lane* scratch) {
    Lane *exponents = scratch, *slopes = scratch + n_components;  // (K,), (K, N) P_k d_k
    Lane largest = lane<Lane>(LEAST_EXPONENT);
    for (int k = 0; k < n_components; ++k) {
        Lane slope[N];
        exponents[k] = mixture_exponent<N>(mixture, k, theta, slope);
        XPKERN_UNROLL
        for (int i = 0; i < N; ++i) slopes[k * N + i] = slope[i];
        largest = max(largest, exponents[k]);
    }
    for (int k = 0; k < n_components; ++k) exponents[k] -= largest;
    exp_of_all(exponents, n_components);
    MixtureSums<N, Lane> sums;
    for (int k = 0; k < n_components; ++k) sums.add(mixture, k, exponents[k], slopes + k * N);
    return sums.value(largest);
}

// theta: (d,); scratch: prior_scratch().
template <class Lane, class Shape>
XPKERN_INLINE PriorValue<Lane> evaluate_prior(const Shape& shape, const PriorView& prior, const Lane* theta,
                                              Lane* scratch) {
    PriorValue<Lane> value;
    with_known<MAX_INPUTS>(shape.inputs(), [&](auto known) {
        value = evaluate_mixture<decltype(known)::value>(mixture_in(prior, Scalar<Lane>(0)), prior.n_components, theta,
                                                         scratch);
    });
    return value;
}

// Lanes of scratch that evaluate_prior() needs.
XPKERN_INLINE constexpr int prior_scratch(const PriorView& prior, int inputs) {
    return prior.n_components * (inputs + 1);
}

XPKERN_NAMESPACE_END
