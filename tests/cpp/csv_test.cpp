// The csv reader under the sanitizers: numbers against strtod, and damaged rows in buffers that end where the text
// does.
#include "check.hpp"
#include "cpu/csv_rows.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(__AVX512BW__)
#include "cpu/isa_avx512_csv.cpp"
#endif

using namespace xpkern::csv;

// A buffer of its own for each text, so that reading one byte too far is an error the sanitizer sees.
static std::vector<char> buffer_of(const std::string& text, Random& random) {
    std::vector<char> buffer(text.begin(), text.end());
    for (std::size_t i = 0; i < slack; ++i) buffer.push_back("0123456789e.]\",-"[random.bits() % 16]);
    return buffer;
}

static void test_numbers() {
    Random random(11);
    for (int repeat = 0; repeat < 200000; ++repeat) {
        std::string text;
        for (std::size_t n = 1 + random.bits() % 20; n > 0; --n) text += static_cast<char>('0' + random.bits() % 10);
        if (random.bits() % 4) text.insert(random.bits() % text.size(), ".");
        if (random.bits() % 2) text.insert(0, "-");
        if (random.bits() % 4 == 0) text += "E" + std::to_string(static_cast<int>(random.bits() % 80) - 40);
        const std::vector<char> buffer = buffer_of(text + "\n", random);
        double value = 0;
        const char* const end = read_number(buffer.data(), value);
        CHECK(end == buffer.data() + text.size());
        CHECK(value == std::strtod(text.c_str(), nullptr));
    }
}

// A number in any spelling that float() knows, most of them like those of a bulk file.
static std::string some_number(Random& random) {
    const auto digits = [&](std::size_t n) {
        std::string text;
        for (; n > 0; --n) text += static_cast<char>('0' + random.bits() % 10);
        return text;
    };
    const std::string sign = random.bits() % 2 ? "-" : "";
    switch (random.bits() % 16) {
        case 0:
        case 1:
            return sign + digits(1) + "." + digits(1 + random.bits() % 12) + "E-" + digits(1 + random.bits() % 10 / 9);
        case 2:
            return sign + digits(1 + random.bits() % 4) + "." + digits(1 + random.bits() % 20);
        case 3:
            return sign + digits(1 + random.bits() % 3);
        case 4:  // the point at either end, zeros in front, no more digits than stand before the point
            return sign + (random.bits() % 2 ? digits(1) + "." : "." + digits(1 + random.bits() % 9));
        case 5:
            return sign + "00" + digits(random.bits() % 3) + "." + digits(random.bits() % 9);
        case 6:
            return "+" + digits(1) + "." + digits(1 + random.bits() % 9) + (random.bits() % 2 ? "" : "e+1");
        case 7:
            return sign + digits(1) + "." + digits(1 + random.bits() % 9) + "E" + digits(1);
        default:
            return sign + digits(1) + "." + digits(1 + random.bits() % 15);
    }
}

template <class Out, class Text>
static void check_array(const std::string& text, const std::vector<std::string>& numbers, Random& random) {
    const std::vector<char> buffer = buffer_of(text + "\n", random);
    const auto n = static_cast<std::int64_t>(numbers.size());
    std::vector<Out> out(numbers.size() + 1, Out{-7});
    const char* p = buffer.data();
    const char* const end = buffer.data() + text.size();
    const bool is_read = read_numbers<Out, Text>(p, end, ']', out.data(), n);
    CHECK(is_read == (n > 0));
    CHECK(p == buffer.data() + (is_read ? text.find(']') + 1 : 0));
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        const auto expected = static_cast<Out>(std::strtod(numbers[i].c_str(), nullptr));
        CHECK(std::memcmp(&out[i], &expected, sizeof expected) == 0);
    }
    CHECK(out[numbers.size()] == Out{-7});
    for (const std::int64_t wrong : {n - 1, n + 1}) {
        p = buffer.data();
        CHECK(wrong < 0 || (!read_numbers<Out, Text>(p, end, ']', out.data(), wrong) && p == buffer.data()));
    }
}

