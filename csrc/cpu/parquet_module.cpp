// Python bindings of the reader of Parquet pages: xpkern.observe._parquet.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/parquet_page.hpp"

namespace py = pybind11;

namespace {

using xpkern::parquet::Bytes;
using xpkern::parquet::ColumnChunk;
using xpkern::parquet::PageHeader;
using xpkern::parquet::RowGroup;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

Bytes bytes_of(const Array<std::uint8_t>& array) {
    if (array.ndim() != 1) throw py::value_error("bytes must be an array of one dimension");
    return {array.data(), array.data() + array.shape(0)};
}

// (rows of each row group, what the file says of each of its columns (row group, column, 8))
std::optional<std::tuple<std::vector<std::int64_t>, Array<std::int64_t>>> row_groups(const Array<std::uint8_t>& footer,
                                                                                     std::int64_t n_columns) {
    std::vector<RowGroup> groups;
    if (!read_row_groups(bytes_of(footer), groups)) return std::nullopt;
    std::vector<std::int64_t> n_rows;
    std::vector<std::int64_t> numbers;
    for (const RowGroup& group : groups) {
        if (static_cast<std::int64_t>(group.columns.size()) != n_columns) return std::nullopt;
        n_rows.push_back(group.n_rows);
        for (const ColumnChunk& c : group.columns)
            numbers.insert(numbers.end(), {c.type, c.codec, c.n_values, c.size, c.stored_size, c.first_page,
                                           c.dictionary_page, c.is_elsewhere});
    }
    const auto n_groups = static_cast<std::int64_t>(groups.size());
    Array<std::int64_t> table({n_groups, n_columns, std::int64_t{8}});
    std::copy(numbers.begin(), numbers.end(), table.mutable_data());
    return std::tuple{std::move(n_rows), std::move(table)};
}

using HeaderTuple = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                               std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;

std::optional<HeaderTuple> page_header(const Array<std::uint8_t>& front) {
    PageHeader h;
    if (!read_header(bytes_of(front), h)) return std::nullopt;
    return HeaderTuple{h.length,
                       h.kind,
                       h.size,
                       h.stored_size,
                       h.n_values,
                       h.encoding,
                       h.definition_encoding,
                       h.repetition_encoding,
                       h.definition_size,
                       h.repetition_size,
                       h.is_compressed};
}

bool are_regular(const Array<std::uint8_t>& repetition, const Array<std::uint8_t>& definition, std::int64_t count,
                 std::int64_t size, std::int64_t before, int largest_definition) {
    if (count < 0 || size < 1 || before < 0 || before >= size || largest_definition < 1 || largest_definition > 3)
        throw py::value_error("no such levels");
    const Bytes repetitions = bytes_of(repetition), definitions = bytes_of(definition);
    const py::gil_scoped_release release;
    return rows_begin(repetitions, count, size, before) &&
           all_defined(definitions, count, static_cast<unsigned>(largest_definition));
}

template <class T>
bool look_up(const Array<std::uint8_t>& places, const Array<T>& dictionary, Array<T> out) {
    if (dictionary.ndim() != 1 || out.ndim() != 1) throw py::value_error("arrays must be of one dimension");
    const Bytes bytes = bytes_of(places);
    const T* const entries = dictionary.data();
    const std::int64_t n_entries = dictionary.shape(0), count = out.shape(0);
    T* const values = out.mutable_data();
    const py::gil_scoped_release release;
    return xpkern::parquet::look_up(bytes, entries, n_entries, values, count);
}

template <class T>
void join_streams(const Array<std::uint8_t>& streams, Array<T> out) {
    const Bytes bytes = bytes_of(streams);
    if (out.ndim() != 1 || bytes.size() != out.shape(0) * static_cast<std::int64_t>(sizeof(T)))
        throw py::value_error("out must hold as many bytes as the streams");
    T* const values = out.mutable_data();
    const py::gil_scoped_release release;
    xpkern::parquet::join_streams(bytes.at, out.shape(0), values);
}

}  // namespace

PYBIND11_MODULE(_parquet, m) {
    m.doc() = "Pages of Parquet columns whose rows are lists of one length.";
    m.def("row_groups", &row_groups, py::arg("footer").noconvert(), py::arg("n_columns"));
    m.def("page_header", &page_header, py::arg("front").noconvert());
    m.def("are_regular", &are_regular, py::arg("repetition").noconvert(), py::arg("definition").noconvert(),
          py::arg("count"), py::arg("size"), py::arg("before"), py::arg("largest_definition"));
    // numbers are moved as integers of their size: whatever their bits, they come out the same
    m.def("look_up", &look_up<std::uint32_t>, py::arg("places").noconvert(), py::arg("dictionary").noconvert(),
          py::arg("out").noconvert());
    m.def("look_up", &look_up<std::uint64_t>, py::arg("places").noconvert(), py::arg("dictionary").noconvert(),
          py::arg("out").noconvert());
    m.def("join_streams", &join_streams<std::uint32_t>, py::arg("streams").noconvert(), py::arg("out").noconvert());
    m.def("join_streams", &join_streams<std::uint64_t>, py::arg("streams").noconvert(), py::arg("out").noconvert());
}
