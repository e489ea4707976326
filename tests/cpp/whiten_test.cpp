// Whitening of columns and of a residual in a wider type, and its transpose, against long double at any condition; the
// same with factors in blocks.
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
    // A factor of blocks with a common error, as core/block_factor.hpp has it.
    StoredFactor(int samples, const xpkern::SampleBlocks& blocks, Random& random) : m(samples) {
        std::vector<double> common(m), along(m);
        for (auto& x : common) x = random.normal();
        for (auto& x : along) x = 0.3 * random.normal();
        for (int i = 0; i < m; ++i)
            for (int j = 0; j <= i; ++j) {
                double element = 0.3 * random.normal() / std::sqrt(m);
                if (i >= blocks.leading && j < blocks.alone) element = common[i] * along[j] / std::sqrt(m);
                if (i >= blocks.linked) element = 0;
                factor.push_back(static_cast<float>(i == j ? random.uniform(0.5, 2) : element));
            }
    }
    const float* row(int i) const { return factor.data() + i * (i + 1) / 2; }
    float& at(int i, int j) { return factor[i * (i + 1) / 2 + j]; }
    void remove_sample(int sample) {
        for (int j = 0; j <= sample; ++j) at(sample, j) = 0;
        for (int i = sample + 1; i < m; ++i) at(i, sample) = 0;
    }
    std::vector<double> variance() const {
        std::vector<double> sum;
        for (int i = 0; i < m; ++i) {
            sum.push_back(row(i)[i] > 0 ? std::pow(double(row(i)[i]), -2) : 0);
            for (int j = 0; j < i; ++j) sum.back() += double(row(i)[j]) * row(i)[j];
        }
        return sum;
    }

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

template <class Real>
Array<Real> in_lanes(const std::vector<float>& numbers) {
    Array<Real> lanes(static_cast<int64_t>(numbers.size()));
    for (size_t i = 0; i < numbers.size(); ++i) lanes.at[i] = kernel::lane<Real>(numbers[i]);
    return lanes;
}

// A factor in blocks gives what it gives whole.
template <class Real, class Wide>
void test_blocks(int m, const xpkern::SampleBlocks& blocks, const std::vector<int>& missing) {
    const int columns = 5, stride = columns + 1, last = kernel::LaneTraits<Real>::width - 1;
    const auto form = kernel::BlockForm::of(m, blocks);
    CHECK(form.has_trailing());
    Random random(100 * m + blocks.alone);
    StoredFactor stored(m, blocks, random);
    for (const int sample : missing) stored.remove_sample(sample);
    Array<Real> triangle = in_lanes<Real>(stored.factor), along(form.alone), common(form.trailing());
    CHECK(kernel::all(kernel::find_common_error(triangle.at, form, along.at, common.at)));
    for (int i = form.leading; i < m; ++i)  // what is not read
        for (int j = 0; j < (i < form.linked ? form.alone : i); ++j)
            triangle.at[i * (i + 1) / 2 + j] = kernel::lane<Real>(NAN);
    kernel::place_common_error(form, common.at, triangle.at);
    const kernel::BlockFactor<Real> factor{triangle.at, along.at, form};

    Array<Real> column(m * stride), variance(m);
    Array<Wide> wide(m);
    std::vector<std::vector<double>> right;
    for (int c = 0; c <= columns; ++c) {
        right.push_back(unit_normal(m, random));
        for (int i = 0; i < m; ++i) {
            right[c][i] = static_cast<float>(stored.row(i)[i] > 0 ? right[c][i] : 0);
            column.at[i * stride + c] = kernel::lane<Real>(right[c][i]);
            wide.at[i] = kernel::lane<Wide>(right[c][i]);
        }
    }
    if constexpr (kernel::SameType<Real, Wide>::value)
        kernel::whiten(factor, m, columns, stride, column.at);
    else
        kernel::whiten_with(factor, m, columns, stride, column.at, wide.at, kernel::Nothing());
    const auto check = [&](const auto& found, const std::vector<long double>& expected, double tolerance) {
        double size = 0;
        for (const auto y : expected) size = std::fmax(size, std::fabs(double(y)));
        for (int i = 0; i < m; ++i)
            CHECK_CLOSE(double(kernel::get(found(i), last)), double(expected[i]), tolerance * size);
    };
    for (int c = 0; c < columns; ++c)
        check([&](int i) { return column.at[i * stride + c]; }, stored.solve(right[c]), 1e-5);
    for (int i = 0; i < m; ++i)
        CHECK(kernel::get(column.at[i * stride + columns], last) == static_cast<float>(right[columns][i]));
    if constexpr (!kernel::SameType<Real, Wide>::value)
        check([&](int i) { return wide.at[i]; }, stored.solve(right[columns]), 3e-6);

    for (int i = 0; i < m; ++i) column.at[i] = kernel::lane<Real>(right[0][i]);
    kernel::unwhiten(factor, m, column.at);
    check([&](int i) { return column.at[i]; }, stored.solve_transpose(right[0]), 1e-5);

    kernel::sample_variance(factor, m, variance.at);
    const auto expected = stored.variance();
    for (int i = 0; i < m; ++i) CHECK_CLOSE(double(kernel::get(variance.at[i], last)), expected[i], 3e-6 * expected[i]);
}

