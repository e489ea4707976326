"""Lists in Parquet that are taken from the pages of a file: the same numbers as Arrow's, to the bit."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import cramjam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from isal import isal_zlib

from xpkern.errors import InputError
from xpkern.observe import _parquet, parquet_pages, spectra_parquet
from xpkern.observe.spectra_parquet import ParquetTable, column_of_arrow

#: Numbers in a list of each column.
SIZES = {"single": 1, "few": 7, "some": 55, "many": 200}

#: How files may be written, beside pyarrow's defaults: dictionaries that are too large after a while, pages of 1 MB.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain": {"use_dictionary": False, "compression": "none"},
    "snappy": {"use_dictionary": False, "compression": "snappy", "data_page_version": "2.0"},
    "zstd": {"use_dictionary": False, "compression": "zstd"},
    "gzip": {"use_dictionary": False, "compression": "gzip", "compression_level": 1},
    "split": {"use_dictionary": False, "use_byte_stream_split": True, "compression": "zstd"},
    "split, plain": {"use_dictionary": False, "use_byte_stream_split": True, "compression": "none"},
    "second pages": {"use_dictionary": False, "compression": "none", "data_page_version": "2.0"},
    "small pages": {"data_page_size": 2000, "dictionary_pagesize_limit": 3000, "compression": "none"},
    "small second pages": {"data_page_size": 2000, "dictionary_pagesize_limit": 3000, "data_page_version": "2.0"},
    "sums": {"write_page_checksum": True, "write_page_index": True},
    "old": {"version": "1.0", "use_compliant_nested_type": False, "store_schema": False},
}

KINDS = {"list": pa.ListArray, "large_list": pa.LargeListArray, "fixed_size_list": None}


def numbers(rng: np.random.Generator, count: int, dtype: str) -> np.ndarray:
    """Numbers of any bits, NaN and infinities among them, of which some occur again."""
    values = np.frombuffer(rng.bytes(count * np.dtype(dtype).itemsize), dtype).copy()
    again = rng.random(count) < 0.5
    values[again] = rng.choice(np.array([0.0, -0.0, 1.5, np.nan, np.inf], dtype), int(again.sum()))
    return values


def lists(values: np.ndarray, size: int, kind: str = "list") -> pa.Array:
    """Numbers as lists of one length."""
    if kind == "fixed_size_list":
        return pa.FixedSizeListArray.from_arrays(pa.array(values), size)
    offsets = pa.array(np.arange(0, len(values) + 1, size), pa.int32() if kind == "list" else pa.int64())
    return KINDS[kind].from_arrays(offsets, pa.array(values))


def table_of(rng: np.random.Generator, n: int, dtype: str, kind: str = "list") -> pa.Table:
    """A table with source_id and lists of some lengths."""
    columns = {name: lists(numbers(rng, n * size, dtype), size, kind) for name, size in SIZES.items()}
    return pa.table({"source_id": np.arange(n)} | columns)


def assert_same_as_arrow(source: Any, path: Path, rows: int) -> None:
    """All columns, so many rows at a time, are what Arrow alone reads."""
    columns = ["few", "source_id", *(name for name in SIZES if name != "few")]
    table = ParquetTable(source, "table")
    expected = pq.read_table(path, columns=columns, use_threads=False)
    first = 0
    for chunk in table.chunks(columns, rows):
        count = min(rows, len(expected) - first)
        assert list(chunk) == columns
        for name, column in chunk.items():
            wanted = column_of_arrow(expected.column(name)[first : first + count].combine_chunks())
            assert len(column) == count
            assert column.absent.tolist() == wanted.absent.tolist()
            assert column.values.dtype == wanted.values.dtype
            assert (column.starts is None) == (wanted.starts is None)
            for found, item in zip(items_of(column), items_of(wanted), strict=True):
                assert found == item, name
        first += count
    assert first == len(expected)
    table.close()


def items_of(column: Any) -> list[bytes]:
    """The bytes of each row."""
    if column.starts is None:
        return [row.tobytes() for row in column.values]
    rows = zip(column.starts.tolist(), column.lengths.tolist(), strict=True)
    return [column.values[start : start + length].tobytes() for start, length in rows]


@pytest.fixture
def read_by_arrow(monkeypatch) -> list[list[str]]:
    """The columns that Arrow is asked for."""
    asked = []

    class Watched(spectra_parquet._Rows):
        def __init__(self, file: Any, names: list[str], *arguments: Any) -> None:
            asked.append(list(names))
            super().__init__(file, names, *arguments)

    monkeypatch.setattr(spectra_parquet, "_Rows", Watched)
    return asked


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lists_of_one_length_are_those_of_arrow_and_do_not_need_it(options, dtype, tmp_path, rng, read_by_arrow):
    path = tmp_path / "table.parquet"
    kind = "list" if options == "old" else rng.choice(list(KINDS))
    pq.write_table(table_of(rng, 400, dtype, kind), path, row_group_size=rng.integers(150, 500), **OPTIONS[options])
    assert_same_as_arrow(str(path), path, rng.integers(30, 500))
    assert read_by_arrow == [["source_id"]]


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows(n, kind, tmp_path, rng, read_by_arrow):
    path = tmp_path / "table.parquet"
    pq.write_table(table_of(rng, n, "float32", kind), path)
    for rows in (1, 16, 100):
        assert_same_as_arrow(str(path), path, rows)
    assert_same_as_arrow(io.BytesIO(path.read_bytes()), path, 16)
    with open(path, "rb") as file:
        assert_same_as_arrow(file, path, 16)
    assert n == 0 or all(names == ["source_id"] for names in read_by_arrow)


def test_rows_of_required_lists(tmp_path, rng, read_by_arrow):
    """Without any place for nulls in the schema, levels have other numbers of bits."""
    path = tmp_path / "table.parquet"
    table = table_of(rng, 100, "float32")
    for nullable in [(False, False), (False, True), (True, False)]:
        kind = pa.list_(pa.field("element", pa.float32(), nullable=nullable[1]))
        fields = [pa.field(name, kind, nullable=nullable[0]) for name in SIZES]
        pq.write_table(table.cast(pa.schema([pa.field("source_id", pa.int64()), *fields])), path, row_group_size=33)
        assert_same_as_arrow(str(path), path, 40)
    assert all(names == ["source_id"] for names in read_by_arrow)


#: What may be in one row of lists of 55 numbers; the next takes its numbers where the sum is to be the same.
OTHERS = {
    "null": [None],
    "nothing": [[]],
    "a gap": [[1.0] * 54 + [None]],
    "longer": [[1.0] * 56],
    "one longer, one shorter": [[1.0] * 56, [2.0] * 54],
    "all in one": [[1.0] * 110, []],
    "null beside more": [None, [1.0] * 109],
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("row", [0, 37, 98])
def test_other_lists_are_left_to_arrow_wherever_they_come(other, row, tmp_path, rng, read_by_arrow):
    path = tmp_path / "table.parquet"
    table = table_of(rng, 200, "float32")
    column = table.column("some").to_pylist()
    column[row : row + len(OTHERS[other])] = OTHERS[other]
    table = table.set_column(
        table.column_names.index("some"), "some", pa.array(column, table.schema.field("some").type)
    )
    pq.write_table(table, path, row_group_size=100, data_page_size=1000, use_dictionary=bool(rng.integers(2)))
    for rows in (7, 64, 1000):
        assert_same_as_arrow(str(path), path, rows)
    assert any("some" in names for names in read_by_arrow)
    assert not any("few" in names for names in read_by_arrow)


def test_other_columns_are_left_to_arrow(tmp_path, rng, read_by_arrow):
    path = tmp_path / "table.parquet"
    table = table_of(rng, 50, "float32")
    whole = pa.array([[1, 2]] * 50, pa.list_(pa.int32()))
    half = pa.array([[np.float16(1)]] * 50, pa.list_(pa.float16()))
    text = pa.array([["a"]] * 50)
    nested = pa.array([[{"x": 1.0}]] * 50)
    for index, column in enumerate([whole, half]):
        table = table.set_column(index + 1, table.column_names[index + 1], column)
    pq.write_table(table, path, compression="brotli")
    assert_same_as_arrow(str(path), path, 20)
    assert set(read_by_arrow[0]) == {"source_id", *SIZES}
    for column in (text, nested):
        pq.write_table(pa.table({"source_id": range(50), "few": column}), path)
        with pytest.raises(InputError, match="not a column of numbers"):
            list(ParquetTable(str(path), "table").chunks(["source_id", "few"], 20))


def test_lists_of_other_lengths_in_the_next_row_group(tmp_path, rng, read_by_arrow):
    path = tmp_path / "table.parquet"
    tables = [table_of(rng, n, "float32") for n in (20, 30, 25)]
    longer = lists(numbers(rng, 30 * 9, "float32"), 9)
    tables[1] = tables[1].set_column(tables[1].column_names.index("few"), "few", longer)
    with pq.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    for rows in (4, 33, 75):
        assert_same_as_arrow(str(path), path, rows)
    assert all(names == ["source_id"] for names in read_by_arrow)


def outcome(path: Path, columns: list[str]) -> list[bytes] | None:
    """All bytes of a file's rows, or None if it is refused."""
    found = []
    try:
        table = ParquetTable(str(path), "table")
        for chunk in table.chunks([name for name in columns if name in table.widths], 5):
            found += [b"".join(items) for items in zip(*map(items_of, chunk.values()), strict=True)]
    except InputError as error:
        return None if error.file == "table" else []
    return found


