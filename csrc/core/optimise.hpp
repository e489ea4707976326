// Levenberg-Marquardt and Newton steps in u = (Theta, E, ln plx) on the exact star loss, all stars of a lane in step.
//
// Each star has its own damping and its own end; a star that has ended is frozen by select, so that what its neighbours
// do cannot change a bit of its result. Convergence is declared on the predicted drop g^T H^-1 g / 2 of an undamped
// step, whether or not the last step was taken.
#pragma once

#include "star_loss.hpp"

XPKERN_NAMESPACE_BEGIN

template <class Wide>
struct BoxView {
    const Wide* lower;  // (k,) in u
    const Wide* upper;
};

struct StopRule {
    int max_evaluations;
    double drop;  // converged when the predicted drop is below drop * max(1, drop_per_loss * loss)
    double drop_per_loss;
    bool step_on;  // a star that has converged takes its last step too, unseen: where a finer stage will look at it
                   // Where none will, the flux of the optimum is kept if there is room for it.
};

// Samples of which optimise() keeps the predicted flux.
template <class Shape, class Real, class Wide>
XPKERN_INLINE int kept_samples(const Shape& shape, const StopRule& rule, const Workspace<Real, Wide>& space) {
    return rule.step_on || !space.kept_flux ? 0 : shape.samples();
}

// What a lane's stars carry through a stage.
template <class Real, class Wide>
struct Progress {
    LossState<Real, Wide> state;
    Real damping;
    Real spent;         // evaluations of the stars at work; exact in a float far beyond any limit
    bool evaluated;     // whether the state is that of an evaluation at u, not u alone
    Mask<Real> active;  // before: stars that take part; after: those that were left while still at work
    Mask<Real> converged;
};

template <class Shape, class Real, class Wide>
XPKERN_INLINE void accept(const Shape& shape, const Mask<Real>& better, const LossState<Real, Wide>& trial,
                          LossState<Real, Wide>& state) {
    const int k = shape.parameters();
    const Mask<Wide> wide_better = convert_mask<Wide>(better);
    for (int p = 0; p < k; ++p) {
        state.u[p] = select(wide_better, trial.u[p], state.u[p]);
        state.gradient[p] = select(better, trial.gradient[p], state.gradient[p]);
    }
    state.loss = select(wide_better, trial.loss, state.loss);
    state.chi2 = select(wide_better, trial.chi2, state.chi2);
    state.ln_prior = select(wide_better, trial.ln_prior, state.ln_prior);
    for (int packed = 0; packed < row_start(k); ++packed) {
        state.normal[packed] = select(better, trial.normal[packed], state.normal[packed]);
        state.gauss_newton[packed] = select(better, trial.gauss_newton[packed], state.gauss_newton[packed]);
        state.hessian[packed] = select(better, trial.hessian[packed], state.hessian[packed]);
    }
}

// Whether a parameter is on the edge of the box and its gradient points outward.
template <class Real, class Wide>
XPKERN_INLINE Mask<Real> pushes_out(const Wide& u, const Real& gradient, const Wide& lower, const Wide& upper) {
    return (convert_mask<Real>(u <= lower) & (gradient > lane<Real>(0))) |
           (convert_mask<Real>(u >= upper) & (gradient < lane<Real>(0)));
}

// Such a parameter takes no part in the step.
template <class Real>
XPKERN_INLINE void hold(int k, int p, const Mask<Real>& held, Real* gradient, Real* definite, Real* hessian) {
    gradient[p] = select(held, lane<Real>(0), gradient[p]);
    for (int q = 0; q < k; ++q) {
        const int at = packed_index(p, q);
        if (q == p) {
            hessian[at] = select(held, definite[at], hessian[at]);
        } else {
            definite[at] = select(held, lane<Real>(0), definite[at]);
            hessian[at] = select(held, lane<Real>(0), hessian[at]);
        }
    }
}