// What is not of the form is told, wherever it is not, and of one star of a lane alone.
template <class Real>
void test_other_forms(int m, const xpkern::SampleBlocks& blocks) {
    const auto form = kernel::BlockForm::of(m, blocks);
    const int width = kernel::LaneTraits<Real>::width;
    Random random(m);
    const StoredFactor stored(m, blocks, random);
    Array<Real> along(form.alone), common(form.trailing());
    const auto stars_of_form = [&](const std::vector<float>& first) {
        Array<Real> triangle(m * (m + 1) / 2);
        for (int at = 0; at < m * (m + 1) / 2; ++at)
            triangle.at[at] = kernel::lane_of<Real>([&](int s) { return s == 0 ? first[at] : stored.factor[at]; });
        return kernel::count(kernel::find_common_error(triangle.at, form, along.at, common.at));
    };
    CHECK(stars_of_form(stored.factor) == width);
    for (int i = blocks.leading; i < m; i += 9)
        for (int j = 0; j < i; j += 4) {
            if (i < blocks.linked && j >= blocks.alone) continue;
            double square = 1e-40;  // of a row apart
            for (int k = 0; i < blocks.linked && k < blocks.alone; ++k) square += std::pow(stored.row(i)[k], 2);
            for (const double change : {1e-5 * std::sqrt(square), double(NAN), double(INFINITY)}) {
                StoredFactor other = stored;
                other.at(i, j) += static_cast<float>(change);
                CHECK(stars_of_form(other.factor) == width - 1);
            }
        }
    StoredFactor tiny = stored;  // squares of which are no numbers of full length
    for (int i = blocks.leading; i < blocks.linked; ++i)
        for (int j = 0; j < blocks.alone; ++j) tiny.at(i, j) *= 1e-15f;
    CHECK(stars_of_form(tiny.factor) == width - 1);
    CHECK(stars_of_form(StoredFactor(m, 10, random).factor) == width - 1);
    for (const xpkern::SampleBlocks& none : {xpkern::SampleBlocks{}, {1, 1, m}, {5, 4, m}, {5, 6, 6}, {5, 6, m + 1}})
        CHECK(!kernel::BlockForm::of(m, none).has_trailing());
}

template <class Real, class Wide>
void test_every_blocks() {
    const xpkern::SampleBlocks usual{25, 26, 61};
    test_blocks<Real, Wide>(66, usual, {});
    test_blocks<Real, Wide>(66, usual, {0, 25, 30, 60, 65});
    std::vector<int> bp, rp;
    for (int i = 0; i < 26; ++i) bp.push_back(i);
    for (int i = 25; i < 61; ++i) rp.push_back(i);
    test_blocks<Real, Wide>(66, usual, bp);
    test_blocks<Real, Wide>(66, usual, rp);
    test_blocks<Real, Wide>(13, {2, 2, 12}, {3});
    test_blocks<Real, Wide>(31, {13, 17, 31}, {});
    test_blocks<Real, Wide>(70, {32, 40, 60}, {});
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
    test_every_blocks<float, double>();
    test_other_forms<float>(66, {25, 26, 61});
#else
    using Float = kernel::Pack<float, kernel::FLOAT_WIDTH>;
    using Wide = kernel::Pack<double, kernel::FLOAT_WIDTH>;
    using Double = kernel::Pack<double, kernel::DOUBLE_WIDTH>;
    test_sizes<Float, Float>();
    test_sizes<Float, Wide>();
    test_sizes<Double, Double>();
    test_every_blocks<Float, Float>();
    test_every_blocks<Float, Wide>();
    test_other_forms<Float>(66, {25, 26, 61});
#endif
    return failures();
}
