// What a warp finds of a star's spectrum, for models of the usual shape: fluxes and their slopes, whitened; chi^2 and
// the products of those; the curvature of the fluxes.
//
// What is a sum of products, in the network, in the whitener and in the normal matrix, the tensor cores multiply, in
// double: slopes and value are columns of one matrix. Between these products a lane has a neuron of each hidden layer
// and every 32nd sample of a spectrum.
#pragma once

#include "fit_whiten.cuh"

XPKERN_NAMESPACE_BEGIN

// What a forward sweep leaves in a lane: of its neurons and of its samples.
struct FitTape {
    float hidden[FitShape::last], pre_tangent[FitShape::last][FitShape::n_inputs];
    float flux[FitShape::strips];
    float tangent[FitShape::strips][FitShape::n_inputs];  // d ln f / dTheta
};

// Slopes and value of a layer's neurons, those of two neighbouring layers in turn: (LANES, 4), where columns will be.
struct FitNodes {
    static constexpr int width = FitShape::n_inputs + 1;
    static_assert(width == 4, "half of a right tile's columns");
    double* number;

    __device__ __forceinline__ explicit FitNodes(FitColumns& columns, int layer)
        : number(columns.number + layer % 2 * LANES * width) {}
    __device__ __forceinline__ Pair& pair_at(int neuron, int half) const {
        return *reinterpret_cast<Pair*>(number + neuron * width + 2 * half);
    }
    // As right tiles, whose other columns are these again.
    __device__ __forceinline__ void load(const FitLane& here, double (&right)[FitTiles::across]) const {
        XPKERN_UNROLL
        for (int j = 0; j < FitTiles::across; ++j)
            right[j] = number[(j * FitTiles::columns + here.column) * width + here.row % width];
    }
};

// A hidden layer, given its value and slopes before the tanh; what comes of it all lanes can then read.
template <int LAYER>
__device__ __forceinline__ void bend_nodes(const FitLane& here, FitColumns& columns,
                                           const double (&slope)[FitShape::n_inputs], double value, FitTape& tape) {
    static_assert(FitShape::n_inputs == 3);
    const double h = tanh(value), bent = fma(-h, h, 1.0);
    tape.hidden[LAYER] = convert<float>(h);
    XPKERN_UNROLL
    for (int t = 0; t < FitShape::n_inputs; ++t) tape.pre_tangent[LAYER][t] = convert<float>(slope[t]);
    const FitNodes nodes(columns, LAYER + 1);
    nodes.pair_at(here.lane, 0) = {bent * slope[0], bent * slope[1]};
    nodes.pair_at(here.lane, 1) = {bent * slope[2], h};
    __syncwarp();
}

template <int LAYER>
__device__ __forceinline__ void go_forward(const FitLane& here, const FitNetwork& network, FitColumns& columns,
                                           FitTape& tape) {
    const FitNodes before(columns, LAYER), after(columns, LAYER + 1);
    double right[FitTiles::across];
    before.load(here, right);
    if constexpr (LAYER < FitShape::last) {
        StripSums sums = {};
        multiply_square<FitTiles::pairs_down>(here, network.between[LAYER - 1], right, sums);
        XPKERN_UNROLL
        for (int s = 0; s < STRIP_TILES; ++s)
            if (here.column < FitNodes::width / 2)
                after.pair_at(s * FitTiles::rows + here.row, here.column) = {sums[s][0], sums[s][1]};
        __syncwarp();
        const Pair first = after.pair_at(here.lane, 0), second = after.pair_at(here.lane, 1);
        const double slope[FitShape::n_inputs] = {first.at[0], first.at[1], second.at[0]};
        bend_nodes<LAYER>(here, columns, slope, second.at[1] + network.bias[LAYER][here.lane], tape);
        go_forward<LAYER + 1>(here, network, columns, tape);
    } else {
        constexpr int tiles = FitShape::whole_strips * STRIP_TILES;
        const bool in_rest = here.row < FitShape::rest;
        const double* const weights = network.rest[in_rest ? here.row : 0] + here.column;
        double sums[tiles][2] = {}, rest[2] = {};
        multiply_square<tiles / 2>(here, network.to_strips, right, sums);
        XPKERN_UNROLL
        for (int j = 0; j < FitTiles::across; ++j) multiply_tiles(weights[j * FitTiles::columns], right[j], rest);
        __syncwarp();  // no lane still reads the nodes
        if (here.column < FitNodes::width / 2) {
            XPKERN_UNROLL
            for (int s = 0; s < tiles; ++s) pair_of_sums(here, columns, s) = {sums[s][0], sums[s][1]};
            if (in_rest) pair_of_sums(here, columns, tiles) = {rest[0], rest[1]};
        }
        __syncwarp();
    }
}

