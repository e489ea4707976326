// The extension module: checks arrays, picks the instruction set, deals blocks of stars out to threads.
//
// Arrays must have the dtype and layout that the kernels read: nothing is copied behind the caller's back.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "../core/status.hpp"
#include "calibration_plan.hpp"
#include "dispatch.hpp"
#include "handles.hpp"
#include "module.hpp"
#include "plan_arrays.hpp"
#include "scratch.hpp"
#include "thread_pool.hpp"

namespace xpkern {

// Stars dealt to a thread at a time: enough to make a rescue worth packing, few enough to balance the load.
constexpr int64_t TASK_ROWS = 512;

// The same for fits, as many as leave each thread several: searches that do not fill a lane wait for company until the
// task ends.
constexpr int64_t LARGEST_TASK_ROWS = 4096;
int64_t fit_task_rows(int64_t n, int threads) {
    const int64_t shared = threads > 1 ? n / (8 * threads) : n;
    return std::clamp((shared + TASK_ROWS - 1) / TASK_ROWS * TASK_ROWS, TASK_ROWS, LARGEST_TASK_ROWS);
}

// The same where a star takes milliseconds and none is rescued: whole lanes.
constexpr int64_t SLOW_TASK_ROWS = 32;

// Runs work(begin, end, scratch) over n stars; the GIL is released.
template <class Work>
void over_stars(int64_t n, int threads, int64_t scratch_bytes, const Work& work, int64_t task_rows = TASK_ROWS) {
    const py::gil_scoped_release release;
    const int64_t tasks = (n + task_rows - 1) / task_rows;
    const int workers = static_cast<int>(tasks < threads ? (tasks < 1 ? 1 : tasks) : (threads < 1 ? 1 : threads));
    std::vector<Scratch> scratch;
    for (int worker = 0; worker < workers; ++worker) scratch.emplace_back(scratch_bytes);
    ThreadPool::instance().run(tasks, workers, [&](int64_t task, int worker) {
        const int64_t begin = task * task_rows;
        work(begin, begin + task_rows < n ? begin + task_rows : n, scratch[static_cast<size_t>(worker)].data());
    });
}

py::tuple invert_information(const std::string& isa, const Array<double>& information, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const bool square = information.ndim() == 3;
    const py::ssize_t n = square ? information.shape(0) : 0, k = square ? information.shape(1) : 0;
    require_shape(information, "information", {n, k, k});
    if (k > MAX_PARAMETERS) throw std::invalid_argument("information has too many parameters");
    Array<double> covariance = make_array<double>({n, k, k}), inverse = make_array<double>({n, k, k});
    Array<bool> floored = make_array<bool>({n});
    const InformationArrays arrays{information.data(), covariance.mutable_data(), inverse.mutable_data(),
                                   floored.mutable_data()};
    over_stars(n, threads, 0,
               [&](int64_t begin, int64_t end, char*) { kernels.invert(arrays, static_cast<int>(k), begin, end); });
    return py::make_tuple(covariance, inverse, floored);
}

struct EvaluationResult {
    Array<double> loss, chi2, ln_prior, gradient, hessian, fisher;
    EvaluationResult(py::ssize_t n, py::ssize_t k)
        : loss(make_array<double>({n})),
          chi2(make_array<double>({n})),
          ln_prior(make_array<double>({n})),
          gradient(make_array<double>({n, k})),
          hessian(make_array<double>({n, k, k})),
          fisher(make_array<double>({n, k, k})) {}
    EvaluationArrays view() {
        return {loss.mutable_data(),     chi2.mutable_data(),    ln_prior.mutable_data(),
                gradient.mutable_data(), hessian.mutable_data(), fisher.mutable_data()};
    }
    py::dict dict() const {
        py::dict result;
        result["loss"] = loss;
        result["chi2"] = chi2;
        result["ln_prior"] = ln_prior;
        result["gradient"] = gradient;
        result["hessian"] = hessian;
        result["fisher"] = fisher;
        return result;
    }
};

void require_same_inputs(const Model& model, const Prior& prior) {
    if (prior.view().n_dimensions != model.inputs())
        throw std::invalid_argument("the prior and the model differ in their number of inputs");
}

Array<double> predict(const std::string& isa, const Model& model, const Array<double>& params, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const auto n = params.shape(0);
    require_shape(params, "params", {n, model.parameters()});
    Array<double> flux = make_array<double>({n, model.samples()});
    double* out = flux.mutable_data();
    const double* in = params.data();
    over_stars(n, threads, kernels.scratch_bytes(model.view(), PriorView{}, TASK_ROWS, 1, 0, {}),
               [&](int64_t begin, int64_t end, char* scratch) {
                   kernels.predict(model.view(), in, out, begin, end, scratch);
               });
    return flux;
}

py::dict evaluate(const std::string& isa, const Model& model, const Prior& prior, const Array<float>& flux,
                  const Array<float>& whitener, const Array<double>& mean, const Array<double>& sigma,
                  const Array<double>& params, const std::map<std::string, bool>& terms, int threads) {
    const Kernels& kernels = kernels_named(isa);
    require_same_inputs(model, prior);
    const auto n = flux.shape(0);
    const StarArrays stars = star_arrays(flux, whitener, mean, sigma, model.samples(), model.parameters());
    require_shape(params, "params", {n, model.parameters()});
    EvaluationResult result(n, model.parameters());
    const EvaluationArrays out = result.view();
    FitView fit{};
    fit.model = model.view();
    fit.prior = prior.view();
    fit.terms = loss_view(terms);
    fit.start_params = params.data();
    over_stars(
        n, threads, kernels.scratch_bytes(fit.model, fit.prior, TASK_ROWS, 1, 0, {}),
        [&](int64_t begin, int64_t end, char* scratch) { kernels.evaluate(fit, stars, out, begin, end, scratch); });
    return result.dict();
}

Array<double> start(const std::string& isa, const Grid& grid, const Array<float>& flux, const Array<float>& whitener,
                    const Array<double>& mean, const Array<double>& sigma, int starts, double gate, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const auto n = flux.shape(0);
    const int m = grid.samples(), k = grid.parameters();
    const StarArrays stars = star_arrays(flux, whitener, mean, sigma, m, k);
    if (starts < 1) throw std::invalid_argument("starts must be at least 1");
    Array<double> params = make_array<double>({n, starts, k});
    double* out = params.mutable_data();
    // A model of no hidden layers with these sizes needs the same memory for stars and more.
    ModelView sizes{};
    sizes.n_layers = 1;
    sizes.width[0] = k - 2;
    sizes.width[1] = m;
    over_stars(n, threads, kernels.scratch_bytes(sizes, PriorView{}, TASK_ROWS, starts, grid.view().n_types, {}),
               [&](int64_t begin, int64_t end, char* scratch) {
                   kernels.start(grid.view(), sizes, starts, gate, stars, out, begin, end, scratch);
               });
    return params;
}

// What a search in a box is made of, without its start.
FitView fit_view(const Model& model, const Prior& prior, const std::map<std::string, bool>& terms,
                 const Array<double>& lower, const Array<double>& upper) {
    require_same_inputs(model, prior);
    const int k = model.parameters();
    require_shape(lower, "lower", {k});
    require_shape(upper, "upper", {k});
    FitView fit{};
    fit.model = model.view();
    fit.prior = prior.view();
    fit.terms = loss_view(terms);
    for (int p = 0; p < k; ++p) {
        fit.lower[p] = lower.at(p);
        fit.upper[p] = upper.at(p);
    }
    return fit;
}

py::dict fit(const std::string& isa, const Model& model, const Prior& prior, const Array<float>& flux,
             const Array<float>& whitener, const Array<double>& mean, const Array<double>& sigma,
             const std::array<int, 3>& blocks, const Grid* grid, const std::optional<Array<double>>& start_params,
             const std::map<std::string, bool>& terms, const Array<double>& lower, const Array<double>& upper,
             int max_iterations, double tolerance, int starts, double gate, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const auto n = flux.shape(0);
    const int k = model.parameters(), m = model.samples();
    const StarArrays stars = star_arrays(flux, whitener, mean, sigma, m, k);
    FitView fit = fit_view(model, prior, terms, lower, upper);
    fit.max_iterations = max_iterations;
    fit.tolerance = tolerance;
    if (starts < 1) throw std::invalid_argument("starts must be at least 1");
    fit.starts = grid ? starts : 1;
    fit.gate = gate;
    if (grid) {
        if (grid->parameters() != k || grid->samples() != m)
            throw std::invalid_argument("the start grid was made for a model of other sizes");
        fit.grid = grid->view();
    } else if (start_params) {
        require_shape(*start_params, "start", {n, k});
        fit.start_params = start_params->data();
    } else {
        throw std::invalid_argument("a fit needs a grid or starting parameters");
    }
    EvaluationResult at(n, k);
    Array<double> params = make_array<double>({n, k}), decrement = make_array<double>({n});
    Array<float> residual = make_array<float>({n, m});
    Array<int32_t> iterations = make_array<int32_t>({n});
    Array<uint32_t> status = make_array<uint32_t>({n});
    Array<int32_t> minima = make_array<int32_t>({n});
    Array<double> second_params = make_array<double>({n, k}), second_gap = make_array<double>({n});
    const SolutionArrays out{at.view(),
                             params.mutable_data(),
                             decrement.mutable_data(),
                             residual.mutable_data(),
                             iterations.mutable_data(),
                             status.mutable_data(),
                             minima.mutable_data(),
                             second_params.mutable_data(),
                             second_gap.mutable_data()};
    const int types = grid ? grid->view().n_types : 0;
    const SampleBlocks related{blocks[0], blocks[1], blocks[2]};
    const int64_t task_rows = fit_task_rows(n, threads);
    over_stars(
        n, threads, kernels.scratch_bytes(fit.model, fit.prior, task_rows, fit.starts, types, related),
        [&](int64_t begin, int64_t end, char* scratch) { kernels.fit(fit, stars, related, out, begin, end, scratch); },
        task_rows);
    py::dict result = at.dict();
    result["params"] = params;
    result["decrement"] = decrement;
    result["residual"] = residual;
    result["iterations"] = iterations;
    result["status"] = status;
    result["minima"] = minima;
    result["second_params"] = second_params;
    result["second_gap"] = second_gap;
    return result;
}

Array<double> search(const std::string& isa, const Candidates& grid, const Array<float>& flux,
                     const Array<float>& whitener, const Array<double>& mean, const Array<double>& sigma, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const auto n = flux.shape(0);
    const int k = grid.parameters();
    const StarArrays stars = star_arrays(flux, whitener, mean, sigma, grid.view().n_samples, k);
    Array<double> params = make_array<double>({n, k});
    double* out = params.mutable_data();
    over_stars(
        n, threads, kernels.search_scratch_bytes(grid.view()),
        [&](int64_t begin, int64_t end, char* scratch) {
            kernels.search(grid.view(), k, stars, out, begin, end, scratch);
        },
        SLOW_TASK_ROWS);
    return params;
}

Array<double> descend(const std::string& isa, const Model& model, const Prior& prior, const Array<float>& flux,
                      const Array<float>& whitener, const Array<double>& mean, const Array<double>& sigma,
                      const Array<double>& start, const std::map<std::string, bool>& terms, const Array<double>& lower,
                      const Array<double>& upper, bool adam, int steps, double rate, double decay, int decay_every,
                      double clip, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const auto n = flux.shape(0);
    const int k = model.parameters();
    const StarArrays stars = star_arrays(flux, whitener, mean, sigma, model.samples(), k);
    require_shape(start, "start", {n, k});
    if (decay_every < 1) throw std::invalid_argument("decay_every must be at least 1");
    FitView fit = fit_view(model, prior, terms, lower, upper);
    fit.start_params = start.data();
    const DescentView how{adam, steps, rate, decay, decay_every, clip};
    Array<double> params = make_array<double>({n, k});
    double* out = params.mutable_data();
    over_stars(
        n, threads, kernels.descent_scratch_bytes(fit.model, fit.prior),
        [&](int64_t begin, int64_t end, char* scratch) { kernels.descend(fit, how, stars, out, begin, end, scratch); },
        SLOW_TASK_ROWS);
    return params;
}

// independent: (m,) and common: (COMMON_ERRORS, m) are what is taken out of the stored covariances.
py::tuple freeze_noise(const std::string& isa, const Model& model, const ModelError& error,
                       const Array<double>& independent, const Array<double>& common, const Array<float>& flux,
                       const Array<float>& whitener, const std::array<int, 3>& blocks, const Array<double>& params,
                       int threads) {
    const Kernels& kernels = kernels_named(isa);
    const auto n = flux.shape(0);
    const int m = model.samples();
    if (error.samples() != m || error.inputs() != model.inputs())
        throw std::invalid_argument("the model and its error differ in their number of samples or inputs");
    require_shape(flux, "flux", {n, m});
    require_shape(whitener, "whitener", {n, packed_length(m)});
    require_shape(params, "params", {n, model.parameters()});
    require_shape(independent, "independent", {m});
    require_shape(common, "common", {COMMON_ERRORS, m});
    NoiseView noise = error.view();
    noise.independent = independent.data();
    noise.common = common.data();
    Array<float> frozen = make_array<float>({n, packed_length(m)});
    Array<double> ln_det = make_array<double>({n});
    const FrozenArrays out{frozen.mutable_data(), ln_det.mutable_data()};
    const SampleBlocks related{blocks[0], blocks[1], blocks[2]};
    over_stars(n, threads, kernels.freeze_scratch_bytes(model.view(), noise.n_groups),
               [&](int64_t begin, int64_t end, char* scratch) {
                   kernels.freeze(model.view(), noise, flux.data(), whitener.data(), params.data(), related, out, begin,
                                  end, scratch);
               });
    return py::make_tuple(frozen, ln_det);
}

// One side of the spectra, checked.
SideRows side_rows(const char* name, const Array<double>& coefficients, const Array<float>& error,
                   const Array<float>& correlation, const Array<float>& standard_deviation, const Array<bool>& exists,
                   py::ssize_t n, py::ssize_t length) {
    const std::string prefix = name;
    require_shape(coefficients, name, {n, length});
    require_shape(error, (prefix + "_error").c_str(), {n, length});
    require_shape(correlation, (prefix + "_correlation").c_str(), {n, length * (length - 1) / 2});
    require_shape(standard_deviation, (prefix + "_standard_deviation").c_str(), {n});
    require_shape(exists, ("has_" + prefix).c_str(), {n});
    return {coefficients.data(), error.data(), correlation.data(), standard_deviation.data(), exists.data()};
}

py::tuple calibrate(const std::string& isa, const Array<double>& bp_design, const Array<double>& rp_design,
                    const Array<double>& bp, const Array<double>& rp, const Array<float>& bp_error,
                    const Array<float>& rp_error, const Array<float>& bp_correlation,
                    const Array<float>& rp_correlation, const Array<float>& bp_standard_deviation,
                    const Array<float>& rp_standard_deviation, const Array<bool>& has_bp, const Array<bool>& has_rp,
                    const Array<double>& band_flux, const Array<double>& band_error, const Array<double>& independent,
                    double common, double bp_fraction, double rp_fraction, double floor, bool unit_variance,
                    int threads) {
    const Kernels& kernels = kernels_named(isa);
    if (bp_design.ndim() != 2 || rp_design.ndim() != 2) throw std::invalid_argument("designs must be matrices");
    const auto n = bp.shape(0), xp_samples = bp_design.shape(0), m = independent.shape(0);
    const auto n_bp = bp_design.shape(1), n_rp = rp_design.shape(1);
    if (m < xp_samples) throw std::invalid_argument("independent must have an entry for every sample");
    require_shape(rp_design, "rp_design", {xp_samples, n_rp});
    require_shape(band_flux, "band_flux", {n, m - xp_samples});
    require_shape(band_error, "band_error", {n, m - xp_samples});
    CalibrationRows rows{};
    rows.bp = side_rows("bp", bp, bp_error, bp_correlation, bp_standard_deviation, has_bp, n, n_bp);
    rows.rp = side_rows("rp", rp, rp_error, rp_correlation, rp_standard_deviation, has_rp, n, n_rp);
    rows.band_flux = band_flux.data();
    rows.band_error = band_error.data();
    Array<float> flux = make_array<float>({n, m}), whitener = make_array<float>({n, packed_length(m)});
    Array<uint32_t> status = make_array<uint32_t>({n});
    rows.flux = flux.mutable_data();
    rows.whitener = whitener.mutable_data();
    rows.status = status.mutable_data();
    const NoiseTerms noise{independent.data(), common, bp_fraction, rp_fraction, floor, unit_variance};
    const CalibrationPlan plan(bp_design.data(), static_cast<int>(n_bp), rp_design.data(), static_cast<int>(n_rp),
                               static_cast<int>(m), static_cast<int>(xp_samples), noise);
    over_stars(
        n, threads, kernels.calibration_scratch_bytes(plan.view()),
        [&](int64_t begin, int64_t end, char* scratch) { kernels.calibrate(plan.view(), rows, begin, end, scratch); });
    return py::make_tuple(flux, whitener, status);
}

Array<double> prior_curvature(const std::string& isa, const Prior& prior, const Array<double>& theta, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const auto n = theta.shape(0);
    const py::ssize_t d = prior.view().n_dimensions;
    require_shape(theta, "theta", {n, d});
    Array<double> curvature = make_array<double>({n, d, d});
    const double* in = theta.data();
    double* out = curvature.mutable_data();
    over_stars(n, threads, kernels.prior_scratch_bytes(prior.view()), [&](int64_t begin, int64_t end, char* scratch) {
        kernels.curve_prior(prior.view(), in, out, begin, end, scratch);
    });
    return curvature;
}

Array<float> confidence(const std::string& isa, const Array<float>& features, const Array<float>& centre,
                        const Array<float>& inverse_scale, const Array<float>& fill,
                        const std::vector<Array<float>>& weights, const std::vector<Array<float>>& biases,
                        double largest, int threads) {
    const Kernels& kernels = kernels_named(isa);
    const int layers = static_cast<int>(weights.size());
    if (layers < 1 || layers > MAX_LAYERS || biases.size() != weights.size() || weights[0].ndim() != 3)
        throw std::invalid_argument("classifiers have 1 to " + std::to_string(MAX_LAYERS) +
                                    " layers, each with biases");
    ConfidenceView view{};
    view.n_layers = layers;
    view.largest = static_cast<float>(largest);
    const auto classifiers = weights[0].shape(0);
    view.n_classifiers = static_cast<int>(classifiers);
    auto width = weights[0].shape(1);
    view.width[0] = static_cast<int>(width);
    for (const auto& [array, name] : {std::pair(&centre, "centre"), {&inverse_scale, "inverse_scale"}, {&fill, "fill"}})
        require_shape(*array, name, {width});
    view.centre = centre.data();
    view.inverse_scale = inverse_scale.data();
    view.fill = fill.data();
    for (int l = 0; l < layers; ++l) {
        const auto outputs = l + 1 < layers ? biases[l].shape(biases[l].ndim() - 1) : 1;
        require_shape(weights[l], "weights", {classifiers, width, outputs});
        require_shape(biases[l], "biases", {classifiers, outputs});
        view.weights[l] = weights[l].data();
        view.biases[l] = biases[l].data();
        width = outputs;
        view.width[l + 1] = static_cast<int>(width);
    }
    const auto n = features.shape(0);
    require_shape(features, "features", {n, view.width[0]});
    Array<float> result = make_array<float>({n, classifiers});
    const float* in = features.data();
    float* out = result.mutable_data();
    over_stars(n, threads, kernels.confidence_scratch_bytes(view), [&](int64_t begin, int64_t end, char* scratch) {
        kernels.classify(view, in, out, begin, end, scratch);
    });
    return result;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Kernels* kernels : usable_kernels()) names.push_back(kernels->name);
    return names;
}

