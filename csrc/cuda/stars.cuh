// Predictions and evaluations of the loss: a star a thread.
#pragma once

#include "threads.cuh"

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

XPKERN_NAMESPACE_END

XPKERN_STAR_KERNEL(predict, xpkern::PredictArguments, a.n,
                   kernels::predict_bytes(kernels::UsualShape(xpkern::ModelView{})), kernels::predict_star)
XPKERN_STAR_KERNEL(evaluate, xpkern::EvaluateArguments, a.n, (kernels::ThreadSpace<float, double>::usual_bytes()),
                   kernels::evaluate_star)
