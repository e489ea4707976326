// Where a star starts from, by a warp, for grids and models of the usual sizes: core/start.hpp's choice of a type.
//
// Basis and right-hand side are 15 columns. Eight rows after eight they are whitened, and the normal matrix is found,
// by products of tiles on the tensor cores. Then a lane has a row of the matrix's factor, two types of the grid. The
// next star's whitener comes while types are looked at. The grid is the block's.
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
        Four window[StartShape::m][StartShape::apart / 4];  // WindowSums of 1, 2, 4, ... samples from one on
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

// Core: sums_of_window(), of the lane's samples. Sums over twice as many neighbours are made of two, and a window's of
// those that its length is made of.
__device__ __forceinline__ void sum_windows(const GridView& grid, StartStar& star,
                                            WindowSums<float> (&sums)[StartShape::strips]) {
    constexpr int m = StartShape::m, strips = StartShape::strips, doublings = StartShape::apart / 4 - 1;
    constexpr int longest = 1 << doublings;
    const int lane = FitLane().lane;
    const auto sample = [&](int s) { return lane + s * LANES < m ? lane + s * LANES : m - 1; };
    const auto add = [](const Four& four, const Four& more) {
        return Four{
            {four.number[0] + more.number[0], four.number[1] + more.number[1], four.number[2] + more.number[2]}};
    };
    Four mine[strips];
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const float variance = star.variance[sample(s)];
        const bool seen = variance > 0;
        mine[s] = {{seen ? star.flux[sample(s)] : 0.0f, variance, seen ? 1.0f : 0.0f}};
    }
    XPKERN_UNROLL
    for (int level = 0; level <= doublings; ++level) {
        XPKERN_UNROLL
        for (int s = 0; s < strips; ++s)
            if (lane + s * LANES < m) star.window[lane + s * LANES][level] = mine[s];
        __syncwarp();
        XPKERN_UNROLL
        for (int s = 0; s < strips; ++s) {  // beyond the last sample what no window has
            const int next = sample(s) + (1 << level);
            mine[s] = add(mine[s], star.window[next < m ? next : m - 1][level]);
        }
    }
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        int at = grid.window[2 * sample(s)];
        const int end = grid.window[2 * sample(s) + 1];
        Four sum{};
        for (; end - at >= 2 * longest; at += longest) sum = add(sum, star.window[at][doublings]);
        XPKERN_UNROLL
        for (int level = doublings; level >= 0; --level) {
            const int length = 1 << level;
            const Four more = star.window[at < m ? at : m - 1][level];
            const bool within = end - at >= length;
            sum = within ? add(sum, more) : sum;
            at += within ? length : 0;
        }
        sums[s] = {sum.number[0], sum.number[1], sum.number[2]};
    }
    __syncwarp();  // columns take the place of these
}

