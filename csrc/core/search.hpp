// A star's searches for the lowest minimum of its loss: where they start, the rules of the stages that they go through,
// when one is given up for another, and what is reported in the end. Who runs when is left to a driver.
//
// A search starts with Gauss-Newton steps in float (rough). Those from a star's further starts begin once its first one
// has ended these steps, and are looked at after a few of their own (scout). What is left takes a Newton step in float
// (sharp) and Newton steps in mixed precision (fine), and what these leave unconverged is finished in double (rescue).
#pragma once

#include "evaluation.hpp"
#include "optimise.hpp"
#include "start.hpp"
#include "status.hpp"

XPKERN_NAMESPACE_BEGIN

// Damping with which the first and the last stage begin; those between take Newton steps from the start. A start is
// a Gauss-Newton step itself, so that little of it serves.
constexpr double START_DAMPING = 1e-4, RESCUE_DAMPING = 1e-3;
// Gauss-Newton steps end where Newton steps converge; a Newton step in float is taken where that is still so.
constexpr double ROUGH_DROP = 0.03, ROUGH_DROP_PER_LOSS = 1e-3;
constexpr double SHARP_DROP = 0.1, SHARP_DROP_PER_LOSS = 1e-2;
constexpr double DROP_PER_LOSS = 1e-2;
constexpr double COPY_RISE = 0.02;
// Float evaluations of a further search before it is asked whether it is in the valley of the first one. Earlier, a
// search that would find a lower minimum may still be on its way down into it.
constexpr int SCOUT_EVALUATIONS = 3;
constexpr int RESCUE_PATIENCE = 4;  // times as many evaluations as another stage may take

XPKERN_INLINE StopRule rough_rule(int evaluations) {
    return {evaluations, ROUGH_DROP, ROUGH_DROP_PER_LOSS, true};
}
// A single Newton step: nearly all stars need no second one, and those that do need not be waited for: the next stage
// does as well.
XPKERN_INLINE StopRule sharp_rule() {
    return {1, SHARP_DROP, SHARP_DROP_PER_LOSS, true};
}
XPKERN_INLINE StopRule fine_rule(int evaluations, double tolerance) {
    return {evaluations, tolerance, DROP_PER_LOSS, false};
}

// Box in u, the same for every star.
template <class Lane>
struct LaneBox {
    Lane lower[MAX_PARAMETERS], upper[MAX_PARAMETERS];
    XPKERN_INLINE LaneBox(const FitView& fit, int k) {
        for (int p = 0; p < k; ++p) {
            double low = fit.lower[p], high = fit.upper[p];
            if (p == k - 2) low = max(low, SMALLEST_EXT);
            if (p == k - 1) low = log(low), high = log(high);
            lower[p] = lane<Lane>(low);
            upper[p] = lane<Lane>(high);
        }
    }
    XPKERN_INLINE BoxView<Lane> view() const { return {lower, upper}; }
};

// Calls found(s, choice, u) for each star s of a lane and each of its starts, best first; u: (k,), or null where the
// star has no such start. mean, weight: the observed parallax's constraint; variance: scratch (m,).
template <class Real, class Factor, class Found, class Meanwhile = Nothing>
XPKERN_INLINE void choose_starts(const GridView& grid, int m, int k, const Real* flux, const Factor& factor,
                                 const Real& mean, const Real& weight, Real* variance, const StartSpace<Real>& space,
                                 int starts, double gate, const Found& found, const Meanwhile& meanwhile = {}) {
    const int inputs = k - 2;
    sample_variance(factor, m, variance);
    rate_types(grid, inputs, flux, factor, variance, m, mean, weight, space, meanwhile);
    constexpr int width = LaneTraits<Real>::width;
    Real limit = infinity<Real>(), chosen[MAX_INPUTS];
    int choice = 0;
    for (; choice < starts; ++choice) {
        Real type;
        const Real score = best_type(grid, inputs, space, choice > 0 ? chosen : nullptr, type);
        if (choice == 0) limit = score + lane<Real>(gate);
        const Mask<Real> taken = (score <= limit) & (score < infinity<Real>());
        if (choice > 0 && !any(taken)) break;  // what is left scores worse still
        double u[width][MAX_PARAMETERS];
        for (int s = 0; s < width; ++s) {
            params_of_type(grid, inputs, space, static_cast<int>(get(type, s)), s, u[s]);
            found(s, choice, choice == 0 || get(taken, s) ? u[s] : nullptr);
        }
        for (int i = 0; i < inputs; ++i) chosen[i] = lane_of<Real>([&](int s) { return u[s][i]; });
    }
    for (; choice < starts; ++choice)
        for (int s = 0; s < width; ++s) found(s, choice, nullptr);
}

