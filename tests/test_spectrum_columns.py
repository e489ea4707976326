"""What a reader of spectra says of columns that it misses or finds twice, and of files that are not whole."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from gaia_rows import assert_same

from bench import spectrum_formats
from bench.spectrum_formats import FEW, make, some_columns
from xpkern.errors import InputError
from xpkern.observe.spectra import read_blocks
from xpkern.observe.tables import open_table

#: One of each reader; astropy does not write FITS files like that.
REPEATABLE = ("csv", "parquet", "h5", "tabledata.xml", "avro", "dict", "pandas")


def error_of(source: Any) -> InputError:
    """Why a table is refused as a whole."""
    with pytest.raises(InputError) as caught:
        list(read_blocks(source, FEW))
    return caught.value


# ---- HDF5 files whose numbers are in other files


def linked(file: h5py.File, name: str, data: h5py.Dataset, path: Path) -> None:
    file[name] = h5py.ExternalLink(path.name, name)


def virtual(file: h5py.File, name: str, data: h5py.Dataset, path: Path) -> None:
    layout = h5py.VirtualLayout(data.shape, data.dtype)
    layout[:] = h5py.VirtualSource(path, name, data.shape)
    file.create_virtual_dataset(name, layout)


def stored_outside(file: h5py.File, name: str, data: h5py.Dataset, path: Path) -> None:
    raw = path.with_name(f"{name}.bin")
    data[()].tofile(raw)
    file.create_dataset(name, data.shape, data.dtype, external=[(str(raw), 0, raw.stat().st_size)])


@pytest.mark.parametrize("put", [linked, virtual, stored_outside])
def test_numbers_that_are_in_another_file(put, tmp_path, rng):
    path = make("h5", some_columns(rng), tmp_path)
    elsewhere = tmp_path / "other.h5"
    with h5py.File(path) as data, h5py.File(elsewhere, "w") as file:
        file["padding"] = np.full(100_000, 0.5)  # what lies in this file at the places of the numbers in the other
        for name in data:
            put(file, name, data[name], path)
    (expected,), (found,) = read_blocks(path, FEW), read_blocks(elsewhere, FEW)
    assert found.reasons == []
    assert_same(found, expected)


def test_a_linked_file_may_be_much_larger(tmp_path, rng):
    path = make("h5", some_columns(rng), tmp_path)
    with h5py.File(path, "r+") as data:
        data["large"] = np.zeros((5, 1 << 20), np.float64)
    with h5py.File(tmp_path / "links.h5", "w") as links:
        for name in (*some_columns(rng), "large"):
            links[name] = h5py.ExternalLink(path.name, name)
    (block,) = read_blocks(tmp_path / "links.h5", FEW)
    assert block.reasons == []


# ---- columns that are there twice


@pytest.mark.parametrize("form", REPEATABLE)
def test_a_column_that_is_there_in_two_spellings(form, tmp_path, rng):
    columns = some_columns(rng)
    unwanted = make(form, columns | {"RA": columns["ra"]}, tmp_path)
    (block,) = read_blocks(unwanted, FEW)
    assert block.source_id.tolist() == columns["source_id"]
    others = [number + 1 for number in columns["source_id"]]
    for doubled in (columns | {"Source_ID": others}, {"Source_ID": others} | columns):
        error = error_of(make(form, doubled, tmp_path, "twice"))
        assert error.field == "source_id"
        names = [name for name in doubled if name.lower() == "source_id"]
        listed = [", ".join(names), ", ".join(sorted(names))]  # HDF5 has them in the order of the alphabet
        assert any(error.message == f"2 columns have this name ({each}): which is meant?" for each in listed)


def test_a_name_that_is_there_twice(tmp_path, rng):
    columns = some_columns(rng)
    path = make("csv", columns, tmp_path)
    header, rest = path.read_text().split("\n", 1)
    path.write_text(header.replace(",ra", ",rp_coefficients") + "\n" + rest)
    assert error_of(path).field == "rp_coefficients"
    path = make("fits", columns, tmp_path)
    with fits.open(path) as hdus:
        place = hdus[1].columns.names.index("ra") + 1
    content = path.read_bytes()
    card = f"TTYPE{place}".ljust(8).encode() + b"= "
    assert content.count(card) == 1
    start = content.index(card) + len(card)
    value = b"'SOURCE_ID'".ljust(70)
    path.write_bytes(content[:start] + value + content[start + len(value) :])
    assert error_of(path).field == "source_id"


# ---- columns that are missing


@pytest.mark.parametrize("form", ["csv", "parquet", "h5", "fits", "tabledata.xml", "avro", "dict"])
@pytest.mark.parametrize(
    ("old", "new"), [("bp_coefficients", "BP_coeff"), ("bp_coefficients", "bp_coefs"), ("rp_coefficients", "rp_Coefs")]
)
def test_the_nearest_column_is_suggested_as_it_is_spelled(form, old, new, tmp_path, rng, monkeypatch):
    for ending in ("coeff", "coefs"):
        monkeypatch.setitem(spectrum_formats.TYPES, ending, np.float64)
    monkeypatch.setattr(spectrum_formats, "is_array", lambda name: np.ndim(columns[name][0]) > 0)
    columns = some_columns(rng)
    columns[new] = columns.pop(old)
    error = error_of(make(form, columns, tmp_path))
    assert error.message == f"there is no column {old}; is {new} that of {old}?"
    assert error.field == old


def test_no_column_of_the_other_band_is_suggested(tmp_path, rng):
    columns = some_columns(rng)
    columns = {name: values for name, values in columns.items() if name not in ("bp_coefficients", "rp_coefficients")}
    error = error_of(columns | {"rp_coeffs": some_columns(rng)["rp_coefficients"]})
    assert error.message.endswith("; is rp_coeffs that of rp_coefficients?")


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_what_a_sampled_spectrum_lacks(form, tmp_path):
    for name, other in (("flux_error", "flux_err"), ("flux", "fluxes")):
        names = ["source_id", other, *({"flux", "flux_error"} - {name})]
        path = tmp_path / f"sampled.{form}"
        if form == "csv":
            path.write_text(",".join(names) + "\n1,[1],[2]\n")
        else:
            pq.write_table(pa.table({each: [1] if each == "source_id" else [[1.0]] for each in names}), path)
        assert error_of(path).message == f"there is no column {name}; is {other} that of {name}?"


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 10,
        b'{"source_id": [1, 2]}\n',
        b"source_id;bp_coefficients\n1;2\n",
        b"ARROW1\0\0source_id\n",
        b"These are no spectra.\n",
    ],
)
def test_what_is_in_no_known_format(content, tmp_path):
    path = tmp_path / "spectra"
    path.write_bytes(content)
    assert "this is none of the formats that are read (csv with commas, tabs or spaces" in error_of(path).message


# ---- files that are not whole


@pytest.mark.parametrize("place", ["<TABLE", "</RESOURCE"])
@pytest.mark.parametrize(
    ("status", "message"), [("OVERFLOW", "the server has truncated it"), ("ERROR", "holds an error .*: disk full")]
)
def test_a_votable_that_its_server_has_not_finished(place, status, message, tmp_path, rng):
    path = make("tabledata.xml", some_columns(rng), tmp_path)
    before, after = path.read_text().split(place, 1)
    path.write_text(f'{before}<INFO name="QUERY_STATUS" value="{status}">disk full</INFO>{place}{after}')
    for read in (lambda: list(read_blocks(path, FEW)), lambda: open_table(path)):
        with pytest.raises(InputError, match=message) as caught:
            read()
        assert caught.value.file == str(path)
    path.write_text(f'{before}<INFO name="QUERY_STATUS" value="OK"/>{place}{after}')
    assert len(list(read_blocks(path, FEW))) == 1


def test_damaged_rows_are_named_and_those_before_are_kept(tmp_path, rng):
    columns = some_columns(rng, 30)
    table = make("arrow", columns, tmp_path)
    packed = tmp_path / "spectra.parquet"
    pq.write_table(table, packed, row_group_size=5, compression="gzip", use_dictionary=False)
    group = pq.read_metadata(packed).row_group(4)
    index = table.column_names.index("rp_coefficients")
    damage(packed, group.column(index).data_page_offset + 40)
    chunked = tmp_path / "spectra.h5"
    with h5py.File(make("h5", columns, tmp_path, "plain")) as plain, h5py.File(chunked, "w") as file:
        for name, data in plain.items():
            options = {"chunks": (5, *data.shape[1:]), "compression": "gzip"}
            file.create_dataset(name, data=data[()], **options)
        place = file["rp_coefficients"].id.get_chunk_info(4).byte_offset
    damage(chunked, place + 20)
    for path in (packed, chunked):
        blocks = read_blocks(path, FEW, rows=8)
        good = [number for _ in range(2) for number in next(blocks).source_id.tolist()]
        assert good == columns["source_id"][:16]
        with pytest.raises(InputError, match="rows 17 to 24") as caught:
            next(blocks)
        assert caught.value.row == 17
        assert "rows 1 to 30" in error_of(path).message


def damage(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place : place + 30] = bytes(byte ^ 0xFF for byte in content[place : place + 30])
    path.write_bytes(content)


@pytest.mark.parametrize("form", ["h5", "fits", "parquet"])
def test_numbers_of_any_bits_cause_no_warning(form, tmp_path, rng):
    columns = some_columns(rng)
    signalling = np.array([0x7FF0000000000001], np.uint64).view(np.float64)
    columns["bp_coefficient_errors"] = [np.tile(signalling, 5), *rng.lognormal(size=(4, 5))]
    columns["rp_standard_deviation"] = np.array([0x7F800001] * 5, np.uint32).view(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(spectrum_formats.TYPES, "coefficient_errors", np.float64)
        path = make(form, columns, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (block,) = read_blocks(path, FEW)
    assert block.bad.tolist() == [True, False, False, False, False]
