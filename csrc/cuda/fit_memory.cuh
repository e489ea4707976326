// Where the fits of a block's warps keep what lanes read of one another: in shared memory, the networks once for all,
// and a star a warp.
#pragma once

#include "train_memory.cuh"

XPKERN_NAMESPACE_BEGIN

struct FitShape : UsualShape {
    XPKERN_INLINE constexpr explicit FitShape(const ModelView& model) : UsualShape(model), exact(true) {}
    bool exact;  // whether evaluations that may have the exact Hessian have it: code is what warps wait for, so one
                 // serves
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

XPKERN_NAMESPACE_END
