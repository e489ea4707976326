// Gradient of the model's loss (Eq. 12) in weights, biases and ln R, summed over a chunk of stars.
//
// With b_i = w_i f_i half the gradient of a star's chi^2 in ln f_i (see descent.hpp), abar = b at the output and going
// backwards abar = (W abar of the layer above) (1 - h^2), h the inputs of a layer:
//   half d chi^2 / dW = sum over stars of h abar^T,   / d bias = sum of abar,   / d ln R_i = -R_i sum of E b_i.
// A chunk's stars are taken lane by lane up to the abar; h is then written star by star, and the products of a layer
// are sums over the chunk's stars with inputs side by side in a lane. So nothing is ever summed across a lane, and the
// 4.5k sums of the usual network are touched once a chunk.
// Cost for 3-32-32-32-66: 4.3k + 4.2k (network) + 2.2k + 2.2k (whitening and back) + 4.3k (products) fused
// multiply-adds a star. Bytes: the whitener, 8.8 kB a star, from memory.
//
// Single precision, as in descent: the gradient of 512 stars is right to 2e-6 of its norm while spectra differ by more
// than noise, and to 3e-5 and 2e-4 where only noise is left at a signal-to-noise ratio of 30 and 200 a sample. Chunks
// are added up in double.
#pragma once

#include "descent.hpp"

XPKERN_NAMESPACE_BEGIN

// Places for stars in a chunk. Fixed, as sums over chunks must not depend on the number of threads.
constexpr int CHUNK_PLACES = 64;

// Floats that fill whole registers.
template <class Lane>
XPKERN_INLINE int whole_lanes(int count) {
    constexpr int width = LaneTraits<Lane>::width / LaneTraits<Lane>::registers;
    return (count + width - 1) / width * width;
}

// Where a chunk's sums stand in its array of floats: for each layer the products, (n_out, whole_lanes(n_in)), and the
// biases; then what belongs to ln R.
template <class Lane>
struct GradientLayout {
    int64_t weights[MAX_LAYERS], biases[MAX_LAYERS], curve, size;
    XPKERN_INLINE explicit GradientLayout(const ModelView& model) {
        size = 0;
        for (int l = 0; l < model.n_layers; ++l) {
            weights[l] = size;
            size += int64_t(model.width[l + 1]) * whole_lanes<Lane>(model.width[l]);
            biases[l] = size;
            size += model.width[l + 1];
        }
        curve = size;
        size += model.width[model.n_layers];
    }
};

// Memory of a chunk besides that of an evaluation.
template <class Lane>
struct ChunkSpace {
    Scalar<Lane>* value[MAX_LAYERS];  // inputs of a layer, (stars, whole_lanes(n_in))
    Lane* adjoint[MAX_LAYERS];        // of its outputs before the tanh, (lanes, n_out)
    Lane* curve_sum;                  // (m,)

    template <class Shape>
    XPKERN_INLINE ChunkSpace(const Shape& shape, Arena& arena) {
        constexpr int width = LaneTraits<Lane>::width, lanes = CHUNK_PLACES / width;
        for (int l = 0; l < shape.layers(); ++l) {
            value[l] = arena.take<Scalar<Lane>>(CHUNK_PLACES * whole_lanes<Lane>(shape.width(l)));
            adjoint[l] = arena.take<Lane>(lanes * shape.width(l + 1));
        }
        curve_sum = arena.take<Lane>(shape.samples());
    }

    template <class Shape>
    XPKERN_INLINE void clear(const Shape& shape) const {
        for (int i = 0; i < shape.samples(); ++i) curve_sum[i] = lane<Lane>(0);
    }
};

