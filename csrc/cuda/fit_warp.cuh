// The loss of a star by a warp, for models of the usual shape.
//
// A lane has a neuron of each hidden layer and every 32nd sample of a spectrum, with their slopes, in registers; what
// lanes read of one another stands in shared memory, as do the star's whitener and, once for all warps of a block, the
// network. Everything that is a number of the star (parameters, loss, matrices of its coordinates) every lane computes
// for itself, by the functions of the core: these ask a shape for an evaluation, and for FitShape they find those
// below.
//
// A triangle is solved by strips of 32 rows. The inverse of each strip's own triangle is found once for a star, a
// column a lane, so that whitening is two products a strip, whose terms wait for nothing: 1,460 instructions of a warp
// for six columns, where substitution, row after row, takes 3,500. In float that serves; a residual in double is
// substituted, as it must be right to 1e-5 of the loss.
#pragma once

#include "train_warp.cuh"

XPKERN_NAMESPACE_BEGIN

struct FitShape : UsualShape {
    XPKERN_INLINE constexpr explicit FitShape(const ModelView& model) : UsualShape(model), exact(true) {}
    bool exact;  // whether an evaluation that may have the exact Hessian has it: one text, as code is what warps wait
                 // for
    static constexpr int n_inputs = UsualShape::inputs(), n_samples = UsualShape::samples();
    static constexpr int last = UsualShape::layers() - 1, coordinates = n_inputs + 2;
    static constexpr int strips = (n_samples + LANES - 1) / LANES, whole_strips = n_samples / LANES;
    static constexpr int rest = n_samples - whole_strips * LANES;  // rows of the last strip
};
static_assert(UsualShape::width(1) == LANES, "a neuron a lane");
static_assert(FitShape::rest == 2 && FitShape::whole_strips + 1 == FitShape::strips,
              "what the last strip is solved for");

// Numbers that are moved in one access.
struct alignas(16) Four {
    float number[4];
};
struct alignas(16) Eight {
    float number[8];
};

// A network in shared memory: its parameters one behind the other, with a gap after every 32 of those before the last
// layer, so that lanes that each read a row of their own meet in no bank (two of them do in the last layer).
template <class Element>
struct NetworkInShared {
    template <int LAYER>
    static constexpr int start = layer_start(LAYER);
    static constexpr int size = layer_start(UsualShape::layers()) + UsualShape::samples();
    static constexpr int padded = layer_start(UsualShape::layers() - 1);
    Element number[size + padded / LANES];

    static XPKERN_INLINE constexpr int place(int at) { return at + (at < padded ? at : padded) / LANES; }
    // What the weights of one input lead to, (n_out,); after the last input's, the biases.
    template <int LAYER>
    XPKERN_INLINE const Element* row(int in) const {
        return number + place(start<LAYER> + in * UsualShape::width(LAYER + 1));
    }
    template <int LAYER>
    XPKERN_INLINE const Element* bias() const {
        return row<LAYER>(UsualShape::width(LAYER));
    }
    XPKERN_INLINE const Element* ext_curve() const { return number + place(start<UsualShape::layers()>); }

    // By all threads of the block; a barrier follows.
    template <int LAYER = 0>
    __device__ __forceinline__ void take(const NetworkView<Element>& network) {
        if constexpr (LAYER < UsualShape::layers()) {
            constexpr int n_out = UsualShape::width(LAYER + 1), weights = UsualShape::width(LAYER) * n_out;
            take<start<LAYER>, weights>(network.weights[LAYER]);
            take<start<LAYER> + weights, n_out>(network.biases[LAYER]);
            take<LAYER + 1>(network);
        } else {
            take<start<LAYER>, UsualShape::samples()>(network.ext_curve);
        }
    }
    template <int FIRST, int COUNT>
    __device__ __forceinline__ void take(const Element* from) {
        for (int at = int(threadIdx.x); at < COUNT; at += int(blockDim.x)) number[place(FIRST + at)] = from[at];
    }
};

// The networks that an evaluation reads: slopes in float, values in Wide.
template <class Wide>
struct FitNetworks {
    NetworkInShared<float> narrow;
    NetworkInShared<Wide> wide;
    __device__ __forceinline__ void take(const ModelView& model) {
        narrow.take(model.in_float);
        wide.take(model.in_double);
    }
};
template <>
struct FitNetworks<float> {
    union {
        NetworkInShared<float> narrow, wide;
    };
    __device__ __forceinline__ void take(const ModelView& model) { narrow.take(model.in_float); }
};

