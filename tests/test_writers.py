"""The writers of all formats: what goes in comes out, whatever the blocks, or nothing is there at all."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from astropy.io import fits, votable
from astropy.table import Table
from astropy.units import Unit
from catalog_files import SUFFIXES, part_of, random_rows, read

from xpkern.catalog import table_writer
from xpkern.catalog.output import CatalogOutput
from xpkern.catalog.rows import StarRows
from xpkern.catalog.schema import DEFAULT, DIAGNOSTICS, ZGR23, Column
from xpkern.catalog.table_writer import TableWriter
from xpkern.catalog.writers import WRITERS, writer_for
from xpkern.grid import WAVELENGTH

TABLES = {"default": DEFAULT, "zgr23": ZGR23, "diagnostics": DIAGNOSTICS}
ATTRIBUTES = {
    "layout": "default",
    "number": 0.1,
    "theoretical": True,
    "wavelength": WAVELENGTH,
    "text": "quotes ' and \" & <tags>, commas: ä " + 30 * "long ",
}
COUNTS = {f"removed_by_rule_{number}": 10**number for number in range(12)}


def write(path: Path, columns: tuple[Column, ...], rows: StarRows, cuts: tuple[int, ...] = ()) -> TableWriter:
    writer = writer_for(path)(path, columns, ATTRIBUTES)
    for start, stop in zip((0, *cuts), (*cuts, len(rows)), strict=True):
        writer.append(part_of(rows, slice(start, stop)))
    writer.close(COUNTS)
    return writer


def matches(expected: np.ndarray, found: np.ndarray) -> bool:
    return bool(np.array_equal(expected, found, equal_nan=expected.dtype.kind == "f"))


class TestRoundTrip:
    @pytest.mark.parametrize("stars", [0, 17])
    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("kind", list(TABLES))
    def test_every_column_with_all_that_is_said_of_it(self, kind, suffix, stars, tmp_path, rng):
        columns, rows, path = TABLES[kind], random_rows(rng, stars), tmp_path / f"catalog{suffix}"
        writer = write(path, columns, rows)
        if suffix == ".ecsv" and stars == 0:  # astropy's reader fails on arrays in a file without rows
            assert path.read_text().splitlines()[-1] == ",".join(column.name for column in columns)
            return
        table = read(path)
        assert table.colnames == [column.name for column in columns]
        assert len(table) == stars
        for column in columns:
            found, dtype = table[column.name], writer.dtype_of(column)
            expected = column.compute(rows, dtype)
            assert found.shape == expected.shape, column.name
            assert found.dtype.newbyteorder("=") == dtype, column.name
            assert matches(expected, np.asarray(found)), column.name
            masked = np.ma.getmaskarray(found)  # what is missing is NaN; some readers mask that, and nothing else
            assert not masked.any() or np.array_equal(masked, np.isnan(expected)), column.name
            assert str(found.unit or "") == str(Unit(column.unit)), column.name
            assert found.description == column.description
            assert found.meta["ucd"] == column.ucd

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_what_made_it(self, suffix, tmp_path, rng):
        path = tmp_path / f"catalog{suffix}"
        write(path, ZGR23, random_rows(rng, 3))
        expected = {**ATTRIBUTES, **COUNTS, "wavelength": WAVELENGTH.tolist()}
        meta = read(path).meta
        if suffix in (".fits", ".parquet"):
            kept = fits.getheader(path, 1) if suffix == ".fits" else pyarrow.parquet.read_metadata(path).metadata
            assert json.loads(kept["XPKERN" if suffix == ".fits" else b"XPKERN"]) == expected
        if suffix == ".parquet":  # astropy reads what was known before the first row
            expected = {name: value for name, value in expected.items() if name not in COUNTS}
        for name, value in expected.items():
            np.testing.assert_array_equal(meta[name], value)

    def test_half_floats_where_there_are_any(self, tmp_path, rng):
        rows = random_rows(rng, 2)
        kinds = {suffix: write(tmp_path / f"d{suffix}", DIAGNOSTICS, rows) for suffix in SUFFIXES}
        residual = next(column for column in DIAGNOSTICS if column.name == "residual")
        assert [kinds[suffix].dtype_of(residual) for suffix in SUFFIXES] == ["f2", "f4", "f4", "f4"]
        values = [np.asarray(read(tmp_path / f"d{suffix}")["residual"], np.float32) for suffix in SUFFIXES]
        for other in values[1:]:
            np.testing.assert_array_equal(values[0], other)


class TestFormats:
    @pytest.mark.parametrize("suffix", [".fits", ".ecsv"])
    def test_attributes_that_come_too_late_overwrite_nothing(self, suffix, tmp_path, rng):
        writer = writer_for(Path(f"c{suffix}"))(tmp_path / f"c{suffix}", ZGR23, {})
        writer.append(random_rows(rng, 3))
        with pytest.raises(ValueError, match="too many attributes late"):
            writer.close({"long": 10_000 * "x"})
        writer.abandon()

    def test_fits_is_valid(self, tmp_path, rng):
        path = tmp_path / "catalog.fits"
        write(path, DEFAULT, random_rows(rng, 40))
        assert path.stat().st_size % 2880 == 0
        with fits.open(path) as file:
            file.verify("exception")
            header = file[1].header
            assert header["NAXIS2"] == 40
            for number, column in enumerate(DEFAULT, 1):
                about = [header.get(f"{key}{number}", "") for key in ("TTYPE", "TUNIT", "TUCD", "TCOMM")]
                assert about == [column.name, column.unit, column.ucd, column.description]

    def test_parquet_is_a_voparquet(self, tmp_path, rng):
        path, rows = tmp_path / "catalog.parquet", random_rows(rng, 9)
        write(path, DEFAULT, rows)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "In merged column .* the 'unit' attribute does not match .dex != dex")
            table = Table.read(path, format="parquet.votable")
        for column in DEFAULT:
            found = table[column.name]
            assert matches(column.compute(rows), np.asarray(found)), column.name
            assert (str(found.unit or ""), found.description) == (column.unit, column.description)
            assert found.meta["ucd"] == column.ucd
        # the document alone is one that the VO's validator finds nothing wrong with, dex apart
        document = tmp_path / "document.xml"
        document.write_bytes(pyarrow.parquet.read_metadata(path).metadata[b"IVOA.VOTable-Parquet.content"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Invalid unit string 'dex'")
            parsed = votable.parse(document, verify="exception").get_first_table()
        assert len(parsed.fields) == len(DEFAULT)

    def test_parquet_columns_say_what_they_are(self, tmp_path, rng):
        write(tmp_path / "catalog.parquet", ZGR23, random_rows(rng, 9))
        schema = pyarrow.parquet.read_schema(tmp_path / "catalog.parquet")
        for column in ZGR23:
            field = schema.field(column.name)
            about = {name.decode(): text.decode() for name, text in field.metadata.items()}
            assert about["unit"] == column.unit
            assert (about["ucd"], about["description"]) == (column.ucd, column.description)
            assert not field.nullable

    @pytest.mark.skipif(shutil.which("stilts") is None, reason="STILTS is not installed here")
    def test_stilts_reads_and_validates(self, tmp_path, rng):
        rows = random_rows(rng, 9)
        write(tmp_path / "catalog.fits", DEFAULT, rows)
        write(tmp_path / "catalog.parquet", DEFAULT, rows)
        document = tmp_path / "document.xml"
        document.write_bytes(
            pyarrow.parquet.read_metadata(tmp_path / "catalog.parquet").metadata[b"IVOA.VOTable-Parquet.content"]
        )

        def stilts(*arguments: str) -> str:
            return subprocess.run(["stilts", *arguments], capture_output=True, text=True, check=True).stdout

        assert not [line for line in stilts("votlint", str(document)).splitlines() if not line.startswith("INFO")]
        commands = ["cmd=meta name units ucd description", "omode=out", "ofmt=csv"]
        about = Table.read(stilts("tpipe", f"in={tmp_path / 'catalog.fits'}", *commands), format="csv")
        assert list(about["Name"]) == [column.name for column in DEFAULT]
        assert list(about["UCD"]) == [column.ucd for column in DEFAULT]
        assert [str(unit) if unit else "" for unit in about["Units"].filled("")] == [c.unit for c in DEFAULT]
        assert list(about["Description"]) == [column.description for column in DEFAULT]


class TestBlocks:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_bytes_do_not_depend_on_them(self, suffix, tmp_path, rng, monkeypatch):
        monkeypatch.setattr(WRITERS[suffix], "group_rows", int(rng.integers(1, 12)))
        rows, contents = random_rows(rng, 40), []
        for name, cuts in (("whole", ()), ("parts", tuple(np.sort(rng.integers(0, 41, 5)))), ("ones", range(1, 40))):
            write(tmp_path / f"{name}{suffix}", DIAGNOSTICS, rows, tuple(cuts))
            contents.append((tmp_path / f"{name}{suffix}").read_bytes())
        assert contents[0] == contents[1] == contents[2]
        assert len(read(tmp_path / f"ones{suffix}")) == 40

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_what_waits_in_memory_is_bounded(self, suffix, tmp_path, rng, monkeypatch):
        monkeypatch.setattr(table_writer, "GROUP_BYTES", 2000)
        writer = writer_for(Path(suffix[1:] + suffix))(tmp_path / f"catalog{suffix}", DIAGNOSTICS, {})
        rows, most = random_rows(rng, 1), 0
        for _ in range(50):
            writer.append(rows)
            most = max(most, writer._waiting_rows * table_writer.bytes_of_row(DIAGNOSTICS))
        assert 0 < most <= 2000
        writer.close()
        assert len(read(tmp_path / f"catalog{suffix}")) == 50

    def test_row_groups_of_parquet(self, tmp_path, rng, monkeypatch):
        monkeypatch.setattr(WRITERS[".parquet"], "group_rows", 16)
        write(tmp_path / "catalog.parquet", DEFAULT, random_rows(rng, 40), (5, 33))
        about = pyarrow.parquet.read_metadata(tmp_path / "catalog.parquet")
        assert [about.row_group(index).num_rows for index in range(about.num_row_groups)] == [16, 16, 8]


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """A disk that is full, as far as this process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_catalog(path: Path, rows: StarRows, *, interrupted: bool = False) -> None:
    with CatalogOutput(path, "default", ATTRIBUTES) as output:
        if interrupted:
            output._writers[0]._stream._error = KeyboardInterrupt()
        output.append(rows)
        output.commit()


class TestFullDisk:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    @pytest.mark.parametrize("size", [0, 5000, 60_000])
    def test_says_which_file_and_leaves_nothing(self, suffix, size, tmp_path, rng, monkeypatch):
        monkeypatch.setattr(WRITERS[suffix], "group_rows", 64)
        rows, path = random_rows(rng, 512), tmp_path / f"catalog{suffix}"
        # more than that is written: at the end (the last group, the footer), or in the middle
        with no_file_longer_than(size), pytest.raises(OSError, match="File too large") as caught:
            write_catalog(path, rows)
        assert str(caught.value.filename).startswith(f"{tmp_path}/.catalog")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_signal_in_the_middle_of_a_write_is_not_swallowed(self, suffix, tmp_path, rng, monkeypatch):
        monkeypatch.setattr(WRITERS[suffix], "group_rows", 64)
        rows = random_rows(rng, 64)
        with pytest.raises(KeyboardInterrupt):
            write_catalog(tmp_path / f"catalog{suffix}", rows, interrupted=True)
        assert list(tmp_path.iterdir()) == []
