// An array of numbers in its usual spelling, read at the speed of its bytes.
//
// Reading number after number waits for the end of each before the next can start, and guesses how long it is. Here the
// ends are found first, 64 bytes at a time. Each number is then a task of its own, with no branch that depends on its
// length: sixteen bytes up to its end hold all its digits. So eight numbers can be read side by side where vectors are
// wide enough for that; what they cannot read is read alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "cpu/csv_eights.hpp"
#include "cpu/csv_number.hpp"

namespace xpkern::csv {

namespace detail {

// 16 zeros and 16 ones: the bytes from position n on keep the last n of sixteen.
alignas(32) inline constexpr unsigned char keep_last[32] = {
    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,    0,
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

// Text a few bytes at a time. Two ways to the same results.
struct PortableText {
    // Bit i tells whether p[i] is `character`, for 64 bytes.
    static std::uint64_t positions(const char* p, char character) {
        std::uint64_t bits = 0;
        for (int i = 0; i < 8; ++i) {
            std::uint64_t word;
            std::memcpy(&word, p + 8 * i, sizeof word);
            word ^= 0x0101010101010101 * static_cast<unsigned char>(character);
            // the top bit of each byte that is 0, without carries between bytes
            const std::uint64_t low = (word & 0x7f7f7f7f7f7f7f7f) + 0x7f7f7f7f7f7f7f7f;
            const std::uint64_t is_zero = ~(low | word | 0x7f7f7f7f7f7f7f7f);
            bits |= ((is_zero >> 7) * 0x0102040810204080 >> 56) << (8 * i);
        }
        return bits;
    }

    // Value of the last n <= 16 characters before `end`; false if one is no digit. 16 bytes before `end` are read.
    static bool digits_before(const char* end, std::ptrdiff_t n, std::uint64_t& value) {
        std::uint64_t word[2], keep[2];
        std::memcpy(word, end - 16, sizeof word);
        std::memcpy(keep, keep_last + n, sizeof keep);
        word[0] = (word[0] ^ 0x3030303030303030) & keep[0];  // a digit becomes its value
        word[1] = (word[1] ^ 0x3030303030303030) & keep[1];
        const auto not_digits = [](std::uint64_t w) { return ((w & 0x7f7f7f7f7f7f7f7f) + 0x7676767676767676) | w; };
        value = value_of_eight_digits(word[0]) * 100000000 + value_of_eight_digits(word[1]);
        return ((not_digits(word[0]) | not_digits(word[1])) & 0x8080808080808080) == 0;
    }
};

#if defined(__SSE2__)
struct Sse2Text {
    static std::uint64_t positions(const char* p, char character) {
        const __m128i wanted = _mm_set1_epi8(character);
        std::uint64_t bits = 0;
        for (int i = 0; i < 4; ++i) {
            const __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i));
            const auto found = static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(text, wanted)));
            bits |= static_cast<std::uint64_t>(found) << (16 * i);
        }
        return bits;
    }

    static bool digits_before(const char* end, std::ptrdiff_t n, std::uint64_t& value) {
        const __m128i keep = _mm_loadu_si128(reinterpret_cast<const __m128i*>(keep_last + n));
        __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(end - 16));
        x = _mm_and_si128(_mm_xor_si128(x, _mm_set1_epi8('0')), keep);
        const __m128i is_digit = _mm_cmpeq_epi8(_mm_max_epu8(x, _mm_set1_epi8(9)), _mm_set1_epi8(9));
        // neighbours are joined to numbers of two, four and eight digits; the first of two is the higher one
        x = _mm_add_epi16(_mm_mullo_epi16(_mm_and_si128(x, _mm_set1_epi16(0xff)), _mm_set1_epi16(10)),
                          _mm_srli_epi16(x, 8));
        x = _mm_madd_epi16(x, _mm_set1_epi32(100 | 1 << 16));
        x = _mm_madd_epi16(_mm_packs_epi32(x, x), _mm_set1_epi32(10000 | 1 << 16));
        const auto halves = static_cast<std::uint64_t>(_mm_cvtsi128_si64(x));
        value = (halves & 0xffffffff) * 100000000 + (halves >> 32);
        return _mm_movemask_epi8(is_digit) == 0xffff;
    }
};
using Text = Sse2Text;
#else
using Text = PortableText;
#endif