// Where a search, of one star from one start, has got to. Kept: its derivatives' type, float where those of steps in
// double are of no more use once these end.
template <class Kept>
struct SearchProgress {
    LossState<Kept, double> state;
    double damping;
    int32_t spent;   // evaluations in the stage that it waits for; 0 where it has not begun
    int32_t before;  // evaluations in the stages before
    bool exists, converged;
    bool copy;     // of another search of its star: given up
    bool offered;  // as its star's solution: it has ended
    bool rescued;
    bool described;  // its residuals are written, by a driver that has them before the end
};

template <class Kept>
XPKERN_INLINE void begin_search(int k, const double* u, SearchProgress<Kept>& search) {
    for (int p = 0; p < k; ++p) search.state.u[p] = u[p];
    search.damping = START_DAMPING;
    search.spent = search.before = 0;
    search.exists = true;
    search.converged = search.copy = search.offered = search.rescued = search.described = false;
}

template <class Kept>
XPKERN_INLINE bool at_work(const SearchProgress<Kept>& search) {
    return search.exists && !search.copy;
}

template <class Kept>
XPKERN_INLINE void enter_stage(double damping, SearchProgress<Kept>& search) {
    search.damping = damping;
    search.before += search.spent;
    search.spent = 0;
}

// The searches of a lane, the first `count` of them not mere copies that fill it up, go on where they were left.
// search_of(s): that of star s.
template <class Real, class Wide, class SearchOf>
XPKERN_STEP void take_up(int k, int count, const SearchOf& search_of, const BoxView<Wide>& box,
                         Progress<Real, Wide>& progress) {
    LossState<Real, Wide>& state = progress.state;
    const auto state_of = [&](int s) -> const auto& { return search_of(s).state; };
    for (int p = 0; p < k; ++p) state.u[p] = lane_of<Wide>([&](int s) { return state_of(s).u[p]; });
    progress.damping = lane_of<Real>([&](int s) { return search_of(s).damping; });
    progress.active = lane<Real>(0) < lane<Real>(1);
    progress.converged = !progress.active;
    progress.evaluated = true;
    for (int s = 0; s < count; ++s) progress.evaluated = progress.evaluated && search_of(s).spent > 0;
    // Where all are evaluated once more for the sake of some, that is not counted for those that have a state.
    progress.spent = lane_of<Real>([&](int s) {
        const int32_t spent = search_of(s).spent;
        return spent > 0 && !progress.evaluated ? spent - 1 : spent;
    });
    if (!progress.evaluated) {
        for (int p = 0; p < k; ++p) state.u[p] = clamp(state.u[p], box.lower[p], box.upper[p]);
        return;
    }
    state.loss = lane_of<Wide>([&](int s) { return state_of(s).loss; });
    state.chi2 = lane_of<Wide>([&](int s) { return state_of(s).chi2; });
    state.ln_prior = lane_of<Wide>([&](int s) { return state_of(s).ln_prior; });
    for (int p = 0; p < k; ++p) state.gradient[p] = lane_of<Real>([&](int s) { return state_of(s).gradient[p]; });
    for (int at = 0; at < row_start(k); ++at) {
        state.normal[at] = lane_of<Real>([&](int s) { return state_of(s).normal[at]; });
        state.gauss_newton[at] = lane_of<Real>([&](int s) { return state_of(s).gauss_newton[at]; });
        state.hessian[at] = lane_of<Real>([&](int s) { return state_of(s).hessian[at]; });
    }
}

