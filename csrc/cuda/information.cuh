// Covariances from information matrices: a star a thread.
#pragma once

#include "core/information.hpp"
#include "threads.cuh"

XPKERN_NAMESPACE_BEGIN

template <class Size>
__device__ __forceinline__ void invert_informations(const InvertArguments& a, const Size& size) {
    const int64_t square = int64_t(size.value) * size.value;
    over_items(a.n, [&](int64_t row) {
        a.floored[row] = invert_information(size, a.information + row * square, a.covariance + row * square,
                                            a.inverse + row * square);
    });
}

XPKERN_NAMESPACE_END

extern "C" __global__ void invert_information(const __grid_constant__ xpkern::InvertArguments a) {
    if (a.parameters == kernels::UsualShape::parameters())
        kernels::invert_informations(a, kernels::KnownSize<kernels::UsualShape::parameters()>{});
    else
        kernels::invert_informations(a, kernels::AnySize{int(a.parameters)});
}
