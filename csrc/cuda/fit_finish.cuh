// The end of a fit: what is written of each star's best search. Where the model is of the usual shape a warp predicts
// fluxes and scales residuals, star after star, of the few whose search has not; what is a number of the star
// (derivatives in other coordinates, minima) is then a star a lane. Else a star is a thread's.
#pragma once

#include "finish_predict.cuh"
#include "padded_factor.cuh"
#include "searches.cuh"

XPKERN_NAMESPACE_BEGIN

// A star's solution: the best of the searches that have ended; -1 if none has.
XPKERN_INLINE int best_search(const Search* searches, int starts) {
    int best = -1;
    for (int choice = 0; choice < starts; ++choice) {
        const Search& search = searches[choice];
        if (search.exists && search.offered && (best < 0 || is_better(search, searches[best]))) best = choice;
    }
    return best;
}

// Writes a star's solution, from where its best search has been left.
template <class Shape>
__device__ __forceinline__ void finish_star(const FitArguments& a, int64_t row, Arena arena) {
    const Shape shape(a.fit.model);
    const int k = shape.parameters(), m = shape.samples();
    const Search* searches = searches_of(a, row);
    const int best = best_search(searches, a.fit.starts);
    if (best < 0) return;  // a star without data, already written
    const Search& search = searches[best];
    ThreadSpace<float, double> space(shape, a.fit.prior, arena);
    space.star.gather(a.stars, row, m, k);
    predict_values(a.fit.model, shape, search.state.u, space.workspace);
    Report<double> report;
    describe_solution(search.state, m, k, space.star.flux, space.star.factor, space.star.weight, space.workspace.flux,
                      space.workspace.back, report);
    write_solution(a.fit, k, search.state, report, 0, search.converged, search.rescued, row, a.out);
    write_residual(m, space.workspace.back, 0, row, a.out);
    compare_minima(k, a.fit.starts, searches, best, row, a.out);
}

// The star of a warp.
struct FinishStar {
    PaddedFactor factor;
    union {  // one after the other
        float variance[FitShape::n_samples];
        double value[2][LANES];
    };
    float flux[FitShape::n_samples];
};
struct FinishBlock {
    static constexpr int most_warps = 16, most_threads = most_warps * LANES;
    NetworkInShared network;
    FinishStar star[1];
};
static_assert(sizeof(FinishBlock) + (FinishBlock::most_warps - 1) * sizeof(FinishStar) <= 227 * 1024, "shared memory");

// Residuals of a star at u, (coordinates,). The next star's samples come as soon as nobody needs these.
template <class Next>
__device__ __forceinline__ void write_residual_by_warp(const FitArguments& a, const NetworkInShared& network,
                                                       int64_t row, const double* u, FinishStar& star,
                                                       const Next& take_next) {
    constexpr int strips = FitShape::strips, m = FitShape::n_samples;
    const int lane = lane_in_warp();
    float variance[strips] = {}, flux[strips] = {};
    star.factor.variance_by_warp(star.variance, [&](int i, float found) {
        XPKERN_UNROLL
        for (int s = 0; s < strips; ++s) variance[s] = i / LANES == s ? found : variance[s];
    });
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) flux[s] = lane + s * LANES < m ? star.flux[lane + s * LANES] : 0.0f;
    __syncwarp();
    take_next();
    double predicted[strips];
    predict_fluxes(a.fit.model, network, u, star.value, predicted);
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const int i = lane + s * LANES;
        if (i < m) a.out.residual[row * m + i] = normalised_residual(predicted[s], flux[s], variance[s]);
    }
}