// Notes where a search has got to. compared: what is_copy() asks of it is wanted too; resumes: everything is, as the
// search is taken up again.
template <class Real, class Wide, class Kept>
XPKERN_STEP void leave(int k, const Progress<Real, Wide>& progress, int s, bool compared, bool resumes,
                       SearchProgress<Kept>& search) {
    const LossState<Real, Wide>& state = progress.state;
    const double loss = get(state.loss, s);
    search.state.loss = loss == loss ? loss : infinity<double>();
    for (int p = 0; p < k; ++p) search.state.u[p] = get(state.u[p], s);
    search.damping = get(progress.damping, s);
    search.converged = get(progress.converged, s);
    search.spent = static_cast<int32_t>(get(progress.spent, s));
    if (compared || resumes)
        for (int at = 0; at < row_start(k); ++at)
            search.state.gauss_newton[at] = static_cast<Kept>(get(state.gauss_newton[at], s));
    if (!resumes) return;
    search.state.chi2 = get(state.chi2, s);
    search.state.ln_prior = get(state.ln_prior, s);
    for (int p = 0; p < k; ++p) search.state.gradient[p] = static_cast<Kept>(get(state.gradient[p], s));
    for (int at = 0; at < row_start(k); ++at) {
        search.state.normal[at] = static_cast<Kept>(get(state.normal[at], s));
        search.state.hessian[at] = static_cast<Kept>(get(state.hessian[at], s));
    }
}

// Whether it goes down all the way from u to where a star's first search has got to, as far as the middle of the
// straight line between the two can tell.
template <class Real, class Factor, class Shape>
XPKERN_STEP Mask<Real> in_valley(const ModelView& model, const Shape& shape, const PriorView& prior,
                                 const LossView& terms, const StarView<Real, Real, Factor>& star,
                                 const Workspace<Real, Real>& space, const Real* u, const Real& loss,
                                 const Real* u_of_first, const Real& loss_of_first) {
    Real middle[MAX_PARAMETERS];
    for (int p = 0; p < shape.parameters(); ++p) middle[p] = (u[p] + u_of_first[p]) * lane<Real>(0.5);
    const Real between = loss_alone(model, shape, prior, terms, star, space, middle);
    return (loss_of_first < between) & (between < loss);
}

// Whether a search is in the basin of another that is lower: the other's quadratic form of the loss, at the distance
// between them, is no more than what float steps leave of it. Both are of one star, in the order of their addresses.
template <class Kept>
XPKERN_INLINE bool is_copy(int k, const SearchProgress<Kept>& search, const SearchProgress<Kept>& other) {
    const LossState<Kept, double>&a = search.state, &b = other.state;
    if (!(b.loss < a.loss || (b.loss == a.loss && &other < &search))) return false;
    double rise = 0;
    for (int p = 0; p < k; ++p)
        for (int q = 0; q < k; ++q)
            rise += 0.5 * (a.u[p] - b.u[p]) * b.gauss_newton[packed_index(p, q)] * (a.u[q] - b.u[q]);
    return rise <= COPY_RISE;
}

// Marks which of a star's searches, (starts,), need not go on. All have ended their rough steps.
template <class Kept>
XPKERN_INLINE void mark_copies(int k, int starts, SearchProgress<Kept>* searches) {
    for (int one = 0; one < starts; ++one)
        for (int other = 0; other < starts; ++other)
            if (at_work(searches[one]) && at_work(searches[other]) && is_copy(k, searches[one], searches[other]))
                searches[one].copy = true;
}

// Whether a search that has ended is its star's solution rather than another: the lower, the earlier start where two
// are equal, so that the order in which they end does not matter.
template <class Kept>
XPKERN_INLINE bool is_better(const SearchProgress<Kept>& search, const SearchProgress<Kept>& other) {
    return search.state.loss < other.state.loss || (search.state.loss == other.state.loss && &search < &other);
}

// Whether to finish in double what fine steps left unconverged: where its star has no solution, or a higher one.
template <class Kept>
XPKERN_INLINE bool worth_rescue(const SearchProgress<Kept>& search, const SearchProgress<Kept>* solution) {
    return !solution || search.state.loss < solution->state.loss;
}

template <class Kept>
XPKERN_INLINE bool same_place(int k, const SearchProgress<Kept>& a, const SearchProgress<Kept>& b) {
    bool same = true;
    for (int p = 0; p < k; ++p)
        same = same && abs(a.state.u[p] - b.state.u[p]) <= (p == k - 2 ? SAME_MINIMUM_EXT : SAME_MINIMUM);
    return same;
}

// A residual, the difference of a predicted and an observed flux, in units of sigma; 0 where the sample is missing.
template <class Real>
XPKERN_INLINE Real in_sigmas(const Real& difference, const Real& variance) {
    const Mask<Real> present = variance > lane<Real>(0);
    const Real sigma = sqrt(select(present, variance, lane<Real>(1)));
    return select(present, difference / sigma, lane<Real>(0));
}
template <class Real, class Wide>
XPKERN_INLINE Real normalised_residual(const Wide& predicted, const Real& flux, const Real& variance) {
    return in_sigmas(convert<Real>(predicted - convert<Wide>(flux)), variance);
}

