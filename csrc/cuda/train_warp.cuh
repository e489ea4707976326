// A star of a batch by a warp, for models of the usual shape: a batch is too small to fill a GPU with a thread a star.
//
// A lane has a neuron of each hidden layer and every 32nd sample of a spectrum. What lanes read of one another stands
// in shared memory, as do the star's whitener and, once for all warps of a block, the network. Everything that is a
// number of the star (parameters, constraints, its step) every lane computes for itself, by the functions of the core:
// these ask a shape for its fluxes and for the way back through the network, and for WarpShape they find the functions
// below. Sums are those of a thread that has the star to itself, term by term, but for chi^2, which is a tree over the
// lanes.
#pragma once

#include "train_whiten.cuh"

XPKERN_NAMESPACE_BEGIN

// The lane's values of a layer before the tanh, (OUTPUTS,), LANES apart; beyond the last neuron that one's again.
template <int LAYER, int OUTPUTS>
__device__ __forceinline__ void multiply_by_warp(const float* in, float* out) {
    constexpr int n_in = WarpShape::width(LAYER), n_out = WarpShape::width(LAYER + 1);
    const SharedNetwork& network = shared_stars().network;
    int column[OUTPUTS];
    XPKERN_UNROLL
    for (int s = 0; s < OUTPUTS; ++s) {
        const int j = lane_in_warp() + s * LANES;
        column[s] = j < n_out ? j : n_out - 1;
        out[s] = network.bias<LAYER>()[column[s]];
    }
    XPKERN_UNROLL
    for (int i = 0; i < n_in; ++i) {
        const float x = in[i];
        XPKERN_UNROLL
        for (int s = 0; s < OUTPUTS; ++s) out[s] = fma(network.row<LAYER>(i)[column[s]], x, out[s]);
    }
}

// From the inputs of a layer on to the last hidden layer, which is returned.
template <int LAYER>
__device__ __forceinline__ const float* go_forward_by_warp(const float* in) {
    if constexpr (LAYER == WarpShape::last) {
        return in;
    } else {
        float* const hidden = star_of_warp().hidden[LAYER];
        float value[1];
        multiply_by_warp<LAYER, 1>(in, value);
        hidden[lane_in_warp()] = tanh(value[0]);
        __syncwarp();
        return go_forward_by_warp<LAYER + 1>(hidden);
    }
}

// The way back, from what stands above a layer to the adjoints of all hidden layers.
template <int LAYER>
__device__ __forceinline__ void go_back_by_warp(const float* above) {
    constexpr int n_out = WarpShape::width(LAYER + 1);
    SharedStar& star = star_of_warp();
    const int lane = lane_in_warp();
    const float* weights = shared_stars().network.row<LAYER>(lane);
    float sum[4] = {};  // side by side, so that none waits for the one before
    XPKERN_UNROLL
    for (int j = 0; j < n_out; ++j) sum[j % 4] = fma(weights[j], above[j], sum[j % 4]);
    const float h = star.hidden[LAYER - 1][lane];
    const float adjoint = ((sum[0] + sum[1]) + (sum[2] + sum[3])) * fma(-h, h, 1.0f);
    star.adjoint[LAYER - 1][lane] = adjoint;
    __syncwarp();
    if constexpr (LAYER > 1) go_back_by_warp<LAYER - 1>(star.adjoint[LAYER - 1]);
}

