// Whitening a star's columns by a warp, on the tensor cores.
//
// The triangle is solved by strips of 32 rows. The inverse of each strip's own triangle is found once for a star, by
// blocks of 8 by 8, so that whitening is products of tiles: 88 of 8 by 4 by 8, whose terms wait for nothing, for up to
// eight columns. In double the inverse serves for the residual, too.
#pragma once

#include "fit_memory.cuh"

XPKERN_NAMESPACE_BEGIN

// The inverses of the strips' own triangles, which are given packed, one behind the other. A missing sample's row and
// column are 0 in both.
struct TriangleInversion {
    static constexpr int blocks = LANES / FitTiles::rows, count = FitShape::whole_strips;
    const FitLane& here;
    const float* packed;
    TriangleTiles (&inverse)[count];

    // The blocks of 8 by 8 on the diagonals: a column a lane, of each strip.
    __device__ __forceinline__ void invert_diagonal() const {
        constexpr int rows = FitTiles::rows;
        const int block = here.lane / rows, j = here.lane % rows, first = rows * block;
        double column[count][rows];
        XPKERN_UNROLL
        for (int i = 0; i < rows; ++i) {
            XPKERN_UNROLL
            for (int s = 0; s < count; ++s) {
                const float* const row =
                    packed + s * row_start(LANES) + row_start(first) + first * (i + 1) + row_start(i);
                double left = i == j ? 1.0 : 0.0;
                XPKERN_UNROLL
                for (int l = 0; l < i; ++l) left = fma(-convert<double>(row[l]), column[s][l], left);
                column[s][i] = left * convert<double>(row[i]);
            }
        }
        XPKERN_UNROLL
        for (int s = 0; s < count; ++s) {
            XPKERN_UNROLL
            for (int i = 0; i < rows; ++i)
                inverse[s].of_block(block, block, j / FitTiles::columns,
                                    i * FitTiles::columns + j % FitTiles::columns) = column[s][i];
        }
        __syncwarp();
    }

    // What a lane has of a sum, the two numbers from (row, 2 * column) on, to block (i, j).
    __device__ __forceinline__ void store(int s, int i, int j, const double (&sum)[2]) const {
        const int further = here.column / 2, place = here.row * FitTiles::columns + here.column % 2 * 2;
        inverse[s].of_block(i, j, further, place) = sum[0];
        inverse[s].of_block(i, j, further, place + 1) = sum[1];
    }

    // The i-th row of blocks, of which those above are there: X_ij = -X_ii sum_k T_ik X_kj.
    template <int I>
    __device__ __forceinline__ void invert_row() const {
        constexpr int tiles = 2;  // of a block
        XPKERN_UNROLL
        for (int s = 0; s < count; ++s) {
            double left[tiles * I];
            const float* const row = packed + s * row_start(LANES) + row_start(I * FitTiles::rows + here.row);
            XPKERN_UNROLL
            for (int k = 0; k < tiles * I; ++k) left[k] = convert<double>(row[k * FitTiles::columns + here.column]);
            XPKERN_UNROLL
            for (int j = 0; j < I; ++j) {
                double sum[2] = {};
                XPKERN_UNROLL
                for (int k = tiles * j; k < tiles * I; ++k) multiply_tiles(left[k], inverse[s].turned(here, j, k), sum);
                store(s, I, j, sum);
            }
        }
        __syncwarp();
        double sums[count][I][2] = {};
        XPKERN_UNROLL
        for (int s = 0; s < count; ++s) {
            XPKERN_UNROLL
            for (int h = 0; h < tiles; ++h) {
                const double left = -inverse[s].of_block(I, I, h, here.lane);
                XPKERN_UNROLL
                for (int j = 0; j < I; ++j) multiply_tiles(left, inverse[s].turned(here, j, tiles * I + h), sums[s][j]);
            }
        }
        __syncwarp();
        XPKERN_UNROLL
        for (int s = 0; s < count; ++s) {
            XPKERN_UNROLL
            for (int j = 0; j < I; ++j) store(s, I, j, sums[s][j]);
        }
        __syncwarp();
    }

    __device__ __forceinline__ void invert() const {
        static_assert(blocks == 4);
        invert_diagonal();
        invert_row<1>();
        invert_row<2>();
        invert_row<3>();
    }
};

// What is read of a star is then near when it is gathered.
__device__ __forceinline__ void ask_for_fit_star(const StarArrays& stars, int64_t row) {
    constexpr int m = FitShape::n_samples, k = FitShape::coordinates;
    ask_for<row_start(m)>(stars.whitener + row * row_start(m));
    ask_for<m>(stars.flux + row * m);
    if (lane_in_warp() < 2) expect((lane_in_warp() == 0 ? stars.mean : stars.sigma) + row * k);
}