inline constexpr double reciprocal_power_of_ten[] = {1e0,   1e-1,  1e-2,  1e-3,  1e-4,  1e-5,  1e-6,  1e-7,
                                                     1e-8,  1e-9,  1e-10, 1e-11, 1e-12, 1e-13, 1e-14, 1e-15,
                                                     1e-16, 1e-17, 1e-18, 1e-19, 1e-20, 1e-21, 1e-22};

inline constexpr std::uint64_t power_of_ten_64(int n) {
    std::uint64_t power = 1;
    for (; n > 0; --n) power *= 10;
    return power;
}

// What a digit before the point is worth, for up to 14 digits behind it.
inline constexpr std::uint64_t power_of_first_digit[] = {
    power_of_ten_64(0),  power_of_ten_64(1),  power_of_ten_64(2),  power_of_ten_64(3),  power_of_ten_64(4),
    power_of_ten_64(5),  power_of_ten_64(6),  power_of_ten_64(7),  power_of_ten_64(8),  power_of_ten_64(9),
    power_of_ten_64(10), power_of_ten_64(11), power_of_ten_64(12), power_of_ten_64(13), power_of_ten_64(14)};

// m / 10^k for m < 10^15 and k <= 22, rounded to float64.
inline double quotient(std::uint64_t m, std::ptrdiff_t k) {
    return static_cast<double>(static_cast<std::int64_t>(m)) / power_of_ten[k];
}

// As float64, and that as float32. A product takes a fraction of the quotient's time; see float32_tie.
inline void round_quotient(std::uint64_t m, std::ptrdiff_t k, float& value) {
    double near = static_cast<double>(static_cast<std::int64_t>(m)) * reciprocal_power_of_ten[k];
    std::uint64_t bits;
    std::memcpy(&bits, &near, sizeof bits);
    constexpr std::uint64_t tie = float32_tie, margin = tie_margin;
    if ((bits - tie + margin) % (2 * tie) <= 2 * margin) near = quotient(m, k);
    value = static_cast<float>(near);
}

// Sets the sign of a number >= 0 by its bit: half of all numbers are negative, in no order that a predictor of branches
// could learn.
inline void set_sign(float& value, bool negative) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    bits |= static_cast<std::uint32_t>(negative) << 31;
    std::memcpy(&value, &bits, sizeof value);
}

// The number that is [begin, end) if it is one digit, a point and 1 to 14 digits, with a sign or none, divided by
// 10^exponent, 0 <= exponent < 10: most errors and correlations are. 16 bytes before `end` are read. The value is that
// of read_number.
template <class Text>
inline bool read_short_number(const char* begin, const char* end, std::ptrdiff_t exponent, float& value) {
    const bool negative = *begin == '-';
    const char* const digit = begin + negative;
    const std::uint64_t first = static_cast<unsigned char>(*digit) - static_cast<std::uint64_t>('0');
    const std::ptrdiff_t n = end - digit - 2;
    std::uint64_t mantissa;
    if (first > 9 || digit[1] != '.' || n < 1 || n > 14 || !Text::digits_before(end, n, mantissa)) return false;
    if (n + exponent > max_exact_power_of_ten) return false;
    round_quotient(mantissa + first * power_of_first_digit[n], n + exponent, value);
    set_sign(value, negative);
    return true;
}

// The same for "<number>E-<digit>", as Java prints what is below 0.001.
template <class Text>
inline bool read_short_number_with_exponent(const char* begin, const char* end, float& value) {
    const unsigned exponent = static_cast<unsigned char>(end[-1]) - static_cast<unsigned>('0');
    return exponent <= 9 && end[-2] == '-' && end[-3] == 'E' &&
           read_short_number<Text>(begin, end - 3, static_cast<std::ptrdiff_t>(exponent), value);
}

}  // namespace detail

