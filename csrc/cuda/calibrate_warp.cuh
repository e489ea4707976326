// Calibration of a star by a warp, for spectra of the archive's size: all of a star stands in shared memory.
//
// A Sigma A^T is multiplied out as it is written, by tiles of 8 by 8 (tensor cores): (A diag(e)) rho, rho in single
// precision as it was stored, then that times (A diag(e))^T. A lane's two elements of a tile of the first product are
// neighbours in a row; taken as elements of two steps of the second product, whose columns are then counted in another
// order, they need not change places. The factor has a row a lane, inverses a column a lane. The formulas are those of
// core/calibrate.hpp and core/lane_matrix.hpp; here is who computes what.
#pragma once

#include "core/calibrate.hpp"
#include "warps.cuh"

// A loop that is unrolled no further than by COUNT: all of a star's instructions must fit into their cache.
#if defined(__CUDACC__)
#define XPKERN_PRAGMA(TEXT) _Pragma(#TEXT)
#define XPKERN_UNROLL_BY(COUNT) XPKERN_PRAGMA(unroll COUNT)
#else
#define XPKERN_UNROLL_BY(COUNT)
#endif

XPKERN_NAMESPACE_BEGIN

constexpr int MOST_SPECTRA = 8;  // of a block: as many as fit into an H100's shared memory

// Spectra that a warp has room for.
struct UsualSpectrum {
    static constexpr int coefficients = 55, pairs = coefficients * (coefficients - 1) / 2;
    static constexpr int xp_samples = 61, samples = 66, bands = samples - xp_samples;
    static constexpr int tile = 8, column_tiles = (coefficients + tile - 1) / tile, columns = column_tiles * tile;
    static constexpr int bp_tiles = 4, rp_tiles = 5, design_rows = 64;
    static constexpr int block = 35;  // most samples of a block of C_b
    static constexpr int block_strips = (block + LANES - 1) / LANES;
    static constexpr int strips = (xp_samples + LANES - 1) / LANES;  // a lane's samples: lane, lane + LANES, ...

    static XPKERN_INLINE bool holds(const CalibrationView& view) {
        return view.bp.rows > 0 && view.rp.rows > 0 && view.bp.coefficients == coefficients &&
               view.rp.coefficients == coefficients && view.samples == samples && view.xp_samples == xp_samples &&
               view.bp.rows <= bp_tiles * tile && view.rp.rows <= rp_tiles * tile &&
               view.bp.rows + view.rp.rows <= design_rows && view.leading_end <= block &&
               view.xp_samples - view.leading_end <= block;
    }
};

// Neighbours that are loaded together.
struct alignas(16) Pair {
    double at[2];
};

// Rows of A, those of BP and then those of RP, padded by zeros: as far apart as lets the 4 columns of 8 rows be read
// without two of them meeting in a bank.
struct alignas(16) SharedDesign {
    static constexpr int stride = UsualSpectrum::columns + 4;
    double number[UsualSpectrum::design_rows * stride];
};

// What is needed until C_b stands.
struct alignas(16) SharedSide {
    double coefficients[UsualSpectrum::columns], error[UsualSpectrum::columns];  // padded by zeros
    double flux[UsualSpectrum::rp_tiles * UsualSpectrum::tile];
    float correlation[row_start(UsualSpectrum::columns)];  // strict triangle, padded by zeros
};
// And after that: columns of inverses, LANES apart, or of a rank-one update.
struct alignas(16) SharedColumns {
    double number[UsualSpectrum::block * LANES];
};

struct alignas(16) SharedSpectrum {
    double triangle[row_start(UsualSpectrum::xp_samples)];
    double flux[UsualSpectrum::samples], present[UsualSpectrum::samples], band_reciprocal[UsualSpectrum::bands];
    union {
        SharedSide side;
        SharedColumns columns;
    };
};

