// Where stars start from, and where the searches of a fit do: a star a thread.
#pragma once

#include "searches.cuh"

XPKERN_NAMESPACE_BEGIN

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

template <class Shape>
__device__ __forceinline__ void start_searches(const FitArguments& a, int64_t row, const Arena& arena) {
    const Shape shape(a.fit.model);
    const int k = shape.parameters(), m = shape.samples();
    SearchProgress* searches = searches_of(a, row);
    for (int choice = 0; choice < a.fit.starts; ++choice) searches[choice].exists = false;
    if (!has_data(a.stars.whitener + row * row_start(m), m)) return write_missing(m, k, row, a.out);
    const auto begin = [&](int choice, const double* u) {
        if (u) begin_search(k, u, searches[choice]);
    };
    if (a.fit.grid.n_types > 0) {
        find_starts(a.fit.grid, a.stars, row, m, k, a.fit.starts, a.fit.gate, arena, begin);
    } else {
        double u[MAX_PARAMETERS];
        load_params(a.fit.start_params + row * k, k, u);
        begin(0, u);
    }
    add_to_queue(a.left, row * a.fit.starts);
}

XPKERN_NAMESPACE_END

XPKERN_STAR_KERNEL(start, xpkern::StartArguments, a.n, kernels::StartMemory::usual_bytes(), kernels::start_star)
XPKERN_STAR_KERNEL(fit_start, xpkern::FitArguments, a.n, kernels::StartMemory::usual_bytes(), kernels::start_searches)
