// Training: one batch is a fixed sequence of kernels that ask the device, not the host, which batch it is, so that it
// can be recorded once and replayed.
//
// Stars leave on a tape what the products of the model's gradient are made of: a warp a star in shared memory where the
// model is of the usual shape, else a thread a star. Sums over the stars of a chunk are taken in their order, and
// chunks are added up in an order of theirs, in double: the same bytes whatever the grid.
#pragma once

#include "train_warp.cuh"

XPKERN_NAMESPACE_BEGIN

template <class Shape>
__device__ __forceinline__ void record_star(const TrainArguments& a, int64_t batch, int64_t item, Arena arena) {
    const Shape shape(a.model);
    const int inputs = shape.inputs(), k = shape.parameters(), m = shape.samples(), last = shape.layers() - 1;
    const int64_t row = row_in_batch(a, batch, item);
    const auto& network = a.model.in_float;
    ThreadSpace<float, float> space(shape, PriorView{}, arena);
    space.star.gather(a.stars, row, m, k);
    double wide[MAX_PARAMETERS];
    load_params(a.params + row * k, k, wide);
    float u[MAX_PARAMETERS];
    for (int p = 0; p < k; ++p) u[p] = float(wide[p]);
    a.chi2[item] = weigh_residual(a.model, shape, static_cast<const float*>(space.star.flux),
                                  static_cast<const float*>(space.star.factor), u, space.workspace, Nothing());

    const TapeLayout layout(shape);
    float* const of_star = a.tape + item * layout.size;
    const auto write = [&](int64_t element, float number) { of_star[element] = number; };
    const auto& tape = space.workspace.tape;
    for (int t = 0; t < inputs; ++t)
        write(layout.value[0] + t, (u[t] - network.zero_point[t]) * network.inverse_scale[t]);
    for (int l = 1; l <= last; ++l)
        for (int j = 0; j < shape.width(l); ++j) write(layout.value[l] + j, tape.hidden[l - 1][j]);
    write(layout.ext, u[inputs]);

    const float* above = space.workspace.back;
    for (int i = 0; i < m; ++i) write(layout.adjoint[last] + i, above[i]);
    for (int l = last; l >= 1; --l) {
        float* adjoint = tape.adjoint[l % 2];
        reverse_multiply<float>(network.weights[l], shape.width(l), shape.width(l + 1), above, adjoint);
        for (int j = 0; j < shape.width(l); ++j) {
            const float h = tape.hidden[l - 1][j];
            adjoint[j] *= fma(-h, h, 1.0f);
            write(layout.adjoint[l - 1] + j, adjoint[j]);
        }
        above = adjoint;
    }
}

// A parameter's place in the model.
struct ParameterPlace {
    enum Kind { WEIGHT, BIAS, CURVE } kind;
    int layer, in, out;
    XPKERN_INLINE ParameterPlace(const ModelView& model, int64_t index) : kind(CURVE), layer(0), in(0), out(0) {
        for (; layer < model.n_layers; ++layer) {
            const int n_in = model.width[layer], n_out = model.width[layer + 1];
            if (index < int64_t(n_in) * n_out) {
                kind = WEIGHT;
                in = int(index / n_out);
                out = int(index % n_out);
                return;
            }
            index -= int64_t(n_in) * n_out;
            if (index < n_out) {
                kind = BIAS;
                out = int(index);
                return;
            }
            index -= n_out;
        }
        layer = model.n_layers - 1;
        out = int(index);
    }
};

// That alone, without a division.
XPKERN_INLINE ParameterPlace::Kind kind_of(const ModelView& model, int index) {
    for (int layer = 0; layer < model.n_layers; ++layer) {
        const int n_out = int(model.width[layer + 1]), weights = int(model.width[layer]) * n_out;
        if (index < weights) return ParameterPlace::WEIGHT;
        if (index < weights + n_out) return ParameterPlace::BIAS;
        index -= weights + n_out;
    }
    return ParameterPlace::CURVE;
}

// A chunk's sum for one parameter, from the tape.
__device__ __forceinline__ float sum_of_chunk(const TrainArguments& a, int64_t parameter, int64_t chunk) {
    const TapeLayout layout(AnyShape(a.model));
    const ParameterPlace place(a.model, parameter);
    const int64_t first = chunk * a.chunk_stars, end = first + a.chunk_stars < a.size ? first + a.chunk_stars : a.size;
    const float* adjoint = a.tape + layout.adjoint[place.layer] + place.out;
    const int64_t element = place.kind == ParameterPlace::CURVE ? layout.ext : layout.value[place.layer] + place.in;
    float sum = 0;
    for (int64_t star = first; star < end; ++star) {
        const float value = place.kind == ParameterPlace::BIAS ? 1.0f : a.tape[star * layout.size + element];
        sum = fma(adjoint[star * layout.size], value, sum);
    }
    return sum;
}

