// A star of a batch by a warp, for models of the usual shape: a batch is too small to fill a GPU with a thread a star.
//
// A lane has a neuron of each hidden layer and every 32nd sample of a spectrum. What lanes read of one another stands
// in shared memory, as do the star's whitener and, once for all warps of a block, the network; what goes from one step
// of a substitution to the next is handed on in registers. Everything that is a number of the star (parameters,
// constraints, its step) every lane computes for itself, by the functions of the core: these ask a shape for its fluxes
// and for the way back through the network, and for WarpShape they find the functions below. Sums are those of a thread
// that has the star to itself, term by term, but for chi^2, which is a tree over the lanes.
#pragma once

#include "train_memory.cuh"

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

// Of four numbers that of the lane.
__device__ __forceinline__ float of_lane(const float* number) {
    const bool odd = lane_in_warp() % 2 == 1, upper = lane_in_warp() / 2 % 2 == 1;
    const float low = odd ? number[1] : number[0], high = odd ? number[3] : number[2];
    return upper ? high : low;
}

// y = M x and M^T x, M being the inverse of a square on the diagonal, of its first ROWS rows.
template <int ROWS>
__device__ __forceinline__ void solve_square(const float* inverse, const float* x, float* y) {
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        y[r] = inverse[row_start(r)] * x[0];
        XPKERN_UNROLL
        for (int c = 1; c <= r; ++c) y[r] = fma(inverse[row_start(r) + c], x[c], y[r]);
    }
}
template <int ROWS>
__device__ __forceinline__ void solve_square_back(const float* inverse, const float* x, float* y) {
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        y[r] = inverse[row_start(r) + r] * x[r];
        XPKERN_UNROLL
        for (int c = r + 1; c < ROWS; ++c) y[r] = fma(inverse[row_start(c) + r], x[c], y[r]);
    }
}

// Strips of which each lane has a sample, and samples beyond.
constexpr int WHOLE_STRIPS = WarpShape::samples() / LANES, REST = WarpShape::samples() % LANES;
static_assert(REST > 0 && REST <= SOLVED_ROWS && SOLVED_ROWS == 4);

// What is left of the lane's samples, (strips,), becomes y = G^-1 b in the rows of a strip: every lane solves
// SOLVED_ROWS of them for itself by the inverse of their square, so that what all wait for is one exchange, and takes
// them from what is left of its own. Lanes compute what they have no use for rather than branch. Not unrolled, as code
// that runs once takes longer to arrive than to run.
template <int STRIP>
__device__ __forceinline__ void whiten_strip(const SharedStar& star, float* left) {
    const int lane = lane_in_warp();
    XPKERN_ROLLED
    for (int begin = 0; begin < LANES; begin += SOLVED_ROWS) {
        const int first = STRIP * LANES + begin;
        float x[SOLVED_ROWS], y[SOLVED_ROWS];
        XPKERN_UNROLL
        for (int r = 0; r < SOLVED_ROWS; ++r) x[r] = from_lane(left[STRIP], begin + r);
        solve_square<SOLVED_ROWS>(star.inverse[first / SOLVED_ROWS], x, y);
        const float mine = of_lane(y), before = left[STRIP];
        XPKERN_UNROLL
        for (int s = STRIP; s < WHOLE_STRIPS; ++s) {
            const float* factor = star.factor + row_start(lane + s * LANES) + first;
            XPKERN_UNROLL
            for (int r = 0; r < SOLVED_ROWS; ++r) left[s] = fma(-factor[r], y[r], left[s]);
        }
        if (lane < begin + SOLVED_ROWS) left[STRIP] = lane < begin ? before : mine;
    }
    if constexpr (STRIP + 1 < WHOLE_STRIPS) whiten_strip<STRIP + 1>(star, left);
}

__device__ __forceinline__ void whiten_by_warp(const SharedStar& star, float* left) {
    whiten_strip<0>(star, left);
    const int lane = lane_in_warp();
    float x[REST], y[REST];  // the last rows: a sum over the lanes each
    XPKERN_UNROLL
    for (int r = 0; r < REST; ++r) {
        const float* factor = star.factor + row_start(WHOLE_STRIPS * LANES + r) + lane;
        x[r] = 0;
        XPKERN_UNROLL
        for (int s = 0; s < WHOLE_STRIPS; ++s) x[r] = fma(-factor[s * LANES], left[s], x[r]);
        if (lane == r) x[r] += left[WHOLE_STRIPS];
    }
    XPKERN_UNROLL
    for (int half = LANES / 2; half > 0; half /= 2) {
        XPKERN_UNROLL
        for (int r = 0; r < REST; ++r) x[r] += from_lane(x[r], lane ^ half);
    }
    solve_square<REST>(star.inverse[SharedStar::squares - 1], x, y);
    XPKERN_UNROLL
    for (int r = 0; r < REST; ++r) left[WHOLE_STRIPS] = lane == r ? y[r] : left[WHOLE_STRIPS];
}

