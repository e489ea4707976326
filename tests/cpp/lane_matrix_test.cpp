// The linear algebra of lanes against plain loops over one star at a time, and a calibration of odd sizes.
#include "check.hpp"
#include "core/frozen_noise.hpp"
#include "cpu/calibrate.hpp"
#include "cpu/calibration_plan.hpp"

#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

namespace kernel = xpkern::XPKERN_ISA;
using kernel::Onto;
using kernel::row_start;
using kernel::Shape;

constexpr double ROUNDING = 1e-12;

template <class Lane>
struct Lanes {
    static constexpr int width = kernel::LaneTraits<Lane>::width;
    std::unique_ptr<Lane[]> data;
    explicit Lanes(int count) : data(new Lane[static_cast<size_t>(count)]) { kernel::fill(data.get(), count, 0); }
    Lane* get() { return data.get(); }
    double at(int k, int star) const { return kernel::get(data[static_cast<size_t>(k)], star); }
    void randomise(int count, Random& random) {
        for (int k = 0; k < count; ++k) {
            double values[width];
            for (double& value : values) value = random.normal();
            data[static_cast<size_t>(k)] = kernel::load<Lane>(values);
        }
    }
};

std::vector<double> random_matrix(int count, Random& random) {
    std::vector<double> values(static_cast<size_t>(count));
    for (double& value : values) value = random.normal();
    return values;
}

// A left factor that is lower triangular: zero where the inner index exceeds the outer one.
std::vector<double> random_left(int inner, int n_left, bool lower, Random& random) {
    auto left = random_matrix(inner * n_left, random);
    for (int k = 0; k < inner; ++k) {
        for (int p = 0; lower && p < k && p < n_left; ++p) left[size_t(k * n_left + p)] = 0;
    }
    return left;
}

// Every remainder of the register blocks, and none at all.
template <class Lane>
void test_products(int n_left, int n_right, int inner, Random& random) {
    const auto left = random_matrix(inner * n_left, random);
    Lanes<Lane> right(inner * n_right), out(n_right * n_left), before(n_right * n_left);
    right.randomise(inner * n_right, random);
    out.randomise(n_right * n_left, random);
    for (int k = 0; k < n_right * n_left; ++k) before.get()[k] = out.get()[k];
    kernel::product<Shape::rectangle, Shape::rectangle, Onto::out>(left.data(), n_left, inner,
                                                                   kernel::rectangle(right.get(), n_right), n_right,
                                                                   kernel::rectangle(out.get(), n_left));
    for (int star = 0; star < Lanes<Lane>::width; ++star) {
        for (int q = 0; q < n_right; ++q) {
            for (int p = 0; p < n_left; ++p) {
                double expected = before.at(q * n_left + p, star);
                for (int k = 0; k < inner; ++k)
                    expected += left[size_t(k * n_left + p)] * right.at(k * n_right + q, star);
                CHECK_CLOSE(out.at(q * n_left + p, star), expected, ROUNDING * inner);
            }
        }
    }
}

// The right factor is the lower-right part of a packed triangle, what is above its diagonal taken as zero.
template <class Lane, Shape LEFT>
void test_lower_product(int n_left, int first, int inner, Random& random) {
    const bool lower = LEFT == Shape::lower;
    const int size = row_start(first + inner);
    const auto left = random_left(inner, n_left, lower, random);
    Lanes<Lane> triangle(size), out(inner * n_left);
    triangle.randomise(size, random);
    kernel::product<LEFT, Shape::lower, Onto::zero>(left.data(), n_left, inner,
                                                    kernel::part_of_triangle(triangle.get(), first, first), inner,
                                                    kernel::rectangle(out.get(), n_left));
    for (int star = 0; star < Lanes<Lane>::width; ++star) {
        for (int q = 0; q < inner; ++q) {
            for (int p = lower ? q : 0; p < n_left; ++p) {
                double expected = 0;
                for (int k = q; k < inner; ++k)
                    expected += left[size_t(k * n_left + p)] * triangle.at(row_start(first + k) + first + q, star);
                CHECK_CLOSE(out.at(q * n_left + p, star), expected, ROUNDING * inner);
            }
        }
    }
}

