// Training: what the kernels know of the batch at hand, and the tape on which its stars leave what the products of the
// model's gradient are made of.
#pragma once

#include "core/model_step.hpp"
#include "core/star_step.hpp"
#include "threads.cuh"

XPKERN_NAMESPACE_BEGIN

// The batch to come, -1 where there is none. The kernel that begins with it leaves it to the others.
__device__ __forceinline__ int64_t open_batch(const TrainArguments& a) {
    const int64_t step = a.state->step, batch = a.state->end == TRAINING_GOES_ON && step < a.steps ? step : -1;
    if (blockIdx.x == 0 && threadIdx.x == 0) a.state->at = batch;
    return batch;
}

// The batch at hand, -1 where there is none, for the stars' steps: they are not to be taken if the model's has failed.
__device__ __forceinline__ int64_t batch_of_stars(const TrainArguments& a) {
    const int64_t end = a.state->end, at = a.state->at;  // both are on their way before one is looked at
    return end == TRAINING_GOES_ON ? at : -1;
}

__device__ __forceinline__ int64_t row_in_batch(const TrainArguments& a, int64_t batch, int64_t item) {
    return a.batches[batch * a.size + item];
}

// Where each layer's inputs and the adjoints of its outputs stand on a star's part of the tape of the general form; the
// last element is the extinction. Elements lie side by side: neighbouring parameters read them.
struct TapeLayout {
    int64_t value[MAX_LAYERS], adjoint[MAX_LAYERS], ext, size;
    template <class Shape>
    XPKERN_INLINE explicit TapeLayout(const Shape& shape) {
        size = 0;
        for (int l = 0; l < shape.layers(); ++l) {
            value[l] = size;
            adjoint[l] = size + shape.width(l);
            size += shape.width(l) + shape.width(l + 1);
        }
        ext = size++;
    }
};

// The star's own step: the row of params and the loss before it.
template <class Shape>
__device__ __forceinline__ double move_star(const TrainArguments& a, const Shape& shape, int64_t batch, int64_t row,
                                            const StarView<float, float>& star,
                                            const Workspace<float, float>& workspace, double* moved) {
    const int k = shape.parameters(), ext = k - 2;
    double low[MAX_PARAMETERS], high[MAX_PARAMETERS];
    for (int p = 0; p < k; ++p) {
        low[p] = p == ext ? max(a.lower[p], SMALLEST_EXT) : a.lower[p];
        high[p] = a.upper[p];
        moved[p] = a.params[row * k + p];
    }
    return star_step(a.model, shape, a.terms, star, static_cast<const double*>(low), static_cast<const double*>(high),
                     a.star_rates[batch], a.star_clip, workspace, moved);
}

XPKERN_NAMESPACE_END
