// The fit, a kernel for each stage: searches that are left are packed anew for the next one, in any order, as a
// search's path depends on nothing but its own star. The rules are those of core/search.hpp.
#pragma once

#include "stars.cuh"

XPKERN_NAMESPACE_BEGIN

XPKERN_INLINE SearchProgress* searches_of(const FitArguments& a, int64_t row) {
    return reinterpret_cast<SearchProgress*>(a.progress) + row * a.fit.starts;
}

__device__ __forceinline__ void add_to_queue(const SearchQueue& queue, int64_t search) {
    const auto place = atomicAdd(reinterpret_cast<unsigned long long*>(queue.count), 1ull);
    queue.searches[place] = search;
}

template <class Shape>
__device__ __forceinline__ void start_searches(const FitArguments& a, int64_t row, const Arena& arena) {
    const Shape shape(a.fit.model);
    const int k = shape.parameters(), m = shape.samples();
    SearchProgress* searches = searches_of(a, row);
    for (int choice = 0; choice < a.fit.starts; ++choice) searches[choice].exists = false;
    if (!has_data(a.stars.whitener + row * row_start(m), m)) return write_missing(m, k, row, a.out);
    const auto begin = [&](int choice, const double* u) {
        if (u) begin_search(k, u, searches[choice]);
    };
    if (a.fit.grid.n_types > 0) {
        find_starts(a.fit.grid, a.stars, row, m, k, a.fit.starts, a.fit.gate, arena, begin);
    } else {
        double u[MAX_PARAMETERS];
        load_params(a.fit.start_params + row * k, k, u);
        begin(0, u);
    }
    add_to_queue(a.left, row * a.fit.starts);
}

enum class Steps { rough, scout, sharp };

// Float steps of one search. It is left once it has taken a.evaluations in its stage.
template <Steps STEPS, class Shape>
__device__ __forceinline__ void float_steps(const FitArguments& a, int64_t number, Arena arena) {
    const Shape shape(a.fit.model);
    const int k = shape.parameters(), m = shape.samples();
    const int64_t row = number / a.fit.starts;
    SearchProgress* of_star = searches_of(a, row);
    SearchProgress& search = of_star[number % a.fit.starts];
    ThreadSpace<float, float> space(shape, a.fit.prior, arena);
    space.star.gather(a.stars, row, m, k);
    const LaneBox<float> box(a.fit, k);
    Progress<float, float> progress;
    take_up(k, 1, [&](int) -> const SearchProgress& { return search; }, box, progress);

    const int most = a.fit.max_iterations, now = int(a.evaluations) < most ? int(a.evaluations) : most;
    const bool only_scouts = STEPS == Steps::scout && SCOUT_EVALUATIONS < most;
    const int evaluations = STEPS == Steps::rough ? now : (only_scouts ? SCOUT_EVALUATIONS : most);
    const StopRule rule = STEPS == Steps::sharp ? sharp_rule() : rough_rule(evaluations);
    optimise<STEPS == Steps::sharp>(a.fit.model, shape, a.fit.prior, a.fit.terms, space.star.view(), box.view(), rule,
                                    0, space.workspace, progress);
    const bool goes_on = STEPS != Steps::sharp && !progress.converged && evaluations < most;
    leave(k, progress, 0, a.fit.starts > 1, goes_on, search);
    if constexpr (STEPS == Steps::scout) {
        float there[MAX_PARAMETERS];
        for (int p = 0; p < k; ++p) there[p] = float(of_star->state.u[p]);
        search.copy = in_valley(a.fit.model, shape, a.fit.prior, a.fit.terms, space.star.view(), space.workspace,
                                progress.state.u, progress.state.loss, there, float(of_star->state.loss));
    }
    if (goes_on && !search.copy)
        add_to_queue(a.left, number);
    else
        enter_stage(0, search);
    if constexpr (STEPS == Steps::sharp) add_to_queue(a.left, number);
}

// Newton steps of one search with value and residual in double, or all of it in double.
template <class Real, class Shape>
__device__ __forceinline__ void newton_steps(const FitArguments& a, int64_t number, const StopRule& rule, Arena arena) {
    const Shape shape(a.fit.model);
    const int k = shape.parameters(), m = shape.samples();
    SearchProgress& search = searches_of(a, 0)[number];
    ThreadSpace<Real, double> space(shape, a.fit.prior, arena);
    space.star.gather(a.stars, number / a.fit.starts, m, k);
    const LaneBox<double> box(a.fit, k);
    Progress<Real, double> progress;
    take_up(k, 1, [&](int) -> const SearchProgress& { return search; }, box, progress);
    optimise<true>(a.fit.model, shape, a.fit.prior, a.fit.terms, space.star.view(), box.view(), rule, 0,
                   space.workspace, progress);
    leave(k, progress, 0, true, true, search);  // all of it is reported in the end
}