// A block's shared memory: the design, then a spectrum a warp.
#if !defined(XPKERN_SHARED_MEMORY)
#define XPKERN_SHARED_MEMORY(NAME) extern __shared__ xpkern::XPKERN_ISA::Pair NAME[]
#endif
__device__ __forceinline__ SharedDesign& shared_design() {
    XPKERN_SHARED_MEMORY(memory);
    return *reinterpret_cast<SharedDesign*>(memory);
}
__device__ __forceinline__ SharedSpectrum& spectrum_of_warp() {
    XPKERN_SHARED_MEMORY(memory);
    return reinterpret_cast<SharedSpectrum*>(memory + sizeof(SharedDesign) / sizeof(Pair))[threadIdx.x / LANES];
}

__device__ __forceinline__ CalibrationScratch<double> scratch_of_warp() {
    SharedSpectrum& star = spectrum_of_warp();
    CalibrationScratch<double> scratch{};
    scratch.flux = star.flux;
    scratch.present = star.present;
    scratch.triangle = star.triangle;
    return scratch;
}

// By all threads of a block.
__device__ __forceinline__ void copy_design(const SideView& side, int first_row) {
    double* const out = shared_design().number + first_row * SharedDesign::stride;
    for (int at = int(threadIdx.x); at < side.rows * SharedDesign::stride; at += int(blockDim.x)) {
        const int i = at / SharedDesign::stride, k = at % SharedDesign::stride;
        out[at] = k < side.coefficients ? side.design[k * side.rows + i] : 0;
    }
}

// One side of a star, its numbers as they are stored. Returns the lane's share of their sum times 0, which is 0 or NaN.
__device__ __forceinline__ double load_side_by_warp(const CalibrationView& view, const SideRows& rows, int64_t row) {
    constexpr int n = UsualSpectrum::coefficients, pairs = UsualSpectrum::pairs;
    SharedSide& side = spectrum_of_warp().side;
    const Taken<n, LANES, double> coefficients(rows.coefficients + row * n);
    const Taken<n, LANES, float> error(rows.error + row * n);
    const Taken<pairs, LANES, float> correlation(rows.correlation + row * pairs);
    const double scale = view.unit_variance ? 1 / double(rows.standard_deviation[row]) : 1;
    double poison = 0;
    float poison_of_floats = 0;
    __syncwarp();  // no lane is still at the side before
    coefficients.hand_over([&](int at, double number) {
        side.coefficients[at] = number;
        poison = fma(number, 0.0, poison);
    });
    error.hand_over([&](int at, float number) {
        side.error[at] = double(number) * scale;
        poison = fma(side.error[at], 0.0, poison);
    });
    correlation.hand_over([&](int at, float number) {
        side.correlation[at] = number;
        poison_of_floats = fma(number, 0.0f, poison_of_floats);
    });
    for (int at = n + lane_in_warp(); at < UsualSpectrum::columns; at += LANES)
        side.coefficients[at] = side.error[at] = 0;
    for (int at = pairs + lane_in_warp(); at < row_start(UsualSpectrum::columns); at += LANES) side.correlation[at] = 0;
    __syncwarp();
    return poison + double(poison_of_floats);
}

__device__ __forceinline__ double correlation_of(const float* strict, int a, int b) {
    const int row = a > b ? a : b, column = a > b ? b : a;
    const double number = strict[row_start(row) - row + column];
    return row == column ? 1.0 : number;
}

