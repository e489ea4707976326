// Python bindings of the csv reader: xpkern.observe._csv.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/csv_rows.hpp"
#include "cpu/processor.hpp"

namespace py = pybind11;

namespace {

using xpkern::csv::BandFormat;
using xpkern::csv::BandRows;
using xpkern::csv::Problem;
using xpkern::csv::RowParser;
using xpkern::csv::Rows;

// Arrays are filled in place: they must have the exact type, be contiguous and writeable, and are never copied.
template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
T* data_of(Array<T>& array, const char* name, std::int64_t rows, std::int64_t columns = -1) {
    const bool fits = columns < 0 ? array.ndim() == 1 && array.shape(0) == rows
                                  : array.ndim() == 2 && array.shape(0) == rows && array.shape(1) == columns;
    if (!fits) throw py::value_error(std::string("array ") + name + " has the wrong shape");
    return array.mutable_data();  // throws if not writeable
}

using BandArrays = std::tuple<Array<double>, Array<float>, Array<float>, Array<float>, Array<bool>>;

BandRows rows_of(BandArrays& arrays, const BandFormat& format, std::int64_t capacity) {
    auto& [coefficients, errors, correlations, standard_deviation, present] = arrays;
    return {data_of(coefficients, "coefficients", capacity, format.n_coefficients),
            data_of(errors, "errors", capacity, format.n_coefficients),
            data_of(correlations, "correlations", capacity, format.n_pairs()),
            data_of(standard_deviation, "standard_deviation", capacity), data_of(present, "present", capacity)};
}

using ProblemTuple = std::tuple<std::int64_t, int, bool, std::string>;

// (end of the last line read, rows filled, problems)
std::tuple<std::int64_t, std::int64_t, std::vector<ProblemTuple>> parse(
    const RowParser& parser, const Array<std::uint8_t>& text, std::int64_t begin, std::int64_t end, std::int64_t filled,
    Array<std::int64_t> source_id, Array<bool> bad, BandArrays bp, BandArrays rp) {
    const auto slack = static_cast<std::int64_t>(xpkern::csv::slack);
    const std::int64_t capacity = source_id.ndim() == 1 ? source_id.shape(0) : -1;
    if (text.ndim() != 1 || begin < 0 || begin > end || end + slack > text.shape(0))
        throw py::value_error("text[begin:end] must be followed by SLACK more bytes");
    if (filled < 0 || filled > capacity) throw py::value_error("filled is no row of the arrays");
    const Rows rows{data_of(source_id, "source_id", capacity),
                    data_of(bad, "bad", capacity),
                    {rows_of(bp, parser.format(0), capacity), rows_of(rp, parser.format(1), capacity)},
                    capacity};
    const char* const first = reinterpret_cast<const char*>(text.data());
    const char* stop = nullptr;
    std::vector<Problem> problems;
    {
        const py::gil_scoped_release release;
        stop = parser.parse(first + begin, first + end, rows, filled, problems);
    }
    std::vector<ProblemTuple> tuples;
    for (Problem& p : problems) tuples.emplace_back(p.row, p.column, p.other_calibration, std::move(p.message));
    return {stop - first, filled, std::move(tuples)};
}

// (row, array: 0 coefficients, 1 errors, 2 correlations; what is wrong)
std::vector<std::tuple<std::int64_t, int, std::string>> check_rows(const Array<double>& coefficients,
                                                                   const Array<float>& errors,
                                                                   const Array<float>& correlations,
                                                                   const Array<bool>& present, bool gaps) {
    const bool fits = coefficients.ndim() == 2 && errors.ndim() == 2 && correlations.ndim() == 2 && present.ndim() == 1;
    const std::int64_t rows = fits ? present.shape(0) : -1, n = fits ? coefficients.shape(1) : 0;
    if (!fits || coefficients.shape(0) != rows || errors.shape(0) != rows || correlations.shape(0) != rows ||
        errors.shape(1) != n)
        throw py::value_error("arrays of different shapes");
    const std::int64_t n_pairs = correlations.shape(1);
    const double* const x = coefficients.data();
    const float *const e = errors.data(), *const c = correlations.data();
    const bool* const is_present = present.data();
    std::vector<std::tuple<std::int64_t, int, std::string>> problems;
    const py::gil_scoped_release release;
    for (std::int64_t row = 0; row < rows; ++row) {
        if (!is_present[row]) continue;
        auto [array, wrong] = xpkern::csv::wrong_array(x + row * n, e + row * n, c + row * n_pairs, n, n_pairs, gaps);
        if (array >= 0) problems.emplace_back(row, array, std::move(wrong));
    }
    return problems;
}

std::vector<double> read_numbers(const std::vector<std::string>& texts) {
    std::vector<double> values;
    for (const std::string& text : texts) {
        const std::string padded = text + '\n' + std::string(xpkern::csv::slack, '0');
        double value = 0.0;
        if (xpkern::csv::read_number(padded.data(), value) != padded.data() + text.size())
            throw py::value_error("not a number: " + xpkern::csv::excerpt(text.data(), text.data() + text.size()));
        values.push_back(value);
    }
    return values;
}

}  // namespace

PYBIND11_MODULE(_csv, m) {
    m.doc() = "Lines of Gaia's xp_continuous_mean_spectrum csv files to arrays of numbers.";
#if defined(__x86_64__) || defined(_M_X64)
    if (xpkern::has_avx512()) xpkern::csv::eights = &xpkern::csv::avx512::read_eights;
#endif
    m.attr("SLACK") = xpkern::csv::slack;
    m.def("read_numbers", &read_numbers, py::arg("texts"), "Number in each text, to the last bit float() of it.");

    m.def("check_rows", &check_rows, py::arg("coefficients").noconvert(), py::arg("errors").noconvert(),
          py::arg("correlations").noconvert(), py::arg("present").noconvert(), py::arg("gaps"));

    py::class_<RowParser>(m, "RowParser")
        .def(py::init([](const std::vector<std::string>& header, char separator, std::int64_t n_bp, std::int64_t n_rp,
                         std::int64_t bp_basis_function_id, std::int64_t rp_basis_function_id) {
                 return RowParser(header, separator, {"bp", n_bp, bp_basis_function_id},
                                  {"rp", n_rp, rp_basis_function_id});
             }),
             py::arg("header"), py::kw_only(), py::arg("separator") = ',', py::arg("n_bp"), py::arg("n_rp"),
             py::arg("bp_basis_function_id"), py::arg("rp_basis_function_id"))
        .def_static(
            "of_sampled",
            [](const std::vector<std::string>& header, char separator, std::int64_t n_samples) {
                return RowParser(header, separator, {"", n_samples, 0, true}, {"", 0, 0});
            },
            py::arg("header"), py::kw_only(), py::arg("separator") = ',', py::arg("n_samples"))
        .def("missing_columns", &RowParser::missing_columns)
        .def("parse", &parse, py::arg("text").noconvert(), py::arg("begin"), py::arg("end"), py::arg("filled"),
             py::arg("source_id").noconvert(), py::arg("bad").noconvert(), py::arg("bp").noconvert(),
             py::arg("rp").noconvert());
}
