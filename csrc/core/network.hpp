// The flux model: a tanh network with forward tangents, and its second derivatives contracted by one reverse sweep.
//
// Layer l: a = W^T h + b, h' = tanh a. Tangents along input t: a_t = W^T h_t, h'_t = (1 - h'^2) a_t.
// For the contraction sum_i v_i d2 y_i / dt du of the outputs y, only the tanh are curved:
//     sum over layers and neurons of hbar (tanh'' a) a_t a_u,   tanh'' = -2 h (1 - h^2),
// hbar the adjoint of h, which one reverse sweep gives: abar = hbar (1 - h^2), hbar of the layer below = W abar.
// Cost of value + 3 tangents + contraction for 3-32-32-32-66: 17.7k + 4.3k fused multiply-adds per star.
#pragma once

#include "math.hpp"
#include "views.hpp"

XPKERN_NAMESPACE_BEGIN

// The sizes of a network: known to the compiler for the usual one, read from the model otherwise.
template <int INPUTS, int HIDDEN, int LAYERS, int SAMPLES>
struct FixedShape {
    XPKERN_INLINE constexpr explicit FixedShape(const ModelView&) {}
    static XPKERN_INLINE constexpr int layers() { return LAYERS; }
    static XPKERN_INLINE constexpr int width(int l) { return l == 0 ? INPUTS : (l == LAYERS ? SAMPLES : HIDDEN); }
    static XPKERN_INLINE bool matches(const ModelView& model) {
        bool same = model.n_layers == LAYERS;
        for (int l = 0; same && l <= LAYERS; ++l) same = model.width[l] == width(l);
        return same;
    }
    static XPKERN_INLINE constexpr int inputs() { return INPUTS; }
    static XPKERN_INLINE constexpr int samples() { return SAMPLES; }
    static XPKERN_INLINE constexpr int parameters() { return INPUTS + 2; }
};
using UsualShape = FixedShape<3, 32, 4, 66>;

struct AnyShape {
    const ModelView& model;
    XPKERN_INLINE explicit AnyShape(const ModelView& of) : model(of) {}
    XPKERN_INLINE int layers() const { return model.n_layers; }
    XPKERN_INLINE int width(int l) const { return model.width[l]; }
    XPKERN_INLINE int inputs() const { return model.width[0]; }
    XPKERN_INLINE int samples() const { return model.width[model.n_layers]; }
    XPKERN_INLINE int parameters() const { return inputs() + 2; }
};

template <class Shape>
XPKERN_INLINE constexpr int widest_hidden(const Shape& shape) {
    int widest = shape.inputs();
    for (int l = 1; l < shape.layers(); ++l) widest = shape.width(l) > widest ? shape.width(l) : widest;
    return widest;
}

XPKERN_INLINE const NetworkView<float>& network_in(const ModelView& model, float) {
    return model.in_float;
}
XPKERN_INLINE const NetworkView<double>& network_in(const ModelView& model, double) {
    return model.in_double;
}
template <class Lane>
XPKERN_INLINE const NetworkView<Scalar<Lane>>& network_of(const ModelView& model) {
    return network_in(model, Scalar<Lane>(0));
}

XPKERN_INLINE constexpr int power_of_two_within(int room) {
    int power = 1;
    while (2 * power <= room) power *= 2;
    return power;
}

// Outputs of a layer, or inputs on the way back, that are found together, and how many such blocks a layer has.
template <class Lane>
XPKERN_INLINE constexpr int layer_block(int streams = 1) {
    return power_of_two_within(ACCUMULATORS / (streams * LaneTraits<Lane>::registers));
}
template <class Lane>
XPKERN_INLINE constexpr int blocks_of_layer(int width) {
    int blocks = width / layer_block<Lane>();
    for (int left = width % layer_block<Lane>(); left > 0; left &= left - 1) ++blocks;
    return blocks;
}

// Where the sums of an output go: out (n_out, stride).
template <class Lane>
struct StoredSums {
    Lane* out;
    int stride;
    template <int STREAMS>
    XPKERN_INLINE void operator()(int j, const Lane (&sum)[STREAMS]) const {
        XPKERN_UNROLL
        for (int s = 0; s < STREAMS; ++s) out[j * stride + s] = sum[s];
    }
};