// A block of the total has a parameter a lane; its warps share the chunks.
constexpr int TILE = LANES, TOTAL_WARPS = 16, TOTAL_THREADS = TOTAL_WARPS * LANES;

// Parameters of all tiles: numbers of a chunk in TrainArguments::chunk_sums, those beyond the last parameter unused.
XPKERN_INLINE int64_t padded(int64_t parameters) {
    return (parameters + TILE - 1) / TILE * TILE;
}

// Has a star's samples brought to the second-level cache, by a warp.
__device__ __forceinline__ void expect_samples(const TrainArguments& a, int64_t row) {
    constexpr int sector = 8;  // numbers that memory hands out at a time
    const int lane = lane_in_warp(), m = int(a.model.width[a.model.n_layers]), packed = row_start(m);
    const float *whitener = a.stars.whitener + row * packed, *flux = a.stars.flux + row * m;
    for (int at = lane * sector; at < packed; at += LANES * sector) expect(whitener + at);
    for (int at = lane * sector; at < m; at += LANES * sector) expect(flux + at);
}

struct SharedTotal {
    static constexpr int chunks = 128;  // that are added up at a time: those of 512 stars
    alignas(16) float sum[chunks][TILE];
    double of_warp[TOTAL_WARPS][LANES];
};

__device__ __forceinline__ double sum_over_warp(double mine) {
    XPKERN_UNROLL
    for (int half = LANES / 2; half > 0; half /= 2) mine += __shfl_sync(0xffffffffu, mine, lane_in_warp() ^ half);
    return mine;
}

// The sum over all chunks for a lane's parameter of a tile, of every TOTAL_WARPS-th chunk by a warp, in double. Chunks
// go through shared memory: there all of them are on their way before one is waited for, while of loads to registers
// the compiler makes few at a time. meanwhile(): while the first ones are.
template <class Meanwhile>
__device__ __forceinline__ double total_of_chunks(const TrainArguments& a, int tile, SharedTotal& shared,
                                                  const Meanwhile& meanwhile) {
    constexpr int quarters = TILE / 4, at_once = TOTAL_THREADS / quarters;
    const int thread = int(threadIdx.x), warp = thread / LANES, lane = lane_in_warp();
    const int row = thread / quarters, column = thread % quarters * 4;
    const int chunks = int(a.chunks), stride = int(padded(a.counts.size));
    double sum = 0;
    int first = 0;
    do {  // once where there are none
        const float* const from = a.chunk_sums + int64_t(first + row) * stride + (tile * TILE + column);
        XPKERN_UNROLL
        for (int more = 0; more < SharedTotal::chunks; more += at_once)
            if (first + row + more < chunks)
                copy_soon<16>(&shared.sum[row + more][column], from + int64_t(more) * stride);
        if (first == 0) meanwhile();
        wait_for_copies();
        __syncthreads();
        XPKERN_UNROLL
        for (int chunk = 0; chunk < SharedTotal::chunks; chunk += TOTAL_WARPS)
            sum += first + chunk + warp < chunks ? double(shared.sum[chunk + warp][lane]) : 0.0;
        __syncthreads();
        first += SharedTotal::chunks;
    } while (first < chunks);
    shared.of_warp[warp][lane] = sum;
    __syncthreads();
    double total = 0;
    if (warp == 0) {
        XPKERN_UNROLL
        for (int w = 0; w < TOTAL_WARPS; ++w) total += shared.of_warp[w][lane];
    }
    return total;  // of the first warp
}

// Sums over a tile: of the squares of its gradient, of the squares of its weights, and of chi^2 of every so many stars.
constexpr int TILE_SUMS = 3;

