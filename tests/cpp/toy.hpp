// Small random models, priors and stars for the tests, and the star loss written down as plainly as possible.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "check.hpp"
#include "core/start.hpp"

using xpkern::MAX_PARAMETERS;

// A network with random weights: fluxes of order one, smooth in all parameters.
struct ToyModel {
    std::vector<int> width;
    std::vector<std::vector<double>> weights, biases;
    std::vector<double> ext_curve, zero_point, scale;
    std::vector<std::vector<float>> narrow;
    xpkern::ModelView view{};

    ToyModel(std::vector<int> widths, Random& random) : width(std::move(widths)) {
        const int layers = static_cast<int>(width.size()) - 1;
        for (int l = 0; l < layers; ++l) {
            std::vector<double> weight(width[l] * width[l + 1]), bias(width[l + 1]);
            for (auto& w : weight) w = random.normal() / std::sqrt(width[l]);
            for (auto& b : bias) b = 0.3 * random.normal();
            weights.push_back(weight);
            biases.push_back(bias);
        }
        for (int i = 0; i < samples(); ++i) ext_curve.push_back(random.uniform(0.2, 3));
        for (int t = 0; t < inputs(); ++t) {
            zero_point.push_back(random.normal());
            scale.push_back(random.uniform(0.5, 2));
        }
        view.n_layers = layers;
        for (int l = 0; l <= layers; ++l) view.width[l] = width[l];
        for (int l = 0; l < layers; ++l) {
            view.in_double.weights[l] = weights[l].data();
            view.in_double.biases[l] = biases[l].data();
            view.in_float.weights[l] = as_float(weights[l]);
            view.in_float.biases[l] = as_float(biases[l]);
        }
        view.in_double.ext_curve = ext_curve.data();
        view.in_float.ext_curve = as_float(ext_curve);
        for (int t = 0; t < inputs(); ++t) {
            view.in_double.zero_point[t] = zero_point[t];
            view.in_double.inverse_scale[t] = 1 / scale[t];
            view.in_float.zero_point[t] = static_cast<float>(zero_point[t]);
            view.in_float.inverse_scale[t] = static_cast<float>(1 / scale[t]);
        }
    }
    ToyModel(const ToyModel&) = delete;

    int inputs() const { return width.front(); }
    int samples() const { return width.back(); }
    int parameters() const { return inputs() + 2; }

    // u = (Theta, E, ln plx)
    std::vector<double> flux(const std::vector<double>& u) const {
        std::vector<double> value;
        for (int t = 0; t < inputs(); ++t) value.push_back((u[t] - zero_point[t]) / scale[t]);
        for (size_t l = 0; l < weights.size(); ++l) {
            std::vector<double> next = biases[l];
            for (int i = 0; i < width[l]; ++i)
                for (int j = 0; j < width[l + 1]; ++j) next[j] += weights[l][i * width[l + 1] + j] * value[i];
            if (l + 1 < weights.size())
                for (auto& a : next) a = std::tanh(a);
            value = next;
        }
        for (int i = 0; i < samples(); ++i)
            value[i] = std::exp(value[i] - u[inputs()] * ext_curve[i] + 2 * u[inputs() + 1]);
        return value;
    }

  private:
    const float* as_float(const std::vector<double>& from) {
        narrow.emplace_back(from.begin(), from.end());
        return narrow.back().data();
    }
};

// A mixture of Gaussians with random means and lower roots of the precision.
struct ToyPrior {
    int components, dimensions;
    std::vector<double> log_weight, mean, root, precision;
    std::vector<float> narrow[4];
    xpkern::PriorView view{};

