"""``xpkern match``: a catalogue by source_id, out of memory, from and to any format, ready for what reads it next."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.table import Table
from catalogues import DEC, RA, SOURCE_ID, N, gaia_source, lamost, write_fits
from command_lines import one_line
from test_crossmatch import nearest_by_astropy, sky

from xpkern.catalog import match, match_sides
from xpkern.catalog.match import match_tables
from xpkern.catalog.match_sides import CELLS, spread
from xpkern.cli import main
from xpkern.observe.crossmatch import moved
from xpkern.observe.gaia_source import SourceTable
from xpkern.observe.photometry import PhotometryCuts, cuts_made, infrared_flux
from xpkern.observe.sorted_runs import SortedRuns, key_ranges
from xpkern.train.label_table import make_label_table


@pytest.fixture
def tiny_parts(monkeypatch):
    """So few rows at a time that nothing fits."""
    monkeypatch.setattr(match_sides, "BLOCK_ROWS", 37)
    monkeypatch.setattr(match, "PART_ROWS", 41)


def write_hdf5(path: Path, columns: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
    return path


def write_csv(table: Table, path: Path) -> None:
    text = io.StringIO()
    table.write(text, format="ascii.csv")
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def read_hdf5(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: item[()] for name, item in file.items()}


def two_skies(rng, where, n=150, m=250):
    """Sources with ids in no order, rows a hundred of which are near a source, and of both one without a place."""
    ra, dec = sky(rng, n, where)
    other_ra, other_dec = sky(rng, m, where)
    other_ra[:100], other_dec[:100] = ra[:100], dec[:100] + rng.normal(0, 0.5 / 3600, 100)
    other_dec = np.clip(other_dec, -90, 90)
    ra[-1], other_dec[-1] = np.nan, np.nan
    sources = {"source_id": rng.permutation(np.arange(n) << 40) + 5, "ra": ra, "dec": dec}
    return sources, {"ra": other_ra, "dec": other_dec, "mag": rng.normal(15, 1, m).astype("f4"), "number": np.arange(m)}


@pytest.mark.parametrize("where", ["all over", "pole", "seam"])
@pytest.mark.parametrize("radius", [1.0, 500.0])
@pytest.mark.parametrize("how", ["source", "row", "pair"])
def test_what_the_whole_would_find(rng, tmp_path, tiny_parts, where, radius, how):
    sources, rows = two_skies(rng, where)
    here = (sources["ra"][:-1], sources["dec"][:-1])
    there = (rows["ra"][:-1], rows["dec"][:-1])
    source, row, apart = nearest_by_astropy(*here, *there, radius)
    back_row, back_source, back_apart = nearest_by_astropy(*there, *here, radius)
    if how == "row":
        source, row, apart = back_source, back_row, back_apart
    if how == "pair":
        nearest = dict(zip(back_row, back_source, strict=True))
        mutual = np.array([nearest[r] == s for s, r in zip(source, row, strict=True)])
        one_sided = int((~mutual).sum())
        source, row, apart = source[mutual], row[mutual], apart[mutual]
    order = np.lexsort((apart, sources["source_id"][source]))
    summary = match_tables(
        write_hdf5(tmp_path / "rows.h5", rows),
        write_hdf5(tmp_path / "sources.h5", sources),
        tmp_path / "matched.h5",
        radius=radius,
        nearest_of=None if how == "pair" else how,
        one_to_one=how == "pair",
    )
    found = read_hdf5(tmp_path / "matched.h5")
    np.testing.assert_array_equal(found["source_id"], sources["source_id"][source][order])
    np.testing.assert_array_equal(found["number"], row[order])
    np.testing.assert_array_equal(found["mag"], rows["mag"][row][order])
    np.testing.assert_array_equal(found["other_ra"], rows["ra"][row][order])
    np.testing.assert_allclose(found["separation"], apart[order], atol=1e-7)
    assert len(order) >= 50
    assert (summary.sources, summary.rows, summary.matches) == (150, 250, len(order))
    assert summary.removed["sources without usable coordinates"] == 1
    assert summary.removed["rows without usable coordinates"] == 1
    if how == "pair":
        assert summary.removed["pairs of which one has a nearer partner"] == one_sided
    else:
        without = {"source": 149 - len(order), "row": 249 - len(order)}[how]
        assert summary.removed[f"{how}s without a match"] == without
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".partial"]


def test_cells_that_a_circle_reaches(rng):
    """Every cell in which a direction within the chord lies is among those of the direction, its own first."""
    for chord in (1e-6, 0.02):
        around = rng.normal(size=(200, 3))
        around[:100, 0] = rng.normal(0, chord, 100)  # on a border of cells
        around /= np.linalg.norm(around, axis=1)[:, None]
        which, cells, own = spread(around, chord)
        np.testing.assert_array_equal(which[own], np.arange(200))
        reached = set(zip(which.tolist(), cells.tolist(), strict=True))
        assert len(reached) == len(which) > 220
        offset = rng.normal(size=(200, 3))
        near = around + chord * rng.uniform(0, 0.99, (200, 1)) * offset / np.linalg.norm(offset, axis=1)[:, None]
        place = np.clip(np.floor((near + 1) * (CELLS / 2)), 0, CELLS - 1).astype(int)
        numbers = (place[:, 0] * CELLS + place[:, 1]) * CELLS + place[:, 2]
        assert reached >= set(enumerate(numbers.tolist()))


def test_runs_give_back_every_record_by_its_key(rng, tmp_path):
    runs = SortedRuns(tmp_path, [("key", "i8"), ("number", "i4")], 50)
    keys = rng.integers(0, 50, 1000)
    records = np.zeros(1000, [("key", "i8"), ("number", "i4")])
    records["key"], records["number"] = keys, np.arange(1000)
    for block in np.split(np.arange(1000), [0, 1, 400, 401]):
        runs.add(records[block], keys[block])
    ranges = list(key_ranges(runs.counts, 60))
    assert all(first < end for first, end in ranges)
    parts = [runs.part(first, end) for first, end in ranges]
    assert all(len(part) <= max(60, runs.counts.max()) for part in parts)
    assert all(set(part["key"]) <= set(range(*each)) for part, each in zip(parts, ranges, strict=True))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)["number"]), np.arange(1000))
    assert len(runs.part(50, 50)) == 0
    runs.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "bars.csv", "ecsv", "fits", "h5", "parquet", "vot"])
def test_every_format_says_the_same(rng, tmp_path, ending):
    n = 40
    ra, dec = sky(rng, n, "all over")
    columns = {
        "RAJ2000": np.where(np.arange(n) == 3, np.nan, ra),
        "DEJ2000": dec,
        "flux": rng.normal(5, 1, n),
        "number": rng.integers(-(2**62), 2**62, n),
        "name": np.array([f"star {number}" for number in range(n)], "S8"),
    }
    text = Table({name: values.astype("U") if values.dtype.kind == "S" else values for name, values in columns.items()})
    path = tmp_path / f"a table, ü.{ending}"
    if ending == "h5":
        write_hdf5(path, columns)
    elif "bars" in ending:
        text.write(path, format="ascii.csv", delimiter="|")
    elif ending.startswith("csv"):
        write_csv(text, path)
    else:
        text.write(path, **({"format": "votable"} if ending == "vot" else {}))
    sources = Table({"source_id": np.arange(n) + (1 << 60), "ra": ra, "dec": dec})  # in that format, too
    source_path = tmp_path / f"sources.{ending}"
    if ending == "h5":
        write_hdf5(source_path, {name: np.asarray(sources[name]) for name in sources.colnames})
    elif "csv" in ending:
        write_csv(sources, source_path)
    else:
        sources.write(source_path, **({"format": "votable"} if ending == "vot" else {}))
    summary = match_tables(path, source_path, tmp_path / "m.fits", ra="RAJ2000", dec="dej2000", radius=1)
    found = Table.read(tmp_path / "m.fits")
    kept = np.delete(np.arange(n), 3)
    np.testing.assert_array_equal(found["source_id"], kept + (1 << 60))
    np.testing.assert_array_equal(found["number"], columns["number"][kept])
    np.testing.assert_array_equal(found["flux"], columns["flux"][kept])
    assert [str(name) for name in found["name"]] == [f"star {number}" for number in kept]
    assert summary.left_out == []


@pytest.mark.parametrize("ending", ["h5", "fits", "ecsv", "parquet"])
def test_unwise_is_photometry(rng, tmp_path, ending):
    """What is written is what ``xpkern catalog --photometry`` takes, with all cuts made."""
    ra, dec = sky(rng, N, "all over")
    sources = {"source_id": SOURCE_ID, "ra": ra, "dec": dec, "norm_dg": np.linspace(-20, -5, N)}
    pairs = {name: rng.uniform(0.85, 1, (N, 2)).astype("f4") for name in ("fracflux", "qf")}
    pairs |= {"flux": rng.uniform(50, 1000, (N, 2)).astype("f4"), "dflux": rng.uniform(1, 20, (N, 2)).astype("f4")}
    unwise = Table({"ra": ra, "dec": dec + 0.1 / 3600, **pairs, "primary": np.arange(N) != 4, "x": np.arange(N)})
    unwise.write(tmp_path / "unwise.fits")
    write_hdf5(tmp_path / "gaia_source.h5", sources)
    output = tmp_path / f"infrared.{ending}"
    arguments = ["match", "unwise", str(tmp_path / "unwise.fits"), "--to", str(tmp_path / "gaia_source.h5")]
    assert main([*arguments, "-o", str(output)]) == 0
    table = SourceTable.of(output, "", match.COLUMN_NAMES)
    assert len(table) == N - 1
    assert "x" not in table
    direct = {f"{name}_w{part + 1}": values[:, part] for name, values in pairs.items() for part in (0, 1)}
    direct |= {"source_id": SOURCE_ID, "separation": np.full(N, 0.1), "norm_dg": sources["norm_dg"]}
    expected = SourceTable(direct, "")
    rows = expected.rows_of(np.delete(SOURCE_ID, 4))
    flux, error = infrared_flux(table, table.rows_of(np.delete(SOURCE_ID, 4)))
    expected_flux, expected_error = infrared_flux(expected, rows)
    np.testing.assert_allclose(flux, expected_flux, rtol=1e-6)
    np.testing.assert_allclose(error, expected_error, rtol=1e-6)
    assert 0 < np.count_nonzero(flux) < 2 * N
    made = cuts_made(table, PhotometryCuts())
    assert not [setting for setting in made.values() if str(setting).startswith("not applied: no column")]


@pytest.mark.parametrize("ending", ["h5", "fits", "ecsv", "parquet"])
def test_lamost_is_labels(tmp_path, ending):
    """Labels of the matched table are those of the catalogue matched by position; a star keeps its best spectrum."""
    columns = lamost(dec=np.where(np.arange(N) == 1, DEC + 0.3 / 3600, DEC))
    twice = {name: np.concatenate([values, values[:3]]) for name, values in columns.items()}
    twice["snrg"][N:] = 90.0  # better ones
    twice["teff"][N:] += 50
    catalogue = write_fits(tmp_path / "dr8.fits", twice)
    write_fits(tmp_path / "gaia.fits", gaia_source())
    output = tmp_path / f"lamost.{ending}"
    assert main(["match", "lamost", str(catalogue), "--to", str(tmp_path / "gaia.fits"), "-o", str(output)]) == 0
    direct = make_label_table([("lamost", catalogue)], gaia_source=gaia_source())
    table = make_label_table([("lamost", output)])
    for name, values in direct.columns.items():
        np.testing.assert_array_equal(table.columns[name], values, err_msg=name)
    assert "with a source_id, of Gaia DR3" in "\n".join(table.lines())


def test_sources_are_moved_to_the_epoch(rng, tmp_path):
    ra, dec = sky(rng, 50, "all over")
    pmra, pmdec = rng.normal(0, 500, (2, 50))
    pmra[0] = np.nan
    sources = {"source_id": np.arange(50), "ra": ra, "dec": dec, "pmra": pmra, "pmdec": pmdec}
    then_ra, then_dec = moved(ra, dec, pmra, pmdec, 2000.0 - 2016.0)
    rows = write_hdf5(tmp_path / "rows.h5", {"ra": then_ra, "dec": then_dec})
    write_hdf5(tmp_path / "sources.h5", sources)
    summary = match_tables(rows, tmp_path / "sources.h5", tmp_path / "m.h5", radius=0.001, epoch=2000)
    assert summary.matches == 50
    assert summary.removed["sources without a proper motion, not moved"] == 1
    years = rng.uniform(2010, 2020, 50)
    write_hdf5(tmp_path / "sources.h5", sources | {"ref_epoch": years, "pmra": np.nan_to_num(pmra)})
    there = moved(ra, dec, np.nan_to_num(pmra), pmdec, 2000.0 - years)
    write_hdf5(rows, {"ra": there[0], "dec": there[1]})
    assert match_tables(rows, tmp_path / "sources.h5", tmp_path / "n.h5", radius=0.001, epoch=2000).matches == 50


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("epoch", [None, 2000])
def test_impossible_positions_are_unusable_whether_moved_or_not(tmp_path, epoch):
    dec = np.array([10.0, 91.0, 95.0, -999.0, np.nan, np.inf, 20.0])
    ra = np.array([30.0, 30.0, 30.0, 30.0, 30.0, 30.0, np.inf])
    motion = {"pmra": np.zeros(7), "pmdec": np.array([0.0, 0.0, np.inf, np.nan, 0.0, 0.0, 0.0])}
    write_hdf5(tmp_path / "sources.h5", {"source_id": np.arange(7), "ra": ra, "dec": dec, **motion})
    rows = write_hdf5(tmp_path / "rows.h5", {"ra": np.array([30.0, 210.0, 210.0]), "dec": np.array([10.0, 89.0, 85.0])})
    summary = match_tables(rows, tmp_path / "sources.h5", tmp_path / "m.h5", radius=0.5, epoch=epoch)
    assert summary.matches == 1
    assert summary.removed["sources without usable coordinates"] == 6
    if epoch is not None:
        assert summary.removed["sources without a proper motion, not moved"] == 2


def test_sources_of_several_files_and_those_that_are_in_two(tmp_path):
    parts = []
    for number, some in enumerate((slice(0, 12), slice(10, N))):
        here = {"source_id": SOURCE_ID[some], "ra": RA[some], "dec": DEC[some]}
        parts.append(write_hdf5(tmp_path / f"part {number}.h5", here))
    empty = write_hdf5(tmp_path / "empty.h5", {"ra": np.zeros(0), "dec": np.zeros(0), "mag": np.zeros(0)})
    rows = write_hdf5(tmp_path / "rows.h5", {"ra": RA, "dec": DEC, "mag": np.arange(N, dtype="f8")})
    summary = match_tables([empty, rows], parts, tmp_path / "m.h5", radius=0.5)
    found = read_hdf5(tmp_path / "m.h5")
    np.testing.assert_array_equal(found["source_id"], np.sort(SOURCE_ID))
    np.testing.assert_array_equal(found["mag"], np.argsort(SOURCE_ID))
    assert summary.removed["repeated sources"] == 2
    assert summary.matches == N


class TestBadInput:
    @pytest.fixture
    def files(self, tmp_path):
        rows = {"ra": RA, "dec": DEC, "flux": np.ones(N), "grid": np.ones((N, 5))}
        rows["note"] = np.array(["é" * 30] * N, object)
        write_hdf5(tmp_path / "gaia.h5", {"source_id": SOURCE_ID, "ra": RA, "dec": DEC, "pmra": np.zeros(N)})
        return write_hdf5(tmp_path / "rows.h5", rows), tmp_path

    def fails(self, files, capsys, *options, rows="rows.h5", to="gaia.h5") -> str:
        _, folder = files
        before = sorted(path.name for path in folder.iterdir())
        output = () if "-o" in options else ("-o", str(folder / "m.h5"))
        assert main(["match", str(folder / rows), "--to", str(folder / to), *output, *map(str, options)]) == 1
        assert sorted(path.name for path in folder.iterdir()) == before
        return one_line(capsys)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--radius", 1, "--ra", "raj2000"), "field raj2000: there is no such column; did you mean ra?"),
            (("--radius", 1, "--columns", "flx"), "field flx: there is no such column; did you mean flux?"),
            (("--radius", 1, "--columns", "grid"), "field grid: an array: only numbers and texts are written"),
            (("--radius", 1, "--columns", "note"), "row 1, field note: text of 60 bytes where there is room for 40"),
            (("--radius", 1, "--epoch", 2000), "field pmdec: there is no such column; did you mean "),
            ((), "field radius: is required"),
            (("--radius", 0), "field radius: 0 arcsec is not between 0 and 1800"),
            (("--radius", -1), "field radius: -1 arcsec is not between 0 and 1800"),
            (("--radius", "nan"), "field radius: is required"),
            (("--radius", 5000), "field radius: 5000 arcsec is not between 0 and 1800"),
            (("--radius", 1, "--one-to-one", "--nearest-of-each", "row"), "does not go with --one-to-one"),
            (("--radius", 1, "-o", "m.txt"), "the name must end in "),
            (("--radius", 1, "--epoch", "nan"), "field --epoch: nan is no year"),
            (("--radius", 1, "--epoch", "inf"), "field --epoch: inf is no year"),
        ],
    )
    def test_options(self, files, capsys, options, message):
        assert message in self.fails(files, capsys, *options)

    def test_tables(self, files, capsys):
        _, folder = files
        good = read_hdf5(folder / "gaia.h5")
        write_hdf5(folder / "none.h5", {name: values[:0] for name, values in good.items()})
        assert "none.h5: no sources in it" in self.fails(files, capsys, "--radius", 1, to="none.h5")
        assert "none.h5: no rows in it" in self.fails(files, capsys, "--radius", 1, rows="none.h5")
        write_hdf5(folder / "text.h5", {"ra": np.array(["a"] * N, "S1"), "dec": DEC})
        assert "field ra: not a column of numbers" in self.fails(files, capsys, "--radius", 1, rows="text.h5")
        write_hdf5(folder / "floats.h5", good | {"source_id": SOURCE_ID.astype(float)})
        assert "field source_id: must be 64-bit integers" in self.fails(files, capsys, "--radius", 1, to="floats.h5")
        write_hdf5(folder / "far.h5", {"ra": RA, "dec": -DEC})
        far = self.fails(files, capsys, "--radius", 0.1, "--columns", "ra", rows="far.h5")
        assert f"far.h5: none of its {N} rows lies within 0.1 arcsec of one of {N} sources" in far
        (folder / "page.csv").write_text("<html><body>Log in</body></html>")
        assert "a web page, not a VOTable" in self.fails(files, capsys, "--radius", 1, rows="page.csv")
        (folder / "nothing.csv").write_text("")
        assert "nothing.csv: the file is empty" in self.fails(files, capsys, "--radius", 1, rows="nothing.csv")
        (folder / "cut.csv").write_text("ra,dec\n1,2\n3\n")
        assert "cut.csv, row 1: cannot be read as csv" in self.fails(files, capsys, "--radius", 1, rows="cut.csv")
        assert "missing.fits: no such file" in self.fails(files, capsys, "--radius", 1, rows="missing.fits")

    def test_outputs(self, files, capsys):
        path, folder = files
        (folder / "m.h5").write_text("mine")
        assert "m.h5: exists; --overwrite" in self.fails(files, capsys, "--radius", 1)
        assert (folder / "m.h5").read_text() == "mine"
        arguments = ["match", str(path), "--to", str(folder / "gaia.h5"), "--radius", "1", "--columns", "flux"]
        assert main([*arguments, "-o", str(folder / "m.h5"), "--overwrite"]) == 0
        assert len(read_hdf5(folder / "m.h5")["flux"]) == N
        assert main([*arguments, "-o", str(path), "--overwrite"]) == 1
        assert main(["match", "unwise", "--to", str(folder / "gaia.h5"), "-o", str(folder / "n.h5")]) == 1
        assert "name the files of unwise" in capsys.readouterr().err
        assert main(["match", "unwize", str(path), "--to", str(folder / "gaia.h5"), "-o", str(folder / "n.h5")]) == 1
        assert "unwize: neither a file nor a survey that is known: unwise, lamost" in one_line(capsys)