// The core's function of that name (descent.hpp) for a warp. What it is given stands in shared memory, where the
// compiler knows it by star_of_warp() alone.
template <class Meanwhile>
__device__ __forceinline__ float weigh_residual(const ModelView& model, const WarpShape& shape, const float*,
                                                const float*, const float* u, const Workspace<float, float>&,
                                                const Meanwhile&) {
    constexpr int inputs = WarpShape::inputs(), m = WarpShape::samples(), strips = WarpShape::strips;
    SharedStar& star = star_of_warp();
    const SharedNetwork& network = shared_stars().network;
    const int lane = lane_in_warp();
    float scaled[inputs], ln_flux[strips] = {}, flux[strips] = {}, left[strips] = {};
    for (int t = 0; t < inputs; ++t)
        scaled[t] = (u[t] - model.in_float.zero_point[t]) * model.in_float.inverse_scale[t];
    multiply_by_warp<WarpShape::last, strips>(go_forward_by_warp<0>(scaled), ln_flux);
    const float twice_ln_plx = u[inputs + 1] + u[inputs + 1];
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const int i = lane + s * LANES;
        if (i >= m) break;
        flux[s] = exp(fma(-u[inputs], network.ext_curve()[i], ln_flux[s] + twice_ln_plx));
        left[s] = flux[s] - star.flux[i];
    }
    float chi2 = 0;
    const auto add_squares = [&] {
        XPKERN_UNROLL
        for (int s = 0; s < strips; ++s) chi2 = fma(left[s], left[s], chi2);
    };
    if (shape.inverted) {
        multiply_by_inverse(star, left);
        add_squares();
        multiply_by_inverse_back(star, left);
    } else {
        invert_squares(star);
        whiten_by_warp(star, left);
        add_squares();
        unwhiten_by_warp(star, left);
    }
    chi2 = sum_over_lanes(chi2);
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) {
        const int i = lane + s * LANES;
        if (i < m) star.back[i] = left[s] * flux[s];
    }
    __syncwarp();
    return chi2;
}

// As above, of the star's back.
__device__ __forceinline__ void network_gradient(const ModelView& model, const WarpShape&, const float*,
                                                 const NetworkTape<float, float>&, float* gradient) {
    constexpr int inputs = WarpShape::inputs();
    go_back_by_warp<WarpShape::last>(star_of_warp().back);
    const SharedNetwork& network = shared_stars().network;
    const float* above = star_of_warp().adjoint[0];
    for (int t = 0; t < inputs; ++t) gradient[t] = 0;
    XPKERN_UNROLL
    for (int j = 0; j < WarpShape::hidden; ++j) {
        XPKERN_UNROLL
        for (int t = 0; t < inputs; ++t) gradient[t] = fma(network.row<0>(t)[j], above[j], gradient[t]);
    }
    for (int t = 0; t < inputs; ++t) gradient[t] *= model.in_float.inverse_scale[t];
}

// As above.
__device__ __forceinline__ SampleSums<float> sums_over_samples(const ModelView&, const WarpShape&, const float*) {
    const SharedStar& star = star_of_warp();
    const float* ext_curve = shared_stars().network.ext_curve();
    SampleSums<float> sums{0, 0};
    XPKERN_UNROLL
    for (int s = 0; s < WarpShape::strips; ++s) {
        const int i = lane_in_warp() + s * LANES;
        if (i >= WarpShape::samples()) break;
        sums.back += star.back[i];
        sums.dimmed = fma(star.back[i], ext_curve[i], sums.dimmed);
    }
    XPKERN_UNROLL
    for (int half = LANES / 2; half > 0; half /= 2) {
        sums.back += from_lane(sums.back, lane_in_warp() ^ half);
        sums.dimmed += from_lane(sums.dimmed, lane_in_warp() ^ half);
    }
    return sums;
}

__device__ __forceinline__ Workspace<float, float> workspace_of_warp(SharedStar& star) {
    Workspace<float, float> space{};
    space.back = star.back;
    return space;
}

