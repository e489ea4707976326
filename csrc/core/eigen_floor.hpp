// Symmetric matrices whose small eigenvalues are raised to a floor: one star at a time, for the rare one that needs it.
#pragma once

#include "whiten.hpp"

XPKERN_NAMESPACE_BEGIN

// Eigenvalues and eigenvectors by cyclic Jacobi rotations.
//
// matrix: (n, n), destroyed; its diagonal becomes the eigenvalues. vectors: (n, n), row j the eigenvector of the
// eigenvalue j. Returns false where the numbers are not finite.
XPKERN_KERNEL bool jacobi_eigen(double* matrix, int n, double* vectors) {
    constexpr int max_sweeps = 40;  // convergence is quadratic: 6 to 10 are usual
    double norm = 0;
    for (int k = 0; k < n * n; ++k) norm = fma(matrix[k], matrix[k], norm);
    if (!(norm < 1e300)) return false;
    for (int k = 0; k < n * n; ++k) vectors[k] = k % (n + 1) == 0 ? 1 : 0;
    const double negligible = 1e-34 * norm;  // relative square of what rounding leaves
    for (int sweep = 0; sweep < max_sweeps; ++sweep) {
        double off_diagonal = 0;
        for (int p = 0; p < n; ++p)
            for (int q = 0; q < p; ++q) off_diagonal = fma(matrix[p * n + q], matrix[p * n + q], off_diagonal);
        if (off_diagonal <= negligible) return true;
        for (int p = 1; p < n; ++p) {
            for (int q = 0; q < p; ++q) {
                const double coupling = matrix[p * n + q];
                if (coupling == 0) continue;
                // t = tan of the angle that removes the coupling, the smaller of the two
                const double ratio = (matrix[q * n + q] - matrix[p * n + p]) / (2 * coupling);
                const double t = (ratio < 0 ? -1 : 1) / (abs(ratio) + sqrt(fma(ratio, ratio, 1.0)));
                const double cosine = 1 / sqrt(fma(t, t, 1.0));
                const double sine = t * cosine;
                const auto rotate = [&](double& at_p, double& at_q) {
                    const double old_p = at_p;
                    at_p = fma(cosine, old_p, -sine * at_q);
                    at_q = fma(sine, old_p, cosine * at_q);
                };
                for (int k = 0; k < n; ++k) rotate(matrix[p * n + k], matrix[q * n + k]);
                for (int k = 0; k < n; ++k) rotate(matrix[k * n + p], matrix[k * n + q]);
                for (int k = 0; k < n; ++k) rotate(vectors[p * n + k], vectors[q * n + k]);
                matrix[p * n + q] = matrix[q * n + p] = 0;
            }
        }
    }
    return true;
}

enum class Floored { none, some, failed };

// The covariance with its eigenvalues below `floor` raised to it: (n, n), in place, and whether any was.
//
// work: (2, n, n).
XPKERN_KERNEL Floored floor_eigenvalues(double* covariance, int n, double floor, double* work) {
    double* values = work;
    double* vectors = work + n * n;
    for (int k = 0; k < n * n; ++k) values[k] = covariance[k];
    if (!jacobi_eigen(values, n, vectors)) return Floored::failed;
    Floored outcome = Floored::none;
    for (int j = 0; j < n; ++j) {
        const double value = values[j * n + j];
        if (value >= floor) continue;
        outcome = Floored::some;
        const double* vector = vectors + j * n;
        for (int p = 0; p < n; ++p)
            for (int q = 0; q < n; ++q)
                covariance[p * n + q] = fma((floor - value) * vector[p], vector[q], covariance[p * n + q]);
    }
    return outcome;
}

XPKERN_NAMESPACE_END