// A parameter's step from u: inside the box, never moving ln plx by more than 2, and never more than halving E where
// the loss has -2 ln E, which no parabola foresees. Where it has not, the edge at E = 0 is one step away for a star
// without dust.
template <class Wide>
XPKERN_INLINE Wide bounded(int k, int p, const LossView& terms, const Wide& u, const Wide& step, const Wide& lower,
                           const Wide& upper) {
    const int ext = k - 2, plx = k - 1;
    Wide at = u - step;
    if (p == ext && terms.jacobian_ext) at = max(at, u * lane<Wide>(0.5));
    if (p == plx) at = clamp(at, u - lane<Wide>(2), u + lane<Wide>(2));
    return clamp(at, lower, upper);
}
template <class Real, class Wide>
XPKERN_INLINE void bounded_step(int k, const LossView& terms, const Wide* u, const Real* step, const BoxView<Wide>& box,
                                Wide* to) {
    for (int p = 0; p < k; ++p) to[p] = bounded(k, p, terms, u[p], convert<Wide>(step[p]), box.lower[p], box.upper[p]);
}

// The drop that a quadratic form predicts of a move, moved(p) of each parameter.
template <class Real, class Moved>
XPKERN_INLINE Real predicted_drop(int k, const Real* gradient, const Real* hessian, const Moved& moved) {
    Real drop = lane<Real>(0);
    for (int p = 0; p < k; ++p) {
        Real half_curved = lane<Real>(0);
        for (int q = 0; q < k; ++q) half_curved = fma(hessian[packed_index(p, q)], moved(q), half_curved);
        drop -= moved(p) * fma(half_curved, lane<Real>(0.5), gradient[p]);
    }
    return drop;
}
// The drop that an undamped step would bring.
template <class Real>
XPKERN_INLINE Real newton_decrement(int k, const Real* gradient, const Real* newton) {
    Real decrement = lane<Real>(0);
    for (int p = 0; p < k; ++p) decrement = fma(gradient[p], newton[p], decrement);
    return decrement * lane<Real>(0.5);
}
// Whether so little is left that a search has converged.
template <class Real>
XPKERN_INLINE Mask<Real> ends(const StopRule& rule, const Real& decrement, const Real& loss) {
    const Real limit = lane<Real>(rule.drop) * max(lane<Real>(1), lane<Real>(rule.drop_per_loss) * loss);
    return (decrement <= limit) & (decrement >= lane<Real>(0));
}

// Damping after a step that was good, dropping by more than half of what was predicted, or worse, not dropping at all.
template <class Real>
XPKERN_INLINE Real damping_after(const Real& damping, const Mask<Real>& good, const Mask<Real>& worse) {
    const Real eased = select(good, damping * lane<Real>(0.2), damping);
    return select(worse, max(damping * lane<Real>(8), lane<Real>(1e-4)), eased);
}

// Where a Hessian is not positive definite, as much of its definite part is mixed in as makes it so. The definite part
// alone would creep: it is right across a valley, but along it residuals may take nearly all of that curvature away.
template <class Real>
XPKERN_STEP void make_definite(int k, Mask<Real> done, const Real* definite, Real* hessian) {
    Real mixed[MAX_TRIANGLE], nothing[MAX_PARAMETERS], unused[MAX_PARAMETERS];
    for (int p = 0; p < k; ++p) nothing[p] = lane<Real>(0);
    for (double share = 0.25; share <= 1; share *= 2) {
        for (int at = 0; at < row_start(k); ++at)
            mixed[at] = fma(definite[at] - hessian[at], lane<Real>(share), hessian[at]);
        Mask<Real> taken = !done;
        if (share < 1) taken = taken & solve_damped(k, mixed, definite, lane<Real>(0), nothing, unused);
        for (int at = 0; at < row_start(k); ++at) hessian[at] = select(taken, mixed[at], hessian[at]);
        done = done | taken;
    }
}