@pytest.mark.parametrize("options", ["default", "split, plain", "small second pages", "gzip", "zstd"])
def test_damaged_files_are_read_as_arrow_reads_them_or_refused(options, tmp_path, rng, monkeypatch):
    path = tmp_path / "table.parquet"
    table = table_of(rng, 12, "float32").select(["source_id", "few", "some"])
    pq.write_table(table, path, row_group_size=7, **OPTIONS[options])
    whole = path.read_bytes()
    outcomes = []
    for _ in range(60):
        content = bytearray(whole)
        place, kind = int(rng.integers(4, len(content))), rng.integers(3)
        if kind == 0:
            content[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content[place : place + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\0\x80"])
        else:
            del content[place : place + int(rng.integers(1, 9))]
        path.write_bytes(content)
        found = outcome(path, table.column_names)
        with monkeypatch.context() as without:
            without.setattr(ParquetTable, "_paged", lambda *_: None)
            by_arrow = outcome(path, table.column_names)
        # Arrow also refuses what is wrong with statistics that nobody needs, and reads levels that make too many rows
        if by_arrow is not None and [len(row) for row in by_arrow] == 12 * [8 + 4 * (7 + 55)]:
            assert found == by_arrow
        outcomes.append(found)
    assert any(found is None for found in outcomes)
    # a compressed page has a sum, which finds all that is wrong with it; nobody needs the writer's name in the footer
    place = whole.rindex(b"parquet-cpp-arrow")
    path.write_bytes(whole[:place] + b"P" + whole[place + 1 :])
    path_of_whole = tmp_path / "whole.parquet"
    path_of_whole.write_bytes(whole)
    assert outcome(path, table.column_names) == outcome(path_of_whole, table.column_names) is not None


def test_what_may_end_the_program_is_not_asked_of_arrow(tmp_path, rng):
    """Arrow's accessors of metadata are not made for what they throw where counts of levels are damaged."""
    path = tmp_path / "table.parquet"
    few = numbers(rng, 12 * 7, "float32")
    pq.write_table(pa.table({"source_id": np.arange(12), "few": lists(few, 7)}), path)
    counts = b"\x26" + bytes([2 * 12, 0x80 + 16, 1])  # a list of two numbers: 12 rows begin, 72 numbers do not
    content = path.read_bytes()
    if counts not in content:
        pytest.skip("this pyarrow does not count levels")
    assert content.count(counts) == 1
    path.write_bytes(content.replace(counts, b"\x36" + bytes([2 * 12, 16, 1])))
    with pytest.raises(OSError, match="histogram size mismatch"):
        pq.read_table(path)
    (chunk,) = ParquetTable(str(path), "table").chunks(["source_id", "few"], 20)
    assert chunk["few"].values.tobytes() == few.tobytes()


def test_pages_of_absurd_sizes_are_not_asked_for(tmp_path, rng, monkeypatch, read_by_arrow):
    path = tmp_path / "table.parquet"
    pq.write_table(table_of(rng, 100, "float32"), path)
    monkeypatch.setattr(parquet_pages, "MOST_BYTES_OF_PAGE", 20000)
    assert_same_as_arrow(str(path), path, 50)
    assert ["many"] in read_by_arrow
    assert ["few"] not in read_by_arrow


@pytest.mark.parametrize("codec", ["snappy", "gzip", "zstd"])
def test_what_is_unpacked_has_the_size_that_the_page_claims(codec, rng):
    content = rng.integers(0, 9, 1 << 17, np.uint8)
    stored = np.frombuffer(pa.Codec(codec).compress(content.tobytes(), asbytes=True), np.uint8)
    unpack = parquet_pages._UNPACK[{"snappy": 1, "gzip": 2, "zstd": 6}[codec]]
    target = np.empty_like(content)
    assert unpack(stored, target) == len(content)
    assert target.tobytes() == content.tobytes()
    other_sizes = np.empty(0, np.uint8), target[:100], target[:-1], np.empty(len(content) + 1, np.uint8)
    for packed, into in [*((stored, other) for other in other_sizes), (stored[:-5], target), (stored[:0], target)]:
        with contextlib.suppress(cramjam.DecompressionError, isal_zlib.error):
            assert unpack(packed, into) != len(into)


def test_functions_of_pages_refuse_arrays_that_do_not_fit():
    data = np.zeros(8, np.uint8)
    assert _parquet.page_header(data) is None
    with pytest.raises(ValueError, match="as many bytes"):
        _parquet.join_streams(data, np.empty(3, np.uint32))
    with pytest.raises(ValueError, match="no such levels"):
        _parquet.are_regular(data, data, 1, 0, 0, 1)
    with pytest.raises(TypeError):
        _parquet.look_up(data, np.zeros(1, np.float32), np.zeros(1, np.float32))


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}], ids=["dictionary", "plain"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_page_that_is_not_what_its_checksum_says(rng, tmp_path, options, version, compression):
    path = tmp_path / "spectra.parquet"
    values = numbers(rng, 50 * 7, "f8")
    options = options | {"data_page_version": version, "compression": compression, "write_page_checksum": True}
    pq.write_table(pa.table({"source_id": np.arange(50), "few": lists(values, 7)}), path, **options)
    content = path.read_bytes()
    chunk = pq.read_metadata(path).row_group(0).column(1)
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    for place in range(begin + 20, begin + chunk.total_compressed_size, 41):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        # damage of a header may change nothing that matters
        with contextlib.suppress(InputError):
            (found,) = ParquetTable(str(path), "table").chunks(["few"], 100)
            assert np.array_equal(found["few"].values.view(np.uint64), values.view(np.uint64))
    damaged = bytearray(content)
    damaged[begin + chunk.total_compressed_size - 20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(InputError, match="the Parquet data in rows 1 to 50 are corrupt"):
        list(ParquetTable(str(path), "table").chunks(["few"], 100))