template <class Text>
static void test_arrays() {
    Random random(14);
    for (int repeat = 0; repeat < 3000; ++repeat) {
        std::vector<std::string> numbers;
        std::string text;
        for (std::size_t n = random.bits() % (repeat % 10 ? 12 : 300); n > 0; --n) {
            numbers.push_back(some_number(random));
            text += (text.empty() ? "" : random.bits() % 20 ? "," : ", ") + numbers.back();
        }
        text += std::string("]") + (random.bits() % 2 ? "\",\"[1.5,2.5]" : "");
        check_array<float, Text>(text, numbers, random);
        check_array<double, Text>(text, numbers, random);
    }
}

// Decimals as near as they come to the middle between two float32: on some of them the product with a rounded power of
// ten falls on the wrong side (with 13 digits: that power is a quarter of a unit off).
template <class Text>
static void test_ties_of_float32() {
    Random random(15);
    std::vector<std::string> numbers;
    std::string text;
    for (int repeat = 0; repeat < 100000; ++repeat) {
        const float low = std::ldexp(1.0f + static_cast<float>(random.bits() % (1 << 23)) * 0x1p-23f,
                                     static_cast<int>(random.bits() % 33) - 30);
        const double middle = 0.5 * (static_cast<double>(low) + static_cast<double>(std::nextafter(low, 100.0f)));
        for (const int digits : {13, 14}) {
            char number[40];
            std::snprintf(number, sizeof number, middle < 1e-3 ? "%.*e" : "%.*f", digits, middle);
            numbers.push_back(number);
            const std::size_t e = numbers.back().find("e-0");  // as Java prints it: E-7
            if (e != std::string::npos) numbers.back().replace(e, 3, "E-");
            text += (text.empty() ? "" : ",") + numbers.back();
        }
    }
    check_array<float, Text>(text + "]", numbers, random);
}

// One number among sound ones is damaged: the array is read as one number after the other is, or not at all.
template <class Text>
static void test_damaged_arrays() {
    Random random(17);
    int n_read = 0;
    for (int repeat = 0; repeat < 20000; ++repeat) {
        std::string text;
        for (int i = 0; i < 24; ++i) {
            std::string number = some_number(random);
            if (random.bits() % 24 == 0)
                number[random.bits() % number.size()] = "0123456789.-+eE/:,\0\xb0"[random.bits() % 20];
            text += (i ? "," : "") + number;
        }
        text += "]";
        const std::vector<char> buffer = buffer_of(text + "\n", random);
        const char* const end = buffer.data() + text.size();
        const char *fast_end = buffer.data(), *slow_end = buffer.data();
        float fast[24], slow[24];
        std::int64_t found = 0;
        std::string error;
        if (!read_numbers<float, Text>(fast_end, end, ']', fast, 24)) continue;
        ++n_read;
        CHECK(read_unusual_numbers(slow_end, end, ']', slow, 24, found, error) && found == 24);
        CHECK(fast_end == slow_end && std::memcmp(fast, slow, sizeof fast) == 0);
    }
    CHECK(n_read > 5000);
}

template <class Text>
static void test_characters() {
    Random random(16);
    for (int repeat = 0; repeat < 2000; ++repeat) {
        char text[64];
        for (char& c : text) c = random.bits() % 3 ? static_cast<char>(random.bits()) : ',';
        const std::uint64_t bits = Text::positions(text, ',');
        for (int i = 0; i < 64; ++i) CHECK((bits >> i & 1) == (text[i] == ','));

        const auto n = static_cast<std::ptrdiff_t>(random.bits() % 17);
        std::uint64_t expected = 0, value = 0;
        for (int i = 0; i < 16; ++i) text[i] = static_cast<char>('0' + random.bits() % 10);
        for (std::ptrdiff_t i = 16 - n; i < 16; ++i)
            expected = expected * 10 + static_cast<std::uint64_t>(text[i] - '0');
        for (std::ptrdiff_t i = 0; i < 16 - n; ++i) text[i] = static_cast<char>(random.bits());
        CHECK(Text::digits_before(text + 16, n, value) && value == expected);
        if (n == 0) continue;
        char& c = text[16 - 1 - static_cast<std::ptrdiff_t>(random.bits() % static_cast<std::uint64_t>(n))];
        c = static_cast<char>(random.bits());
        CHECK(Text::digits_before(text + 16, n, value) == (c >= '0' && c <= '9'));
    }
}