    ToyPrior(int n_components, int n_dimensions, Random& random) : components(n_components), dimensions(n_dimensions) {
        for (int k = 0; k < components; ++k) {
            double weight = -std::log(components) - 0.5 * dimensions * std::log(6.283185307179586);
            for (int i = 0; i < dimensions; ++i) {
                mean.push_back(random.normal());
                for (int j = 0; j <= i; ++j) root.push_back(i == j ? random.uniform(0.5, 1.5) : 0.3 * random.normal());
                weight += std::log(root.back());
            }
            log_weight.push_back(weight);
            const double* lower = root.data() + k * dimensions * (dimensions + 1) / 2;
            for (int i = 0; i < dimensions; ++i) {
                for (int j = 0; j <= i; ++j) {
                    double product = 0;
                    for (int l = 0; l <= j; ++l) product += lower[i * (i + 1) / 2 + l] * lower[j * (j + 1) / 2 + l];
                    precision.push_back(product);
                }
            }
        }
        narrow[0].assign(log_weight.begin(), log_weight.end());
        narrow[1].assign(mean.begin(), mean.end());
        narrow[2].assign(root.begin(), root.end());
        narrow[3].assign(precision.begin(), precision.end());
        view = {components,
                dimensions,
                {narrow[0].data(), narrow[1].data(), narrow[2].data(), narrow[3].data()},
                {log_weight.data(), mean.data(), root.data(), precision.data()}};
    }
    ToyPrior(const ToyPrior&) = delete;

    double ln_density(const std::vector<double>& theta) const {
        const int packed = dimensions * (dimensions + 1) / 2;
        double density = 0;
        for (int k = 0; k < components; ++k) {
            double square = 0;
            for (int j = 0; j < dimensions; ++j) {
                double projected = 0;
                for (int i = j; i < dimensions; ++i)
                    projected += root[k * packed + i * (i + 1) / 2 + j] * (theta[i] - mean[k * dimensions + i]);
                square += projected * projected;
            }
            density += std::exp(log_weight[k] - square / 2);
        }
        return std::log(density);
    }
};

// Observed stars: flux near the model's, a random factor of the covariance, a parallax.
struct ToyStars {
    int count, samples, parameters;
    std::vector<double> truth;  // (n, k) u
    std::vector<float> flux, whitener;
    std::vector<double> mean, sigma;

    ToyStars(int n, const ToyModel& model, Random& random, double noise = 0.02)
        : count(n), samples(model.samples()), parameters(model.parameters()) {
        for (int star = 0; star < n; ++star) {
            std::vector<double> u;
            for (int t = 0; t < model.inputs(); ++t) u.push_back(model.zero_point[t] + 0.5 * random.normal());
            u.push_back(random.uniform(0.1, 1));
            u.push_back(0.3 * random.normal());
            truth.insert(truth.end(), u.begin(), u.end());
            std::vector<double> f = model.flux(u), unit(samples);
            for (auto& x : unit) x = random.normal();
            // G is lower triangular; the noise is G times a unit normal vector.
            for (int i = 0; i < samples; ++i) {
                const double diagonal = noise * f[i] * random.uniform(0.7, 1.3);
                double error = diagonal * unit[i];
                for (int j = 0; j < i; ++j) {
                    const double element = 0.3 * noise * f[i] * random.normal() / std::sqrt(samples);
                    whitener.push_back(static_cast<float>(element));
                    error += element * unit[j];
                }
                whitener.push_back(static_cast<float>(1 / diagonal));
                flux.push_back(static_cast<float>(f[i] + error));
            }
            for (int p = 0; p < parameters; ++p) {
                const bool parallax = p == parameters - 1;
                mean.push_back(parallax ? std::exp(u[p]) : 0);
                sigma.push_back(parallax ? 0.1 : HUGE_VAL);
            }
        }
    }

    const float* row(int star) const { return whitener.data() + star * samples * (samples + 1) / 2; }

    // Gives a star a factor of blocks with a common error (core/block_factor.hpp).
    void relate_samples(int star, const xpkern::SampleBlocks& blocks, Random& random) {
        float* factor = whitener.data() + star * samples * (samples + 1) / 2;
        std::vector<double> along;
        for (int j = 0; j < blocks.alone; ++j) along.push_back(random.normal());
        for (int i = blocks.leading; i < samples; ++i) {
            const double common = i < blocks.linked ? factor[i * (i + 1) / 2] : 0;
            for (int j = 0; j < (i < blocks.linked ? blocks.alone : i); ++j)
                factor[i * (i + 1) / 2 + j] = common == 0 ? 0 : static_cast<float>(common * along[j]);
        }
    }