// The solutions of as many neighbouring stars as there are lanes, or of fewer: from `first` on.
__device__ __forceinline__ void finish_stars_by_warp(const FitArguments& a, const NetworkInShared& network,
                                                     int64_t first, int count, FinishStar& star) {
    constexpr int k = FitShape::coordinates, m = FitShape::n_samples;
    const int lane = lane_in_warp();
    const int64_t mine = first + lane;
    const Search* const searches = searches_of(a, lane < count ? mine : first);
    const int best = lane < count ? best_search(searches, a.fit.starts) : -1;
    const bool is_left = best >= 0 && !searches[best].described;
    double u_of_mine[k];
    XPKERN_UNROLL
    for (int p = 0; p < k; ++p) u_of_mine[p] = searches[best < 0 ? 0 : best].state.u[p];

    const auto needs_residual = [&](int s) { return from_lane(int(is_left), s < count ? s : 0) != 0; };
    const auto take_soon = [&](int s) {
        copy_by_lane_soon<m>(star.flux + lane, a.stars.flux + (first + s) * m + lane);
        star.factor.take_soon(a.stars.whitener + (first + s) * row_start(m));
    };
    const auto next_from = [&](int s) {
        while (s < count && !needs_residual(s)) ++s;
        return s;
    };
    int s = next_from(0);
    __syncwarp();  // no lane still reads what was here before
    if (s < count) take_soon(s);
    while (s < count) {
        double u[k];
        XPKERN_UNROLL
        for (int p = 0; p < k; ++p) u[p] = from_lane(u_of_mine[p], s);
        const int next = next_from(s + 1);
        wait_for_copies();
        __syncwarp();
        write_residual_by_warp(a, network, first + s, u, star, [&] {
            if (next < count) take_soon(next);
        });
        s = next;
    }

    if (best < 0) return;
    const Search& search = searches[best];
    double weight[k];
    XPKERN_UNROLL
    for (int p = 0; p < k; ++p) {
        const double sigma = a.stars.sigma[mine * k + p];
        weight[p] = 1.0 / (sigma * sigma);
    }
    Report<double> report;
    report_evaluation(search.state, k, weight, report);
    write_solution(a.fit, k, search.state, report, 0, search.converged, search.rescued, mine, a.out);
    compare_minima(k, a.fit.starts, searches, best, mine, a.out);
}

// All stars, in portions as large as lets every warp have as many.
__device__ __forceinline__ void finish_by_warps(const FitArguments& a) {
    FinishBlock& block = *reinterpret_cast<FinishBlock*>(dynamic_shared());
    FinishStar& star = block.star[threadIdx.x / LANES];
    block.network.take(a.fit.model.in_double);
    star.factor.clear_padding();
    __syncthreads();
    const int64_t warps = int64_t(gridDim.x) * (blockDim.x / LANES);
    const int64_t warp = int64_t(blockIdx.x) * (blockDim.x / LANES) + threadIdx.x / LANES;
    const int64_t rounds = (a.n + warps * LANES - 1) / (warps * LANES);
    if (rounds == 0) return;
    const int64_t portion = (a.n + warps * rounds - 1) / (warps * rounds);
    for (int64_t first = warp * portion; first < a.n; first += warps * portion) {
        finish_stars_by_warp(a, block.network, first, int(first + portion < a.n ? portion : a.n - first), star);
        __syncwarp();
    }
}

XPKERN_NAMESPACE_END

#if defined(XPKERN_GENERAL)
XPKERN_GENERAL_KERNEL(fit_finish, xpkern::FitArguments, a.n, kernels::finish_star)
#else
extern "C" __global__ void __launch_bounds__(kernels::FinishBlock::most_threads)
    fit_finish(const __grid_constant__ xpkern::FitArguments a) {
    kernels::finish_by_warps(a);
}
#endif

// Searches that are worth finishing in double, once all have ended their fine steps.
extern "C" __global__ void fit_select(const __grid_constant__ xpkern::FitArguments a) {
    kernels::over_items(a.n, [&](int64_t row) {
        kernels::Search* searches = kernels::searches_of(a, row);
        const int best = kernels::best_search(searches, a.fit.starts);
        for (int choice = 0; choice < a.fit.starts; ++choice) {
            kernels::Search& search = searches[choice];
            if (!kernels::at_work(search) || search.offered) continue;
            if (!kernels::worth_rescue(search, best < 0 ? nullptr : searches + best)) continue;
            kernels::enter_stage(kernels::RESCUE_DAMPING, search);
            kernels::add_to_queue(a.left, row * a.fit.starts + choice);
        }
    });
}
