"""Files of every format that are damaged, foreign or not there, and what is left of them."""

from __future__ import annotations

import gzip
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits, votable
from astropy.table import Table
from command_lines import ENGINE, STARS, catalog_arguments, one_line, read
from gaia_rows import assert_same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xpkern as xk
from bench.spectrum_formats import FEW, FILES, columns_of, make, some_columns
from xpkern.cli import main
from xpkern.errors import InputError
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks
from xpkern.status import Status

#: One of each family; what is done to a file as a whole meets the same code in the others.
FAMILIES = ("csv", "csv.gz", "ecsv", "h5", "fits", "tabledata.xml", "binary2.xml", "parquet", "avro")

#: Those that yield the rows before a break.
STREAMS = ("csv", "csv.gz", "ecsv", "avro")


def read_as_far_as_it_goes(path: Path, rows: int = 2) -> tuple[list[int], list[int], InputError | None]:
    """The sources of the good rows, the numbers of the bad ones, and the error that ended the reading."""
    good: list[int] = []
    bad: list[int] = []
    try:
        for block in read_blocks(path, FEW, rows=rows):
            good += block.source_id[~block.bad].tolist()
            bad += [reason[1] for reason in block.reasons]
            assert len(block.reasons) == block.bad.sum()
            for numbers in vars(block.coefficients).values():
                assert np.isfinite(numbers).all()
    except InputError as error:
        return good, bad, error
    return good, bad, None


# ---- the catalogue is that of the bulk file


def test_the_catalogue_is_the_same_from_every_format(bulk_files, expected_catalog, tmp_path):
    (block,) = read_blocks(bulk_files.spectra, Calibration.default())
    spectra = [make(form, columns_of(block.source_id, block.coefficients), tmp_path) for form in FILES]
    xk.make_catalog(spectra, tmp_path / "catalog.h5", gaia_source=bulk_files.gaia_source, engine=ENGINE, threads=1)
    catalog = read(tmp_path / "catalog.h5")
    for name, values in expected_catalog.items():
        for form, found in zip(FILES, np.split(catalog[name], len(FILES)), strict=True):
            np.testing.assert_array_equal(found, values, err_msg=f"{name} from {form}")


def test_a_bad_row_costs_no_other_and_a_repeated_one_is_marked(bulk_files, expected_catalog, tmp_path, capsys):
    forms = ("ecsv", "h5", "fits", "binary.xml", "parquet", "avro")
    (block,) = read_blocks(bulk_files.spectra, Calibration.default())
    columns = columns_of(block.source_id, block.coefficients)
    columns["rp_coefficient_errors"][3] = -columns["rp_coefficient_errors"][3]
    columns["source_id"][7] = columns["source_id"][6]
    spectra = [str(make(form, columns, tmp_path)) for form in forms]
    _, *arguments = catalog_arguments(bulk_files.spectra, bulk_files)
    assert main(["catalog", *spectra, *arguments[1:], "-o", str(tmp_path / "catalog.h5")]) == 3
    message = one_line(capsys)
    assert f"rows that could not be read: {len(forms)} (" in message
    assert "row 4, field rp_coefficient_errors: spectra.ecsv: element 1, -" in message
    reasons = (tmp_path / "catalog.reasons.csv").read_text().splitlines()[1:]
    assert all(f"spectra.{form}: element 1, -" in reason for form, reason in zip(forms, reasons, strict=True))
    catalog = read(tmp_path / "catalog.h5")
    others = ~np.isin(np.arange(STARS), [3, 7])
    for status in np.split(catalog["status"], len(forms)):
        assert np.flatnonzero(status & Status.BAD_ROW).tolist() == [3]
        assert np.flatnonzero(status & Status.REPEATED_SOURCE).tolist() == [7]
    for name, values in expected_catalog.items():
        for found in np.split(catalog[name], len(forms)):
            np.testing.assert_array_equal(found[others], values[others], err_msg=name)


def test_negative_fluxes_and_covariances_that_are_none(bulk_files, tmp_path):
    """Neither is a bad row: the first is noise, and the eigenvalues of the second are floored, which is counted."""
    (block,) = read_blocks(bulk_files.spectra, Calibration.default())
    columns = columns_of(block.source_id, block.coefficients)
    columns["bp_coefficients"][1] = -columns["bp_coefficients"][1]
    for band in ("bp", "rp"):
        columns[f"{band}_coefficients"][2] = 1e-6 * columns[f"{band}_coefficients"][2]
        columns[f"{band}_coefficient_correlations"][2] = np.full(1485, -0.9, np.float32)
    stars = xk.read_xp(make("parquet", columns, tmp_path), engine=ENGINE)
    assert not stars.reasons
    assert (stars.flux[1, :20] < 0).any()
    floored = (stars.status & np.uint32(Status.EIGENVALUE_FLOORED | Status.SINGULAR_COVARIANCE)) != 0
    assert floored.tolist() == [row == 2 for row in range(STARS)]