// The core's add_side() for a warp; `design` is the side's first row in shared memory, TILES as many as hold its rows.
template <int TILES>
__device__ __forceinline__ void add_side_by_warp(const SideView& view, const double* design, double poison,
                                                 double fraction) {
    constexpr int tile = UsualSpectrum::tile, column_tiles = UsualSpectrum::column_tiles;
    SharedSpectrum& star = spectrum_of_warp();
    SharedSide& side = star.side;
    const int row = lane_in_warp() / 4, pair = lane_in_warp() % 4 * 2;
    const auto pair_at = [&](const double* numbers, int column) {
        return *reinterpret_cast<const Pair*>(numbers + column + pair);
    };
    const double* design_row[TILES];  // beyond the last sample that one's again
    XPKERN_UNROLL
    for (int s = 0; s < TILES; ++s) {
        const int i = s * tile + row;
        design_row[s] = design + (i < view.rows ? i : view.rows - 1) * SharedDesign::stride;
    }

    double product[TILES][column_tiles][2] = {}, flux[TILES] = {};
    XPKERN_UNROLL_BY(1)
    for (int k = 0; k < column_tiles * tile; k += tile) {
        const Pair coefficients = pair_at(side.coefficients, k), error = pair_at(side.error, k);
        double left[TILES][2];
        XPKERN_UNROLL
        for (int s = 0; s < TILES; ++s) {
            const Pair element = pair_at(design_row[s], k);
            XPKERN_UNROLL
            for (int h = 0; h < 2; ++h) {
                flux[s] = fma(element.at[h], coefficients.at[h], flux[s]);
                left[s][h] = element.at[h] * error.at[h];
            }
        }
        XPKERN_UNROLL
        for (int n = 0; n < column_tiles; ++n) {
            XPKERN_UNROLL
            for (int h = 0; h < 2; ++h) {
                const double right = correlation_of(side.correlation, k + pair + h, n * tile + row);
                multiply_column<TILES>(
                    0, [&](int s) { return left[s][h]; }, right, [&](int s) -> double (&)[2] { return product[s][n]; });
            }
        }
    }
    XPKERN_UNROLL
    for (int s = 0; s < TILES; ++s) {
        flux[s] += from_lane(flux[s], lane_in_warp() ^ 1);
        flux[s] += from_lane(flux[s], lane_in_warp() ^ 2);
        if (pair == 0) side.flux[s * tile + row] = flux[s];
        poison = fma(flux[s], 0.0, poison);
    }
    const bool present = sum_over_lanes(poison) == 0;
    __syncwarp();

    const double variance = fraction * fraction;
    XPKERN_UNROLL
    for (int t = 0; t < TILES; ++t) {
        double sum[TILES][2] = {};
        XPKERN_UNROLL
        for (int n = 0; n < column_tiles; ++n) {
            const Pair element = pair_at(design_row[t], n * tile), error = pair_at(side.error, n * tile);
            XPKERN_UNROLL
            for (int h = 0; h < 2; ++h) {
                const double right = element.at[h] * error.at[h];
                multiply_column<TILES>(
                    t, [&](int s) { return product[s][n][h]; }, right, [&](int s) -> double (&)[2] { return sum[s]; });
            }
        }
        XPKERN_UNROLL
        for (int s = t; s < TILES; ++s) {
            const int i = s * tile + row;
            XPKERN_UNROLL
            for (int h = 0; h < 2; ++h) {
                const int j = t * tile + pair + h;
                if (i >= view.rows || j > i) continue;
                double& element = star.triangle[row_start(view.first_sample + i) + view.first_sample + j];
                element += fma(variance * flux[s], side.flux[j], sum[s][h]);
            }
        }
    }
    for (int i = lane_in_warp(); i < view.rows; i += LANES) {
        star.flux[view.first_sample + i] += side.flux[i];
        star.present[view.first_sample + i] *= present ? 1 : 0;
    }
    __syncwarp();
}

template <int TILES>
__device__ __forceinline__ void take_side_by_warp(const CalibrationView& view, const SideView& side,
                                                  const SideRows& rows, int first_row, double fraction, int64_t row) {
    if (side.rows == 0) return;
    SharedSpectrum& star = spectrum_of_warp();
    if (rows.exists[row]) {
        const double poison = load_side_by_warp(view, rows, row);
        add_side_by_warp<TILES>(side, shared_design().number + first_row * SharedDesign::stride, poison, fraction);
    } else {
        for (int i = lane_in_warp(); i < side.rows; i += LANES) star.present[side.first_sample + i] = 0;
        __syncwarp();
    }
}

