// A test framework in a page. CHECK and CHECK_CLOSE print where and what failed; main returns failures().
#pragma once

#include <cmath>
#include <cstdio>

inline int& failures() {
    static int count = 0;
    return count;
}

#define CHECK(condition)                                                       \
    do {                                                                       \
        if (!(condition)) {                                                    \
            ++failures();                                                      \
            std::printf("%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition); \
        }                                                                      \
    } while (0)

#define CHECK_CLOSE(value, expected, tolerance)                                                                \
    do {                                                                                                       \
        const double value_ = (value), expected_ = (expected);                                                 \
        if (!(std::fabs(value_ - expected_) <= (tolerance))) {                                                 \
            ++failures();                                                                                      \
            std::printf("%s:%d: %s = %.17g, expected %.17g within %.3g\n", __FILE__, __LINE__, #value, value_, \
                        expected_, static_cast<double>(tolerance));                                            \
        }                                                                                                      \
    } while (0)

// A small generator of reproducible numbers (splitmix64).
struct Random {
    unsigned long long state;
    explicit Random(unsigned long long seed) : state(seed) {}
    unsigned long long bits() {
        unsigned long long z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    double uniform(double lower = 0, double upper = 1) {
        return lower + (upper - lower) * static_cast<double>(bits() >> 11) * 0x1p-53;
    }
    double normal() { return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform()); }
};
