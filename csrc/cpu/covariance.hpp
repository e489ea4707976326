// The inverse of each star's Fisher matrix, where it certainly needs no floor of its eigenvalues.
//
// With D the square root of the diagonal, F = D S D and S = L L^T, the inverse is D^-1 L^-T L^-1 D^-1, and the smallest
// eigenvalue of S is at least 1 / |L^-1|_F^2. xpkern/fit/covariance.py says the same in NumPy, and treats the rest.
#pragma once

#include <math.h>

namespace xpkern {

constexpr int MOST_INVERTED = 8;

// fisher, inverse: (k, k), row-major; the lower triangle is read. Returns whether all eigenvalues of S are certainly at
// least `floor`; if not, the inverse is of no use.
inline bool invert_fisher(const double* fisher, int k, double floor, double* inverse) {
    double scale[MOST_INVERTED], root[MOST_INVERTED][MOST_INVERTED], inverse_root[MOST_INVERTED][MOST_INVERTED];
    double norm = 0;
    for (int i = 0; i < k; ++i) {
        const double diagonal = fisher[i * k + i];
        scale[i] = sqrt(diagonal > 0 ? diagonal : 1.0);  // a parameter nothing depends on has any scale
    }
    for (int i = 0; i < k; ++i) {
        for (int j = 0; j <= i; ++j) {
            double rest = fisher[i * k + j] / (scale[i] * scale[j]);
            for (int l = 0; l < j; ++l) rest -= root[i][l] * root[j][l];
            if (i > j) {
                root[i][j] = rest * root[j][j];
            } else if (rest > floor) {          // a pivot is never below the smallest eigenvalue
                root[i][i] = 1.0 / sqrt(rest);  // the diagonal is reciprocal
            } else {
                return false;
            }
        }
        for (int j = 0; j <= i; ++j) {
            double sum = i == j ? 1.0 : 0.0;
            for (int l = j; l < i; ++l) sum -= root[i][l] * inverse_root[l][j];
            inverse_root[i][j] = sum * root[i][i];
            norm += inverse_root[i][j] * inverse_root[i][j];
        }
    }
    for (int i = 0; i < k; ++i) {
        for (int j = 0; j <= i; ++j) {
            double sum = 0;
            for (int l = i; l < k; ++l) sum += inverse_root[l][i] * inverse_root[l][j];
            inverse[i * k + j] = inverse[j * k + i] = sum / (scale[i] * scale[j]);
        }
    }
    return norm * floor < 1.0;  // NaN is not certain
}

}  // namespace xpkern
