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

XPKERN_NAMESPACE_BEGIN

constexpr int LANES = 32;
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

// What the products of the model's gradient are made of.
struct alignas(16) SharedTape {
    float hidden[WarpShape::last][LANES];   // of each hidden layer
    float adjoint[WarpShape::last][LANES];  // of these before the tanh
    float back[WarpShape::samples()];       // w f
    float input[WarpShape::inputs()];       // scaled
    float ext;
};

// The star of a warp.
struct alignas(16) SharedStar : SharedTape {
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
__device__ __forceinline__ int lane_in_warp() {
    return int(threadIdx.x) % LANES;
}
__device__ __forceinline__ float from_lane(float number, int lane) {
    return __shfl_sync(0xffffffffu, number, lane);
}

// Copies a number from memory to shared memory, by some time before wait_for_copies() returns in the same thread. No
// register holds it meanwhile.
__device__ __forceinline__ void copy_soon(float* to, const float* from) {
#if __CUDA_ARCH__ >= 800
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(from) : "memory");
#else
    *to = *from;
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// copy_soon(place(at), from + at) for at < COUNT, dealt out to so many THREADS.
template <int COUNT, int THREADS, class Place>
__device__ __forceinline__ void copy_all_soon(const float* from, const Place& place) {
    const int first = int(threadIdx.x) % THREADS;
    XPKERN_UNROLL
    for (int r = 0; r < (COUNT + THREADS - 1) / THREADS; ++r)
        if (first + r * THREADS < COUNT) copy_soon(place(first + r * THREADS), from + first + r * THREADS);
}

__device__ __forceinline__ void copy_network_soon(const float* floats) {
    SharedNetwork& network = shared_stars().network;
    copy_all_soon<SharedNetwork::size, STAR_THREADS>(floats,
                                                     [&](int at) { return network.number + SharedNetwork::place(at); });
}
__device__ __forceinline__ void copy_samples_soon(const StarArrays& stars, int64_t row, SharedStar& star) {
    constexpr int m = WarpShape::samples(), packed = row_start(m);
    copy_all_soon<m, LANES>(stars.flux + row * m, [&](int at) { return star.flux + at; });
    copy_all_soon<packed, LANES>(stars.whitener + row * packed, [&](int at) { return star.factor + at; });
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

// The way back, from what stands above a layer to the adjoints of all hidden layers.
template <int LAYER>
__device__ __forceinline__ void go_back_by_warp(const float* above) {
    constexpr int n_out = WarpShape::width(LAYER + 1);
    SharedStar& star = star_of_warp();
    const int lane = lane_in_warp();
    const float* weights = shared_stars().network.row(LAYER, lane);
    float adjoint = 0;
    XPKERN_UNROLL
    for (int j = 0; j < n_out; ++j) adjoint = fma(weights[j], above[j], adjoint);
    const float h = star.hidden[LAYER - 1][lane];
    adjoint *= fma(-h, h, 1.0f);
    star.adjoint[LAYER - 1][lane] = adjoint;
    __syncwarp();
    if constexpr (LAYER > 1) go_back_by_warp<LAYER - 1>(star.adjoint[LAYER - 1]);
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
    XPKERN_UNROLL
    for (int half = LANES / 2; half > 0; half /= 2) chi2 += from_lane(chi2, lane ^ half);
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
    go_back_by_warp<WarpShape::last>(star_of_warp().back);
    const SharedNetwork& network = shared_stars().network;
    const float* above = star_of_warp().adjoint[0];
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

// A star of the batch to its part of the tape; beyond the last star there are zeros.
__device__ __forceinline__ void record_star_by_warp(const TrainArguments& a, int64_t batch, int64_t item) {
    constexpr int inputs = WarpShape::inputs(), k = WarpShape::parameters(), m = WarpShape::samples();
    const int lane = lane_in_warp();
    SharedStar& star = star_of_warp();
    if (item >= a.size) {
        for (int l = 0; l < WarpShape::last; ++l) star.hidden[l][lane] = star.adjoint[l][lane] = 0;
        for (int i = lane; i < m; i += LANES) star.back[i] = 0;
        if (lane < inputs) star.input[lane] = 0;
        star.ext = 0;
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
    XPKERN_UNROLL
    for (int t = 0; t < inputs; ++t)
        star.input[t] = (u[t] - a.model.in_float.zero_point[t]) * a.model.in_float.inverse_scale[t];
    star.ext = u[inputs];
    wait_for_copies();
    __syncthreads();  // the network is the block's
    const float chi2 =
        weigh_residual(a.model, WarpShape(a.model), star.flux, star.factor, u, workspace_of_warp(star), Nothing());
    if (lane == 0) a.chi2[item] = chi2;
    go_back_by_warp<WarpShape::last>(star.back);
}

// Sums over the stars of the block, added to what `sums` has of those before, or instead of it where these are the
// first: of the products of one layer. Its weights, biases and, after the last layer's, ln R are the rows of one
// matrix, whose products are with the layer's inputs, with 1 and with the extinction.
struct BlockSums {
    float* sums;
    bool first;

    XPKERN_INLINE static float value(const SharedTape& tape, int layer, int row) {
        if (row == WarpShape::width(layer)) return 1;
        if (row > WarpShape::width(layer)) return tape.ext;
        return layer > 0 ? tape.hidden[layer - 1][row] : tape.input[row];
    }
    XPKERN_INLINE static float adjoint(const SharedTape& tape, int layer, int column) {
        return layer < WarpShape::last ? tape.adjoint[layer][column] : tape.back[column];
    }
    XPKERN_INLINE static constexpr int rows(int layer) {
        return WarpShape::width(layer) + (layer < WarpShape::last ? 1 : 2);
    }
    XPKERN_INLINE void add(int layer, int row, int column, const float* adjoints) const {
        float* const sum = sums + layer_start(layer) + row * WarpShape::width(layer + 1) + column;
        float number = first ? 0.0f : *sum;
        XPKERN_UNROLL
        for (int s = 0; s < STAR_WARPS; ++s)
            number = fma(adjoints[s], value(shared_stars().star[s], layer, row), number);
        *sum = number;
    }
    template <int LAYER>
    XPKERN_INLINE void add_layer() const {
        constexpr int columns = WarpShape::width(LAYER + 1),
                      side_by_side = columns < STAR_THREADS ? LANES : STAR_THREADS,
                      at_once = STAR_THREADS / side_by_side, whole = columns / side_by_side * side_by_side;
        const int thread = int(threadIdx.x);
        float adjoints[STAR_WARPS];
        XPKERN_UNROLL
        for (int begin = 0; begin < whole; begin += side_by_side) {
            const int column = begin + thread % side_by_side;
            XPKERN_UNROLL
            for (int s = 0; s < STAR_WARPS; ++s) adjoints[s] = adjoint(shared_stars().star[s], LAYER, column);
            XPKERN_UNROLL
            for (int row = 0; row < rows(LAYER); row += at_once)
                if (row + thread / side_by_side < rows(LAYER))
                    add(LAYER, row + thread / side_by_side, column, adjoints);
        }
        constexpr int left = columns - whole;
        for (int at = thread; at < left * rows(LAYER); at += STAR_THREADS) {
            const int column = whole + at % (left > 0 ? left : 1);
            XPKERN_UNROLL
            for (int s = 0; s < STAR_WARPS; ++s) adjoints[s] = adjoint(shared_stars().star[s], LAYER, column);
            add(LAYER, at / (left > 0 ? left : 1), column, adjoints);
        }
        if constexpr (LAYER < WarpShape::last) add_layer<LAYER + 1>();
    }
};

// The stars of a batch, a chunk a block: its sums of products.
__device__ __forceinline__ void record_stars_by_warp(const TrainArguments& a) {
    const int64_t batch = open_batch(a);
    if (batch < 0) return;
    copy_network_soon(a.floats);
    const int64_t stars = a.chunk_stars;
    for (int64_t chunk = blockIdx.x; chunk * stars < a.size; chunk += gridDim.x) {
        const int64_t begin = chunk * stars, end = begin + stars < a.size ? begin + stars : a.size;
        for (int64_t star = begin; star < end; star += STAR_WARPS) {
            record_star_by_warp(a, batch, star + threadIdx.x / LANES);
            __syncthreads();
            BlockSums{a.chunk_sums + chunk * SharedNetwork::size, star == begin}.add_layer<0>();
            __syncthreads();  // the next stars take the place of these
        }
    }
}

__device__ __forceinline__ void step_star_by_warp(const TrainArguments& a, int64_t batch, int64_t row) {
    constexpr int k = WarpShape::parameters();
    const int lane = lane_in_warp();
    SharedStar& shared = star_of_warp();
    ThreadStar<float, float> star(shared.flux, shared.factor);
    star.gather_constraints(a.stars, row, k);
    double moved[MAX_PARAMETERS];
    const double loss = move_star(a, WarpShape(a.model), batch, row, star.view(), workspace_of_warp(shared), moved);
    if (lane == 0) a.star_loss[row] = loss;
    for (int p = lane; p < k; p += LANES) a.params[row * k + p] = moved[p];
}

__device__ __forceinline__ void step_stars_by_warp(const TrainArguments& a) {
    const int64_t batch = batch_of_stars(a);
    if (batch < 0) return;
    copy_network_soon(a.floats);
    int64_t item = int64_t(blockIdx.x) * STAR_WARPS + threadIdx.x / LANES, row = 0;
    const auto copy_star = [&] {
        if (item >= a.size) return;
        row = row_in_batch(a, batch, item);
        copy_samples_soon(a.stars, row, star_of_warp());
    };
    copy_star();
    wait_for_copies();
    __syncthreads();  // the network is the block's
    while (item < a.size) {
        step_star_by_warp(a, batch, row);
        item += int64_t(gridDim.x) * STAR_WARPS;
        __syncwarp();
        copy_star();
        wait_for_copies();
        __syncwarp();
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
