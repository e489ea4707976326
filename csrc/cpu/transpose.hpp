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
};

// lanes[k] = (rows[row[0]][k], rows[row[1]][k], ...) for k < count. rows: (n, count).
template <class Element, class Number, int N>
inline void load_rows(const Element* rows, const int64_t* row, int count, Pack<Number, N>* lanes) {
    using Lane = Pack<Number, N>;
    static_assert(Lane::registers == 1, "a lane is one register here");
    const Element* from[N];
    for (int star = 0; star < N; ++star) from[star] = rows + row[star] * count;
    int k = 0;
    for (; k + N <= count; k += N) {
        Square<Element, N> square;
        XPKERN_UNROLL
        for (int star = 0; star < N; ++star)
            __builtin_memcpy(&square.row[star], from[star] + k, sizeof(square.row[star]));
        square.transpose();
        XPKERN_UNROLL
        for (int i = 0; i < N; ++i) lanes[k + i].v[0] = __builtin_convertvector(square.row[i], typename Lane::Register);
    }
    for (; k < count; ++k) {
        Number star_values[N];
        for (int star = 0; star < N; ++star) star_values[star] = static_cast<Number>(from[star][k]);
        lanes[k] = load<Lane>(star_values);
    }
}

template <class Element, class Number>
inline void load_rows(const Element* rows, const int64_t* row, int count, Number* lanes) {
    for (int k = 0; k < count; ++k) lanes[k] = static_cast<Number>(rows[row[0] * count + k]);
}

// rows[row[star]][k] = lanes[k] of that star, for the first `stars` of them. rows: (n, count).
template <int N>
inline void store_rows(const Pack<double, N>* lanes, int count, const int64_t* row, int stars, float* rows) {
    int k = 0;
    for (; k + N <= count; k += N) {
        Square<float, N> square;
        XPKERN_UNROLL
        for (int i = 0; i < N; ++i)
            square.row[i] = __builtin_convertvector(lanes[k + i].v[0], typename Square<float, N>::Vector);
        square.transpose();
        for (int star = 0; star < stars; ++star)
            __builtin_memcpy(rows + row[star] * count + k, &square.row[star], sizeof(square.row[star]));
    }
    for (; k < count; ++k) {
        for (int star = 0; star < stars; ++star) rows[row[star] * count + k] = float(get(lanes[k], star));
    }
}

inline void store_rows(const double* lanes, int count, const int64_t* row, int, float* rows) {
    for (int k = 0; k < count; ++k) rows[row[0] * count + k] = float(lanes[k]);
}

XPKERN_NAMESPACE_END
