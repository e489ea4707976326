// Scalar lanes: one star at a time. The same operations on packs of stars are in cpu/pack.hpp; everything else in the
// core is written once, in terms of these names, for either.
#pragma once

#include "platform.hpp"

XPKERN_NAMESPACE_BEGIN

// Accumulators that a block of a matrix product keeps in registers, leaving room for its operands.
#if defined(__CUDACC__)
constexpr int ACCUMULATORS = 40;
#elif defined(__AVX512F__) || defined(__aarch64__)
constexpr int ACCUMULATORS = 24;
#else
constexpr int ACCUMULATORS = 12;
#endif

template <class A, class B>
struct SameType {
    static constexpr bool value = false;
};
template <class A>
struct SameType<A, A> {
    static constexpr bool value = true;
};

// A number that the compiler knows.
template <int N>
struct Known {
    static constexpr int value = N;
};

// work(Known<n>{}) for n of 1 ... LARGEST: small sums stay in registers only where the loops over them can be unrolled.
template <int LARGEST, class Work>
XPKERN_INLINE void with_known(int n, const Work& work) {
    if constexpr (LARGEST > 1) {
        if (n < LARGEST) {
            with_known<LARGEST - 1>(n, work);
            return;
        }
    }
    work(Known<LARGEST>{});
}

// LaneTraits<Lane>: Scalar (element type), Mask (result of a comparison), Bits (integers as wide as the scalar), width
// (stars in a lane), registers (that it fills).
template <class Lane>
struct LaneTraits;

template <>
struct LaneTraits<float> {
    using Scalar = float;
    using Mask = bool;
    using Bits = uint32_t;
    static constexpr int width = 1;
    static constexpr int registers = 1;
};

template <>
struct LaneTraits<double> {
    using Scalar = double;
    using Mask = bool;
    using Bits = uint64_t;
    static constexpr int width = 1;
    static constexpr int registers = 1;
};

// Neighbours in memory whose exp or tanh are taken together, as one wider lane: each is a chain of operations that wait
// for one another, and the processor looks only so far ahead for the next.
template <class Lane>
struct Together {
    using Group = Lane;
    static constexpr int size = 1;
};

// COUNT neighbours in memory as one wider lane, and a lane repeated that often, where a lane is a register; else one.
template <class Lane, int COUNT>
struct Several {
    using Group = Lane;
    static constexpr int size = 1;
    static XPKERN_INLINE Group repeat(const Lane& a) { return a; }
};

// A lane that fills one register.
template <class Lane>
struct OneRegister {
    using Type = Lane;
};

template <class Lane>
using Scalar = typename LaneTraits<Lane>::Scalar;
template <class Lane>
using Mask = typename LaneTraits<Lane>::Mask;

#if defined(__CUDACC__)
XPKERN_INLINE float fma(float a, float b, float c) {
    return ::fmaf(a, b, c);
}
XPKERN_INLINE double fma(double a, double b, double c) {
    return ::fma(a, b, c);
}
XPKERN_INLINE float sqrt(float a) {
    return ::sqrtf(a);
}
XPKERN_INLINE double sqrt(double a) {
    return ::sqrt(a);
}
XPKERN_INLINE float abs(float a) {
    return ::fabsf(a);
}
XPKERN_INLINE double abs(double a) {
    return ::fabs(a);
}
#else
#if XPKERN_FUSED
XPKERN_INLINE float fma(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}
XPKERN_INLINE double fma(double a, double b, double c) {
    return __builtin_fma(a, b, c);
}
#else
XPKERN_INLINE float fma(float a, float b, float c) {
    return a * b + c;
}
XPKERN_INLINE double fma(double a, double b, double c) {
    return a * b + c;
}
#endif
XPKERN_INLINE float sqrt(float a) {
    return __builtin_sqrtf(a);
}
XPKERN_INLINE double sqrt(double a) {
    return __builtin_sqrt(a);
}
XPKERN_INLINE float abs(float a) {
    return __builtin_fabsf(a);
}
XPKERN_INLINE double abs(double a) {
    return __builtin_fabs(a);
}
#endif

// c - a b, rounded once where fma() is.
template <class Lane>
XPKERN_INLINE Lane fnma(const Lane& a, const Lane& b, const Lane& c) {
    return fma(-a, b, c);
}

