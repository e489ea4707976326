// exp, log and tanh of every lane against long double, in units in the last place; the lanes' small operations.
#include "core/math.hpp"
#include "check.hpp"
#include "cpu/pack.hpp"

#include <initializer_list>
#include <limits>

namespace kernel = xpkern::XPKERN_ISA;

// Distance of a result from the truth, in units in the last place of the truth rounded to the result's type.
template <class Element>
double ulps(Element result, long double truth) {
    const Element rounded = static_cast<Element>(truth);
    const Element next = std::nextafter(std::fabs(rounded), std::numeric_limits<Element>::infinity());
    return static_cast<double>(std::fabs(result - truth) / (next - std::fabs(rounded)));
}

template <class Lane>
struct Batch {
    using Element = kernel::Scalar<Lane>;
    static constexpr int width = kernel::LaneTraits<Lane>::width;
    Element x[width];
    Lane lane() const { return kernel::load<Lane>(x); }
};

// The largest error of `function` over random arguments in [lower, upper], its logarithm uniform where asked.
template <class Lane, class Function, class Truth>
double worst(Function function, Truth truth, double lower, double upper, bool logarithmic = false) {
    using Element = kernel::Scalar<Lane>;
    Random random(20240229);
    double largest = 0;
    for (int repeat = 0; repeat < 20000; repeat += Batch<Lane>::width) {
        Batch<Lane> batch;
        for (auto& x : batch.x) {
            const double u = random.uniform();
            x = static_cast<Element>(logarithmic ? std::pow(lower, 1 - u) * std::pow(upper, u)
                                                 : lower + (upper - lower) * u);
        }
        const Lane result = function(batch.lane());
        for (int star = 0; star < Batch<Lane>::width; ++star) {
            const double error =
                ulps<Element>(kernel::get(result, star), truth(static_cast<long double>(batch.x[star])));
            if (std::isnan(error)) return error;
            largest = error > largest ? error : largest;
        }
    }
    return largest;
}

template <class Lane>
void test_accuracy(const char* name) {
    using Element = kernel::Scalar<Lane>;
    constexpr bool single = sizeof(Element) == 4;
    const auto exp_lane = [](const Lane& x) { return kernel::exp(x); };
    const auto log_lane = [](const Lane& x) { return kernel::log(x); };
    const auto tanh_lane = [](const Lane& x) { return kernel::tanh(x); };
    const auto exp_truth = [](long double x) { return std::exp(x); };
    const auto log_truth = [](long double x) { return std::log(x); };
    const auto tanh_truth = [](long double x) { return std::tanh(x); };

    const double exp_error = worst<Lane>(exp_lane, exp_truth, single ? -86 : -707, single ? 88 : 709);
    const double exp_near_zero = worst<Lane>(exp_lane, exp_truth, -0.5, 0.5);
    const double log_error = worst<Lane>(log_lane, log_truth, single ? 1e-37 : 1e-300, single ? 1e38 : 1e300, true);
    const double log_near_one = worst<Lane>(log_lane, log_truth, 0.5, 2);
    const double tanh_error = worst<Lane>(tanh_lane, tanh_truth, -10, 10);
    const double tanh_small = worst<Lane>(tanh_lane, tanh_truth, 1e-12, 1, true);
    // Ends of the range whose reciprocals are normal numbers too.
    const double least = single ? 1e-37 : 1e-300, most = single ? 1e37 : 1e300;
    const Element third = Element(1) / Element(3);
    const double quotient_error = worst<Lane>([&](const Lane& x) { return kernel::quotient(Lane(third), x); },
                                              [&](long double x) { return third / x; }, least, most, true);
    const double root_error = worst<Lane>([](const Lane& x) { return kernel::inverse_root(x); },
                                          [](long double x) { return 1 / std::sqrt(x); }, least, most, true);
    std::printf(
        "%-14s largest error in ulp: exp %.2f, near 0 %.2f; log %.2f, near 1 %.2f; tanh %.2f, small %.2f; "
        "quotient %.3f, root %.3f\n",
        name, exp_error, exp_near_zero, log_error, log_near_one, tanh_error, tanh_small, quotient_error, root_error);
    CHECK(exp_error <= 2);
    CHECK(exp_near_zero <= 2);
    CHECK(log_error <= 2);
    CHECK(log_near_one <= 2);
    CHECK(tanh_error <= 3);
    CHECK(tanh_small <= 3);
    CHECK(quotient_error <= 0.501);  // as if rounded
    CHECK(root_error <= 2);
}

