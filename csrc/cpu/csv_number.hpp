// Decimal text to float64, exact to the last bit: the same number as Python's float().
//
// A decimal number is m * 10^-k with an integer m. Nearly every number of an XP file has m < 2^64 and 0 <= k <= 27,
// and three exact routes cover those:
//
//   m <= 2^53, -22 <= k    m and 10^-k are both float64, so one IEEE multiplication rounds once (Clinger 1990), and
//                          up to k = 22 one division;
//   m <  2^64, k <= 27     m / 10^k = (m / 5^k) 2^-k, where 5^k < 2^63. The quotient to 62 bits and whether a
//                          remainder is left determine the rounding of a float64 (53 bits) completely. A product with
//                          a rounded reciprocal is that near to the quotient that it nearly always tells as much.
//
// Everything else goes to std::from_chars, which is exact but several times slower.
#pragma once

#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <system_error>

namespace xpkern::csv {

// Text is read up to 64 bytes at a time, so this many bytes behind it must be readable (their values do not matter).
inline constexpr std::size_t slack = 64;

namespace detail {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "eight digits are read as a little-endian word");

inline constexpr std::uint64_t power_of_ten_integer[] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000, 100000000};

inline constexpr double power_of_ten[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                          1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
inline constexpr int max_exact_power_of_ten = 22;
inline constexpr std::uint64_t max_exact_integer = std::uint64_t{1} << 53;

// m stays exact in 64 bits for this many digits.
inline constexpr int max_digits = 19;

inline constexpr int max_power_of_five = 27;

struct PowersOfFive {
    std::uint64_t value[max_power_of_five + 1] = {};
    constexpr PowersOfFive() {
        std::uint64_t power = 1;
        for (int k = 0; k <= max_power_of_five; ++k, power *= 5) value[k] = power;
    }
};
inline constexpr PowersOfFive power_of_five;

// 2^127 / 5^k, with 5^k normalised to [2^63, 2^64), rounded down.
struct ReciprocalsOfFive {
    std::uint64_t value[max_power_of_five + 1] = {};
    constexpr ReciprocalsOfFive() {
        __extension__ using Wide = unsigned __int128;
        value[0] = ~std::uint64_t{0};  // 2^64, less the one that does not fit
        for (int k = 1; k <= max_power_of_five; ++k)
            value[k] = static_cast<std::uint64_t>((Wide{1} << 127) /
                                                  (power_of_five.value[k] << __builtin_clzll(power_of_five.value[k])));
    }
};
inline constexpr ReciprocalsOfFive reciprocal_of_five;

// Value of eight digits in a little-endian word, each already reduced to 0...9: pairs, then fours, then all eight.
inline std::uint64_t value_of_eight_digits(std::uint64_t word) {
    word = word * 10 + (word >> 8);
    return ((word & 0x000000FF000000FF) * 0x000F424000000064 +
            ((word >> 16) & 0x000000FF000000FF) * 0x0000271000000001) >>
           32;
}

// Appends the run of digits at `p` to `mantissa` (modulo 2^64) and returns its end.
inline const char* read_digits(const char* p, std::uint64_t& mantissa) {
    for (;;) {
        std::uint64_t word;
        std::memcpy(&word, p, sizeof word);
        word ^= 0x3030303030303030;  // a digit becomes its value, anything else is at least 10
        // The top bit of the first byte that is no digit is set; a carry can only spoil the bytes behind it.
        const std::uint64_t not_digit = ((word + 0x7676767676767676) | word) & 0x8080808080808080;
        if (not_digit != 0) {
            const int n = __builtin_ctzll(not_digit) >> 3;
            if (n == 0) return p;
            word <<= 8 * (8 - n);  // n digits with zeros in front of them
            mantissa = mantissa * power_of_ten_integer[n] + value_of_eight_digits(word);
            return p + n;
        }
        mantissa = mantissa * power_of_ten_integer[8] + value_of_eight_digits(word);
        p += 8;
    }
}

// m / 10^k for m > 0 and 0 <= k <= max_power_of_five, rounded once.
inline double divide_by_power_of_ten(std::uint64_t m, int k) {
    __extension__ using Wide = unsigned __int128;
    const std::uint64_t divisor = power_of_five.value[k];
    const int shift_m = __builtin_clzll(m), shift_divisor = __builtin_clzll(divisor);
    // Both normalised to [2^63, 2^64): the quotient lies in (2^61, 2^63) and the division cannot overflow.
    const std::uint64_t normalised_m = m << shift_m;
    // The true quotient is in [quotient, quotient + 2): by the rounded reciprocal less than 1/2 is lost, and less than
    // 1 by leaving bits away.
    auto quotient = static_cast<std::uint64_t>((static_cast<Wide>(normalised_m) * reciprocal_of_five.value[k]) >> 65);
    bool inexact = true;
    // A float64 keeps all but the last 9 or 10 bits, so what it rounds to changes at multiples of 2^8. Where one is
    // that near (by chance, or since the number has few digits), a division decides.
    constexpr std::uint64_t unit = 1 << 8;
    if ((quotient + 2) % unit <= 2) {
        if (m <= max_exact_integer && k <= max_exact_power_of_ten)
            return static_cast<double>(static_cast<std::int64_t>(m)) / power_of_ten[k];
        const Wide numerator = static_cast<Wide>(normalised_m) << 62;
        const std::uint64_t normalised = divisor << shift_divisor;
        quotient = static_cast<std::uint64_t>(numerator / normalised);
        inexact = static_cast<Wide>(quotient) * normalised != numerator;
    }
    // A remainder is recorded in the lowest bit, far below the rounding position: the conversion rounds correctly.
    const double rounded = static_cast<double>(static_cast<std::int64_t>(quotient | (inexact ? 1 : 0)));
    // |exponent| < 200: 2^exponent is a normal number and the product exact.
    const int exponent = shift_divisor - shift_m - 62 - k;
    const std::uint64_t bits = static_cast<std::uint64_t>(exponent + 1023) << 52;
    double scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return rounded * scale;
}

// The general case: [begin, end) is an unsigned decimal number with `n_integer` digits before the point.
inline double convert_slowly(const char* begin, const char* end, std::int64_t n_integer, std::int64_t exponent) {
    double value = 0.0;
    if (std::from_chars(begin, end, value).ec == std::errc::result_out_of_range) {
        // Beyond the range of float64 on which side? The decimal exponent of the first digit that is not 0 tells.
        std::int64_t magnitude = exponent + n_integer;
        for (const char* p = begin; *p == '0' || *p == '.'; ++p) magnitude -= *p == '0';
        value = magnitude > 0 ? std::numeric_limits<double>::infinity() : 0.0;
    }
    return value;
}

// Case-insensitive comparison with a lower-case word.
inline bool starts_with_word(const char* p, const char* word) {
    for (; *word != '\0'; ++p, ++word)
        if ((*p | 0x20) != *word) return false;
    return true;
}

// What read_number does, without its shortcut.
__attribute__((noinline)) inline const char* read_general_number(const char* p, double& value) {
    const bool negative = *p == '-';
    if (*p == '-' || *p == '+') ++p;
    const char* const begin = p;
    std::uint64_t mantissa = 0;
    p = read_digits(p, mantissa);
    const std::int64_t n_integer = p - begin;
    std::int64_t n_digits = mantissa == 0 && n_integer <= max_digits ? 0 : n_integer;  // zeros in front do not count
    std::int64_t n_fraction = 0;
    if (*p == '.') {
        const char* const fraction = p + 1;
        p = read_digits(fraction, mantissa);
        n_fraction = p - fraction;
        n_digits += n_fraction;
    }
    if (n_integer + n_fraction == 0) {
        const bool is_nan = starts_with_word(begin, "nan");
        if (!is_nan && !starts_with_word(begin, "inf")) return nullptr;
        value = is_nan ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
        if (negative) value = -value;
        return begin + (starts_with_word(begin, "infinity") ? 8 : 3);
    }

    std::int64_t exponent = 0;
    if ((*p | 0x20) == 'e') {
        const char* digits = p + 1;
        const bool negative_exponent = *digits == '-';
        if (*digits == '-' || *digits == '+') ++digits;
        for (p = digits; *p >= '0' && *p <= '9'; ++p)
            if (exponent < 1000000) exponent = exponent * 10 + (*p - '0');  // beyond that, all is 0 or infinite
        if (p == digits) return nullptr;
        if (negative_exponent) exponent = -exponent;
    }

    const std::int64_t k = n_fraction - exponent;
    double magnitude;
    if (n_digits > max_digits) {
        magnitude = convert_slowly(begin, p, n_integer, exponent);
    } else if (mantissa == 0) {
        magnitude = 0.0;
    } else if (k >= 0 && k <= max_power_of_five) {
        magnitude = divide_by_power_of_ten(mantissa, static_cast<int>(k));
    } else if (mantissa <= max_exact_integer && k < 0 && k >= -max_exact_power_of_ten) {
        magnitude = static_cast<double>(mantissa) * power_of_ten[-k];
    } else {
        magnitude = convert_slowly(begin, p, n_integer, exponent);
    }
    value = negative ? -magnitude : magnitude;
    return p;
}

}  // namespace detail

