// Where a star starts from, by a warp, for grids and models of the usual sizes: core/start.hpp's choice of a type.
//
// Basis and right-hand side are 15 columns; two lanes have a column between them, each every other four rows of what is
// solved, so that whitening is 1,088 multiply-adds of a warp and an exchange for every four rows. Then a lane has four
// of the normal matrix's products, a row of its factor, two types of the grid. The next star's whitener comes while
// types are looked at. The grid is the block's.
#pragma once

#include "padded_factor.cuh"
#include "searches.cuh"

XPKERN_NAMESPACE_BEGIN

struct StartShape {
    static constexpr int m = UsualShape::samples(), k = UsualShape::parameters(), inputs = UsualShape::inputs();
    static constexpr int c = START_COLUMNS, strips = FitShape::strips;
    static constexpr int columns = LANES / 2;  // the last one is the right-hand side again
    static constexpr int apart = columns + 4;  // numbers of a row: lanes that write rows of theirs meet in no bank
    static constexpr int type = start_row_size(inputs);
    static_assert(columns == c + 2 && apart % 4 == 0 && type % 2 == 1, "banks");
};

// The grid in shared memory.
struct alignas(16) StartTable {
    float basis[StartShape::m][StartShape::apart], inverse[StartShape::m][StartShape::apart];
    float types[USUAL_TYPES * StartShape::type];
    float mean[StartShape::m], typical[StartShape::m];
    int32_t window[2 * StartShape::m];

    // By all threads of the block; a barrier follows.
    __device__ __forceinline__ void take(const GridView& grid) {
        constexpr int m = StartShape::m, c = StartShape::c;
        const int first = int(threadIdx.x), step = int(blockDim.x);
        for (int at = first; at < m * c; at += step) {
            basis[at / c][at % c] = grid.basis[at];
            inverse[at / c][at % c] = grid.inverse[at];
        }
        for (int at = first; at < grid.n_types * StartShape::type; at += step) types[at] = grid.rows[at];
        for (int at = first; at < m; at += step) mean[at] = grid.mean[at], typical[at] = grid.typical[at];
        for (int at = first; at < 2 * m; at += step) window[at] = grid.window[at];
    }
    // The grid, what is read of it element by element from here.
    __device__ __forceinline__ GridView view(const GridView& grid) const {
        GridView here = grid;
        here.rows = types;
        here.mean = mean;
        here.typical = typical;
        here.window = window;
        return here;
    }
};

// The star of a warp.
struct StartStar {
    PaddedFactor factor;
    union {
        struct alignas(16) {
            float number[StartShape::m][StartShape::apart];
        } column;
        struct {
            float score[USUAL_TYPES], params[USUAL_TYPES * StartShape::k];
        } rated;
    };
    float flux[StartShape::m], variance[StartShape::m];
    StartSystem<float> system;
    StartLine<float> line;

    // By a warp; there after wait_for_copies() and a barrier.
    __device__ __forceinline__ void take_soon(const StarArrays& stars, int64_t row) {
        constexpr int m = StartShape::m;
        const int lane = lane_in_warp();
        copy_by_lane_soon<m>(flux + lane, stars.flux + row * m + lane);
        factor.take_soon(stars.whitener + row * row_start(m));
    }
};

struct StartBlock {
    static constexpr int most_warps = 12, most_threads = most_warps * LANES;  // with 168 registers
    StartTable table;
    StartStar star[1];
};
static_assert(sizeof(StartBlock) + (StartBlock::most_warps - 1) * sizeof(StartStar) <= 227 * 1024, "shared memory");