// As the SIMD instructions: the second operand where either is NaN. clamp() therefore keeps a NaN.
XPKERN_INLINE float min(float a, float b) {
    return a < b ? a : b;
}
XPKERN_INLINE double min(double a, double b) {
    return a < b ? a : b;
}
XPKERN_INLINE float max(float a, float b) {
    return a > b ? a : b;
}
XPKERN_INLINE double max(double a, double b) {
    return a > b ? a : b;
}

XPKERN_INLINE float select(bool mask, float a, float b) {
    return mask ? a : b;
}
XPKERN_INLINE double select(bool mask, double a, double b) {
    return mask ? a : b;
}
XPKERN_INLINE bool any(bool mask) {
    return mask;
}
XPKERN_INLINE bool all(bool mask) {
    return mask;
}
// Stars for which a mask holds.
XPKERN_INLINE int count(bool mask) {
    return mask ? 1 : 0;
}

// A number in every star of a lane.
template <class Lane>
XPKERN_INLINE Lane lane(double value) {
    return Lane(static_cast<Scalar<Lane>>(value));
}

template <class Lane>
XPKERN_INLINE Lane clamp(const Lane& a, const Lane& lower, const Lane& upper) {
    return max(lower, min(upper, a));
}

// The value of one star of a lane, for code that leaves the lanes.
XPKERN_INLINE float get(float a, int) {
    return a;
}
XPKERN_INLINE double get(double a, int) {
    return a;
}
XPKERN_INLINE bool get(bool a, int) {
    return a;
}

#if defined(__CUDA_ARCH__)
XPKERN_INLINE uint32_t to_bits(float a) {
    return __float_as_uint(a);
}
XPKERN_INLINE uint64_t to_bits(double a) {
    return static_cast<uint64_t>(__double_as_longlong(a));
}
XPKERN_INLINE float from_bits(uint32_t a) {
    return __uint_as_float(a);
}
XPKERN_INLINE double from_bits(uint64_t a) {
    return __longlong_as_double(static_cast<long long>(a));
}
#else
template <class To, class From>
XPKERN_INLINE To copy_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "bits are copied between types of one size");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
XPKERN_INLINE uint32_t to_bits(float a) {
    return copy_bits<uint32_t>(a);
}
XPKERN_INLINE uint64_t to_bits(double a) {
    return copy_bits<uint64_t>(a);
}
XPKERN_INLINE float from_bits(uint32_t a) {
    return copy_bits<float>(a);
}
XPKERN_INLINE double from_bits(uint64_t a) {
    return copy_bits<double>(a);
}
#endif

template <class Lane>
XPKERN_INLINE Lane infinity() {
    return lane<Lane>(from_bits(uint64_t(0x7ff0000000000000)));
}

XPKERN_INLINE double not_a_number() {
    return from_bits(uint64_t(0x7ff8000000000000));
}

// Memory holds the stars of a lane next to each other; any alignment will do.
template <class Lane>
struct Memory {
    static XPKERN_INLINE Lane load(const Lane* from) { return *from; }
    static XPKERN_INLINE void store(Lane* to, const Lane& a) { *to = a; }
};
template <class Lane>
XPKERN_INLINE Lane load(const Scalar<Lane>* from) {
    return Memory<Lane>::load(from);
}
template <class Lane>
XPKERN_INLINE void store(Scalar<Lane>* to, const Lane& a) {
    Memory<Lane>::store(to, a);
}

// A lane of which star s gets value(s).
template <class Lane, class Value>
XPKERN_INLINE Lane lane_of(const Value& value) {
    constexpr int width = LaneTraits<Lane>::width;
    alignas(width * sizeof(Scalar<Lane>)) Scalar<Lane> values[width];
    for (int s = 0; s < width; ++s) values[s] = static_cast<Scalar<Lane>>(value(s));
    return load<Lane>(values);
}