// What a lower right factor holds above its diagonal must not matter.
template <class Lane, Shape SHAPE>
void test_symmetric_product(int n, int inner, Random& random) {
    const bool lower = SHAPE == Shape::lower;
    const auto left = random_left(inner, n, lower, random);
    Lanes<Lane> right(inner * n), out(row_start(n)), flipped(row_start(n));
    right.randomise(inner * n, random);
    for (int k = 0; k < inner; ++k) {
        for (int i = 0; lower && i < k && i < n; ++i) right.get()[k * n + i] = kernel::lane<Lane>(std::nan(""));
    }
    kernel::fill(out.get(), row_start(n), 1);
    kernel::symmetric_product<SHAPE, Onto::out>(left.data(), n, inner, kernel::rectangle(right.get(), n), 0.5,
                                                kernel::part_of_triangle(out.get(), 0, 0));
    kernel::symmetric_product<SHAPE, Onto::zero>(left.data(), n, inner, kernel::rectangle(right.get(), n), 0.5,
                                                 kernel::FlippedTriangle<Lane>{flipped.get(), n});
    for (int star = 0; star < Lanes<Lane>::width; ++star) {
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j <= i; ++j) {
                double expected = 0;
                for (int k = 0; k < (lower && j < inner ? j + 1 : inner); ++k) {
                    expected += left[size_t(k * n + i)] * right.at(k * n + j, star) +
                                left[size_t(k * n + j)] * right.at(k * n + i, star);
                }
                if (i == j) expected *= 0.5;
                CHECK_CLOSE(out.at(row_start(i) + j, star), 1 + expected, ROUNDING * inner);
                CHECK_CLOSE(flipped.at(row_start(n - 1 - j) + n - 1 - i, star), expected, ROUNDING * inner);
            }
        }
    }
}

// G of a star as a dense lower triangle, its diagonal no longer reciprocal.
template <class Lane>
std::vector<double> dense_factor(const Lanes<Lane>& factor, int n, int star) {
    std::vector<double> dense(size_t(n * n));
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j < i; ++j) dense[size_t(i * n + j)] = factor.at(row_start(i) + j, star);
        dense[size_t(i * n + i)] = 1 / factor.at(row_start(i) + i, star);
    }
    return dense;
}

double product_with_transpose(const std::vector<double>& matrix, int n, int i, int j) {
    double sum = 0;
    for (int k = 0; k < n; ++k) sum += matrix[size_t(i * n + k)] * matrix[size_t(j * n + k)];
    return sum;
}

// Two blocks that share the samples link ... end: factor, rank-one update, norms of the inverse.
template <class Lane>
void test_factor(int end, int link, int n, Random& random) {
    constexpr int width = Lanes<Lane>::width;
    Lanes<Lane> triangle(row_start(n)), u(n), present(n), work(4 * n);
    const auto noise = random_matrix(row_start(n), random);
    u.randomise(n, random);
    kernel::fill(present.get(), n, 1);
    for (int i = 0; i < n; ++i) {
        for (int j = i < end ? 0 : link; j <= i; ++j) {
            double values[width];
            for (int star = 0; star < width; ++star)
                values[star] = (i == j ? n : 0.4) * (1 + 0.1 * noise[size_t(row_start(i) + j)] + 0.01 * star);
            triangle.get()[row_start(i) + j] = kernel::load<Lane>(values);
        }
    }
    Lanes<Lane> covariance(row_start(n));
    for (int k = 0; k < row_start(n); ++k) covariance.get()[k] = triangle.get()[k];

    kernel::cholesky(triangle.get(), 0, end, 0);
    kernel::cholesky(triangle.get(), end, n, link);
    const auto leading = kernel::inverse_norm(triangle.get(), 0, end, link, present.get(), work.get());
    const auto trailing = kernel::inverse_norm(triangle.get(), end, n, n, present.get(), work.get());
    const Lane between = kernel::link_norm(triangle.get(), end, n, link, work.get());
    for (int star = 0; star < width; ++star) {
        const auto factor = dense_factor(triangle, n, star);
        double squares = 0;  // of the elements of G^-1, column by column
        for (int column = 0; column < n; ++column) {
            std::vector<double> y(size_t(n), 0.0);
            for (int i = column; i < n; ++i) {
                double sum = i == column;
                for (int k = column; k < i; ++k) sum -= factor[size_t(i * n + k)] * y[size_t(k)];
                y[size_t(i)] = sum / factor[size_t(i * n + i)];
                squares += y[size_t(i)] * y[size_t(i)];
            }
            for (int j = 0; j <= column; ++j) {
                CHECK_CLOSE(product_with_transpose(factor, n, column, j), covariance.at(row_start(column) + j, star),
                            ROUNDING * n);
            }
        }
        const double bound = kernel::get(leading.all, star) + kernel::get(trailing.all, star) +
                             kernel::get(between, star) * kernel::get(leading.tail, star);
        CHECK(bound >= squares * (1 - ROUNDING));
        if (link >= end - 1) CHECK_CLOSE(bound, squares, ROUNDING * squares);  // exact for one shared sample
    }
    // the cheaper bound of either block is one for any tail, and these blocks, far from singular, it does not miss by
    // much
    for (const auto& [begin, to] : {std::pair{0, end}, std::pair{end, n}}) {
        for (int tail = begin; tail <= to; ++tail) {
            const auto exact = kernel::inverse_norm(triangle.get(), begin, to, tail, present.get(), work.get());
            const auto above = kernel::inverse_norm_bound(triangle.get(), begin, to, tail, present.get(), work.get());
            for (int star = 0; star < width; ++star) {
                const double all = kernel::get(exact.all, star), rows = kernel::get(exact.tail, star);
                CHECK(kernel::get(above.all, star) >= all * (1 - ROUNDING));
                CHECK(kernel::get(above.tail, star) >= rows * (1 - ROUNDING));
                CHECK(kernel::get(above.all, star) <= all * 10);
                CHECK(kernel::get(above.tail, star) <= kernel::get(above.all, star));
                if (tail == to) CHECK(kernel::get(above.tail, star) == 0);
            }
        }
    }

    kernel::rank_one_update(triangle.get(), n, u.get(), work.get());
    for (int star = 0; star < width; ++star) {
        const auto factor = dense_factor(triangle, n, star);
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j <= i; ++j) {
                const double expected = covariance.at(row_start(i) + j, star) + u.at(i, star) * u.at(j, star);
                CHECK_CLOSE(product_with_transpose(factor, n, i, j), expected, ROUNDING * n);
            }
        }
    }
}

