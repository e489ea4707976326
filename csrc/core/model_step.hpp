// One first-order step of the model, in double: chunks of gradients to the gradient of Eq. 12, then gradient descent
// with momentum or Adam.
//
// All of a model's parameters stand in one array: each layer's weights, (n_in, n_out) row-major, and biases in turn,
// then R. A step of ln R multiplies R: that rounds alike however many steps one run takes.
#pragma once

#include "model_gradient.hpp"

XPKERN_NAMESPACE_BEGIN

// Where each part of the model stands in the array of its parameters.
struct ParameterLayout {
    int64_t weights[MAX_LAYERS], biases[MAX_LAYERS], curve, size, n_weights;
    XPKERN_INLINE explicit ParameterLayout(const ModelView& model) {
        size = n_weights = 0;
        for (int l = 0; l < model.n_layers; ++l) {
            const int64_t count = int64_t(model.width[l]) * model.width[l + 1];
            weights[l] = size;
            biases[l] = size + count;
            size += count + model.width[l + 1];
            n_weights += count;
        }
        curve = size;
        size += model.width[model.n_layers];
    }
};

// Several sums side by side, so that none waits for the one before.
XPKERN_INLINE double sum_of_squares(const double* values, int64_t count) {
    constexpr int side_by_side = 16;
    double sum[side_by_side] = {};
    int64_t i = 0;
    for (; i + side_by_side <= count; i += side_by_side)
        for (int s = 0; s < side_by_side; ++s) sum[s] = fma(values[i + s], values[i + s], sum[s]);
    for (; i < count; ++i) sum[0] = fma(values[i], values[i], sum[0]);
    double total = 0;
    for (int s = 0; s < side_by_side; ++s) total += sum[s];
    return total;
}

// sum W^2 / n_W, the second term of Eq. 12.
XPKERN_INLINE double weight_penalty(const ModelView& model, const double* parameters) {
    const ParameterLayout layout(model);
    double sum = 0;
    for (int l = 0; l < model.n_layers; ++l)
        sum += sum_of_squares(parameters + layout.weights[l], layout.biases[l] - layout.weights[l]);
    return sum / double(layout.n_weights);
}

// total += the sums of some chunks, (n_chunks, GradientLayout::size), in their order. total: (GradientLayout::size,).
template <class Lane>
XPKERN_KERNEL void add_chunks(const ModelView& model, const Scalar<Lane>* chunks, int64_t n_chunks, double* total) {
    constexpr int64_t AT_ONCE = 1024;  // of the total, which stay in the nearest cache
    const int64_t size = GradientLayout<Lane>(model).size;
    for (int64_t first = 0; first < size; first += AT_ONCE) {
        const int64_t last = first + AT_ONCE < size ? first + AT_ONCE : size;
        for (int64_t chunk = 0; chunk < n_chunks; ++chunk)
            for (int64_t i = first; i < last; ++i) total[i] += double(chunks[chunk * size + i]);
    }
}

// Slopes of the mean of chi^2 over n_stars plus the penalty, from sums over these stars.
struct MeanSlope {
    double scale, decay;
    XPKERN_INLINE MeanSlope(int64_t n_stars, int64_t n_weights)
        : scale(2.0 / double(n_stars < 1 ? 1 : n_stars)), decay(2.0 / double(n_weights)) {}
    XPKERN_INLINE double of_weight(double sum, double weight) const { return fma(sum, scale, decay * weight); }
    XPKERN_INLINE double of_bias(double sum) const { return sum * scale; }
    XPKERN_INLINE double of_ln_curve(double sum, double curve) const { return -curve * sum * scale; }
};