// What follows from an evaluation: which stars have converged, and for those that go on where to step and the drop that
// is predicted. Returns whether more than leave_at go on.
template <bool EXACT, class Real, class Wide, class Shape>
XPKERN_INLINE bool propose_step(const Shape& shape, const LossView& terms, const BoxView<Wide>& box,
                                const StopRule& rule, int leave_at, Progress<Real, Wide>& progress, Wide* to,
                                Real& predicted) {
    const int k = shape.parameters();
    LossState<Real, Wide>& state = progress.state;
    Real gradient[MAX_PARAMETERS], definite[MAX_TRIANGLE], hessian[MAX_TRIANGLE];
    for (int p = 0; p < k; ++p) gradient[p] = state.gradient[p];
    for (int packed = 0; packed < row_start(k); ++packed) {
        definite[packed] = state.gauss_newton[packed];
        hessian[packed] = state.hessian[packed];
    }
    for (int p = 0; p < k; ++p) {
        const Mask<Real> held = pushes_out(state.u[p], state.gradient[p], box.lower[p], box.upper[p]);
        if (any(held)) hold(k, p, held, gradient, definite, hessian);
    }

    // Undamped first: it decides on convergence. Where the exact Hessian is not definite, its definite part serves.
    Real newton[MAX_PARAMETERS], step[MAX_PARAMETERS];
    const Mask<Real> definite_hessian = solve_damped(k, hessian, definite, lane<Real>(0), gradient, newton);
    const Real decrement = newton_decrement(k, gradient, newton);
    const Mask<Real> converged = definite_hessian & ends(rule, decrement, convert<Real>(state.loss));
    progress.converged = (converged & progress.active) | (progress.converged & !progress.active);
    if (rule.step_on) {
        bounded_step(k, terms, state.u, newton, box, to);
        const Mask<Wide> moved = convert_mask<Wide>(progress.active & converged);
        for (int p = 0; p < k; ++p) state.u[p] = select(moved, to[p], state.u[p]);
    }
    progress.active = progress.active & !progress.converged & (progress.spent < lane<Real>(rule.max_evaluations));
    if (count(progress.active) <= leave_at) return false;

    if (EXACT && any(progress.active & !definite_hessian)) make_definite(k, definite_hessian, definite, hessian);
    solve_damped(k, hessian, definite, progress.damping, gradient, step);
    bounded_step(k, terms, state.u, step, box, to);
    predicted = predicted_drop(k, gradient, hessian, [&](int p) { return convert<Real>(to[p] - state.u[p]); });
    return true;
}

// Runs until at most leave_at stars are still at work: those that have not converged and may still spend evaluations.
// progress holds where to start. A star that is taken up again where it was left goes on as if it had never been left.
template <bool EXACT, class Real, class Wide, class Factor, class Shape, class Meanwhile = Nothing>
XPKERN_STEP void optimise(const ModelView& model, const Shape& shape, const PriorView& prior, const LossView& terms,
                          const StarView<Real, Wide, Factor>& star, const BoxView<Wide>& box, const StopRule& rule,
                          int leave_at, const Workspace<Real, Wide>& space, Progress<Real, Wide>& progress,
                          const Meanwhile& meanwhile = {}) {
    const int k = shape.parameters(), kept = kept_samples(shape, rule, space);
    LossState<Real, Wide>& state = progress.state;
    LossState<Real, Wide> trial;
    Real predicted = lane<Real>(0);
    bool begins = !progress.evaluated;
    if (!begins && kept > 0) {
        predict_values(model, shape, state.u, space);
        for (int i = 0; i < kept; ++i) space.kept_flux[i] = space.flux[i];
    }
    for (;;) {
        if (begins) {
            for (int p = 0; p < k; ++p) trial.u[p] = state.u[p];
        } else if (!propose_step<EXACT>(shape, terms, box, rule, leave_at, progress, trial.u, predicted)) {
            return;
        }
        evaluate_loss<EXACT>(model, shape, prior, terms, star, space, trial, meanwhile);
        progress.spent = select(progress.active, progress.spent + lane<Real>(1), progress.spent);
        if (begins) {
            accept(shape, lane<Real>(0) < lane<Real>(1), trial, state);
            for (int i = 0; i < kept; ++i) space.kept_flux[i] = space.flux[i];
            begins = false;
            continue;
        }
        const Real drop = convert<Real>(state.loss - trial.loss);
        const Mask<Real> better = progress.active & (drop > lane<Real>(0));
        const Mask<Real> good = better & (drop > predicted * lane<Real>(0.5));
        accept(shape, better, trial, state);
        const Mask<Wide> flux_better = convert_mask<Wide>(better);
        for (int i = 0; i < kept; ++i) space.kept_flux[i] = select(flux_better, space.flux[i], space.kept_flux[i]);
        progress.damping = damping_after(progress.damping, good, progress.active & !better);
    }
}

XPKERN_NAMESPACE_END
