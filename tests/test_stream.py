"""A catalogue read in blocks: the same rows whatever its format, layout, files and blocks; and what is none."""

from __future__ import annotations

import gzip

import h5py
import numpy as np
import pytest
from astropy.table import MaskedColumn, Table
from catalog_files import SUFFIXES, part_of, random_rows

import xpkern as xk
from xpkern.catalog.output import CatalogOutput
from xpkern.catalog.schema import DEFAULT, DIAGNOSTICS, PARAMETER_COLUMNS
from xpkern.catalog.stream import CatalogReader
from xpkern.errors import InputError

STARS = 40


@pytest.fixture
def rows(rng):
    return random_rows(rng, STARS)


def write(path, rows, layout="default", attributes=None):
    with CatalogOutput(path, layout, attributes or {"made_by": "a test"}) as output:
        output.append(rows)
        output.commit()
    return path


def whole(reader, names, **options):
    blocks = list(reader.blocks(names, **options))
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}, [len(b) for b in blocks]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_column_of_every_format(rows, suffix, tmp_path):
    path = write(tmp_path / f"c{suffix}", rows)
    for table, columns in (("catalog", DEFAULT), ("diagnostics", DIAGNOSTICS)):
        reader = CatalogReader(path, table=table)
        assert len(reader) == STARS
        assert reader.names == tuple(column.name for column in columns)
        assert reader.attributes["made_by"] == "a test"
        found, sizes = whole(reader, reader.names, rows=16)
        assert sizes == [16, 16, 8]
        for column in columns:
            values = column.compute(rows)
            assert found[column.name].shape == values.shape
            assert found[column.name].dtype.isnative
            np.testing.assert_array_equal(found[column.name], values, err_msg=column.name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_published_layout_by_the_names_of_the_default_one(rows, suffix, tmp_path):
    covariance = rows.covariance
    object.__setattr__(rows, "covariance", covariance + covariance.transpose(0, 2, 1))
    default = CatalogReader(write(tmp_path / "default.h5", rows))
    published = CatalogReader(write(tmp_path / f"published{suffix}", rows, layout="zgr23"))
    shared = [name for name in published.names if name in default.names and name != "ln_prior"]
    assert set(shared) >= {"source_id", "ra", "chi2", "quality_flags", "teff_feh_corr", "ext_parallax_est_corr"}
    assert {f"{column.name}{end}" for column in PARAMETER_COLUMNS for end in ("", "_error")} <= set(shared)
    ours, theirs = whole(default, shared)[0], whole(published, shared)[0]
    for name in shared:
        # squares of huge or tiny errors do not fit into the published layout's 32 bits
        known = np.isfinite(theirs[name]) if name.endswith("_corr") else slice(None)
        np.testing.assert_allclose(theirs[name][known], ours[name][known], rtol=1e-5, err_msg=name)


def test_several_files_are_one_catalogue(rows, tmp_path):
    paths = [
        write(tmp_path / "a.h5", part_of(rows, slice(0, 17))),
        write(tmp_path / "b.fits", part_of(rows, slice(17, 17))),
        write(tmp_path / "c.parquet", part_of(rows, slice(17, None)), layout="zgr23"),
    ]
    reader = CatalogReader(paths)
    assert len(reader) == STARS
    assert "status" not in reader.names  # the published layout has none
    found, sizes = whole(reader, ["source_id", "teff"], optional=["status", "dec"], rows=16)
    assert [size for size in sizes if size] == [16, 1, 16, 7]
    np.testing.assert_array_equal(found["source_id"], rows.source_id)
    assert set(found) == {"source_id", "teff", "dec"}
    with pytest.raises(InputError, match=r"c\.parquet, field status: no such column; there are source_id"):
        next(reader.blocks(["status"]))
    assert len(xk.read_catalog(*paths)) == STARS


def test_what_is_missing_becomes_nan(tmp_path):
    table = Table({"source_id": np.arange(3), "teff": MaskedColumn([1.0, 2.0, 3.0], mask=[0, 1, 0])})
    table["quality_flags"] = MaskedColumn([0, 1, 2], mask=[1, 0, 0], dtype=np.uint8)
    table.write(tmp_path / "t.ecsv")
    (tmp_path / "t.ecsv.gz").write_bytes(gzip.compress((tmp_path / "t.ecsv").read_bytes()))
    for name in ("t.ecsv", "t.ecsv.gz"):
        found = whole(CatalogReader(tmp_path / name), ["source_id", "teff", "quality_flags"])[0]
        np.testing.assert_array_equal(found["teff"], [1.0, np.nan, 3.0])
        np.testing.assert_array_equal(found["quality_flags"], [np.nan, 1.0, 2.0])
    table["source_id"] = MaskedColumn([0, 1, 2], mask=[0, 1, 0])
    table.write(tmp_path / "m.ecsv")
    with pytest.raises(InputError, match=r"m\.ecsv, row 2, field source_id: missing"):
        list(CatalogReader(tmp_path / "m.ecsv").blocks(["source_id"]))


def test_formats_that_others_write(rows, tmp_path):
    names = ["source_id", "teff", "quality_flags"]
    table = Table.read(write(tmp_path / "c.ecsv", rows))[names]
    table.write(tmp_path / "c.vot", format="votable")
    table.write(tmp_path / "c.csv", format="ascii.csv")
    pipes = (tmp_path / "c.csv").read_text().replace(",", "|")
    (tmp_path / "pipes.csv.gz").write_bytes(gzip.compress(pipes.encode()))
    (tmp_path / "c.h5.gz").write_bytes(gzip.compress(write(tmp_path / "c.h5", rows).read_bytes()))
    expected = whole(CatalogReader(tmp_path / "c.h5"), names)[0]
    for name in ("c.vot", "c.csv", "pipes.csv.gz", "c.h5.gz"):
        reader = CatalogReader(tmp_path / name)
        assert len(reader) == STARS
        found, sizes = whole(reader, names, rows=16)
        assert sizes == [16, 16, 8]
        for column in names:
            np.testing.assert_allclose(found[column], expected[column], rtol=1e-6, err_msg=f"{name}: {column}")
        np.testing.assert_array_equal(found["source_id"], expected["source_id"])


def test_avro_is_read_from_its_first_row_each_time(tmp_path):
    import fastavro

    fields = [{"name": "source_id", "type": "long"}, {"name": "teff", "type": ["null", "double"]}]
    with open(tmp_path / "c.avro", "wb") as stream:
        records = [{"source_id": row, "teff": None if row == 2 else 0.5 * row} for row in range(5)]
        fastavro.writer(stream, {"type": "record", "name": "star", "fields": fields}, records)
    reader = CatalogReader(tmp_path / "c.avro")
    assert len(reader) == 5
    for _ in range(2):
        found, sizes = whole(reader, ["source_id", "teff"], rows=3)
        assert sizes == [3, 2]
        np.testing.assert_array_equal(found["source_id"], np.arange(5))
        np.testing.assert_array_equal(found["teff"], [0.0, 0.5, np.nan, 1.5, 2.0])


def test_ecsv_says_what_its_columns_are(tmp_path):
    """Its types hold where the first values look like others, and arrays in JSON may have gaps."""
    (tmp_path / "c.ecsv").write_text(
        "# %ECSV 1.0\n# ---\n# delimiter: ','\n# datatype:\n# - {name: source_id, datatype: int64}\n"
        "# - {name: teff, datatype: float32}\n# - {name: pair, datatype: string, subtype: 'float64[2]'}\n"
        "# meta: !!omap\n# - {made_by: a test}\n"
        'source_id,teff,pair\n1,5,"[1.5,NaN]"\n2,,\n3,0.1,"[null,2]"\n'
    )
    reader = CatalogReader(tmp_path / "c.ecsv")
    assert reader.attributes == {"made_by": "a test"}
    found, _ = whole(reader, reader.names)
    np.testing.assert_array_equal(found["teff"], np.array([5, np.nan, 0.1], np.float32))
    np.testing.assert_array_equal(found["pair"], [[1.5, np.nan], [np.nan, np.nan], [np.nan, 2.0]])
    text = (tmp_path / "c.ecsv").read_text()
    (tmp_path / "bad.ecsv").write_text(text.replace("[null,2]", "[null,2"))
    with pytest.raises(InputError, match=r"bad\.ecsv, row 3, field pair: not an array of numbers in JSON"):
        list(CatalogReader(tmp_path / "bad.ecsv").blocks(["pair"]))


def test_what_is_no_catalogue(rows, tmp_path):
    path = write(tmp_path / "c.h5", rows)
    with pytest.raises(InputError, match="field tef: no such column; did you mean teff"):
        next(CatalogReader(path).blocks(["tef"]))
    (tmp_path / "c.diagnostics.h5").unlink()
    with pytest.raises(InputError, match=r"c\.diagnostics\.h5 is not beside it"):
        CatalogReader(path, table="diagnostics")
    with pytest.raises(InputError, match="no catalogue in the HATS layout"):
        CatalogReader(tmp_path)
    with pytest.raises(InputError, match="no catalogue given"):
        CatalogReader([])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["gdr3_source_id"], file["stellar_params_est"] = np.arange(3), np.zeros((3, 4))
    with pytest.raises(InputError, match="neither the 5 parameters of v1"):
        CatalogReader(tmp_path / "other.h5")
    (tmp_path / "stars.csv").write_text("sourceid,teff\n1,5000\n")
    with pytest.raises(InputError, match=r"stars\.csv, field source_id: .*no catalogue; did you mean sourceid"):
        CatalogReader(tmp_path / "stars.csv")
    with pytest.raises(InputError, match=r"absent\.h5: no such file"):
        CatalogReader(tmp_path / "absent.h5")
    (tmp_path / "empty.h5").touch()
    with pytest.raises(InputError, match="is empty"):
        CatalogReader(tmp_path / "empty.h5")
    text = Table({"source_id": [1, 2], "name": ["a", "b"]})
    text.write(tmp_path / "text.fits")
    with pytest.raises(InputError, match="field name"):
        list(CatalogReader(tmp_path / "text.fits").blocks(["name"]))
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(InputError, match=r"c\.h5: not a readable HDF5 file"):
        CatalogReader(path)
