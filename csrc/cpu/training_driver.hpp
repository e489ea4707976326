// Training steps on the stars of a chunk: the chunk's part of the model's gradient, and the stars' own steps.
#pragma once

#include "../core/model_step.hpp"
#include "../core/star_step.hpp"
#include "prefetch.hpp"
#include "star_kernels.hpp"

XPKERN_NAMESPACE_BEGIN

// The stars at the places of a lane.
struct Seats {
    static constexpr int width = LaneTraits<TrainingLane>::width;
    int64_t row[width];  // where nobody is, that of a star which is there
    bool taken[width];
    int count = 0;

    explicit Seats(const int64_t* places) {
        int64_t some = NOBODY;
        for (int s = 0; s < width; ++s) {
            taken[s] = places[s] != NOBODY;
            some = taken[s] ? places[s] : some;
            count += taken[s];
        }
        for (int s = 0; s < width; ++s) row[s] = taken[s] ? places[s] : some;
    }

    // Row at the first place of the group whose places these are; NOBODY where they are no group's.
    int64_t first_of_group() const {
        const int64_t first = row[0] / STARS_SIDE_BY_SIDE * STARS_SIDE_BY_SIDE;
        bool same = width == STARS_SIDE_BY_SIDE;
        for (int s = 0; s < width; ++s) same = same && (!taken[s] || row[s] == first + s);
        return same ? first : NOBODY;
    }
};

// Memory of a thread, and what a lane's stars are gathered into.
template <class Shape>
struct TrainingSpace {
    TrainingLane *flux, *factor, *mean, *weight;
    Workspace<TrainingLane, TrainingLane> workspace;
    ChunkSpace<TrainingLane> chunk;
    TrainingSpace(const Shape& shape, Arena& arena)
        : flux(arena.take<TrainingLane>(shape.samples())),
          factor(arena.take<TrainingLane>(row_start(shape.samples()))),
          mean(arena.take<TrainingLane>(shape.parameters())),
          weight(arena.take<TrainingLane>(shape.parameters())),
          workspace(carve_workspace<TrainingLane, TrainingLane>(shape, PriorView{}, arena)),
          chunk(shape, arena) {}

    // Whiteners of a lane's stars: where they stand, if that is a lane, else gathered.
    const TrainingLane* factor_of(const Seats& seats, const TrainingStars& stars, int m) const {
        const float* whitener = stars.arrays.whitener;
        const int64_t size = row_start(m);
        if (!stars.side_by_side) {
            load_rows(whitener, seats.row, static_cast<int>(size), factor);
            return factor;
        }
        if (const int64_t first = seats.first_of_group(); first != NOBODY) {
            const float* group = whitener + first * size;
            if (reinterpret_cast<uintptr_t>(group) % alignof(TrainingLane) == 0)
                return reinterpret_cast<const TrainingLane*>(group);
        }
        const float* from[Seats::width];
        for (int s = 0; s < Seats::width; ++s) {
            const int64_t place = seats.row[s] % STARS_SIDE_BY_SIDE;
            from[s] = whitener + (seats.row[s] - place) * size + place;
        }
        for (int64_t k = 0; k < size; ++k)
            factor[k] = lane_of<TrainingLane>([&](int s) { return from[s][k * STARS_SIDE_BY_SIDE]; });
        return factor;
    }
    StarView<TrainingLane, TrainingLane> view(const TrainingLane* whiteners) const {
        return {flux, whiteners, mean, weight};
    }
};

inline int64_t training_scratch_bytes(const ModelView& model) {
    Arena arena{nullptr, 0};
    TrainingSpace<AnyShape>(AnyShape(model), arena);
    return arena.used;
}

inline int64_t chunk_gradient_size(const ModelView& model) {
    return GradientLayout<TrainingLane>(model).size;
}

// How often the kernels call meanwhile(): for chi^2 and the adjoint of the flux of a lane, on its way back through the
// hidden layers, and for the products of a chunk of so many lanes.
template <class Shape>
inline int calls_of_flux(const Shape& shape) {
    int calls = calls_of_whitening<TrainingLane>(shape.samples());
    for (int l = 0; l < shape.layers(); ++l)
        calls += blocks_of_layer<TrainingLane>(shape.width(l + 1)) * shape.width(l);
    return calls;
}
template <class Shape>
inline int calls_of_adjoints(const Shape& shape) {
    int calls = 0;
    for (int l = 1; l < shape.layers(); ++l)
        calls += blocks_of_layer<TrainingLane>(shape.width(l)) * shape.width(l + 1);
    return calls;
}
template <class Shape>
inline int calls_of_products(const Shape& shape, int lanes) {
    int blocks = 0;
    for (int l = 0; l < shape.layers(); ++l)
        blocks += blocks_of_products<TrainingLane>(shape.width(l), shape.width(l + 1));
    return blocks * lanes * LaneTraits<TrainingLane>::width;
}