// The gradient of a tile's parameters, and its sums, by the first two warps: of no use where there is no batch, but
// then they need not wait to be told. The others say which stars are to come and have them brought near: memory has
// nothing else to do until that batch begins, and would take as long as a quarter of its work.
__device__ __forceinline__ void gradient_of_tile(const TrainArguments& a, int tile, SharedTotal& shared) {
    const int parameters = int(a.counts.size), warp = int(threadIdx.x) / LANES, lane = lane_in_warp();
    const int own = tile * TILE + lane, parameter = own < parameters ? own : parameters - 1;
    const int tiles = int(padded(parameters) / TILE);
    const double now = a.parameters[parameter];
    double chi2 = warp == 1 && own < a.size ? a.chi2[own] : 0;
    ParameterPlace::Kind kind{};
    MeanSlope slope{};
    const double total = total_of_chunks(a, tile, shared, [&] {
        if (warp > 0) return;
        kind = kind_of(a.model, parameter);
        slope = MeanSlope(a.size, a.counts.n_weights);
    });
    double* const sums = a.tile_sums + tile * TILE_SUMS;
    if (warp == 0) {
        const double gradient = kind == ParameterPlace::WEIGHT ? slope.of_weight(total, now)
                                : kind == ParameterPlace::BIAS ? slope.of_bias(total)
                                                               : slope.of_ln_curve(total, now);
        if (own < parameters) a.gradient[own] = gradient;
        const double squares = sum_over_warp(own < parameters ? gradient * gradient : 0);
        const double penalty = sum_over_warp(own < parameters && kind == ParameterPlace::WEIGHT ? now * now : 0);
        if (lane == 0) {
            sums[0] = squares;
            sums[1] = penalty;
        }
    } else if (warp == 1) {
        for (int64_t star = own + tiles * TILE; star < a.size; star += tiles * TILE) chi2 += a.chi2[star];
        chi2 = sum_over_warp(chi2);
        if (lane == 0) sums[2] = chi2;
    } else {
        constexpr int idle = TOTAL_WARPS - 2;
        const int64_t batch = a.state->at;
        if (batch < 0) return;
        if (tile == 0 && warp == 2 && lane == 0) {
            a.state->step = batch + 1;                                // what follows asks for `at` alone,
            if (a.model_rates) a.state->rate = a.model_rates[batch];  // and need not wait for that to know its rate
        }
        if (batch + 1 == a.steps) return;
        XPKERN_ROLLED
        for (int64_t star = (warp - 2) * tiles + tile; star < a.size; star += idle * tiles) {
            const int64_t row = row_in_batch(a, batch + 1, star);
            if (lane == 0) a.next_rows[star] = row;
            expect_samples(a, row);
        }
    }
}

// Threads of a block of the step: most models have no more tiles.
constexpr int STEP_THREADS = 256, STEP_WARPS = STEP_THREADS / LANES;

// Norm of the gradient, and the terms of Eq. 12 of the batch at hand: in every thread.
struct BatchTotal {
    double norm, chi2, penalty;
    __device__ __forceinline__ explicit BatchTotal(const TrainArguments& a) {
        __shared__ double shared[STEP_WARPS][TILE_SUMS];
        const int thread = int(threadIdx.x);
        const int64_t tiles = padded(a.counts.size) / TILE;
        double sum[TILE_SUMS] = {};
        XPKERN_ROLLED
        for (int64_t tile = thread; tile < tiles; tile += STEP_THREADS)
            for (int part = 0; part < TILE_SUMS; ++part) sum[part] += a.tile_sums[tile * TILE_SUMS + part];
        for (int part = 0; part < TILE_SUMS; ++part) {
            sum[part] = sum_over_warp(sum[part]);
            if (lane_in_warp() == 0) shared[thread / LANES][part] = sum[part];
        }
        __syncthreads();
        for (int part = 0; part < TILE_SUMS; ++part) {
            sum[part] = 0;
            XPKERN_UNROLL
            for (int warp = 0; warp < STEP_WARPS; ++warp) sum[part] += shared[warp][part];
        }
        norm = sqrt(sum[0]);
        penalty = sum[1];
        chi2 = sum[2];
    }
    // Whether Eq. 12 is a number, without its divisions.
    __device__ __forceinline__ bool is_finite() const { return abs(chi2 + penalty) < infinity<double>(); }
    __device__ __forceinline__ double loss(const TrainArguments& a) const {
        return chi2 / double(a.size < 1 ? 1 : a.size) + penalty / double(a.counts.n_weights);
    }
};

// One step of the model, a parameter a thread. Threads cannot know whether that of another leads to no model: what was
// before is kept, for train_restore. Whether there is a batch is asked when all that is loaded is on its way.
__device__ __forceinline__ void step_of_model(const TrainArguments& a) {
    struct Held {
        double gradient, parameter, first, second;
    };
    const ParameterCounts& counts = a.counts;
    const auto load = [&](int64_t i) {
        return i < counts.size ? Held{a.gradient[i], a.parameters[i], a.first[i], a.second[i]} : Held{};
    };
    int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const bool is_last = i + 1 == int64_t(gridDim.x) * blockDim.x;
    Held now = load(i);
    const double rate = a.state->rate;
    const int64_t batch = a.state->at;
    const BatchTotal total(a);
    if (batch < 0) return;
    const bool finite = total.is_finite(), movable = total.norm < infinity<double>();
    if (i == 0 && !(finite && movable)) {
        a.state->end = finite ? MODEL_NOT_FINITE : LOSS_NOT_FINITE;
        a.state->step = batch;
    }
    const ModelMove move(a.how, rate, a.count + batch + 1, total.norm);
    for (; i < counts.size; now = load(i)) {
        const bool is_curve = i >= counts.curve;
        a.parameters_before[i] = now.parameter;
        a.first_before[i] = now.first;
        a.second_before[i] = now.second;
        if (finite && movable) {
            const double by = a.how.adam ? move.by<true>(now.gradient, now.first, now.second)
                                         : move.by<false>(now.gradient, now.first, now.second);
            const double moved = moved_parameter(now.parameter, by, is_curve);
            a.parameters[i] = moved;
            a.floats[i] = float(moved);
            a.first[i] = now.first;
            a.second[i] = now.second;
            if (!is_usable(moved, is_curve)) {
                a.state->end = MODEL_NOT_FINITE;
                a.state->step = batch;
            }
        }
        i += int64_t(gridDim.x) * blockDim.x;
    }
    // two divisions, by a thread that mostly has no parameter: others need not wait for them
    if (is_last && finite && movable) a.model_loss[batch] = total.loss(a);
}

