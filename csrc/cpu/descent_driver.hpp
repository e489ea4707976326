// The two parts of ZGR23's optimiser on a block of stars: the search of a grid, and first-order descent.
#pragma once

#include "../core/descent.hpp"
#include "../core/grid_search.hpp"
#include "star_kernels.hpp"

XPKERN_NAMESPACE_BEGIN

struct SearchSpace {
    FloatLane* column;
    int32_t* window;
    SearchSpace(const CandidateView& grid, Arena& arena)
        : column(arena.take<FloatLane>(grid.n_samples)), window(arena.take<int32_t>(grid.n_window)) {}
};

inline int64_t search_scratch_bytes(const CandidateView& grid) {
    Arena arena{nullptr, 0};
    SearchSpace(grid, arena);
    return arena.used;
}

// A star at a time: here the lanes hold candidates.
inline void search_stars(const CandidateView& grid, int k, const StarArrays& stars, double* params, int64_t begin,
                         int64_t end, char* scratch) {
    Arena arena{scratch, 0};
    const SearchSpace space(grid, arena);
    const int inputs = k - 2, m = grid.n_samples;
    for (int64_t row = begin; row < end; ++row) {
        const double sigma = stars.sigma[row * k + k - 1];
        const OneStar star{stars.flux + row * m, stars.whitener + row * row_start(m),
                           static_cast<float>(stars.mean[row * k + k - 1]), static_cast<float>(1 / (sigma * sigma))};
        const BestCandidate best = search_candidates(grid, star, space.column, space.window);
        for (int t = 0; t < inputs; ++t) params[row * k + t] = grid.types[best.type * inputs + t];
        params[row * k + inputs] = grid.ext[best.ext];
        params[row * k + inputs + 1] = best.plx;
    }
}

template <class Shape>
struct DescentSpace {
    GatheredStars<FloatLane, FloatLane> gathered;
    Workspace<FloatLane, FloatLane> workspace;
    DescentSpace(const Shape& shape, const PriorView& prior, Arena& arena)
        : gathered(shape.samples(), shape.parameters(), arena),
          workspace(carve_workspace<FloatLane, FloatLane>(shape, prior, arena)) {}
};

inline int64_t descent_scratch_bytes(const ModelView& model, const PriorView& prior) {
    Arena arena{nullptr, 0};
    DescentSpace<AnyShape>(AnyShape(model), prior, arena);
    return arena.used;
}

inline void descend_stars(const FitView& fit, const DescentView& how, const StarArrays& stars, double* params,
                          int64_t begin, int64_t end, char* scratch) {
    with_shape(fit.model, [&](const auto& shape) {
        const int k = shape.parameters(), ext = k - 2;
        Arena arena{scratch, 0};
        const DescentSpace space(shape, fit.prior, arena);
        const DescentBox<WideLane> box(fit, k);
        WideLane x[MAX_PARAMETERS];
        for (int64_t first = begin; first < end; first += Members<FloatLane>::width) {
            const Members<FloatLane> members(first, end);
            space.gathered.fill(members, stars, k);
            load_params(members.row, fit.start_params, k, x);
            box.enter(k, x);
            const StarView<FloatLane, FloatLane> star{space.gathered.flux, space.gathered.factor, space.gathered.mean,
                                                      space.gathered.weight};
            descend(fit.model, shape, fit.prior, fit.terms, star, box.lower, box.upper, how, space.workspace, x);
            for (int p = ext; p < k; ++p) x[p] = exp(x[p]);
            for (int s = 0; s < members.count; ++s)
                for (int p = 0; p < k; ++p) params[members.row[s] * k + p] = get(x[p], s);
        }
    });
}

XPKERN_NAMESPACE_END
