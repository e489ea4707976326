// Packs: the stars of one SIMD register group. What they are made of, operators, comparisons and masks; pack.hpp has
// what else core/lane.hpp asks for.
//
// Pack<float, N> and Pack<double, N> hold the same N stars, so that one kernel can mix precisions; a double pack is
// then two registers. Written on the compilers' vector extension.
#pragma once

#include "../core/lane.hpp"

XPKERN_NAMESPACE_BEGIN

#if defined(__AVX512F__)
constexpr int REGISTER_BYTES = 64;
#elif defined(__AVX2__)
constexpr int REGISTER_BYTES = 32;
#else
constexpr int REGISTER_BYTES = 16;
#endif

// Floats in a register: the number of stars that the float kernels handle at once.
constexpr int FLOAT_WIDTH = REGISTER_BYTES / 4;
constexpr int DOUBLE_WIDTH = REGISTER_BYTES / 8;

// Registers side by side. GCC 12 copies an array of two by halves of a register, for which the next load of a whole one
// has to wait: BY_ONE copies them one by one. Fits, whose doubles are pairs of registers, are slower for that.
template <class Element, int COUNT, bool BY_ONE>
struct RegistersOf {
    typedef Element Register __attribute__((vector_size(REGISTER_BYTES)));
    typedef Register Type[COUNT];
};
template <class Element, int COUNT>
struct RegistersOf<Element, COUNT, true> {
    typedef Element Register __attribute__((vector_size(REGISTER_BYTES)));
    struct Type {
        Register at[COUNT];
        Type() = default;
        XPKERN_INLINE Type(const Type& b) { *this = b; }
        XPKERN_INLINE Type& operator=(const Type& b) {
            XPKERN_UNROLL
            for (int k = 0; k < COUNT; ++k) at[k] = b.at[k];
            return *this;
        }
        XPKERN_INLINE Register& operator[](int k) { return at[k]; }
        XPKERN_INLINE const Register& operator[](int k) const { return at[k]; }
    };
};
constexpr bool is_pair_of_floats(int bytes, int registers) {
    return bytes == 4 && registers == 2;
}

template <class Element, int N>
struct Pack {
    static constexpr int per_register = REGISTER_BYTES / static_cast<int>(sizeof(Element));
    static constexpr int registers = N / per_register;
    static_assert(registers * per_register == N, "a pack fills whole registers");
    typedef Element Register __attribute__((vector_size(REGISTER_BYTES)));
    typename RegistersOf<Element, registers, is_pair_of_floats(sizeof(Element), registers)>::Type v;

    Pack() = default;
    explicit XPKERN_INLINE Pack(Element all) {
        XPKERN_UNROLL
        for (int k = 0; k < registers; ++k) v[k] = all - Register{};
    }
    XPKERN_INLINE Pack& operator+=(const Pack& b) { return *this = *this + b; }
    XPKERN_INLINE Pack& operator-=(const Pack& b) { return *this = *this - b; }
    XPKERN_INLINE Pack& operator*=(const Pack& b) { return *this = *this * b; }
    XPKERN_INLINE Pack operator-() const {
        Pack result;
        XPKERN_UNROLL
        for (int k = 0; k < registers; ++k) result.v[k] = -v[k];
        return result;
    }
};

#define XPKERN_PACK_OPERATOR(op)                                                                       \
    template <class Element, int N>                                                                    \
    XPKERN_INLINE Pack<Element, N> operator op(const Pack<Element, N>& a, const Pack<Element, N>& b) { \
        Pack<Element, N> result;                                                                       \
        XPKERN_UNROLL                                                                                  \
        for (int k = 0; k < result.registers; ++k) result.v[k] = a.v[k] op b.v[k];                     \
        return result;                                                                                 \
    }
XPKERN_PACK_OPERATOR(+)
XPKERN_PACK_OPERATOR(-)
XPKERN_PACK_OPERATOR(*)
XPKERN_PACK_OPERATOR(/)
XPKERN_PACK_OPERATOR(&)
XPKERN_PACK_OPERATOR(|)
#undef XPKERN_PACK_OPERATOR

