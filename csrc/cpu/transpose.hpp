// Rows of an array, one a star, into lanes and back: transposition in registers, with the change of precision.
#pragma once

#include "pack.hpp"

XPKERN_NAMESPACE_BEGIN

// Interleaving of the lower, or upper, halves of two vectors: log2(N) rounds of it transpose N x N elements.
template <int N>
struct Interleave;

#if defined(__clang__)
#define XPKERN_SHUFFLE(Mask, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define XPKERN_SHUFFLE(Mask, a, b, ...) __builtin_shuffle(a, b, Mask{__VA_ARGS__})
#endif
#define XPKERN_INTERLEAVE(N, LOWER, UPPER)                                    \
    template <>                                                               \
    struct Interleave<N> {                                                    \
        template <class Vector, class Mask>                                   \
        static XPKERN_INLINE Vector lower(const Vector& a, const Vector& b) { \
            return XPKERN_SHUFFLE(Mask, a, b, LOWER);                         \
        }                                                                     \
        template <class Vector, class Mask>                                   \
        static XPKERN_INLINE Vector upper(const Vector& a, const Vector& b) { \
            return XPKERN_SHUFFLE(Mask, a, b, UPPER);                         \
        }                                                                     \
    };
#define XPKERN_LIST(...) __VA_ARGS__
XPKERN_INTERLEAVE(2, XPKERN_LIST(0, 2), XPKERN_LIST(1, 3))
XPKERN_INTERLEAVE(4, XPKERN_LIST(0, 4, 1, 5), XPKERN_LIST(2, 6, 3, 7))
XPKERN_INTERLEAVE(8, XPKERN_LIST(0, 8, 1, 9, 2, 10, 3, 11), XPKERN_LIST(4, 12, 5, 13, 6, 14, 7, 15))
XPKERN_INTERLEAVE(16, XPKERN_LIST(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
                  XPKERN_LIST(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31))
#undef XPKERN_LIST
#undef XPKERN_INTERLEAVE
#undef XPKERN_SHUFFLE

template <class Element, int N>
struct Square {
    typedef Element Vector __attribute__((vector_size(N * sizeof(Element))));
    typedef typename SignedInteger<sizeof(Element)>::Type Index __attribute__((vector_size(N * sizeof(Element))));
    Vector row[N];

    XPKERN_INLINE void transpose() {
        XPKERN_UNROLL
        for (int round = 1; round < N; round *= 2) {
            Vector next[N];
            XPKERN_UNROLL
            for (int k = 0; k < N / 2; ++k) {
                next[2 * k] = Interleave<N>::template lower<Vector, Index>(row[k], row[k + N / 2]);
                next[2 * k + 1] = Interleave<N>::template upper<Vector, Index>(row[k], row[k + N / 2]);
            }
            XPKERN_UNROLL
            for (int k = 0; k < N; ++k) row[k] = next[k];
        }
    }

    // The transpose of what stands from element k of each of N rows on.
    XPKERN_INLINE void load_transposed(const Element* const* from, int64_t k) {
#if defined(__AVX512F__)
        if constexpr (N == 16) return load_quarters_transposed(from, k);
#endif
        XPKERN_UNROLL
        for (int star = 0; star < N; ++star) __builtin_memcpy(&row[star], from[star] + k, sizeof(row[star]));
        transpose();
    }

#if defined(__AVX512F__)
  private:
    // A register is four quarters, and only one unit moves elements between them. So loads bring them together, of
    // every fourth star in the order of a register, and each quarter is transposed by itself.
    XPKERN_INLINE void load_quarters_transposed(const float* const* from, int64_t at) {
        __m512 joined[4][4];
        XPKERN_UNROLL
        for (int star = 0; star < 4; ++star) {
            const float *first = from[star] + at, *second = from[star + 4] + at, *third = from[star + 8] + at,
                        *fourth = from[star + 12] + at;
            XPKERN_UNROLL
            for (int k = 0; k < 4; ++k) {
                __m512& quarters = joined[k][star];
                quarters = _mm512_castps128_ps512(_mm_loadu_ps(first + 4 * k));
                quarters = _mm512_insertf32x4(quarters, _mm_loadu_ps(second + 4 * k), 1);
                quarters = _mm512_insertf32x4(quarters, _mm_loadu_ps(third + 4 * k), 2);
                quarters = _mm512_insertf32x4(quarters, _mm_loadu_ps(fourth + 4 * k), 3);
            }
        }
        XPKERN_UNROLL
        for (int k = 0; k < 4; ++k) {
            const __m512 low01 = _mm512_unpacklo_ps(joined[k][0], joined[k][1]);
            const __m512 high01 = _mm512_unpackhi_ps(joined[k][0], joined[k][1]);
            const __m512 low23 = _mm512_unpacklo_ps(joined[k][2], joined[k][3]);
            const __m512 high23 = _mm512_unpackhi_ps(joined[k][2], joined[k][3]);
            row[4 * k] = _mm512_shuffle_ps(low01, low23, 0x44);
            row[4 * k + 1] = _mm512_shuffle_ps(low01, low23, 0xee);
            row[4 * k + 2] = _mm512_shuffle_ps(high01, high23, 0x44);
            row[4 * k + 3] = _mm512_shuffle_ps(high01, high23, 0xee);
        }
    }
#endif
};

#if defined(__AVX2__)
// A register of AVX2 is two halves, and what crosses them costs twice: so the halves are joined first, by the loads
// where there are any, and then each is transposed by itself.
template <>
struct Square<float, 8> {
    using Vector = __m256;
    Vector row[8];

    XPKERN_INLINE void transpose() {
        Vector joined[8];
        XPKERN_UNROLL
        for (int k = 0; k < 4; ++k) {
            joined[k] = _mm256_permute2f128_ps(row[k], row[k + 4], 0x20);
            joined[k + 4] = _mm256_permute2f128_ps(row[k], row[k + 4], 0x31);
        }
        transpose_halves(joined);
    }

    XPKERN_INLINE void load_transposed(const float* const* from, int64_t at) {
        Vector joined[8];
        XPKERN_UNROLL
        for (int k = 0; k < 4; ++k) {
            joined[k] = _mm256_loadu2_m128(from[k + 4] + at, from[k] + at);
            joined[k + 4] = _mm256_loadu2_m128(from[k + 4] + at + 4, from[k] + at + 4);
        }
        transpose_halves(joined);
    }

  private:
    XPKERN_INLINE void transpose_halves(const Vector* joined) {
        XPKERN_UNROLL
        for (int k = 0; k < 8; k += 4) {
            const Vector low01 = _mm256_unpacklo_ps(joined[k], joined[k + 1]);
            const Vector high01 = _mm256_unpackhi_ps(joined[k], joined[k + 1]);
            const Vector low23 = _mm256_unpacklo_ps(joined[k + 2], joined[k + 3]);
            const Vector high23 = _mm256_unpackhi_ps(joined[k + 2], joined[k + 3]);
            row[k] = _mm256_shuffle_ps(low01, low23, 0x44);
            row[k + 1] = _mm256_shuffle_ps(low01, low23, 0xee);
            row[k + 2] = _mm256_shuffle_ps(high01, high23, 0x44);
            row[k + 3] = _mm256_shuffle_ps(high01, high23, 0xee);
        }
    }
};
#endif

// The stars of a register in another precision, as one instruction: GCC 12 would take one for each half.
template <class Register, class Vector>
XPKERN_INLINE Register convert_register(const Vector& from) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Register) == 64 && sizeof(Vector) == 32)
        return (Register)_mm512_maskz_cvtps_pd(0xff, (__m256)from);
    else
