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
    XPKERN_INLINE explicit FixedShape(const ModelView&) {}
    static XPKERN_INLINE int layers() { return LAYERS; }
    static XPKERN_INLINE int width(int l) { return l == 0 ? INPUTS : (l == LAYERS ? SAMPLES : HIDDEN); }
    static XPKERN_INLINE bool matches(const ModelView& model) {
        bool same = model.n_layers == LAYERS;
        for (int l = 0; same && l <= LAYERS; ++l) same = model.width[l] == width(l);
        return same;
    }
    static XPKERN_INLINE int inputs() { return INPUTS; }
    static XPKERN_INLINE int samples() { return SAMPLES; }
    static XPKERN_INLINE int parameters() { return INPUTS + 2; }
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
XPKERN_INLINE int widest_hidden(const Shape& shape) {
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

// out[s][j ... j + BLOCK) = sum_i w[i][j ...] in[s][i] for STREAMS right-hand sides. w: (n_in, n_out).
template <int STREAMS, int BLOCK, class Lane>
XPKERN_INLINE void multiply_block(const Scalar<Lane>* w, int n_in, int n_out, int j, const Lane* const* in,
                                  Lane* const* out) {
    Lane sum[BLOCK][STREAMS];
    XPKERN_UNROLL
    for (int b = 0; b < BLOCK; ++b) {
        XPKERN_UNROLL
        for (int s = 0; s < STREAMS; ++s) sum[b][s] = Lane(Scalar<Lane>(0));
    }
    for (int i = 0; i < n_in; ++i) {
        Lane x[STREAMS];
        XPKERN_UNROLL
        for (int s = 0; s < STREAMS; ++s) x[s] = in[s][i];
        XPKERN_UNROLL
        for (int b = 0; b < BLOCK; ++b) {
            const Lane weight(w[i * n_out + j + b]);
            XPKERN_UNROLL
            for (int s = 0; s < STREAMS; ++s) sum[b][s] = fma(weight, x[s], sum[b][s]);
        }
    }
    XPKERN_UNROLL
    for (int b = 0; b < BLOCK; ++b) {
        XPKERN_UNROLL
        for (int s = 0; s < STREAMS; ++s) out[s][j + b] = sum[b][s];
    }
}

template <int STREAMS, class Lane>
XPKERN_INLINE void multiply_streams(const Scalar<Lane>* w, int n_in, int n_out, const Lane* const* in,
                                    Lane* const* out) {
    constexpr int wanted = ACCUMULATORS / (STREAMS * LaneTraits<Lane>::registers);
    constexpr int BLOCK = wanted < 1 ? 1 : wanted;
    int j = 0;
    for (; j + BLOCK <= n_out; j += BLOCK) multiply_block<STREAMS, BLOCK>(w, n_in, n_out, j, in, out);
    for (; j < n_out; ++j) multiply_block<STREAMS, 1>(w, n_in, n_out, j, in, out);
}

// The same for any number of right-hand sides, taken four at a time.
template <class Lane>
XPKERN_INLINE void multiply(const Scalar<Lane>* w, int n_in, int n_out, int streams, const Lane* const* in,
                            Lane* const* out) {
    int s = 0;
    for (; s + 4 <= streams; s += 4) multiply_streams<4>(w, n_in, n_out, in + s, out + s);
    if (s + 3 == streams) multiply_streams<3>(w, n_in, n_out, in + s, out + s);
    if (s + 2 == streams) multiply_streams<2>(w, n_in, n_out, in + s, out + s);
    if (s + 1 == streams) multiply_streams<1>(w, n_in, n_out, in + s, out + s);
}

// out[i] = sum_j w[i][j] in[j]: the reverse of a layer. w: (n_in, n_out).
template <int BLOCK, class Lane>
XPKERN_INLINE void reverse_block(const Scalar<Lane>* w, int n_out, int i, const Lane* in, Lane* out) {
    Lane sum[BLOCK];
    XPKERN_UNROLL
    for (int b = 0; b < BLOCK; ++b) sum[b] = Lane(Scalar<Lane>(0));
    for (int j = 0; j < n_out; ++j) {
        const Lane x = in[j];
        XPKERN_UNROLL
        for (int b = 0; b < BLOCK; ++b) sum[b] = fma(Lane(w[(i + b) * n_out + j]), x, sum[b]);
    }
    XPKERN_UNROLL
    for (int b = 0; b < BLOCK; ++b) out[i + b] = sum[b];
}

template <class Lane>
XPKERN_INLINE void reverse_multiply(const Scalar<Lane>* w, int n_in, int n_out, const Lane* in, Lane* out) {
    constexpr int BLOCK = ACCUMULATORS / LaneTraits<Lane>::registers;
    int i = 0;
    for (; i + BLOCK <= n_in; i += BLOCK) reverse_block<BLOCK>(w, n_out, i, in, out);
    for (; i < n_in; ++i) reverse_block<1>(w, n_out, i, in, out);
}

// What a forward sweep leaves behind. Wide carries the value, Real (the same or narrower) the derivatives.
template <class Real, class Wide>
struct NetworkTape {
    Wide* value[2];                 // activations of two neighbouring layers, in turn: (widest,)
    Wide* output;                   // (m,) ln f at E = 0, plx = 1
    Real* hidden[MAX_LAYERS];       // tanh of each hidden layer: (width,)
    Real* pre_tangent[MAX_LAYERS];  // a_t of each hidden layer: (inputs, widest)
    Real* tangent;                  // h_t of the last layer reached: (inputs, widest)
    Real* output_tangent;           // d ln f / d Theta_t: (inputs, m)
    Real* adjoint[2];               // reverse sweep: (widest,)
};

// theta: (inputs,). Fills the tape: hidden, output and (with TANGENTS) what is named tangent. output and output_tangent
// are ln f_abs (Eq. 6) and its slope in Theta.
template <bool TANGENTS, class Real, class Wide, class Shape>
XPKERN_INLINE void network_forward(const ModelView& model, const Shape& shape, const Wide* theta,
                                   const NetworkTape<Real, Wide>& tape) {
    const auto& wide = network_of<Wide>(model);
    const auto& real = network_of<Real>(model);
    const int inputs = shape.inputs(), last = shape.layers() - 1, widest = widest_hidden(shape);

    for (int t = 0; t < inputs; ++t)
        tape.value[0][t] = (theta[t] - lane<Wide>(wide.zero_point[t])) * lane<Wide>(wide.inverse_scale[t]);

    for (int l = 0; l <= last; ++l) {
        const int n_in = shape.width(l), n_out = shape.width(l + 1);
        const Wide* in = tape.value[l % 2];
        Wide* out = l == last ? tape.output : tape.value[(l + 1) % 2];
        Real* slopes = l == last ? tape.output_tangent : tape.pre_tangent[l];
        const int stride = l == last ? shape.samples() : widest;

        const Wide* value_in[1] = {in};
        Wide* value_out[1] = {out};
        multiply<Wide>(wide.weights[l], n_in, n_out, 1, value_in, value_out);
        if (TANGENTS && l == 0) {  // the tangents of the inputs are unit vectors
            for (int t = 0; t < inputs; ++t)
                for (int j = 0; j < n_out; ++j)
                    slopes[t * stride + j] = lane<Real>(real.weights[0][t * n_out + j] * real.inverse_scale[t]);
        } else if (TANGENTS) {
            const Real* tangent_in[MAX_INPUTS];
            Real* tangent_out[MAX_INPUTS];
            for (int t = 0; t < inputs; ++t) {
                tangent_in[t] = tape.tangent + t * widest;
                tangent_out[t] = slopes + t * stride;
            }
            multiply<Real>(real.weights[l], n_in, n_out, inputs, tangent_in, tangent_out);
        }

        for (int j = 0; j < n_out; ++j) {
            const Wide a = out[j] + lane<Wide>(wide.biases[l][j]);
            if (l == last) {
                out[j] = a;
                continue;
            }
            const Wide h = tanh(a);
            out[j] = h;
            const Real narrow = convert<Real>(h);
            tape.hidden[l][j] = narrow;
            if (!TANGENTS) continue;
            const Real slope = fma(-narrow, narrow, lane<Real>(1));
            for (int t = 0; t < inputs; ++t) tape.tangent[t * widest + j] = slope * slopes[t * stride + j];
        }
    }
}

// curvature[t >= u packed by rows] += sum_i weight_i d2 output_i / dTheta_t dTheta_u. weight: (m,).
template <class Real, class Wide, class Shape>
XPKERN_INLINE void network_curvature(const ModelView& model, const Shape& shape, const Real* weight,
                                     const NetworkTape<Real, Wide>& tape, Real* curvature) {
    const auto& real = network_of<Real>(model);
    const int inputs = shape.inputs(), widest = widest_hidden(shape);
    const Real* above = weight;
    for (int l = shape.layers() - 1; l >= 1; --l) {
        Real* adjoint = tape.adjoint[l % 2];
        reverse_multiply<Real>(real.weights[l], shape.width(l), shape.width(l + 1), above, adjoint);
        const Real* hidden = tape.hidden[l - 1];
        const Real* tangents = tape.pre_tangent[l - 1];
        for (int j = 0; j < shape.width(l); ++j) {
            const Real h = hidden[j];
            const Real abar = adjoint[j] * fma(-h, h, lane<Real>(1));
            const Real bend = abar * h * lane<Real>(-2);
            for (int t = 0, packed = 0; t < inputs; ++t) {
                const Real bent = bend * tangents[t * widest + j];
                for (int u = 0; u <= t; ++u, ++packed)
                    curvature[packed] = fma(bent, tangents[u * widest + j], curvature[packed]);
            }
            adjoint[j] = abar;
        }
        above = adjoint;
    }
}

XPKERN_NAMESPACE_END
