// Shared memory of calibration by a warp: the design of a block, and the spectrum of each of its warps.
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
__device__ __forceinline__ SharedDesign& shared_design() {
    auto* const memory = reinterpret_cast<Pair*>(dynamic_shared());
    return *reinterpret_cast<SharedDesign*>(memory);
}
__device__ __forceinline__ SharedSpectrum& spectrum_of_warp() {
    auto* const memory = reinterpret_cast<Pair*>(dynamic_shared());
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

XPKERN_NAMESPACE_END