// The item-th search of the queue, in each of the stages.
template <class Shape>
__device__ __forceinline__ void rough_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    float_steps<Steps::rough, Shape>(a, a.taken.searches[item], arena);
}
template <class Shape>
__device__ __forceinline__ void scout_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    float_steps<Steps::scout, Shape>(a, a.taken.searches[item], arena);
}
template <class Shape>
__device__ __forceinline__ void sharp_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    float_steps<Steps::sharp, Shape>(a, a.taken.searches[item], arena);
}
template <class Shape>
__device__ __forceinline__ void fine_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    const int most = a.fit.max_iterations, now = int(a.evaluations) < most ? int(a.evaluations) : most;
    const int64_t number = a.taken.searches[item];
    newton_steps<float, Shape>(a, number, fine_rule(now, a.fit.tolerance), arena);
    SearchProgress& search = searches_of(a, 0)[number];
    search.offered = search.converged;
    if (!search.converged && now < most) add_to_queue(a.left, number);
}
template <class Shape>
__device__ __forceinline__ void rescue_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    const int64_t number = a.taken.searches[item];
    newton_steps<double, Shape>(a, number, fine_rule(RESCUE_PATIENCE * a.fit.max_iterations, a.fit.tolerance), arena);
    SearchProgress& search = searches_of(a, 0)[number];
    search.offered = search.rescued = true;
}

// A star's solution: the best of the searches that have ended; -1 if none has.
XPKERN_INLINE int best_search(const SearchProgress* searches, int starts) {
    int best = -1;
    for (int choice = 0; choice < starts; ++choice) {
        const SearchProgress& search = searches[choice];
        if (search.exists && search.offered && (best < 0 || is_better(search, searches[best]))) best = choice;
    }
    return best;
}

// Writes a star's solution, from where its best search has been left.
template <class Shape>
__device__ __forceinline__ void finish_star(const FitArguments& a, int64_t row, Arena arena) {
    const Shape shape(a.fit.model);
    const int k = shape.parameters(), m = shape.samples();
    const SearchProgress* searches = searches_of(a, row);
    const int best = best_search(searches, a.fit.starts);
    if (best < 0) return;  // a star without data, already written
    const SearchProgress& search = searches[best];
    ThreadSpace<float, double> space(shape, a.fit.prior, arena);
    space.star.gather(a.stars, row, m, k);
    predict_values(a.fit.model, shape, search.state.u, space.workspace);
    Report<double> report;
    describe_solution(search.state, m, k, space.star.flux, space.star.factor, space.star.weight, space.workspace.flux,
                      space.workspace.back, report);
    write_solution(a.fit, m, k, search.state, report, space.workspace.back, 0, search.converged, search.rescued, row,
                   a.out);
    compare_minima(k, a.fit.starts, searches, best, row, a.out);
}

XPKERN_NAMESPACE_END

XPKERN_STAR_KERNEL(fit_start, xpkern::FitArguments, a.n, kernels::StartMemory::usual_bytes(), kernels::start_searches)
XPKERN_STAR_KERNEL(fit_rough, xpkern::FitArguments, *a.taken.count, (kernels::ThreadSpace<float, float>::usual_bytes()),
                   kernels::rough_steps)
XPKERN_STAR_KERNEL(fit_scout, xpkern::FitArguments, *a.taken.count, (kernels::ThreadSpace<float, float>::usual_bytes()),
                   kernels::scout_steps)
XPKERN_STAR_KERNEL(fit_sharp, xpkern::FitArguments, *a.taken.count, (kernels::ThreadSpace<float, float>::usual_bytes()),
                   kernels::sharp_steps)
XPKERN_STAR_KERNEL(fit_fine, xpkern::FitArguments, *a.taken.count, (kernels::ThreadSpace<float, double>::usual_bytes()),
                   kernels::fine_steps)
XPKERN_STAR_KERNEL(fit_rescue, xpkern::FitArguments, *a.taken.count,
                   (kernels::ThreadSpace<double, double>::usual_bytes()), kernels::rescue_steps)
XPKERN_STAR_KERNEL(fit_finish, xpkern::FitArguments, a.n, (kernels::ThreadSpace<float, double>::usual_bytes()),
                   kernels::finish_star)

// Further searches of the stars, once their first ones have ended their rough steps.
extern "C" __global__ void fit_others(const __grid_constant__ xpkern::FitArguments a) {
    kernels::over_items(a.n, [&](int64_t row) {
        for (int choice = 1; choice < a.fit.starts; ++choice)
            if (kernels::searches_of(a, row)[choice].exists) kernels::add_to_queue(a.left, row * a.fit.starts + choice);
    });
}

// Searches that go on, once all have ended their rough steps.
extern "C" __global__ void fit_compare(const __grid_constant__ xpkern::FitArguments a) {
    kernels::over_items(a.n, [&](int64_t row) {
        kernels::SearchProgress* searches = kernels::searches_of(a, row);
        kernels::mark_copies(kernels::AnyShape(a.fit.model).parameters(), a.fit.starts, searches);
        for (int choice = 0; choice < a.fit.starts; ++choice)
            if (kernels::at_work(searches[choice])) kernels::add_to_queue(a.left, row * a.fit.starts + choice);
    });
}

// Searches that are worth finishing in double, once all have ended their fine steps.
extern "C" __global__ void fit_select(const __grid_constant__ xpkern::FitArguments a) {
    kernels::over_items(a.n, [&](int64_t row) {
        kernels::SearchProgress* searches = kernels::searches_of(a, row);
        const int best = kernels::best_search(searches, a.fit.starts);
        for (int choice = 0; choice < a.fit.starts; ++choice) {
            kernels::SearchProgress& search = searches[choice];
            if (!kernels::at_work(search) || search.offered) continue;
            if (!kernels::worth_rescue(search, best < 0 ? nullptr : searches + best)) continue;
            kernels::enter_stage(kernels::RESCUE_DAMPING, search);
            kernels::add_to_queue(a.left, row * a.fit.starts + choice);
        }
    });
}