// A lane's stars, the number_in_chunk-th of the chunk: chi^2 of each, and everything that the products are made of.
// counted: which of them are stars of the batch; parameters of the others must be as good.
template <class Lane, class Shape, class Meanwhile = Nothing>
XPKERN_KERNEL Lane add_lane(const ModelView& model, const Shape& shape, const Lane* flux, const Lane* factor,
                            const Lane* u, const Mask<Lane>& counted, int number_in_chunk,
                            const Workspace<Lane, Lane>& space, const ChunkSpace<Lane>& chunk,
                            const Meanwhile& meanwhile = {}) {
    constexpr int width = LaneTraits<Lane>::width;
    const int inputs = shape.inputs(), m = shape.samples(), last = shape.layers() - 1;
    const auto& network = network_of<Lane>(model);
    const Lane chi2 = weigh_residual(model, shape, flux, factor, u, space, meanwhile);

    const auto rows_of = [&](int l) {
        return chunk.value[l] + int64_t(number_in_chunk) * width * whole_lanes<Lane>(shape.width(l));
    };
    Lane scaled[MAX_INPUTS];
    for (int t = 0; t < inputs; ++t)
        scaled[t] = (u[t] - lane<Lane>(network.zero_point[t])) * lane<Lane>(network.inverse_scale[t]);
    Transposition<Lane>::to_rows(scaled, inputs, whole_lanes<Lane>(inputs), rows_of(0));
    for (int l = 1; l <= last; ++l)
        Transposition<Lane>::to_rows(space.tape.hidden[l - 1], shape.width(l), whole_lanes<Lane>(shape.width(l)),
                                     rows_of(l));

    Lane* above = chunk.adjoint[last] + number_in_chunk * m;
    for (int i = 0; i < m; ++i) {
        const Lane b = select(counted, space.back[i], lane<Lane>(0));
        above[i] = b;
        chunk.curve_sum[i] = fma(b, u[inputs], chunk.curve_sum[i]);
    }
    for (int l = last; l >= 1; --l) {
        const int n_in = shape.width(l);
        Lane* adjoint = chunk.adjoint[l - 1] + number_in_chunk * n_in;
        reverse_multiply<Lane>(network.weights[l], n_in, shape.width(l + 1), above, adjoint, meanwhile);
        for (int j = 0; j < n_in; ++j) {
            const Lane h = space.tape.hidden[l - 1][j];
            adjoint[j] *= fma(-h, h, lane<Lane>(1));
        }
        above = adjoint;
    }
    return chi2;
}

// product[c][i] = sum over stars of adjoint[c] value[i] for COLUMNS neighbours c and VECTORS registers of inputs i.
// value: (stars, stride), adjoint: (lanes, n_out), product: (n_out, stride), each from the first of its columns on.
template <int VECTORS, int COLUMNS, class Lane, class Meanwhile>
XPKERN_INLINE void outer_block(const Scalar<Lane>* value, int stride, const Lane* adjoint, int n_out, int lanes,
                               Scalar<Lane>* product, const Meanwhile& meanwhile) {
    using Inputs = typename OneRegister<Lane>::Type;
    constexpr int width = LaneTraits<Lane>::width, side = LaneTraits<Inputs>::width;
    Inputs sum[COLUMNS][VECTORS];
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
        XPKERN_UNROLL
        for (int v = 0; v < VECTORS; ++v) sum[c][v] = lane<Inputs>(0);
    }
    for (int number = 0; number < lanes; ++number) {
        const Scalar<Lane>* of_star = reinterpret_cast<const Scalar<Lane>*>(adjoint + number * n_out);
        XPKERN_UNROLL_FOUR
        for (int star = 0; star < width; ++star) {
            meanwhile();
            Inputs factor[COLUMNS];
            XPKERN_UNROLL
            for (int c = 0; c < COLUMNS; ++c) factor[c] = held(Inputs(of_star[c * width + star]));
            XPKERN_UNROLL
            for (int v = 0; v < VECTORS; ++v) {
                const Inputs x = held(load<Inputs>(value + v * side));
                XPKERN_UNROLL
                for (int c = 0; c < COLUMNS; ++c) sum[c][v] = fma(factor[c], x, sum[c][v]);
            }
            value += stride;
        }
    }
    XPKERN_UNROLL
    for (int c = 0; c < COLUMNS; ++c) {
        XPKERN_UNROLL
        for (int v = 0; v < VECTORS; ++v) store(product + c * stride + v * side, sum[c][v]);
    }
}

