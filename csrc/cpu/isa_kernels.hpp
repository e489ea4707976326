// Instantiates every kernel for the instruction set of this translation unit and hands out their table.
#pragma once

#include "calibrate.hpp"
#include "confidence_driver.hpp"
#include "descent_driver.hpp"
#include "information_driver.hpp"
#include "noise_driver.hpp"
#include "prior_driver.hpp"
#include "star_kernels.hpp"
#include "training_driver.hpp"

XPKERN_NAMESPACE_BEGIN

#define XPKERN_TEXT_OF(name) #name
#define XPKERN_TEXT(name) XPKERN_TEXT_OF(name)

inline int64_t calibration_scratch_bytes(const CalibrationView& view) {
    return calibration_scratch_size(view) * static_cast<int64_t>(sizeof(double));
}

inline void calibrate_block(const CalibrationView& view, const CalibrationRows& rows, int64_t begin, int64_t end,
                            char* scratch) {
    calibrate_rows(view, rows, begin, end, reinterpret_cast<double*>(scratch));
}

const Kernels& kernels() {
    static constexpr Kernels table = {
        XPKERN_TEXT(XPKERN_ISA),
        star_scratch_bytes,
        calibration_scratch_bytes,
        calibrate_block,
        predict_stars,
        evaluate_stars,
        start_stars,
        fit_stars,
        search_scratch_bytes,
        search_stars,
        descent_scratch_bytes,
        descend_stars,
        freeze_scratch_bytes,
        freeze_stars,
        prior_scratch_bytes,
        curve_prior,
        invert_informations,
        confidence_scratch_bytes,
        classify_stars,
        CHUNK_PLACES,
        training_scratch_bytes,
        chunk_gradient_size,
        add_chunk_gradient,
        total_of_chunks,
        gradient_of_total,
        penalty_of_weights,
        move_model,
        step_stars,
        multiply_add_peak,
    };
    return table;
}

XPKERN_NAMESPACE_END