// COLUMNS columns of cholesky() from column j on. A lane has rows begin + lane, and LANES further; those of the columns
// themselves are in STRIP, and what is before it is done.
template <int COLUMNS, int STRIP>
__device__ __forceinline__ void factor_columns_by_warp(double* triangle, int first, int begin, int end, int j) {
    constexpr int strips = UsualSpectrum::block_strips - STRIP;
    const int top = begin + STRIP * LANES, lane = lane_in_warp();
    double sum[strips][COLUMNS];
    const double* row[strips];
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {  // lanes that have no row of the strip compute what nobody asks for
        const int i = top + s * LANES + lane;
        row[s] = triangle + row_start(i < j ? j : (i < end ? i : end - 1));
    }
    cholesky_sums(row, triangle, first, j, sum);
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
        const double reciprocal = rsqrt(from_lane(sum[0][c], j + c - top));
        XPKERN_UNROLL
        for (int s = 0; s < strips; ++s) sum[s][c] *= reciprocal;
        XPKERN_UNROLL
        for (int next = c + 1; next < COLUMNS; ++next) {
            const double pivot = from_lane(sum[0][c], j + next - top);
            XPKERN_UNROLL
            for (int s = 0; s < strips; ++s) sum[s][next] = fma(-sum[s][c], pivot, sum[s][next]);
        }
        sum[0][c] = top + lane == j + c ? reciprocal : sum[0][c];
    }
    __syncwarp();
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const int i = top + s * LANES + lane;
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c)
            if (i >= j + c && i < end) triangle[row_start(i) + j + c] = sum[s][c];
    }
    __syncwarp();
}

template <int STRIP>
__device__ __forceinline__ void factor_strip_by_warp(double* triangle, int first, int begin, int end) {
    constexpr int COLUMNS = 4;
    static_assert(LANES % COLUMNS == 0, "columns that are found together have their rows in one strip");
    int j = begin + STRIP * LANES;
    const int last = j + LANES < end ? j + LANES : end;
    for (; j + COLUMNS <= last; j += COLUMNS) factor_columns_by_warp<COLUMNS, STRIP>(triangle, first, begin, end, j);
    for (; j < last; ++j) factor_columns_by_warp<1, STRIP>(triangle, first, begin, end, j);
    if constexpr (STRIP + 1 < UsualSpectrum::block_strips) factor_strip_by_warp<STRIP + 1>(triangle, first, begin, end);
}

// The core's cholesky() for a warp.
__device__ __forceinline__ void cholesky_by_warp(int begin, int end, int first) {
    double* const triangle = spectrum_of_warp().triangle;
    XPKERN_UNROLL_BY(1)
    for (int j = first; j < begin; ++j) {
        for (int i = begin + lane_in_warp(); i < end; i += LANES) cholesky_block<1, 1>(triangle, first, i, j);
    }
    __syncwarp();
    factor_strip_by_warp<0>(triangle, first, begin, end);
}

// The core's inverse_norm() and, as `link`, link_norm() of a block for a warp: a lane has a column.
struct BlockNorms {
    InverseNorm<double> inverse;
    double link;
};
__device__ __forceinline__ BlockNorms block_norms_by_warp(int begin, int end, int first, int tail) {
    SharedSpectrum& star = spectrum_of_warp();
    const Rows<double> y = rectangle(star.columns.number + lane_in_warp(), LANES);
    BlockNorms norms{};
    for (int at = first; at < end; at += LANES) {
        const int column = at + lane_in_warp(), top = at < begin ? begin : at;
        const bool linked = column < begin;
        const int of_link = linked ? column : 0;
        XPKERN_UNROLL_BY(4)
        for (int i = top; i < end; ++i) {
            const double link = star.triangle[row_start(i) + of_link], unit = i == column ? star.present[i] : 0;
            y[i - top][0] = linked ? link : unit;
        }
        solve_block<1>(star.triangle, top, end, y);
        double all = 0, of_tail = 0;
        XPKERN_UNROLL_BY(4)
        for (int i = top; i < end; ++i) {
            const double element = y[i - top][0];
            all = fma(element, element, all);
            of_tail += i >= tail ? element * element : 0;
        }
        norms.link += linked ? all : 0;
        norms.inverse.all += linked ? 0 : all;
        norms.inverse.tail += linked ? 0 : of_tail;
    }
    __syncwarp();
    return {{sum_over_lanes(norms.inverse.all), sum_over_lanes(norms.inverse.tail)}, sum_over_lanes(norms.link)};
}

