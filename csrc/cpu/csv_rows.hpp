// Lines of Gaia's table xp_continuous_mean_spectrum -> arrays of numbers.
//
// One row is one line: arrays are quoted because they hold commas, but they never hold line ends, so a broken row
// cannot swallow the next one. Whatever is wrong with a row becomes a Problem; the row keeps its place and its
// source_id.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cpu/csv_field.hpp"
#include "cpu/spectrum_checks.hpp"

namespace xpkern::csv {

// What is expected of one band, which is also the shape of its arrays. A band without coefficients has no columns.
struct BandFormat {
    std::string prefix;  // of the column names: "bp", "rp"
    std::int64_t n_coefficients;
    std::int64_t basis_function_id;
    // A sampled spectrum in place of coefficients: columns "flux" and "flux_error", whose numbers may be missing, and
    // no correlations.
    bool is_sampled = false;

    std::int64_t n_pairs() const { return is_sampled ? 0 : n_coefficients * (n_coefficients - 1) / 2; }
    int n_arrays() const { return n_coefficients == 0 ? 0 : is_sampled ? 2 : 3; }
    // Names of those columns: coefficients, errors, correlations.
    std::string array_name(int i) const {
        static constexpr const char* suffix[] = {"_coefficients", "_coefficient_errors", "_coefficient_correlations"};
        return is_sampled ? (i == 0 ? "flux" : "flux_error") : prefix + suffix[i];
    }
};

// Where the numbers of one band go; row-major. Zeros where the band is absent or the row bad.
struct BandRows {
    double* coefficients;       // (capacity, n_coefficients)
    float* errors;              // (capacity, n_coefficients)
    float* correlations;        // (capacity, n_pairs)
    float* standard_deviation;  // (capacity,); NaN where the file does not tell
    bool* present;              // (capacity,)
};

struct Rows {
    std::int64_t* source_id;  // (capacity,); -1 where it cannot be read
    bool* bad;                // (capacity,)
    BandRows band[2];         // BP, RP
    std::int64_t capacity;
};

struct Problem {
    std::int64_t row;        // in the arrays
    int column;              // of the header; -1: the row as a whole
    bool other_calibration;  // the row may be sound, but belongs to other basis functions
    std::string message;
};

class RowParser {
  public:
    RowParser(const std::vector<std::string>& header, char separator, BandFormat bp, BandFormat rp)
        : separator_(separator), format_{std::move(bp), std::move(rp)} {
        for (const std::string& name : header) columns_.push_back(column_of(name));
    }

    const BandFormat& format(int band) const { return format_[band]; }

    // Names of the columns that must be there and are not.
    std::vector<std::string> missing_columns() const {
        std::vector<std::string> missing;
        const auto require = [&](Role role, int band, const std::string& name) {
            const auto same = [&](const Column& column) { return column.role == role && column.band == band; };
            if (std::none_of(columns_.begin(), columns_.end(), same)) missing.push_back(name);
        };
        require(Role::source_id, 0, "source_id");
        for (int band = 0; band < 2; ++band)
            for (int i = 0; i < format_[band].n_arrays(); ++i)
                require(array_roles[i], band, format_[band].array_name(i));
        return missing;
    }

    // Parses the whole lines of [begin, end) into the rows from `filled` on, until either is used up. Returns the end
    // of the last line read. `slack` bytes behind `end` must be readable.
    const char* parse(const char* begin, const char* end, const Rows& rows, std::int64_t& filled,
                      std::vector<Problem>& problems) const {
        const char* line = begin;
        while (line < end && filled < rows.capacity) {
            const char* const line_feed = static_cast<const char*>(std::memchr(line, '\n', end - line));
            if (line_feed == nullptr) break;
            const char* const line_end = line_feed > line && line_feed[-1] == '\r' ? line_feed - 1 : line_feed;
            if (line_end > line) parse_row(line, line_end, rows, filled++, problems);
            line = line_feed + 1;
        }
        return line;
    }

  private:
    enum class Role {
        skip,
        source_id,
        basis_function_id,
        n_parameters,
        standard_deviation,
        coefficients,
        errors,
        correlations
    };