#endif
        return __builtin_convertvector(from, Register);
}

// Which rows are needed next: any, or those that follow, which are then fetched into the second-level cache meanwhile.
// Past the end of an array that does nothing.
enum class Next { any, following };

// Asks for the cache lines `ahead` elements after those at k of N rows, where k may be the first element of a line.
template <Next NEXT, bool WRITE, int N, class Element>
XPKERN_INLINE void fetch_next(Element* const* row, int k, int ahead) {
    if (NEXT == Next::any || k * int(sizeof(Element)) % 64 != 0) return;
    XPKERN_UNROLL
    for (int star = 0; star < N; ++star) {
        const auto address = reinterpret_cast<uintptr_t>(row[star] + k) + uintptr_t(ahead) * sizeof(Element);
        __builtin_prefetch(reinterpret_cast<const void*>(address), WRITE, 2);
    }
}

// take(k, (rows[row[0]][k], rows[row[1]][k], ...)) for k < count. rows: (n, count).
template <class Lane, Next NEXT, class Element, class Take>
XPKERN_INLINE void for_each_column(const Element* rows, const int64_t* row, int count, const Take& take) {
    constexpr int N = LaneTraits<Lane>::width;
    if constexpr (N == 1) {
        for (int k = 0; k < count; ++k) take(k, static_cast<Lane>(rows[row[0] * count + k]));
    } else {
        static_assert(Lane::registers == 1, "a lane is one register here");
        const Element* from[N];
        for (int star = 0; star < N; ++star) from[star] = rows + row[star] * count;
        int k = 0;
        for (; k + N <= count; k += N) {
            fetch_next<NEXT, false, N>(from, k, N * count);
            Square<Element, N> square;
            square.load_transposed(from, k);
            XPKERN_UNROLL
            for (int i = 0; i < N; ++i) {
                Lane values;
                values.v[0] = convert_register<typename Lane::Register>(square.row[i]);
                take(k + i, values);
            }
        }
        for (; k < count; ++k) {
            Scalar<Lane> values[N];
            for (int star = 0; star < N; ++star) values[star] = static_cast<Scalar<Lane>>(from[star][k]);
            take(k, load<Lane>(values));
        }
    }
}