// The core's rank_one_update() by u = common f for a warp: first z and t, a row a lane, then what they change.
__device__ __forceinline__ void add_common_error_by_warp(double common) {
    constexpr int x = UsualSpectrum::xp_samples, strips = UsualSpectrum::strips;
    if (common == 0) return;
    SharedSpectrum& star = spectrum_of_warp();
    double* const triangle = star.triangle;
    double* const work = star.columns.number;
    const int lane = lane_in_warp();
    double rest[strips], z[strips] = {}, before[strips] = {}, after[strips] = {}, total = 1;
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) rest[s] = lane + s * LANES < x ? common * star.flux[lane + s * LANES] : 0;
    XPKERN_UNROLL
    for (int strip = 0; strip < strips; ++strip) {
        XPKERN_UNROLL_BY(2)
        for (int r = 0; r < LANES && strip * LANES + r < x; ++r) {
            const int j = strip * LANES + r;
            const double of_column = from_lane(rest[strip], r) * triangle[row_start(j) + j];
            const double next = fma(of_column, of_column, total);
            if (lane == r) z[strip] = of_column, before[strip] = total, after[strip] = next;
            total = next;
            XPKERN_UNROLL
            for (int s = strip; s < strips; ++s) {
                const int i = lane + s * LANES, row = i < x ? i : x - 1;
                const double less = fma(-triangle[row_start(row) + (j < row ? j : row)], of_column, rest[s]);
                rest[s] = i > j ? less : rest[s];
            }
        }
    }
    __syncwarp();
    RankOne<double> state = {work, work + x, work + 2 * x, 1, 1, 1};
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const int j = lane + s * LANES;
        if (j >= x) continue;
        state.set_total(before[s]);
        state.finish_column(j, z[s], after[s], triangle[row_start(j) + j]);
    }
    __syncwarp();
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const int i = lane + s * LANES;
        if (i >= x) continue;
        double left = common * star.flux[i];
        for (int j = 0; j < i; ++j) state.change(triangle[row_start(i) + j], left, j);
    }
    __syncwarp();
}

// work(i) for the lane's XP samples.
template <class Work>
__device__ __forceinline__ void over_samples(const Work& work) {
    for (int i = lane_in_warp(); i < UsualSpectrum::xp_samples; i += LANES) work(i);
}

// What is going to be read of a star.
__device__ __forceinline__ void ask_for_star(const CalibrationRows& rows, int64_t row) {
    constexpr int n = UsualSpectrum::coefficients, pairs = UsualSpectrum::pairs, bands = UsualSpectrum::bands;
    const auto ask_for_side = [&](const SideRows& side) {
        ask_for<n>(side.coefficients + row * n);
        ask_for<n>(side.error + row * n);
        ask_for<pairs>(side.correlation + row * pairs);
    };
    ask_for_side(rows.bp);
    ask_for_side(rows.rp);
    ask_for<bands>(rows.band_flux + row * bands);
    ask_for<bands>(rows.band_error + row * bands);
}

