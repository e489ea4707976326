// Training steps on the stars of a chunk: the chunk's part of the model's gradient, and the stars' own steps.
#pragma once

#include "../core/model_step.hpp"
#include "../core/star_step.hpp"
#include "prefetch.hpp"
#include "star_kernels.hpp"

XPKERN_NAMESPACE_BEGIN

template <class Shape>
struct TrainingSpace {
    GatheredStars<FloatLane, FloatLane> gathered;
    Workspace<FloatLane, FloatLane> workspace;
    ChunkSpace<FloatLane> chunk;
    TrainingSpace(const Shape& shape, Arena& arena)
        : gathered(shape.samples(), shape.parameters(), arena),
          workspace(carve_workspace<FloatLane, FloatLane>(shape, PriorView{}, arena)),
          chunk(shape, arena) {}
};

inline int64_t training_scratch_bytes(const ModelView& model) {
    Arena arena{nullptr, 0};
    TrainingSpace<AnyShape>(AnyShape(model), arena);
    return arena.used;
}

inline int64_t chunk_gradient_size(const ModelView& model) {
    return GradientLayout<FloatLane>(model).size;
}

// Calls work(members, number, meanwhile) for the lanes of a chunk; meanwhile, to be called `calls` times, fetches the
// stars of the next lane.
template <class Work>
inline void over_lanes(const ChunkRows& chunk, const StarArrays& stars, const double* params, int m, int k, int calls,
                       const Work& work) {
    constexpr int width = LaneTraits<FloatLane>::width;
    for (int first = 0; first < chunk.count; first += width) {
        const int next = first + width;
        const bool here = next < chunk.count;
        const RowFetcher<FloatLane> meanwhile(stars, params, m, k, here ? chunk.rows + next : chunk.next,
                                              here ? chunk.count - next : chunk.next_count, calls);
        work(Members<FloatLane>(chunk.rows + first, chunk.count - first), first / width, meanwhile);
    }
}

// Sums of the chunk's stars, (chunk_gradient_size,), and the chi^2 of each of them, (chunk.count,).
inline void add_chunk_gradient(const ModelView& model, const StarArrays& stars, const double* params,
                               const ChunkRows& chunk, float* gradient, double* chi2, char* scratch) {
    with_shape(model, [&](const auto& shape) {
        constexpr int width = LaneTraits<FloatLane>::width;
        const int k = shape.parameters(), m = shape.samples();
        Arena arena{scratch, 0};
        const TrainingSpace space(shape, arena);
        space.chunk.clear(shape);
        const int calls = m / 8 + m / 8 + 2 * shape.layers();
        over_lanes(chunk, stars, params, m, k, calls, [&](const auto& members, int number, const auto& meanwhile) {
            load_rows(stars.flux, members.row, m, space.gathered.flux);
            meanwhile.gather(members, space.gathered.factor);
            WideLane wide[MAX_PARAMETERS];
            load_params(members, params, k, wide);
            FloatLane u[MAX_PARAMETERS];
            for (int p = 0; p < k; ++p) u[p] = convert<FloatLane>(wide[p]);
            const auto counted = lane_of<FloatLane>([&](int s) { return s < members.count ? 1 : 0; });
            const FloatLane of_star =
                add_lane(model, shape, space.gathered.flux, space.gathered.factor, u, counted > lane<FloatLane>(0),
                         number, space.workspace, space.chunk, meanwhile);
            for (int s = 0; s < members.count; ++s) chi2[number * width + s] = get(of_star, s);
        });
        finish_chunk(model, shape, (chunk.count + width - 1) / width, space.chunk, gradient);
    });
}

inline void total_of_chunks(const ModelView& model, const float* chunks, int64_t n_chunks, double* total) {
    add_chunks<FloatLane>(model, chunks, n_chunks, total);
}

inline void gradient_of_total(const ModelView& model, const double* parameters, const double* total, int64_t n_stars,
                              double* gradient) {
    gradient_of_mean<FloatLane>(model, parameters, total, n_stars, gradient);
}

inline double penalty_of_weights(const ModelView& model, const double* parameters) {
    return weight_penalty(model, parameters);
}

inline bool move_model(const ModelView& model, const ModelStepView& how, double rate, int64_t count,
                       const double* gradient, const TrainingState& from, const TrainingState& to) {
    return step_model(model, how, rate, count, gradient, from.parameters, {from.first, from.second}, to.parameters,
                      {to.first, to.second});
}

// One step of each of the chunk's stars: params and loss, of all stars, change at their rows.
inline void step_stars(const ModelView& model, const LossView& terms, const StarArrays& stars, const double* lower,
                       const double* upper, double rate, double clip, const ChunkRows& chunk, double* params,
                       double* loss, char* scratch) {
    with_shape(model, [&](const auto& shape) {
        const int k = shape.parameters(), ext = k - 2, m = shape.samples();
        Arena arena{scratch, 0};
        const TrainingSpace space(shape, arena);
        WideLane low[MAX_PARAMETERS], high[MAX_PARAMETERS];
        for (int p = 0; p < k; ++p) {
            low[p] = lane<WideLane>(p == ext ? max(lower[p], SMALLEST_EXT) : lower[p]);
            high[p] = lane<WideLane>(upper[p]);
        }
        const int calls = m / 8 + m / 8 + shape.layers();
        over_lanes(chunk, stars, params, m, k, calls, [&](const auto& members, int, const auto& meanwhile) {
            load_rows(stars.flux, members.row, m, space.gathered.flux);
            meanwhile.gather(members, space.gathered.factor);
            space.gathered.fill_constraints(members, stars, k);
            WideLane moved[MAX_PARAMETERS];
            for (int p = 0; p < k; ++p)
                moved[p] = lane_of<WideLane>([&](int s) { return params[members.row[s] * k + p]; });
            const WideLane before = star_step(model, shape, terms, space.gathered.view(), low, high, rate, clip,
                                              space.workspace, moved, meanwhile);
            for (int s = 0; s < members.count; ++s) {
                loss[members.row[s]] = get(before, s);
                for (int p = 0; p < k; ++p) params[members.row[s] * k + p] = get(moved[p], s);
            }
        });
    });
}

XPKERN_NAMESPACE_END