// The triangle from row and column FIRST on of a packed one, to be packed itself; `to` and `from` are the lane's first
// numbers of both.
template <int FIRST, int ROW = 0>
__device__ __forceinline__ void copy_triangle_soon(float* to, const float* from) {
    if constexpr (ROW < LANES) {
        if (lane_in_warp() <= ROW) copy_soon<4, row_start(ROW), row_start(FIRST + ROW) + FIRST>(to, from);
        copy_triangle_soon<FIRST, ROW + 1>(to, from);
    }
}

// A star's arrays from memory to the warp's place.
__device__ __forceinline__ FitStar& gather_fit_star(const StarArrays& stars, int64_t row) {
    FitStar& star = fit_star();
    constexpr int m = FitShape::n_samples, k = FitShape::coordinates, first_rest = FitShape::whole_strips * LANES;
    const float* const packed = stars.whitener + row * row_start(m);
    float* const staged = reinterpret_cast<float*>(star.columns.number);
    static_assert(FitShape::whole_strips * row_start(LANES) * sizeof(float) <= m * FitColumns::width * sizeof(double),
                  "what is staged is not in the rows that stay 0");
    const FitLane here;
    const int lane = here.lane;
    __syncwarp();  // no lane is still at the star before
    copy_by_lane_soon<m>(star.flux + lane, stars.flux + row * m + lane);
    copy_by_lane_soon<row_start(LANES)>(staged + lane, packed + lane);
    copy_triangle_soon<LANES>(staged + row_start(LANES) + lane, packed + lane);
    static_assert(FitShape::whole_strips == 2 && FitShape::rest == 2);
    copy_by_lane_soon<first_rest + 1>(star.last_rows[0] + lane, packed + row_start(first_rest) + lane);
    copy_by_lane_soon<first_rest + 2>(star.last_rows[1] + lane, packed + row_start(first_rest + 1) + lane);
    XPKERN_UNROLL
    for (int pair = 0; pair < FitTiles::pairs; ++pair) {
        const int i = LANES + pair / FitTiles::across * 2 * FitTiles::rows + here.row;
        const int j = pair % FitTiles::across * FitTiles::columns + here.column;
        star.below.pair[pair][lane] = {convert<double>(-packed[row_start(i) + j]),
                                       convert<double>(-packed[row_start(i + FitTiles::rows) + j])};
    }
    if (lane < k) {
        const double sigma = stars.sigma[row * k + lane];
        star.mean[lane] = stars.mean[row * k + lane];
        star.weight[lane] = 1.0 / (sigma * sigma);
    }
    static_assert((FitColumns::rows - m) * FitColumns::width <= LANES);
    if (lane < (FitColumns::rows - m) * FitColumns::width) star.columns.number[m * FitColumns::width + lane] = 0;
    wait_for_copies();
    __syncwarp();
    TriangleInversion{here, staged, star.inverse}.invert();
    return star;
}

// What a lane has of sums over a strip's columns: of each of its tiles two neighbours.
constexpr int STRIP_TILES = LANES / FitTiles::rows;
using StripSums = double[STRIP_TILES][2];

__device__ __forceinline__ Pair& pair_of_sums(const FitLane& here, FitColumns& columns, int tile) {
    return columns.pair_at(tile * FitTiles::rows, here.row, 2 * here.column);
}
// A strip's sums, the warp's, to its columns, which all lanes can then read.
template <int STRIP>
__device__ __forceinline__ void store_strip(const FitLane& here, FitColumns& columns, const StripSums& sums) {
    XPKERN_UNROLL
    for (int s = 0; s < STRIP_TILES; ++s)
        pair_of_sums(here, columns, STRIP * STRIP_TILES + s) = {sums[s][0], sums[s][1]};
    __syncwarp();
}
// A strip's columns as right tiles.
template <int STRIP>
__device__ __forceinline__ void load_strip(const FitLane& here, FitColumns& columns, double* right) {
    XPKERN_UNROLL
    for (int j = 0; j < FitTiles::across; ++j)
        right[j] = columns.at(STRIP * LANES + j * FitTiles::columns, here.column, here.row);
}

