// Training: one batch is a fixed sequence of kernels that ask the device, not the host, which batch it is, so that it
// can be recorded once and replayed.
//
// Stars leave on a tape what the products of the model's gradient are made of: a warp a star in shared memory where the
// model is of the usual shape, else a thread a star. Sums over the stars of a chunk are taken in their order, and
// chunks are added up in an order of theirs, in double: the same bytes whatever the grid. Two kernels a batch, three
// where its stars go steps, too: what lies between kernels takes as long as a third of one.
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
    const auto copy_from = [&](int first) {
        const float* const from = a.chunk_sums + int64_t(first + row) * stride + (tile * TILE + column);
        XPKERN_UNROLL
        for (int more = 0; more < SharedTotal::chunks; more += at_once)
            if (first + row + more < chunks)
                copy_soon<16>(&shared.sum[row + more][column], from + int64_t(more) * stride);
    };
    copy_from(0);
    meanwhile();
    double sum = 0;
    for (int first = 0;;) {  // once where there are none
        wait_for_copies();
        __syncthreads();
        XPKERN_UNROLL
        for (int chunk = 0; chunk < SharedTotal::chunks; chunk += TOTAL_WARPS) {
            const float mine = shared.sum[chunk + warp][lane];
            sum += double(first + chunk + warp < chunks ? mine : 0.0f);
        }
        __syncthreads();
        first += SharedTotal::chunks;
        if (first >= chunks) break;
        copy_from(first);
    }
    shared.of_warp[warp][lane] = sum;
    __syncthreads();
    double total = 0;
    if (warp == 0) {
        XPKERN_UNROLL
        for (int w = 0; w < TOTAL_WARPS; ++w) total += shared.of_warp[w][lane];
    }
    return total;  // of the first warp
}

// A parameter and what the optimiser remembers of it: a gradient's square is Adam's alone.
struct HeldParameter {
    double value, first, second;
    __device__ __forceinline__ static HeldParameter now(const TrainArguments& a, int64_t i) {
        return {a.parameters[i], a.first[i], a.how.adam ? a.second[i] : 0};
    }
    __device__ __forceinline__ static HeldParameter before(const TrainArguments& a, int64_t i) {
        return {a.parameters_before[i], a.first_before[i], a.how.adam ? a.second_before[i] : 0};
    }
    __device__ __forceinline__ void keep_before(const TrainArguments& a, int64_t i) const {
        a.parameters_before[i] = value;
        a.first_before[i] = first;
        if (a.how.adam) a.second_before[i] = second;
    }
    __device__ __forceinline__ void put(const TrainArguments& a, int64_t i) const {
        a.parameters[i] = value;
        a.floats[i] = float(value);
        a.first[i] = first;
        if (a.how.adam) a.second[i] = second;
    }
    // Goes its step; false where that leads to no model.
    template <bool ADAM>
    __device__ __forceinline__ bool move(const ModelMove& by, double gradient, bool is_curve) {
        value = moved_parameter(value, by.by<ADAM>(gradient, first, second), is_curve);
        return is_usable(value, is_curve);
    }
};

// Sums over a tile: of the squares of its gradient, of the squares of its weights, of chi^2 of every so many stars, and
// 1 where a parameter's step led to no model.
constexpr int TILE_SUMS = 4;

