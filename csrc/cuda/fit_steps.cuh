// Steps of a search by a warp, by the rules of core/optimise.hpp. Where the search is and its derivatives stand in
// shared memory; a parameter's step is a lane's, and the undamped and the damped one are those of the warp's two
// halves.
#pragma once

#include "fit_terms.cuh"

XPKERN_NAMESPACE_BEGIN

// What a search of the warp's star carries beside star.u and star.best.
struct FitProgress {
    double loss, chi2, ln_prior;
    float damping;
    int spent;       // evaluations
    bool evaluated;  // whether star.best and the above are those of star.u
    bool converged;
    bool accepted;  // whether the last evaluation is the best one
};

// COUNT numbers, in accesses of four.
template <int COUNT>
__device__ __forceinline__ void load_fours(const float* from, float (&numbers)[COUNT]) {
    static_assert(COUNT % 4 == 0);
    XPKERN_UNROLL
    for (int i = 0; i < COUNT; i += 4) {
        const Four four = *reinterpret_cast<const Four*>(from + i);
        XPKERN_UNROLL
        for (int j = 0; j < 4; ++j) numbers[i + j] = four.number[j];
    }
}

// The core's propose_step() for a warp: the step leads to star.trial.
__device__ __forceinline__ bool propose_step(const LossView& terms, const StopRule& rule, FitStar& star,
                                             FitProgress& progress, float& predicted) {
    constexpr int k = FitElement::k, half = LANES / 2;
    const FitBlock& block = fit_block();
    const int lane = lane_in_warp(), p = lane % half < k ? lane % half : k - 1;
    const bool steps = lane % half < k, undamped = lane < half;
    float definite[FitElement::count], hessian[FitDerivatives::padded];
    float* const gradient = definite + FitElement::squares;
    load_fours(star.best.definite, definite);
    load_fours(star.best.hessian, hessian);
    const double u = star.u[p], lower = block.lower[p], upper = block.upper[p];
    const float slope = star.best.definite[FitElement::squares + p];
    if (const unsigned held = lanes_of_which(steps && undamped && pushes_out(u, slope, lower, upper)); held > 0) {
        XPKERN_UNROLL
        for (int q = 0; q < k; ++q) hold(k, q, (held >> q & 1) > 0, gradient, definite, hessian);
    }

    float step[k];
    const bool mine = solve_damped(k, hessian, definite, undamped ? 0.0f : progress.damping, gradient, step);
    const bool positive = (lanes_of_which(mine) & 1) > 0;
    const float decrement = from_lane(newton_decrement(k, gradient, step), 0);
    progress.converged = positive && ends(rule, decrement, convert<float>(progress.loss));
    const bool goes_on = !progress.converged && progress.spent < rule.max_evaluations;
    if (!goes_on && !(progress.converged && rule.step_on)) return false;
    if (!positive) {
        make_definite(k, false, definite, hessian);
        solve_damped(k, hessian, definite, progress.damping, gradient, step);
    }
    float of_mine = step[0];
    XPKERN_UNROLL
    for (int q = 1; q < k; ++q) of_mine = p == q ? step[q] : of_mine;
    const double to = bounded(k, p, terms, u, convert<double>(of_mine), lower, upper);
    __syncwarp();  // no lane still reads star.u
    if (steps && undamped != goes_on) (goes_on ? star.trial : star.u)[p] = to;
    __syncwarp();
    if (!goes_on) return false;
    const float to_move = convert<float>(to - u);
    float moved[k];
    XPKERN_UNROLL
    for (int q = 0; q < k; ++q) moved[q] = from_lane(to_move, half + q);
    predicted = predicted_drop(k, gradient, hessian, [&](int q) { return moved[q]; });
    return true;
}

// The core's function of that name for a warp.
__device__ __forceinline__ void optimise(const FitView& fit, const FitShape& shape, const FitGaussian& gaussian,
                                         const StopRule& rule, FitStar& star, FitProgress& progress) {
    float predicted = 0;
    bool begins = !progress.evaluated;
    for (;;) {
        if (begins) {
            if (lane_in_warp() < FitElement::k) star.trial[lane_in_warp()] = star.u[lane_in_warp()];
            __syncwarp();
        } else if (!propose_step(fit.terms, rule, star, progress, predicted)) {
            return;
        }
        const FitEvaluation found = evaluate_by_warp(fit.model, shape, gaussian, fit.terms, star);
        ++progress.spent;
        const float drop = convert<float>(progress.loss - found.loss);
        progress.accepted = begins || drop > 0;
        if (progress.accepted) {
            accept(found, star);
            progress.loss = found.loss, progress.chi2 = found.chi2, progress.ln_prior = found.ln_prior;
        }
        if (!begins)
            progress.damping =
                damping_after(progress.damping, progress.accepted && drop > predicted * 0.5f, !progress.accepted);
        begins = false;
    }
}

// A search goes on where it was left.
__device__ __forceinline__ void take_up(const Search& search, FitStar& star, FitProgress& progress) {
    constexpr int k = FitElement::k, squares = FitElement::squares;
    const int lane = lane_in_warp();
    const FitBlock& block = fit_block();
    progress.damping = convert<float>(search.damping);
    progress.spent = search.spent;
    progress.evaluated = search.spent > 0;
    progress.converged = false;
    __syncwarp();
    if (lane < k) {
        const double u = search.state.u[lane];
        star.u[lane] = progress.evaluated ? u : clamp(u, block.lower[lane], block.upper[lane]);
    }
    if (progress.evaluated) {
        progress.loss = search.state.loss, progress.chi2 = search.state.chi2, progress.ln_prior = search.state.ln_prior;
        if (lane < squares) {
            star.best.definite[lane] = convert<float>(search.state.gauss_newton[lane]);
            star.best.hessian[lane] = convert<float>(search.state.hessian[lane]);
            star.best.normal[lane] = convert<float>(search.state.normal[lane]);
        } else if (lane < FitElement::count) {
            star.best.definite[lane] = convert<float>(search.state.gradient[lane - squares]);
        }
    }
    __syncwarp();
}

// The core's function of that name for a warp.
__device__ __forceinline__ void leave(const FitStar& star, const FitProgress& progress, bool compared, bool resumes,
                                      Search& search) {
    constexpr int k = FitElement::k, squares = FitElement::squares;
    const int lane = lane_in_warp();
    __syncwarp();
    if (lane < k) search.state.u[lane] = star.u[lane];
    if ((compared || resumes) && lane < squares) search.state.gauss_newton[lane] = star.best.definite[lane];
    if (resumes && lane < squares) {
        search.state.hessian[lane] = star.best.hessian[lane];
        search.state.normal[lane] = star.best.normal[lane];
    } else if (resumes && lane < FitElement::count) {
        search.state.gradient[lane - squares] = star.best.definite[lane];
    }
    if (lane == 0) {
        search.state.loss = progress.loss == progress.loss ? progress.loss : infinity<double>();
        search.state.chi2 = progress.chi2, search.state.ln_prior = progress.ln_prior;
        search.damping = progress.damping;
        search.converged = progress.converged;
        search.spent = progress.spent;
    }
    __syncwarp();
}

XPKERN_NAMESPACE_END
