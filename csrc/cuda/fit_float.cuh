// The stages of a fit in single precision: a star a warp where the model is of the usual shape, else a search a thread.
#pragma once

#include "fit_warp.cuh"
#include "searches.cuh"

XPKERN_NAMESPACE_BEGIN

enum class Steps { rough, scout, sharp };

// Float steps of one search of a star. It is left once it has taken `now` evaluations in its stage; returns whether it
// is to go on then. EXACT: whether steps may be sharp. write(change) lets one thread change the searches.
template <bool EXACT, class Shape, class Write>
__device__ __forceinline__ bool float_steps(const FitArguments& a, const Shape& shape, Steps steps,
                                            const StarView<float, float>& star, const Workspace<float, float>& space,
                                            const LaneBox<float>& box, int now, const Search& first, Search& search,
                                            const Write& write) {
    const int k = shape.parameters(), most = a.fit.max_iterations;
    Progress<float, float> progress;
    take_up(k, 1, [&](int) -> const Search& { return search; }, box, progress);
    const bool only_scouts = steps == Steps::scout && SCOUT_EVALUATIONS < most;
    const int evaluations = steps == Steps::rough ? now : (only_scouts ? SCOUT_EVALUATIONS : most);
    const StopRule rule = steps == Steps::sharp ? sharp_rule() : rough_rule(evaluations);
    optimise<EXACT>(a.fit.model, shape, a.fit.prior, a.fit.terms, star, box.view(), rule, 0, space, progress);
    const bool unfinished = steps != Steps::sharp && !progress.converged && evaluations < most;
    bool copy = false;
    if (steps == Steps::scout) {
        float there[MAX_PARAMETERS];
        for (int p = 0; p < k; ++p) there[p] = float(first.state.u[p]);
        copy = in_valley(a.fit.model, shape, a.fit.prior, a.fit.terms, star, space, progress.state.u,
                         progress.state.loss, there, float(first.state.loss));
    }
    write([&] {
        leave(k, progress, 0, a.fit.starts > 1, unfinished, search);
        search.copy = copy;
        if (!unfinished || copy) enter_stage(0, search);
    });
    return unfinished && !copy;
}

// The item-th search of the queue, in each of the stages, by a thread.
template <Steps STEPS, class Shape>
__device__ __forceinline__ void float_steps_by_thread(const FitArguments& a, int64_t item, Arena arena) {
    const Shape shape(a.fit.model);
    const int most = a.fit.max_iterations, now = int(a.evaluations) < most ? int(a.evaluations) : most;
    const int64_t number = a.taken.searches[item], row = number / a.fit.starts;
    Search* of_star = searches_of(a, row);
    ThreadSpace<float, float> space(shape, a.fit.prior, arena);
    space.star.gather(a.stars, row, shape.samples(), shape.parameters());
    constexpr bool exact = STEPS == Steps::sharp;
    const LaneBox<float> box(a.fit, shape.parameters());
    const bool goes_on = float_steps<exact>(a, shape, STEPS, space.star.view(), space.workspace, box, now, of_star[0],
                                            of_star[number % a.fit.starts], [](const auto& change) { change(); });
    if (goes_on || exact) add_to_queue(a.left, number);
}
template <class Shape>
__device__ __forceinline__ void rough_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    float_steps_by_thread<Steps::rough, Shape>(a, item, arena);
}
template <class Shape>
__device__ __forceinline__ void scout_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    float_steps_by_thread<Steps::scout, Shape>(a, item, arena);
}
template <class Shape>
__device__ __forceinline__ void sharp_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    float_steps_by_thread<Steps::sharp, Shape>(a, item, arena);
}

// All stages of a star, by a warp: its searches one after the other, each looked at on its way but for the first; then
// a sharp step of those that are no copies, which go into the queue. All of it is one loop around one evaluation, as
// what warps wait for, more than for anything else, is their code.
__device__ __forceinline__ void float_stages_by_warp(const FitArguments& a, int64_t row) {
    FitShape shape(a.fit.model);
    const int k = shape.parameters(), starts = a.fit.starts, most = a.fit.max_iterations;
    const int lane = lane_in_warp();
    Search* const searches = searches_of(a, row);
    if (!searches->exists) return;
    FitStar<float>& shared = gather_fit_star<float>(a.stars, row);
    ThreadStar<float, float> star(shared.flux, shared.factor);
    star.gather_constraints(a.stars, row, k);
    const Workspace<float, float> space{};
    const LaneBox<float> box(a.fit, k);
    const auto write = [&](const auto& change) {
        __syncwarp();
        if (lane == 0) change();
        __syncwarp();
    };
    Steps steps = Steps::rough;
    int choice = 0;
    while (choice < starts) {
        Search& search = searches[choice];
        bool goes_on = false;
        if (at_work(search)) {
            shape.exact = steps == Steps::sharp;
            goes_on = float_steps<true>(a, shape, steps, star.view(), space, box, most, searches[0], search, write);
            if (shape.exact && lane == 0) add_to_queue(a.left, row * starts + choice);
        }
        if (steps == Steps::sharp) {
            ++choice;
        } else if (goes_on) {
            steps = Steps::rough;
        } else {
            steps = Steps::scout;
            if (++choice < starts) continue;
            write([&] { mark_copies(k, starts, searches); });
            steps = Steps::sharp;
            choice = 0;
        }
    }
}

XPKERN_NAMESPACE_END

#if defined(XPKERN_GENERAL)
XPKERN_GENERAL_KERNEL(fit_rough, xpkern::FitArguments, *a.taken.count, kernels::rough_steps)
XPKERN_GENERAL_KERNEL(fit_scout, xpkern::FitArguments, *a.taken.count, kernels::scout_steps)
XPKERN_GENERAL_KERNEL(fit_sharp, xpkern::FitArguments, *a.taken.count, kernels::sharp_steps)
#else
// Rough, scout and sharp steps of every star.
extern "C" __global__ void __launch_bounds__(kernels::FitBlock<float>::most_threads)
    fit_float(const __grid_constant__ xpkern::FitArguments a) {
    kernels::over_fits<float>(a, a.n, [&](int64_t row) { kernels::float_stages_by_warp(a, row); });
}
#endif

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
