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
};

// theta: (d,); exponents: scratch (K,).
template <class Lane>
XPKERN_INLINE PriorValue<Lane> evaluate_prior(const PriorView& prior, const Lane* theta, Lane* exponents) {
    const auto& mixture = mixture_in(prior, Scalar<Lane>(0));
    const int n = prior.n_dimensions, packed = row_start(n);
    Lane largest = lane<Lane>(-1e30);
    for (int k = 0; k < prior.n_components; ++k) {
        const Scalar<Lane>*root = mixture.root + k * packed, *mean = mixture.mean + k * n;
        Lane square = lane<Lane>(0);
        for (int j = 0; j < n; ++j) {
            Lane projected = lane<Lane>(0);
            for (int i = j; i < n; ++i)
                projected = fma(Lane(root[row_start(i) + j]), theta[i] - Lane(mean[i]), projected);
            square = fma(projected, projected, square);
        }
        exponents[k] = fma(square, lane<Lane>(-0.5), Lane(mixture.log_weight[k]));
        largest = max(largest, exponents[k]);
    }
    PriorValue<Lane> value;
    Lane total = lane<Lane>(0);
    for (int i = 0; i < n; ++i) value.gradient[i] = lane<Lane>(0);
    for (int i = 0; i < packed; ++i) value.definite[i] = value.remainder[i] = lane<Lane>(0);
    for (int k = 0; k < prior.n_components; ++k) {
        const Scalar<Lane>*root = mixture.root + k * packed, *mean = mixture.mean + k * n;
        const Lane weight = exp(exponents[k] - largest);
        total += weight;
        Lane projected[MAX_INPUTS], slope[MAX_INPUTS];
        for (int j = 0; j < n; ++j) {
            projected[j] = lane<Lane>(0);
            for (int i = j; i < n; ++i)
                projected[j] = fma(Lane(root[row_start(i) + j]), theta[i] - Lane(mean[i]), projected[j]);
        }
        for (int i = 0; i < n; ++i) {
            slope[i] = lane<Lane>(0);
            for (int j = 0; j <= i; ++j) slope[i] = fma(Lane(root[row_start(i) + j]), projected[j], slope[i]);
            value.gradient[i] = fma(-weight, slope[i], value.gradient[i]);
        }
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j <= i; ++j) {
                Scalar<Lane> precision = 0;
                for (int l = 0; l <= j; ++l) precision += root[row_start(i) + l] * root[row_start(j) + l];
                const int at = row_start(i) + j;
                value.definite[at] = fma(weight, Lane(precision), value.definite[at]);
                value.remainder[at] = fma(weight * slope[i], slope[j], value.remainder[at]);
            }
        }
    }
    const Lane inverse = lane<Lane>(1) / total;
    value.ln_density = largest + log(total);
    for (int i = 0; i < n; ++i) value.gradient[i] *= inverse;
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; ++j) {
            const int at = row_start(i) + j;
            value.definite[at] *= inverse;
            value.remainder[at] = value.remainder[at] * inverse - value.gradient[i] * value.gradient[j];
        }
    }
    return value;
}

XPKERN_NAMESPACE_END
