// What Python holds of a model, a prior and a start grid: their numbers as the kernels read them, checked once.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "../core/views.hpp"

namespace py = pybind11;

namespace xpkern {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
void require_shape(const Array<T>& array, const char* name, std::vector<py::ssize_t> shape) {
    bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
    for (size_t axis = 0; same && axis < shape.size(); ++axis) same = array.shape(axis) == shape[axis];
    if (same) return;
    std::string wanted;
    for (const auto length : shape) wanted += std::to_string(length) + ", ";
    throw std::invalid_argument(std::string(name) + " must have shape (" + wanted + ")");
}

template <class T>
Array<T> make_array(std::vector<py::ssize_t> shape) {
    return Array<T>(shape);
}

// The numbers of a flux model in both precisions.
class Model {
  public:
    Model(const std::vector<Array<double>>& weights, const std::vector<Array<double>>& biases,
          const Array<double>& ext_curve, const Array<double>& input_zp, const Array<double>& input_scale) {
        const int layers = static_cast<int>(weights.size());
        if (layers < 1 || layers > MAX_LAYERS || biases.size() != weights.size())
            throw std::invalid_argument("a network has 1 to " + std::to_string(MAX_LAYERS) +
                                        " layers, each with biases");
        view_.n_layers = layers;
        for (int l = 0; l < layers; ++l) {
            if (weights[l].ndim() != 2) throw std::invalid_argument("weights must be matrices (in, out)");
            view_.width[l] = static_cast<int>(weights[l].shape(0));
            view_.width[l + 1] = static_cast<int>(weights[l].shape(1));
        }
        for (int l = 0; l < layers; ++l) {
            require_shape(weights[l], "weights", {view_.width[l], view_.width[l + 1]});
            require_shape(biases[l], "biases", {view_.width[l + 1]});
            view_.in_double.weights[l] = keep(weights[l], doubles_);
            view_.in_double.biases[l] = keep(biases[l], doubles_);
            view_.in_float.weights[l] = keep(weights[l], floats_);
            view_.in_float.biases[l] = keep(biases[l], floats_);
        }
        if (inputs() < 1 || inputs() > MAX_INPUTS)
            throw std::invalid_argument("a network has 1 to " + std::to_string(MAX_INPUTS) + " inputs");
        require_shape(ext_curve, "ext_curve", {samples()});
        require_shape(input_zp, "input_zp", {inputs()});
        require_shape(input_scale, "input_scale", {inputs()});
        view_.in_double.ext_curve = keep(ext_curve, doubles_);
        view_.in_float.ext_curve = keep(ext_curve, floats_);
        for (int t = 0; t < inputs(); ++t) {
            view_.in_double.zero_point[t] = input_zp.at(t);
            view_.in_double.inverse_scale[t] = 1 / input_scale.at(t);
            view_.in_float.zero_point[t] = static_cast<float>(view_.in_double.zero_point[t]);
            view_.in_float.inverse_scale[t] = static_cast<float>(view_.in_double.inverse_scale[t]);
        }
    }
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    const ModelView& view() const { return view_; }
    int inputs() const { return view_.width[0]; }
    int samples() const { return view_.width[view_.n_layers]; }
    int parameters() const { return inputs() + 2; }

  private:
    template <class Element>
    static const Element* keep(const Array<double>& from, std::vector<std::vector<Element>>& store) {
        store.emplace_back(from.data(), from.data() + from.size());
        return store.back().data();
    }

    ModelView view_{};
    std::vector<std::vector<double>> doubles_;
    std::vector<std::vector<float>> floats_;
};

// The numbers of a Gaussian mixture in both precisions.
class Prior {
  public:
    // log_weight: (K,) ln of weight over the Gaussian's normalisation; mean: (K, d); root: (K, d, d) lower L with
    // precision = L L^T.
    Prior(const Array<double>& log_weight, const Array<double>& mean, const Array<double>& root) {
        if (mean.ndim() != 2) throw std::invalid_argument("means must be a matrix (components, dimensions)");
        view_.n_components = static_cast<int>(mean.shape(0));
        view_.n_dimensions = static_cast<int>(mean.shape(1));
        const int n = view_.n_dimensions;
        if (n < 1 || n > MAX_INPUTS) throw std::invalid_argument("the prior's number of dimensions is out of range");
        require_shape(log_weight, "log_weight", {view_.n_components});
        require_shape(root, "root", {view_.n_components, n, n});
        log_weight_.assign(log_weight.data(), log_weight.data() + log_weight.size());
        mean_.assign(mean.data(), mean.data() + mean.size());
        for (int c = 0; c < view_.n_components; ++c)
            for (int i = 0; i < n; ++i)
                for (int j = 0; j <= i; ++j) {
                    double product = 0;
                    for (int l = 0; l <= j; ++l) product += root.at(c, i, l) * root.at(c, j, l);
                    root_.push_back(root.at(c, i, j));
                    precision_.push_back(product);
                }
        float_log_weight_.assign(log_weight_.begin(), log_weight_.end());
        float_mean_.assign(mean_.begin(), mean_.end());
        float_root_.assign(root_.begin(), root_.end());
        float_precision_.assign(precision_.begin(), precision_.end());
        view_.in_double = {log_weight_.data(), mean_.data(), root_.data(), precision_.data()};
        view_.in_float = {float_log_weight_.data(), float_mean_.data(), float_root_.data(), float_precision_.data()};
    }
    Prior(const Prior&) = delete;
    Prior& operator=(const Prior&) = delete;