// G G^T in place of G, with every remainder of its blocks of rows and columns. alone: rows at the end that have nothing
// left of their diagonal; the one before them has, in the last star of the lane only.
template <class Lane>
void test_square(int n, int alone, Random& random) {
    Lanes<Lane> triangle(row_start(n)), before(row_start(n));
    triangle.randomise(row_start(n), random);
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j < i; ++j) {
            double values[Lanes<Lane>::width];
            for (int star = 0; star < Lanes<Lane>::width; ++star) {
                const bool zero = i >= n - alone || (i == n - alone - 1 && star + 1 < Lanes<Lane>::width);
                values[star] = alone > 0 && zero ? 0 : triangle.at(row_start(i) + j, star);
            }
            triangle.get()[row_start(i) + j] = kernel::load<Lane>(values);
        }
    }
    for (int k = 0; k < row_start(n); ++k) before.get()[k] = triangle.get()[k];
    kernel::square_of_factor(triangle.get(), n);
    for (int star = 0; star < Lanes<Lane>::width; ++star) {
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j <= i; ++j) {
                double expected = 0;
                for (int k = 0; k <= j; ++k)
                    expected += before.at(row_start(i) + k, star) * before.at(row_start(j) + k, star);
                CHECK_CLOSE(triangle.at(row_start(i) + j, star), expected, ROUNDING * n);
            }
        }
    }
}

// The same of a factor in blocks with a common error.
template <class Lane>
void test_square_of_blocks(int n, const xpkern::SampleBlocks& blocks, Random& random) {
    const auto form = kernel::BlockForm::of(n, blocks);
    Lanes<Lane> triangle(row_start(n)), before(row_start(n)), along(form.alone), common(form.trailing());
    triangle.randomise(row_start(n), random);
    along.randomise(form.alone, random);
    common.randomise(form.trailing(), random);
    for (int i = form.leading; i < n; ++i)
        for (int j = 0; j < (i < form.linked ? form.alone : i); ++j)
            triangle.get()[row_start(i) + j] =
                i < form.linked ? common.get()[i - form.leading] * along.get()[j] : kernel::lane<Lane>(0);
    for (int k = 0; k < row_start(n); ++k) before.get()[k] = triangle.get()[k];
    CHECK(kernel::all(kernel::find_common_error(triangle.get(), form, along.get(), common.get())));
    kernel::square_of_blocks(triangle.get(), form, along.get(), common.get());
    for (int star = 0; star < Lanes<Lane>::width; ++star) {
        for (int i = 0; i < n; ++i) {
            for (int j = 0; j <= i; ++j) {
                double expected = 0;
                for (int k = 0; k <= j; ++k)
                    expected += before.at(row_start(i) + k, star) * before.at(row_start(j) + k, star);
                CHECK_CLOSE(triangle.at(row_start(i) + j, star), expected, 10 * ROUNDING * n);
            }
        }
    }
}

