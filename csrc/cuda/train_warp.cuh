// A star of a batch by a warp, for models of the usual shape: a batch is too small to fill a GPU with a thread a star.
//
// A lane has a neuron of each hidden layer and every 32nd sample of a spectrum. What lanes read of one another stands
// in shared memory, as do the star's whitener and, once for all warps of a block, the network; what goes from one step
// of a substitution to the next is handed on in registers. Everything that is a number of the star (parameters,
// constraints, its step) every lane computes for itself, by the functions of the core: these ask a shape for its fluxes
// and for the way back through the network, and for WarpShape they find the functions below. Sums are those of a thread
// that has the star to itself, term by term, but for chi^2, which is a tree over the lanes.
#pragma once

#include "train_tape.cuh"
#include "warps.cuh"

XPKERN_NAMESPACE_BEGIN

constexpr int STAR_WARPS = 2;  // of a block: with the network, what fits into shared memory that need not be asked for
constexpr int STAR_THREADS = STAR_WARPS * LANES;

struct WarpShape : UsualShape {
    XPKERN_INLINE constexpr explicit WarpShape(const ModelView& model) : UsualShape(model) {}
    static constexpr int hidden = UsualShape::width(1), last = UsualShape::layers() - 1;
    // A lane's samples: lane, lane + LANES, ...
    static constexpr int strips = (UsualShape::samples() + LANES - 1) / LANES;
};
static_assert(WarpShape::hidden == LANES, "a neuron a lane");

// Where a layer's weights begin among the model's parameters (core/model_step.hpp); after the last layer, where R does.
XPKERN_INLINE constexpr int layer_start(int layer) {
    int at = 0;
    for (int l = 0; l < layer; ++l) at += (WarpShape::width(l) + 1) * WarpShape::width(l + 1);
    return at;
}

// The model's parameters, with a gap after every 32 of those before the last layer: then neither lanes that read a row
// together nor lanes that each read a row of their own meet in a bank (two of them do in the last layer).
struct SharedNetwork {
    static constexpr int size = layer_start(WarpShape::layers()) + WarpShape::samples();
    static constexpr int padded = layer_start(WarpShape::last);
    float number[size + padded / LANES];

    static XPKERN_INLINE constexpr int place(int at) { return at + (at < padded ? at : padded) / LANES; }
    // What the weights of one input lead to, (n_out,); after the last input's, the biases.
    XPKERN_INLINE const float* row(int layer, int in) const {
        return number + place(layer_start(layer) + in * WarpShape::width(layer + 1));
    }
    XPKERN_INLINE const float* bias(int layer) const { return row(layer, WarpShape::width(layer)); }
    XPKERN_INLINE const float* ext_curve() const { return number + place(layer_start(WarpShape::layers())); }
};

// The star of a warp.
struct alignas(16) SharedStar {
    float hidden[WarpShape::last][LANES];  // of each hidden layer
    float adjoint[2][LANES];               // of the inputs of two neighbouring layers, in turn
    float back[WarpShape::samples()];      // w f
    float flux[WarpShape::samples()];
    float factor[row_start(WarpShape::samples())];  // rows of the triangle begin in banks that are all different
};

struct SharedStars {
    SharedNetwork network;
    SharedStar star[STAR_WARPS];
};

__device__ __forceinline__ SharedStars& shared_stars() {
    __shared__ SharedStars stars;
    return stars;
}
__device__ __forceinline__ SharedStar& star_of_warp() {
    return shared_stars().star[threadIdx.x / LANES];
}

// put(at, from[at]) for at < COUNT, dealt out to so many THREADS.
template <int COUNT, int THREADS, class Put>
__device__ __forceinline__ void take_over(const float* from, const Put& put) {
    Taken<COUNT, THREADS, float>(from).hand_over(put);
}

