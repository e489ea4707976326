// The loss of a star by a warp, for models of the usual shape.
//
// A lane has a neuron of each hidden layer and every 32nd sample of a spectrum, with their slopes, in registers; what
// lanes read of one another stands in shared memory, as do the star's whitener and, once for all warps of a block, the
// network. Everything that is a number of the star (parameters, loss, matrices of its coordinates) every lane computes
// for itself, by the functions of the core: these ask a shape for an evaluation, and for FitShape they find those
// below.
#pragma once

#include "fit_whiten.cuh"

XPKERN_NAMESPACE_BEGIN

// What a forward sweep leaves in a lane: of its neurons and of its samples.
template <class Wide>
struct FitTape {
    float hidden[FitShape::last], pre_tangent[FitShape::last][FitShape::n_inputs];
    Wide flux[FitShape::strips];
    float tangent[FitShape::strips][FitShape::n_inputs];  // d ln f / dTheta
};

// A layer's values before the tanh, and their slopes, of a lane's OUTPUTS outputs, LANES apart; beyond the last one
// that one's again.
template <int LAYER, int OUTPUTS, bool TANGENTS, class Star, class Wide>
__device__ __forceinline__ void multiply_nodes(const Star& star, Wide (&value)[OUTPUTS],
                                               float (&slope)[OUTPUTS][FitShape::n_inputs]) {
    constexpr int n_in = UsualShape::width(LAYER), n_out = UsualShape::width(LAYER + 1);
    const FitNetworks<Wide>& networks = fit_block<Wide>().networks;
    int column[OUTPUTS];
    XPKERN_UNROLL
    for (int s = 0; s < OUTPUTS; ++s) {
        const int j = lane_in_warp() + s * LANES;
        column[s] = j < n_out ? j : n_out - 1;
        value[s] = networks.wide.template bias<LAYER>()[column[s]];
        XPKERN_UNROLL
        for (int t = 0; t < FitShape::n_inputs; ++t) slope[s][t] = 0;
    }
    XPKERN_UNROLL_FOUR
    for (int i = 0; i < n_in; ++i) {
        const float* narrow = networks.narrow.template row<LAYER>(i);
        const Wide* wide = networks.wide.template row<LAYER>(i);
        if constexpr (TANGENTS) {
            const Four node = star.node[LAYER % 2][i];
            const Wide x = SameType<Wide, float>::value ? Wide(node.number[3]) : star.value[LAYER % 2][i];
            XPKERN_UNROLL
            for (int s = 0; s < OUTPUTS; ++s) {
                const float weight = narrow[column[s]];
                XPKERN_UNROLL
                for (int t = 0; t < FitShape::n_inputs; ++t) slope[s][t] = fma(weight, node.number[t], slope[s][t]);
                value[s] = fma(wide[column[s]], x, value[s]);
            }
        } else {
            const Wide x = star.value[LAYER % 2][i];
            XPKERN_UNROLL
            for (int s = 0; s < OUTPUTS; ++s) value[s] = fma(wide[column[s]], x, value[s]);
        }
    }
}

template <int LAYER, bool TANGENTS, class Star, class Wide>
__device__ __forceinline__ void go_forward(Star& star, const Wide* scaled, const float* inverse_scale,
                                           FitTape<Wide>& tape, Wide (&ln_flux)[FitShape::strips]) {
    constexpr int inputs = FitShape::n_inputs;
    if constexpr (LAYER == FitShape::last) {
        multiply_nodes<LAYER, FitShape::strips, TANGENTS>(star, ln_flux, tape.tangent);
    } else {
        const int lane = lane_in_warp();
        Wide value[1];
        float slope[1][inputs];
        if constexpr (LAYER == 0) {
            const FitNetworks<Wide>& networks = fit_block<Wide>().networks;
            value[0] = networks.wide.template bias<0>()[lane];
            XPKERN_UNROLL
            for (int t = 0; t < inputs; ++t) {
                value[0] = fma(networks.wide.template row<0>(t)[lane], scaled[t], value[0]);
                slope[0][t] = networks.narrow.template row<0>(t)[lane] * inverse_scale[t];
            }
        } else {
            multiply_nodes<LAYER, 1, TANGENTS>(star, value, slope);
        }
        const Wide h = tanh(value[0]);
        const float narrow = float(h), bent = fma(-narrow, narrow, 1.0f);
        if constexpr (LAYER == 0) __syncwarp();  // no lane is at what stood here before
        if constexpr (TANGENTS) {
            Four node;
            tape.hidden[LAYER] = narrow;
            XPKERN_UNROLL
            for (int t = 0; t < inputs; ++t) {
                tape.pre_tangent[LAYER][t] = slope[0][t];
                node.number[t] = bent * slope[0][t];
            }
            node.number[inputs] = narrow;
            star.node[(LAYER + 1) % 2][lane] = node;
        }
        if constexpr (!TANGENTS || !SameType<Wide, float>::value) star.value[(LAYER + 1) % 2][lane] = h;
        __syncwarp();
        go_forward<LAYER + 1, TANGENTS>(star, scaled, inverse_scale, tape, ln_flux);
    }
}