// What is written of a lane's stars: derivatives, and residuals (m,).
template <class State, class Real, class Wide, class Factor>
XPKERN_KERNEL void describe_solution(const State& state, int m, int k, const Real* flux, const Factor& factor,
                                     const Wide* weight, const Wide* predicted, Real* residual, Report<Wide>& report) {
    report_evaluation(state, k, weight, report);
    sample_variance(factor, m, residual);
    for (int i = 0; i < m; ++i) residual[i] = normalised_residual(predicted[i], flux[i], residual[i]);
}

// Writes star s of a lane, but for its residuals.
template <class State, class Wide>
XPKERN_INLINE void write_solution(const FitView& fit, int k, const State& state, const Report<Wide>& report, int s,
                                  bool converged, bool rescued, int64_t row, const SolutionArrays& out) {
    write_evaluation(state, report, s, k, row, out.at);
    out.decrement[row] = get(report.decrement, s);
    uint32_t status = rescued ? uint32_t(RESCUED) : 0u;
    if (!converged) status |= NOT_CONVERGED;
    if (!get(report.positive, s)) status |= HESSIAN_NOT_POSITIVE;
    for (int p = 0; p < k; ++p) {
        double value = get(state.u[p], s);
        if (p == k - 1) value = exp(value);
        const double low = p == k - 2 ? max(fit.lower[p], SMALLEST_EXT) : fit.lower[p];
        const double slack = 1e-12 * abs(value);
        if (value <= low + slack || value >= fit.upper[p] - slack) status |= ON_BOX_EDGE;
        out.params[row * k + p] = value;
    }
    out.status[row] = status;
}

template <class Real>
XPKERN_INLINE void write_residual(int m, const Real* residual, int s, int64_t row, const SolutionArrays& out) {
    for (int i = 0; i < m; ++i) out.residual[row * m + i] = static_cast<float>(get(residual[i], s));
}

XPKERN_INLINE bool has_data(const float* factor, int m) {
    for (int i = 0; i < m; ++i)
        if (factor[row_start(i) + i] > 0) return true;
    return false;
}

XPKERN_INLINE void write_missing(int m, int k, int64_t row, const SolutionArrays& out) {
    const double nan = not_a_number();
    out.at.loss[row] = out.at.chi2[row] = out.at.ln_prior[row] = out.decrement[row] = nan;
    for (int p = 0; p < k; ++p) out.params[row * k + p] = out.at.gradient[row * k + p] = nan;
    for (int p = 0; p < k * k; ++p) out.at.hessian[row * k * k + p] = out.at.fisher[row * k * k + p] = nan;
    for (int i = 0; i < m; ++i) out.residual[row * m + i] = 0.0f;
    for (int p = 0; p < k; ++p) out.second_params[row * k + p] = nan;
    out.second_gap[row] = nan;
    out.iterations[row] = out.minima[row] = 0;
    out.status[row] = NO_DATA;
}

// The minima that a star's searches, (starts,), have found: how many are distinct, and the second lowest. best: the
// star's solution.
template <class Kept>
XPKERN_INLINE void compare_minima(int k, int starts, const SearchProgress<Kept>* searches, int best, int64_t row,
                                  const SolutionArrays& out) {
    constexpr int NONE = -1;
    int minima = 1, iterations = 0, second = NONE;
    for (int choice = 0; choice < starts; ++choice) {
        const SearchProgress<Kept>& search = searches[choice];
        if (!search.exists) continue;
        iterations += search.before + search.spent;
        if (!search.converged || search.copy || choice == best || same_place(k, search, searches[best])) continue;
        bool known = false;
        for (int other = 0; other < choice; ++other)
            known = known || (other != best && at_work(searches[other]) && searches[other].converged &&
                              same_place(k, search, searches[other]));
        if (!known) ++minima;
        if (second == NONE || search.state.loss < searches[second].state.loss) second = choice;
    }
    const double nan = not_a_number();
    out.iterations[row] = iterations;
    out.minima[row] = minima;
    out.second_gap[row] = second == NONE ? nan : searches[second].state.loss - searches[best].state.loss;
    for (int p = 0; p < k; ++p) out.second_params[row * k + p] = second == NONE ? nan : searches[second].state.u[p];
    if (second != NONE) out.second_params[row * k + k - 1] = exp(searches[second].state.u[k - 1]);
}

XPKERN_NAMESPACE_END
