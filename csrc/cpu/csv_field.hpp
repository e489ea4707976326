// One field of a csv line: an integer, a number, or an array of numbers.
//
// Every reader starts at the first byte of its field and moves `p` behind the last byte that it understood; whether the
// field ends there is for the caller to see. A line end follows the line, so `*p` may be looked at wherever p is. What
// stands between two fields, the separator, is a comma, a tab or a space.
#pragma once

#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <system_error>

#include "cpu/csv_array.hpp"
#include "cpu/csv_number.hpp"

namespace xpkern::csv {

enum class Field { read, empty, wrong };

// The beginning of [p, end) up to the next delimiter, fit for an error message: short, on one line, printable.
inline std::string excerpt(const char* p, const char* end, char separator = ',') {
    constexpr std::ptrdiff_t longest = 24;
    std::string text;
    for (; p < end && *p != separator && std::strchr(",()[]\"", *p) == nullptr; ++p) {
        if (text.size() == longest) return "'" + text + "...'";
        text += *p >= ' ' && *p <= '~' ? *p : '?';
    }
    return "'" + text + "'";
}

inline const char* skip_spaces(const char* p) {
    while (*p == ' ') ++p;
    return p;
}

// End of the field that starts at `p`: the next separator outside quotes or brackets, or the end of the line.
inline const char* end_of_field(const char* p, const char* end, char separator) {
    const char closing = *p == '"' ? '"' : *p == '[' ? ']' : *p == '(' ? ')' : '\0';
    if (p < end && closing != '\0') {
        const void* const found = std::memchr(p + 1, closing, end - (p + 1));
        if (found != nullptr) p = static_cast<const char*>(found) + 1;
    }
    const void* const found = std::memchr(p, separator, end - p);
    return found == nullptr ? end : static_cast<const char*>(found);
}

// Nothing, `null` or `nan`, with or without quotes: there is no value. Moves `p` behind it.
inline bool read_empty(const char*& p, const char* end, char separator) {
    const bool is_quoted = *p == '"';
    const char* q = p + is_quoted;
    if (detail::starts_with_word(q, "null")) {
        q += 4;
    } else if (detail::starts_with_word(q, "nan")) {
        q += 3;
    }
    if (is_quoted && *q++ != '"') return false;
    if (q != end && *q != separator) return false;
    p = q;
    return true;
}

inline Field read_integer(const char*& p, const char* end, char separator, std::int64_t& value, std::string& error) {
    if (read_empty(p, end, separator)) return Field::empty;
    std::int64_t number = 0;
    const auto [behind, status] = std::from_chars(p, end, number);
    // of 5.05e17 the 5 is no number of a source
    if (status != std::errc() || (behind != end && *behind != separator)) {
        error = excerpt(p, end, separator) + " is not a 64-bit integer";
        return Field::wrong;
    }
    value = number;
    p = behind;
    return Field::read;
}

inline Field read_scalar(const char*& p, const char* end, char separator, double& value, std::string& error) {
    if (read_empty(p, end, separator)) return Field::empty;
    const char* const behind = read_number(p, value);
    if (behind == nullptr || !std::isfinite(value)) {
        error = excerpt(p, end, separator) + " is not a finite number";
        return Field::wrong;
    }
    p = behind;
    return Field::read;
}

// A word for a number that is not there; returns its end, or nullptr.
inline const char* read_gap(const char* p, double& value) {
    value = std::numeric_limits<double>::quiet_NaN();
    if (detail::starts_with_word(p, "nan")) return p + 3;
    return detail::starts_with_word(p, "null") ? p + 4 : nullptr;
}

// Reads numbers up to `closing` and moves `p` behind it; the first n of them go to `out`, `found` counts all. What
// read_numbers does for any spelling, and it says what is wrong. Numbers are finite, or missing, which is NaN.
template <class Out>
bool read_unusual_numbers(const char*& p, const char* end, char closing, Out* out, std::int64_t n, std::int64_t& found,
                          std::string& error) {
    p = skip_spaces(p);
    for (found = 0; *p != closing;) {
        double value = 0.0;
        const char* const gap = read_gap(p, value);
        const char* const behind = gap == nullptr ? read_number(p, value) : gap;
        // The negated comparison also catches NaN.
        if (behind == nullptr ||
            (gap == nullptr && !(std::fabs(value) <= static_cast<double>(std::numeric_limits<Out>::max())))) {
            error = "element " + std::to_string(found + 1) + ", " + excerpt(p, end) + ", is not a finite number";
            return false;
        }
        if (found < n) out[found] = static_cast<Out>(value);
        ++found;
        p = skip_spaces(behind);
        if (*p == ',') {
            p = skip_spaces(p + 1);
        } else if (*p != closing) {
            error = "element " + std::to_string(found) + " is followed by " +
                    (p == end ? "the end of the row" : excerpt(p, end));
            return false;
        }
    }
    ++p;
    return true;
}

// Reads an array "[a,b,...]" or "(a, b, ...)" of exactly `n` numbers, each rounded to float64 first and then to `Out`:
// finite, or NaN where one is missing, which is for the caller to judge. No field, `null` and empty brackets are
// Field::empty.
template <class Out>
Field read_array(const char*& p, const char* end, char separator, Out* out, std::int64_t n, std::string& error) {
    if (read_empty(p, end, separator)) return Field::empty;
    const bool is_quoted = *p == '"';
    p += is_quoted;
    if (*p != '[' && *p != '(') {
        error = "expected an array in brackets, found " + excerpt(p, end);
        return Field::wrong;
    }
    const char closing = *p == '[' ? ']' : ')';
    ++p;
    std::int64_t found = n;
    if (!read_numbers(p, end, closing, out, n) && !read_unusual_numbers(p, end, closing, out, n, found, error))
        return Field::wrong;
    if (is_quoted && *p++ != '"') {
        error = "the quote is not closed behind the array";
        return Field::wrong;
    }
    if (found == 0) return Field::empty;
    if (found != n) {
        error = "expected " + std::to_string(n) + " numbers, found " + std::to_string(found);
        return Field::wrong;
    }
    return Field::read;
}

}  // namespace xpkern::csv
