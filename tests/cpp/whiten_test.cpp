// Whitening of columns and of a residual in a wider type, and its transpose, against long double at any condition.
#include "core/star_loss.hpp"

#include <initializer_list>

#include "cpu/pack.hpp"
#include "toy.hpp"

namespace kernel = xpkern::XPKERN_ISA;

// A covariance with unit variances on average and eigenvalues from 1 down to 1 / condition, as the factor that is
// stored: packed by rows in float, reciprocal diagonal.
struct StoredFactor {
    int m;
    std::vector<float> factor;

    StoredFactor(int samples, double condition, Random& random) : m(samples) {
        std::vector<std::vector<double>> axes;
        for (int k = 0; k < m; ++k) {  // orthonormal, by Gram and Schmidt, twice for rounding
            std::vector<double> axis(m);
            for (auto& x : axis) x = random.normal();
            for (int repeat = 0; repeat < 2; ++repeat) {
                for (const auto& other : axes) {
                    double product = 0;
                    for (int i = 0; i < m; ++i) product += axis[i] * other[i];
                    for (int i = 0; i < m; ++i) axis[i] -= product * other[i];
                }
                double square = 0;
                for (const double x : axis) square += x * x;
                for (auto& x : axis) x /= std::sqrt(square);
            }
            axes.push_back(axis);
        }
        std::vector<long double> lower(m * (m + 1) / 2);
        for (int i = 0; i < m; ++i) {
            for (int j = 0; j <= i; ++j) {
                long double sum = 0;
                for (int k = 0; k < m; ++k)
                    sum += axes[k][i] * axes[k][j] * std::pow(condition, m > 1 ? -double(k) / (m - 1) : 0);
                for (int k = 0; k < j; ++k) sum -= lower[i * (i + 1) / 2 + k] * lower[j * (j + 1) / 2 + k];
                lower[i * (i + 1) / 2 + j] = i == j ? std::sqrt(sum) : sum / lower[j * (j + 1) / 2 + j];
            }
        }
        for (int i = 0; i < m; ++i)
            for (int j = 0; j <= i; ++j) {
                const long double element = lower[i * (i + 1) / 2 + j];
                factor.push_back(static_cast<float>(i == j ? 1 / element : element));
            }
    }
    const float* row(int i) const { return factor.data() + i * (i + 1) / 2; }

    // G n
    std::vector<double> times(const std::vector<double>& n) const {
        std::vector<double> b;
        for (int i = 0; i < m; ++i) {
            long double sum = static_cast<long double>(n[i]) / row(i)[i];
            for (int j = 0; j < i; ++j) sum += static_cast<long double>(row(i)[j]) * n[j];
            b.push_back(static_cast<double>(sum));
        }
        return b;
    }
    // G^-1 b
    std::vector<long double> solve(const std::vector<double>& b) const {
        std::vector<long double> y;
        for (int i = 0; i < m; ++i) {
            long double left = b[i];
            for (int j = 0; j < i; ++j) left -= row(i)[j] * y[j];
            y.push_back(left * row(i)[i]);
        }
        return y;
    }
    // G^-T y
    std::vector<long double> solve_transpose(const std::vector<double>& y) const {
        std::vector<long double> w(y.begin(), y.end());
        for (int i = m - 1; i >= 0; --i) {
            w[i] *= row(i)[i];
            for (int j = 0; j < i; ++j) w[j] -= row(i)[j] * w[i];
        }
        return w;
    }
};

template <class Lane>
struct Array {
    Buffer buffer;
    Lane* at;
    explicit Array(int64_t count) : buffer(count * static_cast<int64_t>(sizeof(Lane)) + 64) {
        kernel::Arena arena{buffer.data(), 0};
        at = arena.take<Lane>(count);
    }
};

std::vector<double> unit_normal(int m, Random& random) {
    std::vector<double> n(m);
    for (auto& x : n) x = random.normal();
    return n;
}