__device__ __forceinline__ void gather_samples(const StarArrays& stars, int64_t row, SharedStar& star) {
    constexpr int m = WarpShape::samples(), packed = row_start(m);
    __syncwarp();  // no lane is still at the star before
    take_over<m, LANES>(stars.flux + row * m, [&](int at, float number) { star.flux[at] = number; });
    take_over<packed, LANES>(stars.whitener + row * packed, [&](int at, float number) { star.factor[at] = number; });
    __syncwarp();
}

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
        out[s] = network.bias(LAYER)[column[s]];
    }
    XPKERN_UNROLL
    for (int i = 0; i < n_in; ++i) {
        const float x = in[i];
        XPKERN_UNROLL
        for (int s = 0; s < OUTPUTS; ++s) out[s] = fma(network.row(LAYER, i)[column[s]], x, out[s]);
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

// The way back, from what stands above a layer: visit(l, adjoint of the lane's input of layer l before its tanh).
template <int LAYER, class Visit>
__device__ __forceinline__ void go_back_by_warp(const float* above, const Visit& visit) {
    constexpr int n_out = WarpShape::width(LAYER + 1);
    SharedStar& star = star_of_warp();
    const int lane = lane_in_warp();
    const float* weights = shared_stars().network.row(LAYER, lane);
    float adjoint = 0;
    XPKERN_UNROLL
    for (int j = 0; j < n_out; ++j) adjoint = fma(weights[j], above[j], adjoint);
    const float h = star.hidden[LAYER - 1][lane];
    adjoint *= fma(-h, h, 1.0f);
    visit(LAYER, adjoint);
    star.adjoint[LAYER % 2][lane] = adjoint;
    __syncwarp();
    if constexpr (LAYER > 1) go_back_by_warp<LAYER - 1>(star.adjoint[LAYER % 2], visit);
}

// What is left of the lane's samples, (strips,), becomes y = G^-1 b from row `first` of a strip on: every lane solves
// ROWS rows for itself, so that what all wait for is one exchange, and takes them from what is left of its own. Lanes
// compute what they have no use for rather than branch.
template <int ROWS, int STRIP>
__device__ __forceinline__ void whiten_rows_by_warp(const float* factor, int first, float* left) {
    float y[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) y[r] = from_lane(left[STRIP], (first + r) % LANES);
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        y[r] *= factor[row_start(first + r) + first + r];
        XPKERN_UNROLL
        for (int below = r + 1; below < ROWS; ++below)
            y[below] = fma(-factor[row_start(first + below) + first + r], y[r], y[below]);
    }
    XPKERN_UNROLL
    for (int s = STRIP; s < WarpShape::strips; ++s) {
        constexpr int m = WarpShape::samples();
        const int i = lane_in_warp() + s * LANES, row = i < m ? i : m - 1;
        const bool below = i >= first + ROWS && i < m;  // beyond the last sample nothing is left, as before
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float less = fma(-factor[row_start(row) + first + r], y[r], left[s]);
            left[s] = below ? less : (i == first + r ? y[r] : left[s]);
        }
    }
}

// The same from the last row up: w = G^-T y.
template <int ROWS, int STRIP>
__device__ __forceinline__ void unwhiten_rows_by_warp(const float* factor, int first, float* left) {
    float w[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) w[r] = from_lane(left[STRIP], (first + r) % LANES);
    XPKERN_UNROLL
    for (int r = ROWS - 1; r >= 0; --r) {
        XPKERN_UNROLL
        for (int below = ROWS - 1; below > r; --below)
            w[r] = fma(-factor[row_start(first + below) + first + r], w[below], w[r]);
        w[r] *= factor[row_start(first + r) + first + r];
    }
    XPKERN_UNROLL
    for (int s = 0; s <= STRIP; ++s) {
        const int i = lane_in_warp() + s * LANES, column = i < first ? i : first;
        XPKERN_UNROLL
        for (int r = ROWS - 1; r >= 0; --r) {
            const float less = fma(-factor[row_start(first + r) + column], w[r], left[s]);
            left[s] = i < first ? less : (i == first + r ? w[r] : left[s]);
        }
    }
}

// Rows that are solved at a time. More would save exchanges, but every lane would load and solve more of what all do.
constexpr int SOLVED_ROWS = 4;

template <int STRIP>
XPKERN_INLINE constexpr int rows_of_strip() {
    return STRIP + 1 < WarpShape::strips ? LANES : WarpShape::samples() - STRIP * LANES;
}

template <int STRIP>
__device__ __forceinline__ void whiten_by_warp(const float* factor, float* left) {
    constexpr int begin = STRIP * LANES, rows = rows_of_strip<STRIP>(), rest = rows % SOLVED_ROWS;
    for (int row = 0; row + SOLVED_ROWS <= rows; row += SOLVED_ROWS)
        whiten_rows_by_warp<SOLVED_ROWS, STRIP>(factor, begin + row, left);
    if constexpr (rest > 0) whiten_rows_by_warp<rest, STRIP>(factor, begin + rows - rest, left);
    if constexpr (STRIP + 1 < WarpShape::strips) whiten_by_warp<STRIP + 1>(factor, left);
}

template <int STRIP>
__device__ __forceinline__ void unwhiten_by_warp(const float* factor, float* left) {
    constexpr int begin = STRIP * LANES, rows = rows_of_strip<STRIP>(), rest = rows % SOLVED_ROWS;
    if constexpr (rest > 0) unwhiten_rows_by_warp<rest, STRIP>(factor, begin + rows - rest, left);
    for (int row = rows - rest - SOLVED_ROWS; row >= 0; row -= SOLVED_ROWS)
        unwhiten_rows_by_warp<SOLVED_ROWS, STRIP>(factor, begin + row, left);
    if constexpr (STRIP > 0) unwhiten_by_warp<STRIP - 1>(factor, left);
}

