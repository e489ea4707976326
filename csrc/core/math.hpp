// exp, log and tanh of any lane, without branches.
//
// Accuracy over the whole range, measured against long double by tests/cpp: exp and log within 2 ulp, tanh within 3
// ulp, in float and in double. exp flushes to 0 where 2^n / 2 would be subnormal (below 2.4e-38 and 4.5e-308). The
// polynomials are plain Taylor series, whose coefficients need no explanation: on these short intervals a minimax fit
// would save one term.
#pragma once

#include "lane.hpp"

XPKERN_NAMESPACE_BEGIN

// 1 / sqrt(x); on a GPU, whose roots and quotients are some twenty instructions each, within 2 ulp in float.
template <class Lane>
XPKERN_INLINE Lane inverse_root(const Lane& x) {
    return Division<Lane>::inverse_root(x);
}

template <class Element>
struct FloatFormat;

template <>
struct FloatFormat<float> {
    static constexpr int mantissa_bits = 23;
    static constexpr uint32_t mantissa_mask = 0x007fffffu;
    static constexpr uint32_t one_bits = 0x3f800000u;
    static constexpr float exponent_bias = 127.0f;
    static constexpr float round_shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    static constexpr float smallest_log = -86.64f, largest_log = 88.72283f;
    static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // high has 10 bits: n * high is exact
    static constexpr int exp_terms = 7, log_terms = 5;
    static constexpr float tanh_clamp = 9.1f;  // tanh rounds to 1 beyond
};

template <>
struct FloatFormat<double> {
    static constexpr int mantissa_bits = 52;
    static constexpr uint64_t mantissa_mask = 0x000fffffffffffffull;
    static constexpr uint64_t one_bits = 0x3ff0000000000000ull;
    static constexpr double exponent_bias = 1023.0;
    static constexpr double round_shift = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double smallest_log = -707.70, largest_log = 709.782712893383;
    static constexpr double ln2_high = 6.93145751953125e-1, ln2_low = 1.42860682030941723212e-6;
    static constexpr int exp_terms = 13, log_terms = 11;
    static constexpr double tanh_clamp = 19.1;
};

template <int n>
struct InverseFactorial {
    static constexpr double value = InverseFactorial<n - 1>::value / n;
};
template <>
struct InverseFactorial<0> {
    static constexpr double value = 1.0;
};

// sum of r^(n - first) / n! over n = first ... last
template <class Lane, int first, int last>
XPKERN_INLINE Lane exponential_series(const Lane& r) {
    const Lane term(static_cast<Scalar<Lane>>(InverseFactorial<first>::value));
    if constexpr (first == last)
        return term;
    else
        return fma(exponential_series<Lane, first + 1, last>(r), r, term);
}

// sum of square^(k - first) / (2 k + 1) over k = first ... last, the series of atanh
template <class Lane, int first, int last>
XPKERN_INLINE Lane hyperbolic_series(const Lane& square) {
    const Lane term(static_cast<Scalar<Lane>>(1.0 / (2 * first + 1)));
    if constexpr (first == last)
        return term;
    else
        return fma(hyperbolic_series<Lane, first + 1, last>(square), square, term);
}

// x = n ln 2 + r with |r| <= ln 2 / 2: p = e^r - 1 and power = 2^(n - lowered), so that e^x = 2^lowered power (1 + p).
template <int lowered, class Lane>
XPKERN_INLINE void reduce_exponential(const Lane& x, Lane& p, Lane& power) {
    using Element = Scalar<Lane>;
    using Format = FloatFormat<Element>;
    using Bits = typename LaneTraits<Lane>::Bits;
    const Lane shifted = fma(x, Lane(Element(1.4426950408889634074)), Lane(Format::round_shift));
    const Lane n = shifted - Lane(Format::round_shift);
    Lane r = fma(n, Lane(-Format::ln2_high), x);
    r = fma(n, Lane(-Format::ln2_low), r);
    p = fma(r * r, exponential_series<Lane, 2, Format::exp_terms>(r), r);
    // The low bits of the shifted number hold n; moved up to the exponent they make 2^n.
    constexpr auto origin = Format::one_bits - (decltype(Format::one_bits)(lowered) << Format::mantissa_bits);
    power = from_bits((to_bits(shifted) << Format::mantissa_bits) + Bits(origin));
}

