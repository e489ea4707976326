// Fluxes of eight stars at a time by a warp, for models of the usual shape: a star is a column of what the tensor cores
// multiply, and a lane has of each tile of eight neurons or samples one, for two neighbouring stars.
#pragma once

#include "fit_warp.cuh"

XPKERN_NAMESPACE_BEGIN

// Of the rows from `first` on; those beyond the last one are predicted as it is, and not written.
__device__ __forceinline__ void predict_eight(const PredictArguments& a, int64_t first) {
    constexpr int inputs = FitShape::n_inputs, k = FitShape::coordinates, m = FitShape::n_samples, mine = 2;
    constexpr int tiles = FitShape::whole_strips * STRIP_TILES;
    static_assert(FitColumns::width == mine * FitTiles::columns, "a star a column");
    const FitLane here;
    const FitNetwork& network = fit_block().network;
    const NetworkView<double>& view = a.model.in_double;
    FitColumns& columns = fit_star().columns;
    double u[mine][k], twice_ln_plx[mine];
    StripSums sums;
    XPKERN_UNROLL
    for (int e = 0; e < mine; ++e) {
        const int64_t row = first + mine * here.column + e;
        load_params(a.params + (row < a.n ? row : a.n - 1) * k, k, u[e]);
        twice_ln_plx[e] = u[e][inputs + 1] + u[e][inputs + 1];
        XPKERN_UNROLL
        for (int s = 0; s < STRIP_TILES; ++s) {
            const int neuron = s * FitTiles::rows + here.row;
            sums[s][e] = network.bias[0][neuron];
            XPKERN_UNROLL
            for (int t = 0; t < inputs; ++t)
                sums[s][e] =
                    fma(network.first[t][neuron], (u[e][t] - view.zero_point[t]) * view.inverse_scale[t], sums[s][e]);
        }
    }
    double right[FitTiles::across];
    XPKERN_ROLLED
    for (int layer = 0; layer < FitShape::last; ++layer) {
        if (layer > 0) {
            XPKERN_UNROLL
            for (int s = 0; s < STRIP_TILES; ++s)
                sums[s][0] = sums[s][1] = network.bias[layer][s * FitTiles::rows + here.row];
            multiply_square<FitTiles::pairs_down>(here, network.between[layer - 1], right, sums);
        }
        __syncwarp();  // no lane still reads the layer before
        XPKERN_UNROLL
        for (int s = 0; s < STRIP_TILES; ++s) pair_of_sums(here, columns, s) = {tanh(sums[s][0]), tanh(sums[s][1])};
        __syncwarp();
        XPKERN_UNROLL
        for (int j = 0; j < FitTiles::across; ++j) right[j] = columns.at(j * FitTiles::columns, here.column, here.row);
    }
    const bool in_rest = here.row < FitShape::rest;
    const double* const weights = network.rest[in_rest ? here.row : 0] + here.column;
    double found[tiles][mine] = {}, rest[mine] = {};
    multiply_square<tiles / 2>(here, network.to_strips, right, found);
    XPKERN_UNROLL
    for (int j = 0; j < FitTiles::across; ++j) multiply_tiles(weights[j * FitTiles::columns], right[j], rest);
    const auto write = [&](int i, const double (&of_network)[mine]) {
        XPKERN_UNROLL
        for (int e = 0; e < mine; ++e) {
            const int64_t row = first + mine * here.column + e;
            const double ln_flux =
                fma(-u[e][inputs], network.ext_curve[i], of_network[e] + network.last_bias[i] + twice_ln_plx[e]);
            if (row < a.n) a.flux[row * m + i] = exp(ln_flux);
        }
    };
    XPKERN_UNROLL
    for (int s = 0; s < tiles; ++s) write(s * FitTiles::rows + here.row, found[s]);
    if (in_rest) write(tiles * FitTiles::rows + here.row, rest);
}

XPKERN_NAMESPACE_END
