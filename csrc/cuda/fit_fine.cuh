// The stages of a fit with value and residual in double: a search a warp where the model is of the usual shape; else,
// and in the last stage, a search a thread.
#pragma once

#include "fit_warp.cuh"
#include "searches.cuh"

XPKERN_NAMESPACE_BEGIN

// Newton steps of one search with value and residual in double, or all of it in double. write(change) lets one thread
// change the search.
template <class Real, class Shape, class Write>
__device__ __forceinline__ void newton_steps(const FitArguments& a, const Shape& shape,
                                             const StarView<Real, double>& star, const Workspace<Real, double>& space,
                                             const StopRule& rule, Search& search, const Write& write) {
    const int k = shape.parameters();
    const LaneBox<double> box(a.fit, k);
    Progress<Real, double> progress;
    take_up(k, 1, [&](int) -> const Search& { return search; }, box, progress);
    optimise<true>(a.fit.model, shape, a.fit.prior, a.fit.terms, star, box.view(), rule, 0, space, progress);
    write([&] {
        leave(k, progress, 0, true, true, search);  // all of it is reported in the end
        search.offered = search.converged;
    });
}

template <class Real, class Shape>
__device__ __forceinline__ void newton_steps_by_thread(const FitArguments& a, int64_t number, const StopRule& rule,
                                                       Arena arena) {
    const Shape shape(a.fit.model);
    ThreadSpace<Real, double> space(shape, a.fit.prior, arena);
    space.workspace.kept_flux = nullptr;  // fit_finish predicts it
    space.star.gather(a.stars, number / a.fit.starts, shape.samples(), shape.parameters());
    newton_steps<Real>(a, shape, space.star.view(), space.workspace, rule, searches_of(a, 0)[number],
                       [](const auto& change) { change(); });
}

// The item-th search of the queue, in either stage.
template <class Shape>
__device__ __forceinline__ void fine_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    const int most = a.fit.max_iterations, now = int(a.evaluations) < most ? int(a.evaluations) : most;
    const int64_t number = a.taken.searches[item];
    newton_steps_by_thread<float, Shape>(a, number, fine_rule(now, a.fit.tolerance), arena);
    if (!searches_of(a, 0)[number].converged && now < most) add_to_queue(a.left, number);
}
template <class Shape>
__device__ __forceinline__ void rescue_steps(const FitArguments& a, int64_t item, const Arena& arena) {
    const int64_t number = a.taken.searches[item];
    newton_steps_by_thread<double, Shape>(a, number, fine_rule(RESCUE_PATIENCE * a.fit.max_iterations, a.fit.tolerance),
                                          arena);
    Search& search = searches_of(a, 0)[number];
    search.offered = search.rescued = true;
}

// The same by a warp.
__device__ __forceinline__ void fine_steps_by_warp(const FitArguments& a, int64_t item) {
    const FitShape shape(a.fit.model);
    const int64_t number = a.taken.searches[item], row = number / a.fit.starts;
    FitStar<double>& shared = gather_fit_star<double>(a.stars, row);
    ThreadStar<float, double> star(shared.flux, shared.factor);
    star.gather_constraints(a.stars, row, shape.parameters());
    const Workspace<float, double> space{};
    newton_steps<float>(a, shape, star.view(), space, fine_rule(a.fit.max_iterations, a.fit.tolerance),
                        searches_of(a, 0)[number], [](const auto& change) {
                            __syncwarp();
                            if (lane_in_warp() == 0) change();
                            __syncwarp();
                        });
}

XPKERN_NAMESPACE_END

#if defined(XPKERN_GENERAL)
XPKERN_GENERAL_KERNEL(fit_fine, xpkern::FitArguments, *a.taken.count, kernels::fine_steps)
#else
extern "C" __global__ void __launch_bounds__(kernels::FitBlock<double>::most_threads)
    fit_fine(const __grid_constant__ xpkern::FitArguments a) {
    kernels::over_fits<double>(a, *a.taken.count, [&](int64_t item) { kernels::fine_steps_by_warp(a, item); });
}
#endif
XPKERN_STAR_KERNEL(fit_rescue, xpkern::FitArguments, *a.taken.count,
                   (kernels::ThreadSpace<double, double>::usual_bytes()), kernels::rescue_steps)
