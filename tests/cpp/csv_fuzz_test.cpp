// The csv parser given anything: whatever the text, it stays inside its buffers, fills rows with numbers that make
// sense or says what is wrong with them, and its fast way of reading an array agrees with the slow one.
//
// Built as a libFuzzer target with -DXPKERN_LIBFUZZER -fsanitize=fuzzer; otherwise it brings a mutator of its own, and
// `csv_fuzz_test [inputs [seed]]` runs it under whatever sanitizers it was built with (python -m bench fuzz: 10^7).
#include "check.hpp"
#include "cpu/csv_rows.hpp"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#if defined(__AVX512BW__)
#include "cpu/isa_avx512_csv.cpp"
#endif

using namespace xpkern::csv;

namespace {

constexpr std::int64_t capacity = 3, n_bp = 10, n_rp = 2, n_samples = 9, n_bp_pairs = n_bp * (n_bp - 1) / 2;

#define REQUIRE(condition)                                                              \
    do {                                                                                \
        if (!(condition)) {                                                             \
            std::printf("%s:%d: REQUIRE(%s)\n", __FILE__, __LINE__, #condition);        \
            std::printf("input of %zu bytes: \"", size);                                \
            for (std::size_t i_ = 0; i_ < size; ++i_) std::printf("\\x%02x", data[i_]); \
            std::printf("\"\n");                                                        \
            std::abort();                                                               \
        }                                                                               \
    } while (0)

// Arrays of exactly the size that a parser is told, each on its own, so that one element too far is seen.
struct Storage {
    std::vector<std::int64_t> source_id = std::vector<std::int64_t>(capacity);
    std::unique_ptr<bool[]> bad{new bool[capacity]}, present[2];
    std::vector<double> coefficients[2];
    std::vector<float> errors[2], correlations[2], standard_deviation[2];

    explicit Storage(const RowParser& parser) {
        for (int b = 0; b < 2; ++b) {
            const BandFormat& format = parser.format(b);
            present[b].reset(new bool[capacity]);
            coefficients[b].resize(static_cast<std::size_t>(capacity * format.n_coefficients));
            errors[b].resize(static_cast<std::size_t>(capacity * format.n_coefficients));
            correlations[b].resize(static_cast<std::size_t>(capacity * format.n_pairs()));
            standard_deviation[b].resize(capacity);
        }
    }

    BandRows band(int b) {
        return {coefficients[b].data(), errors[b].data(), correlations[b].data(), standard_deviation[b].data(),
                present[b].get()};
    }
    Rows rows() { return {source_id.data(), bad.get(), {band(0), band(1)}, capacity}; }
};

const std::vector<std::string> header{"source_id",
                                      "bp_basis_function_id",
                                      "bp_n_parameters",
                                      "bp_standard_deviation",
                                      "bp_coefficients",
                                      "bp_coefficient_errors",
                                      "bp_coefficient_correlations",
                                      "extra",
                                      "rp_coefficients",
                                      "rp_coefficient_errors",
                                      "rp_coefficient_correlations"};
const std::vector<std::string> sampled_header{"source_id", "ra", "flux", "flux_error"};

struct Target {
    RowParser parser;
    Storage storage;
    Target(const std::vector<std::string>& names, char separator, BandFormat bp, BandFormat rp)
        : parser(names, separator, std::move(bp), std::move(rp)), storage(parser) {}
};

Target& target(int kind) {
    static Target by_comma(header, ',', {"bp", n_bp, 56}, {"rp", n_rp, 57});
    static Target by_space(header, ' ', {"bp", n_bp, 56}, {"rp", n_rp, 57});
    static Target sampled(sampled_header, ',', {"", n_samples, 0, true}, {"", 0, 0});
    return kind == 0 ? by_comma : kind == 1 ? by_space : sampled;
}

// Where the fast way reads an array, the slow one reads the same.
template <class Out>
void compare_ways(const char* begin, const char* end, const std::uint8_t* data, std::size_t size) {
    for (const char* p = begin; p < end; ++p) {
        if (*p != '[' && *p != '(') continue;
        const char closing = *p == '[' ? ']' : ')';
        for (const std::int64_t n : {n_rp, n_samples, n_bp, n_bp_pairs}) {
            Out fast[n_bp_pairs], slow[n_bp_pairs];
            const char *fast_end = p + 1, *slow_end = p + 1;
            if (!read_numbers(fast_end, end, closing, fast, n)) continue;
            std::string error;
            std::int64_t found = -1;
            REQUIRE(read_unusual_numbers(slow_end, end, closing, slow, n, found, error));
            REQUIRE(fast_end == slow_end && found == n);
            REQUIRE(std::memcmp(fast, slow, sizeof(Out) * static_cast<std::size_t>(n)) == 0);
        }
    }
}

void check_rows(Target& t, std::int64_t filled, const std::vector<Problem>& problems, const std::uint8_t* data,
                std::size_t size) {
    std::size_t n_bad = 0;
    for (std::int64_t row = 0; row < filled; ++row) {
        n_bad += t.storage.bad[row];
        for (int b = 0; b < 2; ++b) {
            const BandFormat& format = t.parser.format(b);
            const BandRows band = t.storage.band(b);
            const std::int64_t n = format.n_coefficients, n_pairs = format.n_pairs();
            const bool present = band.present[row], gaps = format.is_sampled;
            REQUIRE(!(present && t.storage.bad[row]));
            REQUIRE(!(band.standard_deviation[row] <= 0));
            for (std::int64_t i = row * n; i < (row + 1) * n; ++i) {
                const double x = band.coefficients[i];
                const float e = band.errors[i];
                REQUIRE(present ? std::isfinite(x) || (gaps && std::isnan(x)) : x == 0);
                REQUIRE(present ? (e > 0 && std::isfinite(e)) || (gaps && std::isnan(e)) : e == 0);
            }
            for (std::int64_t i = row * n_pairs; i < (row + 1) * n_pairs; ++i)
                REQUIRE(present ? std::fabs(band.correlations[i]) <= max_correlation : band.correlations[i] == 0);
        }
    }
    REQUIRE(problems.size() == n_bad);
    for (const Problem& problem : problems) {
        REQUIRE(problem.row >= 0 && problem.row < filled && !problem.message.empty());
        REQUIRE(problem.column < static_cast<int>(header.size()));
        for (const char c : problem.message) REQUIRE(c >= ' ' && c <= '~');
    }
}

}  // namespace

// The first byte says which table the rest is the text of.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
#if defined(__AVX512BW__)
    eights = size % 4 < 2 ? avx512::read_eights : nullptr;
#endif
    Target& t = target(data[0] % 3);
    const std::size_t length = size - 1;
    // a buffer of its own that ends where it is said to
    const std::unique_ptr<char[]> buffer(new char[length + slack]);
    std::memcpy(buffer.get(), data + 1, length);
    for (std::size_t i = 0; i < slack; ++i) buffer[length + i] = "0123456789e.]\",-"[(i + size) % 16];
    const char *text = buffer.get(), *const end = text + length;
    for (;;) {
        std::vector<Problem> problems;
        std::int64_t filled = 0;
        const char* const stop = t.parser.parse(text, end, t.storage.rows(), filled, problems);
        REQUIRE(stop >= text && stop <= end && filled >= 0 && filled <= capacity);
        check_rows(t, filled, problems, data, size);
        if (stop == text || filled < capacity) break;
        text = stop;
    }
    const char* const last_line = static_cast<const char*>(memrchr(buffer.get(), '\n', length));
    if (last_line != nullptr) {
        if (size % 2 != 0)
            compare_ways<double>(buffer.get(), last_line, data, size);
        else
            compare_ways<float>(buffer.get(), last_line, data, size);
    }
    return 0;
}

