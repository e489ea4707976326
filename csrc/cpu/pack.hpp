// Packs with the operations of core/lane.hpp: those of pack_type.hpp, and here fused multiply-adds, roots, quotients,
// extremes, bits, memory and changes of precision, with intrinsics where the compilers' vector extension has no word.
#pragma once

#include "pack_type.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

XPKERN_NAMESPACE_BEGIN

// fma() and fnma() on registers. Of a negated factor that is used more than once the compilers make no instruction of
// its own.
#if defined(__AVX512F__)
#define XPKERN_FUSED_REGISTER(x86, neon, precision, bits, plain) _mm512_##x86##_##precision(a.v[k], b.v[k], c.v[k])
#elif defined(__FMA__)
#define XPKERN_FUSED_REGISTER(x86, neon, precision, bits, plain) _mm256_##x86##_##precision(a.v[k], b.v[k], c.v[k])
#elif defined(__aarch64__)
#define XPKERN_FUSED_REGISTER(x86, neon, precision, bits, plain) neon##_f##bits(c.v[k], a.v[k], b.v[k])
#else
#define XPKERN_FUSED_REGISTER(x86, neon, precision, bits, plain) plain
#endif
#define XPKERN_PACK_FUSED(name, x86, neon, plain)                                             \
    template <class Element, int N>                                                           \
    XPKERN_INLINE Pack<Element, N> name(const Pack<Element, N>& a, const Pack<Element, N>& b, \
                                        const Pack<Element, N>& c) {                          \
        Pack<Element, N> result;                                                              \
        XPKERN_UNROLL                                                                         \
        for (int k = 0; k < result.registers; ++k) {                                          \
            if constexpr (sizeof(Element) == 4)                                               \
                result.v[k] = XPKERN_FUSED_REGISTER(x86, neon, ps, 32, plain);                \
            else                                                                              \
                result.v[k] = XPKERN_FUSED_REGISTER(x86, neon, pd, 64, plain);                \
        }                                                                                     \
        return result;                                                                        \
    }
XPKERN_PACK_FUSED(fma, fmadd, vfmaq, a.v[k] * b.v[k] + c.v[k])
XPKERN_PACK_FUSED(fnma, fnmadd, vfmsq, c.v[k] - a.v[k] * b.v[k])
#undef XPKERN_PACK_FUSED
#undef XPKERN_FUSED_REGISTER

template <class Element, int N>
XPKERN_INLINE Pack<Element, N> sqrt(const Pack<Element, N>& a) {
    Pack<Element, N> result;
    XPKERN_UNROLL
    for (int k = 0; k < result.registers; ++k) {
#if defined(__AVX512F__)  // the unmasked form warns of an uninitialised operand that it does not read
        if constexpr (sizeof(Element) == 4)
            result.v[k] = _mm512_maskz_sqrt_ps(0xffff, a.v[k]);
        else
            result.v[k] = _mm512_maskz_sqrt_pd(0xff, a.v[k]);
#elif defined(__AVX2__)
        if constexpr (sizeof(Element) == 4)
            result.v[k] = _mm256_sqrt_ps(a.v[k]);
        else
            result.v[k] = _mm256_sqrt_pd(a.v[k]);
#else
        for (int i = 0; i < a.per_register; ++i) result.v[k][i] = sqrt(a.v[k][i]);
#endif
    }
    return result;
}

// The processor's own minimum and maximum follow the rule of core/lane.hpp for NaN.
#if defined(__AVX512F__)
XPKERN_INLINE __m512 min_register(const __m512& a, const __m512& b) {
    return _mm512_maskz_min_ps(0xffff, a, b);
}
XPKERN_INLINE __m512d min_register(const __m512d& a, const __m512d& b) {
    return _mm512_maskz_min_pd(0xff, a, b);
}
XPKERN_INLINE __m512 max_register(const __m512& a, const __m512& b) {
    return _mm512_maskz_max_ps(0xffff, a, b);
}
XPKERN_INLINE __m512d max_register(const __m512d& a, const __m512d& b) {
    return _mm512_maskz_max_pd(0xff, a, b);
}
#elif defined(__AVX2__)
XPKERN_INLINE __m256 min_register(const __m256& a, const __m256& b) {
    return _mm256_min_ps(a, b);
}
XPKERN_INLINE __m256d min_register(const __m256d& a, const __m256d& b) {
    return _mm256_min_pd(a, b);
}
XPKERN_INLINE __m256 max_register(const __m256& a, const __m256& b) {
    return _mm256_max_ps(a, b);
}
XPKERN_INLINE __m256d max_register(const __m256d& a, const __m256d& b) {
    return _mm256_max_pd(a, b);
}
#endif

