// Status bits that kernels set: the same values as xpkern/status.py (a test holds the two together).
#pragma once

#include "platform.hpp"

XPKERN_NAMESPACE_BEGIN

enum Status : uint32_t {
    NO_DATA = 1u << 16,
    EIGENVALUE_FLOORED = 1u << 17,
    SINGULAR_COVARIANCE = 1u << 18,
    NOT_CONVERGED = 1u << 19,
    HESSIAN_NOT_POSITIVE = 1u << 20,
    ON_BOX_EDGE = 1u << 21,
    RESCUED = 1u << 22,
};

XPKERN_NAMESPACE_END
