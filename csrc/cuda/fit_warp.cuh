// The loss of a star by a warp, for models of the usual shape.
//
// What is a sum of products, in the network, in the whitener and in the normal matrix, the tensor cores multiply, in
// double: slopes and value are columns of one matrix. Between these products a lane has a neuron of each hidden layer
// and every 32nd sample of a spectrum. Everything that is a number of the star (parameters, loss, matrices of its
// coordinates) every lane computes for itself, by the functions of the core: these ask a shape for an evaluation, and
// for FitShape they find those below.
#pragma once

#include "fit_whiten.cuh"

XPKERN_NAMESPACE_BEGIN

// What a forward sweep leaves in a lane: of its neurons and of its samples.
struct FitTape {
    float hidden[FitShape::last], pre_tangent[FitShape::last][FitShape::n_inputs];
    double flux[FitShape::strips];
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
        tape.flux[s] = exists(s) ? flux : 0.0;
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
__device__ __forceinline__ void bend_layers(const FitLane& here, const FitNetwork& network, FitColumns& columns,
                                            const FitTape& tape, double adjoint, float* bend) {
    const double h = convert<double>(tape.hidden[LAYER - 1]), through = adjoint * fma(-h, h, 1.0);
    const float bent = convert<float>(through * h);
    XPKERN_UNROLL
    for (int t = 0; t < FitShape::n_inputs; ++t) {
        const float once = bent * tape.pre_tangent[LAYER - 1][t];
        XPKERN_UNROLL
        for (int v = 0; v <= t; ++v)
            bend[row_start(t) + v] = fma(once, tape.pre_tangent[LAYER - 1][v], bend[row_start(t) + v]);
    }
    if constexpr (LAYER > 1) {
        double right[FitTiles::across];
        columns.at(0, here.lane, GIVEN) = through;
        __syncwarp();
        load_given(here, columns, 0, GIVEN, right);
        StripSums sums = {};
        multiply_turned<FitTiles::pairs_down, false>(here, network.between[LAYER - 2], right, sums);
        store_found(here, columns, 0, sums);
        bend_layers<LAYER - 1>(here, network, columns, tape, columns.at(0, here.lane, FOUND), bend);
    }
}

// 2 sum_i w_i d2 f_i / du du, added to hessian. The columns are whitened.
__device__ __forceinline__ void add_curvature_by_warp(const FitLane& here, FitStar& star, const FitTape& tape,
                                                      float* hessian) {
    constexpr int inputs = FitShape::n_inputs, bends = row_start(inputs), slopes = inputs + 1;
    constexpr int products = row_start(slopes), first_rest = FitShape::whole_strips * LANES;
    const FitNetwork& network = fit_block().network;
    FitColumns& columns = star.columns;
    const int lane = here.lane;
    double w[FitShape::strips];
    unwhiten_by_warp(here, star, FitShape::coordinates, w);
    // of the network's curvature, of the products of slopes, of the slopes, and of the weights alone
    float sums[bends + products + slopes + 1] = {};
    float *bend = sums, *product = bend + bends, *sum = product + products, *total = sum + slopes;
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::strips; ++s) {
        const bool exists = s < FitShape::whole_strips || lane < FitShape::rest;
        const int row = exists ? lane : 0, i = s * LANES + row;
        const double of_flux = w[s] * tape.flux[s];
        if (exists) columns.at(s * LANES, row, GIVEN) = of_flux;
        const float weight = convert<float>(of_flux);
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
    __syncwarp();
    constexpr int down = FitShape::whole_strips * FitTiles::across;
    double right[down];
    load_given(here, columns, 0, GIVEN, right);
    StripSums back = {};
    multiply_turned<down / 4, false>(here, network.to_strips, right, back);
    store_found(here, columns, 0, back);
    double adjoint = columns.at(0, lane, FOUND);
    XPKERN_UNROLL
    for (int r = 0; r < FitShape::rest; ++r)
        adjoint = fma(network.rest[r][lane], columns.at(first_rest, r, GIVEN), adjoint);
    bend_layers<FitShape::last>(here, network, columns, tape, adjoint, bend);
    sum_in_memory(lane, sums, reinterpret_cast<float*>(columns.number));
    XPKERN_UNROLL
    for (int at = 0; at < bends; ++at) hessian[at] = fma(bend[at], -4.0f, hessian[at]);
    XPKERN_UNROLL
    for (int at = 0; at < products; ++at) hessian[at] = fma(product[at], 2.0f, hessian[at]);
    float* const of_plx = hessian + row_start(slopes);
    XPKERN_UNROLL
    for (int a = 0; a < slopes; ++a) of_plx[a] = fma(sum[a], 4.0f, of_plx[a]);
    of_plx[slopes] = fma(*total, 8.0f, of_plx[slopes]);
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

// The core's function of that name for a warp.
template <bool EXACT>
__device__ __forceinline__ void evaluate_loss(const ModelView& model, const FitShape& shape, const PriorView& prior,
                                              const LossView& terms, const StarView<float, double>& star_view,
                                              const Workspace<float, double>& space, LossState<float, double>& state,
                                              const Nothing& = {}) {
    constexpr int k = FitShape::coordinates, squares = row_start(k);
    FitStar& star = fit_star();
    if (shape.in_rounds) fit_block().round.join(star.in_round);
    const FitLane here;
    FitTape tape;
    predict_by_warp(here, model, state.u, star, tape);
    Whitened y;
    whiten_by_warp(here, star, y);
    state.chi2 = state.loss = multiply_normal(here, star, y);
    XPKERN_UNROLL
    for (int a = 0; a < k; ++a) {
        XPKERN_UNROLL
        for (int b = 0; b <= a; ++b) {
            const int at = row_start(a) + b;
            const float normal = star.normal[a * FitColumns::width + b];
            state.gauss_newton[at] = state.hessian[at] = normal + normal;
        }
        const float projected = star.normal[k * FitColumns::width + a];
        state.gradient[a] = projected + projected;
    }
    const bool exact = EXACT && shape.exact;
    if (exact) add_curvature_by_warp(here, star, tape, state.hessian);
    add_other_terms(shape, star_view, terms, prior, space, state);
    XPKERN_UNROLL
    for (int at = 0; at < squares; ++at) state.hessian[at] = exact ? state.hessian[at] : state.gauss_newton[at];
}

// As above: a Gaussian a lane. Sums over Gaussians are products of tiles, too.
__device__ __forceinline__ PriorValue<double> evaluate_prior(const FitShape&, const PriorView& prior,
                                                             const double* theta, double*) {
    constexpr int inputs = FitShape::n_inputs, packed = row_start(inputs), columns = 2 * FitTiles::rows;
    static_assert(2 * USUAL_COMPONENTS == LANES && USUAL_COMPONENTS % FitTiles::columns == 0, "each twice");
    static_assert(1 + inputs + 2 * packed == columns, "two right tiles");
    constexpr int stride =
        columns + FitTiles::columns;  // so that half a warp's elements of a tile are in no bank twice
    const FitLane here;
    const int mine = here.lane % USUAL_COMPONENTS;
    const bool exists = mine < prior.n_components;
    const int component = exists ? mine : 0;
    double slope[inputs];
    const double of_mine = mixture_exponent<inputs>(prior.in_double, component, theta, slope);
    const double exponent = exists ? of_mine : LEAST_EXPONENT;
    // what is about the largest serves, as it only keeps sums in range
    float about_largest = max(convert<float>(exponent), float(LEAST_EXPONENT));
    XPKERN_UNROLL
    for (int half = USUAL_COMPONENTS / 2; half > 0; half /= 2)
        about_largest = max(about_largest, from_lane(about_largest, here.lane ^ half));
    const auto largest = convert<double>(about_largest);
    MixtureSums<inputs, double> sums;
    sums.add(prior.in_double, component, exists ? exp(exponent - largest) : 0.0, slope);

    double* const memory = fit_star().columns.number;
    static_assert(USUAL_COMPONENTS * stride * sizeof(double) <= sizeof(FitColumns));
    const auto pairs_of = [&](int row) { return reinterpret_cast<Pair*>(memory + row * stride); };
    double numbers[columns];
    numbers[0] = sums.total;
    XPKERN_UNROLL
    for (int i = 0; i < inputs; ++i) numbers[1 + i] = sums.gradient[i];
    XPKERN_UNROLL
    for (int at = 0; at < packed; ++at) {
        numbers[1 + inputs + at] = sums.definite[at];
        numbers[1 + inputs + packed + at] = sums.remainder[at];
    }
    __syncwarp();
    if (here.lane < USUAL_COMPONENTS) {
        XPKERN_UNROLL
        for (int i = 0; i < columns; i += 2) pairs_of(mine)[i / 2] = {numbers[i], numbers[i + 1]};
    }
    __syncwarp();
    double found[2][2] = {};
    XPKERN_UNROLL
    for (int j = 0; j < USUAL_COMPONENTS; j += FitTiles::columns) {
        XPKERN_UNROLL
        for (int h = 0; h < 2; ++h)
            multiply_tiles(1.0, memory[(j + here.column) * stride + h * FitTiles::rows + here.row], found[h]);
    }
    __syncwarp();
    if (here.row < 2)
        pairs_of(0)[here.row * FitTiles::columns + here.column] = {here.row ? found[1][0] : found[0][0],
                                                                   here.row ? found[1][1] : found[0][1]};
    __syncwarp();
    XPKERN_UNROLL
    for (int i = 0; i < columns; i += 2) {
        const Pair two = pairs_of(0)[i / 2];
        numbers[i] = two.at[0], numbers[i + 1] = two.at[1];
    }
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

// Of the core's optimise.hpp: how far the flux is off stays in shared memory.
__device__ __forceinline__ int kept_samples(const FitShape&, const StopRule&, const Workspace<float, double>&) {
    return 0;
}

// Of it, too. Y^T Y, which nothing but the end of a search asks for, stays in shared memory.
__device__ __forceinline__ void accept(const FitShape&, bool better, const LossState<float, double>& trial,
                                       LossState<float, double>& state) {
    FitStar& star = fit_star();
    star.accepted[lane_in_warp()] = better;
    if (!better) return;
    XPKERN_UNROLL
    for (int h = 0; h < 2; ++h) star.kept_normal[2 * lane_in_warp() + h] = star.normal[2 * lane_in_warp() + h];
    XPKERN_UNROLL
    for (int p = 0; p < FitShape::coordinates; ++p) state.u[p] = trial.u[p], state.gradient[p] = trial.gradient[p];
    state.loss = trial.loss, state.chi2 = trial.chi2, state.ln_prior = trial.ln_prior;
    XPKERN_UNROLL
    for (int at = 0; at < row_start(FitShape::coordinates); ++at)
        state.gauss_newton[at] = trial.gauss_newton[at], state.hessian[at] = trial.hessian[at];
}
// Writes it, or that of the evaluation at hand, where the core looks for it.
__device__ __forceinline__ void recall_normal(const float* normal, LossState<float, double>& state) {
    __syncwarp();
    XPKERN_UNROLL
    for (int a = 0; a < FitShape::coordinates; ++a) {
        XPKERN_UNROLL
        for (int b = 0; b <= a; ++b) state.normal[row_start(a) + b] = normal[a * FitColumns::width + b];
    }
}

// As above: one half of the warp solves without damping, the other one with it.
__device__ __forceinline__ bool solve_undamped(const FitShape&, const float* hessian, const float* definite,
                                               const float& damping, const float* gradient, float* newton,
                                               float* damped) {
    constexpr int k = FitShape::coordinates;
    float mine[k];
    const bool positive =
        solve_damped(k, hessian, definite, lane_in_warp() < LANES / 2 ? 0.0f : damping, gradient, mine);
    XPKERN_UNROLL
    for (int p = 0; p < k; ++p) {
        newton[p] = from_lane(mine[p], 0);
        damped[p] = from_lane(mine[p], LANES / 2);
    }
    return from_lane(int(positive), 0) != 0;
}
__device__ __forceinline__ void solve_again(const FitShape&, const float* hessian, const float* definite,
                                            const float& damping, const float* gradient, bool changed, float* damped) {
    if (changed) solve_damped(FitShape::coordinates, hessian, definite, damping, gradient, damped);
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