template <class Element, int N>
XPKERN_INLINE Pack<Element, N> min(const Pack<Element, N>& a, const Pack<Element, N>& b) {
#if defined(__AVX2__)
    Pack<Element, N> result;
    XPKERN_UNROLL
    for (int k = 0; k < result.registers; ++k) result.v[k] = min_register(a.v[k], b.v[k]);
    return result;
#else
    return select(a < b, a, b);
#endif
}
template <class Element, int N>
XPKERN_INLINE Pack<Element, N> max(const Pack<Element, N>& a, const Pack<Element, N>& b) {
#if defined(__AVX2__)
    Pack<Element, N> result;
    XPKERN_UNROLL
    for (int k = 0; k < result.registers; ++k) result.v[k] = max_register(a.v[k], b.v[k]);
    return result;
#else
    return select(a > b, a, b);
#endif
}
template <class Element, int N>
XPKERN_INLINE Pack<Element, N> abs(const Pack<Element, N>& a) {
    return max(a, -a);
}

template <class To, class From>
XPKERN_INLINE To reinterpret(const From& from) {
    To to;
    static_assert(sizeof(To) == sizeof(From), "bits are reinterpreted between packs of one size");
    XPKERN_UNROLL
    for (int k = 0; k < to.registers; ++k) to.v[k] = (typename To::Register)from.v[k];
    return to;
}
template <int N>
XPKERN_INLINE Pack<uint32_t, N> to_bits(const Pack<float, N>& a) {
    return reinterpret<Pack<uint32_t, N>>(a);
}
template <int N>
XPKERN_INLINE Pack<uint64_t, N> to_bits(const Pack<double, N>& a) {
    return reinterpret<Pack<uint64_t, N>>(a);
}
template <int N>
XPKERN_INLINE Pack<float, N> from_bits(const Pack<uint32_t, N>& a) {
    return reinterpret<Pack<float, N>>(a);
}
template <int N>
XPKERN_INLINE Pack<double, N> from_bits(const Pack<uint64_t, N>& a) {
    return reinterpret<Pack<double, N>>(a);
}

template <class Element, int N>
struct Memory<Pack<Element, N>> {
    static XPKERN_INLINE Pack<Element, N> load(const Element* from) {
        Pack<Element, N> result;
        XPKERN_UNROLL
        for (int k = 0; k < result.registers; ++k)
            __builtin_memcpy(&result.v[k], from + k * result.per_register, sizeof(result.v[k]));
        return result;
    }
    static XPKERN_INLINE void store(Element* to, const Pack<Element, N>& a) {
        XPKERN_UNROLL
        for (int k = 0; k < a.registers; ++k) __builtin_memcpy(to + k * a.per_register, &a.v[k], sizeof(a.v[k]));
    }
};

#if defined(__AVX512F__)
XPKERN_INLINE __m512 rough_inverse(const __m512& x) {
    return _mm512_maskz_rcp14_ps(0xffff, x);
}
XPKERN_INLINE __m512d rough_inverse(const __m512d& x) {
    return _mm512_maskz_rcp14_pd(0xff, x);
}
XPKERN_INLINE __m512 rough_inverse_root(const __m512& x) {
    return _mm512_maskz_rsqrt14_ps(0xffff, x);
}
XPKERN_INLINE __m512d rough_inverse_root(const __m512d& x) {
    return _mm512_maskz_rsqrt14_pd(0xff, x);
}

// A quotient of a register takes the divider 16 cycles in float and 24 in double, a root 20 and more, and nothing else
// is divided meanwhile. Multiply-adds make of an approximation with 14 bits what rounding would, but for one in 10^7.
template <class Element, int N>
struct Division<Pack<Element, N>> {
    using Lane = Pack<Element, N>;
    static constexpr int STEPS = sizeof(Element) == 4 ? 1 : 2;  // each doubles the number of bits

    static XPKERN_INLINE Lane quotient(const Lane& a, const Lane& b) {
        const Lane one(Element(1)), minus_b = -b;
        Lane inverse;
        XPKERN_UNROLL
        for (int k = 0; k < Lane::registers; ++k) inverse.v[k] = rough_inverse(b.v[k]);
        XPKERN_UNROLL
        for (int step = 0; step < STEPS; ++step) inverse = fma(fma(minus_b, inverse, one), inverse, inverse);
        const Lane nearly = a * inverse;
        return fma(fma(minus_b, nearly, a), inverse, nearly);
    }

    static XPKERN_INLINE Lane inverse_root(const Lane& x) {
        const Lane one(Element(1)), half(Element(0.5));
        Lane inverse;
        XPKERN_UNROLL
        for (int k = 0; k < Lane::registers; ++k) inverse.v[k] = rough_inverse_root(x.v[k]);
        XPKERN_UNROLL
        for (int step = 0; step < STEPS; ++step)
            inverse = fma(fma(-(x * inverse), inverse, one), half * inverse, inverse);
        Lane root = x * inverse;
        root = fma(fma(-root, root, x), half * inverse, root);
        return fma(fma(-root, inverse, one), inverse, inverse);
    }
};
#endif

#if defined(__GNUC__) && !defined(__clang__) && defined(__AVX2__)
template <class Element, int N>
struct Holder<Pack<Element, N>> {
    static XPKERN_INLINE Pack<Element, N> hold(const Pack<Element, N>& a) {
        Pack<Element, N> result;
        XPKERN_UNROLL
        for (int k = 0; k < a.registers; ++k) {
            result.v[k] = a.v[k];
            asm("" : "+v"(result.v[k]));
        }
        return result;
    }
};
#endif