// The same from the last row up: w = G^-T y.
template <int STRIP>
__device__ __forceinline__ void unwhiten_strip(const SharedStar& star, float* left) {
    const int lane = lane_in_warp();
    XPKERN_ROLLED
    for (int begin = LANES - SOLVED_ROWS; begin >= 0; begin -= SOLVED_ROWS) {
        const int first = STRIP * LANES + begin;
        float x[SOLVED_ROWS], w[SOLVED_ROWS];
        XPKERN_UNROLL
        for (int r = 0; r < SOLVED_ROWS; ++r) x[r] = from_lane(left[STRIP], begin + r);
        solve_square_back<SOLVED_ROWS>(star.inverse[first / SOLVED_ROWS], x, w);
        const float mine = of_lane(w), before = left[STRIP];
        const float* factor = star.factor + row_start(first) + lane;
        XPKERN_UNROLL
        for (int r = 0; r < SOLVED_ROWS; ++r) {
            XPKERN_UNROLL
            for (int s = 0; s <= STRIP; ++s) left[s] = fma(-factor[s * LANES], w[r], left[s]);
            factor += first + r + 1;  // the next row
        }
        if (lane >= begin) left[STRIP] = lane < begin + SOLVED_ROWS ? mine : before;
    }
    if constexpr (STRIP > 0) unwhiten_strip<STRIP - 1>(star, left);
}

