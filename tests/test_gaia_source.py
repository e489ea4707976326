"""Tables joined by source_id: every kind, in every order, and what is wrong with them."""

import gzip
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from xpkern.errors import InputError
from xpkern.observe.gaia_source import GAIA_COLUMNS, SourceTable

#: Ids that differ in a digit that float64 does not have.
IDS = np.array([4295806720000000003, 4295806720000000001, 4295806720000000002, 7], np.int64)
COLUMNS = {
    "source_id": IDS,
    "parallax": np.array([1.0, 2.0, np.nan, 4.0]),
    "phot_g_mean_mag": np.array([10.0, 11.0, 12.0, 13.0], np.float32),
    "ph_qual": np.array(["AAA", "ABC", "", "UUU"]),
}
ASKED = np.array([7, 5, 4295806720000000001, 4295806720000000002, -1], np.int64)
WANTED = (*GAIA_COLUMNS, "ph_qual", "norm_dg")

CSV = """source_id,ra,ph_qual,parallax,phot_g_mean_mag,unwanted
4295806720000000003,null,AAA,1.0,10.0,x
4295806720000000001,"",ABC,2.0,11.0,"y,z"
4295806720000000002,,,NaN,12.0,
7,,UUU,4.0,13.0,
"""


def tables(tmp_path):
    import pandas
    import pyarrow.parquet
    from astropy import units
    from astropy.table import MaskedColumn, QTable, Table
    from astropy.utils.masked import Masked

    masked = Table(COLUMNS, masked=True)
    masked["parallax"] = MaskedColumn([1.0, 2.0, 99.0, 4.0], mask=[False, False, True, False])
    quantities = QTable(COLUMNS)
    quantities["parallax"] = Masked([1.0, 2.0, 99.0, 4.0] * units.mas, mask=[False, False, True, False])
    quantities["phot_g_mean_mag"] = COLUMNS["phot_g_mean_mag"] * units.mag
    structured = np.zeros(4, [(name, values.dtype) for name, values in COLUMNS.items()])
    for name, values in COLUMNS.items():
        structured[name] = values
    frame = pandas.DataFrame(COLUMNS)
    nullable = frame.convert_dtypes()
    upper = {name.upper(): values for name, values in COLUMNS.items()}
    paths = [tmp_path / name for name in ("plain.csv", "ecsv.csv", "crlf.CSV", "bom.csv", "table.ecsv")]
    texts = [
        CSV,
        f"# %ECSV 1.0\n# ---\n# a comment, with commas\n{CSV}",
        CSV.replace("\n", "\r\n"),
        "\ufeff" + CSV,
        CSV,
    ]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text, newline="")
    compressed = tmp_path / "table.csv.gz"
    compressed.write_bytes(gzip.compress(CSV.encode()))
    fits, votable = tmp_path / "table.fits", tmp_path / "table.vot"
    Table(COLUMNS).write(fits)
    Table(COLUMNS).write(votable, format="votable")
    # the same under names that say nothing, or something else
    others = []
    for name, content in {
        "gzipped.csv": compressed.read_bytes(),
        "not gzipped.csv.gz": CSV.encode(),
        "some text": CSV.replace('"y,z"', "y").replace(",", "\t").encode(),
        "a result.vot.gz": gzip.compress(votable.read_bytes()),
        "votable.csv": votable.read_bytes(),
        "fits.dat": fits.read_bytes(),
        "fits": gzip.compress(fits.read_bytes()),
    }.items():
        (tmp_path / name).write_bytes(content)
        others.append(tmp_path / name)
    for name in ("table.parquet", "table of part 0"):
        paths.append(tmp_path / name)
        pyarrow.parquet.write_table(pyarrow.table(COLUMNS), paths[-1])
    for number, delimiter in enumerate((",", " ")):
        paths.append(tmp_path / f"of astropy {number}.ecsv")
        Table(COLUMNS).write(paths[-1], delimiter=delimiter)
    return [
        COLUMNS, structured, Table(COLUMNS), quantities, masked, frame, nullable, pyarrow.table(COLUMNS), upper,
        *paths, str(paths[0]), compressed, fits, votable, *others,
    ]  # fmt: skip