// Core: guess_flux(), and assemble_start() as far as the whitening.
__device__ __forceinline__ void fill_columns(const StartTable& table, const GridView& grid, StartStar& star) {
    constexpr int c = StartShape::c, strips = StartShape::strips;
    const int lane = lane_in_warp();
    const auto over_samples = [&](const auto& work) {
        XPKERN_UNROLL
        for (int s = 0; s < strips; ++s)
            if (lane + s * LANES < StartShape::m) work(s, lane + s * LANES);
    };
    float of_spectrum[2] = {};
    over_samples([&](int, int i) {
        const float variance = star.variance[i], typical = grid.typical[i];
        const float weight = variance > 0 ? typical / variance : 0.0f;
        of_spectrum[0] = fma(weight, star.flux[i], of_spectrum[0]);
        of_spectrum[1] = fma(weight, typical, of_spectrum[1]);
    });
    sum_over_lanes<LANES / 2>(of_spectrum);
    const float scale = scale_of_spectrum(of_spectrum[0], of_spectrum[1]);
    float guess[strips] = {}, left[strips] = {}, level_and_present[2] = {};
    over_samples([&](int s, int i) {
        guess[s] = guess_of_sample(grid, star.flux, star.variance, scale, i);
        left[s] = ln_flux_about(grid, guess[s], star.flux[i], i);
        if (star.variance[i] > 0) {
            level_and_present[0] += left[s];
            level_and_present[1] += 1;
        }
    });
    sum_over_lanes<LANES / 2>(level_and_present);
    const float level = level_and_present[0] / max(level_and_present[1], 1.0f);
    float origin[c] = {};
    over_samples([&](int s, int i) {
        left[s] = star.variance[i] > 0 ? left[s] - level : 0.0f;
        XPKERN_UNROLL
        for (int a = 0; a < c; ++a) origin[a] = fma(table.inverse[i][a], left[s], origin[a]);
    });
    sum_over_lanes<LANES / 2>(origin);
    over_samples([&](int s, int i) {
        float* column = star.column.number[i];
        float residual = left[s];
        XPKERN_UNROLL
        for (int a = 0; a < c; ++a) {
            const float along = table.basis[i][a];
            residual = fma(-along, origin[a], residual);
            column[a] = guess[s] * along;
        }
        XPKERN_UNROLL
        for (int a = c; a < StartShape::columns; ++a) column[a] = guess[s] * residual;
    });
    if (lane == 0) {
        XPKERN_UNROLL
        for (int a = 0; a < c; ++a) star.system.origin[a] = a == 1 ? fma(level, 0.5f, origin[a]) : origin[a];
    }
    __syncwarp();
}

// column = G^-1 column, by substitution. A lane keeps its fours of rows in registers.
__device__ __forceinline__ void whiten_start(StartStar& star) {
    using Factor = PaddedFactor;
    constexpr int four = Factor::together, blocks = Factor::blocks;
    const int lane = lane_in_warp(), half = lane / StartShape::columns;
    float* const column = &star.column.number[0][lane % StartShape::columns];
    const Four* const factor = star.factor.quarters(0);
    float y[(blocks + 1) / 2 * four] = {};
    XPKERN_UNROLL
    for (int block = 0; block < blocks; ++block) {
        const int first = block * four, rows = StartShape::m - first < four ? StartShape::m - first : four;
        const int fours = (block + 1) / 2;  // before these rows; where a lane has one less than others, y is 0 yet
        float sum[four] = {};
        XPKERN_UNROLL
        for (int t = 0; t < fours; ++t) {
            XPKERN_UNROLL
            for (int r = 0; r < rows; ++r) {
                const Four g = factor[Factor::row_at(first + r) / four + 2 * t + half];
                XPKERN_UNROLL
                for (int x = 0; x < four; ++x) sum[r] = fma(g.number[x], y[t * four + x], sum[r]);
            }
        }
        float left[four], here[four];
        XPKERN_UNROLL
        for (int r = 0; r < rows; ++r) left[r] = (half == 0 ? column[(first + r) * StartShape::apart] : 0.0f) - sum[r];
        XPKERN_UNROLL
        for (int r = 0; r < rows; ++r) left[r] += from_lane(left[r], lane ^ StartShape::columns);
        XPKERN_UNROLL
        for (int r = 0; r < rows; ++r) {
            const Four g = factor[Factor::row_at(first + r) / four + block];
            XPKERN_UNROLL
            for (int x = 0; x < r; ++x) left[r] = fma(-g.number[x], here[x], left[r]);
            here[r] = left[r] * g.number[r];
        }
        XPKERN_UNROLL
        for (int r = 0; r < rows; ++r) {
            if (half == block % 2) y[block / 2 * four + r] = here[r];
            if (half == 0) column[(first + r) * StartShape::apart] = here[r];
        }
    }
    __syncwarp();
}