// A star of the batch to its part of the tape; where there is none, and so no row, there are zeros.
__device__ __forceinline__ void record_star_by_warp(const TrainArguments& a, int64_t item, int64_t row) {
    constexpr int inputs = WarpShape::inputs(), k = WarpShape::parameters(), m = WarpShape::samples();
    const int lane = lane_in_warp();
    SharedStar& star = star_of_warp();
    if (row < 0) {
        for (int l = 0; l < WarpShape::last; ++l) star.hidden[l][lane] = star.adjoint[l][lane] = 0;
        for (int i = lane; i < m; i += LANES) star.back[i] = 0;
        if (lane < inputs) star.input[lane] = 0;
        if (lane == 0) star.ext = 0;
        wait_for_copies();
        __syncthreads();
        return;
    }
    double given[k];
    float u[k];
    for (int p = 0; p < k; ++p) given[p] = a.params[row * k + p];
    copy_samples_soon(a.stars, row, star);
    __syncwarp();  // or the compiler has what is given waited for before all copies are on their way
    for (int p = 0; p < k; ++p) u[p] = float(given[p]);
    u[k - 1] = log(u[k - 1]);
    if (lane == 0) {
        for (int t = 0; t < inputs; ++t)
            star.input[t] = (u[t] - a.model.in_float.zero_point[t]) * a.model.in_float.inverse_scale[t];
        star.ext = u[inputs];
    }
    wait_for_copies();
    __syncthreads();  // the network is the block's
    const float chi2 = weigh_residual(a.model, WarpShape(a.model, a.inverted), star.flux, star.factor, u,
                                      workspace_of_warp(star), Nothing());
    if (lane == 0) a.chi2[item] = chi2;
    go_back_by_warp<WarpShape::last>(star.back);
}

// Sums over the stars of the block, added to what `sums` has of those before, or instead of it where these are the
// first: of the products of a layer's inputs, or 1 or the extinction in their place, with the adjoints of its outputs.
template <bool FIRST>
struct BlockSums {
    float* sums;

