// The covariance of a spectrum under a learned noise, and its factor, by a warp: core/frozen_noise.hpp says what is
// computed, here is who computes what.
//
// G G^T is multiplied out by tiles of 8 by 8 (tensor cores). What else C's elements are made of is added where a tile's
// sums are, two neighbours of a row a lane; S stands in memory in the order in which lanes want it. Then C is
// factorised in place, a row a lane.
#pragma once

#include "core/frozen_noise.hpp"
#include "fit_memory.cuh"
#include "spectrum_factor.cuh"

XPKERN_NAMESPACE_BEGIN

// Tiles of the lower triangle of S: column of tiles by column of tiles, of each tile one group after the other, of each
// group two elements a lane.
struct FreezeTiles {
    static constexpr int samples = UsualSpectrum::samples, tile = UsualSpectrum::tile;
    static constexpr int count = (samples + tile - 1) / tile, elements = tile * tile;
    static constexpr int strips = (samples + LANES - 1) / LANES;  // a lane's rows: lane, lane + LANES, ...

    // Number of the tile in row s and column t of tiles.
    static XPKERN_INLINE constexpr int number(int s, int t) { return t * count - row_start(t) + s; }
};

// The star of a warp.
struct FreezeStar {
    static constexpr int packed = row_start(FreezeTiles::samples);
    double triangle[packed];                                                 // C, then its factor
    double diagonal[FreezeTiles::samples];                                   // of G; 0 where it is missing
    double observed[FreezeTiles::samples], predicted[FreezeTiles::samples];  // f
    float factor[packed];                                                    // G as it is stored

    // Element (i, k) of G; where i is beyond the last row, of that one.
    __device__ __forceinline__ double element(int i, int k) const {
        const int row = i < FreezeTiles::samples ? i : FreezeTiles::samples - 1;
        const double below = double(factor[row_start(row) + (k < row ? k : row)]), on = diagonal[row];
        return k < row ? below : (k == row ? on : 0.0);
    }
};
struct FreezeBlock {
    static constexpr int most_warps = 8, most_threads = most_warps * LANES;
    FreezeStar star[1];
};
static_assert(FreezeBlock::most_warps * sizeof(FreezeStar) <= 227 * 1024, "shared memory");

// work(i) for the lane's samples.
template <class Work>
__device__ __forceinline__ void over_frozen_samples(const Work& work) {
    XPKERN_UNROLL
    for (int s = 0; s < FreezeTiles::strips; ++s)
        if (lane_in_warp() + s * LANES < FreezeTiles::samples) work(lane_in_warp() + s * LANES);
}

// Brings a star to the warp's place. Returns how many samples it has.
__device__ __forceinline__ int load_frozen_star(const FreezeArguments& a, int64_t row, FreezeStar& star) {
    constexpr int m = FreezeTiles::samples, packed = FreezeStar::packed;
    __syncwarp();  // no lane is still at the star before
    copy_by_lane_soon<packed>(star.factor + lane_in_warp(), a.whitener + row * packed + lane_in_warp());
    over_frozen_samples([&](int i) {
        star.observed[i] = double(a.flux[row * m + i]);
        star.predicted[i] = a.predicted[row * m + i];
    });
    wait_for_copies();
    __syncwarp();
    int present = 0;
    over_frozen_samples([&](int i) {
        const auto reciprocal = double(star.factor[row_start(i) + i]);
        star.diagonal[i] = reciprocal > 0 ? 1 / reciprocal : 0.0;
        present += reciprocal > 0 ? 1 : 0;
    });
    __syncwarp();
    return sum_over_lanes(present);
}

// Core: blend_groups(). A lane has the group of its number.
__device__ __forceinline__ double share_of_lane(const FreezeArguments& a, int64_t row) {
    static_assert(MAX_GROUPS <= LANES, "a group a lane");
    double theta[MAX_INPUTS];
    for (int t = 0; t < a.inputs; ++t) theta[t] = a.params[row * a.parameters + t];
    const int lane = lane_in_warp(), group = lane < a.noise.n_groups ? lane : a.noise.n_groups - 1;
    const double distance = group_distance(a.noise, int(a.inputs), theta, group);
    double least = distance;
    XPKERN_UNROLL
    for (int half = LANES / 2; half > 0; half /= 2) least = min(least, from_lane(least, lane ^ half));
    const double weight = lane < a.noise.n_groups ? group_weight(distance, least) : 0.0;
    return weight / sum_over_lanes(weight);
}

// A lane's two elements of the tiles of one column of tiles, from the t-th down: (s, h).
using TileColumn = double[FreezeTiles::count][2];

// G G^T.
__device__ __forceinline__ void square_column(const FreezeStar& star, int t, TileColumn& sum) {
    constexpr int tiles = FreezeTiles::count, tile = FreezeTiles::tile, together = 4;  // columns of one product
    const int row = lane_in_warp() / 4, column = lane_in_warp() % 4;
    XPKERN_ROLLED
    for (int k = 0; k < (t + 1) * tile; k += together) {
        const double right = star.element(t * tile + row, k + column);
        XPKERN_UNROLL
        for (int s = 0; s < tiles; ++s)
            if (s >= t) multiply_tiles(s == t ? right : star.element(s * tile + row, k + column), right, sum[s]);
    }
}