template <class Text>
static void test_text() {
    test_characters<Text>();
    test_arrays<Text>();
    test_damaged_arrays<Text>();
    test_ties_of_float32<Text>();
}

struct Storage {
    std::int64_t source_id[4];
    bool bad[4], present[2][4];
    double coefficients[2][12];
    float errors[2][12], correlations[2][12], standard_deviation[2][4];

    BandRows band(int b) { return {coefficients[b], errors[b], correlations[b], standard_deviation[b], present[b]}; }
    Rows rows() { return {source_id, bad, {band(0), band(1)}, 4}; }
};

static const std::vector<std::string> header = {"source_id",
                                                "bp_basis_function_id",
                                                "bp_n_parameters",
                                                "bp_standard_deviation",
                                                "bp_coefficients",
                                                "bp_coefficient_errors",
                                                "bp_coefficient_correlations",
                                                "rp_coefficients",
                                                "rp_coefficient_errors",
                                                "rp_coefficient_correlations"};
static const std::string row =
    "4295806720,56,3,1.25,\"[347.1327779877959,-1.0E-4,0.5]\",\"[1.5,0.25,2.0E-4]\",\"[0.5,-0.25,1.0]\","
    "\"(1, -2)\",\"[0.5,0.5]\",\"[0.125]\"";

static void test_rows() {
    const RowParser parser(header, ',', {"bp", 3, 56}, {"rp", 2, 57});
    CHECK(parser.missing_columns().empty());
    Random random(12);
    Storage storage;
    std::vector<Problem> problems;
    std::int64_t filled = 0;
    const std::vector<char> buffer = buffer_of(row + "\r\n\n" + row + "\n" + row, random);
    const char* const end = buffer.data() + buffer.size() - slack;
    const char* const stop = parser.parse(buffer.data(), end, storage.rows(), filled, problems);
    CHECK(filled == 2);
    CHECK(end - stop == static_cast<std::ptrdiff_t>(row.size()));  // the last line is not complete
    CHECK(problems.empty());
    CHECK(storage.source_id[1] == 4295806720);
    CHECK(storage.coefficients[0][3] == 347.1327779877959);
    CHECK(storage.correlations[1][1] == 0.125f);
    CHECK(storage.present[0][1] && storage.present[1][1]);
}

static void test_damaged_rows() {
    const RowParser parser(header, ',', {"bp", 3, 56}, {"rp", 2, 57});
    Random random(13);
    Storage storage;
    const std::string characters = "\",[]() -+9eE.nN\r\t\x80\xff";
    long n_problems = 0;
    for (int repeat = 0; repeat < 100000; ++repeat) {
        std::string text = row;
        for (std::size_t n = 1 + random.bits() % 4; n > 0; --n) {
            const std::size_t position = random.bits() % text.size();
            switch (random.bits() % 3) {
                case 0:
                    text.insert(position, 1, characters[random.bits() % characters.size()]);
                    break;
                case 1:
                    text.erase(position, 1 + random.bits() % 5);
                    break;
                default:
                    text[position] = static_cast<char>(random.bits());
            }
            if (text.empty()) text = ",";
        }
        const std::vector<char> buffer = buffer_of(text + "\n", random);
        std::vector<Problem> problems;
        std::int64_t filled = 0;
        const char* const end = buffer.data() + text.size() + 1;
        const char* const stop = parser.parse(buffer.data(), end, storage.rows(), filled, problems);
        CHECK(stop == end || filled == 4);  // the damage may be line ends
        for (std::int64_t star = 0; star < filled; ++star)
            for (int i = 0; i < 3; ++i) CHECK(std::isfinite(storage.coefficients[0][3 * star + i]));
        n_problems += static_cast<long>(problems.size());
    }
    CHECK(n_problems > 10000);
}

int main() {
    test_numbers();
    test_text<detail::PortableText>();
    test_text<detail::Text>();
#if defined(__AVX512BW__)
    eights = avx512::read_eights;
    test_text<detail::Text>();
#endif
    test_rows();
    test_damaged_rows();
    return failures();
}
