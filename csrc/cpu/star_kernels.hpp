// The operations on a block of stars, as the module calls them.
#pragma once

#include "fit_driver.hpp"

XPKERN_NAMESPACE_BEGIN

// Calls work with a shape that the compiler knows where the model has the usual sizes.
template <class Work>
inline void with_shape(const ModelView& model, const Work& work) {
#if !defined(XPKERN_SCALAR_LANES)
    if (UsualShape::matches(model)) return work(UsualShape(model));
#endif
    work(AnyShape(model));
}

inline int64_t star_scratch_bytes(const ModelView& model, const PriorView& prior, int64_t rows, int starts, int types,
                                  const SampleBlocks& blocks) {
    return FitDriver<AnyShape>::scratch_bytes(model, prior, rows, starts, types, blocks);
}

template <class Shape>
inline void run_fit(const Shape&, const FitView& fit, const StarArrays& stars, const SampleBlocks& blocks,
                    const SolutionArrays& out, int64_t begin, int64_t end, char* scratch) {
    FitDriver<Shape>(fit, stars, blocks, out, begin, end, scratch).run();
}

inline void fit_stars(const FitView& fit, const StarArrays& stars, const SampleBlocks& blocks,
                      const SolutionArrays& out, int64_t begin, int64_t end, char* scratch) {
    with_shape(fit.model, [&](const auto& shape) { run_fit(shape, fit, stars, blocks, out, begin, end, scratch); });
}

inline void evaluate_stars(const FitView& fit, const StarArrays& stars, const EvaluationArrays& out, int64_t begin,
                           int64_t end, char* scratch) {
    with_shape(fit.model, [&](const auto& shape) {
        const int k = shape.parameters(), m = shape.samples();
        Arena arena{scratch, 0};
        GatheredStars<FloatLane, WideLane> gathered(m, k, arena);
        const Workspace<FloatLane, WideLane> space = carve_workspace<FloatLane, WideLane>(shape, fit.prior, arena);
        for (int64_t first = begin; first < end; first += Members<FloatLane>::width) {
            const Members<FloatLane> members(first, end);
            gathered.fill(members, stars, k);
            LossState<FloatLane, WideLane> state;
            load_params(members.row, fit.start_params, k, state.u);
            evaluate_loss<true>(fit.model, shape, fit.prior, fit.terms, gathered.view(), space, state, StarFetcher());
            Report<WideLane> report;
            report_evaluation(state, k, gathered.weight, report);
            for (int s = 0; s < members.count; ++s) write_evaluation(state, report, s, k, members.row[s], out);
        }
    });
}

inline void predict_stars(const ModelView& model, const double* params, double* flux, int64_t begin, int64_t end,
                          char* scratch) {
    const AnyShape shape(model);
    const int k = shape.parameters(), m = shape.samples();
    const PriorView none{};
    Arena arena{scratch, 0};
    const Workspace<DoubleLane, DoubleLane> space = carve_workspace<DoubleLane, DoubleLane>(shape, none, arena);
    for (int64_t first = begin; first < end; first += Members<DoubleLane>::width) {
        const Members<DoubleLane> members(first, end);
        DoubleLane u[MAX_PARAMETERS];
        load_params(members.row, params, k, u);
        predict_values(model, shape, u, space);
        for (int s = 0; s < members.count; ++s)
            for (int i = 0; i < m; ++i) flux[members.row[s] * m + i] = get(space.flux[i], s);
    }
}

inline void start_stars(const GridView& grid, const ModelView& sizes, int starts, double gate, const StarArrays& stars,
                        double* params, int64_t begin, int64_t end, char* scratch) {
    const AnyShape shape(sizes);
    const int m = shape.samples(), k = shape.parameters();
    Arena arena{scratch, 0};
    GatheredStars<FloatLane, WideLane> gathered(m, k, arena);
    FloatLane* variance = arena.take<FloatLane>(m);
    const StartSpace<FloatLane> space = StartSpace<FloatLane>::carve(m, k, grid.n_types, arena);
    for (int64_t first = begin; first < end; first += Members<FloatLane>::width) {
        const Members<FloatLane> members(first, end);
        gathered.fill(members, stars, k);
        choose_starts(
            grid, m, k, gathered.view(), variance, space, starts, gate,
            [&](int s, int choice, const double* u) {
                if (s >= members.count) return;
                double* start = params + (members.row[s] * starts + choice) * k;
                for (int p = 0; p < k; ++p) start[p] = u ? u[p] : __builtin_nan("");
                if (u) start[k - 1] = exp(u[k - 1]);
            },
            StarFetcher());
    }
}

// Twelve independent chains, enough to hide the latency of any multiply-add unit.
inline float multiply_add_peak(int64_t count) {
    constexpr int chains = 12;
    FloatLane sum[chains];
    FloatLane factor = lane<FloatLane>(0.999f), term = lane<FloatLane>(1e-3f);
    for (int c = 0; c < chains; ++c) sum[c] = lane<FloatLane>(c);
    for (int64_t i = 0; i < count; i += chains * LaneTraits<FloatLane>::width) {
        XPKERN_UNROLL
        for (int c = 0; c < chains; ++c) sum[c] = fma(sum[c], factor, term);
    }
    float total = 0;
    for (int c = 0; c < chains; ++c)
        for (int s = 0; s < LaneTraits<FloatLane>::width; ++s) total += get(sum[c], s);
    return total;
}

XPKERN_NAMESPACE_END