// Normal matrix and right-hand side: two by two products of the matrix a lane, of the right-hand side four.
__device__ __forceinline__ void multiply_start(StartStar& star) {
    struct alignas(8) Two {
        float number[2];
    };
    constexpr int c = StartShape::c, squares = row_start(c / 2);
    static_assert(c % 2 == 0 && squares + (c + 3) / 4 == LANES, "a share for each lane");
    const int lane = lane_in_warp();
    const bool of_matrix = lane < squares;
    int row = 0;
    XPKERN_UNROLL
    for (int r = 1; r < c / 2; ++r) row += lane >= row_start(r) ? 1 : 0;
    const int first = of_matrix ? 2 * row : c;
    const int second = of_matrix ? 2 * (lane - row_start(row)) : 4 * (lane - squares);
    const int third = of_matrix ? second : second + 2;
    float sum[4] = {};
    XPKERN_UNROLL_FOUR
    for (int i = 0; i < StartShape::m; ++i) {
        const float* at = star.column.number[i];
        const Two a = *reinterpret_cast<const Two*>(at + first), b = *reinterpret_cast<const Two*>(at + second);
        const Two d = *reinterpret_cast<const Two*>(at + third);
        sum[0] = fma(a.number[0], b.number[0], sum[0]);
        sum[1] = fma(a.number[0], b.number[1], sum[1]);
        sum[2] = fma(a.number[1], d.number[0], sum[2]);
        sum[3] = fma(a.number[1], d.number[1], sum[3]);
    }
    XPKERN_UNROLL
    for (int e = 0; e < 4; ++e) {
        if (of_matrix) {
            const int i = first + e / 2, j = second + e % 2;
            if (j <= i) star.system.normal[row_start(i) + j] = i == j ? with_ridge(sum[e]) : sum[e];
        } else if (second + e < c) {
            star.system.right[second + e] = sum[e];
        }
    }
    __syncwarp();
}

// Core: reduce_start(). A lane has a row of the factor, one more lane the right-hand side.
__device__ __forceinline__ void reduce_by_warp(StartStar& star) {
    constexpr int c = StartShape::c, rest = c - 2;
    const int row = lane_in_warp();
    float* const mine = row < c ? star.system.normal + row_start(row) : star.system.right;
    float element[c];
    XPKERN_UNROLL
    for (int j = 0; j < c; ++j) element[j] = j <= row && row <= c ? mine[j] : 0.0f;
    XPKERN_UNROLL
    for (int pivot = 0; pivot < c; ++pivot) {
        const float reciprocal = reciprocal_of_pivot(from_lane(element[pivot], pivot));
        const float below = element[pivot] * reciprocal;
        XPKERN_UNROLL
        for (int j = pivot + 1; j < c; ++j) element[j] = fma(-below, from_lane(below, j), element[j]);
        element[pivot] = row == pivot ? reciprocal : below;
    }
    XPKERN_UNROLL
    for (int j = 0; j < c; ++j)
        if (j <= row && row <= c) mine[j] = element[j];
    __syncwarp();
    if (row < rest) describe_rest(star.system, row, star.line);
    if (row == rest) describe_response(star.system, star.line);
    __syncwarp();
}

// Core: rate_types(), two types a lane.
__device__ __forceinline__ void rate_by_warp(const GridView& grid, float mean, float weight, StartStar& star) {
    constexpr int inputs = StartShape::inputs, k = StartShape::k;
    const bool has_parallax = weight > 0;
    const StartConstraint<float> constraint = {
        mean,        1.0f / (has_parallax ? weight : 1.0f), star.line.ext_ext, star.line.ext_plx, star.line.plx_plx,
        has_parallax};
    XPKERN_ROLLED
    for (int type = lane_in_warp(); type < USUAL_TYPES; type += LANES) {
        float score = infinity<float>();
        if (type < grid.n_types) {
            float part[TypeParts<inputs>::count], u[k];
            project_type<inputs>(grid, type, star.line, 1, part);
            score = move_type<inputs>(grid, constraint, PartView<float>{part}, u);
            XPKERN_UNROLL
            for (int p = 0; p < k; ++p) star.rated.params[type * k + p] = u[p];
        }
        star.rated.score[type] = score;
    }
    __syncwarp();
}

