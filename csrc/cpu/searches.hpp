// Searches of a block's stars: where they start, how far they may go, what is kept of each, and which wait.
#pragma once

#include "../core/optimise.hpp"
#include "../core/start.hpp"
#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

// Box in u, the same for every star.
template <class Lane>
struct LaneBox {
    Lane lower[MAX_PARAMETERS], upper[MAX_PARAMETERS];
    LaneBox(const FitView& fit, int k) {
        for (int p = 0; p < k; ++p) {
            double low = fit.lower[p], high = fit.upper[p];
            if (p == k - 2) low = max(low, SMALLEST_EXT);
            if (p == k - 1) low = log(low), high = log(high);
            lower[p] = lane<Lane>(low);
            upper[p] = lane<Lane>(high);
        }
    }
    BoxView<Lane> view() const { return {lower, upper}; }
    void keep_inside(int k, Lane* u) const {
        for (int p = 0; p < k; ++p) u[p] = clamp(u[p], lower[p], upper[p]);
    }
};

// Calls found(s, choice, u) for each star s of a lane and each of its starts, best first; u: (k,), or null where the
// star has no such start.
template <class Shape, class Found>
inline void choose_starts(const Shape& shape, const GridView& grid, const GatheredStars<FloatLane, WideLane>& stars,
                          FloatLane* variance, const StartSpace<FloatLane>& space, int starts, double gate,
                          const Found& found) {
    const int m = shape.samples(), inputs = shape.inputs(), k = shape.parameters();
    sample_variance(stars.factor, m, variance);
    rate_types(grid, inputs, stars.flux, stars.factor, variance, m, convert<FloatLane>(stars.mean[k - 1]),
               convert<FloatLane>(stars.weight[k - 1]), space);
    FloatLane limit = infinity<FloatLane>();
    for (int choice = 0; choice < starts; ++choice) {
        FloatLane u[MAX_PARAMETERS];
        const FloatLane score = take_start(grid, inputs, space, u);
        if (choice == 0) limit = score + lane<FloatLane>(gate);
        const Mask<FloatLane> taken = (score <= limit) & (score < infinity<FloatLane>());
        for (int s = 0; s < LaneTraits<FloatLane>::width; ++s) {
            double of_star[MAX_PARAMETERS];
            for (int p = 0; p < k; ++p) of_star[p] = get(u[p], s);
            found(s, choice, choice == 0 || get(taken, s) ? of_star : nullptr);
        }
    }
}

// Where a search, of one star from one start, has got to.
struct SearchProgress {
    LossState<double, double> state;
    double damping;
    int32_t spent;   // evaluations in the stage that it waits for; 0 where it has not begun
    int32_t before;  // evaluations in the stages before
    bool exists, converged;
    bool copy;  // of another search of its star: given up
};

// Searches that wait for a stage.
struct Queue {
    int64_t* searches;
    int64_t count;
    void add(int64_t search) { searches[count++] = search; }
};

XPKERN_NAMESPACE_END
