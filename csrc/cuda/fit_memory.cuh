// Where the searches of a block's warps keep what lanes read of one another: in shared memory, the network once for
// all, and a star a warp; all of it in double, in tiles as the tensor cores take them.
#pragma once

#include "round.cuh"
#include "train_memory.cuh"

XPKERN_NAMESPACE_BEGIN

struct FitShape : UsualShape {
    XPKERN_INLINE constexpr explicit FitShape(const ModelView& model)
        : UsualShape(model), exact(true), in_rounds(false) {}
    bool exact;      // whether evaluations that may have the exact Hessian have it: code is what warps wait for, so one
                     // serves
    bool in_rounds;  // whether the block's warps begin their evaluations together
    static constexpr int n_inputs = UsualShape::inputs(), n_samples = UsualShape::samples();
    static constexpr int last = UsualShape::layers() - 1, coordinates = n_inputs + 2;
    static constexpr int strips = (n_samples + LANES - 1) / LANES, whole_strips = n_samples / LANES;
    static constexpr int rest = n_samples - whole_strips * LANES;  // rows of the last strip
};
static_assert(UsualShape::width(1) == LANES, "a neuron a lane");
static_assert(FitShape::rest == 2 && FitShape::whole_strips == 2 && FitShape::strips == 3,
              "what the last strip is solved for");

// Numbers that are moved in one access.
struct alignas(16) Four {
    float number[4];
};

// Matrices lie in tiles of 8 rows by 4 columns, element (i, j) of a tile where lane 4 i + j finds it. Two tiles, one
// below the other, side by side: a lane has both of its elements in one access.
struct FitTiles {
    static constexpr int rows = 8, columns = 4;
    // Of a matrix of LANES by LANES.
    static constexpr int across = LANES / columns, pairs_down = LANES / (2 * rows), pairs = pairs_down * across;
};

// Where a lane is in its warp, and its row and column of a left tile. An evaluation asks once and hands it on: places
// that do not follow from what was known before have no register while nobody needs them.
struct FitLane {
    int lane, row, column;

    __device__ __forceinline__ FitLane() : lane(lane_in_warp()) {
#if defined(__CUDA_ARCH__)
        asm volatile("" : "+r"(lane));
#endif
        row = lane / FitTiles::columns;
        column = lane % FitTiles::columns;
    }
    // Where it finds its element of a tile's transpose, which is half of this tile and half of its right neighbour: in
    // which of the two, and at which place if the transpose begins at row 4 * `lower` of the tile.
    __device__ __forceinline__ int further() const { return row / FitTiles::columns; }
    __device__ __forceinline__ int turned(int lower) const {
        return (lower * FitTiles::columns + column) * FitTiles::columns + row % FitTiles::columns;
    }
};
using TilePair = Pair[LANES];

// A matrix of so many pairs of tiles, a whole row of pairs after another.
template <int PAIRS>
struct SquareTiles {
    TilePair pair[PAIRS];

    // Element (i, j).
    XPKERN_INLINE double& element(int i, int j) {
        return pair[i / (2 * FitTiles::rows) * FitTiles::across + j / FitTiles::columns]
                   [i % FitTiles::rows * FitTiles::columns + j % FitTiles::columns]
                       .at[i / FitTiles::rows % 2];
    }
};

// Pairs of tiles of a triangle whose rows of pairs are as long as they must be. Of the two tiles over which the
// diagonal goes, the upper one is not there: the last two of a row are lower tiles alone.
struct TriangleShape {
    static constexpr int pairs_down = FitTiles::pairs_down, alone = 2;
    static XPKERN_INLINE constexpr int whole(int p) { return 4 * p + 2; }  // pairs of a row of pairs
    static XPKERN_INLINE constexpr int before(int p) { return 2 * p * p; }
};
struct alignas(16) TriangleTiles : TriangleShape {
    TilePair both[TriangleShape::before(TriangleShape::pairs_down)];
    double lower[TriangleShape::alone * TriangleShape::pairs_down][LANES];

