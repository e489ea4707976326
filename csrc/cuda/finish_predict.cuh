// Fluxes by a warp without slopes, for models of the usual shape: a lane has a neuron of each layer and every 32nd
// sample.
#pragma once

#include "fit_memory.cuh"

XPKERN_NAMESPACE_BEGIN

// A network in shared memory, its parameters one behind the other.
struct NetworkInShared {
    template <int LAYER>
    static constexpr int start = layer_start(LAYER);
    double number[layer_start(UsualShape::layers()) + UsualShape::samples()];

    // What the weights of one input lead to, (n_out,); after the last input's, the biases.
    template <int LAYER>
    XPKERN_INLINE const double* row(int in) const {
        return number + start<LAYER> + in * UsualShape::width(LAYER + 1);
    }
    XPKERN_INLINE const double* ext_curve() const { return number + start<UsualShape::layers()>; }

    // By all threads of the block; a barrier follows.
    template <int LAYER = 0>
    __device__ __forceinline__ void take(const NetworkView<double>& network) {
        if constexpr (LAYER < UsualShape::layers()) {
            constexpr int n_out = UsualShape::width(LAYER + 1), weights = UsualShape::width(LAYER) * n_out;
            take_numbers<start<LAYER>, weights>(network.weights[LAYER]);
            take_numbers<start<LAYER> + weights, n_out>(network.biases[LAYER]);
            take<LAYER + 1>(network);
        } else {
            take_numbers<start<LAYER>, UsualShape::samples()>(network.ext_curve);
        }
    }

  private:
    template <int FIRST, int COUNT>
    __device__ __forceinline__ void take_numbers(const double* from) {
        for (int at = int(threadIdx.x); at < COUNT; at += int(blockDim.x)) number[FIRST + at] = from[at];
    }
};

// A layer's values before the tanh of a lane's OUTPUTS outputs, LANES apart; beyond the last one that one's again.
template <int LAYER, int OUTPUTS>
__device__ __forceinline__ void multiply_nodes(const NetworkInShared& network, const double* before,
                                               double (&value)[OUTPUTS]) {
    constexpr int n_in = UsualShape::width(LAYER), n_out = UsualShape::width(LAYER + 1);
    int column[OUTPUTS];
    XPKERN_UNROLL
    for (int s = 0; s < OUTPUTS; ++s) {
        const int j = lane_in_warp() + s * LANES;
        column[s] = j < n_out ? j : n_out - 1;
        value[s] = network.row<LAYER>(n_in)[column[s]];
    }
    XPKERN_UNROLL_FOUR
    for (int i = 0; i < n_in; ++i) {
        const double* const row = network.row<LAYER>(i);
        const double x = before[i];
        XPKERN_UNROLL
        for (int s = 0; s < OUTPUTS; ++s) value[s] = fma(row[column[s]], x, value[s]);
    }
}

template <int LAYER>
__device__ __forceinline__ void go_on(const NetworkInShared& network, double (&nodes)[2][LANES],
                                      double (&ln_flux)[FitShape::strips]) {
    if constexpr (LAYER == FitShape::last) {
        multiply_nodes<LAYER>(network, nodes[LAYER % 2], ln_flux);
    } else {
        double value[1];
        multiply_nodes<LAYER>(network, nodes[LAYER % 2], value);
        const double h = tanh(value[0]);
        nodes[(LAYER + 1) % 2][lane_in_warp()] = h;
        __syncwarp();
        go_on<LAYER + 1>(network, nodes, ln_flux);
    }
}

// A lane's fluxes at u, 0 beyond the last sample. nodes: what lanes show one another.
__device__ __forceinline__ void predict_fluxes(const ModelView& model, const NetworkInShared& network, const double* u,
                                               double (&nodes)[2][LANES], double (&flux)[FitShape::strips]) {
    constexpr int inputs = FitShape::n_inputs;
    const NetworkView<double>& view = model.in_double;
    const int lane = lane_in_warp();
    double ln_flux[FitShape::strips], scaled[inputs], value[1] = {network.row<0>(inputs)[lane]};
    XPKERN_UNROLL
    for (int t = 0; t < inputs; ++t) scaled[t] = (u[t] - view.zero_point[t]) * view.inverse_scale[t];
    XPKERN_UNROLL
    for (int t = 0; t < inputs; ++t) value[0] = fma(network.row<0>(t)[lane], scaled[t], value[0]);
    const double h = tanh(value[0]);
    __syncwarp();  // no lane is at what stood here before
    nodes[1][lane] = h;
    __syncwarp();
    go_on<1>(network, nodes, ln_flux);
    const double twice_ln_plx = u[inputs + 1] + u[inputs + 1];
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) {
        const int i = lane + s * LANES;
        const bool exists = i < FitShape::n_samples;
        const double found =
            exp(fma(-u[inputs], network.ext_curve()[exists ? i : FitShape::n_samples - 1], ln_flux[s] + twice_ln_plx));
        flux[s] = exists ? found : 0.0;
    }
}

XPKERN_NAMESPACE_END
