// A calibration's set-up as Python's arrays, for engines that hand it to other processors.
#pragma once

#include <algorithm>

#include "calibration_plan.hpp"
#include "handles.hpp"

namespace xpkern {

template <class T>
Array<T> copy_of(const T* values, py::ssize_t rows, py::ssize_t columns) {
    Array<T> array = make_array<T>({rows, columns});
    std::copy_n(values, rows * columns, array.mutable_data());
    return array;
}

// The fields of a SideView.
inline py::dict arrays_of(const SideView& side) {
    const py::ssize_t n = side.coefficients, r = side.rows, s = side.inner;
    py::dict result;
    result["first_sample"] = side.first_sample;
    result["rows"] = side.rows;
    result["coefficients"] = side.coefficients;
    result["inner"] = side.inner;
    result["design"] = copy_of(side.design, n, r);
    result["lower"] = copy_of(side.lower, s, r);
    result["upper_reversed"] = copy_of(side.upper_reversed, s, s);
    result["ratio"] = copy_of(side.ratio, n - s, s);
    result["place"] = copy_of(side.place, 1, n * (n + 1) / 2);
    return result;
}

// What a CalibrationView has of the design matrices, (xp_samples, coefficients) each.
inline py::dict calibration_plan(const Array<double>& bp_design, const Array<double>& rp_design) {
    if (bp_design.ndim() != 2 || rp_design.ndim() != 2 || bp_design.shape(0) != rp_design.shape(0))
        throw std::invalid_argument("design matrices must have a row for each XP sample");
    const int samples = static_cast<int>(bp_design.shape(0));
    const CalibrationPlan plan(bp_design.data(), static_cast<int>(bp_design.shape(1)), rp_design.data(),
                               static_cast<int>(rp_design.shape(1)), samples, samples, NoiseTerms{});
    py::dict result;
    result["bp"] = arrays_of(plan.view().bp);
    result["rp"] = arrays_of(plan.view().rp);
    result["leading_end"] = plan.view().leading_end;
    result["link"] = plan.view().link;
    return result;
}

}  // namespace xpkern