// sums += triangle right.
__device__ __forceinline__ void multiply_triangle(const FitLane& here, const TriangleTiles& triangle,
                                                  const double* right, StripSums& sums) {
    XPKERN_UNROLL
    for (int p = 0; p < TriangleTiles::pairs_down; ++p) {
        constexpr int at_once = 2;
        XPKERN_UNROLL
        for (int j = 0; j < TriangleTiles::whole(p); j += at_once)
            multiply_row_of_tiles<at_once>(
                [&](int more) { return triangle.both[TriangleTiles::before(p) + j + more][here.lane]; }, right + j,
                sums[2 * p], sums[2 * p + 1]);
        XPKERN_UNROLL
        for (int j = 0; j < TriangleTiles::alone; ++j)
            multiply_tiles(triangle.lower[TriangleTiles::alone * p + j][here.lane], right[TriangleTiles::whole(p) + j],
                           sums[2 * p + 1]);
    }
}

// sums += square right.
template <int PAIRS_DOWN, int PAIRS>
__device__ __forceinline__ void multiply_square(const FitLane& here, const SquareTiles<PAIRS>& square,
                                                const double* right, double (&sums)[2 * PAIRS_DOWN][2]) {
    static_assert(PAIRS_DOWN * FitTiles::across == PAIRS);
    constexpr int at_once = 4;
    XPKERN_UNROLL
    for (int j = 0; j < FitTiles::across; j += at_once) {
        XPKERN_UNROLL
        for (int p = 0; p < PAIRS_DOWN; ++p)
            multiply_row_of_tiles<at_once>(
                [&](int more) { return square.pair[p * FitTiles::across + j + more][here.lane]; }, right + j,
                sums[2 * p], sums[2 * p + 1]);
    }
}

// sum += G of the last rows, from a strip's first column on; below the last row what nobody asks for, as a load that is
// masked would be waited for before the next one.
template <int STRIP>
__device__ __forceinline__ void multiply_last_rows(const FitLane& here, const FitStar& star, const double* right,
                                                   double (&sum)[2]) {
    const float* const row = star.last_rows[here.row < FitShape::rest ? here.row : 0] + STRIP * LANES + here.column;
    XPKERN_UNROLL
    for (int j = 0; j < FitTiles::across; ++j)
        multiply_tiles(convert<double>(row[j * FitTiles::columns]), right[j], sum);
}

// The whitened columns, as right tiles.
struct Whitened {
    double right[FitShape::whole_strips * FitTiles::across + 1];
};

// Y = G^-1 of the columns, in their place, too. What it is given stands there for all lanes.
__device__ __forceinline__ void whiten_by_warp(const FitLane& here, FitStar& star, Whitened& y) {
    constexpr int across = FitTiles::across, first_rest = FitShape::whole_strips * LANES;
    FitColumns& columns = star.columns;
    const bool in_rest = here.row < FitShape::rest;
    double right[across];
    load_strip<0>(here, columns, right);
    StripSums upper = {};
    multiply_triangle(here, star.inverse[0], right, upper);
    __syncwarp();  // no lane still reads what was there
    store_strip<0>(here, columns, upper);
    load_strip<0>(here, columns, y.right);

    StripSums left;
    XPKERN_UNROLL
    for (int s = 0; s < STRIP_TILES; ++s) {
        const Pair two = pair_of_sums(here, columns, STRIP_TILES + s);
        left[s][0] = two.at[0], left[s][1] = two.at[1];
    }
    multiply_square<FitTiles::pairs_down>(here, star.below, y.right, left);
    store_strip<1>(here, columns, left);
    load_strip<1>(here, columns, right);
    StripSums lower = {};
    multiply_triangle(here, star.inverse[1], right, lower);
    __syncwarp();
    store_strip<1>(here, columns, lower);
    load_strip<1>(here, columns, y.right + across);

    double from_upper[2] = {}, from_lower[2] = {};
    multiply_last_rows<0>(here, star, y.right, from_upper);
    multiply_last_rows<1>(here, star, y.right + across, from_lower);
    Pair given{};
    if (in_rest) given = pair_of_sums(here, columns, first_rest / FitTiles::rows);
    const LastTriangle last = star.last_triangle();
    Pair solved;
    XPKERN_UNROLL
    for (int h = 0; h < 2; ++h) {
        const double mine = given.at[h] - (from_upper[h] + from_lower[h]);
        const Pair both = last.solve(from_lane(mine, here.column), from_lane(mine, FitTiles::columns + here.column));
        solved.at[h] = here.row == 0 ? both.at[0] : both.at[1];
    }
    if (in_rest) pair_of_sums(here, columns, first_rest / FitTiles::rows) = solved;
    __syncwarp();
    y.right[2 * across] = columns.at(first_rest, here.column, here.row);
}