def test_every_kind_of_table_gives_the_same(tmp_path):
    for kind in tables(tmp_path):
        table = SourceTable.of(kind, "table", WANTED)
        assert len(table) == 4
        assert "ph_qual" in table
        assert "norm_dg" not in table
        rows = table.rows_of(ASKED)
        assert rows.tolist() == [3, -1, 1, 2, -1]
        parallax = table.numbers("parallax", rows)
        assert parallax.dtype == np.float64
        assert np.array_equal(parallax, [4.0, np.nan, 2.0, np.nan, np.nan], equal_nan=True), kind
        assert np.array_equal(table.numbers("phot_g_mean_mag", rows)[[0, 2, 3]], [13.0, 11.0, 12.0])
        assert table.texts("ph_qual", rows).tolist() == ["UUU", "", "ABC", "", ""], kind


def test_what_has_no_value_stays_so_whatever_the_type():
    masked = np.array([False, True, False, False])
    columns = {
        "source_id": IDS,
        "real": np.ma.array(np.float32([1, 2, 3, np.nan]), mask=masked),
        "whole": np.ma.array([1, 2, 3, 4], mask=masked),
        "complete": np.ma.array(np.arange(4.0)),
        "bytes": np.ma.array(np.array([b"AB", b"CD", b"", b"\xe9F"]), mask=masked),
        "texts": np.ma.array(["AB", "CD", "", "EF"], mask=masked),
    }
    table, rows = SourceTable.of(columns, "table", ()), np.array([3, 1, 0, -1])
    for _ in range(2):  # the first time a column is looked at it may be changed for the next
        np.testing.assert_array_equal(table.numbers("real", rows), [np.nan, np.nan, 1, np.nan])
        np.testing.assert_array_equal(table.numbers("whole", rows), [4, np.nan, 1, np.nan])
        np.testing.assert_array_equal(table.numbers("complete", rows), [3, 1, 0, np.nan])
        assert table.texts("bytes", rows).tolist() == ["\ufffdF", "", "AB", ""]
        assert table.texts("texts", rows).tolist() == ["EF", "", "AB", ""]
    assert columns["real"].mask.tolist() == masked.tolist()


@pytest.mark.parametrize("form", ["h5", "xml", "fits"])
def test_one_of_several_tables(form, tmp_path):
    """In HDF5, groups; the one that has most of the columns is read, in the units that it names."""
    from astropy import units
    from astropy.io import fits, votable
    from astropy.table import Table

    other = Table({"source_id": [7, 8], "text": ["a", "b"]})
    sources = Table({"source_id": [3, 5], "parallax": [0.001, 0.002] * units.arcsec, "parallax_error": [0.1, 0.2]})

    def written(tables, name):
        path = tmp_path / f"{name}.{form}"
        if form == "fits":
            fits.HDUList([fits.PrimaryHDU(), *(fits.BinTableHDU(table) for table in tables)]).writeto(path)
        elif form == "h5":
            with h5py.File(path, "w") as file:
                for number, table in enumerate(tables):
                    for column in table.itercols():
                        values = np.asarray(column)
                        values = values.astype("S") if values.dtype.kind == "U" else values
                        place = file.create_dataset(f"{number}/{column.name}", data=values)
                        place.attrs["unit"] = str(column.unit or "")
        else:
            document = votable.from_table(tables[0])
            document.resources.extend(votable.from_table(table).resources[0] for table in tables[1:])
            votable.writeto(document, str(path))
        return path

    wanted = ("parallax", "parallax_error")
    for number, tables in enumerate([[other, sources], [sources, other]]):
        found = SourceTable.of(written(tables, number), "table", wanted)
        np.testing.assert_allclose(found.numbers("parallax", found.rows_of(np.array([5, 3, 7]))), [2, 1, np.nan])
    sources.rename_column("source_id", "sourceid")
    path = written([sources], "one")
    with pytest.raises(InputError, match="source_id") as caught:
        SourceTable.of(path, "table", wanted)
    assert (caught.value.file, caught.value.field) == (str(path), "source_id")