// Core: guess_flux(), and assemble_start() as far as the whitening.
__device__ __forceinline__ void fill_columns(const StartTable& table, const GridView& grid, StartStar& star) {
    constexpr int c = StartShape::c, strips = StartShape::strips;
    const int lane = FitLane().lane;
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
    WindowSums<float> around[strips];
    sum_windows(grid, star, around);
    float guess[strips] = {}, left[strips] = {}, level_and_present[2] = {};
    over_samples([&](int s, int i) {
        guess[s] = guess_of_sample(grid, star.flux[i], star.variance[i], around[s], scale, i);
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

// The whitened columns, turned: 16 by 8 samples a block. A lane has columns row and row + 8 of the samples 2 column and
// 2 column + 1 of each block, where products leave them. As any four samples may be the first that are summed over, the
// even ones are one left matrix of 16 by 4 and the odd ones another: what is found is multiplied where it is.
struct StartRows {
    static constexpr int halves = StartShape::columns / FitTiles::rows, turns = FitTiles::rows / FitTiles::columns;
    static constexpr int blocks = StartShape::m / FitTiles::rows, rest = StartShape::m % FitTiles::rows;
    Pair number[blocks][turns];  // of even and of odd samples
    double last[halves];         // of the samples behind the last whole block, one after the other
};
static_assert(StartRows::turns == 2 && StartRows::halves == 2, "even and odd samples, two left tiles");

struct alignas(8) Two {
    float number[2];
};

// The squares of 8 by 8 on the whitener's diagonal become their inverses, four at a time, a column a lane.
__device__ __forceinline__ void invert_start_squares(StartStar& star) {
    constexpr int rows = FitTiles::rows, together = PaddedFactor::together, whole = StartShape::m / rows;
    static_assert(whole % (LANES / rows) == 0);
    const int j = lane_in_warp() % rows;
    XPKERN_ROLLED
    for (int square = lane_in_warp() / rows; square < whole; square += LANES / rows) {
        float column[rows];
        XPKERN_UNROLL
        for (int i = 0; i < rows; ++i) {
            const float* const row = star.factor.row(square * rows + i) + square * rows;
            float left = i == j ? 1.0f : 0.0f;
            XPKERN_UNROLL
            for (int l = 0; l < i; ++l) left = fma(-row[l], column[l], left);
            column[i] = left * row[i];
        }
        __syncwarp();  // no lane still reads it
        XPKERN_UNROLL
        for (int i = 0; i < rows; ++i)
            if (i >= together || j < together)
                star.factor.number[PaddedFactor::row_at(square * rows + i) + square * rows + j] = column[i];
    }
    __syncwarp();
}

// y = G^-1 of the columns, from the rows FIRST on; those before are there.
template <int FIRST = 0>
__device__ __forceinline__ void whiten_rows(const FitLane& here, const StartStar& star, StartRows& y) {
    constexpr int halves = StartRows::halves, turns = StartRows::turns, block = FIRST / FitTiles::rows;
    constexpr bool last = FIRST + FitTiles::rows > StartShape::m;
    const bool exists = !last || FIRST + here.row < StartShape::m;
    const float* const row = star.factor.row(exists ? FIRST + here.row : FIRST) + turns * here.column;
    const auto two_from = [&](int sample) { return *reinterpret_cast<const Two*>(row + sample); };
    double sums[halves][2] = {};
    XPKERN_UNROLL
    for (int before = 0; before < block; ++before) {
        const Two factor = two_from(before * FitTiles::rows);
        const double right[turns] = {convert<double>(factor.number[0]), convert<double>(factor.number[1])};
        multiply_row_of_tiles<turns>([&](int e) { return y.number[before][e]; }, right, sums[0], sums[1]);
    }
    const bool given = !last || here.column == 0;
    const float* const column = star.column.number[FIRST + (given ? turns * here.column : 0)] + here.row;
    double left[halves][turns];
    XPKERN_UNROLL
    for (int h = 0; h < halves; ++h) {
        XPKERN_UNROLL
        for (int e = 0; e < turns; ++e)
            left[h][e] = convert<double>(column[e * StartShape::apart + h * FitTiles::rows]) - sums[h][e];
    }
    if constexpr (last) {
        static_assert(StartRows::rest == turns, "one lane's samples");
        const LastTriangle triangle = {convert<double>(star.factor.row(FIRST)[FIRST]),
                                       convert<double>(star.factor.row(FIRST + 1)[FIRST]),
                                       convert<double>(star.factor.row(FIRST + 1)[FIRST + 1])};
        XPKERN_UNROLL
        for (int h = 0; h < halves; ++h) {
            const Pair both = triangle.solve(left[h][0], left[h][1]);
            const double second = from_lane(both.at[1], here.lane - here.column);
            y.last[h] = here.column == 0 ? both.at[0] : here.column == 1 ? second : 0.0;
        }
    } else {
        // of the inverse square's upper rows the right half is not there
        const bool is_there = here.row >= PaddedFactor::together || turns * here.column < PaddedFactor::together;
        const Two inverse = is_there ? two_from(FIRST) : Two{};
        double found[halves][2] = {};
        XPKERN_UNROLL
        for (int e = 0; e < turns; ++e)
            multiply_two_tiles(left[0][e], left[1][e], convert<double>(inverse.number[e]), found[0], found[1]);
        XPKERN_UNROLL
        for (int e = 0; e < turns; ++e) {
            XPKERN_UNROLL
            for (int h = 0; h < halves; ++h) y.number[block][e].at[h] = found[h][e];
        }
        whiten_rows<FIRST + FitTiles::rows>(here, star, y);
    }
}

// Normal matrix and right-hand side: products of the rows and these, which are right tiles where they are.
__device__ __forceinline__ void multiply_start(const FitLane& here, const StartRows& y, StartStar& star) {
    constexpr int c = StartShape::c, halves = StartRows::halves, turns = StartRows::turns;
    double sums[halves][halves][2] = {};  // of halves of the columns, left and right, the right one not the further
    XPKERN_UNROLL
    for (int block = 0; block < StartRows::blocks; ++block) {
        const Pair(&of_block)[turns] = y.number[block];
        const double right[turns] = {of_block[0].at[0], of_block[1].at[0]};
        multiply_row_of_tiles<turns>([&](int e) { return of_block[e]; }, right, sums[0][0], sums[1][0]);
        XPKERN_UNROLL
        for (int e = 0; e < turns; ++e) multiply_tiles(of_block[e].at[1], of_block[e].at[1], sums[1][1]);
    }
    multiply_two_tiles(y.last[0], y.last[1], y.last[0], sums[0][0], sums[1][0]);
    multiply_tiles(y.last[1], y.last[1], sums[1][1]);
    XPKERN_UNROLL
    for (int row_half = 0; row_half < halves; ++row_half) {
        XPKERN_UNROLL
        for (int column_half = 0; column_half <= row_half; ++column_half) {
            const int i = row_half * FitTiles::rows + here.row;
            XPKERN_UNROLL
            for (int at = 0; at < 2; ++at) {
                const int j = column_half * FitTiles::rows + 2 * here.column + at;
                const auto sum = convert<float>(sums[row_half][column_half][at]);
                if (i < c && j <= i) star.system.normal[row_start(i) + j] = i == j ? with_ridge(sum) : sum;
                if (i == c && j < c) star.system.right[j] = sum;
            }
        }
    }
    __syncwarp();
}

// Core: reduce_start(). A lane has a row of the factor, one more lane the right-hand side.
__device__ __forceinline__ void reduce_by_warp(StartStar& star) {
    constexpr int c = StartShape::c, rest = c - 2;
    const int row = FitLane().lane;
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
    const int lane = FitLane().lane;
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
    for (int first = 0; first < USUAL_TYPES; first += LANES) {
        const int type = first + lane;
        bool similar = type < grid.n_types;
        XPKERN_UNROLL
        for (int i = 0; i < inputs; ++i) similar = similar && abs(rated.params[type * k + i] - u[i]) <= grid.apart[i];
        if (similar) rated.score[type] = infinity<float>();
    }
    __syncwarp();
    return least;
}

// By a warp weighed(row, i, variance) for each sample and found(row, choice, u) for each start of each star, u null
// where a star has no such start; for a star that is_wanted(row, factor) refuses, nothing. One star follows another as
// far apart as the grid has warps.
template <class Wanted, class Weighed, class Found>
__device__ __forceinline__ void over_starts(const GridView& grid_in_memory, const StarArrays& stars, int n, int starts,
                                            double gate, const Wanted& is_wanted, const Weighed& weighed,
                                            const Found& found) {
    constexpr int k = StartShape::k;
    StartBlock& block = *reinterpret_cast<StartBlock*>(dynamic_shared());
    StartStar& star = block.star[threadIdx.x / LANES];
    block.table.take(grid_in_memory);
    star.factor.clear_padding();
    __syncthreads();
    const GridView grid = block.table.view(grid_in_memory);
    const int warps = int(blockDim.x) / LANES, step = int(gridDim.x) * warps;
    int row = int(blockIdx.x) * warps + int(threadIdx.x) / LANES;
    if (row < n) star.take_soon(stars, row);
    const int end = n + place_among_neighbours();  // as often as those it waits for
    for (; row < end; row += step) {
        wait_for_neighbours();
        if (row >= n) continue;
        const double sigma = stars.sigma[row * k + k - 1];
        const auto mean = float(stars.mean[row * k + k - 1]), weight = float(1.0 / (sigma * sigma));
        wait_for_copies();
        __syncwarp();
        const bool wanted = is_wanted(row, star.factor);
        if (wanted) {
            star.factor.variance_by_warp(star.variance, [&](int i, float variance) { weighed(row, i, variance); });
            fill_columns(block.table, grid, star);
            invert_start_squares(star);
            const FitLane here;
            StartRows y;
            whiten_rows(here, star, y);
            multiply_start(here, y, star);
        }
        __syncwarp();  // no lane still reads the whitener
        if (row + step < n) star.take_soon(stars, row + step);
        if (!wanted) continue;
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