// gradient, (ParameterLayout::size,), of that mean; total: (GradientLayout::size,).
template <class Lane>
XPKERN_KERNEL void gradient_of_mean(const ModelView& model, const double* parameters, const double* total,
                                    int64_t n_stars, double* gradient) {
    const GradientLayout<Lane> from(model);
    const ParameterLayout to(model);
    const MeanSlope slope(n_stars, to.n_weights);
    for (int l = 0; l < model.n_layers; ++l) {
        const int n_in = model.width[l], n_out = model.width[l + 1], stride = whole_lanes<Lane>(n_in);
        const double *weights = parameters + to.weights[l], *sum = total + from.weights[l];
        double* of_layer = gradient + to.weights[l];
        for (int i = 0; i < n_in; ++i)
            for (int j = 0; j < n_out; ++j)
                of_layer[i * n_out + j] = slope.of_weight(sum[j * stride + i], weights[i * n_out + j]);
        for (int j = 0; j < n_out; ++j) gradient[to.biases[l] + j] = slope.of_bias(total[from.biases[l] + j]);
    }
    for (int64_t i = to.curve; i < to.size; ++i)
        gradient[i] = slope.of_ln_curve(total[from.curve + i - to.curve], parameters[i]);
}

// What an optimiser remembers, (ParameterLayout::size,) each: the velocity or Adam's mean, and his mean of squares.
struct Moments {
    double *first, *second;
};

// A step of the optimiser, a parameter at a time. The gradient is scaled down to a norm of `clip`. count: steps taken,
// this one included.
struct ModelMove {
    double shrink, scale, momentum;
    XPKERN_INLINE ModelMove(const ModelStepView& how, double rate, int64_t count, double norm)
        : shrink(min(how.clip / max(norm, 1e-15), 1.0)), scale(-rate), momentum(how.momentum) {
        if (!how.adam) return;
        const double forgotten1 = 1 - exp(double(count) * log(double(ADAM_BETA1)));
        const double forgotten2 = 1 - exp(double(count) * log(double(ADAM_BETA2)));
        scale = -rate * sqrt(forgotten2) / forgotten1;
    }
    // How far a parameter goes; its moments afterwards are in `first` and `second`.
    template <bool ADAM>
    XPKERN_INLINE double by(double gradient, double& first, double& second) const {
        const double slope = gradient * shrink;
        if constexpr (ADAM) {
            first = fma(first, ADAM_BETA1, slope * (1 - ADAM_BETA1));
            second = fma(second, ADAM_BETA2, slope * slope * (1 - ADAM_BETA2));
            return scale * first / (sqrt(second) + ADAM_EPSILON);
        }
        return first = fma(first, momentum, scale * slope);
    }
};

// The parameter after it: R is multiplied.
XPKERN_INLINE double moved_parameter(double parameter, double by, bool is_curve) {
    return is_curve ? parameter * exp(by) : parameter + by;
}

XPKERN_INLINE bool is_usable(double parameter, bool is_curve) {
    return abs(parameter) < infinity<double>() && (!is_curve || parameter > 0);
}

// Parameters and moments one step on, in arrays of their own; false where the model would not be finite, nor R
// positive.
XPKERN_INLINE bool step_model(const ModelView& model, const ModelStepView& how, double rate, int64_t count,
                              const double* gradient, const double* parameters, const Moments& moments, double* moved,
                              const Moments& remembered) {
    const ParameterLayout layout(model);
    const double norm = sqrt(sum_of_squares(gradient, layout.size));
    if (!(norm < infinity<double>())) return false;
    const ModelMove move(how, rate, count, norm);
    for (int64_t i = 0; i < layout.size; ++i) {
        remembered.first[i] = moments.first[i];
        remembered.second[i] = moments.second[i];
    }
    if (how.adam) {
        for (int64_t i = 0; i < layout.size; ++i)
            moved[i] = move.by<true>(gradient[i], remembered.first[i], remembered.second[i]);
    } else {
        for (int64_t i = 0; i < layout.size; ++i)
            moved[i] = move.by<false>(gradient[i], remembered.first[i], remembered.second[i]);
    }
    bool usable = true;
    const auto take = [&](int64_t first, int64_t last, auto is_curve) {
        for (int64_t i = first; i < last; ++i) {
            moved[i] = moved_parameter(parameters[i], moved[i], decltype(is_curve)::value);
            usable = usable & is_usable(moved[i], decltype(is_curve)::value);
        }
    };
    take(0, layout.curve, Known<0>());
    take(layout.curve, layout.size, Known<1>());
    return usable;
}

XPKERN_NAMESPACE_END