// Calls work(seats, place, meanwhile) for the lanes of a chunk that have stars, from that place of it on, and at last
// finish(lanes, meanwhile); meanwhile, to be called `calls` times in the former and `last_calls` times in the latter,
// fetches the stars of the next lane.
template <class Work, class Finish>
inline void over_lanes(const ChunkPlaces& chunk, const TrainingStars& stars, const double* params, int m, int k,
                       int calls, int last_calls, const Work& work, const Finish& finish) {
    int lanes = 0;
    for (int place = 0; place < chunk.count; place += Seats::width) {
        const bool last = place + Seats::width >= chunk.count;
        const LaneFetcher meanwhile(stars, params, m, k, last ? chunk.next : chunk.places + place + Seats::width,
                                    last ? calls + last_calls : calls);
        const Seats seats(chunk.places + place);
        if (seats.count > 0) work(seats, place, lanes++, meanwhile);
        if (last) finish(lanes, meanwhile);
    }
}

// Sums of the chunk's stars, (chunk_gradient_size,), and the chi^2 at each of its places, (chunk.count,).
inline void add_chunk_gradient(const ModelView& model, const TrainingStars& stars, const double* params,
                               const ChunkPlaces& chunk, float* gradient, double* chi2, char* scratch) {
    with_shape(model, [&](const auto& shape) {
        const int k = shape.parameters(), m = shape.samples();
        Arena arena{scratch, 0};
        const TrainingSpace space(shape, arena);
        space.chunk.clear(shape);
        for (int place = 0; place < chunk.count; ++place) chi2[place] = 0;
        const auto add = [&](const Seats& seats, int place, int number, const auto& meanwhile) {
            load_rows(stars.arrays.flux, seats.row, m, space.flux);
            WideTrainingLane wide[MAX_PARAMETERS];
            load_params(seats.row, params, k, wide);
            TrainingLane u[MAX_PARAMETERS];
            for (int p = 0; p < k; ++p) u[p] = convert<TrainingLane>(wide[p]);
            const auto counted = lane_of<TrainingLane>([&](int s) { return seats.taken[s] ? 1 : 0; });
            const TrainingLane of_star =
                add_lane(model, shape, space.flux, space.factor_of(seats, stars, m), u, counted > lane<TrainingLane>(0),
                         number, space.workspace, space.chunk, meanwhile);
            for (int s = 0; s < Seats::width; ++s)
                if (seats.taken[s]) chi2[place + s] = get(of_star, s);
        };
        over_lanes(chunk, stars, params, m, k, calls_of_flux(shape) + calls_of_adjoints(shape),
                   calls_of_products(shape, CHUNK_PLACES / Seats::width), add, [&](int lanes, const auto& meanwhile) {
                       finish_chunk(model, shape, lanes, space.chunk, gradient, meanwhile);
                   });
    });
}

inline void total_of_chunks(const ModelView& model, const float* chunks, int64_t n_chunks, double* total) {
    add_chunks<TrainingLane, WideTrainingLane>(model, chunks, n_chunks, total);
}

inline void gradient_of_total(const ModelView& model, const double* parameters, const double* total, int64_t n_stars,
                              double* gradient) {
    gradient_of_mean<TrainingLane>(model, parameters, total, n_stars, gradient);
}

inline double penalty_of_weights(const ModelView& model, const double* parameters) {
    return weight_penalty(model, parameters);
}

inline bool move_model(const ModelView& model, const ModelStepView& how, double rate, int64_t count,
                       const double* gradient, const TrainingState& from, const TrainingState& to) {
    return step_model<WideTrainingLane>(
        model, how, rate, count,
        {gradient, from.parameters, {from.first, from.second}, to.parameters, {to.first, to.second}});
}

// One step of each of the chunk's stars: params and loss, of all stars, change at their rows.
inline void step_stars(const ModelView& model, const LossView& terms, const TrainingStars& stars, const double* lower,
                       const double* upper, double rate, double clip, const ChunkPlaces& chunk, double* params,
                       double* loss, char* scratch) {
    with_shape(model, [&](const auto& shape) {
        const int k = shape.parameters(), ext = k - 2, m = shape.samples();
        Arena arena{scratch, 0};
        const TrainingSpace space(shape, arena);
        WideTrainingLane low[MAX_PARAMETERS], high[MAX_PARAMETERS];
        for (int p = 0; p < k; ++p) {
            low[p] = lane<WideTrainingLane>(p == ext ? max(lower[p], SMALLEST_EXT) : lower[p]);
            high[p] = lane<WideTrainingLane>(upper[p]);
        }
        const auto step = [&](const Seats& seats, int, int, const auto& meanwhile) {
            load_rows(stars.arrays.flux, seats.row, m, space.flux);
            load_constraints(seats.row, stars.arrays, k, space.mean, space.weight);
            WideTrainingLane moved[MAX_PARAMETERS];
            for (int p = 0; p < k; ++p)
                moved[p] = lane_of<WideTrainingLane>([&](int s) { return params[seats.row[s] * k + p]; });
            const WideTrainingLane before = star_step(model, shape, terms, space.view(space.factor_of(seats, stars, m)),
                                                      low, high, rate, clip, space.workspace, moved, meanwhile);
            for (int s = 0; s < Seats::width; ++s) {
                if (!seats.taken[s]) continue;
                loss[seats.row[s]] = get(before, s);
                for (int p = 0; p < k; ++p) params[seats.row[s] * k + p] = get(moved[p], s);
            }
        };
        over_lanes(chunk, stars, params, m, k, calls_of_flux(shape), 0, step, [](int, const auto&) {});
    });
}

XPKERN_NAMESPACE_END