void test_eigenvalue_floor(int n, Random& random) {
    // eigenvectors: a product of reflections; eigenvalues 1e-6 to 1e3
    std::vector<double> vectors(size_t(n * n)), values(static_cast<size_t>(n)), work(size_t(2 * n * n));
    for (int i = 0; i < n; ++i) vectors[size_t(i * n + i)] = 1;
    for (int reflection = 0; reflection < 3; ++reflection) {
        const auto normal = random_matrix(n, random);
        double square = 0;
        for (double x : normal) square += x * x;
        for (int i = 0; i < n; ++i) {
            double along = 0;
            for (int j = 0; j < n; ++j) along += vectors[size_t(i * n + j)] * normal[size_t(j)];
            for (int j = 0; j < n; ++j) vectors[size_t(i * n + j)] -= 2 * along / square * normal[size_t(j)];
        }
    }
    for (double& value : values) value = std::pow(10.0, random.uniform(-6, 3));
    for (const double floor : {1e-7, 1e-2}) {
        std::vector<double> matrix(size_t(n * n)), expected(size_t(n * n));
        bool below = false;
        for (int k = 0; k < n; ++k) {
            const double value = values[size_t(k)];
            below = below || value < floor;
            for (int i = 0; i < n; ++i) {
                for (int j = 0; j < n; ++j) {
                    const double square = vectors[size_t(k * n + i)] * vectors[size_t(k * n + j)];
                    matrix[size_t(i * n + j)] += value * square;
                    expected[size_t(i * n + j)] += (value < floor ? floor : value) * square;
                }
            }
        }
        const auto outcome = kernel::floor_eigenvalues(matrix.data(), n, floor, work.data());
        CHECK(outcome == (below ? kernel::Floored::some : kernel::Floored::none));
        for (int k = 0; k < n * n; ++k) CHECK_CLOSE(matrix[size_t(k)], expected[size_t(k)], 1e3 * n * ROUNDING);
        matrix[0] = std::nan("");
        CHECK(kernel::floor_eigenvalues(matrix.data(), n, floor, work.data()) == kernel::Floored::failed);
    }
}

// Rows into lanes and back, lengths that are no multiple of a lane's width among them.
template <class Lane>
void test_transpose(Random& random) {
    constexpr int width = Lanes<Lane>::width, stars = 2 * width + 1;
    for (const int count : {1, 2, 7, 8, 9, 31}) {
        std::vector<float> rows(size_t(stars * count)), back(rows.size(), -1.0f);
        for (float& x : rows) x = static_cast<float>(random.normal());
        int64_t row[width];
        for (int star = 0; star < width; ++star) row[star] = 2 * star;
        Lanes<Lane> lanes(count);
        kernel::load_rows(rows.data(), row, count, lanes.get());
        for (int star = 0; star < width; ++star) {
            for (int k = 0; k < count; ++k) CHECK(lanes.at(k, star) == rows[size_t(2 * star * count + k)]);
        }
        const int stored = width > 1 ? width - 1 : 1;
        kernel::store_rows(lanes.get(), count, row, stored, back.data());
        for (int star = 0; star < stars; ++star) {
            const bool written = star % 2 == 0 && star / 2 < stored;
            for (int k = 0; k < count; ++k) {
                const auto element = size_t(star * count + k);
                CHECK(back[element] == (written ? rows[element] : -1.0f));
            }
        }
    }
}