__device__ __forceinline__ void calibrate_star_by_warp(const CalibrateArguments& a, int64_t row) {
    constexpr int x = UsualSpectrum::xp_samples, m = UsualSpectrum::samples, bands = UsualSpectrum::bands;
    const CalibrationView& view = a.view;
    SharedSpectrum& star = spectrum_of_warp();
    CalibrationScratch<double> scratch = scratch_of_warp();
    const int lane = lane_in_warp();
    __syncwarp();  // no lane is still at the star before
    for (int at = lane; at < row_start(x); at += LANES) star.triangle[at] = 0;
    over_samples([&](int i) {
        star.flux[i] = 0;
        star.present[i] = 1;
    });
    if (lane < bands) {
        const double flux = a.rows.band_flux[row * bands + lane], error = a.rows.band_error[row * bands + lane];
        const Band<double> band = band_of(flux, error, view.independent[x + lane]);
        star.flux[x + lane] = band.flux;
        star.present[x + lane] = band.present;
        star.band_reciprocal[lane] = band.reciprocal;
    }
    __syncwarp();
    take_side_by_warp<UsualSpectrum::bp_tiles>(view, view.bp, a.rows.bp, 0, view.bp_error, row);
    take_side_by_warp<UsualSpectrum::rp_tiles>(view, view.rp, a.rows.rp, view.bp.rows, view.rp_error, row);

    int missing = 0, unusual = 0;
    over_samples([&](int i) { missing += star.present[i] > 0 ? 0 : 1; });
    missing = sum_over_lanes(missing);
    if (missing > 0) over_samples([&](int i) { blank_sample(i, 1, scratch); });
    over_samples([&](int i) {
        add_independent_error(view, i, scratch);
        unusual += ordinary_sample(i, scratch) ? 0 : 1;
    });
    unusual = sum_over_lanes(unusual);
    __syncwarp();
    BlockNorms leading{}, trailing{};
    XPKERN_UNROLL_BY(1)
    for (int begin = 0; begin < x;) {
        const bool leads = begin == 0;
        const int end = leads ? view.leading_end : x, first = leads ? 0 : view.link;
        cholesky_by_warp(begin, end, first);
        (leads ? leading : trailing) = block_norms_by_warp(begin, end, first, leads ? view.link : x);
        begin = end;
    }
    add_common_error_by_warp(view.common);
    if (missing > 0) over_samples([&](int i) { blank_sample(i, 0, scratch); });
    __syncwarp();

    int present = 0;
    for (int i = lane; i < m; i += LANES) {
        a.rows.flux[row * m + i] = static_cast<float>(star.flux[i]);
        present += star.present[i] > 0 ? 1 : 0;
    }
    float* const whitener = a.rows.whitener + row * row_start(m);
    for (int at = lane; at < row_start(x); at += LANES) whitener[at] = static_cast<float>(star.triangle[at]);
    XPKERN_UNROLL_BY(1)
    for (int band = 0; band < bands; ++band) {
        for (int j = lane; j <= x + band; j += LANES)
            whitener[row_start(x + band) + j] = j < x + band ? 0.0f : static_cast<float>(star.band_reciprocal[band]);
    }
    present = sum_over_lanes(present);
    if (lane == 0) {
        a.unfinished[row] = unusual > 0 || !above_floor(view, leading.inverse, trailing.inverse, trailing.link);
        a.rows.status[row] = present > 0 ? 0u : uint32_t(NO_DATA);
    }
}

// A warp for each star. Blocks are of whole warps, with as much shared memory as the design and a spectrum a warp take.
__device__ __forceinline__ void calibrate_by_warp(const CalibrateArguments& a) {
    copy_design(a.view.bp, 0);
    copy_design(a.view.rp, a.view.bp.rows);
    __syncthreads();
    const int64_t warps = blockDim.x / LANES, step = int64_t(gridDim.x) * warps;
    for (int64_t row = int64_t(blockIdx.x) * warps + threadIdx.x / LANES; row < a.n; row += step) {
        if (row + step < a.n) ask_for_star(a.rows, row + step);
        calibrate_star_by_warp(a, row);
    }
}

XPKERN_NAMESPACE_END