// lanes[k] = (rows[row[0]][k], rows[row[1]][k], ...) for k < count. rows: (n, count).
template <Next NEXT = Next::any, class Element, class Lane>
inline void load_rows(const Element* rows, const int64_t* row, int count, Lane* lanes) {
    if constexpr (LaneTraits<Lane>::registers > 1) {
        using Part = Pack<Scalar<Lane>, Lane::per_register>;
        for (int r = 0; r < Lane::registers; ++r)
            for_each_column<Part, NEXT>(rows, row + r * Lane::per_register, count,
                                        [&](int k, const Part& values) { lanes[k].v[r] = values.v[0]; });
    } else {
        for_each_column<Lane, NEXT>(rows, row, count, [&](int k, const Lane& values) { lanes[k] = values; });
    }
}

template <class Element, int N>
struct Transposition<Pack<Element, N>> {
    static XPKERN_INLINE void to_rows(const Pack<Element, N>* lanes, int count, int stride, Element* rows) {
        constexpr int SIDE = Pack<Element, N>::per_register;
        for (int r = 0; r < Pack<Element, N>::registers; ++r, rows += SIDE * stride) {
            for (int k = 0; k < stride; k += SIDE) {
                Square<Element, SIDE> square;
                XPKERN_UNROLL
                for (int i = 0; i < SIDE; ++i)
                    square.row[i] = k + i < count ? lanes[k + i].v[r] : typename Square<Element, SIDE>::Vector{};
                square.transpose();
                XPKERN_UNROLL
                for (int star = 0; star < SIDE; ++star)
                    __builtin_memcpy(rows + star * stride + k, &square.row[star], sizeof(square.row[star]));
            }
        }
    }

    static XPKERN_INLINE void sum_stars(const Pack<Element, N>* lanes, int count, Element* sums) {
        constexpr int SIDE = Pack<Element, N>::per_register, REGISTERS = Pack<Element, N>::registers;
        using Vector = typename Square<Element, SIDE>::Vector;
        const auto in_halves = [](auto* part, int parts) {
            XPKERN_UNROLL
            for (int half = parts / 2; half > 0; half /= 2) {
                XPKERN_UNROLL
                for (int k = 0; k < half; ++k) part[k] = part[k] + part[k + half];
            }
        };
        for (int k = 0; k < count; k += SIDE) {
            Square<Element, SIDE> square;
            XPKERN_UNROLL
            for (int i = 0; i < SIDE; ++i) {
                Vector part[REGISTERS];
                XPKERN_UNROLL
                for (int r = 0; r < REGISTERS; ++r) part[r] = k + i < count ? lanes[k + i].v[r] : Vector{};
                in_halves(part, REGISTERS);
                square.row[i] = part[0];
            }
            square.transpose();
            in_halves(square.row, SIDE);
            const int found = count - k < SIDE ? count - k : SIDE;
            __builtin_memcpy(sums + k, &square.row[0], found * sizeof(Element));
        }
    }
};

// rows[row[star]][k] = lanes[k] of that star, for the first `stars` of them. rows: (n, count).
template <Next NEXT = Next::any, int N>
inline void store_rows(const Pack<double, N>* lanes, int count, const int64_t* row, int stars, float* rows) {
    float* to[N];
    for (int star = 0; star < N; ++star) to[star] = rows + row[star] * count;
    int k = 0;
    for (; k + N <= count; k += N) {
        fetch_next<NEXT, true, N>(to, k, N * count);
        Square<float, N> square;
        XPKERN_UNROLL
        for (int i = 0; i < N; ++i)
            square.row[i] = __builtin_convertvector(lanes[k + i].v[0], typename Square<float, N>::Vector);
        square.transpose();
        for (int star = 0; star < stars; ++star)
            __builtin_memcpy(to[star] + k, &square.row[star], sizeof(square.row[star]));
    }
    for (; k < count; ++k) {
        for (int star = 0; star < stars; ++star) to[star][k] = float(get(lanes[k], star));
    }
}

template <Next NEXT = Next::any>
inline void store_rows(const double* lanes, int count, const int64_t* row, int, float* rows) {
    for (int k = 0; k < count; ++k) rows[row[0] * count + k] = float(lanes[k]);
}

// rows[row[star]][k] = lanes[chosen[k]] of that star, for the first `stars` of them. rows: (n, count); count: whole
// registers.
template <int N>
inline void store_chosen(const Pack<float, N>* lanes, const int32_t* chosen, int count, const int64_t* row, int stars,
                         float* rows) {
    for (int k = 0; k < count; k += N) {
        Square<float, N> square;
        XPKERN_UNROLL
        for (int i = 0; i < N; ++i) square.row[i] = lanes[chosen[k + i]].v[0];
        square.transpose();
        for (int star = 0; star < stars; ++star)
            __builtin_memcpy(rows + row[star] * count + k, &square.row[star], sizeof(square.row[star]));
    }
}

inline void store_chosen(const float* lanes, const int32_t* chosen, int count, const int64_t* row, int, float* rows) {
    for (int k = 0; k < count; ++k) rows[row[0] * count + k] = lanes[chosen[k]];
}

XPKERN_NAMESPACE_END