// The gradient of a tile's parameters, their step, and the tile's sums, by the first two warps. Whether the gradient is
// to be scaled down no tile knows: the step is that of a gradient that is not, and what was before it is kept for
// end_batch. The other warps say which stars are to come and have them brought near: memory has nothing else to do
// until that batch begins, and would take as long as a quarter of its work. Where there is no batch no step is gone,
// but nobody waits to be told before it is time for one.
__device__ __forceinline__ void step_of_tile(const TrainArguments& a, int64_t batch, int tile, SharedTotal& shared) {
    const int parameters = int(a.counts.size), warp = int(threadIdx.x) / LANES, lane = lane_in_warp();
    const int own = tile * TILE + lane, parameter = own < parameters ? own : parameters - 1;
    const int tiles = int(padded(parameters) / TILE);
    HeldParameter held = HeldParameter::now(a, parameter);
    double chi2 = warp == 1 && own < a.size ? a.chi2[own] : 0;
    ParameterPlace::Kind kind{};
    MeanSlope slope{};
    ModelMove move{};
    const bool moves = a.model_rates && batch >= 0;
    const double total = total_of_chunks(a, tile, shared, [&] {
        if (warp > 1) return;
        const double rate = moves ? a.model_rates[batch] : 0;
        kind = kind_of(a.model, parameter);
        if (warp > 0) return;
        slope = MeanSlope(a.size, a.counts.n_weights);
        if (moves) move = ModelMove(a.how, rate, a.count + batch + 1);
    });
    double* const sums = a.tile_sums + tile;
    if (warp == 0) {
        const double gradient = kind == ParameterPlace::WEIGHT ? slope.of_weight(total, held.value)
                                : kind == ParameterPlace::BIAS ? slope.of_bias(total)
                                                               : slope.of_ln_curve(total, held.value);
        bool usable = true;
        if (own < parameters) {
            a.gradient[own] = gradient;
            if (moves) {
                held.keep_before(a, own);
                const bool is_curve = kind == ParameterPlace::CURVE;
                usable =
                    a.how.adam ? held.move<true>(move, gradient, is_curve) : held.move<false>(move, gradient, is_curve);
                held.put(a, own);
            }
        }
        const double squares = sum_over_warp(own < parameters ? gradient * gradient : 0);
        const unsigned unusable = lanes_of_which(!usable);
        if (lane == 0) {
            sums[0] = squares;
            sums[3 * tiles] = unusable ? 1 : 0;
        }
    } else if (warp == 1) {
        const bool is_weight = own < parameters && kind == ParameterPlace::WEIGHT;
        const double penalty = sum_over_warp(is_weight ? held.value * held.value : 0);
        for (int64_t star = own + tiles * TILE; star < a.size; star += tiles * TILE) chi2 += a.chi2[star];
        chi2 = sum_over_warp(chi2);
        if (lane == 0) {
            sums[tiles] = penalty;
            sums[2 * tiles] = chi2;
        }
    } else if (batch >= 0 && batch + 1 < a.steps) {
        constexpr int idle = TOTAL_WARPS - 2;
        XPKERN_ROLLED
        for (int64_t star = (warp - 2) * tiles + tile; star < a.size; star += idle * tiles) {
            const int64_t row = row_in_batch(a, batch + 1, star);
            if (lane == 0) a.next_rows[star] = row;
            expect_samples(a, row);
        }
    }
}

// Warps that add up the sums of tiles: most models have no more tiles than these have lanes.
constexpr int ADDING_WARPS = 8, ADDING_THREADS = ADDING_WARPS * LANES;

// Norm of the gradient, Eq. 12, and whether all steps lead to a model, of the batch at hand: in every thread.
struct BatchTotal {
    double norm, loss;
    bool usable;
    __device__ __forceinline__ explicit BatchTotal(const TrainArguments& a) {
        // found while sums are on their way: at the end all would wait for them
        const double of_star = 1.0 / double(a.size < 1 ? 1 : a.size), of_weight = 1.0 / double(a.counts.n_weights);
        __shared__ double of_warp[ADDING_WARPS][TILE_SUMS];
        const int thread = int(threadIdx.x), tiles = int(padded(a.counts.size) / TILE);
        double sum[TILE_SUMS] = {};
        if (thread < ADDING_THREADS) {
            XPKERN_ROLLED
            for (int tile = thread; tile < tiles; tile += ADDING_THREADS)
                for (int part = 0; part < TILE_SUMS; ++part) sum[part] += a.tile_sums[part * tiles + tile];
            for (int part = 0; part < TILE_SUMS; ++part) {
                sum[part] = sum_over_warp(sum[part]);
                if (lane_in_warp() == 0) of_warp[thread / LANES][part] = sum[part];
            }
        }
        __syncthreads();
        for (int part = 0; part < TILE_SUMS; ++part) {
            sum[part] = 0;
            XPKERN_UNROLL
            for (int warp = 0; warp < ADDING_WARPS; ++warp) sum[part] += of_warp[warp][part];
        }
        norm = sqrt(sum[0]);
        loss = sum[2] * of_star + sum[1] * of_weight;
        usable = sum[3] == 0;
    }
};