    // Element `place` of one of the two tiles, `further` to the right or not, that are block (i, j) of 8 by 8.
    XPKERN_INLINE const double& of_block(int i, int j, int further, int place) const {
        const int p = i / 2, across = 2 * j;
        if (across < whole(p)) return both[before(p) + across + further][place].at[i % 2];
        return lower[alone * p + across - whole(p) + further][place];
    }
    XPKERN_INLINE double& of_block(int i, int j, int further, int place) {
        return const_cast<double&>(static_cast<const TriangleTiles&>(*this).of_block(i, j, further, place));
    }
    // What lanes have of a left tile's transpose: of the matrix's columns from 8 * `across` on and rows from 4 *
    // `down`.
    __device__ __forceinline__ double turned(const FitLane& here, int across, int down) const {
        return of_block(down / 2, across, here.further(), here.turned(down % 2));
    }
};

// The triangle of the last two samples: the inverses of the numbers on its diagonal, and the one below.
struct LastTriangle {
    double first, below, second;

    XPKERN_INLINE Pair solve(double one, double other) const {
        const double y = one * first;
        return {{y, fma(-below, y, other) * second}};
    }
    XPKERN_INLINE Pair solve_back(double one, double other) const {
        const double w = other * second;
        return {{fma(-below, w, one) * first, w}};
    }
};

// The network in tiles: what a layer's inputs have to do with its outputs is a matrix of a row an output.
struct alignas(16) FitNetwork {
    static constexpr int last = FitShape::last, whole_strips = FitShape::whole_strips;
    SquareTiles<FitTiles::pairs> between[last - 1];         // of the layers between
    SquareTiles<whole_strips * FitTiles::pairs> to_strips;  // of the last one's whole strips
    double rest[FitShape::rest][LANES];                     // of the last samples
    double first[FitShape::n_inputs][LANES];
    double bias[last][LANES];
    double last_bias[FitShape::n_samples], ext_curve[FitShape::n_samples];

    // By all threads of the block; a barrier follows.
    template <int LAYER = 0>
    __device__ __forceinline__ void take(const NetworkView<double>& network) {
        constexpr int n_in = UsualShape::width(LAYER), n_out = UsualShape::width(LAYER + 1);
        const double *const from = network.weights[LAYER], *const biases = network.biases[LAYER];
        XPKERN_ROLLED
        for (int at = int(threadIdx.x); at < n_in * n_out; at += int(blockDim.x)) {
            const int in = at / n_out, out = at % n_out;
            if constexpr (LAYER == 0)
                first[in][out] = from[at];
            else if constexpr (LAYER < last)
                between[LAYER - 1].element(out, in) = from[at];
            else if (out < whole_strips * LANES)
                to_strips.element(out, in) = from[at];
            else
                rest[out % LANES][in] = from[at];
        }
        XPKERN_ROLLED
        for (int out = int(threadIdx.x); out < n_out; out += int(blockDim.x)) {
            if constexpr (LAYER == last)
                last_bias[out] = biases[out], ext_curve[out] = network.ext_curve[out];
            else
                bias[LAYER][out] = biases[out];
        }
        if constexpr (LAYER < last) take<LAYER + 1>(network);
    }
};

// Rows of eight numbers, one a sample: slopes and residual, and what else lanes show one another. Every other two rows
// have their halves exchanged, so that 4 columns of 4 rows, of which half a warp reads one each, are in no bank twice.
struct FitColumns {
    static constexpr int width = 8;
    static constexpr int rows = (FitShape::n_samples + FitTiles::columns - 1) / FitTiles::columns * FitTiles::columns;
    alignas(16) double number[rows * width];

    // Of row first + row: `first` is known to the compiler, and divisible by 4.
    static XPKERN_INLINE constexpr int place(int first, int row, int column) {
        return (first + row) * width + (column ^ ((row & 2) << 1));
    }
    XPKERN_INLINE double& at(int first, int row, int column) { return number[place(first, row, column)]; }
    // Neighbours, from an even column on.
    XPKERN_INLINE Pair& pair_at(int first, int row, int column) {
        return *reinterpret_cast<Pair*>(number + place(first, row, column));
    }
};

// Which derivative a lane has, as every one finds it for itself: element (row, column) of the coordinates' triangle,
// or, as the next row, of the gradient. Lanes beyond have what nobody asks for.
struct FitElement {
    static constexpr int k = FitShape::coordinates, squares = row_start(k), count = squares + k;
    int at, row, column;  // at: its place, packed