def test_fits_is_read_as_astropys_tables_have_it_but_without_them(tmp_path, rng):
    """Unsigned and missing integers, text of some letters or none, NaN; a table of something else before it."""
    from astropy.io import fits
    from astropy.table import Table

    n = 40
    source_id = rng.permutation(10**15 + np.arange(n))
    sources = fits.BinTableHDU.from_columns(
        [
            fits.Column("SOURCE_ID", "K", array=source_id),
            fits.Column("real", "E", unit="mas", array=np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n))),
            fits.Column("unsigned", "J", bzero=2**31, array=rng.integers(2**31, 2**32, n).astype(np.uint32)),
            fits.Column("whole", "I", null=-9, array=np.where(rng.random(n) < 0.3, -9, np.arange(n)).astype(np.int16)),
            fits.Column("text", "3A", array=rng.choice(["ABC", "AU", ""], n)),
            fits.Column("parallax", "D", unit="arcsec", array=rng.random(n)),
        ]
    )
    path, compressed = tmp_path / "sources.fits", tmp_path / "sources.fits.gz"
    other = fits.BinTableHDU.from_columns([fits.Column("name", "2A", array=["ab"])])
    fits.HDUList([fits.PrimaryHDU(), other, sources]).writeto(path)
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    wanted = ("real", "unsigned", "whole", "text", "parallax")
    expected = SourceTable.of(Table.read(path, hdu=2), "table", wanted)
    program = f"""
import sys
from xpkern.observe.gaia_source import SourceTable
assert "parallax" in SourceTable.of({str(path)!r}, "", {wanted!r})
assert "astropy.table" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    rows = expected.rows_of(source_id)
    for each in (path, compressed):
        found = SourceTable.of(each, "table", wanted)
        np.testing.assert_array_equal(found.rows_of(source_id), rows)
        for name in wanted:
            if name == "text":
                assert found.texts(name, rows).tolist() == expected.texts(name, rows).tolist()
            else:
                np.testing.assert_array_equal(found.numbers(name, rows), expected.numbers(name, rows))


def test_units_are_converted(tmp_path):
    import h5py
    from astropy import units
    from astropy.table import Column, QTable

    table = QTable(COLUMNS)
    table["parallax"] = (COLUMNS["parallax"] * units.mas).to(units.arcsec)
    table["ra"] = [900.0, 1800.0, 2700.0, 3600.0] * units.arcmin
    kinds = [table, tmp_path / "t.fits", tmp_path / "t.vot", tmp_path / "t.h5"]
    table.write(kinds[1])
    table.write(kinds[2], format="votable")
    with h5py.File(kinds[3], "w") as file:
        for name in ("source_id", "parallax", "ra"):
            file[name] = np.asarray(table[name])
            file[name].attrs["unit"] = str(table[name].unit or "")
    for kind in kinds:
        found = SourceTable.of(kind, "table", WANTED)
        rows = found.rows_of(IDS)
        np.testing.assert_allclose(found.numbers("parallax", rows), COLUMNS["parallax"], rtol=1e-12)
        np.testing.assert_allclose(found.numbers("ra", rows), [15.0, 30.0, 45.0, 60.0], rtol=1e-12)
    table["parallax"] = COLUMNS["parallax"] * units.dimensionless_unscaled  # says nothing
    assert SourceTable.of(table, "table", ()).numbers("parallax", rows)[1] == 2.0
    unknown = units.Unit("Angle[mas]", parse_strict="silent")  # as some archives spell it
    assert (
        SourceTable.of({"source_id": IDS, "parallax": Column(COLUMNS["parallax"], unit=unknown)}, "t", ()) is not None
    )
    table["parallax"] = COLUMNS["parallax"] * units.mag
    with pytest.raises(InputError, match="table, field parallax: its unit is mag, which is no mas"):
        SourceTable.of(table, "table", ())


def test_a_table_stays_itself():
    table = SourceTable.of(COLUMNS, "table", ())
    assert SourceTable.of(table, "other", ()) is table


def test_csv_has_only_the_wanted_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    table = SourceTable.of(path, "table", ("parallax", "absent"))
    assert "parallax" in table
    assert "ra" not in table
    assert "absent" not in table


def test_empty_table():
    table = SourceTable.of({"source_id": np.empty(0, np.int64), "a": np.empty(0), "b": np.empty(0, "U3")}, "table", ())
    rows = table.rows_of(ASKED)
    assert rows.tolist() == [-1] * 5
    assert np.isnan(table.numbers("a", rows)).all()
    assert table.texts("b", rows).tolist() == [""] * 5


def test_source_id_twice():
    ids = np.array([5, 3, 9, 3, 3, 5])
    with pytest.raises(InputError, match="table, row 4, field source_id: 3 occurs more than once"):
        SourceTable.of({"source_id": ids}, "table", ())


@pytest.mark.parametrize(
    "ids",
    [np.array([1.0, 2.0]), np.array(["1", "2"]), np.ma.array([1, 2], mask=[False, True]), np.array([True, False])],
)
def test_source_id_must_be_integers(ids):
    with pytest.raises(InputError, match=r"source_id: .*integers"):
        SourceTable.of({"source_id": ids}, "table", ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ra,dec\n1,2\n", "no column source_id; there are ra, dec"),
        ("SourceID,ra\n1,2\n", "no column source_id; is sourceid that of source_id?"),
        ("source_id,ra\n1,2\n,3\n", "row 2, field source_id: empty"),
        ("source_id,ra\n1.5,2\n", "row 1, field source_id: '1.5' is no 64-bit integer"),
        (f"source_id,ra\n{2**63},2\n", f"row 1, field source_id: '{2**63}' is no 64-bit integer"),
        ("source_id,ra\n1,2\n\n2,abc\n3,4\n", "row 2, field ra: 'abc' is no number"),
        ("source_id,ra\n1,1_0\n", "row 1, field ra: '1_0' is no number"),
        ("# a comment\nsource_id,x,ra\n1,b,2\n1,b,2,3\n", "row 2: 4 fields, but the header names 3 columns"),
        ("source_id,x,ra\n1,b,2\n@#$%\n", "row 2, field x: the row ends after 1 of 3 fields"),
        ('source_id,ra\n1,"2\n3"\n', "row 1, field ra: '2.n3' is no number"),
        ("source_id,ra\n1,2\n1,3\n", "row 2, field source_id: 1 occurs more than once"),
        ("", "no header"),
        ("# only comments\n", "no header"),
        ("<!DOCTYPE html>\n<html>log in</html>", "is a web page, not a table"),
    ],
)
def test_broken_csv(tmp_path, text, message):
    path = tmp_path / "broken.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        SourceTable.of(path, "table", WANTED)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("name", ["nothing.csv", "nothing.csv.gz", "nothing.fits", "garbage.fits", "garbage.csv.gz"])
def test_unreadable_files_are_named(tmp_path, name):
    if name.startswith("garbage"):
        (tmp_path / name).write_bytes(b"garbage, whatever the name says")
    with pytest.raises(InputError, match="cannot be read") as caught:
        SourceTable.of(tmp_path / name, "table", WANTED)
    assert caught.value.file == str(tmp_path / name)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(InputError, match=r"table\.csv: is a pipe, which can be read only once: give a file"):
        SourceTable.of(tmp_path / "table.csv", "", ())


def test_truncated_gzip(tmp_path):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(CSV.encode() * 1000)[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        SourceTable.of(path, "table", WANTED)


def test_what_is_no_table():
    with pytest.raises(InputError, match="a int is no table"):
        SourceTable.of(3, "gaia_source", ())
    with pytest.raises(InputError, match="not a column of numbers"):
        SourceTable.of(COLUMNS, "table", ()).numbers("ph_qual", np.array([0]))
    with pytest.raises(InputError, match="table, field parallax: 2 rows, but 4 of source_id"):
        SourceTable.of(COLUMNS | {"parallax": COLUMNS["parallax"][:2]}, "table", ())
    with pytest.raises(InputError, match="table, field ra: no rows, but 4 of source_id"):
        SourceTable.of(COLUMNS | {"ra": 1.0}, "table", ())
    with pytest.raises(InputError, match="field ra: not a column of numbers, but of arrays"):
        SourceTable.of(COLUMNS | {"ra": np.zeros((4, 3))}, "table", ()).numbers("ra", np.array([0]))
    with pytest.raises(InputError, match="no column a, b"):
        SourceTable.of(COLUMNS, "table", ()).require(("a", "parallax", "b"))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.fits", "t.vot", "t.parquet", "t.h5", ""])
def test_the_nearest_to_a_missing_column_is_named(tmp_path, name):
    import h5py
    import pyarrow.parquet
    from astropy.table import Table

    columns = {"source_id": IDS, "Plx": np.ones(4), "e_Plx": np.ones(4), "ra": np.ones(4)}
    path = tmp_path / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    elif name.endswith(".h5"):
        with h5py.File(path, "w") as file:
            file.update(columns)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(b"# of VizieR\nsource_id,Plx,e_Plx,ra\n1,2,3,4\n"))
    elif name:
        Table(columns).write(path, format={".csv": "ascii.csv", ".vot": "votable"}.get(path.suffix))
    table = SourceTable.of(path if name else columns, "table", WANTED)
    with pytest.raises(
        InputError, match=r"field parallax: .*no column parallax, parallax_error; is plx that of"
    ) as caught:
        table.require(("ra", "parallax", "parallax_error"))
    assert caught.value.file == (str(path) if name else "table")


def test_parquet_with_nulls(tmp_path):
    import pyarrow.parquet

    columns = {"source_id": [7, 5], "parallax": [None, 2.0], "ph_qual": [None, "AAA"], "ext_key": [None, 3]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    table = SourceTable.of(tmp_path / "t.parquet", "table", columns)
    rows = table.rows_of(np.array([5, 7, 8]))
    assert table.texts("ph_qual", rows).tolist() == ["AAA", "", ""]
    for name, value in (("parallax", 2.0), ("ext_key", 3.0)):
        assert np.array_equal(table.numbers(name, rows), [value, np.nan, np.nan], equal_nan=True)
    pyarrow.parquet.write_table(pyarrow.table({"source_id": [1, None]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t\.parquet, field source_id: must be 64-bit integers"):
        SourceTable.of(tmp_path / "t.parquet", "table", columns)


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "t.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match=r"t\.parquet: cannot be read as Parquet"):
        SourceTable.of(tmp_path / "t.parquet", "table", ())


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_wanted_name_that_is_there_twice(tmp_path, name):
    import pyarrow.parquet

    path = tmp_path / name
    names = ["source_id", "Parallax", "parallax", "other", "OTHER"]
    if name.endswith(".csv"):
        path.write_text(",".join(names) + "\n1,2,3,4,5\n")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array([1])] * 5, names), path)
    with pytest.raises(InputError, match=r"field parallax: 2 columns have this name \(Parallax, parallax\)") as caught:
        SourceTable.of(path, "table", WANTED)
    assert caught.value.file == str(path)


def test_a_votable_that_the_server_has_truncated(tmp_path):
    from astropy.io.votable import from_table, tree
    from astropy.table import Table

    path = tmp_path / "t.vot"
    document = from_table(Table({"source_id": IDS}))
    for status in ("OK", "OVERFLOW"):
        document.resources[0].infos[:] = [tree.Info(name="QUERY_STATUS", value=status)]
        document.to_xml(str(path))
        if status == "OK":
            assert len(SourceTable.of(path, "table", WANTED)) == len(IDS)
    with pytest.raises(InputError, match="rows are missing, as the server has truncated it") as caught:
        SourceTable.of(path, "table", WANTED)
    assert caught.value.file == str(path)
