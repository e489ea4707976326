// Predictions and evaluations of the loss, eight stars or one a warp where the model is of the usual shape.
#pragma once

#include "fit_terms.cuh"
#include "predict_warp.cuh"

XPKERN_NAMESPACE_BEGIN

template <class Shape>
XPKERN_INLINE constexpr int64_t predict_bytes(const Shape& shape) {
    Arena arena{nullptr, 0};
    carve_workspace<double, double>(shape, PriorView{}, arena);
    return arena.used;
}

template <class Shape>
__device__ __forceinline__ void predict_star(const PredictArguments& a, int64_t row, Arena arena) {
    const Shape shape(a.model);
    const int k = shape.parameters(), m = shape.samples();
    const auto space = carve_workspace<double, double>(shape, PriorView{}, arena);
    double u[MAX_PARAMETERS];
    load_params(a.params + row * k, k, u);
    predict_values(a.model, shape, u, space);
    for (int i = 0; i < m; ++i) a.flux[row * m + i] = space.flux[i];
}

template <class Shape>
__device__ __forceinline__ void evaluate_star(const EvaluateArguments& a, int64_t row, Arena arena) {
    const Shape shape(a.model);
    const int k = shape.parameters(), m = shape.samples();
    ThreadSpace<float, double> space(shape, a.prior, arena);
    space.star.gather(a.stars, row, m, k);
    LossState<float, double> state;
    load_params(a.params + row * k, k, state.u);
    evaluate_loss<true>(a.model, shape, a.prior, a.terms, space.star.view(), space.workspace, state);
    Report<double> report;
    report_evaluation(state, k, space.star.weight, report);
    write_evaluation(state, report, 0, k, row, a.out);
}

__device__ __forceinline__ void report_by_warp(const EvaluateArguments& a, const FitGaussian& gaussian, int64_t row) {
    constexpr int k = FitShape::coordinates, squares = FitElement::squares;
    FitStar& star = gather_fit_star(a.stars, row);
    double u[k];
    load_params(a.params + row * k, k, u);
    if (lane_in_warp() == 0) {
        XPKERN_UNROLL
        for (int p = 0; p < k; ++p) star.trial[p] = u[p];
    }
    __syncwarp();
    const FitEvaluation found = evaluate_by_warp(a.model, FitShape(a.model), gaussian, a.terms, star);
    accept(found, star);
    LossState<float, double> state;
    state.loss = found.loss, state.chi2 = found.chi2, state.ln_prior = found.ln_prior;
    XPKERN_UNROLL
    for (int p = 0; p < k; ++p) state.u[p] = u[p], state.gradient[p] = star.best.definite[squares + p];
    XPKERN_UNROLL
    for (int at = 0; at < squares; ++at)
        state.hessian[at] = star.best.hessian[at], state.normal[at] = star.best.normal[at];
    Report<double> report;
    report_evaluation(state, k, star.weight, report);
    if (lane_in_warp() == 0) write_evaluation(state, report, 0, k, row, a.out);
}

XPKERN_NAMESPACE_END

#if defined(XPKERN_GENERAL)
XPKERN_GENERAL_KERNEL(predict, xpkern::PredictArguments, a.n, kernels::predict_star)
XPKERN_GENERAL_KERNEL(evaluate, xpkern::EvaluateArguments, a.n, kernels::evaluate_star)
#else
// Few stars are shared out to blocks before they are to a block's warps.
extern "C" __global__ void __launch_bounds__(kernels::FitBlock::most_threads)
    predict(const __grid_constant__ xpkern::PredictArguments a) {
    constexpr int together = kernels::FitColumns::width;
    kernels::fit_block().network.take(a.model.in_double);
    __syncthreads();
    const int64_t warp = threadIdx.x / kernels::LANES, warps = blockDim.x / kernels::LANES;
    for (int64_t first = (warp * gridDim.x + blockIdx.x) * together; first < a.n; first += warps * gridDim.x * together)
        kernels::predict_eight(a, first);
}

extern "C" __global__ void __launch_bounds__(kernels::FitBlock::most_threads)
    evaluate(const __grid_constant__ xpkern::EvaluateArguments a) {
    const kernels::FitGaussian gaussian(a.prior);
    kernels::over_stars_by_warps(a.model, a.stars, a.n,
                                 [&](int64_t row) { kernels::report_by_warp(a, gaussian, row); });
}
#endif