    __device__ __forceinline__ explicit FitElement(const FitLane& here)
        : at(here.lane < count ? here.lane : count - 1), row(0) {
        XPKERN_UNROLL
        for (int r = 1; r <= k; ++r) row += at >= row_start(r) ? 1 : 0;
        column = at - row_start(row);
    }
    __device__ __forceinline__ bool of_gradient() const { return row == k; }
    __device__ __forceinline__ bool on_diagonal() const { return row == column; }
};

// Derivatives of a star's loss, and the whitened slopes' products, at the best place that a search has come to.
struct alignas(16) FitDerivatives {
    static constexpr int padded = (FitElement::squares + 3) / 4 * 4;
    float definite[FitElement::count];  // behind the definite part of the Hessian the gradient
    float hessian[padded], normal[padded];
};
static_assert(FitElement::count % 4 == 0);

// The star of a warp.
struct alignas(16) FitStar {
    TriangleTiles inverse[FitShape::whole_strips];  // of each strip's own triangle
    SquareTiles<FitTiles::pairs> below;             // -G between the second strip's samples and the first one's
    FitColumns columns;
    double mean[FitShape::coordinates], weight[FitShape::coordinates];  // of the constraints
    double u[FitShape::coordinates], trial[FitShape::coordinates];      // the best place, and the one that is looked at
    FitDerivatives best;
    float normal[FitColumns::width * FitColumns::width];  // Y^T Y of the latter, the residual among the columns
    float flux[FitShape::n_samples];
    float last_rows[FitShape::rest][FitShape::n_samples];  // of G
    float difference[FitShape::n_samples];                 // predicted less observed flux, of the evaluation at hand
    bool in_round;                                         // of its warp's first lane: FitBlock::round
    int next;                                              // row of the star after this one

    __device__ __forceinline__ LastTriangle last_triangle() const {
        constexpr int first = FitShape::whole_strips * LANES;
        return {convert<double>(last_rows[0][first]), convert<double>(last_rows[1][first]),
                convert<double>(last_rows[1][first + 1])};
    }
};

// What stands in the shared memory of a block: behind the network as many stars as there is room for, a warp each.
struct alignas(16) FitBlock {
    // At most: as many as fit into the 227 kB of compute capability 9.0; they have all registers, too.
    static constexpr int most_warps = 8, most_threads = most_warps * LANES;
    FitNetwork network;
    double lower[FitShape::coordinates], upper[FitShape::coordinates];  // box in u
    Round round;                                                        // of evaluations
    FitStar star[1];
};
static_assert(sizeof(FitBlock) + (FitBlock::most_warps - 1) * sizeof(FitStar) <= 227 * 1024, "shared memory");

__device__ __forceinline__ FitBlock& fit_block() {
    return *reinterpret_cast<FitBlock*>(dynamic_shared());
}
__device__ __forceinline__ FitStar& fit_star() {
    auto warp = static_cast<unsigned>(threadIdx.x) / LANES;
#if defined(__CUDA_ARCH__)
    // Or each address is found once, before all evaluations, and has a register all along.
    asm volatile("" : "+r"(warp));
#endif
    return fit_block().star[warp];
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

// memory[i] becomes the sum of values[i] over all lanes, for which one lane each adds up; memory: (LANES, COUNT | 1),
// of which nothing is wanted any more.
template <int COUNT, class Real>
__device__ __forceinline__ void sum_in_memory(int lane, const Real (&values)[COUNT], Real* memory) {
    static_assert(COUNT <= LANES);
    constexpr int stride = COUNT | 1;  // odd: neighbouring rows begin in neighbouring banks
    __syncwarp();
    XPKERN_UNROLL
    for (int i = 0; i < COUNT; ++i) memory[lane * stride + i] = values[i];
    __syncwarp();
    const Real* const mine = memory + (lane < COUNT ? lane : 0);
    Real sum[4];
    XPKERN_UNROLL
    for (int part = 0; part < 4; ++part) sum[part] = mine[part * stride];
    XPKERN_UNROLL
    for (int row = 4; row < LANES; ++row) sum[row % 4] += mine[row * stride];
    __syncwarp();
    if (lane < COUNT) memory[lane] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    __syncwarp();
}

XPKERN_NAMESPACE_END