# ---- files that are something else


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (gzip.compress(b"", mtime=0), "no header line"),
        (b"PK\x03\x04 and more", "zip archive"),
        (b"BZh91AY&SY", "compressed by bzip2"),
        (b"\xfd7zXZ\x00", "compressed by xz"),
        (b"\x28\xb5\x2f\xfd\x00", "compressed by zstd"),
        (pickle.dumps({"source_id": [1]}, protocol=4), "is a pickle, which is never loaded"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"<!DOCTYPE html><html><body>Service unavailable</body></html>", "is a web page, not a VOTable"),
        (b"<?xml version='1.0'?><note/>", "is an XML document, not a VOTable"),
        (b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY a 'b'>]><VOTABLE/>", "defines entities"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "not a readable HDF5 file"),
        (b"PAR1" + bytes(100), "not a readable Parquet file"),
        (b"Obj\x01" + bytes(100), "not a readable AVRO file"),
        (b"SIMPLE  =                    T" + b" " * 50, "not a readable FITS file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_foreign_files(content, message, tmp_path):
    path = tmp_path / "spectra"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_blocks(path, FEW))
    assert caught.value.file == str(path)


def test_an_error_document_in_place_of_a_votable(tmp_path):
    path = tmp_path / "spectra.vot"
    path.write_text(
        '<?xml version="1.0"?><VOTABLE version="1.3"><RESOURCE type="results">'
        '<INFO name="QUERY_STATUS" value="ERROR">Job not\nfound</INFO></RESOURCE></VOTABLE>'
    )
    with pytest.raises(InputError, match="holds an error in place of a table: Job not found"):
        list(read_blocks(path, FEW))


def test_the_wrong_hdu(tmp_path):
    path = tmp_path / "spectra.fits"
    table = fits.BinTableHDU.from_columns([fits.Column("ra", "D", array=np.zeros(2))])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    with pytest.raises(
        InputError, match="none of its HDUs is a table with source_id: 0 is PrimaryHDU; 1 is a table of ra"
    ):
        list(read_blocks(path, FEW))


def in_one_file(form: str, tables: list[Table], path: Path) -> Path:
    """A file with several tables; in HDF5 they are groups."""
    if form == "fits":
        fits.HDUList([fits.PrimaryHDU(), *(fits.BinTableHDU(table) for table in tables)]).writeto(path)
    elif form == "h5":
        with h5py.File(path, "w") as file:
            for number, table in enumerate(tables):
                for name in table.colnames:
                    file[f"{number}/{name}"] = np.asarray(table[name])
    else:
        document = votable.from_table(tables[0])
        for table in tables[1:]:
            document.resources.append(votable.from_table(table).resources[0])
        votable.writeto(document, str(path))
    return path


@pytest.mark.parametrize("form", ["fits", "h5", "xml"])
def test_the_table_of_spectra_is_found_among_others(form, tmp_path, rng, caplog):
    columns = some_columns(rng)
    (expected,) = read_blocks(make("dict", columns, tmp_path), FEW)
    spectra = Table(make("dict", columns, tmp_path))
    sources = Table({"source_id": columns["source_id"], "parallax": rng.random(5)})
    other = Table({"ra": rng.random(5)})
    for number, tables in enumerate([[sources, spectra], [spectra, sources], [other, sources, spectra, spectra]]):
        caplog.clear()
        (block,) = read_blocks(in_one_file(form, tables, tmp_path / f"{number}.{form}"), FEW)
        assert_same(block, expected)
        assert ("2 tables hold what is asked for" in caplog.text) == (number == 2)
    path = in_one_file(form, [sources, sources], tmp_path / f"none.{form}")
    with pytest.raises(InputError, match="is a table with source_id and any of flux, flux_error, bp_coeff") as caught:
        list(read_blocks(path, FEW))
    assert caught.value.file == str(path)
    path = in_one_file(form, [other, other], tmp_path / f"no key.{form}")
    with pytest.raises(InputError, match="source_id"):
        list(read_blocks(path, FEW))
    # of the one that is meant, it is told what is missing
    del spectra["rp_coefficients"]
    path = in_one_file(form, [sources, spectra], tmp_path / f"missing.{form}")
    with pytest.raises(InputError, match="no column rp_coefficients"):
        list(read_blocks(path, FEW))


def test_gaia_source_is_found_behind_spectra(tmp_path, rng):
    columns = some_columns(rng)
    sources = Table({"source_id": columns["source_id"], "parallax": rng.random(5), "parallax_error": np.ones(5)})
    path = in_one_file("fits", [Table(make("dict", columns, tmp_path)), sources], tmp_path / "both.fits")
    stars = xk.read_xp(path, path, calibration=FEW, engine="reference")
    assert (stars.columns["parallax"] == sources["parallax"]).all()


