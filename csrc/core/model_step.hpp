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
    const int64_t size = GradientLayout<Lane>(model).size;
    for (int64_t chunk = 0; chunk < n_chunks; ++chunk)
        for (int64_t i = 0; i < size; ++i) total[i] += double(chunks[chunk * size + i]);
}

// gradient, (ParameterLayout::size,), of the mean of chi^2 over n_stars plus the penalty, from the sums over these
// stars.
template <class Lane>
XPKERN_KERNEL void gradient_of_mean(const ModelView& model, const double* parameters, const double* total,
                                    int64_t n_stars, double* gradient) {
    const GradientLayout<Lane> from(model);
    const ParameterLayout to(model);
    const double scale = 2.0 / double(n_stars < 1 ? 1 : n_stars), decay = 2.0 / double(to.n_weights);
    for (int l = 0; l < model.n_layers; ++l) {
        const int n_in = model.width[l], n_out = model.width[l + 1], stride = whole_lanes<Lane>(n_in);
        const double *weights = parameters + to.weights[l], *sum = total + from.weights[l];
        double* slope = gradient + to.weights[l];
        for (int i = 0; i < n_in; ++i)
            for (int j = 0; j < n_out; ++j)
                slope[i * n_out + j] = fma(sum[j * stride + i], scale, decay * weights[i * n_out + j]);
        for (int j = 0; j < n_out; ++j) gradient[to.biases[l] + j] = total[from.biases[l] + j] * scale;
    }
    for (int64_t i = to.curve; i < to.size; ++i)
        gradient[i] = -parameters[i] * total[from.curve + i - to.curve] * scale;
}

// What an optimiser remembers, (ParameterLayout::size,) each: the velocity or Adam's mean, and his mean of squares.
struct Moments {
    double *first, *second;
};

// Parameters and moments one step on, in arrays of their own; false where the model would not be finite, nor R
// positive. The gradient is scaled down to a norm of `clip`. count: steps taken, this one included.
XPKERN_INLINE bool step_model(const ModelView& model, const ModelStepView& how, double rate, int64_t count,
                              const double* gradient, const double* parameters, const Moments& moments, double* moved,
                              const Moments& remembered) {
    const ParameterLayout layout(model);
    const double norm = sqrt(sum_of_squares(gradient, layout.size));
    if (!(norm < infinity<double>())) return false;
    const double shrink = min(how.clip / max(norm, 1e-15), 1.0);
    if (how.adam) {
        const double forgotten1 = 1 - exp(double(count) * log(ADAM_BETA1));
        const double forgotten2 = 1 - exp(double(count) * log(ADAM_BETA2));
        const double scale = -rate * sqrt(forgotten2) / forgotten1;
        for (int64_t i = 0; i < layout.size; ++i) {
            const double slope = gradient[i] * shrink;
            remembered.first[i] = fma(moments.first[i], ADAM_BETA1, slope * (1 - ADAM_BETA1));
            remembered.second[i] = fma(moments.second[i], ADAM_BETA2, slope * slope * (1 - ADAM_BETA2));
            moved[i] = scale * remembered.first[i] / (sqrt(remembered.second[i]) + ADAM_EPSILON);
        }
    } else {
        for (int64_t i = 0; i < layout.size; ++i) {
            moved[i] = remembered.first[i] = fma(moments.first[i], how.momentum, -rate * (gradient[i] * shrink));
            remembered.second[i] = moments.second[i];
        }
    }
    for (int64_t i = 0; i < layout.curve; ++i) moved[i] += parameters[i];
    for (int64_t i = layout.curve; i < layout.size; ++i) moved[i] = parameters[i] * exp(moved[i]);
    bool usable = true;
    for (int64_t i = 0; i < layout.size; ++i) usable = usable & (abs(moved[i]) < infinity<double>());
    for (int64_t i = layout.curve; i < layout.size; ++i) usable = usable & (moved[i] > 0);
    return usable;
}

XPKERN_NAMESPACE_END
