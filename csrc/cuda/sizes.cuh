// What a host needs to know of the kernels' memory, said by the kernels' own text.
#pragma once

#include "calibrate.cuh"
#include "curvature.cuh"
#include "descent.cuh"
#include "fit_finish.cuh"
#include "fit_search.cuh"
#include "freeze_warp.cuh"
#include "stars.cuh"
#include "starts.cuh"
#include "train.cuh"

XPKERN_NAMESPACE_BEGIN

XPKERN_INLINE bool is_usual(const ModelView& model, const PriorView& prior) {
    return UsualShape::matches(model) && prior.n_components <= USUAL_COMPONENTS;
}

XPKERN_INLINE KernelScratch bytes_of_kernels(const ScratchArguments& a) {
    KernelScratch bytes{};
    if (a.model.n_layers > 0) {
        const AnyShape shape(a.model);
        if (!is_usual(a.model, a.prior)) {
            bytes.predict = predict_bytes(shape);
            bytes.evaluate = ThreadSpace<float, double>::bytes(shape, a.prior);
            bytes.descend = bytes.train = ThreadSpace<float, float>::bytes(shape, a.prior);
        }
        bytes.tape = TapeLayout(shape).size;
    }
    if (a.prior.n_components > USUAL_COMPONENTS ||
        (a.prior.n_components > 0 && a.prior.n_dimensions != UsualShape::inputs()))
        bytes.curvature = curvature_bytes(a.prior);
    if (a.n_types > 0) {
        const bool usual =
            a.n_types <= USUAL_TYPES && a.samples == UsualShape::samples() && a.inputs == UsualShape::inputs();
        if (!usual) bytes.start = StartMemory::bytes(int(a.samples), int(a.inputs) + 2, int(a.n_types));
    }
    // All stages of a fit take the same form; a start has its memory from the grid, the others from the model.
    if (a.model.n_layers > 0 && (bytes.start > 0 || bytes.evaluate > 0)) {
        const AnyShape shape(a.model);
        const int64_t fine = ThreadSpace<float, double>::bytes(shape, a.prior);
        bytes.fit = bytes.start > fine ? bytes.start : fine;
        bytes.rescue = ThreadSpace<double, double>::bytes(shape, a.prior);
    }
    if (a.calibration.samples > 0) {
        if (!UsualSpectrum::holds(a.calibration))
            bytes.calibrate = calibration_doubles(a.calibration) * int64_t(sizeof(double));
    }
    if (a.search_samples > UsualShape::samples() || a.search_window > UsualShape::samples())
        bytes.search = SearchMemory::bytes(a.search_samples, a.search_window);
    bytes.design = sizeof(SharedDesign);
    bytes.spectrum = sizeof(SharedSpectrum);
    return bytes;
}

XPKERN_NAMESPACE_END

extern "C" __global__ void scratch_bytes(const __grid_constant__ xpkern::ScratchArguments a) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *a.bytes = kernels::bytes_of_kernels(a);
}

// Sizes of the structs that a host fills or allocates, in the order of ArgumentSizes.
extern "C" __global__ void argument_sizes(const __grid_constant__ xpkern::SizesArguments a) {
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    *a.sizes = {sizeof(xpkern::CalibrateArguments),
                sizeof(xpkern::PredictArguments),
                sizeof(xpkern::FreezeArguments),
                sizeof(xpkern::CurvatureArguments),
                sizeof(xpkern::EvaluateArguments),
                sizeof(xpkern::StartArguments),
                sizeof(xpkern::FitArguments),
                sizeof(xpkern::InvertArguments),
                sizeof(xpkern::SearchArguments),
                sizeof(xpkern::DescendArguments),
                sizeof(xpkern::WhitenerArguments),
                sizeof(xpkern::TrainArguments),
                sizeof(xpkern::ScratchArguments),
                sizeof(kernels::Search),
                sizeof(kernels::BestCandidate),
                sizeof(xpkern::TrainingState),
                sizeof(xpkern::KernelScratch),
                kernels::FreezeBlock::most_warps,
                sizeof(kernels::FreezeBlock) - sizeof(kernels::FreezeStar),
                sizeof(kernels::FreezeStar),
                kernels::FitBlock::most_warps,
                sizeof(kernels::FitBlock) - sizeof(kernels::FitStar),
                sizeof(kernels::FitStar),
                kernels::StartBlock::most_warps,
                sizeof(kernels::StartBlock) - sizeof(kernels::StartStar),
                sizeof(kernels::StartStar),
                kernels::FinishBlock::most_warps,
                sizeof(kernels::FinishBlock) - sizeof(kernels::FinishStar),
                sizeof(kernels::FinishStar),
                kernels::STAR_WARPS,
                sizeof(kernels::SharedStars)};
}
