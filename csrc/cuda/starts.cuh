// Where stars start from, and where the searches of a fit do: a star a warp where grid and model are of the usual
// sizes, else a star a thread.
#pragma once

#include "start_warp.cuh"

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

// Writes one start of a star, linear.
__device__ __forceinline__ void write_start(const StartArguments& a, int k, int64_t row, int choice, const double* u) {
    double* start = a.params + (row * a.starts + choice) * k;
    for (int p = 0; p < k; ++p) start[p] = u ? u[p] : not_a_number();
    if (u) start[k - 1] = exp(u[k - 1]);
}

template <class Shape>
__device__ __forceinline__ void start_star(const StartArguments& a, int64_t row, const Arena& arena) {
    ModelView sizes{};  // of the grid's stars, as a network of one layer has them
    sizes.n_layers = 1;
    sizes.width[0] = int(a.inputs);
    sizes.width[1] = int(a.samples);
    const Shape shape(sizes);
    const int m = shape.samples(), k = shape.parameters();
    find_starts(a.grid, a.stars, row, m, k, int(a.starts), a.gate, arena,
                [&](int choice, const double* u) { write_start(a, k, row, choice, u); });
}

// The search of a star that starts from given parameters.
__device__ __forceinline__ void begin_given(const FitArguments& a, int k, int64_t row) {
    double u[MAX_PARAMETERS];
    load_params(a.fit.start_params + row * k, k, u);
    begin_search(k, u, searches_of(a, row)[0]);
}

template <class Shape>
__device__ __forceinline__ void start_searches(const FitArguments& a, int64_t row, const Arena& arena) {
    const Shape shape(a.fit.model);
    const int k = shape.parameters(), m = shape.samples();
    Search* searches = searches_of(a, row);
    for (int choice = 0; choice < a.fit.starts; ++choice) searches[choice].exists = false;
    if (!has_data(a.stars.whitener + row * row_start(m), m)) return write_missing(m, k, row, a.out);
    if (a.fit.grid.n_types > 0)
        find_starts(a.fit.grid, a.stars, row, m, k, a.fit.starts, a.fit.gate, arena, [&](int choice, const double* u) {
            if (u) begin_search(k, u, searches[choice]);
        });
    else
        begin_given(a, k, row);
    add_to_queue(a.left, row * a.fit.starts);
}

// By a warp: whether a star has any sample. Of one that has none everything is written.
__device__ __forceinline__ bool begin_by_warp(const FitArguments& a, int64_t row, const PaddedFactor& factor) {
    constexpr int m = StartShape::m, k = StartShape::k;
    const int lane = FitLane().lane;
    bool present = false;
    XPKERN_UNROLL
    for (int s = 0; s < StartShape::strips; ++s) {
        const int i = lane + s * LANES < m ? lane + s * LANES : m - 1;
        present = factor.row(i)[i] > 0 || present;
    }
    if (lanes_of_which(present) > 0) return true;
    if (lane_in_warp() == 0) {
        for (int choice = 0; choice < a.fit.starts; ++choice) searches_of(a, row)[choice].exists = false;
        write_missing(m, k, row, a.out);
    }
    return false;
}

// start_searches() by a warp; no queue, as the next stage takes every star up. Variances are left where residuals will
// be.
__device__ __forceinline__ void start_searches_by_warp(const FitArguments& a) {
    constexpr int m = StartShape::m, k = StartShape::k;
    over_starts(
        a.fit.grid, a.stars, int(a.n), a.fit.starts, a.fit.gate,
        [&](int64_t row, const PaddedFactor& factor) { return begin_by_warp(a, row, factor); },
        [&](int64_t row, int i, float variance) { a.out.residual[row * m + i] = variance; },
        [&](int64_t row, int choice, const double* u) {
            if (lane_in_warp() == 0) {
                Search& search = searches_of(a, row)[choice];
                search.exists = false;
                if (u) begin_search(k, u, search);
            }
        });
}

// The same from given parameters: there is nothing to do but for the variances.
__device__ __forceinline__ void begin_given_searches(const FitArguments& a) {
    constexpr int m = StartShape::m, k = StartShape::k;
    StartStar& star = reinterpret_cast<StartBlock*>(dynamic_shared())->star[threadIdx.x / LANES];
    star.factor.clear_padding();
    const int64_t warps = blockDim.x / LANES, step = int64_t(gridDim.x) * warps;
    const auto take_soon = [&](int64_t row) { star.factor.take_soon(a.stars.whitener + row * row_start(m)); };
    int64_t row = int64_t(blockIdx.x) * warps + threadIdx.x / LANES;
    if (row < a.n) take_soon(row);
    for (; row < a.n; row += step) {
        wait_for_copies();
        __syncwarp();
        const bool wanted = begin_by_warp(a, row, star.factor);
        if (wanted)
            star.factor.variance_by_warp(star.variance,
                                         [&](int i, float variance) { a.out.residual[row * m + i] = variance; });
        __syncwarp();  // no lane still reads the whitener
        if (row + step < a.n) take_soon(row + step);
        if (wanted && lane_in_warp() == 0) begin_given(a, k, row);
    }
}

XPKERN_NAMESPACE_END

#if defined(XPKERN_GENERAL)
XPKERN_GENERAL_KERNEL(start, xpkern::StartArguments, a.n, kernels::start_star)
XPKERN_GENERAL_KERNEL(fit_start, xpkern::FitArguments, a.n, kernels::start_searches)
#else
extern "C" __global__ void __launch_bounds__(kernels::StartBlock::most_threads)
    start(const __grid_constant__ xpkern::StartArguments a) {
    kernels::over_starts(
        a.grid, a.stars, int(a.n), int(a.starts), a.gate, [](int64_t, const kernels::PaddedFactor&) { return true; },
        [](int64_t, int, float) {},
        [&](int64_t row, int choice, const double* u) {
            if (kernels::lane_in_warp() == 0) kernels::write_start(a, kernels::StartShape::k, row, choice, u);
        });
}
extern "C" __global__ void __launch_bounds__(kernels::StartBlock::most_threads)
    fit_start(const __grid_constant__ xpkern::FitArguments a) {
    kernels::start_searches_by_warp(a);
}
extern "C" __global__ void __launch_bounds__(kernels::StartBlock::most_threads)
    fit_begin(const __grid_constant__ xpkern::FitArguments a) {
    kernels::begin_given_searches(a);
}
#endif
