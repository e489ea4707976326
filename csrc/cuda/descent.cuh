// ZGR23's optimiser: the search of a grid, each star's types shared out among threads, and first-order descent, a star
// a warp where the model is of the usual shape, else a thread.
#pragma once

#include "core/descent.hpp"
#include "core/grid_search.hpp"
#include "fit_terms.cuh"

XPKERN_NAMESPACE_BEGIN

// Memory of a thread that searches.
struct SearchMemory {
    float* column;
    int32_t* window;
    XPKERN_INLINE constexpr SearchMemory(int64_t samples, int64_t n_window, Arena& arena)
        : column(arena.take<float>(samples)), window(arena.take<int32_t>(n_window)) {}
    static XPKERN_INLINE constexpr int64_t bytes(int64_t samples, int64_t n_window) {
        Arena arena{nullptr, 0};
        SearchMemory(samples, n_window, arena);
        return arena.used;
    }
    static XPKERN_INLINE constexpr int64_t usual_bytes() { return bytes(UsualShape::samples(), UsualShape::samples()); }
};

template <class Shape>
__device__ __forceinline__ void search_slice(const SearchArguments& a, int64_t item, Arena arena) {
    const int k = int(a.parameters), m = a.grid.n_samples;
    const int64_t row = item / a.slices;
    const SearchMemory memory(m, a.grid.n_window, arena);
    const double sigma = a.stars.sigma[row * k + k - 1];
    const OneStar star{a.stars.flux + row * m, a.stars.whitener + row * row_start(m),
                       static_cast<float>(a.stars.mean[row * k + k - 1]), static_cast<float>(1 / (sigma * sigma))};
    reinterpret_cast<BestCandidate*>(a.best)[item] =
        search_candidates<float>(a.grid, star, memory.column, memory.window, int(item % a.slices), int(a.slices));
}

__device__ __forceinline__ void take_best(const SearchArguments& a, int64_t row) {
    const int k = int(a.parameters), inputs = k - 2;
    const BestCandidate* found = reinterpret_cast<const BestCandidate*>(a.best) + row * a.slices;
    BestCandidate best = found[0];
    for (int64_t slice = 1; slice < a.slices; ++slice)
        if (found[slice].score < infinity<float>() && is_better(found[slice], best)) best = found[slice];
    for (int t = 0; t < inputs; ++t) a.params[row * k + t] = a.grid.types[best.type * inputs + t];
    a.params[row * k + inputs] = a.grid.ext[best.ext];
    a.params[row * k + inputs + 1] = best.plx;
}

template <class Shape>
__device__ __forceinline__ void descend_star(const DescendArguments& a, int64_t row, Arena arena) {
    const Shape shape(a.fit.model);
    const int k = shape.parameters();
    ThreadSpace<float, float> space(shape, a.fit.prior, arena);
    space.star.gather(a.stars, row, shape.samples(), k);
    const DescentBox<double> box(a.fit, k);
    double x[MAX_PARAMETERS];
    load_params(a.fit.start_params + row * k, k, x);
    box.enter(k, x);
    descend(a.fit.model, shape, a.fit.prior, a.fit.terms, space.star.view(), box.lower, box.upper, a.how,
            space.workspace, x);
    for (int p = 0; p < k; ++p) a.params[row * k + p] = p >= k - 2 ? exp(x[p]) : x[p];
}

// The core's function of that name for a warp, from the slopes of all samples.
__device__ __forceinline__ double loss_gradient(const ModelView& model, const FitShape& shape, const PriorView& prior,
                                                const LossView& terms, const StarView<double, double>& star_view,
                                                const Workspace<double, double>&, const double* value,
                                                const double& ln_plx, double* gradient, const Nothing& = {}) {
    constexpr int k = FitShape::coordinates, ext = k - 2;
    FitStar& star = fit_star();
    const FitLane here;
    double u[k];
    XPKERN_UNROLL
    for (int p = 0; p < k; ++p) u[p] = p == k - 1 ? ln_plx : value[p];
    FitTape tape;
    Whitened y;
    predict_by_warp(here, model, u, star, tape);
    whiten_by_warp(here, star, y);
    const double chi2 = multiply_normal(here, star, y);
    double half_chi2[k];
    XPKERN_UNROLL
    for (int p = 0; p < k; ++p) half_chi2[p] = convert<double>(star.normal[k * FitColumns::width + p]);
    half_chi2[ext] *= value[ext];
    complete_gradient(
        k, terms, star_view, value, half_chi2,
        [&](double* slope) {
            const PriorValue<double> density = evaluate_prior(shape, prior, value, nullptr);
            XPKERN_UNROLL
            for (int t = 0; t < FitShape::n_inputs; ++t) slope[t] = density.gradient[t];
        },
        gradient);
    return chi2;
}

__device__ __forceinline__ void descend_by_warp(const DescendArguments& a, const DescentBox<double>& box, int64_t row) {
    constexpr int k = FitShape::coordinates;
    const FitShape shape(a.fit.model);
    const FitStar& shared = gather_fit_star(a.stars, row);
    const StarView<double, double> star{nullptr, nullptr, shared.mean, shared.weight};
    double x[k];
    load_params(a.fit.start_params + row * k, k, x);
    box.enter(k, x);
    descend(a.fit.model, shape, a.fit.prior, a.fit.terms, star, box.lower, box.upper, a.how,
            Workspace<double, double>{}, x);
    XPKERN_UNROLL
    for (int p = 0; p < k; ++p)
        if (lane_in_warp() == 0) a.params[row * k + p] = p >= k - 2 ? exp(x[p]) : x[p];
}

XPKERN_NAMESPACE_END

XPKERN_STAR_KERNEL(search, xpkern::SearchArguments, a.n* a.slices, kernels::SearchMemory::usual_bytes(),
                   kernels::search_slice)

#if defined(XPKERN_GENERAL)
XPKERN_GENERAL_KERNEL(descend, xpkern::DescendArguments, a.n, kernels::descend_star)
#else
extern "C" __global__ void __launch_bounds__(kernels::FitBlock::most_threads)
    descend(const __grid_constant__ xpkern::DescendArguments a) {
    const kernels::DescentBox<double> box(a.fit, kernels::FitShape::coordinates);
    kernels::over_stars_by_warps(a.fit.model, a.stars, a.n,
                                 [&](int64_t row) { kernels::descend_by_warp(a, box, row); });
}
#endif

// The best of what the threads of each star have found.
extern "C" __global__ void search_best(const __grid_constant__ xpkern::SearchArguments a) {
    kernels::over_items(a.n, [&](int64_t row) { kernels::take_best(a, row); });
}
