// The stages of a fit in single precision: a search a thread.
#pragma once

#include "searches.cuh"

XPKERN_NAMESPACE_BEGIN

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

XPKERN_NAMESPACE_END

XPKERN_STAR_KERNEL(fit_rough, xpkern::FitArguments, *a.taken.count, (kernels::ThreadSpace<float, float>::usual_bytes()),
                   kernels::rough_steps)
XPKERN_STAR_KERNEL(fit_scout, xpkern::FitArguments, *a.taken.count, (kernels::ThreadSpace<float, float>::usual_bytes()),
                   kernels::scout_steps)
XPKERN_STAR_KERNEL(fit_sharp, xpkern::FitArguments, *a.taken.count, (kernels::ThreadSpace<float, float>::usual_bytes()),
                   kernels::sharp_steps)

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