// All columns in blocks of COLUMNS, and what is left as one more.
template <int VECTORS, int COLUMNS, class Lane, class Meanwhile>
XPKERN_INLINE void outer_columns(const Scalar<Lane>* value, int stride, const Lane* adjoint, int n_out, int lanes,
                                 Scalar<Lane>* product, const Meanwhile& meanwhile) {
    int c = 0;
    for (; c + COLUMNS <= n_out; c += COLUMNS) {
        outer_block<VECTORS, COLUMNS>(value, stride, adjoint + c, n_out, lanes, product + c * stride, meanwhile);
        meanwhile.between_blocks();
    }
    if (c == n_out) return;
    with_known<COLUMNS>(n_out - c, [&](auto left) {
        outer_block<VECTORS, decltype(left)::value>(value, stride, adjoint + c, n_out, lanes, product + c * stride,
                                                    meanwhile);
    });
}

// Registers of inputs that go through a product together, and how many blocks the products of a layer have.
constexpr int MOST_VECTORS = 4;
template <class Lane>
XPKERN_INLINE constexpr int blocks_of_products(int n_in, int n_out) {
    int blocks = 0;
    for (int left = whole_lanes<Lane>(n_in) / whole_lanes<Lane>(1); left > 0; left -= MOST_VECTORS) {
        const int columns = ACCUMULATORS / (left < MOST_VECTORS ? left : MOST_VECTORS);
        blocks += (n_out + columns - 1) / columns;
    }
    return blocks;
}

// A layer's products. value: (stars, stride), adjoint: (lanes, n_out), product: (n_out, stride).
template <class Lane, class Meanwhile>
XPKERN_INLINE void outer_product(const Scalar<Lane>* value, int stride, const Lane* adjoint, int n_out, int lanes,
                                 Scalar<Lane>* product, const Meanwhile& meanwhile) {
    constexpr int side = LaneTraits<Lane>::width / LaneTraits<Lane>::registers;
    for (int first = 0; first < stride; first += MOST_VECTORS * side) {
        const int left = (stride - first) / side;
        with_known<MOST_VECTORS>(left < MOST_VECTORS ? left : MOST_VECTORS, [&](auto vectors) {
            constexpr int VECTORS = decltype(vectors)::value, COLUMNS = ACCUMULATORS / VECTORS;
            outer_columns<VECTORS, COLUMNS>(value + first, stride, adjoint, n_out, lanes, product + first, meanwhile);
        });
    }
}

// The chunk's sums, once all its lanes are in; its adjoints are used up. gradient: (GradientLayout::size,).
template <class Lane, class Shape, class Meanwhile = Nothing>
XPKERN_KERNEL void finish_chunk(const ModelView& model, const Shape& shape, int lanes, const ChunkSpace<Lane>& chunk,
                                Scalar<Lane>* gradient, const Meanwhile& meanwhile = {}) {
    const GradientLayout<Lane> layout(model);
    for (int l = 0; l < shape.layers(); ++l) {
        const int n_out = shape.width(l + 1);
        Lane* adjoint = chunk.adjoint[l];
        outer_product(chunk.value[l], whole_lanes<Lane>(shape.width(l)), adjoint, n_out, lanes,
                      gradient + layout.weights[l], meanwhile);
        if (lanes == 0) {  // places that nobody takes
            for (int j = 0; j < n_out; ++j) adjoint[j] = lane<Lane>(0);
        }
        for (int number = 1; number < lanes; ++number)
            for (int j = 0; j < n_out; ++j) adjoint[j] += adjoint[number * n_out + j];
        Transposition<Lane>::sum_stars(adjoint, n_out, gradient + layout.biases[l]);
    }
    Transposition<Lane>::sum_stars(chunk.curve_sum, shape.samples(), gradient + layout.curve);
}

XPKERN_NAMESPACE_END