// Fluxes at u, and with TANGENTS the slopes of their logarithms; 0 beyond the last sample. The networks are the
// block's.
template <bool TANGENTS, class Star, class Wide>
__device__ __forceinline__ void predict_by_warp(const ModelView& model, const Wide* u, Star& star,
                                                FitTape<Wide>& tape) {
    constexpr int inputs = FitShape::n_inputs;
    const auto& view = network_of<Wide>(model);
    const FitNetworks<Wide>& networks = fit_block<Wide>().networks;
    Wide scaled[inputs], ln_flux[FitShape::strips];
    XPKERN_UNROLL
    for (int t = 0; t < inputs; ++t) scaled[t] = (u[t] - view.zero_point[t]) * view.inverse_scale[t];
    go_forward<0, TANGENTS>(star, scaled, model.in_float.inverse_scale, tape, ln_flux);
    const Wide twice_ln_plx = u[inputs + 1] + u[inputs + 1];
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) {
        const int i = lane_in_warp() + s * LANES;
        const bool exists = i < FitShape::n_samples;
        const Wide flux = exp(fma(-u[inputs], networks.wide.ext_curve()[exists ? i : FitShape::n_samples - 1],
                                  ln_flux[s] + twice_ln_plx));
        tape.flux[s] = exists ? flux : Wide(0);
    }
}

// f - f_obs of a lane's samples, 0 beyond the last.
template <class Wide>
__device__ __forceinline__ Wide residual_of(const FitStar<Wide>& star, const FitTape<Wide>& tape, int strip) {
    const int i = lane_in_warp() + strip * LANES;
    return i < FitShape::n_samples ? tape.flux[strip] - Wide(star.flux[i]) : Wide(0);
}

// The network's curvature from a layer down, the lane's neurons' part of it: core/network.hpp's bend_layer, but for the
// factor of -2. above: adjoints of the layer's outputs.
template <int LAYER, class Wide>
__device__ __forceinline__ void bend_layers(FitStar<Wide>& star, const FitTape<Wide>& tape, const float* above,
                                            float* bend) {
    static_assert(UsualShape::width(LAYER + 1) % 2 == 0, "two sums, as each term waits for the one before");
    const int lane = lane_in_warp();
    const float* weights = fit_block<Wide>().networks.narrow.template row<LAYER>(lane);
    float adjoint = 0, more = 0;
    XPKERN_UNROLL_FOUR
    for (int pair = 0; pair < UsualShape::width(LAYER + 1) / 2; ++pair) {
        adjoint = fma(weights[2 * pair], above[2 * pair], adjoint);
        more = fma(weights[2 * pair + 1], above[2 * pair + 1], more);
    }
    const float h = tape.hidden[LAYER - 1], through = (adjoint + more) * fma(-h, h, 1.0f), bent = through * h;
    XPKERN_UNROLL
    for (int t = 0; t < FitShape::n_inputs; ++t) {
        XPKERN_UNROLL
        for (int v = 0; v <= t; ++v) {
            float& element = bend[row_start(t) + v];
            element = fma(bent * tape.pre_tangent[LAYER - 1][t], tape.pre_tangent[LAYER - 1][v], element);
        }
    }
    if constexpr (LAYER > 1) {
        star.adjoint[LAYER % 2][lane] = through;
        __syncwarp();
        bend_layers<LAYER - 1>(star, tape, static_cast<const float*>(star.adjoint[LAYER % 2]), bend);
    }
}