    static XPKERN_INLINE const float* inputs(const SharedTape& tape, int layer) {
        return layer > 0 ? tape.hidden[layer - 1] : tape.input;
    }
    static XPKERN_INLINE const float* adjoints(const SharedTape& tape, int layer) {
        return layer < WarpShape::last ? tape.adjoint[layer] : tape.back;
    }
    // What a row of the last layer's parameters is multiplied by: its inputs, 1 for the biases, E for the curve.
    static XPKERN_INLINE float input_of_last(const SharedTape& tape, int row) {
        constexpr int biases = WarpShape::width(WarpShape::last);
        const float of_tape = row < biases ? tape.hidden[WarpShape::last - 1][row] : tape.ext;
        return row == biases ? 1.0f : of_tape;
    }
    // number(star) is a product of a star of the block.
    template <class Number>
    XPKERN_INLINE void add(int at, const Number& number) const {
        float sum = FIRST ? 0.0f : sums[at];
        XPKERN_UNROLL
        for (int s = 0; s < STAR_WARPS; ++s) sum = number(s, sum);
        sums[at] = sum;
    }
    // An output a lane; a warp has neighbouring inputs, which come four at a time.
    template <int LAYER>
    XPKERN_INLINE void add_narrow_layer(int warp, int lane) const {
        constexpr int n_in = WarpShape::width(LAYER), start = layer_start(LAYER), share = n_in / STAR_WARPS;
        constexpr int whole = share * STAR_WARPS;
        float adjoint[STAR_WARPS];
        const float* input[STAR_WARPS];
        XPKERN_UNROLL
        for (int s = 0; s < STAR_WARPS; ++s) {
            adjoint[s] = adjoints(shared_stars().star[s], LAYER)[lane];
            input[s] = inputs(shared_stars().star[s], LAYER);
        }
        XPKERN_UNROLL
        for (int i = 0; i < share; ++i)
            add(start + (warp * share + i) * LANES + lane,
                [&](int s, float sum) { return fma(adjoint[s], input[s][warp * share + i], sum); });
        if (warp < n_in - whole)
            add(start + (whole + warp) * LANES + lane,
                [&](int s, float sum) { return fma(adjoint[s], input[s][whole + warp], sum); });
        if (warp == STAR_WARPS - 1)
            add(start + n_in * LANES + lane, [&](int s, float sum) { return sum + adjoint[s]; });
        if constexpr (LAYER + 1 < WarpShape::last) add_narrow_layer<LAYER + 1>(warp, lane);
    }
    // The same of the last layer, of which a lane has an output of each strip, and its extinction curve below it; of
    // the outputs that are left a thread has one with one input.
    XPKERN_INLINE void add_last_layer(int thread) const {
        constexpr int layer = WarpShape::last, m = WarpShape::samples(), n_in = WarpShape::width(layer);
        constexpr int rows = n_in + 2, share = n_in / STAR_WARPS;
        const int warp = thread / LANES, lane = thread % LANES;
        float* const of_layer = sums + layer_start(layer);
        const BlockSums of_last{of_layer};
        float adjoint[WHOLE_STRIPS][STAR_WARPS];
        XPKERN_UNROLL
        for (int strip = 0; strip < WHOLE_STRIPS; ++strip) {
            XPKERN_UNROLL
            for (int s = 0; s < STAR_WARPS; ++s) adjoint[strip][s] = shared_stars().star[s].back[strip * LANES + lane];
        }
        const auto add_row = [&](int row, const auto& input) {
            float of_star[STAR_WARPS];
            XPKERN_UNROLL
            for (int s = 0; s < STAR_WARPS; ++s) of_star[s] = input(shared_stars().star[s]);
            XPKERN_UNROLL
            for (int strip = 0; strip < WHOLE_STRIPS; ++strip)
                of_last.add(row * m + strip * LANES + lane,
                            [&](int s, float sum) { return fma(adjoint[strip][s], of_star[s], sum); });
        };
        static_assert(n_in % STAR_WARPS == 0 && rows - n_in <= STAR_WARPS);
        XPKERN_UNROLL
        for (int i = 0; i < share; ++i)
            add_row(warp * share + i, [&](const SharedTape& tape) { return tape.hidden[layer - 1][warp * share + i]; });
        if (warp < rows - n_in)
            add_row(n_in + warp, [&](const SharedTape& tape) { return input_of_last(tape, n_in + warp); });
        static_assert(rows * REST <= STAR_THREADS);
        if (thread >= rows * REST) return;
        const int row = thread / REST, output = WHOLE_STRIPS * LANES + thread % REST;
        of_last.add(row * m + output, [&](int s, float sum) {
            const SharedTape& tape = shared_stars().star[s];
            return fma(tape.back[output], input_of_last(tape, row), sum);
        });
    }
    XPKERN_INLINE void add_all() const {
        const int thread = int(threadIdx.x);
        add_narrow_layer<0>(thread / LANES, thread % LANES);
        add_last_layer(thread);
    }
};

// The stars of a batch, a chunk a block: its sums of products.
__device__ __forceinline__ void record_stars_by_warp(const TrainArguments& a) {
    const int64_t stars = a.chunk_stars, warp = threadIdx.x / LANES;
    const auto row_of = [&](int64_t item) { return item < a.size ? a.next_rows[item] : -1; };
    int64_t row = row_of(blockIdx.x * stars + warp);  // on its way before it is known whether there is a batch,
    copy_network_soon(a.floats);                      // and the network, too
    const int64_t batch = open_batch(a);
    if (batch < 0 || blockIdx.x >= a.chunks) return wait_for_copies();
    for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
        const int64_t begin = chunk * stars, end = begin + stars < a.size ? begin + stars : a.size;
        for (int64_t star = begin; star < end; star += STAR_WARPS) {
            record_star_by_warp(a, star + warp, row);
            row = row_of((star + STAR_WARPS < end ? star + STAR_WARPS : (chunk + gridDim.x) * stars) + warp);
            __syncthreads();
            float* const sums = a.chunk_sums + chunk * SharedNetwork::padded;
            if (star == begin) {
                BlockSums<true>{sums}.add_all();
            } else {
                BlockSums<false>{sums}.add_all();
            }
            __syncthreads();  // the next stars take the place of these
        }
    }
}