    const PriorView& view() const { return view_; }

  private:
    PriorView view_{};
    std::vector<double> log_weight_, mean_, root_, precision_;
    std::vector<float> float_log_weight_, float_mean_, float_root_, float_precision_;
};

// The start grid as the kernels read it.
class Grid {
  public:
    // rows: (t, r) position, slopes, type, gradient and precision of ln prior, twice ln prior; basis and inverse: (c,
    // m).
    Grid(const Array<float>& rows, const Array<float>& basis, const Array<float>& inverse, const Array<float>& mean,
         const Array<int32_t>& window, const Array<float>& reach, const Array<float>& apart) {
        if (rows.ndim() != 2 || basis.ndim() != 2 || apart.ndim() != 1)
            throw std::invalid_argument("rows and basis must be matrices, apart a vector");
        inputs_ = static_cast<int>(apart.shape(0));
        samples_ = static_cast<int>(basis.shape(0));
        if (inputs_ < 1 || inputs_ > MAX_INPUTS)
            throw std::invalid_argument("the grid's number of inputs is out of range");
        if (rows.shape(0) < 1) throw std::invalid_argument("a start grid needs a type");
        const int row = (1 + inputs_) * START_COLUMNS + 2 * inputs_ + inputs_ * (inputs_ + 1) / 2 + 1;
        require_shape(rows, "rows", {rows.shape(0), row});
        require_shape(basis, "basis", {samples_, START_COLUMNS});
        require_shape(inverse, "inverse", {samples_, START_COLUMNS});
        require_shape(mean, "mean", {samples_});
        require_shape(window, "window", {samples_, 2});
        require_shape(reach, "reach", {inputs_});
        for (py::ssize_t i = 0; i < samples_; ++i)
            if (window.at(i, 0) < 0 || window.at(i, 1) > samples_)
                throw std::invalid_argument("a window reaches beyond the samples");
        rows_.assign(rows.data(), rows.data() + rows.size());
        basis_.assign(basis.data(), basis.data() + basis.size());
        inverse_.assign(inverse.data(), inverse.data() + inverse.size());
        mean_.assign(mean.data(), mean.data() + mean.size());
        for (const float value : mean_) typical_.push_back(std::exp(value));
        window_.assign(window.data(), window.data() + window.size());
        view_ = {static_cast<int>(rows.shape(0)),
                 rows_.data(),
                 basis_.data(),
                 inverse_.data(),
                 mean_.data(),
                 typical_.data(),
                 window_.data(),
                 {},
                 {}};
        for (int i = 0; i < inputs_; ++i) {
            view_.reach[i] = reach.at(i);
            view_.apart[i] = apart.at(i);
        }
    }
    Grid(const Grid&) = delete;
    Grid& operator=(const Grid&) = delete;

    const GridView& view() const { return view_; }
    int parameters() const { return inputs_ + 2; }
    int samples() const { return samples_; }