// 2 sum_i w_i d2 f_i / du du, added to hessian. y: the whitened residual.
template <class Wide>
__device__ __forceinline__ void add_curvature_by_warp(FitStar<Wide>& star, const FitTape<Wide>& tape,
                                                      float (&y)[FitShape::strips], float* hessian) {
    constexpr int inputs = FitShape::n_inputs, bends = row_start(inputs), slopes = inputs + 1;
    constexpr int products = row_start(slopes);
    const NetworkInShared<float>& network = fit_block<Wide>().networks.narrow;
    const int lane = lane_in_warp();
    unwhiten_by_strips(star, y);
    // of the network's curvature, of the products of slopes, of the slopes, and of the weights alone
    float sums[bends + products + slopes + 1] = {};
    float *bend = sums, *product = bend + bends, *sum = product + products, *total = sum + slopes;
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) {
        const int i = lane + s * LANES;
        const bool exists = i < FitShape::n_samples;
        const float weight = y[s] * float(tape.flux[s]);
        if (exists) star.back[i] = weight;
        float slope[slopes];
        XPKERN_UNROLL
        for (int t = 0; t < inputs; ++t) slope[t] = tape.tangent[s][t];
        slope[inputs] = -network.ext_curve()[exists ? i : FitShape::n_samples - 1];
        *total += weight;
        XPKERN_UNROLL
        for (int a = 0; a < slopes; ++a) {
            const float weighted = weight * slope[a];
            sum[a] += weighted;
            XPKERN_UNROLL
            for (int b = 0; b <= a; ++b) product[row_start(a) + b] = fma(weighted, slope[b], product[row_start(a) + b]);
        }
    }
    __syncwarp();
    bend_layers<FitShape::last>(star, tape, static_cast<const float*>(star.back), bend);
    sum_over_lanes<LANES / 2>(sums);
    XPKERN_UNROLL
    for (int at = 0; at < bends; ++at) hessian[at] = fma(bend[at], -4.0f, hessian[at]);
    XPKERN_UNROLL
    for (int at = 0; at < products; ++at) hessian[at] = fma(product[at], 2.0f, hessian[at]);
    float* const of_plx = hessian + row_start(slopes);
    XPKERN_UNROLL
    for (int a = 0; a < slopes; ++a) of_plx[a] = fma(sum[a], 4.0f, of_plx[a]);
    of_plx[slopes] = fma(*total, 8.0f, of_plx[slopes]);
}

// The core's function of that name for a warp.
template <bool EXACT, class Wide>
__device__ __forceinline__ void evaluate_loss(const ModelView& model, const FitShape& shape, const PriorView& prior,
                                              const LossView& terms, const StarView<float, Wide>& star_view,
                                              const Workspace<float, Wide>& space, LossState<float, Wide>& state,
                                              const Nothing& = {}) {
    constexpr int inputs = FitShape::n_inputs, k = FitShape::coordinates, strips = FitShape::strips;
    constexpr bool narrow = SameType<Wide, float>::value;
    FitStar<Wide>& star = fit_star<Wide>();
    const NetworkInShared<float>& network = fit_block<Wide>().networks.narrow;
    __syncthreads();  // the block's warps, each with a star of its own, read the same code together: what fits no cache
    FitTape<Wide> tape;
    predict_by_warp<true>(model, state.u, star, tape);
    Columns<k + 1> column;
    Wide residual[strips];
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const int i = lane_in_warp() + s * LANES;
        const float flux = float(tape.flux[s]);
        XPKERN_UNROLL
        for (int t = 0; t < inputs; ++t) column[s][t] = flux * tape.tangent[s][t];
        column[s][inputs] = flux * -network.ext_curve()[i < FitShape::n_samples ? i : FitShape::n_samples - 1];
        column[s][inputs + 1] = flux + flux;
        residual[s] = residual_of(star, tape, s);
        column[s][k] = float(residual[s]);
    }
    whiten_columns_by_warp<k + 1>(star, column);
    Wide chi2[1] = {0};
    if constexpr (narrow) {
        XPKERN_UNROLL
        for (int s = 0; s < strips; ++s) chi2[0] = fma(column[s][k], column[s][k], chi2[0]);
    } else {
        whiten_wide_strips<0>(star.factor, residual);
        XPKERN_UNROLL
        for (int s = 0; s < strips; ++s) {
            chi2[0] = fma(residual[s], residual[s], chi2[0]);
            column[s][k] = float(residual[s]);
        }
    }
    sum_over_lanes<LANES / 2>(chi2);
    state.chi2 = state.loss = chi2[0];

    constexpr int squares = row_start(k);
    float sums[squares + k] = {};
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        XPKERN_UNROLL
        for (int a = 0; a < k; ++a) {
            XPKERN_UNROLL
            for (int b = 0; b <= a; ++b)
                sums[row_start(a) + b] = fma(column[s][a], column[s][b], sums[row_start(a) + b]);
            sums[squares + a] = fma(column[s][a], column[s][k], sums[squares + a]);
        }
    }
    sum_over_lanes<LANES / 2>(sums);
    XPKERN_UNROLL
    for (int at = 0; at < squares; ++at) {
        state.normal[at] = sums[at];
        state.gauss_newton[at] = state.hessian[at] = sums[at] + sums[at];
    }
    XPKERN_UNROLL
    for (int p = 0; p < k; ++p) state.gradient[p] = sums[squares + p] + sums[squares + p];
    const bool exact = EXACT && shape.exact;
    if (exact) {
        float y[strips];
        XPKERN_UNROLL
        for (int s = 0; s < strips; ++s) y[s] = column[s][k];
        add_curvature_by_warp(star, tape, y, state.hessian);
    }
    add_other_terms(shape, star_view, terms, prior, space, state);
    XPKERN_UNROLL
    for (int at = 0; at < squares; ++at) state.hessian[at] = exact ? state.hessian[at] : state.gauss_newton[at];
}

