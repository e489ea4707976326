// What the parts of the extension module share: arrays of stars as the kernels read them.
#pragma once
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "handles.hpp"

namespace xpkern {

inline py::ssize_t packed_length(py::ssize_t m) {
    return m * (m + 1) / 2;
}

inline StarArrays star_arrays(const Array<float>& flux, const Array<float>& whitener, const Array<double>& mean,
                              const Array<double>& sigma, int samples, int parameters) {
    const auto n = flux.shape(0);
    require_shape(flux, "flux", {n, samples});
    require_shape(whitener, "whitener", {n, packed_length(samples)});
    require_shape(mean, "mean", {n, parameters});
    require_shape(sigma, "sigma", {n, parameters});
    return {flux.data(), whitener.data(), mean.data(), sigma.data()};
}

inline LossView loss_view(const std::map<std::string, bool>& terms) {
    return {terms.at("prior"), terms.at("jacobian_ext"), terms.at("jacobian_plx")};
}

// Adds what trains a model to the module.
void bind_training(py::module_& module);

}  // namespace xpkern