// The step anew, from what was before it, of a thread's share of parameters: false where one leads to no model. So many
// at once are on their way before one is waited for.
template <bool ADAM, int AT_ONCE>
__device__ __forceinline__ bool step_again(const TrainArguments& a, const ModelMove& move, int begin, int end,
                                           bool is_curve) {
    bool usable = true;
    XPKERN_ROLLED
    for (int first = begin + int(threadIdx.x); first < end; first += AT_ONCE * TOTAL_THREADS) {
        HeldParameter held[AT_ONCE];
        double gradient[AT_ONCE];
        const auto place = [&](int some) {
            return first + some * TOTAL_THREADS < end ? first + some * TOTAL_THREADS : first;
        };
        XPKERN_UNROLL
        for (int some = 0; some < AT_ONCE; ++some) {
            held[some] = HeldParameter::before(a, place(some));
            gradient[some] = a.gradient[place(some)];
        }
        XPKERN_UNROLL
        for (int some = 0; some < AT_ONCE; ++some) {
            HeldParameter& one = held[some];
            usable = one.move<ADAM>(move, gradient[some], is_curve) & usable;
            one.put(a, place(some));
        }
    }
    return usable;
}

// That of all parameters, by a block.
template <bool ADAM>
__device__ __forceinline__ bool step_again(const TrainArguments& a, const ModelMove& move) {
    // gradients that are scaled down are those of descent: a network's usual parameters all at once
    constexpr int at_once = ADAM ? 1 : 9;
    const int curve = int(a.counts.curve), parameters = int(a.counts.size);
    __shared__ unsigned long long unusable;
    if (threadIdx.x == 0) unusable = 0;
    __syncthreads();
    const bool usable = step_again<ADAM, at_once>(a, move, 0, curve, false);
    if (!(step_again<ADAM, 1>(a, move, curve, parameters, true) & usable)) atomicAdd(&unusable, 1ull);
    __syncthreads();
    return unusable == 0;
}

// A step that led to no model is taken back.
__device__ __forceinline__ void take_back(const TrainArguments& a) {
    XPKERN_ROLLED
    for (int64_t i = threadIdx.x; i < a.counts.size; i += TOTAL_THREADS) HeldParameter::before(a, i).put(a, i);
}

// Whether the model's step is one, and what has to be done about it if not or if the gradient is to be scaled down.
__device__ __forceinline__ TrainingEnd check_step(const TrainArguments& a, int64_t batch, double rate,
                                                  const BatchTotal& total) {
    const bool finite = abs(total.loss) < infinity<double>();
    bool is_step = finite && total.norm < infinity<double>() && total.usable;
    if (finite && total.norm < infinity<double>() && total.norm > a.how.clip) {
        const ModelMove move(a.how, rate, a.count + batch + 1, total.norm);
        is_step = a.how.adam ? step_again<true>(a, move) : step_again<false>(a, move);
    }
    if (!is_step) take_back(a);
    return is_step ? TRAINING_GOES_ON : finite ? MODEL_NOT_FINITE : LOSS_NOT_FINITE;
}

// What is left to do of a batch when all tiles have gone their step, by one block.
__device__ __forceinline__ void end_batch(const TrainArguments& a, int64_t batch) {
    const double rate = a.model_rates ? a.model_rates[batch] : 0;
    const BatchTotal total(a);
    const TrainingEnd end = a.model_rates ? check_step(a, batch, rate, total) : TRAINING_GOES_ON;
    if (threadIdx.x == 0) {
        a.state->end = end;
        a.state->step = batch + (end == TRAINING_GOES_ON);
        a.model_loss[batch] = total.loss;
    }
}

// The gradient of the batch at hand, and where the model has a rate its step.
__device__ __forceinline__ void step_of_model(const TrainArguments& a, SharedTotal& shared) {
    const int64_t batch = a.state->at;
    step_of_tile(a, batch, int(blockIdx.x), shared);
    if (batch >= 0 && is_last_of_grid(a.state->arrived)) end_batch(a, batch);
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
    train_model(const __grid_constant__ xpkern::TrainArguments a) {
    __shared__ kernels::SharedTotal shared;
    kernels::step_of_model(a, shared);
}

// What begins with a batch that leaves the model as it is.
extern "C" __global__ void train_advance(const __grid_constant__ xpkern::TrainArguments a) {
    const int64_t batch = kernels::open_batch(a);
    if (batch >= 0) a.state->step = batch + 1;
}
