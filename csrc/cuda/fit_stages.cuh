// The stages of a fit by threads: for models of any shape all of them, a search a thread; of the usual shape what is
// left to be finished in double.
#pragma once

#include "searches.cuh"

XPKERN_NAMESPACE_BEGIN

enum class FloatSteps { rough, scout, sharp };

// The item-th search of the queue, in one of the stages in float.
template <FloatSteps STEPS, class Shape>
__device__ __forceinline__ void float_steps(const FitArguments& a, int64_t item, Arena arena) {
    const Shape shape(a.fit.model);
    const int k = shape.parameters(), most = a.fit.max_iterations;
    const int now = int(a.evaluations) < most ? int(a.evaluations) : most;
    const int64_t number = a.taken.searches[item], row = number / a.fit.starts;
    Search& search = searches_of(a, 0)[number];
    const Search& first = searches_of(a, row)[0];
    ThreadSpace<float, float> space(shape, a.fit.prior, arena);
    space.star.gather(a.stars, row, shape.samples(), k);
    const StarView<float, float> star = space.star.view();
    constexpr bool exact = STEPS == FloatSteps::sharp, scouts = STEPS == FloatSteps::scout;
    const LaneBox<float> box(a.fit, k);
    Progress<float, float> progress;
    take_up(k, 1, [&](int) -> const Search& { return search; }, box.view(), progress);
    const int evaluations = scouts ? (SCOUT_EVALUATIONS < most ? SCOUT_EVALUATIONS : most) : now;
    const StopRule rule = exact ? sharp_rule() : rough_rule(evaluations);
    optimise<exact>(a.fit.model, shape, a.fit.prior, a.fit.terms, star, box.view(), rule, 0, space.workspace, progress);
    const bool unfinished = !exact && !progress.converged && evaluations < most;
    bool copy = false;
    if (scouts) {
        float there[MAX_PARAMETERS];
        for (int p = 0; p < k; ++p) there[p] = float(first.state.u[p]);
        copy = in_valley(a.fit.model, shape, a.fit.prior, a.fit.terms, star, space.workspace, progress.state.u,
                         progress.state.loss, there, float(first.state.loss));
    }
    leave(k, progress, 0, a.fit.starts > 1, unfinished, search);
    search.copy = copy;
    if (!unfinished || copy) enter_stage(0, search);
    if ((unfinished && !copy) || exact) add_to_queue(a.left, number);
}
template <class Shape>
__device__ __forceinline__ void rough_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    float_steps<FloatSteps::rough, Shape>(a, item, arena);
}
template <class Shape>
__device__ __forceinline__ void scout_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    float_steps<FloatSteps::scout, Shape>(a, item, arena);
}
template <class Shape>
__device__ __forceinline__ void sharp_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    float_steps<FloatSteps::sharp, Shape>(a, item, arena);
}

// Newton steps of one search with value and residual in double, or all of it in double.
template <class Real, class Shape>
__device__ __forceinline__ void newton_steps(const FitArguments& a, int64_t number, const StopRule& rule, Arena arena) {
    const Shape shape(a.fit.model);
    const int k = shape.parameters();
    Search& search = searches_of(a, 0)[number];
    ThreadSpace<Real, double> space(shape, a.fit.prior, arena);
    space.workspace.kept_flux = nullptr;  // fit_finish predicts it
    space.star.gather(a.stars, number / a.fit.starts, shape.samples(), k);
    const LaneBox<double> box(a.fit, k);
    Progress<Real, double> progress;
    take_up(k, 1, [&](int) -> const Search& { return search; }, box.view(), progress);
    optimise<true>(a.fit.model, shape, a.fit.prior, a.fit.terms, space.star.view(), box.view(), rule, 0,
                   space.workspace, progress);
    leave(k, progress, 0, true, true, search);  // all of it is reported in the end
    search.offered = search.converged;
}

// The item-th search of the queue, in either stage.
template <class Shape>
__device__ __forceinline__ void fine_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    const int most = a.fit.max_iterations, now = int(a.evaluations) < most ? int(a.evaluations) : most;
    const int64_t number = a.taken.searches[item];
    newton_steps<float, Shape>(a, number, fine_rule(now, a.fit.tolerance), arena);
    if (!searches_of(a, 0)[number].converged && now < most) add_to_queue(a.left, number);
}
template <class Shape>
__device__ __forceinline__ void rescue_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    const int64_t number = a.taken.searches[item];
    newton_steps<double, Shape>(a, number, fine_rule(RESCUE_PATIENCE * a.fit.max_iterations, a.fit.tolerance), arena);
    Search& search = searches_of(a, 0)[number];
    search.offered = search.rescued = true;
}

XPKERN_NAMESPACE_END

XPKERN_STAR_KERNEL(fit_rescue, xpkern::FitArguments, *a.taken.count,
                   (kernels::ThreadSpace<double, double>::usual_bytes()), kernels::rescue_steps)

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
        kernels::Search* searches = kernels::searches_of(a, row);
        kernels::mark_copies(kernels::AnyShape(a.fit.model).parameters(), a.fit.starts, searches);
        for (int choice = 0; choice < a.fit.starts; ++choice)
            if (kernels::at_work(searches[choice])) kernels::add_to_queue(a.left, row * a.fit.starts + choice);
    });
}