__device__ __forceinline__ void step_star_by_warp(const TrainArguments& a, int64_t batch, int64_t row,
                                                  const StarView<float, float>& star) {
    constexpr int k = WarpShape::parameters();
    const int lane = lane_in_warp();
    SharedStar& shared = star_of_warp();
    double moved[MAX_PARAMETERS];
    const double loss =
        move_star(a, WarpShape(a.model, a.inverted), batch, row, star, workspace_of_warp(shared), moved);
    if (lane == 0) a.star_loss[row] = loss;
    for (int p = lane; p < k; p += LANES) a.params[row * k + p] = moved[p];
}

// A star's constraints, each found by a lane.
__device__ __forceinline__ void gather_constraints_by_warp(const StarArrays& stars, int64_t row,
                                                           ThreadStar<float, float>& star) {
    constexpr int k = WarpShape::parameters();
    const int mine = lane_in_warp() < k ? lane_in_warp() : 0;
    const double sigma = stars.sigma[row * k + mine];
    const auto mean = float(stars.mean[row * k + mine]), weight = float(1.0 / (sigma * sigma));
    XPKERN_UNROLL
    for (int p = 0; p < k; ++p) {
        star.mean[p] = from_lane(mean, p);
        star.weight[p] = from_lane(weight, p);
    }
}

// Steps of the stars of a batch, a star a warp.
__device__ __forceinline__ void step_stars_by_warp(const TrainArguments& a) {
    const int64_t batch = batch_of_stars(a);
    SharedStar& shared = star_of_warp();
    ThreadStar<float, float> star(shared.flux, shared.factor);
    int64_t item = int64_t(blockIdx.x) * STAR_WARPS + threadIdx.x / LANES;
    const auto is_there = [&] { return batch >= 0 && item < a.size; };
    int64_t row = is_there() ? row_in_batch(a, batch, item) : 0;
    const auto fetch = [&] {
        if (is_there()) {
            copy_samples_soon(a.stars, row, shared);
            __syncwarp();
            gather_constraints_by_warp(a.stars, row, star);  // meanwhile
        }
        wait_for_copies();
    };
    copy_network_soon(a.floats);  // while the row is on its way
    fetch();
    __syncthreads();  // the network is the block's
    while (is_there()) {
        step_star_by_warp(a, batch, row, star.view());
        item += int64_t(gridDim.x) * STAR_WARPS;
        row = is_there() ? row_in_batch(a, batch, item) : 0;
        __syncwarp();
        fetch();
    }
}

XPKERN_NAMESPACE_END

// A kernel of training over the stars of a batch, which BATCH(a) tells: BY_WARP(a), or where XPKERN_GENERAL asks for
// the general form BY_THREAD<AnyShape>(a, batch, item, arena) for each.
#if defined(XPKERN_GENERAL)
#define XPKERN_WARP_KERNEL(NAME, BATCH, BY_WARP, BY_THREAD)                                                        \
    extern "C" __global__ void NAME##_any(const __grid_constant__ xpkern::TrainArguments a) {                      \
        const int64_t batch = BATCH(a);                                                                            \
        kernels::over_items_in(a.scratch, batch < 0 ? 0 : a.size, [&](int64_t item, const kernels::Arena& arena) { \
            BY_THREAD<kernels::AnyShape>(a, batch, item, arena);                                                   \
        });                                                                                                        \
    }
#else
#define XPKERN_WARP_KERNEL(NAME, BATCH, BY_WARP, BY_THREAD)                                   \
    extern "C" __global__ void __launch_bounds__(kernels::STAR_THREADS, kernels::STAR_BLOCKS) \
        NAME(const __grid_constant__ xpkern::TrainArguments a) {                              \
        BY_WARP(a);                                                                           \
    }
#endif