template <class Lane>
void test_special_values() {
    using Element = kernel::Scalar<Lane>;
    const Element infinity = std::numeric_limits<Element>::infinity();
    const auto first = [](const Lane& lane) { return kernel::get(lane, 0); };
    CHECK(first(kernel::exp(Lane(Element(0)))) == 1);
    CHECK(first(kernel::exp(Lane(-infinity))) == 0);
    CHECK(first(kernel::exp(Lane(infinity))) == infinity);
    CHECK(first(kernel::tanh(Lane(infinity))) == 1);
    CHECK(first(kernel::tanh(Lane(-infinity))) == -1);
    CHECK(first(kernel::tanh(Lane(Element(0)))) == 0);
    CHECK(first(kernel::log(Lane(Element(1)))) == 0);
    const Element nan = std::numeric_limits<Element>::quiet_NaN();
    CHECK(std::isnan(first(kernel::tanh(Lane(nan)))));
    CHECK(std::isnan(first(kernel::exp(Lane(nan)))));
}

template <class Lane>
void test_operations() {
    using Element = kernel::Scalar<Lane>;
    constexpr int width = Batch<Lane>::width;
    Random random(7);
    Batch<Lane> a, b, c, result;
    for (int star = 0; star < width; ++star) {
        a.x[star] = static_cast<Element>(random.normal());
        b.x[star] = static_cast<Element>(random.normal());
        c.x[star] = static_cast<Element>(random.normal());
    }
    const Lane x = a.lane(), y = b.lane(), z = c.lane();
    const auto smaller = x < y;
    for (int star = 0; star < width; ++star) {
        const Element p = a.x[star], q = b.x[star], r = c.x[star];
        CHECK(kernel::get(kernel::min(x, y), star) == (p < q ? p : q));
        CHECK(kernel::get(kernel::max(x, y), star) == (p > q ? p : q));
        CHECK(kernel::get(kernel::abs(x), star) == std::fabs(p));
        CHECK(kernel::get(kernel::select(smaller, x, z), star) == (p < q ? p : r));
        CHECK(kernel::get(kernel::sqrt(x * x), star) == std::sqrt(p * p));
        CHECK_CLOSE(kernel::get(kernel::fma(x, y, z), star), double(p) * q + r, sizeof(Element) == 4 ? 2e-6 : 4e-15);
    }
    kernel::store<Lane>(result.x, x);
    for (int star = 0; star < width; ++star) CHECK(result.x[star] == a.x[star]);
    CHECK(kernel::all(x == x));
    CHECK(!kernel::any(x < x));
    // One differing star makes any() true and all() false, whichever it is.
    for (int star = 0; star < width; ++star) {
        Batch<Lane> other = a;
        other.x[star] += 1;
        CHECK(kernel::any(other.lane() > x));
        CHECK(!kernel::all(other.lane() == x));
    }
}

// Taken together or one by one, the same bits.
template <class Lane>
void test_all_of_them() {
    for (const int count : {0, 1, 3, 4, 9}) {
        Random random(count);
        Lane x[9], exponential[9], tangent[9];
        for (int i = 0; i < count; ++i) {
            Batch<Lane> batch;
            for (auto& element : batch.x) element = static_cast<typename Batch<Lane>::Element>(3 * random.normal());
            x[i] = exponential[i] = tangent[i] = batch.lane();
        }
        kernel::exp_of_all(exponential, count);
        kernel::tanh_of_all(tangent, count);
        for (int i = 0; i < count; ++i) {
            CHECK(kernel::all(exponential[i] == kernel::exp(x[i])));
            CHECK(kernel::all(tangent[i] == kernel::tanh(x[i])));
        }
    }
}

template <class Float, class Double>
void test_conversion() {
    constexpr int width = Batch<Float>::width;
    Random random(11);
    Batch<Double> wide, back;
    for (auto& x : wide.x) x = random.normal();
    const Float narrow = kernel::convert<Float>(wide.lane());
    kernel::store<Double>(back.x, kernel::convert<Double>(narrow));
    for (int star = 0; star < width; ++star) {
        CHECK(kernel::get(narrow, star) == static_cast<float>(wide.x[star]));
        CHECK(back.x[star] == static_cast<double>(static_cast<float>(wide.x[star])));
    }
    const auto mask = kernel::convert_mask<Float>(wide.lane() > Double(0.0));
    const Float chosen = kernel::select(mask, Float(1.0f), Float(2.0f));
    for (int star = 0; star < width; ++star) CHECK(kernel::get(chosen, star) == (wide.x[star] > 0 ? 1.0f : 2.0f));
}

template <class Lane>
void test_lane(const char* name) {
    test_accuracy<Lane>(name);
    test_special_values<Lane>();
    test_operations<Lane>();
    test_all_of_them<Lane>();
}

int main() {
    test_lane<float>("float");
    test_lane<double>("double");
    test_conversion<float, double>();
    constexpr int width = kernel::FLOAT_WIDTH;
    test_lane<kernel::Pack<float, width>>("Pack<float>");
    test_lane<kernel::Pack<double, width>>("Pack<double>");
    test_conversion<kernel::Pack<float, width>, kernel::Pack<double, width>>();
    return failures();
}