#ifndef XPKERN_LIBFUZZER

namespace {

// What text that is nearly right is made of.
const char* const words[] = {"null",
                             "nan",
                             "NaN",
                             "\"[",
                             "]\"",
                             "\"(",
                             ")\"",
                             ",",
                             "\n",
                             "\r\n",
                             "\"\"",
                             "1E39",
                             "-0",
                             "1e-400",
                             "E-9",
                             ".",
                             "-",
                             "1.0E-4",
                             "99999999999999999999",
                             " ",
                             "[",
                             "]",
                             "(",
                             ")",
                             "\"",
                             "+1.",
                             "9223372036854775808",
                             "0.30000000000000004",
                             "\x80",
                             "Infinity",
                             "56",
                             "20",
                             "51",
                             "1.0000000596046448",
                             "2.2250738585072014E-308"};

std::string numbers(std::int64_t n, Random& random, double lower, double upper) {
    std::string text = "\"[";
    for (std::int64_t i = 0; i < n; ++i) {
        char number[40];
        const double value = random.uniform(lower, upper);
        const int digits = 1 + static_cast<int>(random.bits() % 17);
        std::snprintf(number, sizeof number, random.bits() % 8 ? "%.*f" : "%.*E", digits, value);
        text += (i ? "," : "") + std::string(number);
    }
    return text + "]\"";
}

// Sound rows for each kind of table; the first byte says which.
std::string sound_text(Random& random) {
    const int kind = static_cast<int>(random.bits() % 3);
    std::string text(1, static_cast<char>(kind));
    for (std::size_t rows = random.bits() % 8 ? 1 : 4; rows > 0; --rows) {
        std::vector<std::string> fields{std::to_string(random.bits() >> 2)};
        if (kind == 2) {
            fields.insert(fields.end(),
                          {"12.5", numbers(n_samples, random, -1, 1), numbers(n_samples, random, 0.5, 1)});
        } else {
            fields.insert(fields.end(), {"56", "10", "1.25", numbers(n_bp, random, -1e3, 1e3),
                                         numbers(n_bp, random, 0.5, 2), numbers(n_bp_pairs, random, -1, 1), "\"\"",
                                         numbers(n_rp, random, -9, 9), numbers(n_rp, random, 1, 2), "\"(0.5)\""});
        }
        for (std::size_t i = 0; i < fields.size(); ++i) text += (i ? (kind == 1 ? " " : ",") : "") + fields[i];
        text += random.bits() % 4 ? "\n" : "\r\n";
    }
    return text;
}

void mutate(std::string& text, const std::string& other, Random& random) {
    const auto place = [&](const std::string& in) { return in.empty() ? 0 : random.bits() % in.size(); };
    const std::size_t at = place(text), length = random.bits() % (random.bits() % 4 ? 6 : 200);
    switch (random.bits() % 8) {
        case 0:
            text.erase(at, length);
            break;
        case 1:
            text.insert(at, words[random.bits() % (sizeof words / sizeof *words)]);
            break;
        case 2:
            if (!text.empty()) text[at] = static_cast<char>(random.bits());
            break;
        case 3:
            text.insert(at, text.substr(place(text), length));
            break;
        case 4:
            text.replace(at, length, other.substr(place(other), random.bits() % 100));
            break;
        case 5:
            text.resize(at);
            break;
        case 6:
            text.insert(at, 1 + random.bits() % 80, "0123456789-.,\"[ "[random.bits() % 16]);
            break;
        default:
            if (!text.empty()) text[at] = static_cast<char>(text[at] ^ (1 << random.bits() % 8));
    }
}

}  // namespace

int main(int argc, char** argv) {
    const long inputs = argc > 1 ? std::atol(argv[1]) : 20000;
    Random random(argc > 2 ? static_cast<unsigned long long>(std::atoll(argv[2])) : 21);
    std::vector<std::string> texts;
    for (int i = 0; i < 64; ++i) texts.push_back(sound_text(random));
    for (long i = 0; i < inputs; ++i) {
        std::string text = texts[random.bits() % texts.size()];
        for (std::size_t n = random.bits() % 6; n > 0; --n) mutate(text, texts[random.bits() % texts.size()], random);
        LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
        // what was made of a text now and then takes its place, so that damages add up; a sound one another time
        if (i % 16 == 0) texts[random.bits() % texts.size()] = i % 64 ? text.substr(0, 2000) : sound_text(random);
    }
    std::printf("%ld inputs\n", inputs);
    return 0;
}

#endif
