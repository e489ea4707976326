// First-order descent on the star loss in x = (Theta, ln E, ln plx): the optimiser of ZGR23 (section 4.2).
//
// Only the gradient is needed, so the adjoint way round serves: with y = G^-1 (f - f_obs) and w = G^-T y,
//   d chi^2 / d ln f_i = 2 w_i f_i =: 2 b_i,   d / d ln E = -2 E sum b_i R_i,   d / d ln plx = 4 sum b_i,
// and one reverse sweep of the network gives d / dTheta. No tangents, no columns: for 3-32-32-32-66 a gradient costs
// 4.3k + 4.3k (network) + 2.2k + 2.2k (whitening and back) fused multiply-adds a star, two fifths of an evaluation for
// a Newton step. All stars take the same number of steps, so that none waits for another.
//
// Single precision is enough: at signal-to-noise ratios of 30, 300, 1000 and 3000 a sample, 8,192 steps of Adam end as
// close to the optimum with residuals in float as with residuals in double, which cost 1.7 times as much. What is left
// at 1000 and above (0.001 and 0.005 in loss, median) is Adam's own.
#pragma once

#include "star_loss.hpp"

XPKERN_NAMESPACE_BEGIN

// gradient[t] = sum_i weight_i d output_i / dTheta_t. weight: (m,); gradient: (inputs,).
template <class Real, class Wide, class Shape>
XPKERN_INLINE void network_gradient(const ModelView& model, const Shape& shape, const Real* weight,
                                    const NetworkTape<Real, Wide>& tape, Real* gradient) {
    const auto& real = network_of<Real>(model);
    const Real* above = weight;
    for (int l = shape.layers() - 1; l >= 1; --l) {
        Real* adjoint = tape.adjoint[l % 2];
        reverse_multiply<Real>(real.weights[l], shape.width(l), shape.width(l + 1), above, adjoint);
        for (int j = 0; j < shape.width(l); ++j) {
            const Real h = tape.hidden[l - 1][j];
            adjoint[j] *= fma(-h, h, lane<Real>(1));
        }
        above = adjoint;
    }
    reverse_multiply<Real>(real.weights[0], shape.inputs(), shape.width(1), above, gradient);
    for (int t = 0; t < shape.inputs(); ++t) gradient[t] *= lane<Real>(real.inverse_scale[t]);
}

// gradient[i] = d ln p / dTheta_i = -sum r_k P_k d_k (see prior.hpp), in one pass over the components: what has been
// summed is scaled down whenever a larger exponent turns up.
template <class Lane>
XPKERN_INLINE void prior_gradient(const PriorView& prior, const Lane* theta, Lane* gradient) {
    const auto& mixture = mixture_in(prior, Scalar<Lane>(0));
    const int n = prior.n_dimensions;
    Lane largest = lane<Lane>(-1e30), total = lane<Lane>(0);
    for (int i = 0; i < n; ++i) gradient[i] = lane<Lane>(0);
    for (int k = 0; k < prior.n_components; ++k) {
        const Scalar<Lane>*root = mixture.root + k * row_start(n), *mean = mixture.mean + k * n;
        Lane projected[MAX_INPUTS];
        Lane exponent = lane<Lane>(mixture.log_weight[k]);
        for (int j = 0; j < n; ++j) {
            projected[j] = lane<Lane>(0);
            for (int i = j; i < n; ++i)
                projected[j] = fma(Lane(root[row_start(i) + j]), theta[i] - Lane(mean[i]), projected[j]);
            exponent = fma(projected[j] * lane<Lane>(-0.5), projected[j], exponent);
        }
        const Lane larger = max(largest, exponent);
        const Lane shrink = exp(largest - larger), weight = exp(exponent - larger);
        largest = larger;
        total = fma(total, shrink, weight);
        for (int i = 0; i < n; ++i) {
            Lane slope = lane<Lane>(0);
            for (int j = 0; j <= i; ++j) slope = fma(Lane(root[row_start(i) + j]), projected[j], slope);
            gradient[i] = fma(gradient[i], shrink, -(weight * slope));
        }
    }
    for (int i = 0; i < n; ++i) gradient[i] = gradient[i] / total;
}