    // Takes a sample out, as the reader of a star without it would.
    void remove_sample(int star, int sample) {
        float* factor = whitener.data() + star * samples * (samples + 1) / 2;
        for (int j = 0; j <= sample; ++j) factor[sample * (sample + 1) / 2 + j] = 0;
        for (int i = sample + 1; i < samples; ++i) factor[i * (i + 1) / 2 + sample] = 0;
        flux[star * samples + sample] = 0;
    }

    double chi2(int star, const std::vector<double>& predicted) const {
        std::vector<double> y(samples);
        double sum = 0;
        for (int i = 0; i < samples; ++i) {
            const float* factor = row(star) + i * (i + 1) / 2;
            double b = predicted[i] - flux[star * samples + i];
            for (int j = 0; j < i; ++j) b -= factor[j] * y[j];
            y[i] = b * factor[i];
            sum += y[i] * y[i];
        }
        return sum;
    }
};

// Types around a network's zero point, in a basis of extinction, parallax and a few arbitrary spectra: a start need not
// be good here, only the same for everyone.
struct ToyGrid {
    std::vector<float> rows, basis, inverse, mean, typical;
    std::vector<int32_t> window;
    xpkern::GridView view;

    ToyGrid(int types, const ToyModel& model, Random& random)
        : basis(size_t(xpkern::START_COLUMNS * model.samples()), 0.0f),
          inverse(basis),
          mean(size_t(model.samples()), 0.0f),
          typical(size_t(model.samples()), 1.0f) {
        const int inputs = model.inputs(), m = model.samples(), c = xpkern::START_COLUMNS;
        const int size = xpkern::XPKERN_ISA::start_row_size(inputs);
        rows.resize(size_t(types * size), 0.0f);
        for (int i = 0; i < m; ++i) {
            basis[i * c] = static_cast<float>(-model.ext_curve[i]);
            basis[i * c + 1] = 2;
            for (int a = 2; a < c; ++a) basis[i * c + a] = static_cast<float>(0.1 * random.normal());
            window.push_back(i > 0 ? i - 1 : 0);
            window.push_back(i + 1 < m ? i + 2 : m);
        }
        for (int t = 0; t < types; ++t) {
            float* row = rows.data() + t * size;
            for (int a = 2; a < c; ++a) row[a] = static_cast<float>(random.normal());
            float* type = row + (1 + inputs) * c;
            float* precision = type + 2 * inputs;
            for (int i = 0; i < inputs; ++i) {
                type[i] = static_cast<float>(model.zero_point[i] + random.normal());
                precision[i * (i + 3) / 2] = 1;
            }
        }
        view = {types, rows.data(), basis.data(), inverse.data(), mean.data(), typical.data(), window.data(), {}, {}};
        for (int t = 0; t < inputs; ++t) {
            view.reach[t] = 0.5f;
            view.apart[t] = 0.3f;
        }
    }
};

// Eq. 19 as it stands.
inline double plain_loss(const ToyModel& model, const ToyPrior& prior, const xpkern::LossView& terms,
                         const ToyStars& stars, int star, const std::vector<double>& u) {
    const int k = model.parameters();
    double loss = stars.chi2(star, model.flux(u));
    for (int p = 0; p < k; ++p) {
        const double value = p == k - 1 ? std::exp(u[p]) : u[p];
        const double pull = (value - stars.mean[star * k + p]) / stars.sigma[star * k + p];
        loss += pull * pull;
    }
    if (terms.prior) loss -= 2 * prior.ln_density(u);
    if (terms.jacobian_ext) loss -= 2 * std::log(u[k - 2]);
    if (terms.jacobian_plx) loss -= 2 * u[k - 1];
    return loss;
}

// A buffer on the boundary of a cache line.
struct Buffer {
    std::vector<char> memory;
    explicit Buffer(int64_t bytes) : memory(bytes + 64) {}
    char* data() {
        const auto address = reinterpret_cast<uintptr_t>(memory.data());
        return memory.data() + (64 - address % 64) % 64;
    }
};
