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

// Stars whose whiteners stand in rows, (n, p), or side by side, (groups, p, STARS_SIDE_BY_SIDE).
TrainingStars training_stars(const Array<float>& flux, const Array<float>& whitener, const Array<double>& mean,
                             const Array<double>& sigma, const Model& model) {
    const int m = model.samples(), k = model.parameters();
    if (whitener.ndim() != 3) return {star_arrays(flux, whitener, mean, sigma, m, k), false};
    const auto n = flux.shape(0);
    require_shape(flux, "flux", {n, m});
    require_shape(whitener, "whitener",
                  {(n + STARS_SIDE_BY_SIDE - 1) / STARS_SIDE_BY_SIDE, packed_length(m), STARS_SIDE_BY_SIDE});
    require_shape(mean, "mean", {n, k});
    require_shape(sigma, "sigma", {n, k});
    return {{flux.data(), whitener.data(), mean.data(), sigma.data()}, true};
}

// Elements of which all stars of a group are copied before the next: they stay in the nearest cache.
constexpr py::ssize_t COPIED_TOGETHER = 64;

// Rows (stars, p) of some stars whose whiteners stand side by side.
Array<float> rows_of_groups(const Array<float>& groups, const Array<int64_t>& stars) {
    const auto p = groups.shape(1), n = stars.shape(0);
    require_shape(groups, "groups", {groups.shape(0), p, STARS_SIDE_BY_SIDE});
    const int64_t* star = stars.data();
    for (py::ssize_t i = 0; i < n; ++i)
        if (star[i] < 0 || star[i] >= groups.shape(0) * STARS_SIDE_BY_SIDE) throw std::out_of_range("no such star");
    Array<float> rows = make_array<float>({n, p});
    const float* from = groups.data();
    float* to = rows.mutable_data();
    const py::gil_scoped_release release;
    for (py::ssize_t begin = 0, end = 0; begin < n; begin = end) {
        const int64_t group = star[begin] / STARS_SIDE_BY_SIDE;
        while (end < n && star[end] / STARS_SIDE_BY_SIDE == group) ++end;
        for (py::ssize_t first = 0; first < p; first += COPIED_TOGETHER) {
            const auto last = std::min(first + COPIED_TOGETHER, p);
            for (py::ssize_t i = begin; i < end; ++i) {
                const float* element = from + group * p * STARS_SIDE_BY_SIDE + star[i] % STARS_SIDE_BY_SIDE;
                for (py::ssize_t k = first; k < last; ++k) to[i * p + k] = element[k * STARS_SIDE_BY_SIDE];
            }
        }
    }
    return rows;
}

// Rows of whole groups, (STARS_SIDE_BY_SIDE groups, p), to these groups side by side in the same memory.
void group_rows(Array<float> rows) {
    const auto p = rows.shape(1), n_groups = rows.shape(0) / STARS_SIDE_BY_SIDE;
    require_shape(rows, "rows", {n_groups * STARS_SIDE_BY_SIDE, p});
    float* group = rows.mutable_data();
    std::vector<float> copy(static_cast<size_t>(STARS_SIDE_BY_SIDE * p));
    const py::gil_scoped_release release;
    for (py::ssize_t number = 0; number < n_groups; ++number, group += copy.size()) {
        std::copy_n(group, copy.size(), copy.begin());
        for (py::ssize_t first = 0; first < p; first += COPIED_TOGETHER) {
            const auto last = std::min(first + COPIED_TOGETHER, p);
            for (int star = 0; star < STARS_SIDE_BY_SIDE; ++star)
                for (py::ssize_t k = first; k < last; ++k)
                    group[k * STARS_SIDE_BY_SIDE + star] = copy[static_cast<size_t>(star * p + k)];
        }
    }
}

// Eq. 12 averaged over the stars, and its gradient in all parameters: (p,) in the order of ModelArrays.flatten().
py::tuple train_step(const std::string& isa, const Model& model, const Array<float>& flux, const Array<float>& whitener,
                     const Array<double>& mean, const Array<double>& sigma, const Array<double>& params, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const auto n = flux.shape(0);
    const TrainingStars stars{star_arrays(flux, whitener, mean, sigma, model.samples(), model.parameters()), false};
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
    const TrainingStars stars = training_stars(flux, whitener, mean, sigma, model);
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
    module.attr("STARS_SIDE_BY_SIDE") = STARS_SIDE_BY_SIDE;
    module.def("rows_of_groups", &rows_of_groups, py::arg("groups").noconvert(), py::arg("stars").noconvert());
    module.def("group_rows", &group_rows, py::arg("rows").noconvert());
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