// matrix^T v, of 32 numbers: a lane has one of v and gets one. Of a matrix of tiles it reads what it reads for products
// with columns, as for a single one the tensor cores would find seven more that nobody wants. Lanes show one another
// floats: this is for the Hessian.
class TurnedProduct {
  public:
    __device__ __forceinline__ explicit TurnedProduct(const FitLane& here) : here_(here), sums_{} {}

    // Adds a square's rows of pairs from `first` on, as many as v has.
    template <int PAIRS>
    __device__ __forceinline__ void add(const SquareTiles<PAIRS>& square, int first, float v) {
        XPKERN_UNROLL
        for (int p = 0; p < FitTiles::pairs_down; ++p)
            add_pairs<FitTiles::across>(square.pair + (first + p) * FitTiles::across, row_of(v, 2 * p),
                                        row_of(v, 2 * p + 1));
    }
    __device__ __forceinline__ void add(const TriangleTiles& triangle, float v) {
        add_rows<0>(triangle, v);
        add_rows<1>(triangle, v);
        static_assert(TriangleTiles::pairs_down == 2);
    }
    // A lane has sums over every eighth row, of every fourth column; halves of the lanes with the same columns exchange
    // what the other half goes on with, until a lane is left with its own column.
    __device__ __forceinline__ float sum() const {
        static_assert(FitTiles::across == LANES / FitTiles::columns);
        float sums[FitTiles::across];
        XPKERN_UNROLL
        for (int j = 0; j < FitTiles::across; ++j) sums[j] = convert<float>(sums_[j]);
        XPKERN_UNROLL
        for (int half = FitTiles::across / 2; half > 0; half /= 2) {
            const bool upper = (here_.row & half) > 0;
            XPKERN_UNROLL
            for (int j = 0; j < half; ++j) {
                const float kept = upper ? sums[j + half] : sums[j], given = upper ? sums[j] : sums[j + half];
                sums[j] = kept + from_lane(given, here_.lane ^ (half * FitTiles::columns));
            }
        }
        return sums[0];
    }

  private:
    const FitLane& here_;
    double sums_[FitTiles::across];

    __device__ __forceinline__ double row_of(float v, int tile) const {
        return convert<double>(from_lane(v, tile * FitTiles::rows + here_.row));
    }
    template <int COUNT>
    __device__ __forceinline__ void add_pairs(const TilePair* pairs, double upper, double lower) {
        XPKERN_UNROLL
        for (int j = 0; j < COUNT; ++j) {
            const Pair two = pairs[j][here_.lane];
            sums_[j] = fma(two.at[1], lower, fma(two.at[0], upper, sums_[j]));
        }
    }
    template <int P>
    __device__ __forceinline__ void add_rows(const TriangleTiles& triangle, float v) {
        constexpr int whole = TriangleTiles::whole(P);
        const double lower = row_of(v, 2 * P + 1);
        add_pairs<whole>(triangle.both + TriangleTiles::before(P), row_of(v, 2 * P), lower);
        XPKERN_UNROLL
        for (int j = 0; j < TriangleTiles::alone; ++j)
            sums_[whole + j] = fma(triangle.lower[TriangleTiles::alone * P + j][here_.lane], lower, sums_[whole + j]);
    }
};

// w = G^-T y of one of the whitened columns: a lane's samples.
__device__ __forceinline__ void unwhiten_by_warp(const FitLane& here, FitStar& star, int column,
                                                 float (&w)[FitShape::strips]) {
    constexpr int first_rest = FitShape::whole_strips * LANES;
    const int lane = here.lane;
    FitColumns& columns = star.columns;
    const Pair rest =
        star.last_triangle().solve_back(columns.at(first_rest, 0, column), columns.at(first_rest, 1, column));
    const float first = convert<float>(rest.at[0]), second = convert<float>(rest.at[1]);
    const auto without_rest = [&](int i, float number) {
        return fma(-star.last_rows[0][i], first, fma(-star.last_rows[1][i], second, number));
    };
    TurnedProduct lower(here), between(here), upper(here);
    lower.add(star.inverse[1], without_rest(LANES + lane, convert<float>(columns.at(LANES, lane, column))));
    w[1] = lower.sum();
    between.add(star.below, 0, w[1]);
    upper.add(star.inverse[0], without_rest(lane, convert<float>(columns.at(0, lane, column)) + between.sum()));
    w[0] = upper.sum();
    w[2] = lane < FitShape::rest ? (lane == 0 ? first : second) : 0.0f;
}

XPKERN_NAMESPACE_END
