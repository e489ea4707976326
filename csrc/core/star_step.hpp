// One step of gradient descent of each star on its own loss (Eqs. 13-14), in x = (Theta, ln E, ln plx).
//
// Parameters are linear here: a step of a logarithm multiplies. So a star whose gradient is zero, or no number, stays
// where it is to the last bit.
#pragma once

#include "descent.hpp"

XPKERN_NAMESPACE_BEGIN

// Moves params, (k,), and returns the loss before. The gradient is scaled down to a norm of `clip`.
template <class Real, class State, class Shape, class Meanwhile = Nothing>
XPKERN_KERNEL State star_step(const ModelView& model, const Shape& shape, const LossView& terms,
                              const StarView<Real, Real>& star, const State* lower, const State* upper, double rate,
                              double clip, const Workspace<Real, Real>& space, State* params,
                              const Meanwhile& meanwhile = {}) {
    const int k = shape.parameters(), ext = k - 2, plx = k - 1;
    Real value[MAX_PARAMETERS];
    for (int p = 0; p < k; ++p) {
        params[p] = clamp(params[p], lower[p], upper[p]);
        value[p] = convert<Real>(params[p]);
    }
    const State ln_plx = log(params[plx]);
    State gradient[MAX_PARAMETERS];
    const PriorView none{};
    State loss = convert<State>(
        loss_gradient(model, shape, none, terms, star, space, value, convert<Real>(ln_plx), gradient, meanwhile));
    for (int p = 0; p < k; ++p) {
        const State difference = params[p] - convert<State>(star.mean[p]);
        loss = fma(convert<State>(star.weight[p]) * difference, difference, loss);
    }
    if (terms.jacobian_ext) loss = fma(log(params[ext]), lane<State>(-2), loss);
    if (terms.jacobian_plx) loss = fma(ln_plx, lane<State>(-2), loss);

    clip_norm(k, clip, gradient);
    for (int p = 0; p < k; ++p) {
        const State move = gradient[p] * lane<State>(-rate);
        params[p] = clamp(p < ext ? params[p] + move : params[p] * exp(move), lower[p], upper[p]);
    }
    return loss;
}

XPKERN_NAMESPACE_END