// As above.
__device__ __forceinline__ float loss_alone(const ModelView& model, const FitShape& shape, const PriorView& prior,
                                            const LossView& terms, const StarView<float, float>& star_view,
                                            const Workspace<float, float>& space, const float* u) {
    FitStar<float>& star = fit_star<float>();
    FitTape<float> tape;
    predict_by_warp<false>(model, u, star, tape);
    Columns<1> column;
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) column[s][0] = residual_of(star, tape, s);
    whiten_columns_by_warp<1>(star, column);
    LossState<float, float> state{};
    XPKERN_UNROLL
    for (int p = 0; p < FitShape::coordinates; ++p) state.u[p] = u[p];
    float chi2[1] = {0};
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) chi2[0] = fma(column[s][0], column[s][0], chi2[0]);
    sum_over_lanes<LANES / 2>(chi2);
    state.loss = chi2[0];
    add_other_terms(shape, star_view, terms, prior, space, state);
    return state.loss;
}

// As above: a Gaussian a lane, each twice.
template <class Lane>
__device__ __forceinline__ PriorValue<Lane> evaluate_prior(const FitShape&, const PriorView& prior, const Lane* theta,
                                                           Lane*) {
    constexpr int inputs = FitShape::n_inputs, packed = row_start(inputs);
    static_assert(2 * USUAL_COMPONENTS == LANES, "a Gaussian a lane");
    const auto& mixture = mixture_in(prior, Lane(0));
    const int lane = lane_in_warp(), mine = lane % USUAL_COMPONENTS;
    const bool exists = mine < prior.n_components;
    const int component = exists ? mine : 0;
    Lane slope[inputs];
    const Lane of_mine = mixture_exponent<inputs>(mixture, component, theta, slope);
    const Lane exponent = exists ? of_mine : Lane(LEAST_EXPONENT);
    Lane largest = max(exponent, Lane(LEAST_EXPONENT));
    XPKERN_UNROLL
    for (int half = USUAL_COMPONENTS / 2; half > 0; half /= 2) largest = max(largest, from_lane(largest, lane ^ half));
    MixtureSums<inputs, Lane> sums;
    sums.add(mixture, component, exists ? exp(exponent - largest) : Lane(0), slope);
    Lane numbers[1 + inputs + 2 * packed];
    numbers[0] = sums.total;
    XPKERN_UNROLL
    for (int i = 0; i < inputs; ++i) numbers[1 + i] = sums.gradient[i];
    XPKERN_UNROLL
    for (int at = 0; at < packed; ++at) {
        numbers[1 + inputs + at] = sums.definite[at];
        numbers[1 + inputs + packed + at] = sums.remainder[at];
    }
    sum_over_lanes<USUAL_COMPONENTS / 2>(numbers);
    sums.total = numbers[0];
    XPKERN_UNROLL
    for (int i = 0; i < inputs; ++i) sums.gradient[i] = numbers[1 + i];
    XPKERN_UNROLL
    for (int at = 0; at < packed; ++at) {
        sums.definite[at] = numbers[1 + inputs + at];
        sums.remainder[at] = numbers[1 + inputs + packed + at];
    }
    return sums.value(largest);
}

XPKERN_NAMESPACE_END