PYBIND11_MODULE(_cpu, module) {
    module.doc() = "Compiled kernels of the cpu engine; see xpkern/engine/cpu.py, which is their face.";
    py::class_<Model>(module, "Model")
        .def(py::init<const std::vector<Array<double>>&, const std::vector<Array<double>>&, const Array<double>&,
                      const Array<double>&, const Array<double>&>(),
             py::arg("weights"), py::arg("biases"), py::arg("ext_curve"), py::arg("input_zp"), py::arg("input_scale"));
    py::class_<Prior>(module, "Prior")
        .def(py::init<const Array<double>&, const Array<double>&, const Array<double>&>(), py::arg("log_weight"),
             py::arg("mean"), py::arg("root"));
    py::class_<Grid>(module, "Grid")
        .def(py::init<const Array<float>&, const Array<float>&, const Array<float>&, const Array<float>&,
                      const Array<int32_t>&, const Array<float>&, const Array<float>&>(),
             py::arg("rows"), py::arg("basis"), py::arg("inverse"), py::arg("mean"), py::arg("window"),
             py::arg("reach"), py::arg("apart"));
    module.def("predict", &predict, py::arg("isa"), py::arg("model"), py::arg("params").noconvert(),
               py::arg("threads"));
    module.def("evaluate", &evaluate, py::arg("isa"), py::arg("model"), py::arg("prior"), py::arg("flux").noconvert(),
               py::arg("whitener").noconvert(), py::arg("mean").noconvert(), py::arg("sigma").noconvert(),
               py::arg("params").noconvert(), py::arg("terms"), py::arg("threads"));
    module.def("start", &start, py::arg("isa"), py::arg("grid"), py::arg("flux").noconvert(),
               py::arg("whitener").noconvert(), py::arg("mean").noconvert(), py::arg("sigma").noconvert(),
               py::arg("starts"), py::arg("gate"), py::arg("threads"));
    module.def("fit", &fit, py::arg("isa"), py::arg("model"), py::arg("prior"), py::arg("flux").noconvert(),
               py::arg("whitener").noconvert(), py::arg("mean").noconvert(), py::arg("sigma").noconvert(),
               py::arg("blocks"), py::arg("grid").none(true), py::arg("start").noconvert().none(true), py::arg("terms"),
               py::arg("lower"), py::arg("upper"), py::arg("max_iterations"), py::arg("tolerance"), py::arg("starts"),
               py::arg("gate"), py::arg("threads"));
    py::class_<Candidates>(module, "Candidates")
        .def(py::init<const Array<double>&, const Array<double>&, const Array<double>&, const Array<double>&,
                      const Array<double>&, const Array<int32_t>&, bool, bool, double, double>(),
             py::arg("types"), py::arg("ext"), py::arg("base_flux"), py::arg("ext_curve"), py::arg("penalty"),
             py::arg("window"), py::arg("mean_of_ratios"), py::arg("score_parallax"), py::arg("plx_lower"),
             py::arg("plx_upper"));
    py::class_<ModelError>(module, "ModelError")
        .def(py::init<const Array<double>&, const Array<double>&, const Array<double>&, double>(), py::arg("centre"),
             py::arg("scale"), py::arg("covariance"), py::arg("archive_factor"));
    module.def("freeze_noise", &freeze_noise, py::arg("isa"), py::arg("model"), py::arg("error"),
               py::arg("independent").noconvert(), py::arg("common").noconvert(), py::arg("flux").noconvert(),
               py::arg("whitener").noconvert(), py::arg("blocks"), py::arg("params").noconvert(), py::arg("threads"));
    module.def("prior_curvature", &prior_curvature, py::arg("isa"), py::arg("prior"), py::arg("theta").noconvert(),
               py::arg("threads"));
    module.def("confidence", &confidence, py::arg("isa"), py::arg("features").noconvert(),
               py::arg("centre").noconvert(), py::arg("inverse_scale").noconvert(), py::arg("fill").noconvert(),
               py::arg("weights"), py::arg("biases"), py::arg("largest"), py::arg("threads"));
    module.def("search", &search, py::arg("isa"), py::arg("grid"), py::arg("flux").noconvert(),
               py::arg("whitener").noconvert(), py::arg("mean").noconvert(), py::arg("sigma").noconvert(),
               py::arg("threads"));
    module.def("descend", &descend, py::arg("isa"), py::arg("model"), py::arg("prior"), py::arg("flux").noconvert(),
               py::arg("whitener").noconvert(), py::arg("mean").noconvert(), py::arg("sigma").noconvert(),
               py::arg("start").noconvert(), py::arg("terms"), py::arg("lower"), py::arg("upper"), py::arg("adam"),
               py::arg("steps"), py::arg("rate"), py::arg("decay"), py::arg("decay_every"), py::arg("clip"),
               py::arg("threads"));
    bind_training(module);
    module.def("calibration_plan", &calibration_plan, py::arg("bp_design").noconvert(),
               py::arg("rp_design").noconvert());
    module.def("calibrate", &calibrate, py::arg("isa"), py::arg("bp_design").noconvert(),
               py::arg("rp_design").noconvert(), py::arg("bp").noconvert(), py::arg("rp").noconvert(),
               py::arg("bp_error").noconvert(), py::arg("rp_error").noconvert(), py::arg("bp_correlation").noconvert(),
               py::arg("rp_correlation").noconvert(), py::arg("bp_standard_deviation").noconvert(),
               py::arg("rp_standard_deviation").noconvert(), py::arg("has_bp").noconvert(),
               py::arg("has_rp").noconvert(), py::arg("band_flux").noconvert(), py::arg("band_error").noconvert(),
               py::arg("independent").noconvert(), py::arg("common"), py::arg("bp_fraction"), py::arg("rp_fraction"),
               py::arg("floor"), py::arg("unit_variance"), py::arg("threads"));
    module.def("invert_information", &invert_information, py::arg("isa"), py::arg("information").noconvert(),
               py::arg("threads"));
    module.def("instruction_sets", &instruction_sets, "Instruction sets that this machine can run, best first.");
    module.def(
        "multiply_add_peak",
        [](const std::string& isa, int64_t count) {
            const py::gil_scoped_release release;
            return kernels_named(isa).multiply_add(count);
        },
        py::arg("isa"), py::arg("count"),
        "Runs count float32 multiply-adds on registers of one core; the caller times it.");
    module.attr("CONSTANTS") = py::dict(
        py::arg("SMALLEST_EXT") = SMALLEST_EXT, py::arg("SAME_MINIMUM") = SAME_MINIMUM,
        py::arg("SAME_MINIMUM_EXT") = SAME_MINIMUM_EXT, py::arg("N_COLUMNS") = START_COLUMNS,
        py::arg("START_NEIGHBOUR_ERROR") = START_NEIGHBOUR_ERROR, py::arg("START_LEAST_FLUX") = START_LEAST_FLUX,
        py::arg("START_SPECTRUM_ERROR") = START_SPECTRUM_ERROR, py::arg("START_SMALLEST") = START_SMALLEST,
        py::arg("START_LARGEST_EXCESS") = START_LARGEST_EXCESS, py::arg("START_RIDGE") = START_RIDGE,
        py::arg("START_RELATIVE_RIDGE") = START_RELATIVE_RIDGE, py::arg("START_LEAST_EXT") = START_LEAST_EXT,
        py::arg("MAX_GROUPS") = MAX_GROUPS, py::arg("LEAST_WEIGHT") = LEAST_WEIGHT, py::arg("ADAM_BETA1") = ADAM_BETA1,
        py::arg("ADAM_BETA2") = ADAM_BETA2, py::arg("ADAM_EPSILON") = ADAM_EPSILON);
    module.attr("STATUS") = py::dict(py::arg("NO_DATA") = uint32_t(scalar::NO_DATA),
                                     py::arg("EIGENVALUE_FLOORED") = uint32_t(scalar::EIGENVALUE_FLOORED),
                                     py::arg("SINGULAR_COVARIANCE") = uint32_t(scalar::SINGULAR_COVARIANCE),
                                     py::arg("NOT_CONVERGED") = uint32_t(scalar::NOT_CONVERGED),
                                     py::arg("HESSIAN_NOT_POSITIVE") = uint32_t(scalar::HESSIAN_NOT_POSITIVE),
                                     py::arg("ON_BOX_EDGE") = uint32_t(scalar::ON_BOX_EDGE),
                                     py::arg("RESCUED") = uint32_t(scalar::RESCUED));
}

}  // namespace xpkern