    struct Column {
        Role role;
        int band;
    };

    static constexpr Role array_roles[] = {Role::coefficients, Role::errors, Role::correlations};
    static constexpr std::pair<Role, const char*> scalar_columns[] = {
        {Role::basis_function_id, "_basis_function_id"},
        {Role::n_parameters, "_n_parameters"},
        {Role::standard_deviation, "_standard_deviation"}};

    // What is known of a row while it is read.
    struct State {
        std::int64_t row;
        int column = -1;
        bool bad = false;
        Problem problem{};
        int arrays_read[2] = {0, 0};    // in each band
        int empty_array[2] = {-1, -1};  // column of an array that was empty
        bool is_there[2] = {};          // an array of the band holds something
        // What its single numbers say of a band, which matters if it is there; no message: nothing.
        Problem of_numbers[2]{};

        void note(int b, std::string message, bool other_calibration = false) {
            if (of_numbers[b].message.empty() || (other_calibration && !of_numbers[b].other_calibration))
                of_numbers[b] = {row, column, other_calibration, std::move(message)};
        }

        // The first problem of a row is reported, unless a later one says that the row is of another calibration.
        void fail(std::string message, bool other_calibration = false) {
            if (!bad || (other_calibration && !problem.other_calibration))
                problem = {row, column, other_calibration, std::move(message)};
            bad = true;
        }
    };

    Column column_of(const std::string& name) const {
        if (name == "source_id") return {Role::source_id, 0};
        for (int band = 0; band < 2; ++band) {
            for (int i = 0; i < format_[band].n_arrays(); ++i)
                if (name == format_[band].array_name(i)) return {array_roles[i], band};
            for (const auto& [role, suffix] : scalar_columns)
                if (name == format_[band].prefix + suffix) return {role, band};
        }
        return {Role::skip, 0};
    }

    void parse_row(const char* p, const char* end, const Rows& rows, std::int64_t row,
                   std::vector<Problem>& problems) const {
        State state{row};
        rows.source_id[row] = -1;
        for (const BandRows& band : rows.band) band.standard_deviation[row] = std::numeric_limits<float>::quiet_NaN();

        const int n_columns = static_cast<int>(columns_.size());
        for (state.column = 0; state.column < n_columns; ++state.column) {
            const char* const field = p;
            std::string error;
            Field result = read_field(p, end, rows, state, error);
            if (result != Field::wrong && p != end && *p != separator_) {
                error = "unexpected " + excerpt(p, end, separator_) + " in the field";
                result = Field::wrong;
            }
            if (result == Field::wrong) {
                state.fail(std::move(error));
                p = end_of_field(field, end, separator_);  // the next fields, source_id perhaps, may still be sound
            }
            if (p == end) break;
            ++p;  // the separator
        }
        const int n_fields = state.column + (p == end);
        state.column = -1;
        if (n_fields != n_columns || p != end)
            state.fail("expected " + std::to_string(n_columns) + " fields, found " +
                       (p == end ? std::to_string(n_fields) : "more"));
        finish_row(rows, state);
        if (state.bad) problems.push_back(std::move(state.problem));
    }

