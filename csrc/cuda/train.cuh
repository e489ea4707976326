// Training: one batch is a fixed sequence of kernels that ask the device, not the host, which batch it is, so that it
// can be recorded once and replayed.
//
// Stars leave on a tape what the products of the model's gradient are made of: a warp a star where the model is of the
// usual shape, else a thread a star. Sums over a chunk's stars are taken in their order, a parameter a thread, and
// chunks are added up in theirs, in double: the same bytes whatever the grid.
#pragma once

#include "train_warp.cuh"

XPKERN_NAMESPACE_BEGIN

template <class Shape>
__device__ __forceinline__ void record_star(const TrainArguments& a, int64_t item, Arena arena) {
    const Shape shape(a.model);
    const int inputs = shape.inputs(), k = shape.parameters(), m = shape.samples(), last = shape.layers() - 1;
    const int64_t row = row_in_batch(a, item);
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

// sum = add(star, sum) star by star. What several of them load is on its way before the first is added.
template <class Add>
__device__ __forceinline__ float sum_over_stars(int64_t count, const Add& add) {
    constexpr int AT_ONCE = 16;
    float sum = 0;
    int64_t star = 0;
    for (; star + AT_ONCE <= count; star += AT_ONCE) {
        XPKERN_UNROLL
        for (int s = 0; s < AT_ONCE; ++s) sum = add(star + s, sum);
    }
    for (; star < count; ++star) sum = add(star, sum);
    return sum;
}

// A chunk's sum for one parameter.
__device__ __forceinline__ float sum_of_chunk(const TrainArguments& a, int64_t parameter, int64_t chunk) {
    const TapeLayout layout(AnyShape(a.model));
    const ParameterPlace place(a.model, parameter);
    const int64_t first = chunk * CHUNK_STARS, left = a.size - first, count = left < CHUNK_STARS ? left : CHUNK_STARS;
    const int64_t stride = layout.size;
    const float* adjoint = a.tape + first * stride + layout.adjoint[place.layer] + place.out;
    if (place.kind == ParameterPlace::BIAS)
        return sum_over_stars(count, [&](int64_t star, float sum) { return sum + adjoint[star * stride]; });
    const int64_t element = place.kind == ParameterPlace::CURVE ? layout.ext : layout.value[place.layer] + place.in;
    const float* value = a.tape + first * stride + element;
    return sum_over_stars(
        count, [&](int64_t star, float sum) { return fma(adjoint[star * stride], value[star * stride], sum); });
}

__device__ __forceinline__ double slope_of(const TrainArguments& a, int64_t parameter) {
    const ParameterLayout layout(a.model);
    const int64_t chunks = (a.size + CHUNK_STARS - 1) / CHUNK_STARS;
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += double(a.chunk_sums[chunk * layout.size + parameter]);
    const MeanSlope slope(a.size, layout.n_weights);
    const double now = a.parameters[parameter];
    switch (ParameterPlace(a.model, parameter).kind) {
        case ParameterPlace::WEIGHT:
            return slope.of_weight(total, now);
        case ParameterPlace::BIAS:
            return slope.of_bias(total);
        default:
            return slope.of_ln_curve(total, now);
    }
}

// Threads of the kernels of a single block, whose sums depend on it: as many as there may be, each with few parameters,
// as what a parameter waits for is memory.
constexpr int STEP_THREADS = 1024;

// The sum of what each thread of the block has, in every thread, by a tree. shared: (STEP_THREADS,).
__device__ __forceinline__ double sum_over_block(double mine, double* shared) {
    const int thread = int(threadIdx.x);
    shared[thread] = mine;
    __syncthreads();
    for (int half = STEP_THREADS / 2; half > 0; half /= 2) {
        if (thread < half) shared[thread] += shared[thread + half];
        __syncthreads();
    }
    const double sum = shared[0];
    __syncthreads();
    return sum;
}

// Eq. 12 of the batch at hand.
__device__ __forceinline__ double loss_of_batch(const TrainArguments& a, double* shared) {
    const ParameterLayout layout(a.model);
    double chi2 = 0, squares = 0;
    for (int64_t star = threadIdx.x; star < a.size; star += STEP_THREADS) chi2 += a.chi2[star];
    for (int l = 0; l < a.model.n_layers; ++l)
        for (int64_t i = layout.weights[l] + threadIdx.x; i < layout.biases[l]; i += STEP_THREADS)
            squares = fma(a.parameters[i], a.parameters[i], squares);
    chi2 = sum_over_block(chi2, shared);
    squares = sum_over_block(squares, shared);
    return chi2 / double(a.size < 1 ? 1 : a.size) + squares / double(layout.n_weights);
}

// One step of the model; where it leads to no model, nothing but state->end changes.
__device__ __forceinline__ void step_of_model(const TrainArguments& a, double* shared) {
    const ParameterLayout layout(a.model);
    const int64_t step = a.state->step, count = a.state->count + 1;
    const double loss = loss_of_batch(a, shared);
    double squares = 0;
    for (int64_t i = threadIdx.x; i < layout.size; i += STEP_THREADS)
        squares = fma(a.gradient[i], a.gradient[i], squares);
    const double norm = sqrt(sum_over_block(squares, shared));
    const ModelMove move(a.how, a.model_rates[step], count, norm);
    double unusable = 0;
    for (int64_t i = threadIdx.x; i < layout.size; i += STEP_THREADS) {
        double first = a.first[i], second = a.second[i];
        const double by =
            a.how.adam ? move.by<true>(a.gradient[i], first, second) : move.by<false>(a.gradient[i], first, second);
        const double moved = moved_parameter(a.parameters[i], by, i >= layout.curve);
        if (!is_usable(moved, i >= layout.curve)) unusable += 1;
        a.moved[i] = moved;
        a.moved_first[i] = first;
        a.moved_second[i] = second;
    }
    unusable = sum_over_block(unusable, shared);
    const bool finite = abs(loss) < infinity<double>(), usable = norm < infinity<double>() && unusable == 0;
    if (finite && usable) {
        for (int64_t i = threadIdx.x; i < layout.size; i += STEP_THREADS) {
            a.parameters[i] = a.moved[i];
            a.floats[i] = float(a.moved[i]);
            a.first[i] = a.moved_first[i];
            a.second[i] = a.moved_second[i];
        }
    }
    if (threadIdx.x > 0) return;
    if (!finite) {
        a.state->end = LOSS_NOT_FINITE;
    } else if (!usable) {
        a.state->end = MODEL_NOT_FINITE;
    } else {
        a.model_loss[step] = loss;
        a.state->count = count;
    }
}

template <class Shape>
__device__ __forceinline__ void step_star(const TrainArguments& a, int64_t item, Arena arena) {
    const Shape shape(a.model);
    const int k = shape.parameters();
    const int64_t row = row_in_batch(a, item);
    ThreadSpace<float, float> space(shape, PriorView{}, arena);
    space.star.gather(a.stars, row, shape.samples(), k);
    double moved[MAX_PARAMETERS];
    a.star_loss[row] = move_star(a, shape, row, space.star.view(), space.workspace, moved);
    for (int p = 0; p < k; ++p) a.params[row * k + p] = moved[p];
}

XPKERN_NAMESPACE_END

XPKERN_WARP_KERNEL(train_stars, kernels::record_star_by_warp, kernels::record_star)
XPKERN_WARP_KERNEL(train_star_steps, kernels::step_star_by_warp, kernels::step_star)

extern "C" __global__ void train_products(const __grid_constant__ xpkern::TrainArguments a) {
    if (!kernels::at_work(a)) return;
    const int64_t parameters = kernels::ParameterLayout(a.model).size;
    const int64_t chunks = (a.size + kernels::CHUNK_STARS - 1) / kernels::CHUNK_STARS;
    kernels::over_items(parameters * chunks, [&](int64_t item) {
        a.chunk_sums[item] = kernels::sum_of_chunk(a, item % parameters, item / parameters);
    });
}

extern "C" __global__ void train_gradient(const __grid_constant__ xpkern::TrainArguments a) {
    if (!kernels::at_work(a)) return;
    kernels::over_items(kernels::ParameterLayout(a.model).size,
                        [&](int64_t parameter) { a.gradient[parameter] = kernels::slope_of(a, parameter); });
}

// One block of STEP_THREADS threads, as the next one.
extern "C" __global__ void __launch_bounds__(kernels::STEP_THREADS)
    train_loss(const __grid_constant__ xpkern::TrainArguments a) {
    __shared__ double shared[kernels::STEP_THREADS];
    const double loss = kernels::loss_of_batch(a, shared);
    if (threadIdx.x == 0) a.model_loss[a.state->step] = loss;
}

extern "C" __global__ void __launch_bounds__(kernels::STEP_THREADS)
    train_step(const __grid_constant__ xpkern::TrainArguments a) {
    __shared__ double shared[kernels::STEP_THREADS];
    if (kernels::at_work(a)) kernels::step_of_model(a, shared);
}

extern "C" __global__ void train_advance(const __grid_constant__ xpkern::TrainArguments a) {
    if (kernels::at_work(a) && blockIdx.x == 0 && threadIdx.x == 0) ++a.state->step;
}