// Reads one number at `p` and returns its end, or nullptr if there is none. The text must be followed by a byte that
// cannot belong to a number (a line end will do) and by `slack` readable bytes.
//
// Grammar: [+-] (digits [. [digits]] | . digits) [(e|E) [+-] digits], or nan, inf, infinity in any case.
inline const char* read_number(const char* p, double& value) {
    using namespace detail;
    // The shortcut: one digit, a point, digits and no exponent, as in most errors and correlations.
    const char* const begin = p;
    const bool negative = *p == '-';
    p += negative;  // no branch: half of all numbers are negative, in no order that a predictor could learn
    std::uint64_t mantissa = static_cast<unsigned char>(*p) - static_cast<std::uint64_t>('0');
    if (mantissa > 9 || p[1] != '.') return read_general_number(begin, value);
    const char* const fraction = p + 2;
    p = read_digits(fraction, mantissa);
    const std::int64_t n_fraction = p - fraction;
    // 16 digits may exceed 2^53: such a mantissa would be rounded once here and once more by the division.
    if (n_fraction > 15 || mantissa > max_exact_integer || (*p | 0x20) == 'e') return read_general_number(begin, value);
    const double magnitude = static_cast<double>(static_cast<std::int64_t>(mantissa)) / power_of_ten[n_fraction];
    value = std::copysign(magnitude, negative ? -1.0 : 1.0);
    return p;
}

}  // namespace xpkern::csv