template <class Lane>
XPKERN_INLINE Lane exp(const Lane& x) {
    using Element = Scalar<Lane>;
    using Format = FloatFormat<Element>;
    Lane p, half_power;
    reduce_exponential<1>(clamp(x, Lane(Format::smallest_log), Lane(Format::largest_log)), p, half_power);
    Lane result = fma(half_power, p, half_power) * Lane(Element(2));  // 2^128 itself is no float
    result = select(x < Lane(Format::smallest_log), Lane(Element(0)), result);
    return select(x > Lane(Format::largest_log), infinity<Lane>(), result);
}

// tanh x = m / (m + 2), m = e^(2x) - 1 = 2^n p + (2^n - 1): accurate for small x too, because p is.
template <class Lane>
XPKERN_INLINE Lane tanh(const Lane& x) {
    using Element = Scalar<Lane>;
    using Format = FloatFormat<Element>;
    const Lane clamped = clamp(x, Lane(-Format::tanh_clamp), Lane(Format::tanh_clamp));
    Lane p, power;
    reduce_exponential<0>(clamped + clamped, p, power);
    const Lane m = fma(power, p, power - Lane(Element(1)));
    return divide(m, m + Lane(Element(2)));
}

// values[i] = function(values[i]), i < count.
template <class Lane, class Function>
XPKERN_INLINE void apply_to_all(Lane* values, int count, const Function& function) {
    using Group = typename Together<Lane>::Group;
    constexpr int size = Together<Lane>::size;
    Scalar<Lane>* scalars = reinterpret_cast<Scalar<Lane>*>(values);
    int i = 0;
    for (; i + size <= count; i += size) {
        Scalar<Lane>* group = scalars + i * LaneTraits<Lane>::width;
        store(group, function(load<Group>(group)));
    }
    for (; i < count; ++i) values[i] = function(values[i]);
}
struct Exponential {
    template <class Lane>
    XPKERN_INLINE Lane operator()(const Lane& x) const {
        return exp(x);
    }
};
struct HyperbolicTangent {
    template <class Lane>
    XPKERN_INLINE Lane operator()(const Lane& x) const {
        return tanh(x);
    }
};
template <class Lane>
XPKERN_INLINE void exp_of_all(Lane* values, int count) {
    apply_to_all(values, count, Exponential());
}
template <class Lane>
XPKERN_INLINE void tanh_of_all(Lane* values, int count) {
    apply_to_all(values, count, HyperbolicTangent());
}

// ln x = n ln 2 + 2 atanh((m - 1) / (m + 1)), x = 2^n m with m in [sqrt(1/2), sqrt 2). For finite x > 0.
template <class Lane>
XPKERN_INLINE Lane log(const Lane& x) {
    using Element = Scalar<Lane>;
    using Format = FloatFormat<Element>;
    using Bits = typename LaneTraits<Lane>::Bits;
    const Bits bits = to_bits(x);
    Lane mantissa = from_bits((bits & Bits(Format::mantissa_mask)) | Bits(Format::one_bits));
    // The biased exponent becomes a number by planting it in the mantissa of the rounding constant.
    Lane n = from_bits((bits >> Format::mantissa_bits) + to_bits(Lane(Format::round_shift))) -
             Lane(Format::round_shift + Format::exponent_bias);
    const Mask<Lane> upper = mantissa > Lane(Element(1.41421356237309504880));
    mantissa = select(upper, mantissa * Lane(Element(0.5)), mantissa);
    n = select(upper, n + Lane(Element(1)), n);
    const Lane s = quotient(mantissa - Lane(Element(1)), mantissa + Lane(Element(1)));
    const Lane square = s * s;
    const Lane series = hyperbolic_series<Lane, 1, Format::log_terms>(square);
    const Lane twice = s + s;
    const Lane fraction = fma(twice * square, series, twice);
    return fma(n, Lane(Format::ln2_high), fma(n, Lane(Format::ln2_low), fraction));
}

XPKERN_NAMESPACE_END