// The star of a warp.
template <class Wide>
struct FitStar {
    static constexpr int packed = row_start(FitShape::n_samples);
    union {
        Four node[2][LANES];  // of two neighbouring layers, in turn: slopes, and the value where that is a float
        Eight shown[LANES];   // right-hand sides of a strip
    };
    Wide value[2][LANES];
    float adjoint[2][LANES];
    float back[FitShape::n_samples];  // w f
    float flux[FitShape::n_samples];
    float factor[packed];
    // The inverses of the strips' own triangles: in place of these where nothing else is solved with them.
    static constexpr bool in_place = SameType<Wide, float>::value;
    float inverse[in_place ? 1 : FitShape::whole_strips * row_start(LANES)];

    XPKERN_INLINE float* inverse_row(int strip, int i) {
        const int row = strip * LANES + i;
        return in_place ? factor + row_start(row) + strip * LANES : inverse + strip * row_start(LANES) + row_start(i);
    }
};

// What stands in the shared memory of a block: behind the networks as many stars as there is room for, a warp each.
template <class Wide>
struct FitBlock {
    // At most: as many as fit into the 227 kB of compute capability 9.0, and have 168 registers a thread.
    static constexpr int most_warps = SameType<Wide, float>::value ? 12 : 10;
    static constexpr int most_threads = most_warps * LANES;
    FitNetworks<Wide> networks;
    FitStar<Wide> star[1];
};
static_assert(sizeof(FitBlock<float>) + 11 * sizeof(FitStar<float>) <= 227 * 1024 &&
                  sizeof(FitBlock<double>) + 9 * sizeof(FitStar<double>) <= 227 * 1024,
              "shared memory");

template <class Wide>
__device__ __forceinline__ FitBlock<Wide>& fit_block() {
    return *reinterpret_cast<FitBlock<Wide>*>(dynamic_shared());
}
template <class Wide>
__device__ __forceinline__ FitStar<Wide>& fit_star() {
    return fit_block<Wide>().star[threadIdx.x / LANES];
}

// values[i] becomes its sum over lanes that differ in the bits below 2 * HALF, in the same order whatever the lane.
template <int HALF, int COUNT, class Real>
__device__ __forceinline__ void sum_over_lanes(Real (&values)[COUNT]) {
    const int lane = lane_in_warp();
    XPKERN_UNROLL
    for (int half = HALF; half > 0; half /= 2) {
        XPKERN_UNROLL
        for (int i = 0; i < COUNT; ++i) values[i] += from_lane(values[i], lane ^ half);
    }
}

// The inverse of each strip's own triangle, a column a lane. A missing sample's row and column are 0, as in the factor.
template <class Wide>
__device__ __forceinline__ void invert_strips(FitStar<Wide>& star) {
    const int lane = lane_in_warp();
    XPKERN_ROLLED
    for (int strip = 0; strip < FitShape::whole_strips; ++strip) {
        const int first = strip * LANES;
        float column[LANES];
        XPKERN_UNROLL
        for (int i = 0; i < LANES; ++i) {
            const float* row = star.factor + row_start(first + i) + first;
            float left = lane == i ? 1.0f : 0.0f, more = 0;  // two sums, as each term waits for the one before
            XPKERN_UNROLL
            for (int j = 0; j < i; ++j) (j % 2 ? more : left) = fma(-row[j], column[j], j % 2 ? more : left);
            column[i] = (left + more) * row[i];
        }
        if (FitStar<Wide>::in_place) __syncwarp();  // no lane still reads the triangle
        XPKERN_UNROLL
        for (int i = 0; i < LANES; ++i)
            if (lane <= i) star.inverse_row(strip, i)[lane] = column[i];
    }
    __syncwarp();
}

// A star's arrays from memory to the warp's place.
template <class Wide>
__device__ __forceinline__ FitStar<Wide>& gather_fit_star(const StarArrays& stars, int64_t row) {
    FitStar<Wide>& star = fit_star<Wide>();
    constexpr int m = FitShape::n_samples;
    __syncwarp();  // no lane is still at the star before
    const int lane = lane_in_warp();
    copy_by_lane_soon<m>(star.flux + lane, stars.flux + row * m + lane);
    copy_by_lane_soon<FitStar<Wide>::packed>(star.factor + lane, stars.whitener + row * FitStar<Wide>::packed + lane);
    wait_for_copies();
    __syncwarp();
    invert_strips(star);
    return star;
}