// Core: take_start(). Of equal scores the first type's counts.
__device__ __forceinline__ float take_by_warp(const GridView& grid, StartStar& star, float* u) {
    constexpr int inputs = StartShape::inputs, k = StartShape::k;
    const int lane = lane_in_warp();
    auto& rated = star.rated;
    float least = infinity<float>();
    int best = 0;
    const auto compare = [&](float score, int type) {
        const bool better = score < least || (score == least && type < best);
        least = better ? score : least;
        best = better ? type : best;
    };
    XPKERN_UNROLL
    for (int type = 0; type < USUAL_TYPES; type += LANES) {
        const float score = rated.score[lane + type];
        if (score < least) least = score, best = lane + type;  // one that is no number is none
    }
    XPKERN_UNROLL
    for (int half = LANES / 2; half > 0; half /= 2)
        compare(from_lane(least, lane ^ half), from_lane(best, lane ^ half));
    const bool found = least < infinity<float>();
    XPKERN_UNROLL
    for (int p = 0; p < k; ++p) u[p] = rated.params[(found ? best : 0) * k + p];
    if (!found) {
        XPKERN_UNROLL
        for (int i = 0; i < inputs; ++i) u[i] = start_type(grid, 0, inputs).type[i];
        u[inputs] = 0.1f;
        u[inputs + 1] = 0;
    }
    XPKERN_UNROLL
    for (int type = lane; type < USUAL_TYPES; type += LANES) {
        bool similar = type < grid.n_types;
        XPKERN_UNROLL
        for (int i = 0; i < inputs; ++i) similar = similar && abs(rated.params[type * k + i] - u[i]) <= grid.apart[i];
        if (similar) rated.score[type] = infinity<float>();
    }
    __syncwarp();
    return least;
}

// found(row, choice, u) by a warp for each start of each star, u null where a star has no such start; for a star that
// is_wanted(row, factor) refuses, nothing. One star follows another as far apart as the grid has warps.
template <class Wanted, class Found>
__device__ __forceinline__ void over_starts(const GridView& grid_in_memory, const StarArrays& stars, int64_t n,
                                            int starts, double gate, const Wanted& is_wanted, const Found& found) {
    constexpr int k = StartShape::k;
    StartBlock& block = *reinterpret_cast<StartBlock*>(dynamic_shared());
    StartStar& star = block.star[threadIdx.x / LANES];
    block.table.take(grid_in_memory);
    star.factor.clear_padding();
    __syncthreads();
    const GridView grid = block.table.view(grid_in_memory);
    const int warps = int(blockDim.x) / LANES;
    const int64_t step = int64_t(gridDim.x) * warps;
    int64_t row = int64_t(blockIdx.x) * warps + threadIdx.x / LANES;
    if (row < n) star.take_soon(stars, row);
    for (; row < n; row += step) {
        const double sigma = stars.sigma[row * k + k - 1];
        const auto mean = float(stars.mean[row * k + k - 1]), weight = float(1.0 / (sigma * sigma));
        wait_for_copies();
        __syncwarp();
        const bool wanted = is_wanted(row, star.factor);
        if (wanted) {
            star.factor.variance_by_warp([&](int i, float variance) { star.variance[i] = variance; });
            __syncwarp();
            fill_columns(block.table, grid, star);
            whiten_start(star);
        }
        __syncwarp();  // no lane still reads the whitener
        if (row + step < n) star.take_soon(stars, row + step);
        if (!wanted) continue;
        multiply_start(star);
        reduce_by_warp(star);
        rate_by_warp(grid, mean, weight, star);
        float limit = infinity<float>();
        bool taken = true;
        XPKERN_ROLLED
        for (int choice = 0; choice < starts; ++choice) {
            float u[k] = {};
            double of_star[k];
            if (taken) {
                const float score = take_by_warp(grid, star, u);
                if (choice == 0) limit = score + float(gate);
                taken = choice == 0 || (score <= limit && score < infinity<float>());
            }
            XPKERN_UNROLL
            for (int p = 0; p < k; ++p) of_star[p] = u[p];
            found(row, choice, taken ? of_star : nullptr);
        }
        __syncwarp();  // no lane still reads scores
    }
}

XPKERN_NAMESPACE_END