__device__ __forceinline__ void unwhiten_by_warp(const SharedStar& star, float* left) {
    const int lane = lane_in_warp();
    float x[REST], w[REST];
    XPKERN_UNROLL
    for (int r = 0; r < REST; ++r) x[r] = from_lane(left[WHOLE_STRIPS], r);
    solve_square_back<REST>(star.inverse[SharedStar::squares - 1], x, w);
    XPKERN_UNROLL
    for (int r = REST - 1; r >= 0; --r) {
        const float* factor = star.factor + row_start(WHOLE_STRIPS * LANES + r) + lane;
        left[WHOLE_STRIPS] = lane == r ? w[r] : left[WHOLE_STRIPS];
        XPKERN_UNROLL
        for (int s = 0; s < WHOLE_STRIPS; ++s) left[s] = fma(-factor[s * LANES], w[r], left[s]);
    }
    unwhiten_strip<WHOLE_STRIPS - 1>(star, left);
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
    whiten_by_warp(star, left);
    float chi2 = 0;
    XPKERN_UNROLL
    for (int s = 0; s < strips; ++s) chi2 = fma(left[s], left[s], chi2);
    chi2 = sum_over_lanes(chi2);
    unwhiten_by_warp(star, left);
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

// A star of the batch to its part of the tape; beyond the last star there are zeros.
__device__ __forceinline__ void record_star_by_warp(const TrainArguments& a, int64_t batch, int64_t item) {
    constexpr int inputs = WarpShape::inputs(), k = WarpShape::parameters(), m = WarpShape::samples();
    const int lane = lane_in_warp();
    SharedStar& star = star_of_warp();
    if (item >= a.size) {
        for (int l = 0; l < WarpShape::last; ++l) star.hidden[l][lane] = star.adjoint[l][lane] = 0;
        for (int i = lane; i < m; i += LANES) star.back[i] = 0;
        if (lane < inputs) star.input[lane] = 0;
        if (lane == 0) star.ext = 0;
        wait_for_copies();
        __syncthreads();
        return;
    }
    const int64_t row = row_in_batch(a, batch, item);
    copy_samples_soon(a.stars, row, star);
    double wide[k];
    float u[k];
    load_params(a.params + row * k, k, wide);
    for (int p = 0; p < k; ++p) u[p] = float(wide[p]);
    if (lane == 0) {
        for (int t = 0; t < inputs; ++t)
            star.input[t] = (u[t] - a.model.in_float.zero_point[t]) * a.model.in_float.inverse_scale[t];
        star.ext = u[inputs];
    }
    wait_for_copies();
    __syncthreads();  // the network is the block's
    invert_squares(star);
    const float chi2 =
        weigh_residual(a.model, WarpShape(a.model), star.flux, star.factor, u, workspace_of_warp(star), Nothing());
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
    // number(star) is a product of a star of the block.
    template <class Number>
    XPKERN_INLINE void add(int at, const Number& number) const {
        float sum = FIRST ? 0.0f : sums[at];
        XPKERN_UNROLL
        for (int s = 0; s < STAR_WARPS; ++s) sum = number(s, sum);
        sums[at] = sum;
    }
    // An output a lane; warps share the inputs.
    template <int LAYER>
    XPKERN_INLINE void add_narrow_layer(int warp, int lane) const {
        constexpr int n_in = WarpShape::width(LAYER), start = layer_start(LAYER);
        float adjoint[STAR_WARPS];
        const float* input[STAR_WARPS];
        XPKERN_UNROLL
        for (int s = 0; s < STAR_WARPS; ++s) {
            adjoint[s] = adjoints(shared_stars().star[s], LAYER)[lane];
            input[s] = inputs(shared_stars().star[s], LAYER) + warp;
        }
        const int own = start + warp * LANES + lane;
        XPKERN_UNROLL
        for (int i = 0; i + STAR_WARPS <= n_in; i += STAR_WARPS)
            add(own + i * LANES, [&](int s, float sum) { return fma(adjoint[s], input[s][i], sum); });
        constexpr int whole = n_in / STAR_WARPS * STAR_WARPS;
        if (warp < n_in - whole)
            add(own + whole * LANES, [&](int s, float sum) { return fma(adjoint[s], input[s][whole], sum); });
        if (warp == STAR_WARPS - 1)
            add(start + n_in * LANES + lane, [&](int s, float sum) { return sum + adjoint[s]; });
        if constexpr (LAYER + 1 < WarpShape::last) add_narrow_layer<LAYER + 1>(warp, lane);
    }
    // An output a thread, or where fewer are left an input of one.
    XPKERN_INLINE void add_last_layer(int thread) const {
        constexpr int layer = WarpShape::last, n_in = WarpShape::width(layer), m = WarpShape::samples();
        constexpr int whole = m / STAR_THREADS * STAR_THREADS, left = m - whole;
        float* const of_layer = sums + layer_start(layer);
        const BlockSums of_last{of_layer};
        float adjoint[STAR_WARPS];
        XPKERN_UNROLL
        for (int begin = 0; begin < whole; begin += STAR_THREADS) {
            const int own = begin + thread;
            XPKERN_UNROLL
            for (int s = 0; s < STAR_WARPS; ++s) adjoint[s] = shared_stars().star[s].back[own];
            XPKERN_UNROLL
            for (int i = 0; i < n_in; ++i)
                of_last.add(own + i * m, [&](int s, float sum) {
                    return fma(adjoint[s], shared_stars().star[s].hidden[layer - 1][i], sum);
                });
            of_last.add(own + n_in * m, [&](int s, float sum) { return sum + adjoint[s]; });
            of_last.add(own + (n_in + 1) * m,
                        [&](int s, float sum) { return fma(adjoint[s], shared_stars().star[s].ext, sum); });
        }
        static_assert(n_in + 2 <= STAR_THREADS);
        if (thread >= n_in + 2) return;
        float value[STAR_WARPS];
        XPKERN_UNROLL
        for (int s = 0; s < STAR_WARPS; ++s) {
            const SharedTape& tape = shared_stars().star[s];
            const float other = thread == n_in ? 1.0f : tape.ext;
            value[s] = thread < n_in ? tape.hidden[layer - 1][thread] : other;
        }
        XPKERN_UNROLL
        for (int o = 0; o < left; ++o)
            of_last.add(thread * m + whole + o,
                        [&](int s, float sum) { return fma(shared_stars().star[s].back[whole + o], value[s], sum); });
    }
    XPKERN_INLINE void add_all() const {
        const int thread = int(threadIdx.x);
        add_narrow_layer<0>(thread / LANES, thread % LANES);
        add_last_layer(thread);
    }
};

// The stars of a batch, a chunk a block: its sums of products.
__device__ __forceinline__ void record_stars_by_warp(const TrainArguments& a) {
    const int64_t batch = open_batch(a);
    if (batch < 0 || blockIdx.x >= a.chunks) return;
    copy_network_soon(a.floats);
    const int64_t stars = a.chunk_stars;
    for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
        const int64_t begin = chunk * stars, end = begin + stars < a.size ? begin + stars : a.size;
        for (int64_t star = begin; star < end; star += STAR_WARPS) {
            record_star_by_warp(a, batch, star + threadIdx.x / LANES);
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
    invert_squares(shared);
    double moved[MAX_PARAMETERS];
    const double loss = move_star(a, WarpShape(a.model), batch, row, star, workspace_of_warp(shared), moved);
    if (lane == 0) a.star_loss[row] = loss;
    for (int p = lane; p < k; p += LANES) a.params[row * k + p] = moved[p];
}

// Steps of the stars of a batch, a star a warp.
__device__ __forceinline__ void step_stars_by_warp(const TrainArguments& a) {
    const int64_t batch = batch_of_stars(a);
    if (batch < 0) return;
    copy_network_soon(a.floats);
    SharedStar& shared = star_of_warp();
    ThreadStar<float, float> star(shared.flux, shared.factor);
    int64_t item = int64_t(blockIdx.x) * STAR_WARPS + threadIdx.x / LANES, row = 0;
    const auto fetch = [&] {
        if (item < a.size) {
            row = row_in_batch(a, batch, item);
            copy_samples_soon(a.stars, row, shared);
            star.gather_constraints(a.stars, row, WarpShape::parameters());  // meanwhile
        }
        wait_for_copies();
    };
    fetch();
    __syncthreads();  // the network is the block's
    while (item < a.size) {
        step_star_by_warp(a, batch, row, star.view());
        item += int64_t(gridDim.x) * STAR_WARPS;
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
#define XPKERN_WARP_KERNEL(NAME, BATCH, BY_WARP, BY_THREAD)             \
    extern "C" __global__ void __launch_bounds__(kernels::STAR_THREADS) \
        NAME(const __grid_constant__ xpkern::TrainArguments a) {        \
        BY_WARP(a);                                                     \
    }
#endif