// Precision: the registers of a double pack narrow to one float register and back.
template <int N>
struct Converter<Pack<float, N>, Pack<float, N>> {
    static XPKERN_INLINE Pack<float, N> apply(const Pack<float, N>& from) { return from; }
};
template <int N>
struct Converter<Pack<double, N>, Pack<double, N>> {
    static XPKERN_INLINE Pack<double, N> apply(const Pack<double, N>& from) { return from; }
};

// A register of the wider type becomes half a register of the narrower one. Where the compilers' own words for it go
// through memory or take a register piece by piece, the instruction is named.
template <class Wide, class Narrow>
struct PrecisionChange {
    typedef Wide WideRegister __attribute__((vector_size(REGISTER_BYTES)));
    typedef Narrow NarrowRegister __attribute__((vector_size(REGISTER_BYTES)));
    typedef Narrow Half __attribute__((vector_size(REGISTER_BYTES / 2)));
    static constexpr bool real = SameType<Narrow, float>::value;

    static XPKERN_INLINE NarrowRegister narrow_pair(const WideRegister& lower, const WideRegister& upper) {
#if defined(__AVX512F__)
        if constexpr (real) {
            const __m256 halves[2] = {_mm512_maskz_cvtpd_ps(0xff, lower), _mm512_maskz_cvtpd_ps(0xff, upper)};
            return _mm512_insertf32x8(_mm512_castps256_ps512(halves[0]), halves[1], 1);
        } else {
            const __m256i halves[2] = {_mm512_maskz_cvtepi64_epi32(0xff, (__m512i)lower),
                                       _mm512_maskz_cvtepi64_epi32(0xff, (__m512i)upper)};
            return (NarrowRegister)_mm512_inserti32x8(_mm512_castsi256_si512(halves[0]), halves[1], 1);
        }
#else
#if defined(__AVX2__)
        if constexpr (real) return _mm256_set_m128(_mm256_cvtpd_ps(upper), _mm256_cvtpd_ps(lower));
#elif defined(__aarch64__)
        if constexpr (real) return vcombine_f32(vcvt_f32_f64(lower), vcvt_f32_f64(upper));
#endif
        const Half halves[2] = {__builtin_convertvector(lower, Half), __builtin_convertvector(upper, Half)};
        NarrowRegister result;
        __builtin_memcpy(&result, halves, sizeof(result));
        return result;
#endif
    }

    static XPKERN_INLINE WideRegister widen_half(const Half& half) {
#if defined(__AVX512F__)
        if constexpr (real)
            return _mm512_maskz_cvtps_pd(0xff, half);
        else
            return (WideRegister)_mm512_maskz_cvtepi32_epi64(0xff, (__m256i)half);
#elif defined(__AVX2__)
        if constexpr (real)
            return _mm256_cvtps_pd(half);
        else
            return (WideRegister)_mm256_cvtepi32_epi64((__m128i)half);
#else
        return __builtin_convertvector(half, WideRegister);
#endif
    }

    template <int N>
    static XPKERN_INLINE Pack<Narrow, N> narrow(const Pack<Wide, N>& from) {
        Pack<Narrow, N> result;
        XPKERN_UNROLL
        for (int k = 0; k < result.registers; ++k) result.v[k] = narrow_pair(from.v[2 * k], from.v[2 * k + 1]);
        return result;
    }
    template <int N>
    static XPKERN_INLINE Pack<Wide, N> widen(const Pack<Narrow, N>& from) {
        Pack<Wide, N> result;
        XPKERN_UNROLL
        for (int k = 0; k < result.registers; ++k) {
            Half half;  // most often read from memory, half by half
            __builtin_memcpy(&half, reinterpret_cast<const char*>(&from) + k * sizeof(half), sizeof(half));
            result.v[k] = widen_half(half);
        }
        return result;
    }
};
template <int N>
struct Converter<Pack<float, N>, Pack<double, N>> {
    static XPKERN_INLINE Pack<float, N> apply(const Pack<double, N>& from) {
        return PrecisionChange<double, float>::narrow(from);
    }
};
template <int N>
struct Converter<Pack<double, N>, Pack<float, N>> {
    static XPKERN_INLINE Pack<double, N> apply(const Pack<float, N>& from) {
        return PrecisionChange<double, float>::widen(from);
    }
};
template <int N>
struct MaskConverter<Pack<float, N>, Pack<int64_t, N>> {
    static XPKERN_INLINE Pack<int32_t, N> apply(const Pack<int64_t, N>& mask) {
        return PrecisionChange<int64_t, int32_t>::narrow(mask);
    }
};
template <int N>
struct MaskConverter<Pack<double, N>, Pack<int32_t, N>> {
    static XPKERN_INLINE Pack<int64_t, N> apply(const Pack<int32_t, N>& mask) {
        return PrecisionChange<int64_t, int32_t>::widen(mask);
    }
};

XPKERN_NAMESPACE_END