template <class Element, int N>
XPKERN_INLINE Pack<Element, N> operator<<(const Pack<Element, N>& a, int count) {
    Pack<Element, N> result;
    XPKERN_UNROLL
    for (int k = 0; k < result.registers; ++k) result.v[k] = a.v[k] << count;
    return result;
}
template <class Element, int N>
XPKERN_INLINE Pack<Element, N> operator>>(const Pack<Element, N>& a, int count) {
    Pack<Element, N> result;
    XPKERN_UNROLL
    for (int k = 0; k < result.registers; ++k) result.v[k] = a.v[k] >> count;
    return result;
}

// A mask holds all ones or zero in integers as wide as what was compared.
template <int bytes>
struct SignedInteger;
template <>
struct SignedInteger<4> {
    using Type = int32_t;
    using Unsigned = uint32_t;
};
template <>
struct SignedInteger<8> {
    using Type = int64_t;
    using Unsigned = uint64_t;
};

template <class Element, int N>
struct LaneTraits<Pack<Element, N>> {
    using Scalar = Element;
    using Mask = Pack<typename SignedInteger<sizeof(Element)>::Type, N>;
    using Bits = Pack<typename SignedInteger<sizeof(Element)>::Unsigned, N>;
    static constexpr int width = N;
    static constexpr int registers = Pack<Element, N>::registers;
};

template <class Element, int N>
struct Together<Pack<Element, N>> {
    static constexpr int registers = ACCUMULATORS >= 16 ? 4 : 1;  // with sixteen of them constants would be spilled
    static constexpr int size = Pack<Element, N>::registers < registers ? registers / Pack<Element, N>::registers : 1;
    using Group = Pack<Element, size * N>;
};

template <class Element, int N>
struct OneRegister<Pack<Element, N>> {
    using Type = Pack<Element, Pack<Element, N>::per_register>;
};

template <class Element, int N, int COUNT>
struct Several<Pack<Element, N>, COUNT> {
    using Group = Pack<Element, COUNT * N>;
    static constexpr int size = COUNT;
    static XPKERN_INLINE Group repeat(const Pack<Element, N>& a) {
        Group group;
        XPKERN_UNROLL
        for (int k = 0; k < group.registers; ++k) group.v[k] = a.v[k % a.registers];
        return group;
    }
};

#define XPKERN_PACK_COMPARISON(op)                                                                           \
    template <class Element, int N>                                                                          \
    XPKERN_INLINE Mask<Pack<Element, N>> operator op(const Pack<Element, N>& a, const Pack<Element, N>& b) { \
        Mask<Pack<Element, N>> result;                                                                       \
        XPKERN_UNROLL                                                                                        \
        for (int k = 0; k < result.registers; ++k)                                                           \
            result.v[k] = (typename Mask<Pack<Element, N>>::Register)(a.v[k] op b.v[k]);                     \
        return result;                                                                                       \
    }
XPKERN_PACK_COMPARISON(<)
XPKERN_PACK_COMPARISON(>)
XPKERN_PACK_COMPARISON(<=)
XPKERN_PACK_COMPARISON(>=)
XPKERN_PACK_COMPARISON(==)
#undef XPKERN_PACK_COMPARISON

template <class Integer, int N>
XPKERN_INLINE Pack<Integer, N> operator!(const Pack<Integer, N>& mask) {
    Pack<Integer, N> result;
    XPKERN_UNROLL
    for (int k = 0; k < result.registers; ++k) result.v[k] = ~mask.v[k];
    return result;
}

template <class Element, int N>
XPKERN_INLINE Pack<Element, N> select(const Mask<Pack<Element, N>>& mask, const Pack<Element, N>& a,
                                      const Pack<Element, N>& b) {
    Pack<Element, N> result;
    XPKERN_UNROLL
    for (int k = 0; k < result.registers; ++k) result.v[k] = mask.v[k] ? a.v[k] : b.v[k];
    return result;
}

template <class Element, int N>
XPKERN_INLINE Element get(const Pack<Element, N>& a, int star) {
    return a.v[star / a.per_register][star % a.per_register];
}

// Stars for which a mask holds.
template <class Integer, int N>
XPKERN_INLINE int count(const Pack<Integer, N>& mask) {
    Integer minus_stars = 0;
    for (int star = 0; star < N; ++star) minus_stars += get(mask, star);
    return static_cast<int>(-minus_stars);
}
template <class Integer, int N>
XPKERN_INLINE bool any(const Pack<Integer, N>& mask) {
    return count(mask) > 0;
}
template <class Integer, int N>
XPKERN_INLINE bool all(const Pack<Integer, N>& mask) {
    return count(mask) == N;
}

XPKERN_NAMESPACE_END