// The core's function of that name (descent.hpp) for a warp. What it is given stands in shared memory, where the
// compiler knows it by star_of_warp() alone.
template <class Meanwhile>
__device__ __forceinline__ float weigh_residual(const ModelView& model, const WarpShape&, const float*, const float*,
                                                const float* u, const Workspace<float, float>&, const Meanwhile&) {
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
    whiten_by_warp<0>(star.factor, left);
    float chi2 = 0;
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) chi2 = fma(left[s], left[s], chi2);
    chi2 = sum_over_lanes(chi2);
    unwhiten_by_warp<strips - 1>(star.factor, left);
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
    go_back_by_warp<WarpShape::last>(star_of_warp().back, [](int, float) {});
    const SharedNetwork& network = shared_stars().network;
    const float* above = star_of_warp().adjoint[1];
    for (int t = 0; t < inputs; ++t) gradient[t] = 0;
    XPKERN_UNROLL
    for (int j = 0; j < WarpShape::hidden; ++j) {
        XPKERN_UNROLL
        for (int t = 0; t < inputs; ++t) gradient[t] = fma(network.row(0, t)[j], above[j], gradient[t]);
    }
    for (int t = 0; t < inputs; ++t) gradient[t] *= model.in_float.inverse_scale[t];
}

__device__ __forceinline__ Workspace<float, float> workspace_of_warp(SharedStar& star) {
    Workspace<float, float> space{};
    space.back = star.back;
    return space;
}

__device__ __forceinline__ void record_star_by_warp(const TrainArguments& a, int64_t item) {
    constexpr int inputs = WarpShape::inputs(), k = WarpShape::parameters(), m = WarpShape::samples();
    const WarpShape shape(a.model);
    const TapeLayout layout(shape);
    const int64_t row = row_in_batch(a, item);
    const int lane = lane_in_warp();
    SharedStar& star = star_of_warp();
    gather_samples(a.stars, row, star);
    double wide[k];
    float u[k];
    load_params(a.params + row * k, k, wide);
    for (int p = 0; p < k; ++p) u[p] = float(wide[p]);
    const float chi2 = weigh_residual(a.model, shape, star.flux, star.factor, u, workspace_of_warp(star), Nothing());
    if (lane == 0) a.chi2[item] = chi2;

    float* const of_star = a.tape + item * layout.size;
    for (int t = lane; t < inputs; t += LANES)
        of_star[layout.value[0] + t] = (u[t] - a.model.in_float.zero_point[t]) * a.model.in_float.inverse_scale[t];
    if (lane == 0) of_star[layout.ext] = u[inputs];
    for (int i = lane; i < m; i += LANES) of_star[layout.adjoint[WarpShape::last] + i] = star.back[i];
    go_back_by_warp<WarpShape::last>(star.back, [&](int l, float adjoint) {
        of_star[layout.value[l] + lane] = star.hidden[l - 1][lane];
        of_star[layout.adjoint[l - 1] + lane] = adjoint;
    });
}

__device__ __forceinline__ void step_star_by_warp(const TrainArguments& a, int64_t item) {
    constexpr int k = WarpShape::parameters();
    const int64_t row = row_in_batch(a, item);
    const int lane = lane_in_warp();
    SharedStar& shared = star_of_warp();
    ThreadStar<float, float> star(shared.flux, shared.factor);
    star.gather_constraints(a.stars, row, k);
    gather_samples(a.stars, row, shared);
    double moved[MAX_PARAMETERS];
    const double loss = move_star(a, WarpShape(a.model), row, star.view(), workspace_of_warp(shared), moved);
    if (lane == 0) a.star_loss[row] = loss;
    for (int p = lane; p < k; p += LANES) a.params[row * k + p] = moved[p];
}

// work(item) by a warp for each star of the batch. Blocks are of STAR_THREADS threads.
template <class Work>
__device__ __forceinline__ void over_stars_by_warp(const TrainArguments& a, const Work& work) {
    if (!at_work(a)) return;
    SharedNetwork& network = shared_stars().network;
    take_over<SharedNetwork::size, STAR_THREADS>(
        a.floats, [&](int at, float number) { network.number[SharedNetwork::place(at)] = number; });
    __syncthreads();
    const int64_t first = int64_t(blockIdx.x) * STAR_WARPS + threadIdx.x / LANES;
    for (int64_t item = first; item < a.size; item += int64_t(gridDim.x) * STAR_WARPS) work(item);
}

XPKERN_NAMESPACE_END

// A kernel of training over the stars of a batch: BY_WARP(a, item), or where XPKERN_GENERAL asks for the general form
// BY_THREAD<AnyShape>(a, item, arena).
#if defined(XPKERN_GENERAL)
#define XPKERN_WARP_KERNEL(NAME, BY_WARP, BY_THREAD)                                                           \
    extern "C" __global__ void NAME##_any(const __grid_constant__ xpkern::TrainArguments a) {                  \
        kernels::over_items_in(                                                                                \
            a.scratch, kernels::at_work(a) ? a.size : 0,                                                       \
            [&](int64_t item, const kernels::Arena& arena) { BY_THREAD<kernels::AnyShape>(a, item, arena); }); \
    }
#else
#define XPKERN_WARP_KERNEL(NAME, BY_WARP, BY_THREAD)                             \
    extern "C" __global__ void __launch_bounds__(kernels::STAR_THREADS)          \
        NAME(const __grid_constant__ xpkern::TrainArguments a) {                 \
        kernels::over_stars_by_warp(a, [&](int64_t item) { BY_WARP(a, item); }); \
    }
#endif
