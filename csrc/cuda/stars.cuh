// Predictions, evaluations of the loss, starts: a star a thread.
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

// Memory for the starts of a star.
struct StartMemory {
    ThreadStar<float, double> star;
    float* variance;
    StartSpace<float> space;

    XPKERN_INLINE constexpr StartMemory(int m, int k, int types, Arena& arena)
        : star(m, arena), variance(arena.take<float>(m)), space(StartSpace<float>::carve(m, k, types, arena)) {}

    static XPKERN_INLINE constexpr int64_t bytes(int m, int k, int types) {
        Arena arena{nullptr, 0};
        StartMemory(m, k, types, arena);
        return arena.used;
    }
    static XPKERN_INLINE constexpr int64_t usual_bytes() {
        return bytes(UsualShape::samples(), UsualShape::parameters(), USUAL_TYPES);
    }
};

// Calls found(choice, u) for each start of a star; u is null where there is no such start.
template <class Found>
__device__ __forceinline__ void find_starts(const GridView& grid, const StarArrays& stars, int64_t row, int m, int k,
                                            int starts, double gate, Arena arena, const Found& found) {
    StartMemory memory(m, k, grid.n_types, arena);
    memory.star.gather(stars, row, m, k);
    choose_starts(grid, m, k, memory.star.flux, memory.star.factor, float(memory.star.mean[k - 1]),
                  float(memory.star.weight[k - 1]), memory.variance, memory.space, starts, gate,
                  [&](int, int choice, const double* u) { found(choice, u); });
}

template <class Shape>
__device__ __forceinline__ void start_star(const StartArguments& a, int64_t row, const Arena& arena) {
    ModelView sizes{};  // of the grid's stars, as a network of one layer has them
    sizes.n_layers = 1;
    sizes.width[0] = int(a.inputs);
    sizes.width[1] = int(a.samples);
    const Shape shape(sizes);
    const int m = shape.samples(), k = shape.parameters();
    find_starts(a.grid, a.stars, row, m, k, int(a.starts), a.gate, arena, [&](int choice, const double* u) {
        double* start = a.params + (row * a.starts + choice) * k;
        for (int p = 0; p < k; ++p) start[p] = u ? u[p] : not_a_number();
        if (u) start[k - 1] = exp(u[k - 1]);
    });
}

XPKERN_NAMESPACE_END

XPKERN_STAR_KERNEL(predict, xpkern::PredictArguments, a.n,
                   kernels::predict_bytes(kernels::UsualShape(xpkern::ModelView{})), kernels::predict_star)
XPKERN_STAR_KERNEL(evaluate, xpkern::EvaluateArguments, a.n, (kernels::ThreadSpace<float, double>::usual_bytes()),
                   kernels::evaluate_star)
XPKERN_STAR_KERNEL(start, xpkern::StartArguments, a.n, kernels::StartMemory::usual_bytes(), kernels::start_star)