// Right-hand sides of a lane's samples: (strips, COLUMNS).
template <int COLUMNS>
using Columns = float[FitShape::strips][COLUMNS];

// Lets the warp read one row of right-hand sides of each lane.
template <int COLUMNS>
__device__ __forceinline__ void show(Eight* shown, const float* row) {
    Eight& mine = shown[lane_in_warp()];
    __syncwarp();  // no lane still reads what was shown before
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) mine.number[c] = row[c];
    __syncwarp();
}

// Solves for a strip and takes it from those below; from the last rows, of lanes 0 and 1, each lane its own part:
// rest -= G y.
template <int STRIP, int COLUMNS, class Wide>
__device__ __forceinline__ void whiten_strip(FitStar<Wide>& star, Columns<COLUMNS>& left,
                                             float (&rest)[FitShape::rest * COLUMNS]) {
    const int lane = lane_in_warp();
    show<COLUMNS>(star.shown, left[STRIP]);
    const float* inverse = star.inverse_row(STRIP, lane);
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) left[STRIP][c] = 0;
    XPKERN_UNROLL_FOUR
    for (int j = 0; j < LANES; ++j) {
        const float stored = inverse[j], weight = j <= lane ? stored : 0.0f;
        const Eight b = star.shown[j];
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) left[STRIP][c] = fma(weight, b.number[c], left[STRIP][c]);
    }
    XPKERN_UNROLL
    for (int r = 0; r < FitShape::rest; ++r) {
        const float weight = -star.factor[row_start(FitShape::whole_strips * LANES + r) + STRIP * LANES + lane];
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) rest[r * COLUMNS + c] = fma(weight, left[STRIP][c], rest[r * COLUMNS + c]);
    }
    if constexpr (STRIP + 1 < FitShape::whole_strips) {
        show<COLUMNS>(star.shown, left[STRIP]);
        XPKERN_UNROLL_FOUR
        for (int j = 0; j < LANES; ++j) {
            const Eight y = star.shown[j];
            XPKERN_UNROLL
            for (int s = STRIP + 1; s < FitShape::whole_strips; ++s) {
                const float weight = -star.factor[row_start(lane + s * LANES) + STRIP * LANES + j];
                XPKERN_UNROLL
                for (int c = 0; c < COLUMNS; ++c) left[s][c] = fma(weight, y.number[c], left[s][c]);
            }
        }
        whiten_strip<STRIP + 1, COLUMNS>(star, left, rest);
    }
}

// left = G^-1 left.
template <int COLUMNS, class Wide>
__device__ __forceinline__ void whiten_columns_by_warp(FitStar<Wide>& star, Columns<COLUMNS>& left) {
    constexpr int first = FitShape::whole_strips * LANES;
    const int lane = lane_in_warp();
    float rest[FitShape::rest * COLUMNS];
    XPKERN_UNROLL
    for (int r = 0; r < FitShape::rest; ++r) {
        XPKERN_UNROLL
        for (int c = 0; c < COLUMNS; ++c) rest[r * COLUMNS + c] = lane == r ? left[FitShape::whole_strips][c] : 0.0f;
    }
    whiten_strip<0, COLUMNS>(star, left, rest);
    sum_over_lanes<LANES / 2>(rest);
    const float* above = star.factor + row_start(first) + first;
    const float* below = star.factor + row_start(first + 1) + first;
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
        const float y = rest[c] * above[0], next = fma(-below[0], y, rest[COLUMNS + c]) * below[1];
        left[FitShape::whole_strips][c] = lane == 0 ? y : (lane == 1 ? next : 0.0f);
    }
}

