// Where the stars of a batch stand in a block's shared memory, and how they come there: what lanes read of one another,
// the star's whitener or its inverse, and once for all warps of a block the network.
#pragma once

#include "train_tape.cuh"
#include "warps.cuh"

XPKERN_NAMESPACE_BEGIN

// Warps of a block: a batch of 512 gives each scheduler of a GPU one, and four stars share the network and their sums.
constexpr int STAR_WARPS = 4, STAR_THREADS = STAR_WARPS * LANES;
constexpr int STAR_BLOCKS = 3;  // whose shared memory a processor holds, and so whose registers it should

struct WarpShape : UsualShape {
    bool inverted;  // TrainArguments::inverted
    XPKERN_INLINE constexpr WarpShape(const ModelView& model, bool inverted) : UsualShape(model), inverted(inverted) {}
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

// The model's parameters, row by row, with a gap after each: a thread reads four numbers of a row at once, and neither
// lanes that read a row together nor lanes that each read a row of their own meet in a bank.
struct alignas(16) SharedNetwork {
    static constexpr int size = layer_start(WarpShape::layers()) + WarpShape::samples();
    static constexpr int padded = (size + LANES - 1) / LANES * LANES;          // numbers of a chunk's sums
    static constexpr int narrow = LANES + 4, wide = WarpShape::samples() + 2;  // apart; 4 modulo the banks
    static constexpr int narrow_rows = layer_start(WarpShape::last) / LANES;
    static constexpr int wide_rows = WarpShape::width(WarpShape::last) + 2;  // biases and R below the weights
    static_assert(wide % LANES == 4 && wide % 4 == 0);
    float narrow_number[narrow_rows][narrow], wide_number[wide_rows][wide];

    // What the weights of one input lead to, (n_out,); after the last input's, the biases.
    template <int LAYER>
    XPKERN_INLINE const float* row(int in) const {
        constexpr int start = layer_start(LAYER) / LANES;  // or the compiler leaves the sum for later
        if constexpr (LAYER < WarpShape::last) return narrow_number[start + in];
        return wide_number[in];
    }
    template <int LAYER>
    XPKERN_INLINE const float* bias() const {
        return row<LAYER>(WarpShape::width(LAYER));
    }
    XPKERN_INLINE const float* ext_curve() const { return wide_number[wide_rows - 1]; }
};

// What the products of the model's gradient are made of.
struct alignas(16) SharedTape {
    float hidden[WarpShape::last][LANES];   // of each hidden layer
    float adjoint[WarpShape::last][LANES];  // of these before the tanh
    float back[WarpShape::samples()];       // w f
    float input[WarpShape::inputs()];       // scaled
    float ext;
};

// Rows that are solved at a time. More would save exchanges, but every lane would load and solve more of what all do.
constexpr int SOLVED_ROWS = 4;

// The star of a warp.
struct alignas(16) SharedStar : SharedTape {
    static constexpr int squares = (WarpShape::samples() + SOLVED_ROWS - 1) / SOLVED_ROWS;
    // Inverses of the squares of SOLVED_ROWS rows on the diagonal of G, packed as G is, in whole quarters.
    alignas(16) float inverse[squares][12];
    float flux[WarpShape::samples()];
    alignas(16) float given[WarpShape::samples()];  // what the inverse of the whitener is to be multiplied by
    // The whitener or its inverse: rows of the triangle begin in banks that are all different.
    float factor[row_start(WarpShape::samples())];
};

struct SharedStars {
    SharedNetwork network;
    SharedStar star[STAR_WARPS];
};

__device__ __forceinline__ SharedStars& shared_stars() {
    return *reinterpret_cast<SharedStars*>(dynamic_shared());
}
__device__ __forceinline__ SharedStar& star_of_warp() {
    return shared_stars().star[threadIdx.x / LANES];
}

// Copies BYTES (4, 8 or 16, to which both are aligned) from memory to shared memory, from FROM numbers on to TO numbers
// on, by some time before wait_for_copies() returns in the same thread. No register holds them meanwhile.
template <int BYTES, int TO = 0, int FROM = TO>
__device__ __forceinline__ void copy_soon(float* to, const float* from) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.ca.shared.global [%0 + %3], [%1 + %4], %2;" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(to))),
                 "l"(from), "n"(BYTES), "n"(4 * TO), "n"(4 * FROM)
                 : "memory");
#else
    for (int i = 0; i < BYTES / 4; ++i) to[TO + i] = from[FROM + i];
#endif
}
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

__device__ __forceinline__ void copy_network_soon(const float* floats) {
    constexpr int quarters = LANES / 4, at_once = STAR_THREADS / quarters, whole = 2 * LANES;
    constexpr int narrow = SharedNetwork::narrow_rows, wide = SharedNetwork::wide_rows, m = WarpShape::samples();
    static_assert(m == whole + 2);
    SharedNetwork& network = shared_stars().network;
    const int thread = int(threadIdx.x), warp = thread / LANES, lane = thread % LANES;
    const auto copy_narrow = [&, to = &network.narrow_number[thread / quarters][thread % quarters * 4],
                              from = floats + 4 * thread](int row) {
        copy_soon<16>(to + row * SharedNetwork::narrow, from + row * LANES);
    };
    XPKERN_UNROLL
    for (int row = 0; row + at_once <= narrow; row += at_once) copy_narrow(row);
    constexpr int left = narrow / at_once * at_once;
    if (left + thread / quarters < narrow) copy_narrow(left);

    const float* const last = floats + layer_start(WarpShape::last);
    float* const to = &network.wide_number[warp][2 * lane];
    const float* const from = last + warp * m + 2 * lane;
    XPKERN_UNROLL
    for (int row = 0; row < wide; row += STAR_WARPS)
        if (row + STAR_WARPS <= wide || row + warp < wide) copy_soon<8>(to + row * SharedNetwork::wide, from + row * m);
    static_assert(wide <= STAR_THREADS);
    if (thread < wide) copy_soon<8>(&network.wide_number[thread][whole], last + thread * m + whole);
}

// COUNT numbers that lie side by side, dealt out to a warp; `to` and `from` are the lane's first ones. A recursion, as
// in a loop the compiler would keep an address for each copy.
template <int COUNT, int AT = 0>
__device__ __forceinline__ void copy_by_lane_soon(float* to, const float* from) {
    if constexpr (AT + LANES <= COUNT) {
        copy_soon<4, AT>(to, from);
        copy_by_lane_soon<COUNT, AT + LANES>(to, from);
    } else if constexpr (AT < COUNT) {
        if (lane_in_warp() < COUNT - AT) copy_soon<4, AT>(to, from);
    }
}

__device__ __forceinline__ void copy_samples_soon(const StarArrays& stars, int64_t row, SharedStar& star) {
    constexpr int m = WarpShape::samples(), packed = row_start(m);
    const int lane = lane_in_warp();
    copy_by_lane_soon<m>(star.flux + lane, stars.flux + row * m + lane);
    copy_by_lane_soon<packed>(star.factor + lane, stars.whitener + row * packed + lane);
}

XPKERN_NAMESPACE_END
