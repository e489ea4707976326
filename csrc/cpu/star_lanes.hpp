// Stars of a block in lanes: which rows a lane holds, and their data gathered for the kernels.
#pragma once

#include "../core/star_loss.hpp"
#include "arguments.hpp"
#include "transpose.hpp"

XPKERN_NAMESPACE_BEGIN

// The lanes of this build. The scalar build runs the code that a GPU thread runs.
#if defined(XPKERN_SCALAR_LANES)
using FloatLane = float;
using WideLane = double;
using DoubleLane = double;
using TrainingLane = float;
using WideTrainingLane = double;
#else
using FloatLane = Pack<float, FLOAT_WIDTH>;
using WideLane = Pack<double, FLOAT_WIDTH>;
using DoubleLane = Pack<double, DOUBLE_WIDTH>;
// In training a star takes one column through the network. One register of stars leaves too few multiply-adds between
// loads of weights where registers are few.
using TrainingLane = Pack<float, STARS_SIDE_BY_SIDE>;
using WideTrainingLane = Pack<double, STARS_SIDE_BY_SIDE>;
#endif

// Rows of the block that a lane holds; the last is repeated where there are fewer than the lane is wide.
template <class Lane>
struct Members {
    static constexpr int width = LaneTraits<Lane>::width;
    int64_t row[width];
    int count;
    Members(int64_t begin, int64_t end) {
        count = static_cast<int>(end - begin < width ? end - begin : width);
        for (int s = 0; s < width; ++s) row[s] = begin + (s < count ? s : count - 1);
    }
    // Those of whom the mask says so; there may be none.
    Members those(const Mask<Lane>& mask, bool wanted) const {
        Members some = *this;
        some.count = 0;
        for (int s = 0; s < count; ++s)
            if (bool(get(mask, s)) == wanted) some.row[some.count++] = row[s];
        for (int s = some.count; s < width && some.count > 0; ++s) some.row[s] = some.row[some.count - 1];
        return some;
    }
};

// mean, weight: (k,)
template <class Wide>
inline void load_constraints(const int64_t* row, const StarArrays& stars, int k, Wide* mean, Wide* weight) {
    for (int p = 0; p < k; ++p) {
        mean[p] = lane_of<Wide>([&](int s) { return stars.mean[row[s] * k + p]; });
        weight[p] = lane_of<Wide>([&](int s) {
            const double sigma = stars.sigma[row[s] * k + p];
            return 1.0 / (sigma * sigma);
        });
    }
}

// One lane's stars in memory of their own.
template <class Real, class Wide>
struct GatheredStars {
    const int samples;
    Real *flux, *factor;
    Real* along;  // of factors in blocks; behind it comes one lane of no use
    Wide *mean, *weight;

    GatheredStars(int m, int k, Arena& arena) : samples(m) {
        flux = arena.take<Real>(m);
        factor = arena.take<Real>(row_start(m) + m + 1);
        along = factor + row_start(m);
        mean = arena.take<Wide>(k);
        weight = arena.take<Wide>(k);
    }
    // All but the factor.
    void fill_measured(const Members<Real>& members, const StarArrays& stars, int k) const {
        load_rows(stars.flux, members.row, samples, flux);
        load_constraints(members.row, stars, k, mean, weight);
    }
    void fill(const Members<Real>& members, const StarArrays& stars, int k) const {
        fill_measured(members, stars, k);
        load_rows(stars.whitener, members.row, row_start(samples), factor);
    }
    StarView<Real, Wide, BlockFactor<Real>> view(const BlockForm& form) const {
        return {flux, {factor, along, form}, mean, weight};
    }
    StarView<Real, Wide, BlockFactor<Real>> view() const { return view(BlockForm::whole(samples)); }
};

// Linear parameters (n, k) of a lane's stars, as u.
template <class Lane>
inline void load_params(const int64_t* row, const double* params, int k, Lane* u) {
    for (int p = 0; p < k; ++p) u[p] = lane_of<Lane>([&](int s) { return params[row[s] * k + p]; });
    u[k - 1] = log(u[k - 1]);
}

XPKERN_NAMESPACE_END