// Fluxes at u, the slopes of their logarithms, and the columns that are to be whitened: slopes of the fluxes and the
// residual. Beyond the last sample there are none.
__device__ __forceinline__ void predict_by_warp(const FitLane& here, const ModelView& model, const double* u,
                                                FitStar& star, FitTape& tape) {
    constexpr int inputs = FitShape::n_inputs;
    const FitNetwork& network = fit_block().network;
    const NetworkView<double>& view = model.in_double;
    const int lane = here.lane;
    double value = network.bias[0][lane], slope[inputs];
    XPKERN_UNROLL
    for (int t = 0; t < inputs; ++t) {
        const double weight = network.first[t][lane];
        value = fma(weight, (u[t] - view.zero_point[t]) * view.inverse_scale[t], value);
        slope[t] = weight * view.inverse_scale[t];
    }
    __syncwarp();  // no lane is at what stood here before
    bend_nodes<0>(here, star.columns, slope, value, tape);
    go_forward<1>(here, network, star.columns, tape);
    const double twice_ln_plx = u[inputs + 1] + u[inputs + 1];
    // all that is read, then all exponentials, then all that is written: each of them side by side
    struct Sample {
        Pair first, second;
        double curve, observed, ln_flux, flux;
    };
    Sample samples[FitShape::strips];
    const auto exists = [&](int s) { return s < FitShape::whole_strips || lane < FitShape::rest; };
    const auto pair_at = [&](int s, int column) -> Pair& {
        return star.columns.pair_at(s * LANES, exists(s) ? lane : 0, column);
    };
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) {
        const int i = s * LANES + (exists(s) ? lane : 0);
        const Pair second = pair_at(s, 2);
        const double curve = network.ext_curve[i];
        const double ln_flux = fma(-u[inputs], curve, second.at[1] + network.last_bias[i] + twice_ln_plx);
        samples[s] = {pair_at(s, 0), second, curve, convert<double>(star.flux[i]), ln_flux, 0};
    }
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) samples[s].flux = exp(samples[s].ln_flux);
    __syncwarp();
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) {
        const Sample& sample = samples[s];
        const double flux = sample.flux, slope[inputs] = {sample.first.at[0], sample.first.at[1], sample.second.at[0]};
        tape.flux[s] = exists(s) ? convert<float>(flux) : 0.0f;
        XPKERN_UNROLL
        for (int t = 0; t < inputs; ++t) tape.tangent[s][t] = convert<float>(slope[t]);
        if (!exists(s)) continue;
        const double difference = flux - sample.observed;
        pair_at(s, 0) = {flux * slope[0], flux * slope[1]};
        pair_at(s, 2) = {flux * slope[2], flux * -sample.curve};
        pair_at(s, 4) = {flux + flux, difference};
        star.difference[s * LANES + lane] = convert<float>(difference);
    }
    __syncwarp();
}

// The network's curvature from a layer down, the lane's neurons' part of it: core/network.hpp's bend_layer, but for the
// factor of -2. adjoint: of the layer's inputs, the lane's one.
template <int LAYER>
__device__ __forceinline__ void bend_layers(const FitLane& here, const FitNetwork& network, const FitTape& tape,
                                            float adjoint, float* bend) {
    const float h = tape.hidden[LAYER - 1], through = adjoint * fma(-h, h, 1.0f), bent = through * h;
    XPKERN_UNROLL
    for (int t = 0; t < FitShape::n_inputs; ++t) {
        const float once = bent * tape.pre_tangent[LAYER - 1][t];
        XPKERN_UNROLL
        for (int v = 0; v <= t; ++v)
            bend[row_start(t) + v] = fma(once, tape.pre_tangent[LAYER - 1][v], bend[row_start(t) + v]);
    }
    if constexpr (LAYER > 1) {
        TurnedProduct below(here);
        below.add(network.between[LAYER - 2], 0, through);
        bend_layers<LAYER - 1>(here, network, tape, below.sum(), bend);
    }
}