// w = G^-T y of one column, from the last strip up. Lanes read columns of the triangles, which lie side by side.
template <class Wide>
__device__ __forceinline__ void unwhiten_by_strips(FitStar<Wide>& star, float (&left)[FitShape::strips]) {
    const int lane = lane_in_warp();
    constexpr int row = FitShape::whole_strips * LANES;
    const float end = star.factor[row_start(row + 1) + row + 1], below = star.factor[row_start(row + 1) + row];
    float w[FitShape::rest];
    w[1] = from_lane(left[FitShape::whole_strips], 1) * end;
    w[0] = fma(-below, w[1], from_lane(left[FitShape::whole_strips], 0)) * star.factor[row_start(row) + row];
    left[FitShape::whole_strips] = lane < FitShape::rest ? (lane == 0 ? w[0] : w[1]) : 0.0f;
    XPKERN_UNROLL
    for (int s = 0; s < FitShape::whole_strips; ++s) {
        XPKERN_UNROLL
        for (int r = 0; r < FitShape::rest; ++r)
            left[s] = fma(-star.factor[row_start(row + r) + s * LANES + lane], w[r], left[s]);
    }
    XPKERN_UNROLL
    for (int strip = FitShape::whole_strips - 1; strip >= 0; --strip) {
        const float y = left[strip];
        float solved = 0;
        XPKERN_UNROLL_FOUR
        for (int j = 0; j < LANES; ++j) {
            const float stored = star.inverse_row(strip, j)[lane], weight = j >= lane ? stored : 0.0f;
            solved = fma(weight, from_lane(y, j), solved);
        }
        left[strip] = solved;
        if (strip == 0) continue;
        XPKERN_UNROLL
        for (int s = 0; s < strip; ++s) {
            XPKERN_UNROLL_FOUR
            for (int j = 0; j < LANES; ++j)
                left[s] =
                    fma(-star.factor[row_start(strip * LANES + j) + s * LANES + lane], from_lane(solved, j), left[s]);
        }
    }
}

// One right-hand side in double, by substitution: every lane solves ROWS rows for itself, so that what all wait for is
// one exchange, and takes them from what is left of its own.
template <int ROWS, int STRIP>
__device__ __forceinline__ void whiten_wide_rows(const float* factor, int first, double (&left)[FitShape::strips]) {
    double y[ROWS];
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) y[r] = from_lane(left[STRIP], (first + r) % LANES);
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        y[r] *= double(factor[row_start(first + r) + first + r]);
        XPKERN_UNROLL
        for (int below = r + 1; below < ROWS; ++below)
            y[below] = fma(-double(factor[row_start(first + below) + first + r]), y[r], y[below]);
    }
    XPKERN_UNROLL
    for (int s = STRIP; s < FitShape::strips; ++s) {
        const int i = lane_in_warp() + s * LANES, row = i < FitShape::n_samples ? i : FitShape::n_samples - 1;
        double less = left[s];
        XPKERN_UNROLL
        for (int r = 0; r < ROWS; ++r) less = fma(-double(factor[row_start(row) + first + r]), y[r], less);
        if (s > STRIP || i >= first + ROWS) left[s] = less;
    }
    XPKERN_UNROLL
    for (int r = 0; r < ROWS; ++r)
        if (lane_in_warp() == (first + r) % LANES) left[STRIP] = y[r];
}
template <int STRIP>
__device__ __forceinline__ void whiten_wide_strips(const float* factor, double (&left)[FitShape::strips]) {
    constexpr int begin = STRIP * LANES, rows = STRIP < FitShape::whole_strips ? LANES : FitShape::rest;
    constexpr int together = rows < SOLVED_ROWS ? rows : SOLVED_ROWS;
    XPKERN_ROLLED
    for (int row = 0; row < rows; row += together) whiten_wide_rows<together, STRIP>(factor, begin + row, left);
    if (STRIP == FitShape::whole_strips && lane_in_warp() >= FitShape::rest) left[STRIP] = 0;
    if constexpr (STRIP + 1 < FitShape::strips) whiten_wide_strips<STRIP + 1>(factor, left);
}

// What a forward sweep leaves in a lane: of its neurons and of its samples.
template <class Wide>
struct FitTape {
    float hidden[FitShape::last], pre_tangent[FitShape::last][FitShape::n_inputs];
    Wide flux[FitShape::strips];
    float tangent[FitShape::strips][FitShape::n_inputs];  // d ln f / dTheta
};

// A layer's values before the tanh, and their slopes, of a lane's OUTPUTS outputs, LANES apart; beyond the last one
// that one's again.
template <int LAYER, int OUTPUTS, bool TANGENTS, class Wide>
__device__ __forceinline__ void multiply_nodes(const FitStar<Wide>& star, Wide (&value)[OUTPUTS],
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

template <int LAYER, bool TANGENTS, class Wide>
__device__ __forceinline__ void go_forward(FitStar<Wide>& star, const Wide* scaled, const float* inverse_scale,
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

// Fluxes at u, and with TANGENTS the slopes of their logarithms; 0 beyond the last sample.
template <bool TANGENTS, class Wide>
__device__ __forceinline__ void predict_by_warp(const ModelView& model, const Wide* u, FitStar<Wide>& star,
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
                                              const Workspace<float, Wide>& space, LossState<float, Wide>& state) {
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