// sum[s] = bias[j] + sum_i w[i][j] in[i][s] for BLOCK outputs from j on and STREAMS right-hand sides of the `stride`
// that lie side by side, handed to take(j, sum). w: (n_in, n_out), bias: (n_out,) or null, in: (n_in, stride).
template <int STREAMS, int BLOCK, class Lane, class Take, class Meanwhile>
XPKERN_INLINE void multiply_block(const Scalar<Lane>* w, const Scalar<Lane>* bias, int n_in, int n_out, int j,
                                  int stride, const Lane* in, const Take& take, const Meanwhile& meanwhile) {
    Lane sum[BLOCK][STREAMS];
    XPKERN_UNROLL
    for (int b = 0; b < BLOCK; ++b) {
        XPKERN_UNROLL
        for (int s = 0; s < STREAMS; ++s) sum[b][s] = Lane(bias ? bias[j + b] : Scalar<Lane>(0));
    }
    for (int i = 0; i < n_in; ++i) {
        meanwhile();
        Lane x[STREAMS];
        XPKERN_UNROLL
        for (int s = 0; s < STREAMS; ++s) x[s] = in[i * stride + s];
        XPKERN_UNROLL
        for (int b = 0; b < BLOCK; ++b) {
            const Lane weight(w[i * n_out + j + b]);
            XPKERN_UNROLL
            for (int s = 0; s < STREAMS; ++s) sum[b][s] = fma(weight, x[s], sum[b][s]);
        }
    }
    XPKERN_UNROLL
    for (int b = 0; b < BLOCK; ++b) take(j + b, sum[b]);
}

// Outputs from j on in blocks of BLOCK, what is left in smaller ones.
template <int STREAMS, int BLOCK, class Lane, class Take, class Meanwhile>
XPKERN_INLINE void multiply_blocks(const Scalar<Lane>* w, const Scalar<Lane>* bias, int n_in, int n_out, int j,
                                   int stride, const Lane* in, const Take& take, const Meanwhile& meanwhile) {
    for (; j + BLOCK <= n_out; j += BLOCK) {
        multiply_block<STREAMS, BLOCK>(w, bias, n_in, n_out, j, stride, in, take, meanwhile);
        meanwhile.between_blocks();
    }
    if constexpr (BLOCK > 1) multiply_blocks<STREAMS, BLOCK / 2>(w, bias, n_in, n_out, j, stride, in, take, meanwhile);
}

template <int STREAMS, class Lane, class Take, class Meanwhile = Nothing>
XPKERN_INLINE void multiply_into(const Scalar<Lane>* w, const Scalar<Lane>* bias, int n_in, int n_out, int stride,
                                 const Lane* in, const Take& take, const Meanwhile& meanwhile = {}) {
    multiply_blocks<STREAMS, layer_block<Lane>(STREAMS)>(w, bias, n_in, n_out, 0, stride, in, take, meanwhile);
}

// The same stored, out: (n_out, stride).
template <int STREAMS, class Lane, class Meanwhile = Nothing>
XPKERN_INLINE void multiply_streams(const Scalar<Lane>* w, const Scalar<Lane>* bias, int n_in, int n_out, int stride,
                                    const Lane* in, Lane* out, const Meanwhile& meanwhile = {}) {
    multiply_into<STREAMS>(w, bias, n_in, n_out, stride, in, StoredSums<Lane>{out, stride}, meanwhile);
}

// Any number of right-hand sides, in: (n_in, streams), taken four at a time; take(s) takes those from s on.
template <class Lane, class Take, class Meanwhile>
XPKERN_INLINE void multiply(const Scalar<Lane>* w, int n_in, int n_out, int streams, const Lane* in, const Take& take,
                            const Meanwhile& meanwhile) {
    int s = 0;
    for (; s + 4 <= streams; s += 4) multiply_into<4>(w, nullptr, n_in, n_out, streams, in + s, take(s), meanwhile);
    if (s + 3 == streams) multiply_into<3>(w, nullptr, n_in, n_out, streams, in + s, take(s), meanwhile);
    if (s + 2 == streams) multiply_into<2>(w, nullptr, n_in, n_out, streams, in + s, take(s), meanwhile);
    if (s + 1 == streams) multiply_into<1>(w, nullptr, n_in, n_out, streams, in + s, take(s), meanwhile);
}

