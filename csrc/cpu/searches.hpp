// Searches of a block's stars that wait for a stage.
#pragma once

#include "../core/search.hpp"
#include "star_lanes.hpp"

XPKERN_NAMESPACE_BEGIN

struct Queue {
    int64_t* searches;
    int64_t count;
    void add(int64_t search) { searches[count++] = search; }
};

// Starts of the stars of a lane; see core/search.hpp.
template <class Found, class Meanwhile = Nothing>
inline void choose_starts(const GridView& grid, int m, int k,
                          const StarView<FloatLane, WideLane, BlockFactor<FloatLane>>& star, FloatLane* variance,
                          const StartSpace<FloatLane>& space, int starts, double gate, const Found& found,
                          const Meanwhile& meanwhile = {}) {
    choose_starts(grid, m, k, star.flux, star.factor, convert<FloatLane>(star.mean[k - 1]),
                  convert<FloatLane>(star.weight[k - 1]), variance, space, starts, gate, found, meanwhile);
}

XPKERN_NAMESPACE_END