// 2 sum_i w_i d2 f_i / du du, the lane's element. The columns are whitened.
__device__ __forceinline__ float curvature_by_warp(const FitLane& here, const FitElement& element, FitStar& star,
                                                   const FitTape& tape) {
    constexpr int inputs = FitShape::n_inputs, bends = row_start(inputs), slopes = inputs + 1;
    constexpr int products = row_start(slopes);
    const FitNetwork& network = fit_block().network;
    FitColumns& columns = star.columns;
    const int lane = here.lane;
    float w[FitShape::strips];
    unwhiten_by_warp(here, star, FitShape::coordinates, w);
    // of the network's curvature, of the products of slopes, of the slopes, and of the weights alone
    float sums[bends + products + slopes + 1] = {};
    float *bend = sums, *product = bend + bends, *sum = product + products, *total = sum + slopes;
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) {
        const bool exists = s < FitShape::whole_strips || lane < FitShape::rest;
        const int row = exists ? lane : 0, i = s * LANES + row;
        const float weight = w[s] *= tape.flux[s];
        float slope[slopes];
        XPKERN_UNROLL
        for (int t = 0; t < inputs; ++t) slope[t] = tape.tangent[s][t];
        slope[inputs] = convert<float>(-network.ext_curve[i]);
        *total += weight;
        XPKERN_UNROLL
        for (int a = 0; a < slopes; ++a) {
            const float weighted = weight * slope[a];
            sum[a] += weighted;
            XPKERN_UNROLL
            for (int b = 0; b <= a; ++b) product[row_start(a) + b] = fma(weighted, slope[b], product[row_start(a) + b]);
        }
    }
    TurnedProduct back(here);
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::whole_strips; ++s) back.add(network.to_strips, s * FitTiles::pairs_down, w[s]);
    float adjoint = back.sum();
    XPKERN_UNROLL
    for (int r = 0; r < FitShape::rest; ++r)
        adjoint = fma(convert<float>(network.rest[r][lane]), from_lane(w[FitShape::whole_strips], r), adjoint);
    bend_layers<FitShape::last>(here, network, tape, adjoint, bend);
    const auto memory = reinterpret_cast<float*>(columns.number);
    sum_in_memory(lane, sums, memory);
    // the sums of slopes and of weights lie where the triangle's last row is: its slope is the 2 of 2 ln plx
    if (element.of_gradient()) return 0;
    const float factor = element.row < slopes ? 2.0f : element.column < slopes ? 4.0f : 8.0f;
    const float of_network = element.row < inputs ? -4.0f * memory[element.at] : 0.0f;
    return fma(factor, memory[bends + element.at], of_network);
}

// Y^T Y of the whitened columns, which are right tiles and, turned, left ones: chi^2, and all of it to star.normal.
__device__ __forceinline__ double multiply_normal(const FitLane& here, FitStar& star, const Whitened& y) {
    constexpr int tiles = int(sizeof(y.right) / sizeof(double)), residual = FitShape::coordinates;
    double sums[2][2] = {};  // two, as each product waits for the one before
    XPKERN_UNROLL
    for (int j = 0; j < tiles; ++j) multiply_tiles(y.right[j], y.right[j], sums[j % 2]);
    double mine[2];
    XPKERN_UNROLL
    for (int h = 0; h < 2; ++h) {
        mine[h] = sums[0][h] + sums[1][h];
        star.normal[2 * here.lane + h] = convert<float>(mine[h]);
    }
    __syncwarp();
    return from_lane(mine[residual % 2], residual * FitTiles::columns + residual / 2);
}

// work(row) by a warp for each star, as far apart as the grid has warps. The network is the block's.
template <class Work>
__device__ __forceinline__ void over_stars_by_warps(const ModelView& model, const StarArrays& stars, int64_t n,
                                                    const Work& work) {
    fit_block().network.take(model.in_double);
    __syncthreads();
    const int64_t of_block = blockDim.x / LANES, warps = int64_t(gridDim.x) * of_block;
    for (int64_t row = int64_t(blockIdx.x) * of_block + threadIdx.x / LANES; row < n; row += warps) {
        if (row + warps < n) ask_for_fit_star(stars, row + warps);
        work(row);
    }
}

XPKERN_NAMESPACE_END
