// Covariances of a block of stars from their information matrices: core/information.hpp, a star at a time.
#pragma once

#include "../core/information.hpp"
#include "../core/network.hpp"
#include "arguments.hpp"

XPKERN_NAMESPACE_BEGIN

template <class Size>
inline void invert_all(const Size& size, const InformationArrays& arrays, int64_t begin, int64_t end) {
    const int64_t square = int64_t(size.value) * size.value;
    for (int64_t row = begin; row < end; ++row)
        arrays.floored[row] = invert_information(size, arrays.information + row * square,
                                                 arrays.covariance + row * square, arrays.inverse + row * square);
}

inline void invert_informations(const InformationArrays& arrays, int parameters, int64_t begin, int64_t end) {
    if (parameters == UsualShape::parameters())
        invert_all(KnownSize<UsualShape::parameters()>{}, arrays, begin, end);
    else
        invert_all(AnySize{parameters}, arrays, begin, end);
}

XPKERN_NAMESPACE_END