    Field read_field(const char*& p, const char* end, const Rows& rows, State& state, std::string& error) const {
        const auto [role, b] = columns_[state.column];
        const BandFormat& format = format_[b];
        const BandRows& band = rows.band[b];
        const std::int64_t row = state.row, n = format.n_coefficients, n_pairs = format.n_pairs();
        Field result = Field::wrong;
        double number = 0.0;
        switch (role) {
            case Role::skip:
                p = end_of_field(p, end, separator_);
                return Field::read;
            case Role::source_id:
                result = read_integer(p, end, separator_, rows.source_id[row], error);
                if (result == Field::empty) state.fail("empty");
                return result;
            case Role::basis_function_id:
            case Role::n_parameters: {
                const std::int64_t expected = role == Role::n_parameters ? n : format.basis_function_id;
                const char* const field = p;
                result = read_scalar(p, end, separator_, number, error);
                if (result == Field::read && number != static_cast<double>(expected))
                    state.note(
                        b, excerpt(field, end, separator_) + ", but the calibration is for " + std::to_string(expected),
                        true);
                return result;
            }
            case Role::standard_deviation:
                result = read_scalar(p, end, separator_, number, error);
                if (result != Field::read) return result;
                // in float32, where what is too small is 0 and what is too large infinite
                if (static_cast<float>(number) > 0 && number <= static_cast<double>(std::numeric_limits<float>::max()))
                    band.standard_deviation[row] = static_cast<float>(number);
                else
                    state.fail("the standard deviation is not positive");  // whether the band is there or not
                return result;
            case Role::coefficients:
                result = read_array(p, end, separator_, band.coefficients + row * n, n, error);
                break;
            case Role::errors:
                result = read_array(p, end, separator_, band.errors + row * n, n, error);
                break;
            case Role::correlations:
                result = read_array(p, end, separator_, band.correlations + row * n_pairs, n_pairs, error);
                break;
        }
        if (result != Field::empty) state.is_there[b] = true;
        if (result == Field::read) ++state.arrays_read[b];
        if (result == Field::empty) state.empty_array[b] = state.column;
        return result;
    }

    // A band is there with its three arrays or not at all; what is not there is zero.
    void finish_row(const Rows& rows, State& state) const {
        const std::int64_t row = state.row;
        for (int b = 0; b < 2; ++b) {
            const bool is_read = state.arrays_read[b] == format_[b].n_arrays();
            if (is_read && is_filled_up(rows.band[b], b, row)) {
                state.arrays_read[b] = 0;
                continue;
            }
            if (!state.is_there[b]) continue;
            if (Problem& noted = state.of_numbers[b]; !noted.message.empty()) {
                state.column = noted.column;
                state.fail(std::move(noted.message), noted.other_calibration);
            }
            if (state.empty_array[b] >= 0) {
                state.column = state.empty_array[b];
                state.fail("empty, although the other arrays of the band are there");
            } else if (is_read) {
                check_band(rows.band[b], b, state);
            }
        }
        rows.bad[row] = state.bad;
        for (int b = 0; b < 2; ++b) {
            const BandRows& band = rows.band[b];
            const int n_arrays = format_[b].n_arrays();
            band.present[row] = !state.bad && n_arrays > 0 && state.arrays_read[b] == n_arrays;
            if (band.present[row]) continue;
            const std::int64_t n = format_[b].n_coefficients, n_pairs = format_[b].n_pairs();
            std::fill_n(band.coefficients + row * n, n, 0.0);
            std::fill_n(band.errors + row * n, n, 0.0f);
            std::fill_n(band.correlations + row * n_pairs, n_pairs, 0.0f);
        }
    }

    bool is_filled_up(const BandRows& band, int b, std::int64_t row) const {
        const std::int64_t n = format_[b].n_coefficients, n_pairs = format_[b].n_pairs();
        return csv::is_filled_up(band.coefficients + row * n, band.errors + row * n, band.correlations + row * n_pairs,
                                 n, n_pairs);
    }

    // Sees what the numbers of a band are, once all are read.
    void check_band(const BandRows& band, int b, State& state) const {
        const std::int64_t row = state.row, n = format_[b].n_coefficients, n_pairs = format_[b].n_pairs();
        const double* const coefficients = band.coefficients + row * n;
        const float *const errors = band.errors + row * n, *const correlations = band.correlations + row * n_pairs;
        auto [array, wrong] = wrong_array(coefficients, errors, correlations, n, n_pairs, format_[b].is_sampled);
        if (array < 0) return;
        const auto is_it = [&](const Column& column) { return column.role == array_roles[array] && column.band == b; };
        state.column = static_cast<int>(std::find_if(columns_.begin(), columns_.end(), is_it) - columns_.begin());
        state.fail(std::move(wrong));
    }

    char separator_;
    BandFormat format_[2];
    std::vector<Column> columns_;
};

}  // namespace xpkern::csv
