// The part of the extension module that trains a model.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch.hpp"
#include "module.hpp"
#include "training_run.hpp"

namespace xpkern {

namespace {

Array<double> copy_of(const std::vector<double>& values) {
    return Array<double>(static_cast<py::ssize_t>(values.size()), values.data());
}

// Eq. 12 averaged over the stars, and its gradient in all parameters: (p,) in the order of ModelArrays.flatten().
py::tuple train_step(const std::string& isa, const Model& model, const Array<float>& flux, const Array<float>& whitener,
                     const Array<double>& mean, const Array<double>& sigma, const Array<double>& params, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const auto n = flux.shape(0);
    const StarArrays stars = star_arrays(flux, whitener, mean, sigma, model.samples(), model.parameters());
    require_shape(params, "params", {n, model.parameters()});
    std::vector<int64_t> all(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), 0);
    Array<double> at = params;  // no step changes it
    TrainingRun run(kernels, model.view(), stars, const_cast<double*>(at.data()), nullptr, all.data(), 1, n, threads);
    double loss;
    {
        const py::gil_scoped_release release;
        loss = run.evaluate();
    }
    return py::make_tuple(loss, copy_of(run.gradient()));
}

// Throws where a batch names a star that is not there, or one twice.
void require_rows(const Array<int64_t>& batches, int64_t n) {
    std::vector<int64_t> seen_in(static_cast<size_t>(n), -1);
    const int64_t* row = batches.data();
    for (py::ssize_t batch = 0; batch < batches.shape(0); ++batch) {
        const std::string which = "batch " + std::to_string(batch) + " has row ";
        for (py::ssize_t i = 0; i < batches.shape(1); ++i, ++row) {
            if (*row < 0 || *row >= n)
                throw std::out_of_range(which + std::to_string(*row) + ", but there are " + std::to_string(n) +
                                        " stars");
            if (seen_in[static_cast<size_t>(*row)] == batch)
                throw std::out_of_range(which + std::to_string(*row) + " twice");
            seen_in[static_cast<size_t>(*row)] = batch;
        }
    }
}

py::dict train_epoch(const std::string& isa, const Model& model, const Array<float>& flux, const Array<float>& whitener,
                     const Array<double>& mean, const Array<double>& sigma, const Array<double>& start,
                     const Array<int64_t>& batches, const std::map<std::string, bool>& terms,
                     const Array<double>& lower, const Array<double>& upper,
                     const std::optional<Array<double>>& model_rates, bool adam, double momentum, double model_clip,
                     const std::optional<Array<double>>& star_rates, double star_clip, const Array<double>& first,
                     const Array<double>& second, int64_t count, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const auto n = flux.shape(0);
    const int k = model.parameters();
    const StarArrays stars = star_arrays(flux, whitener, mean, sigma, model.samples(), k);
    require_shape(start, "params", {n, k});
    require_shape(lower, "lower", {k});
    require_shape(upper, "upper", {k});
    if (batches.ndim() != 2) throw std::invalid_argument("batches must be a matrix (steps, size)");
    const auto steps = batches.shape(0);
    require_rows(batches, n);
    if (model_rates) require_shape(*model_rates, "model_rates", {steps});
    if (star_rates) require_shape(*star_rates, "star_rates", {steps});

    Array<double> params(start.request()), star_loss = make_array<double>({n}),
                                           model_loss = make_array<double>({steps});
    std::fill_n(star_loss.mutable_data(), n, std::nan(""));
    std::fill_n(model_loss.mutable_data(), steps, std::nan(""));
    TrainingRun run(kernels, model.view(), stars, params.mutable_data(), star_loss.mutable_data(), batches.data(),
                    steps, batches.shape(1), threads);
    const auto size = static_cast<py::ssize_t>(run.arrays().parameters.size());
    require_shape(first, "first", {size});
    require_shape(second, "second", {size});
    const ModelSteps of_model{model_rates ? model_rates->data() : nullptr, {adam, momentum, model_clip}};
    const StarSteps of_stars{star_rates ? star_rates->data() : nullptr, star_clip, loss_view(terms), lower.data(),
                             upper.data()};
    double* losses = model_loss.mutable_data();
    TrainingRun::End end;
    {
        const py::gil_scoped_release release;
        end = run.run(of_model, of_stars, first.data(), second.data(), count, losses);
    }
    py::dict result;
    result["parameters"] = copy_of(run.arrays().parameters);
    result["first"] = copy_of(run.arrays().first);
    result["second"] = copy_of(run.arrays().second);
    result["count"] = run.count();
    result["params"] = params;
    result["model_loss"] = model_loss;
    result["star_loss"] = star_loss;
    result["reached"] = run.reached();
    result["loss_is_finite"] = end != TrainingRun::End::loss_not_finite;
    result["rows_not_finite"] =
        end == TrainingRun::End::loss_not_finite ? run.rows_not_finite() : std::vector<int64_t>();
    return result;
}

}  // namespace

void bind_training(py::module_& module) {
    module.def("train_step", &train_step, py::arg("isa"), py::arg("model"), py::arg("flux").noconvert(),
               py::arg("whitener").noconvert(), py::arg("mean").noconvert(), py::arg("sigma").noconvert(),
               py::arg("params").noconvert(), py::arg("threads"));
    module.def("train_epoch", &train_epoch, py::arg("isa"), py::arg("model"), py::arg("flux").noconvert(),
               py::arg("whitener").noconvert(), py::arg("mean").noconvert(), py::arg("sigma").noconvert(),
               py::arg("params").noconvert(), py::arg("batches").noconvert(), py::arg("terms"), py::arg("lower"),
               py::arg("upper"), py::arg("model_rates").none(true), py::arg("adam"), py::arg("momentum"),
               py::arg("model_clip"), py::arg("star_rates").none(true), py::arg("star_clip"), py::arg("first"),
               py::arg("second"), py::arg("count"), py::arg("threads"));
}

}  // namespace xpkern