// How a wider instruction set reads eight numbers at once, if this machine has one: set where the module is loaded.
inline ReadEights* eights = nullptr;

namespace detail {

// Where `wanted` stands in text[0, size), in order; returns how often. 63 bytes behind may be read.
template <class Text>
inline int find(const char* text, std::ptrdiff_t size, char wanted, std::int32_t* places) {
    int found = 0;
    for (std::ptrdiff_t at = 0; at < size; at += 64) {
        std::uint64_t bits = Text::positions(text + at, wanted);
        if (size - at < 64) bits &= (std::uint64_t{1} << (size - at)) - 1;
        for (; bits != 0; bits &= bits - 1) places[found++] = static_cast<std::int32_t>(at + __builtin_ctzll(bits));
    }
    return found;
}

// Reads the number [number, stop), short or not, of an array that starts at `begin`; false if there is none.
template <class Text, class Out>
inline bool read_one(const char* begin, const char* number, const char* stop, Out& out) {
    double value;
    if constexpr (std::is_same_v<Out, float>) {
        // the bytes that a short number is read with begin before the first of them
        if (stop - begin >= 19 &&
            (read_short_number<Text>(number, stop, 0, out) || read_short_number_with_exponent<Text>(number, stop, out)))
            return true;
        if (read_number(number + (*number == ' '), value) != stop) return false;
    } else {
        // most numbers of float64 have 16 or 17 digits: no short ones
        if (read_general_number(number + (*number == ' '), value) != stop) return false;
    }
    // the negated comparison also catches NaN
    if (!(std::fabs(value) <= static_cast<double>(std::numeric_limits<Out>::max()))) return false;
    out = static_cast<Out>(value);
    return true;
}

}  // namespace detail

// Reads the n numbers "a,b,...<closing>" at `p` and moves it behind `closing`, or leaves it and returns false: then the
// text is unusual or wrong, and read_array sees which. Numbers are finite and rounded to float64, then to Out; `out`
// may be written even where the answer is false. `slack` bytes behind `end`, the end of the line, must be readable.
template <class Out, class Text = detail::Text>
bool read_numbers(const char*& p, const char* end, char closing, Out* out, std::int64_t n) {
    constexpr int block_size = 2048;
    const char* const begin = p;
    const char* const close =
        static_cast<const char*>(std::memchr(begin, closing, static_cast<std::size_t>(end - begin)));
    if (close == nullptr) return false;
    // ends of numbers, from `block`, behind the end of the last one before
    std::int32_t before_and_stops[1 + block_size + 1];
    std::int32_t* const stops = before_and_stops + 1;
    stops[-1] = -1;
    std::int64_t found = 0;
    for (const char* block = begin; block <= close; block += block_size) {
        const std::ptrdiff_t size = std::min<std::ptrdiff_t>(block_size, close - block);
        int count = detail::find<Text>(block, size, ',', stops);
        if (size < block_size) stops[count++] = static_cast<std::int32_t>(size);
        if (found + count > n) return false;
        const auto read_one = [&](int i) {
            return detail::read_one<Text>(begin, block + stops[i - 1] + 1, block + stops[i], out[found + i]);
        };
        int i = 0;
        if constexpr (std::is_same_v<Out, float>) {
            if (eights != nullptr) {
                for (; i < count && block + stops[i - 1] - begin < 20; ++i)
                    if (!read_one(i)) return false;
                std::uint8_t unread[block_size / 8];
                const int groups = (count - i) / 8;
                eights(block, stops + i, groups, out + found + i, unread);
                for (int group = 0; group < groups; ++group)
                    for (unsigned bits = unread[group]; bits != 0; bits &= bits - 1)
                        if (!read_one(i + 8 * group + __builtin_ctz(bits))) return false;
                i += 8 * groups;
            }
        }
        for (; i < count; ++i)
            if (!read_one(i)) return false;
        found += count;
        stops[-1] = (count > 0 ? stops[count - 1] : stops[-1]) - block_size;
    }
    if (found != n) return false;
    p = close + 1;
    return true;
}

}  // namespace xpkern::csv