// What needs the stars of a lane apart.
//
// to_rows(): lanes (count,) to rows of memory, one a star: rows[star * stride + k] = lanes[k] of that star, and 0 for
// the k from count on. stride: count, rounded up to whole lanes.
// sum_stars(): sums[k] = sum over the stars of lanes[k], in halves: of the second half of the stars added to the first,
// then of these.
template <class Lane>
struct Transposition {
    static XPKERN_INLINE void to_rows(const Lane* lanes, int count, int, Scalar<Lane>* rows) {
        for (int k = 0; k < count; ++k) rows[k] = lanes[k];
    }
    static XPKERN_INLINE void sum_stars(const Lane* lanes, int count, Scalar<Lane>* sums) {
        for (int k = 0; k < count; ++k) sums[k] = lanes[k];
    }
};

// What a kernel does in every step of a product, and between its blocks, besides computing: nothing. A CPU may ask for
// the memory of the stars that come next.
struct Nothing {
    XPKERN_INLINE void operator()() const {}
    XPKERN_INLINE void between_blocks() const {}
};

// Quotients and 1 / sqrt(x), where the divisor, its reciprocal and x are normal numbers: what is beyond may become NaN.
// They may be found by multiply-adds instead of a unit that takes ten times as long.
template <class Lane>
struct Division {
    static XPKERN_INLINE Lane quotient(const Lane& a, const Lane& b) { return a / b; }
    static XPKERN_INLINE Lane inverse_root(const Lane& x) { return lane<Lane>(1) / sqrt(x); }
};
#if defined(__CUDA_ARCH__)
// The reciprocal by the unit, in double 20 bits of it, the others by multiply-adds.
template <>
struct Division<float> {
    static XPKERN_INLINE float quotient(float a, float b) {
        float inverse;
        asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
        const float near = a * inverse;
        return ::fmaf(inverse, ::fmaf(-b, near, a), near);
    }
    static XPKERN_INLINE float inverse_root(float x) { return ::rsqrtf(x); }
};
template <>
struct Division<double> {
    static XPKERN_INLINE double quotient(double a, double b) {
        double inverse;
        asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(inverse) : "d"(b));
        XPKERN_UNROLL
        for (int round = 0; round < 2; ++round) inverse = ::fma(inverse, ::fma(-b, inverse, 1.0), inverse);
        const double near = a * inverse;
        return ::fma(inverse, ::fma(-b, near, a), near);
    }
    static XPKERN_INLINE double inverse_root(double x) { return ::rsqrt(x); }
};
#endif
template <class Lane>
XPKERN_INLINE Lane quotient(const Lane& a, const Lane& b) {
    return Division<Lane>::quotient(a, b);
}

// a / b, likewise; on a CPU, though, by the unit.
template <class Lane>
XPKERN_INLINE Lane divide(const Lane& a, const Lane& b) {
#if defined(__CUDA_ARCH__)
    return quotient(a, b);
#else
    return a / b;
#endif
}

// A value loaded once and used several times: GCC would load it again for every use.
template <class Lane>
struct Holder {
    static XPKERN_INLINE Lane hold(const Lane& a) { return a; }
};
template <class Lane>
XPKERN_INLINE Lane held(const Lane& a) {
    return Holder<Lane>::hold(a);
}

// convert<To>(from): change of precision, star by star; convert_mask<To>(mask) fits a mask to lanes of another
// precision.
template <class To, class From>
struct Converter {
    static XPKERN_INLINE To apply(const From& from) { return static_cast<To>(from); }
};
#if defined(__CUDA_ARCH__)
// One instruction; a cast is three, as it flushes what is subnormal.
template <>
struct Converter<float, double> {
    static XPKERN_INLINE float apply(double from) {
        float to;
        asm("cvt.rn.f32.f64 %0, %1;" : "=f"(to) : "d"(from));
        return to;
    }
};
template <>
struct Converter<double, float> {
    static XPKERN_INLINE double apply(float from) {
        double to;
        asm("cvt.f64.f32 %0, %1;" : "=d"(to) : "f"(from));
        return to;
    }
};
#endif
template <class To, class From>
XPKERN_INLINE To convert(const From& from) {
    return Converter<To, From>::apply(from);
}
template <class To, class FromMask>
struct MaskConverter {
    static XPKERN_INLINE Mask<To> apply(const FromMask& mask) { return mask; }
};
template <class To, class FromMask>
XPKERN_INLINE Mask<To> convert_mask(const FromMask& mask) {
    return MaskConverter<To, FromMask>::apply(mask);
}

XPKERN_NAMESPACE_END