// sum of squares of values, (count,): several sums side by side, so that none waits for the one before.
template <class Lane>
XPKERN_INLINE Lane square_of_norm(const Lane* values, int count) {
    constexpr int SUMS = 4;
    Lane sum[SUMS];
    XPKERN_UNROLL
    for (int s = 0; s < SUMS; ++s) sum[s] = lane<Lane>(0);
    int i = 0;
    for (; i + SUMS <= count; i += SUMS) {
        XPKERN_UNROLL
        for (int s = 0; s < SUMS; ++s) sum[s] = fma(values[i + s], values[i + s], sum[s]);
    }
    for (; i < count; ++i) sum[0] = fma(values[i], values[i], sum[0]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// chi^2 at u = (Theta, E, ln plx), and half its gradient in ln f: space.back[i] = w_i f_i.
template <class Real, class Shape, class Meanwhile>
XPKERN_INLINE Real weigh_residual(const ModelView& model, const Shape& shape, const Real* flux, const Real* factor,
                                  const Real* u, const Workspace<Real, Real>& space, const Meanwhile& meanwhile) {
    const int m = shape.samples();
    predict_values(model, shape, u, space, meanwhile);
    for (int i = 0; i < m; ++i) space.back[i] = space.flux[i] - flux[i];
    whiten_one(factor, m, space.back, meanwhile);
    const Real chi2 = square_of_norm(space.back, m);
    unwhiten(factor, m, space.back, meanwhile);
    for (int i = 0; i < m; ++i) space.back[i] *= space.flux[i];
    return chi2;
}

// Of w f: its sum, and that of its products with the extinction curve.
template <class Real>
struct SampleSums {
    Real back, dimmed;
};
template <class Real, class Shape>
XPKERN_KERNEL SampleSums<Real> sums_over_samples(const ModelView& model, const Shape& shape, const Real* back) {
    const auto& real = network_of<Real>(model);
    SampleSums<Real> sums{lane<Real>(0), lane<Real>(0)};
    for (int i = 0; i < shape.samples(); ++i) {
        sums.back += back[i];
        sums.dimmed = fma(back[i], Real(real.ext_curve[i]), sums.dimmed);
    }
    return sums;
}

// Gradient of the loss in x, (k,), from half of that of its chi^2. value: linear parameters; slope_of_prior(slope): of
// ln p, (inputs,).
template <class Real, class State, class SlopeOfPrior>
XPKERN_INLINE void complete_gradient(int k, const LossView& terms, const StarView<Real, Real>& star, const Real* value,
                                     const Real* half_chi2, const SlopeOfPrior& slope_of_prior, State* gradient) {
    const int inputs = k - 2, ext = inputs, plx = inputs + 1;
    for (int p = 0; p < k; ++p) {
        const Real pull = star.weight[p] * (value[p] - star.mean[p]);
        const Real slope = p >= ext ? value[p] : lane<Real>(1);
        gradient[p] = convert<State>(fma(pull, slope, half_chi2[p]) * lane<Real>(2));
    }
    if (terms.prior) {
        Real slope[MAX_INPUTS];
        slope_of_prior(slope);
        for (int t = 0; t < inputs; ++t) gradient[t] -= convert<State>(slope[t] + slope[t]);
    }
    if (terms.jacobian_ext) gradient[ext] -= lane<State>(2);
    if (terms.jacobian_plx) gradient[plx] -= lane<State>(2);
}

// Gradient of the loss in x, (k,), and its chi^2. value: linear parameters; ln_plx: of them. State carries the result.
template <class Real, class State, class Shape, class Meanwhile = Nothing>
XPKERN_KERNEL Real loss_gradient(const ModelView& model, const Shape& shape, const PriorView& prior,
                                 const LossView& terms, const StarView<Real, Real>& star,
                                 const Workspace<Real, Real>& space, const Real* value, const Real& ln_plx,
                                 State* gradient, const Meanwhile& meanwhile = {}) {
    const int inputs = shape.inputs(), k = shape.parameters(), ext = inputs, plx = inputs + 1;
    Real u[MAX_PARAMETERS];
    for (int p = 0; p < plx; ++p) u[p] = value[p];
    u[plx] = ln_plx;
    const Real chi2 = weigh_residual(model, shape, star.flux, star.factor, u, space, meanwhile);

    const SampleSums<Real> sums = sums_over_samples(model, shape, static_cast<const Real*>(space.back));
    Real half_chi2[MAX_PARAMETERS];
    network_gradient(model, shape, space.back, space.tape, half_chi2);
    half_chi2[ext] = -sums.dimmed * value[ext];
    half_chi2[plx] = sums.back + sums.back;

    complete_gradient(
        k, terms, star, value, half_chi2, [&](Real* slope) { prior_gradient(prior, value, slope); }, gradient);
    return chi2;
}

// A star's gradient is scaled down to a norm of at most `clip`; one that is no number moves nothing.
template <class State>
XPKERN_INLINE void clip_norm(int k, double clip, State* gradient) {
    State square = lane<State>(0);
    for (int p = 0; p < k; ++p) square = fma(gradient[p], gradient[p], square);
    const Mask<State> number = square < infinity<State>();
    const State shrink = min(lane<State>(clip) / sqrt(max(square, lane<State>(1e-30))), lane<State>(1));
    for (int p = 0; p < k; ++p) gradient[p] = select(number, gradient[p] * shrink, lane<State>(0));
}

// Steps on from x, (k,), between lower and upper. State is double: the last steps are smaller than what float resolves,
// and squares of gradients exceed its range.
template <class Real, class State, class Shape>
XPKERN_STEP void descend(const ModelView& model, const Shape& shape, const PriorView& prior, const LossView& terms,
                         const StarView<Real, Real>& star, const State* lower, const State* upper,
                         const DescentView& how, const Workspace<Real, Real>& space, State* x) {
    const int k = shape.parameters();
    State gradient[MAX_PARAMETERS], mean[MAX_PARAMETERS], square[MAX_PARAMETERS];
    for (int p = 0; p < k; ++p) mean[p] = square[p] = lane<State>(0);
    double rate = how.rate, power1 = 1, power2 = 1;
    for (int step = 0; step < how.steps; ++step) {
        if (step > 0 && step % how.decay_every == 0) rate *= how.decay;
        Real value[MAX_PARAMETERS];
        for (int p = 0; p < k; ++p) value[p] = convert<Real>(x[p]);
        const Real ln_plx = value[k - 1];
        for (int p = k - 2; p < k; ++p) value[p] = exp(value[p]);
        loss_gradient(model, shape, prior, terms, star, space, value, ln_plx, gradient);
        clip_norm(k, how.clip, gradient);
        power1 *= ADAM_BETA1;
        power2 *= ADAM_BETA2;
        const State scale = lane<State>(how.adam ? rate * sqrt(1 - power2) / (1 - power1) : rate);
        for (int p = 0; p < k; ++p) {
            State move = gradient[p];
            if (how.adam) {
                mean[p] = fma(mean[p], lane<State>(ADAM_BETA1), gradient[p] * lane<State>(1 - ADAM_BETA1));
                square[p] =
                    fma(square[p], lane<State>(ADAM_BETA2), gradient[p] * gradient[p] * lane<State>(1 - ADAM_BETA2));
                move = mean[p] / (sqrt(square[p]) + lane<State>(ADAM_EPSILON));
            }
            x[p] = clamp(fma(-scale, move, x[p]), lower[p], upper[p]);
        }
    }
}

// The box in x, the same for every star.
template <class State>
struct DescentBox {
    State lower[MAX_PARAMETERS], upper[MAX_PARAMETERS];
    XPKERN_INLINE DescentBox(const FitView& fit, int k) {
        const int ext = k - 2;
        for (int p = 0; p < k; ++p) {
            const double low = p == ext ? max(fit.lower[p], SMALLEST_EXT) : fit.lower[p];
            lower[p] = lane<State>(p >= ext ? log(low) : low);
            upper[p] = lane<State>(p >= ext ? log(fit.upper[p]) : fit.upper[p]);
        }
    }
    // From u to x, inside the box.
    XPKERN_INLINE void enter(int k, State* x) const {
        x[k - 2] = log(max(x[k - 2], lane<State>(SMALLEST_EXT)));
        for (int p = 0; p < k; ++p) x[p] = clamp(x[p], lower[p], upper[p]);
    }
};

XPKERN_NAMESPACE_END