// Columns in Real beside a residual in Wide: the residual's chi^2 is right at any condition, the columns to float's
// rounding amplified by the square root of the condition.
template <class Real, class Wide>
void test_whitening(int m, int columns, double condition) {
    Random random(100 * m + columns);
    const StoredFactor stored(m, condition, random);
    const int stride = columns + 1, last = kernel::LaneTraits<Real>::width - 1;
    Array<Real> factor(m * (m + 1) / 2), column(m * stride);
    Array<Wide> wide(m);
    for (int i = 0; i < m * (m + 1) / 2; ++i) factor.at[i] = kernel::lane<Real>(stored.factor[i]);
    std::vector<std::vector<double>> right;
    for (int c = 0; c < columns; ++c) {
        right.push_back(stored.times(unit_normal(m, random)));
        for (auto& b : right.back()) b = static_cast<kernel::Scalar<Real>>(b);
        for (int i = 0; i < m; ++i) column.at[i * stride + c] = kernel::lane<Real>(right.back()[i]);
    }
    const std::vector<double> residual = stored.times(unit_normal(m, random));
    for (int i = 0; i < m; ++i) {
        wide.at[i] = kernel::lane<Wide>(residual[i]);
        column.at[i * stride + columns] = kernel::lane<Real>(i);  // no business of whiten()
    }
    if constexpr (kernel::SameType<Real, Wide>::value)
        kernel::whiten(factor.at, m, columns, stride, column.at);
    else
        kernel::whiten_with(factor.at, m, columns, stride, column.at, wide.at, kernel::Nothing());

    const double rounding = sizeof(kernel::Scalar<Real>) == 4 ? 1e-7 : 2e-16;
    for (int c = 0; c < columns; ++c) {
        const auto expected = stored.solve(right[c]);
        for (int i = 0; i < m; ++i)
            CHECK_CLOSE(kernel::get(column.at[i * stride + c], last), double(expected[i]),
                        20 * rounding * std::sqrt(condition));
    }
    for (int i = 0; i < m; ++i) CHECK(kernel::get(column.at[i * stride + columns], last) == i);
    if constexpr (!kernel::SameType<Real, Wide>::value) {
        const auto expected = stored.solve(residual);
        long double chi2 = 0, found = 0;
        for (int i = 0; i < m; ++i) {
            const long double y = kernel::get(wide.at[i], last);
            chi2 += expected[i] * expected[i];
            found += y * y;
        }
        CHECK_CLOSE(double(found), double(chi2), 1e-8 * double(chi2));
    }

    const std::vector<double> y = unit_normal(m, random);
    for (int i = 0; i < m; ++i) column.at[i] = kernel::lane<Real>(y[i]);
    kernel::unwhiten(factor.at, m, column.at);
    std::vector<double> rounded;
    for (const double x : y) rounded.push_back(static_cast<kernel::Scalar<Real>>(x));
    const auto expected = stored.solve_transpose(rounded);
    double size = 0;
    for (const auto w : expected) size = std::fmax(size, std::fabs(double(w)));
    for (int i = 0; i < m; ++i)
        CHECK_CLOSE(kernel::get(column.at[i], last), double(expected[i]), 20 * rounding * std::sqrt(condition) * size);
}

template <class Real, class Wide>
void test_sizes() {
    for (const double condition : {10.0, 1e8})
        for (const int m : {1, 5, 7, 66})
            for (const int columns : {1, 2, 4, 5, 6, 8}) test_whitening<Real, Wide>(m, columns, condition);
}

int main() {
#if defined(XPKERN_SCALAR_LANES)
    test_sizes<float, double>();
    test_sizes<double, double>();
#else
    using Float = kernel::Pack<float, kernel::FLOAT_WIDTH>;
    using Wide = kernel::Pack<double, kernel::FLOAT_WIDTH>;
    using Double = kernel::Pack<double, kernel::DOUBLE_WIDTH>;
    test_sizes<Float, Float>();
    test_sizes<Float, Wide>();
    test_sizes<Double, Double>();
#endif
    return failures();
}