// S: the elements of all tiles of a group are on their way at once.
__device__ __forceinline__ void blend_column(const NoiseView& noise, double share, int t, TileColumn& error) {
    constexpr int tiles = FreezeTiles::count, elements = FreezeTiles::elements;
    XPKERN_ROLLED
    for (int g = 0; g < noise.n_groups; ++g) {
        const double weight = from_lane(share, g);
        if (weight == 0) continue;
        XPKERN_UNROLL
        for (int s = 0; s < tiles; ++s) {
            if (s < t) continue;
            const int64_t at = (int64_t(FreezeTiles::number(s, t)) * noise.n_groups + g) * elements;
            const Pair element = *reinterpret_cast<const Pair*>(noise.covariance + at + 2 * lane_in_warp());
            XPKERN_UNROLL
            for (int h = 0; h < 2; ++h) error[s][h] = fma(weight, element.at[h], error[s][h]);
        }
    }
}

// Core: add_model_error(), of a column of tiles; rows and columns of missing samples become those of the identity.
__device__ __forceinline__ void finish_column(const NoiseView& noise, int t, const TileColumn& square,
                                              const TileColumn& error, FreezeStar& star) {
    constexpr int m = FreezeTiles::samples, tiles = FreezeTiles::count, tile = FreezeTiles::tile;
    const int row = lane_in_warp() / 4, first = t * tile + lane_in_warp() % 4 * 2;
    XPKERN_UNROLL
    for (int h = 0; h < 2; ++h) {
        const int j = first + h < m ? first + h : m - 1;
        const double predicted = star.predicted[j], observed = star.observed[j];
        const bool present = star.diagonal[j] > 0;
        double common[COMMON_ERRORS];
        XPKERN_UNROLL
        for (int q = 0; q < COMMON_ERRORS; ++q) common[q] = observed * noise.common[q * m + j];
        XPKERN_UNROLL
        for (int s = 0; s < tiles; ++s) {
            const int i = s * tile + row;
            if (s < t || i >= m || i < first + h) continue;
            double archive = square[s][h];
            if (i == j) {
                const double alone = observed * noise.independent[i];
                archive = fma(-alone, alone, archive);
            }
            XPKERN_UNROLL
            for (int q = 0; q < COMMON_ERRORS; ++q)
                archive = fma(-star.observed[i] * noise.common[q * m + i], common[q], archive);
            const double element = fma(star.predicted[i] * predicted, error[s][h], archive * noise.factor);
            const bool here = present && star.diagonal[i] > 0;
            star.triangle[row_start(i) + j] = here ? element : (i == j ? 1.0 : 0.0);
        }
    }
}

__device__ __forceinline__ void freeze_star_by_warp(const FreezeArguments& a, int64_t row, FreezeStar& star) {
    constexpr int m = FreezeTiles::samples, packed = FreezeStar::packed;
    const int present = load_frozen_star(a, row, star);
    const double share = share_of_lane(a, row);
    XPKERN_ROLLED
    for (int t = 0; t < FreezeTiles::count; ++t) {
        TileColumn square = {}, error = {};
        square_column(star, t, square);
        blend_column(a.noise, share, t, error);
        finish_column(a.noise, t, square, error, star);
    }
    __syncwarp();
    factor_strip_by_warp<0, FreezeTiles::strips>(star.triangle, 0, 0, m);
    double ln_det = 0;
    int unusable = present > 0 ? 0 : 1;
    over_frozen_samples([&](int i) {
        double& reciprocal = star.triangle[row_start(i) + i];
        unusable += is_usable(reciprocal) ? 0 : 1;
        ln_det = fma(log(reciprocal), -2.0, ln_det);  // 0 of a missing sample
        reciprocal = star.diagonal[i] > 0 ? reciprocal : 0.0;
    });
    ln_det = sum_over_lanes(ln_det);
    const bool usable = sum_over_lanes(unusable) == 0;
    __syncwarp();
    float* const whitener = a.out.whitener + row * packed;
    for (int at = lane_in_warp(); at < packed; at += LANES) whitener[at] = usable ? float(star.triangle[at]) : 0.0f;
    if (lane_in_warp() == 0) a.out.ln_det[row] = usable ? ln_det : not_a_number();
}

XPKERN_NAMESPACE_END

// A warp for each star.
extern "C" __global__ void __launch_bounds__(kernels::FreezeBlock::most_threads)
    freeze_noise(const __grid_constant__ xpkern::FreezeArguments a) {
    auto& block = *reinterpret_cast<kernels::FreezeBlock*>(kernels::dynamic_shared());
    kernels::FreezeStar& star = block.star[threadIdx.x / kernels::LANES];
    const int64_t warps = blockDim.x / kernels::LANES, step = int64_t(gridDim.x) * warps;
    for (int64_t row = int64_t(blockIdx.x) * warps + threadIdx.x / kernels::LANES; row < a.n; row += step)
        kernels::freeze_star_by_warp(a, row, star);
}
