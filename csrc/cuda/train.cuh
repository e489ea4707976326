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

// How many parameters there are of each kind: what ParameterLayout says, without arrays.
struct ParameterCounts {
    int64_t size, curve, n_weights;
    XPKERN_INLINE explicit ParameterCounts(const ModelView& model) : size(0), n_weights(0) {
        for (int l = 0; l < model.n_layers; ++l) {
            const int64_t weights = int64_t(model.width[l]) * model.width[l + 1];
            size += weights + model.width[l + 1];
            n_weights += weights;
        }
        curve = size;
        size += model.width[model.n_layers];
    }
};

// That alone, without a division.
XPKERN_INLINE ParameterPlace::Kind kind_of(const ModelView& model, int64_t index) {
    for (int layer = 0; layer < model.n_layers; ++layer) {
        const int64_t n_out = model.width[layer + 1], weights = model.width[layer] * n_out;
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

__device__ __forceinline__ double sum_over_warp(double mine) {
    XPKERN_UNROLL
    for (int half = LANES / 2; half > 0; half /= 2) mine += __shfl_sync(0xffffffffu, mine, lane_in_warp() ^ half);
    return mine;
}

// What a warp has of a parameter: chunks TOTAL_WARPS apart, in double. All loads of some are on their way before one
// is waited for.
__device__ __forceinline__ double sum_of_every(const TrainArguments& a, int64_t parameter, int64_t size,
                                               int64_t first) {
    constexpr int at_once = 16;
    const int64_t chunks = (a.size + a.chunk_stars - 1) / a.chunk_stars;
    double sum = 0;
    for (int64_t chunk = first; chunk < chunks; chunk += at_once * TOTAL_WARPS) {
        float some[at_once];
        XPKERN_UNROLL
        for (int s = 0; s < at_once; ++s) {
            const int64_t one = chunk + s * TOTAL_WARPS;
            some[s] = one < chunks ? a.chunk_sums[one * size + parameter] : 0.0f;
        }
        XPKERN_UNROLL
        for (int s = 0; s < at_once; ++s) sum += double(some[s]);
    }
    return sum;
}

// The gradient of a tile's parameters, and sums over the tile: of its squares, of the squares of the weights, and of
// chi^2 of every so many stars. shared: (TOTAL_WARPS, LANES).
__device__ __forceinline__ void total_of_tile(const TrainArguments& a, int64_t tile, int64_t tiles, double* shared) {
    const ParameterCounts counts(a.model);
    const int warp = int(threadIdx.x) / LANES, lane = lane_in_warp();
    const int64_t own = tile * TILE + lane, parameter = own < counts.size ? own : counts.size - 1;
    const double now = a.parameters[parameter];
    shared[threadIdx.x] = sum_of_every(a, parameter, counts.size, warp);
    __syncthreads();
    if (warp == 0) {
        double total = 0;
        XPKERN_UNROLL
        for (int w = 0; w < TOTAL_WARPS; ++w) total += shared[w * LANES + lane];
        const MeanSlope slope(a.size, counts.n_weights);
        const ParameterPlace::Kind kind = kind_of(a.model, parameter);
        const double gradient = kind == ParameterPlace::WEIGHT ? slope.of_weight(total, now)
                                : kind == ParameterPlace::BIAS ? slope.of_bias(total)
                                                               : slope.of_ln_curve(total, now);
        if (own < counts.size) a.gradient[own] = gradient;
        const double squares = sum_over_warp(own < counts.size ? gradient * gradient : 0);
        const double penalty = sum_over_warp(own < counts.size && kind == ParameterPlace::WEIGHT ? now * now : 0);
        if (lane == 0) {
            a.tile_sums[tile] = squares;
            a.tile_sums[tiles + tile] = penalty;
        }
    } else if (warp == 1) {
        double chi2 = 0;
        for (int64_t star = own; star < a.size; star += tiles * TILE) chi2 += a.chi2[star];
        chi2 = sum_over_warp(chi2);
        if (lane == 0) a.tile_sums[2 * tiles + tile] = chi2;
    }
    __syncthreads();
}

XPKERN_INLINE int64_t tiles_of(int64_t parameters) {
    return (parameters + TILE - 1) / TILE;
}

// Norm of the gradient, and Eq. 12 of the batch at hand: in every warp for itself.
struct BatchTotal {
    double norm, loss;
    __device__ __forceinline__ BatchTotal(const TrainArguments& a, const ParameterCounts& counts) {
        const int64_t tiles = tiles_of(counts.size);
        double sum[3] = {};
        for (int64_t tile = lane_in_warp(); tile < tiles; tile += LANES)
            for (int part = 0; part < 3; ++part) sum[part] += a.tile_sums[part * tiles + tile];
        for (double& part : sum) part = sum_over_warp(part);
        norm = sqrt(sum[0]);
        loss = sum[2] / double(a.size < 1 ? 1 : a.size) + sum[1] / double(counts.n_weights);
    }
};

// One step of the model, a parameter a thread. Threads cannot know whether that of another leads to no model: what was
// before is kept, for train_restore.
__device__ __forceinline__ void step_of_model(const TrainArguments& a, int64_t batch) {
    struct Held {
        double gradient, parameter, first, second;
    };
    const ParameterCounts counts(a.model);
    const auto load = [&](int64_t i) {
        return i < counts.size ? Held{a.gradient[i], a.parameters[i], a.first[i], a.second[i]} : Held{};
    };
    int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    Held now = load(i);  // on its way while sums are taken
    const double rate = a.model_rates[batch];
    const BatchTotal total(a, counts);
    const bool finite = abs(total.loss) < infinity<double>(), movable = total.norm < infinity<double>();
    if (i == 0 && finite && movable) a.model_loss[batch] = total.loss;
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

extern "C" __global__ void train_products(const __grid_constant__ xpkern::TrainArguments a) {
    if (a.state->at < 0) return;
    const int64_t parameters = kernels::ParameterCounts(a.model).size;
    const int64_t chunks = (a.size + a.chunk_stars - 1) / a.chunk_stars;
    kernels::over_items(parameters * chunks, [&](int64_t item) {
        a.chunk_sums[item] = kernels::sum_of_chunk(a, item % parameters, item / parameters);
    });
}

// Blocks of TOTAL_THREADS threads. Nothing that follows asks which batch is to come.
extern "C" __global__ void __launch_bounds__(kernels::TOTAL_THREADS)
    train_gradient(const __grid_constant__ xpkern::TrainArguments a) {
    __shared__ double shared[kernels::TOTAL_THREADS];
    const int64_t batch = a.state->at;
    if (batch < 0) return;
    const int64_t tiles = kernels::tiles_of(kernels::ParameterCounts(a.model).size);
    for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) kernels::total_of_tile(a, tile, tiles, shared);
    if (blockIdx.x == 0 && threadIdx.x == 0) a.state->step = batch + 1;
}

// One warp.
extern "C" __global__ void train_loss(const __grid_constant__ xpkern::TrainArguments a) {
    const kernels::BatchTotal total(a, kernels::ParameterCounts(a.model));
    if (threadIdx.x == 0) a.model_loss[a.state->at] = total.loss;
}

extern "C" __global__ void train_step(const __grid_constant__ xpkern::TrainArguments a) {
    const int64_t batch = a.state->at;
    if (batch >= 0) kernels::step_of_model(a, batch);
}

// After the last batch: a step that led to no model is taken back.
extern "C" __global__ void train_restore(const __grid_constant__ xpkern::TrainArguments a) {
    if (a.state->end == xpkern::TRAINING_GOES_ON) return;
    kernels::over_items(kernels::ParameterCounts(a.model).size, [&](int64_t i) {
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
