// The csv reader under the sanitizers: numbers against strtod, and damaged rows in buffers that end where the text
// does.
#include "check.hpp"
#include "cpu/csv_rows.hpp"

#include <cstdlib>
#include <string>
#include <vector>

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
    const RowParser parser(header, {"bp", 3, 56}, {"rp", 2, 57});
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
    const RowParser parser(header, {"bp", 3, 56}, {"rp", 2, 57});
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
    test_rows();
    test_damaged_rows();
    return failures();
}
