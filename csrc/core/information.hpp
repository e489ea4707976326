// From an information matrix, such as Fisher's, to a covariance that is always positive definite: one star at a time.
//
// With D the root of the diagonal, F = D S D. The eigenvalues of S are raised to at least EIGENVALUE_FLOOR before
// inverting: a statement about degeneracy, whatever the units. With S = L L^T the smallest is at least 1 / |L^-1|_F^2:
// where that exceeds the floor, as for almost every star, nobody has to look at eigenvalues.
#pragma once

#include "eigen_floor.hpp"
#include "views.hpp"

XPKERN_NAMESPACE_BEGIN

// information: (k, k), k = size.value. Returns whether the floor acted; `inverse` is the information itself where it
// did not, with eigenvalues raised where it did. Not finite: NaN. covariance, inverse: (k, k), elsewhere than
// information.
template <class Size>
XPKERN_INLINE bool invert_information(const Size& size, const double* information, double* covariance,
                                      double* inverse) {
    constexpr int MOST = Size::most;
    const int k = size.value < MOST ? size.value : MOST;  // so that a compiler knows how far loops go at most
    double scale[MOST], root[MOST * MOST], root_inverse[MOST * MOST];
    bool finite = true;
    XPKERN_UNROLL
    for (int at = 0; at < k * k; ++at) {
        inverse[at] = information[at];
        finite = finite && abs(information[at]) < infinity<double>();
    }
    if (!finite) {
        for (int at = 0; at < k * k; ++at) covariance[at] = not_a_number();
        return false;
    }
    XPKERN_UNROLL
    for (int i = 0; i < k; ++i) {  // any scale will do for a parameter that nothing depends on
        const double diagonal = information[i * k + i];
        scale[i] = diagonal > 0 ? sqrt(diagonal) : 1;
    }
    bool certain = true;
    double norm = 0;
    XPKERN_UNROLL
    for (int i = 0; i < k; ++i) {
        XPKERN_UNROLL
        for (int j = 0; j <= i; ++j) {
            double sum = information[i * k + j] / (scale[i] * scale[j]);
            XPKERN_UNROLL
            for (int l = 0; l < j; ++l) sum = fma(-root[i * MOST + l], root[j * MOST + l], sum);
            if (i == j) {
                certain = certain && sum > EIGENVALUE_FLOOR;  // a pivot is never below the smallest eigenvalue
                root[i * MOST + i] = 1 / sqrt(sum > EIGENVALUE_FLOOR ? sum : 1.0);
            } else {
                root[i * MOST + j] = sum * root[j * MOST + j];
            }
        }
        XPKERN_UNROLL
        for (int j = 0; j <= i; ++j) {
            double sum = i == j ? 1 : 0;
            XPKERN_UNROLL
            for (int l = j; l < i; ++l) sum = fma(-root[i * MOST + l], root_inverse[l * MOST + j], sum);
            const double element = root_inverse[i * MOST + j] = sum * root[i * MOST + i];
            norm = fma(element, element, norm);
        }
    }
    certain = certain && norm * EIGENVALUE_FLOOR < 1;
    if (certain) {
        XPKERN_UNROLL
        for (int i = 0; i < k; ++i) {
            XPKERN_UNROLL
            for (int j = 0; j <= i; ++j) {
                double sum = 0;
                XPKERN_UNROLL
                for (int l = i; l < k; ++l) sum = fma(root_inverse[l * MOST + i], root_inverse[l * MOST + j], sum);
                covariance[i * k + j] = covariance[j * k + i] = sum / (scale[i] * scale[j]);
            }
        }
        return false;
    }
    double* const values = root;  // (k, k) from here on
    double* const vectors = root_inverse;
    for (int i = 0; i < k; ++i)
        for (int j = 0; j < k; ++j) values[i * k + j] = information[i * k + j] / (scale[i] * scale[j]);
    const bool solved = jacobi_eigen(values, k, vectors);
    bool floored = false;
    for (int l = 0; l < k; ++l) {
        double& value = values[l * k + l];
        floored = floored || value < EIGENVALUE_FLOOR;
        value = max(value, EIGENVALUE_FLOOR);
    }
    floored = floored && solved;
    for (int i = 0; i < k; ++i) {
        for (int j = 0; j <= i; ++j) {
            double spread = 0, raised = 0;
            for (int l = 0; l < k; ++l) {
                const double product = vectors[l * k + i] * vectors[l * k + j];
                spread += product / values[l * k + l];
                raised += product * values[l * k + l];
            }
            const double unit = scale[i] * scale[j];
            covariance[i * k + j] = covariance[j * k + i] = solved ? spread / unit : not_a_number();
            if (floored) inverse[i * k + j] = inverse[j * k + i] = raised * unit;
        }
    }
    return floored;
}

// Sizes that a compiler knows, and others.
template <int N>
struct KnownSize {
    static constexpr int most = N, value = N;
};
struct AnySize {
    static constexpr int most = MAX_PARAMETERS;
    int value;
};

XPKERN_NAMESPACE_END
