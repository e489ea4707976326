// The searches of a star by a warp, where the model is of the usual shape.
#pragma once

#include "fit_stages.cuh"
#include "fit_steps.cuh"

XPKERN_NAMESPACE_BEGIN

// What a search does next. Its value and residual are in double all along, so that no step in float comes between the
// rough and the fine ones. halfway: the loss in the middle between it and the first search is looked at.
enum class Steps { rough, scout, halfway, fine };

// Which steps come next, of which search.
struct NextSteps {
    Steps steps = Steps::rough;
    int choice = 0;

    // exists: whether there is such a search. goes_on: whether it is worth more rough steps after its scouts. compare()
    // is called once all of the star's searches, as many as there are starts, have ended their rough steps.
    template <class Compare>
    __device__ __forceinline__ void advance(bool exists, bool goes_on, int starts, const Compare& compare) {
        if (steps == Steps::scout && exists) {
            steps = Steps::halfway;
            return;
        }
        if (steps == Steps::halfway && goes_on) {
            steps = Steps::rough;
            return;
        }
        ++choice;
        if (steps == Steps::fine) return;
        steps = Steps::scout;
        if (choice < starts) return;
        compare();
        steps = Steps::fine;
        choice = 0;
    }
};

// Residuals of the search that has ended with its best evaluation, if no search of its star has written any: these have
// the place of the variances (FitArguments::out). The others are left to fit_finish.
__device__ __forceinline__ bool describe_by_warp(const FitArguments& a, int64_t row, const Search* searches, int choice,
                                                 const FitStar& star) {
    constexpr int m = FitShape::n_samples;
    bool first = true;
    for (int before = 0; before < choice; ++before) first = first && !searches[before].described;
    if (!first) return false;
    float* const residual = a.out.residual + row * m;
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) {
        const int i = lane_in_warp() + s * LANES;
        if (i < m) residual[i] = in_sigmas(star.difference[i], residual[i]);
    }
    return true;
}

// All searches of a star one after the other, each looked at on its way but for the first; then Newton steps of those
// that are no copies. All of it is one loop around one evaluation, as what warps wait for, more than for anything else,
// is their code. meanwhile(): while the star is on its way.
template <class Meanwhile>
__device__ __forceinline__ void search_by_warp(const FitArguments& a, const FitGaussian& gaussian, int64_t row,
                                               const Meanwhile& meanwhile) {
    FitShape shape(a.fit.model);
    shape.in_rounds = true;
    const int k = shape.parameters(), starts = a.fit.starts, most = a.fit.max_iterations;
    const int scouts = SCOUT_EVALUATIONS < most ? SCOUT_EVALUATIONS : most;
    Search* const searches = searches_of(a, row);
    const auto those_at_work = [&] {  // a bit each, as far as there are bits
        const int choice = lane_in_warp() < starts ? lane_in_warp() : 0;
        return lanes_of_which(lane_in_warp() < starts && at_work(searches[choice]));
    };
    unsigned exist = those_at_work();
    meanwhile();
    if ((exist & 1) == 0) return;
    ask_for<FitShape::n_samples>(a.out.residual + row * FitShape::n_samples);  // the variances, for the end
    FitStar& star = gather_fit_star(a.stars, row);
    const auto write = [&](const auto& change) {
        __syncwarp();
        if (lane_in_warp() == 0) change();
        __syncwarp();
    };
    NextSteps next;
    while (next.choice < starts) {
        const Steps steps = next.steps;
        Search &search = searches[next.choice], &first = searches[0];
        const bool exists = next.choice < LANES ? (exist >> next.choice & 1) > 0 : at_work(search);
        bool goes_on = false;
        if (exists) {
            FitProgress progress{};
            StopRule rule = rough_rule(steps == Steps::scout ? scouts : most);
            if (steps == Steps::halfway) {
                __syncwarp();
                if (lane_in_warp() < k)
                    star.u[lane_in_warp()] = (search.state.u[lane_in_warp()] + first.state.u[lane_in_warp()]) * 0.5;
                __syncwarp();
                rule.max_evaluations = 1;
            } else {
                take_up(search, star, progress);
                if (steps == Steps::fine) rule = fine_rule(most, a.fit.tolerance);
            }
            shape.exact = steps == Steps::fine;
            optimise(a.fit, shape, gaussian, rule, star, progress);
            if (steps == Steps::halfway) {
                const double between = progress.loss;
                const bool copy = first.state.loss < between && between < search.state.loss;
                goes_on = !search.converged && scouts < most && !copy;
                write([&] {
                    search.copy = copy;
                    if (!goes_on) enter_stage(0, search);
                });
            } else {
                const bool unfinished = steps == Steps::scout && !progress.converged && scouts < most;
                const bool described = shape.exact && progress.converged && progress.accepted &&
                                       describe_by_warp(a, row, searches, next.choice, star);
                leave(star, progress, starts > 1, unfinished || shape.exact, search);
                write([&] {
                    search.described = described;
                    if (shape.exact) search.offered = search.converged;
                    if (steps == Steps::rough) enter_stage(0, search);
                });
            }
        }
        next.advance(exists, goes_on, starts, [&] {
            if (starts <= LANES && (exist & (exist - 1)) == 0) return;
            write([&] { mark_copies(k, starts, searches); });
            exist = those_at_work();
        });
    }
}

