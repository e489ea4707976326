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
template <class Lane, class Wide>
XPKERN_KERNEL void add_chunks(const ModelView& model, const Scalar<Lane>* chunks, int64_t n_chunks, double* total) {
    constexpr int width = LaneTraits<Lane>::width;
    const int64_t size = GradientLayout<Lane>(model).size;
    int64_t i = 0;
    for (; i + width <= size; i += width) {
        Wide sum = load<Wide>(total + i);
        for (int64_t chunk = 0; chunk < n_chunks; ++chunk) sum += convert<Wide>(load<Lane>(chunks + chunk * size + i));
        store(total + i, sum);
    }
    for (; i < size; ++i)
        for (int64_t chunk = 0; chunk < n_chunks; ++chunk) total[i] += double(chunks[chunk * size + i]);
}

// Slopes of the mean of chi^2 over n_stars plus the penalty, from sums over these stars.
struct MeanSlope {
    double scale, decay;
    MeanSlope() = default;
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

// A step of the optimiser, a parameter at a time. count: steps taken, this one included.
struct ModelMove {
    double shrink, scale, momentum;
    ModelMove() = default;
    // The gradient is scaled down to a norm of `clip`.
    XPKERN_INLINE ModelMove(const ModelStepView& how, double rate, int64_t count, double norm)
        : ModelMove(how, rate, count) {
        shrink = min(how.clip / max(norm, 1e-15), 1.0);
    }
    // The gradient is as it is.
    XPKERN_INLINE ModelMove(const ModelStepView& how, double rate, int64_t count)
        : shrink(1.0), scale(-rate), momentum(how.momentum) {
        if (!how.adam) return;
        const double forgotten1 = 1 - exp(double(count) * log(double(ADAM_BETA1)));
        const double forgotten2 = 1 - exp(double(count) * log(double(ADAM_BETA2)));
        scale = -rate * sqrt(forgotten2) / forgotten1;
    }
    // How far a parameter goes; its moments afterwards are in `first` and `second`. Number: double, or several of them.
    template <bool ADAM, class Number>
    XPKERN_INLINE Number by(const Number& gradient, Number& first, Number& second) const {
        const Number slope = gradient * lane<Number>(shrink);
        if constexpr (ADAM) {
            first = fma(first, lane<Number>(ADAM_BETA1), slope * lane<Number>(1 - ADAM_BETA1));
            second = fma(second, lane<Number>(ADAM_BETA2), slope * slope * lane<Number>(1 - ADAM_BETA2));
            return lane<Number>(scale) * first / (sqrt(second) + lane<Number>(ADAM_EPSILON));
        }
        return first = fma(first, lane<Number>(momentum), lane<Number>(scale) * slope);
    }
};

// The parameter after it: R is multiplied.
template <class Number>
XPKERN_INLINE Number moved_parameter(const Number& parameter, const Number& by, bool is_curve) {
    return is_curve ? parameter * exp(by) : parameter + by;
}

template <class Number>
XPKERN_INLINE Mask<Number> is_usable(const Number& parameter, bool is_curve) {
    const Mask<Number> finite = abs(parameter) < infinity<Number>();
    return is_curve ? finite & (parameter > lane<Number>(0)) : finite;
}

// Where a step leads from and to, arrays (ParameterLayout::size,) of their own.
struct ModelStep {
    const double *gradient, *parameters;
    Moments moments;
    double* moved;
    Moments remembered;

    // Takes it for the parameters at i, as many as a Number holds; false where one would not be usable.
    template <bool ADAM, class Number>
    XPKERN_INLINE bool take(const ModelMove& move, int64_t i, bool is_curve) const {
        Number first = load<Number>(moments.first + i), second = load<Number>(moments.second + i);
        const Number by = move.by<ADAM>(load<Number>(gradient + i), first, second);
        const Number to = moved_parameter(load<Number>(parameters + i), by, is_curve);
        store(remembered.first + i, first);
        store(remembered.second + i, second);
        store(moved + i, to);
        return all(is_usable(to, is_curve));
    }

    // Takes it for those from begin to end, most of them together.
    template <bool ADAM, class Wide>
    XPKERN_INLINE bool take_all(const ModelMove& move, int64_t begin, int64_t end, bool is_curve) const {
        constexpr int width = LaneTraits<Wide>::width;
        bool usable = true;
        int64_t i = begin;
        for (; i + width <= end; i += width) usable = take<ADAM, Wide>(move, i, is_curve) & usable;
        for (; i < end; ++i) usable = take<ADAM, double>(move, i, is_curve) & usable;
        return usable;
    }
};

// Parameters and moments one step on; false where the model would not be finite, nor R positive.
template <class Wide>
XPKERN_INLINE bool step_model(const ModelView& model, const ModelStepView& how, double rate, int64_t count,
                              const ModelStep& step) {
    const ParameterLayout layout(model);
    const double norm = sqrt(sum_of_squares(step.gradient, layout.size));
    if (!(norm < infinity<double>())) return false;
    const ModelMove move(how, rate, count, norm);
    const auto take = [&](int64_t begin, int64_t end, bool is_curve) {
        return how.adam ? step.take_all<true, Wide>(move, begin, end, is_curve)
                        : step.take_all<false, Wide>(move, begin, end, is_curve);
    };
    const bool network_usable = take(0, layout.curve, false);
    return take(layout.curve, layout.size, true) & network_usable;
}

XPKERN_NAMESPACE_END