def test_absent_and_unreadable_files_and_folders(bulk_files, tmp_path, capsys):
    for path in (tmp_path / "nothing.fits", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            list(read_blocks(path, FEW))
    secret = make("fits", some_columns(np.random.default_rng()), tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir()
    hidden = make("fits", some_columns(np.random.default_rng()), closed)
    secret.chmod(0)
    closed.chmod(0o700)
    tmp_path.chmod(0o755)
    command = (
        "import os, sys; import xpkern.observe.read, xpkern.model; from xpkern.observe.spectra import read_blocks\n"
        "from xpkern.observe.calibration import Calibration; from xpkern.errors import InputError\n"
        "calibration = Calibration.default()\n"
        "from xpkern.observe.gaia_source import SourceTable\n"
        "for folder in sys.argv[3:]: os.chmod(folder, 0o755)\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "reads = [lambda path: list(read_blocks(path, calibration)),"
        " lambda path: SourceTable.of(path, 'table', ('ra',))]\n"
        "for path in sys.argv[1:3]:\n"
        "    for read in reads:\n"
        "        try: read(path)\n"
        "        except InputError as error: print(error)\n"
    )
    folders = [str(folder) for folder in list(tmp_path.parents)[:2]]
    ran = subprocess.run(
        [sys.executable, "-c", command, str(secret), str(hidden), *folders], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "".join(f"{path}: cannot be read (Permission denied)\n" * 2 for path in (secret, hidden))


# ---- files that break off or hold garbage


@pytest.mark.parametrize("form", FAMILIES)
def test_a_file_that_breaks_off(form, tmp_path, rng):
    columns = some_columns(rng, 40)
    path = make(form, columns, tmp_path)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.7, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        good, bad, error = read_as_far_as_it_goes(path)
        assert good == columns["source_id"][: len(good)]
        # a csv file may end in the middle of a line, and FITS in what fills its last record
        assert error is not None or bad == [len(good) + 1] or (form == "fits" and share == 0.99 and len(good) == 40)
        if form in STREAMS and share > 0.5:
            assert len(good) > 20 - 2
        if form in ("csv.gz", "avro") and good:
            assert error is not None
            assert error.row == len(good) + 1


@pytest.mark.parametrize("form", FAMILIES)
def test_gzip_around_any_format(form, tmp_path, rng):
    columns = some_columns(rng, 30)
    path = make(form, columns, tmp_path)
    packed = gzip.compress(path.read_bytes()) if form != "csv.gz" else path.read_bytes()
    path.write_bytes(packed)
    assert read_as_far_as_it_goes(path) == (columns["source_id"], [], None)
    wrong_sum = bytearray(packed)
    wrong_sum[-7] ^= 1
    for content, message in (
        (packed[:-10], "end too early"),
        (packed[: len(packed) // 2], "end too early"),
        (packed + b"garbage", "followed by something else"),
        (bytes(wrong_sum), "corrupt"),
    ):
        path.write_bytes(content)
        good, bad, error = read_as_far_as_it_goes(path)
        assert error is not None
        assert message in str(error)
        assert (good, bad) == (columns["source_id"][: len(good)], [])


@pytest.mark.parametrize("form", FAMILIES)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_ends_in_anything_but_a_reason(form, tmp_path, data):
    path = tmp_path / f"spectra.{form}"
    if not path.exists():
        make(form, some_columns(np.random.default_rng(1), 6), tmp_path)
        (tmp_path / "whole").write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "whole").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(
            st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f\xff"]))
        )
        content[place : place + data.draw(st.sampled_from([len(new), 0, 5]))] = new
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_as_far_as_it_goes(path)


# ---- sizes that headers claim


def test_absurd_shapes_are_refused_before_memory_is_asked_for(tmp_path, rng):
    columns = some_columns(rng, 3)
    path = make("h5", columns, tmp_path)
    huge = 1 << 40

    def claim(name, shape, **options):
        with h5py.File(path, "r+") as file:
            del file[name]
            file.create_dataset(name, shape, "f4", **options)

    claim("bp_coefficient_errors", (huge, 5), chunks=(1000, 5))
    with pytest.raises(InputError, match=r"its shape \(1099511627776, 5\) is absurd in a file of"):
        list(read_blocks(path, FEW))
    claim("bp_coefficient_errors", (3, huge), chunks=(1, 1000))
    with pytest.raises(InputError, match="absurd"):
        list(read_blocks(path, FEW))
    claim("bp_coefficient_errors", (3, 5), chunks=(1 << 27, 5), maxshape=(None, 5))
    with pytest.raises(InputError, match=r"chunks of shape \(134217728, 5\) are too large"):
        list(read_blocks(path, FEW))

    path = tmp_path / "huge.parquet"
    numbers = pa.array(np.zeros((1 << 18) * 5, np.float32))
    table = make("arrow", some_columns(rng, 3), tmp_path)
    offsets = pa.array([0, len(numbers), len(numbers), len(numbers)], pa.int32())
    index = table.column_names.index("bp_coefficient_errors")
    pq.write_table(table.set_column(index, "bp_coefficient_errors", pa.ListArray.from_arrays(offsets, numbers)), path)
    with pytest.raises(InputError, match="1310722 numbers in 3 rows is absurd"):
        list(read_blocks(path, FEW))

    path = make("tabledata.xml", columns, tmp_path)
    path.write_text(path.read_text().replace("<TABLE>", '<TABLE nrows="99999999999">'))
    with pytest.raises(InputError, match="99999999999 rows in a file of"):
        list(read_blocks(path, FEW))

    path = make("fits", columns, tmp_path)
    content = bytearray(path.read_bytes())
    rows = content.index(b"NAXIS2  =")
    content[rows + 10 : rows + 30] = b"%20d" % huge
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"ends too early|not a readable FITS file"):
        list(read_blocks(path, FEW))


def test_an_array_outside_the_file(tmp_path, rng):
    path = make("fits", some_columns(rng, 3), tmp_path)
    with fits.open(path) as hdus:
        start = hdus[1].fileinfo()["datLoc"]
        place = start + hdus[1].header["NAXIS1"]  # the second row
        offset = sum(hdus[1].columns.dtype[name].itemsize for name in hdus[1].columns.names[:4])
    content = bytearray(path.read_bytes())
    content[place + offset : place + offset + 8] = np.array([5, 1 << 30], ">i4").tobytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match="its array of 5 numbers lies outside the file's data") as caught:
        list(read_blocks(path, FEW))
    assert (caught.value.row, caught.value.field) == (2, "bp_coefficients")


def test_avro_with_arrays_of_nothing(tmp_path):
    import fastavro

    path = tmp_path / "bomb.avro"
    nothing = {"name": "bp_coefficients", "type": {"type": "array", "items": "null"}}
    schema = {"type": "record", "name": "x", "fields": [{"name": "source_id", "type": "long"}, nothing]}
    with open(path, "wb") as stream:
        fastavro.writer(stream, schema, [{"source_id": 1, "bp_coefficients": [None] * 100}])
    with pytest.raises(InputError, match="items without any bytes"):
        list(read_blocks(path, FEW))


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "spectra.csv")
    (tmp_path / "link").symlink_to("spectra.csv")
    for name in ("spectra.csv", "link"):
        with pytest.raises(InputError, match=rf"{name}: is a named pipe: give a file, or an open pipe"):
            next(read_blocks(tmp_path / name, FEW))


def test_a_pipe_is_read_as_a_file(tmp_path, rng):
    columns = some_columns(rng, 3)
    for form in ("csv", "parquet"):
        content = make(form, columns, tmp_path).read_bytes()
        reader, writer = os.pipe()
        os.write(writer, content)
        os.close(writer)
        assert read_as_far_as_it_goes(Path(f"/dev/fd/{reader}")) == (columns["source_id"], [], None)
        os.close(reader)


def test_sources_of_earlier_files_are_counted(bulk_files, tmp_path, capsys):
    """Not marked: what is in a row does not depend on the files beside its own. A bad row is not known to be one."""
    (block,) = read_blocks(bulk_files.spectra, Calibration.default())
    columns = columns_of(block.source_id, block.coefficients)
    halves = [{name: values[rows] for name, values in columns.items()} for rows in (slice(0, 10), slice(6, STARS))]
    halves[1]["source_id"][1] = halves[1]["source_id"][0]  # the same file's
    halves[1]["rp_coefficient_errors"][2] = -halves[1]["rp_coefficient_errors"][2]
    files = [make("parquet", half, tmp_path, name) for half, name in zip(halves, "ab", strict=True)]
    stars = xk.read_xp(files, engine=ENGINE)
    assert np.flatnonzero(stars.status & Status.REPEATED_SOURCE).tolist() == [11]
    assert stars.counts["sources_in_earlier_files"] == 2
    blocks = xk.iter_xp(files, engine=ENGINE, rows=3)
    assert sum(stars.counts["sources_in_earlier_files"] for stars in blocks) == 2
    assert "sources_in_earlier_files" not in xk.read_xp(files[1], engine=ENGINE).counts
    output = tmp_path / "spectra.h5"
    assert main(["spectra", *map(str, files), "--engine", ENGINE, "--no-whiteners", "-o", str(output)]) == 3
    assert "         2  rows of sources that an earlier file has, too" in capsys.readouterr().out
    with h5py.File(output) as file:
        assert file.attrs["sources_in_earlier_files"] == 2