// Takes a star that no warp has taken yet: its row, a.n or more where there is none, in the first lane, which waits for
// it where it is asked for.
__device__ __forceinline__ int take_star(const FitArguments& a) {
    int row = 0;
    if (lane_in_warp() == 0) row = int(atomicAdd(reinterpret_cast<unsigned long long*>(a.begun), 1ull));
    return row;
}
// Has what is read of a star come near.
__device__ __forceinline__ void ask_for_star(const FitArguments& a, int64_t row) {
    if (row >= a.n) return;
    ask_for_fit_star(a.stars, row);
    if (lane_in_warp() >= a.fit.starts) return;
    const Search& search = searches_of(a, row)[lane_in_warp()];
    expect(search.state.u);
    expect(&search.exists);
}

// Stars, one after the other. The next one waits in shared memory, where a register would be wanted all along.
__device__ __forceinline__ void search_stars_by_warp(const FitArguments& a) {
    int& next = fit_star().next;
    const FitGaussian gaussian(a.fit.prior);
    if (lane_in_warp() == 0) fit_star().in_round = false;
    int row = from_lane(take_star(a), 0);
    ask_for_star(a, row);
    while (row < a.n) {
        const int taken = take_star(a);
        search_by_warp(a, gaussian, row, [&] {
            const int after = from_lane(taken, 0);
            if (lane_in_warp() == 0) next = after;
            ask_for_star(a, after);
        });
        fit_block().round.leave(fit_star().in_round);
        row = next;
        __syncwarp();
    }
}

XPKERN_NAMESPACE_END

#if defined(XPKERN_GENERAL)
XPKERN_GENERAL_KERNEL(fit_rough, xpkern::FitArguments, *a.taken.count, kernels::rough_steps)
XPKERN_GENERAL_KERNEL(fit_scout, xpkern::FitArguments, *a.taken.count, kernels::scout_steps)
XPKERN_GENERAL_KERNEL(fit_sharp, xpkern::FitArguments, *a.taken.count, kernels::sharp_steps)
XPKERN_GENERAL_KERNEL(fit_fine, xpkern::FitArguments, *a.taken.count, kernels::fine_steps)
#else
// All searches of every star, by a warp each, whichever is free.
extern "C" __global__ void __launch_bounds__(kernels::FitBlock::most_threads)
    fit_search(const __grid_constant__ xpkern::FitArguments a) {
    using kernels::fit_block;
    constexpr int k = kernels::FitShape::coordinates;
    fit_block().network.take(a.fit.model.in_double);
    if (threadIdx.x == 0) {
        fit_block().round.begin();
        const kernels::LaneBox<double> box(a.fit, k);
        for (int p = 0; p < k; ++p) fit_block().lower[p] = box.lower[p], fit_block().upper[p] = box.upper[p];
    }
    __syncthreads();
    kernels::search_stars_by_warp(a);
}
#endif