// out[i] = sum_j w[i][j] in[j]: the reverse of a layer. w: (n_in, n_out).
template <int BLOCK, class Lane, class Meanwhile>
XPKERN_INLINE void reverse_block(const Scalar<Lane>* w, int n_out, int i, const Lane* in, Lane* out,
                                 const Meanwhile& meanwhile) {
    Lane sum[BLOCK];
    XPKERN_UNROLL
    for (int b = 0; b < BLOCK; ++b) sum[b] = Lane(Scalar<Lane>(0));
    for (int j = 0; j < n_out; ++j) {
        meanwhile();
        const Lane x = in[j];
        XPKERN_UNROLL
        for (int b = 0; b < BLOCK; ++b) sum[b] = fma(Lane(w[(i + b) * n_out + j]), x, sum[b]);
    }
    XPKERN_UNROLL
    for (int b = 0; b < BLOCK; ++b) out[i + b] = sum[b];
}

template <int BLOCK, class Lane, class Meanwhile>
XPKERN_INLINE void reverse_blocks(const Scalar<Lane>* w, int n_in, int n_out, int i, const Lane* in, Lane* out,
                                  const Meanwhile& meanwhile) {
    for (; i + BLOCK <= n_in; i += BLOCK) {
        reverse_block<BLOCK>(w, n_out, i, in, out, meanwhile);
        meanwhile.between_blocks();
    }
    if constexpr (BLOCK > 1) reverse_blocks<BLOCK / 2>(w, n_in, n_out, i, in, out, meanwhile);
}

template <class Lane, class Meanwhile = Nothing>
XPKERN_INLINE void reverse_multiply(const Scalar<Lane>* w, int n_in, int n_out, const Lane* in, Lane* out,
                                    const Meanwhile& meanwhile = {}) {
    reverse_blocks<layer_block<Lane>()>(w, n_in, n_out, 0, in, out, meanwhile);
}

// The highest derivative of ln f that is wanted.
enum class Order { value, slope, curvature };

// What a forward sweep leaves behind. Wide carries the value, Real (the same or narrower) the derivatives.
template <class Real, class Wide>
struct NetworkTape {
    Wide* value[2];                 // activations of two neighbouring layers, in turn: (widest,)
    Wide* output;                   // (m,) ln f at E = 0, plx = 1
    Real* hidden[MAX_LAYERS];       // tanh of each hidden layer: (width,)
    Real* pre_tangent[MAX_LAYERS];  // a_t of each hidden layer: (width, inputs)
    Real* tangent[2];               // h_t of two neighbouring layers, in turn: (widest, inputs)
    Real* output_tangent;           // d ln f / d Theta_t: (m, inputs)
    Real* adjoint[2];               // reverse sweep: (widest,)
};

// Tangents of a hidden layer from s on: a_t, kept where curvature is wanted, become h_t.
template <Order ORDER, class Real>
struct HiddenTangents {
    const Real* hidden;
    Real *pre_tangent, *tangent;
    int inputs, s;
    template <int STREAMS>
    XPKERN_INLINE void operator()(int j, const Real (&sum)[STREAMS]) const {
        const Real h = hidden[j], slope = fma(-h, h, lane<Real>(1));
        XPKERN_UNROLL
        for (int t = 0; t < STREAMS; ++t) {
            if constexpr (ORDER == Order::curvature) pre_tangent[j * inputs + s + t] = sum[t];
            tangent[j * inputs + s + t] = slope * sum[t];
        }
    }
};

