// What the numbers of a spectrum must fulfil, whatever file they come from.
//
// Nearly every row is sound, so each array is first run over without a branch; only a bad one is searched for the
// element to name.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>

namespace xpkern::csv {

// Correlations are float32 numbers computed from others: they may exceed 1 by their rounding, not by more.
inline constexpr float max_correlation = 1.0f + 1e-5f;

namespace detail {

inline std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// "element 3, -1.5, <problem>" for the first element that fails.
template <class T, class IsGood>
std::string first_problem(const T* x, std::int64_t n, const char* problem, IsGood is_good) {
    for (std::int64_t i = 0; i < n; ++i) {
        if (is_good(x[i])) continue;
        char number[32];
        std::snprintf(number, sizeof number, "%.6g", static_cast<double>(x[i]));
        return "element " + std::to_string(i + 1) + ", " + number + ", " + problem;
    }
    return {};
}

}  // namespace detail

// What is wrong with n coefficients or fluxes; empty if nothing. `gaps`: NaN says that there is no value.
inline std::string wrong_numbers(const double* x, std::int64_t n, bool gaps) {
    bool good = true;
    for (std::int64_t i = 0; i < n; ++i) good &= x[i] - x[i] == 0.0;
    if (good) return {};
    return detail::first_problem(x, n, "is not a finite number",
                                 [gaps](double v) { return std::isfinite(v) || (gaps && std::isnan(v)); });
}

// The same for n standard errors, which are positive.
inline std::string wrong_errors(const float* x, std::int64_t n, bool gaps) {
    std::uint32_t bad = 0;
    // as integers, the positive finite numbers are 1 ... 0x7f7fffff
    for (std::int64_t i = 0; i < n; ++i) bad |= detail::bits_of(x[i]) - 1 >= 0x7f7fffffu ? 1u : 0u;
    if (bad == 0) return {};
    const auto is_number = [gaps](float v) { return std::isfinite(v) || (gaps && std::isnan(v)); };
    const std::string problem = detail::first_problem(x, n, "is not a finite number", is_number);
    return problem.empty() ? detail::first_problem(x, n, "is not a positive error", [](float v) { return !(v <= 0); })
                           : problem;
}

// The same for n correlations.
inline std::string wrong_correlations(const float* x, std::int64_t n) {
    const std::uint32_t largest = detail::bits_of(max_correlation);
    std::uint32_t bad = 0;
    for (std::int64_t i = 0; i < n; ++i) bad |= (detail::bits_of(x[i]) & 0x7fffffffu) > largest ? 1u : 0u;
    if (bad == 0) return {};
    const std::string problem =
        detail::first_problem(x, n, "is not a finite number", [](float v) { return std::isfinite(v); });
    if (!problem.empty()) return problem;
    return detail::first_problem(x, n, "is no correlation: outside -1 ... 1",
                                 [](float v) { return std::fabs(v) <= max_correlation; });
}

// The first of the arrays of a band that is wrong, 0 coefficients, 1 errors, 2 correlations, and how; -1 if none is.
inline std::pair<int, std::string> wrong_array(const double* coefficients, const float* errors,
                                               const float* correlations, std::int64_t n, std::int64_t n_pairs,
                                               bool gaps) {
    std::string wrong = wrong_numbers(coefficients, n, gaps);
    if (!wrong.empty()) return {0, std::move(wrong)};
    wrong = wrong_errors(errors, n, gaps);
    if (!wrong.empty()) return {1, std::move(wrong)};
    wrong = wrong_correlations(correlations, n_pairs);
    return {wrong.empty() ? -1 : 2, std::move(wrong)};
}

// Whether the arrays of a band hold nothing but NaN, or nothing but 0: how tables whose arrays have one length, and
// what is made of them, leave a band out.
inline bool is_filled_up(const double* coefficients, const float* errors, const float* correlations, std::int64_t n,
                         std::int64_t n_pairs) {
    const auto all = [&](auto is_filling) {
        return std::all_of(coefficients, coefficients + n, is_filling) && std::all_of(errors, errors + n, is_filling) &&
               std::all_of(correlations, correlations + n_pairs, is_filling);
    };
    return all([](auto x) { return std::isnan(x); }) || all([](auto x) { return x == 0; });
}

}  // namespace xpkern::csv