// Whatever its place in a block, a star gets the same bytes; G G^T has the errors of Eq. 2 on its diagonal.
void test_calibration(int samples, int n_bp, int n_rp, int bp_end, int rp_begin, Random& random) {
    constexpr int stars = 11, bands = 2;
    const int m = samples + bands, packed = row_start(m);
    std::vector<double> bp_design(size_t(samples * n_bp)), rp_design(size_t(samples * n_rp));
    for (int i = 0; i < bp_end * n_bp; ++i) bp_design[size_t(i)] = random.normal();
    for (int i = rp_begin * n_rp; i < samples * n_rp; ++i) rp_design[size_t(i)] = random.normal();
    const std::vector<double> independent(size_t(m), 0.01);
    const xpkern::NoiseTerms noise = {independent.data(), 0.005, 0.001, 0.001, 1e-9, false};
    const xpkern::CalibrationPlan plan(bp_design.data(), n_bp, rp_design.data(), n_rp, m, samples, noise);

    struct Side {
        std::vector<double> coefficients;
        std::vector<float> error, correlation, deviation;
        Side(int n, Random& random)
            : coefficients(random_matrix(stars * n, random)),
              error(size_t(stars * n), 0.1f),
              correlation(size_t(stars * n * (n - 1) / 2)),
              deviation(size_t(stars), 1.0f) {
            for (float& x : correlation) x = static_cast<float>(random.uniform(-0.5, 0.5) / n);
        }
    } bp(n_bp, random), rp(n_rp, random);
    bool has_bp[stars], has_rp[stars];
    for (int star = 0; star < stars; ++star) has_bp[star] = star != 4, has_rp[star] = star != 9;
    const std::vector<double> band_flux(size_t(stars * bands), 2.0), band_error(size_t(stars * bands), 0.1);

    const int64_t size = kernel::calibration_scratch_size(plan.view());
    std::unique_ptr<double, decltype(&std::free)> scratch(
        static_cast<double*>(std::aligned_alloc(64, size_t(size * 8 + 63) / 64 * 64)), &std::free);
    std::vector<float> flux[2], whitener[2];
    for (int split = 0; split < 2; ++split) {
        flux[split].resize(size_t(stars * m));
        whitener[split].resize(size_t(stars * packed));
        std::vector<uint32_t> status(size_t(stars), 99);
        const xpkern::CalibrationRows rows = {
            {bp.coefficients.data(), bp.error.data(), bp.correlation.data(), bp.deviation.data(), has_bp},
            {rp.coefficients.data(), rp.error.data(), rp.correlation.data(), rp.deviation.data(), has_rp},
            band_flux.data(),
            band_error.data(),
            flux[split].data(),
            whitener[split].data(),
            status.data()};
        const int boundary = split == 0 ? 0 : 3;
        kernel::calibrate_rows(plan.view(), rows, 0, boundary, scratch.get());
        kernel::calibrate_rows(plan.view(), rows, boundary, stars, scratch.get());
        for (const uint32_t bits : status) CHECK(bits == 0);
    }
    CHECK(flux[0] == flux[1]);
    CHECK(whitener[0] == whitener[1]);
    for (int star = 0; star < stars; ++star) {
        for (int i = 0; i < samples; ++i) {
            const bool missing = (star == 4 && i < bp_end) || (star == 9 && i >= rp_begin);
            CHECK((flux[0][size_t(star * m + i)] == 0) == missing);
        }
        double variance = 0;  // of the last band
        for (int j = 0; j < m; ++j) {
            const double element = whitener[0][size_t(star * packed + row_start(m - 1) + j)];
            variance += j == m - 1 ? 1 / (element * element) : element * element;
        }
        CHECK_CLOSE(variance, 0.1 * 0.1 + 0.02 * 0.02, 1e-6);
    }
}

template <class Lane>
void test_lane() {
    Random random(20240301);
    for (const int n_left : {1, 2, 5, 6, 14, 26}) {
        for (const int n_right : {1, 3, 4, 7, 18}) test_products<Lane>(n_left, n_right, 5, random);
        for (const int inner : {1, 2, 3, 4, 5, 11}) {
            test_lower_product<Lane, Shape::rectangle>(n_left, n_left % 7, inner, random);
            if (inner <= n_left) test_lower_product<Lane, Shape::lower>(n_left, n_left % 7, inner, random);
        }
    }
    for (const int n : {1, 2, 3, 4, 5, 6, 7, 9, 26}) {
        test_symmetric_product<Lane, Shape::rectangle>(n, 5, random);
        for (const int inner : {n, n - 1, n / 2}) test_symmetric_product<Lane, Shape::lower>(n, inner, random);
    }
    for (const int link : {0, 5, 8, 9}) test_factor<Lane>(9, link, 22, random);
    test_factor<Lane>(1, 0, 2, random);
    test_factor<Lane>(6, 6, 6, random);
    for (const int n : {1, 2, 3, 4, 5, 6, 7, 8, 11, 18})
        for (const int alone : {0, 1, n / 2, n}) test_square<Lane>(n, alone, random);
    test_square_of_blocks<Lane>(9, {3, 4, 8}, random);
    test_square_of_blocks<Lane>(17, {6, 6, 17}, random);
    test_square_of_blocks<Lane>(31, {9, 12, 26}, random);
    test_transpose<Lane>(random);
}

int main() {
    test_lane<double>();
#if defined(__AVX2__) || defined(__aarch64__)
    test_lane<kernel::CalibrationLane>();
#endif
    Random random(20240302);
    for (const int n : {1, 2, 5, 17}) test_eigenvalue_floor(n, random);
    test_calibration(13, 9, 12, 6, 5, random);
    test_calibration(9, 4, 5, 6, 3, random);
    test_calibration(2, 1, 1, 1, 1, random);
    return failures();
}