// theta: (inputs,). Fills the tape: output, which is ln f_abs (Eq. 6), hidden, from Order::slope on the tangents of the
// last hidden layer, and for Order::curvature all that is named pre_tangent.
template <Order ORDER, class Real, class Wide, class Shape, class Meanwhile = Nothing>
XPKERN_INLINE void network_forward(const ModelView& model, const Shape& shape, const Wide* theta,
                                   const NetworkTape<Real, Wide>& tape, const Meanwhile& meanwhile = {}) {
    const auto& wide = network_of<Wide>(model);
    const auto& real = network_of<Real>(model);
    const int inputs = shape.inputs(), last = shape.layers() - 1;

    for (int t = 0; t < inputs; ++t)
        tape.value[0][t] = (theta[t] - lane<Wide>(wide.zero_point[t])) * lane<Wide>(wide.inverse_scale[t]);

    for (int l = 0; l <= last; ++l) {
        const int n_in = shape.width(l), n_out = shape.width(l + 1);
        Wide* out = l == last ? tape.output : tape.value[(l + 1) % 2];
        multiply_streams<1>(wide.weights[l], wide.biases[l], n_in, n_out, 1, tape.value[l % 2], out, meanwhile);
        if (l == last) return;

        tanh_of_all(out, n_out);
        Real* hidden = tape.hidden[l];
        for (int j = 0; j < n_out; ++j) hidden[j] = convert<Real>(out[j]);
        if (ORDER == Order::value) continue;
        const auto take = [&](int s) {
            return HiddenTangents<ORDER, Real>{hidden, tape.pre_tangent[l], tape.tangent[l % 2], inputs, s};
        };
        if (l > 0) {
            multiply<Real>(real.weights[l], n_in, n_out, inputs, tape.tangent[(l + 1) % 2], take, meanwhile);
            continue;
        }
        for (int j = 0; j < n_out; ++j) {  // the tangents of the inputs are unit vectors
            for (int t = 0; t < inputs; ++t) {
                const Real slope[1] = {lane<Real>(real.weights[0][t * n_out + j] * real.inverse_scale[t])};
                take(t)(j, slope);
            }
        }
    }
}

// d ln f_j / d Theta_t of all samples, after network_forward(); take(s) takes those by t = s and on.
template <class Real, class Wide, class Shape, class Take, class Meanwhile>
XPKERN_INLINE void output_tangents(const ModelView& model, const Shape& shape, const NetworkTape<Real, Wide>& tape,
                                   const Take& take, const Meanwhile& meanwhile) {
    const auto& real = network_of<Real>(model);
    const int last = shape.layers() - 1;
    multiply<Real>(real.weights[last], shape.width(last), shape.samples(), shape.inputs(), tape.tangent[(last + 1) % 2],
                   take, meanwhile);
}

// One hidden layer's part of the curvature: adjoint, of h, becomes that of a. hidden, adjoint: (width,), tangent:
// (width, INPUTS), sum: packed by rows.
template <int INPUTS, class Real>
XPKERN_INLINE void bend_layer(int width, const Real* hidden, const Real* tangent, Real* adjoint, Real* sum) {
    Real part[INPUTS][INPUTS];
    XPKERN_UNROLL
    for (int t = 0; t < INPUTS; ++t) {
        XPKERN_UNROLL
        for (int u = 0; u <= t; ++u) part[t][u] = lane<Real>(0);
    }
    for (int j = 0; j < width; ++j) {
        const Real h = hidden[j];
        const Real abar = adjoint[j] * fma(-h, h, lane<Real>(1));
        const Real bend = abar * h;
        adjoint[j] = abar;
        XPKERN_UNROLL
        for (int t = 0; t < INPUTS; ++t) {
            const Real bent = bend * tangent[j * INPUTS + t];
            XPKERN_UNROLL
            for (int u = 0; u <= t; ++u) part[t][u] = fma(bent, tangent[j * INPUTS + u], part[t][u]);
        }
    }
    XPKERN_UNROLL
    for (int t = 0; t < INPUTS; ++t) {
        XPKERN_UNROLL
        for (int u = 0; u <= t; ++u) {
            Real& total = sum[t * (t + 1) / 2 + u];
            total = fma(part[t][u], lane<Real>(-2), total);
        }
    }
}

// curvature[t >= u packed by rows] += sum_i weight_i d2 output_i / dTheta_t dTheta_u. weight: (m,).
template <class Real, class Wide, class Shape>
XPKERN_INLINE void network_curvature(const ModelView& model, const Shape& shape, const Real* weight,
                                     const NetworkTape<Real, Wide>& tape, Real* curvature) {
    const auto& real = network_of<Real>(model);
    const Real* above = weight;
    for (int l = shape.layers() - 1; l >= 1; --l) {
        const int width = shape.width(l);
        Real* adjoint = tape.adjoint[l % 2];
        reverse_multiply<Real>(real.weights[l], width, shape.width(l + 1), above, adjoint);
        with_known<MAX_INPUTS>(shape.inputs(), [&](auto inputs) {
            bend_layer<decltype(inputs)::value>(width, tape.hidden[l - 1], tape.pre_tangent[l - 1], adjoint, curvature);
        });
        above = adjoint;
    }
}

XPKERN_NAMESPACE_END