  private:
    GridView view_{};
    int inputs_ = 0, samples_ = 0;
    std::vector<float> rows_, basis_, inverse_, mean_, typical_;
    std::vector<int32_t> window_;
};

// The candidates of a grid search as the kernels read them.
class Candidates {
  public:
    // types: (t, inputs); ext: (e,); base_flux: (t, m) at ext = 0 and plx = 1; ext_curve: (m,); penalty: (t,) added to
    // the scores; window: samples of the parallax guess.
    Candidates(const Array<double>& types, const Array<double>& ext, const Array<double>& base_flux,
               const Array<double>& ext_curve, const Array<double>& penalty, const Array<int32_t>& window,
               bool mean_of_ratios, bool score_parallax, double plx_lower, double plx_upper)
        : types_(types.data(), types.data() + types.size()),
          ext_(ext.data(), ext.data() + ext.size()),
          base_flux_(base_flux.data(), base_flux.data() + base_flux.size()),
          penalty_(penalty.data(), penalty.data() + penalty.size()),
          window_(window.data(), window.data() + window.size()) {
        if (types.ndim() != 2 || base_flux.ndim() != 2)
            throw std::invalid_argument("types and base_flux must be matrices");
        const auto n_types = types.shape(0), m = base_flux.shape(1), n_ext = ext.shape(0);
        require_shape(base_flux, "base_flux", {n_types, m});
        require_shape(ext_curve, "ext_curve", {m});
        require_shape(penalty, "penalty", {n_types});
        if (n_types < 1 || n_ext < 1) throw std::invalid_argument("a grid needs a type and an extinction");
        if (types.shape(1) < 1 || types.shape(1) > MAX_INPUTS)
            throw std::invalid_argument("the grid's number of inputs is out of range");
        for (const int32_t sample : window_)
            if (sample < 0 || sample >= m) throw std::invalid_argument("window must hold indices of samples");
        const py::ssize_t stored = (n_ext + WIDEST_LANE - 1) / WIDEST_LANE * WIDEST_LANE;
        for (py::ssize_t i = 0; i < m; ++i)
            for (py::ssize_t e = 0; e < stored; ++e)
                attenuation_.push_back(
                    static_cast<float>(std::exp(-ext.at(e < n_ext ? e : n_ext - 1) * ext_curve.at(i))));
        view_ = {static_cast<int>(n_types),
                 static_cast<int>(n_ext),
                 static_cast<int>(m),
                 static_cast<int>(stored),
                 base_flux_.data(),
                 attenuation_.data(),
                 penalty_.data(),
                 types_.data(),
                 ext_.data(),
                 window_.data(),
                 static_cast<int>(window_.size()),
                 mean_of_ratios,
                 score_parallax,
                 static_cast<float>(plx_lower),
                 static_cast<float>(plx_upper)};
        inputs_ = static_cast<int>(types.shape(1));
    }
    Candidates(const Candidates&) = delete;
    Candidates& operator=(const Candidates&) = delete;

    const CandidateView& view() const { return view_; }
    int parameters() const { return inputs_ + 2; }

  private:
    static constexpr py::ssize_t WIDEST_LANE = 16;

    CandidateView view_{};
    int inputs_ = 0;
    std::vector<double> types_, ext_;
    std::vector<float> base_flux_, attenuation_, penalty_;
    std::vector<int32_t> window_;
};

// What is learned of a model's own error: covariances of groups of stellar types.
class ModelError {
  public:
    // centre: (g, inputs); scale: (inputs,); covariance: (g, m, m).
    ModelError(const Array<double>& centre, const Array<double>& scale, const Array<double>& covariance,
               double archive_factor) {
        if (centre.ndim() != 2 || covariance.ndim() != 3)
            throw std::invalid_argument("centre must be (g, inputs), covariance (g, m, m)");
        const auto groups = centre.shape(0), m = covariance.shape(1);
        if (groups > MAX_GROUPS)
            throw std::invalid_argument("a noise has at most " + std::to_string(MAX_GROUPS) + " groups");
        inputs_ = static_cast<int>(centre.shape(1));
        samples_ = static_cast<int>(m);
        require_shape(scale, "scale", {inputs_});
        require_shape(covariance, "covariance", {groups, m, m});
        centre_.assign(centre.data(), centre.data() + centre.size());
        for (int t = 0; t < inputs_; ++t) inverse_scale_.push_back(1 / scale.at(t));
        for (py::ssize_t i = 0; i < m; ++i)
            for (py::ssize_t first = 0; first <= i; first += ERROR_COLUMNS)
                for (py::ssize_t g = 0; g < groups; ++g)
                    for (py::ssize_t j = first; j < first + ERROR_COLUMNS; ++j)
                        covariance_.push_back(j <= i ? covariance.at(g, i, j) : 0);
        view_.n_groups = static_cast<int>(groups);
        view_.centre = centre_.data();
        view_.inverse_scale = inverse_scale_.data();
        view_.covariance = covariance_.data();
        view_.factor = archive_factor;
    }
    ModelError(const ModelError&) = delete;
    ModelError& operator=(const ModelError&) = delete;

    // Without the terms that are taken out of stored covariances.
    const NoiseView& view() const { return view_; }
    int inputs() const { return inputs_; }
    int samples() const { return samples_; }

  private:
    NoiseView view_{};
    int inputs_, samples_;
    std::vector<double> centre_, inverse_scale_, covariance_;
};

}  // namespace xpkern