template <class Shape>
__device__ __forceinline__ void step_star(const TrainArguments& a, int64_t batch, int64_t item, Arena arena) {
    const Shape shape(a.model);
    const int k = shape.parameters();
    const int64_t row = row_in_batch(a, batch, item);
    ThreadSpace<float, float> space(shape, PriorView{}, arena);
    space.star.gather(a.stars, row, shape.samples(), k);
    double moved[MAX_PARAMETERS];
    a.star_loss[row] = move_star(a, shape, batch, row, space.star.view(), space.workspace, moved);
    for (int p = 0; p < k; ++p) a.params[row * k + p] = moved[p];
}

XPKERN_NAMESPACE_END

// What begins with a batch: the sums of its chunks, which the general form leaves to train_products.
XPKERN_WARP_KERNEL(train_stars, kernels::open_batch, kernels::record_stars_by_warp, kernels::record_star)
XPKERN_WARP_KERNEL(train_star_steps, kernels::batch_of_stars, kernels::step_stars_by_warp, kernels::step_star)

// Whiteners of stars to train on become their inverses, a warp a star.
extern "C" __global__ void invert_whiteners(const __grid_constant__ xpkern::WhitenerArguments a) {
    const int64_t warps = int64_t(gridDim.x) * blockDim.x / kernels::LANES;
    for (int64_t star = (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) / kernels::LANES; star < a.n; star += warps)
        kernels::invert_whitener(a.whitener + star * kernels::row_start(kernels::WarpShape::samples()));
}

extern "C" __global__ void train_products(const __grid_constant__ xpkern::TrainArguments a) {
    if (a.state->at < 0) return;
    const int64_t parameters = a.counts.size;
    kernels::over_items(parameters * a.chunks, [&](int64_t item) {
        const int64_t parameter = item % parameters, chunk = item / parameters;
        a.chunk_sums[chunk * kernels::padded(parameters) + parameter] = kernels::sum_of_chunk(a, parameter, chunk);
    });
}

// Blocks of TOTAL_THREADS threads, one for each tile.
extern "C" __global__ void __launch_bounds__(kernels::TOTAL_THREADS)
    train_gradient(const __grid_constant__ xpkern::TrainArguments a) {
    __shared__ kernels::SharedTotal shared;
    kernels::gradient_of_tile(a, blockIdx.x, shared);
}

// One block of STEP_THREADS threads.
extern "C" __global__ void __launch_bounds__(kernels::STEP_THREADS)
    train_loss(const __grid_constant__ xpkern::TrainArguments a) {
    const kernels::BatchTotal total(a);
    if (threadIdx.x == 0) a.model_loss[a.state->at] = total.loss(a);
}

// Blocks of STEP_THREADS threads.
extern "C" __global__ void __launch_bounds__(kernels::STEP_THREADS)
    train_step(const __grid_constant__ xpkern::TrainArguments a) {
    kernels::step_of_model(a);
}

// After the last batch: a step that led to no model is taken back.
extern "C" __global__ void train_restore(const __grid_constant__ xpkern::TrainArguments a) {
    if (a.state->end == xpkern::TRAINING_GOES_ON) return;
    kernels::over_items(a.counts.size, [&](int64_t i) {
        a.parameters[i] = a.parameters_before[i];
        a.floats[i] = float(a.parameters[i]);
        a.first[i] = a.first_before[i];
        a.second[i] = a.second_before[i];
    });
}

// What begins with a batch that leaves the model as it is.
extern "C" __global__ void train_advance(const __grid_constant__ xpkern::TrainArguments a) {
    const int64_t batch = kernels::open_batch(a);
    if (batch >= 0) a.state->step = batch + 1;
}
