"""`xpkern map` and `xpkern map plot`: files, pictures, and input that is bad or empty."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from command_lines import one_line
from map_stars import clouds, ext_at, sky_of_stars

import xpkern as xk
from xpkern.cli import main
from xpkern.errors import InputError
from xpkern.maps import figures, projections
from xpkern.maps.bayestar import bayestar_cube
from xpkern.maps.figures import draw
from xpkern.maps.make import map_of_blocks
from xpkern.maps.map_file import read_map

EDGES = (0.1, 0.3, 0.6, 1.0)
COARSE = ["--nside", "8,4", "--distances", "0.1,0.3,0.6,1"]


def write_catalog(path: Path, columns: dict[str, np.ndarray], **attributes: str) -> Path:
    with h5py.File(path, "w") as file:
        file.update(columns)
        file.attrs.update(attributes)
    return path


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    """Coarse ones take less time."""
    for name, places in (("_WHOLE", 200), ("_PART", 60), ("_ABOVE", 40), ("_SLICE", 60)):
        monkeypatch.setattr(figures, name, places)


@pytest.fixture(scope="module")
def stars() -> dict[str, np.ndarray]:
    return sky_of_stars(np.random.default_rng(5), 20000)[0]


@pytest.fixture(scope="module")
def catalog(stars, tmp_path_factory) -> Path:
    return write_catalog(tmp_path_factory.mktemp("catalog") / "catalog.h5", stars, model_digest="0123")


@pytest.fixture(scope="module")
def dust(catalog) -> Path:
    """A map of all the stars."""
    path = catalog.with_name("dust.fits")
    assert main(["map", str(catalog), "-o", str(path), *COARSE]) == 0
    return path


def test_the_file_is_the_map_in_memory(stars, dust):
    cube, other = read_map(dust), map_of_blocks([stars], read_map(dust).settings)
    for name in ("pixel", "value", "error", "stars", "nside"):
        np.testing.assert_array_equal(getattr(cube.tile, name), getattr(other.tile, name))
    assert cube.outcomes == other.outcomes
    assert cube.settings.edges == EDGES
    assert cube.settings.cuts == xk.MapCuts()
    assert cube.attributes == other.attributes | {"model_digest": "0123"}
    for name, values in other.per_bin.items():
        np.testing.assert_array_equal(cube.per_bin[name], values)
    assert np.isfinite(cube.per_bin["scatter"]).all()


def test_astropy_and_healpy_read_it(dust):
    cube = read_map(dust)
    with fits.open(dust) as file:
        file.verify("exception")
        header = file["MEAN"].header
        assert {key: header[key] for key in ("PIXTYPE", "ORDERING", "COORDSYS", "NSIDE", "INDXSCHM")} == {
            "PIXTYPE": "HEALPIX",
            "ORDERING": "NESTED",
            "COORDSYS": "G",
            "NSIDE": 8,
            "INDXSCHM": "EXPLICIT",
        }
        assert header["TUNIT2"] == "mag"
        assert header["TCOMM2"] == "distance 0.1000 to 0.3000 kpc"
        first = {key: file[0].header[key] for key in ("QUANTITY", "ESTIMATE", "MINSTARS", "CUTERROR", "MODEL")}
        assert first == {"QUANTITY": "ext", "ESTIMATE": "weighted", "MINSTARS": 10, "CUTERROR": 0.04, "MODEL": "0123"}
        assert not any("DATE" in key for hdu in file for key in hdu.header)
    table = Table.read(dust, hdu="DIFFERENCE")
    np.testing.assert_array_equal(table["BIN_02"], cube.tile.value[:, 1] - cube.tile.value[:, 0])
    np.testing.assert_array_equal(table["BIN_01"], cube.tile.value[:, 0])
    bins = Table.read(dust, hdu="BINS")
    assert bins["NEAR"].unit == units.kpc
    np.testing.assert_array_equal(bins["FAR"], EDGES[1:])
    assert bins["STARS"].sum() == cube.outcomes["used"]
    healpy = pytest.importorskip("healpy")
    for field in range(3):
        whole = healpy.read_map(str(dust), field=field, hdu=1, nest=True)
        np.testing.assert_array_equal(whole[cube.tile.pixel], cube.tile.value[:, field])


def test_two_runs_and_any_blocks_give_the_same_bytes(catalog, dust, tmp_path):
    """In three shards: the stars are the same in the same order."""
    with h5py.File(catalog) as file:
        columns = {name: file[name][()] for name in file}
    parts = [
        write_catalog(tmp_path / f"{k}.h5", {name: v[slice(k * 7000, (k + 1) * 7000)] for name, v in columns.items()})
        for k in range(3)
    ]
    with h5py.File(parts[0], "a") as file:
        file.attrs["model_digest"] = "0123"
    again = tmp_path / "again.fits"
    assert main(["map", *map(str, parts), "-o", str(again), *COARSE]) == 0
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (dust, again)]
    assert digests[0] == digests[1]
    picture, same = tmp_path / "a.png", tmp_path / "b.png"
    for path in (picture, same):
        draw("birdseye", read_map(again), path)
    assert picture.read_bytes() == same.read_bytes()


def test_what_became_of_the_stars_is_told(stars, tmp_path, capsys):
    """Negative parallaxes, NaN coordinates, flags, no numbers: each counted; a cut without its column is named."""
    odd = {name: values[:3000].copy() for name, values in stars.items() if name != "loss"}
    odd["parallax_est"][:11] *= -1
    odd["ra"][11:18] = np.nan
    odd["source_id"][11:14] = -1
    odd["ext"][20:25] = np.nan
    odd["quality_flags"][30:36] = 8
    path = write_catalog(tmp_path / "odd.h5", odd)
    arguments = ["map", str(path), "-o", str(tmp_path / "odd.fits"), "--cut", "quality_flags=8", *COARSE]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    for line in ("3  no position", "5  no estimate with an error", "11  parallax not positive", "6  quality_flags"):
        assert f" {line}\n" in told
    assert "NOT APPLIED, as the catalogue lacks their columns: cuts on misfit" in told
    assert "places from ra, dec; source_id; misfit is nothing" in told
    assert "error cut" in told
    cube = read_map(tmp_path / "odd.fits")
    assert sum(cube.outcomes.values()) == 3000
    assert cube.outcomes["no position"] == 3
    assert cube.attributes["not_applied"] == "misfit"


def test_published_layout(stars, tmp_path):
    """Parameters in one array, chi2 in place of the loss, 61 degrees of freedom: the same map."""
    n = 2000
    few = {name: values[:n] for name, values in stars.items()}
    params = np.ones((n, 5), np.float32)
    errors = np.full((n, 5), 0.1, np.float32)
    for column, name in ((3, "ext"), (4, "parallax_est")):
        params[:, column], errors[:, column] = few[name], few[f"{name}_error"]
    published = {
        "gdr3_source_id": few["source_id"],
        "ra": few["ra"],
        "dec": few["dec"],
        "stellar_params_est": params,
        "stellar_params_err": errors,
        "chi2_opt": few["loss"],
        "quality_flags": few["quality_flags"],
    }
    settings = xk.MapSettings(nsides=(4,), edges=EDGES)
    xk.make_map([write_catalog(tmp_path / "zgr23.h5", published)], tmp_path / "zgr23.fits", settings)
    cube = read_map(tmp_path / "zgr23.fits")
    assert cube.attributes["misfit"] == "chi2 / 61"
    np.testing.assert_array_equal(cube.tile.value, map_of_blocks([few], settings).tile.value)


@pytest.mark.parametrize("estimate", ["weighted", "median"])
def test_one_star(stars, tmp_path, capsys, estimate):
    path = write_catalog(tmp_path / "one.h5", {name: values[:1] for name, values in stars.items()})
    assert main(["map", str(path), "-o", str(tmp_path / "one.fits"), "--estimate", estimate, *COARSE]) == 0
    assert "no cell has 10 stars: the map is empty" in capsys.readouterr().out
    cube = read_map(tmp_path / "one.fits")
    assert not cube.covered.any()
    assert main(["map", "plot", str(tmp_path / "one.fits")]) == 0
    for view in figures.VIEWS:
        assert (tmp_path / f"one.{view}.png").stat().st_size > 1000  # a panel that says so
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_empty_pixels_are_grey(stars, tmp_path):
    """Stars of one hemisphere: the other one has no number and no colour of any."""
    north = stars["dec"] > 0
    cube = map_of_blocks(
        [{name: values[north] for name, values in stars.items()}], xk.MapSettings(nsides=(4,), edges=EDGES)
    )
    south = SkyCoord(ra=10 * units.deg, dec=-60 * units.deg)
    assert np.isnan(cube.query(south)).all()
    assert np.isfinite(cube.query(SkyCoord(ra=10 * units.deg, dec=60 * units.deg))).all()
    draw("sky", cube, tmp_path / "north.png")
    from matplotlib.image import imread

    image = np.round(255 * imread(tmp_path / "north.png")[..., :3]).astype(int)
    grey = (np.abs(image - [0xD9, 0xDD, 0xE1]).max(axis=2) <= 1).mean()
    assert 0.1 < grey < 0.5


@pytest.mark.parametrize(("quantity", "view"), [("ext", "sky"), ("ext", "slices"), ("feh", "sky"), ("feh", "birdseye")])
def test_pictures(catalog, tmp_path, view, quantity):
    """Of the whole sky, and of a part; in every format, with names on the axes."""
    if quantity == "feh":
        path = tmp_path / "feh.fits"
        xk.make_map([catalog], path, xk.MapSettings(quantity="feh", nsides=(4,), edges=EDGES))
        cube = read_map(path)
        with fits.open(path) as file:
            assert "DIFFERENCE" not in file
        known = np.isfinite(cube.tile.value)
        middle = np.broadcast_to(-0.2 - 0.3 * cube.distance, known.shape)
        assert np.abs(cube.tile.value[known] - middle[known]).max() < 0.2
        draw(view, cube, tmp_path / "feh.svg", bins=[2])
    else:
        with h5py.File(catalog) as file:
            near = np.hypot(file["ra"][()] - 180.0, file["dec"][()]) < 20.0
            part = {name: file[name][()][near] for name in file}
        cube = map_of_blocks([part], xk.MapSettings(nsides=(8,), edges=EDGES, min_stars=2))
        draw(view, cube, tmp_path / "part.svg", extent=0.8)
    text = (tmp_path / ("feh.svg" if quantity == "feh" else "part.svg")).read_text()
    assert text.count("<image") >= 1


def test_bayestar_beside_it(stars, dust, tmp_path):
    """A Bayestar19 that is the truth itself, without its south: in the map's bins, and drawn."""

    class Truth:
        def bayestar_samples(self, coordinates):
            longitude, latitude = coordinates.l.rad, coordinates.b.rad
            known = np.where(coordinates.icrs.dec.deg > -30, 1.0, np.nan)
            found = ext_at(longitude, latitude, coordinates.distance.to_value("kpc"))
            return (found * known)[:, None] + [-0.1, 0.1]

    cube = read_map(dust)
    beside = bayestar_cube(cube, Truth())
    longitude, latitude = beside.places()
    expected = clouds(longitude, latitude, cube.distance)
    south = SkyCoord(longitude * units.rad, latitude * units.rad, frame="galactic").icrs.dec.deg <= -30
    np.testing.assert_allclose(beside.tile.value[~south], expected[~south], rtol=1e-5)
    assert np.isnan(beside.tile.value[south]).all()
    draw("birdseye", cube, tmp_path / "both.png", beside=beside)
    assert (tmp_path / "both.png").stat().st_size > 10000


def test_projections_are_each_other_s_inverse():
    longitude, latitude = projections.mollweide(60)
    inside = np.isfinite(longitude)
    assert inside.mean() == pytest.approx(np.pi / 4, abs=0.02)
    x, y = projections.on_mollweide((longitude[inside] + np.pi) % (2 * np.pi) - np.pi, latitude[inside])
    column, row = np.meshgrid(np.arange(60), np.arange(30))
    np.testing.assert_allclose(x, (2.0 - 4.0 * (column + 0.5) / 60)[inside], atol=1e-9)
    np.testing.assert_allclose(y, (2.0 * (row + 0.5) / 30 - 1.0)[inside], atol=1e-9)
    middle = projections.directions(np.array(3.0), np.array(-0.4))
    longitude, latitude = projections.azimuthal(21, middle, 30.0)
    assert longitude[10, 10] == pytest.approx(3.0)
    assert latitude[10, 10] == pytest.approx(-0.4)
    assert longitude[10, 0] > 3.0  # east is left
    assert latitude[20, 10] > latitude[0, 10]  # north is up
    side = projections.directions(longitude[10, [0, 20]], latitude[10, [0, 20]])
    angle = np.degrees(np.arccos(side @ middle))
    np.testing.assert_allclose(angle, 2 * np.degrees(np.arcsin(np.sin(np.radians(15)) * 20 / 21)), rtol=1e-9)


class TestBadInput:
    @pytest.fixture
    def map_of(self, stars, tmp_path):
        """Run `xpkern map` on some stars whose columns are changed (None: left out)."""

        def run(*arguments: str, rows: int = 200, **changes: np.ndarray | None) -> int:
            columns = {name: values[:rows] for name, values in stars.items()} | changes
            path = write_catalog(tmp_path / "some.h5", {k: v for k, v in columns.items() if v is not None})
            return main(["map", str(path), "-o", str(tmp_path / "some.fits"), *COARSE, *arguments])

        return run

    def test_no_errors(self, map_of, capsys):
        assert map_of(ext_error=None) == 1
        text = one_line(capsys)
        assert "ext_error" in text
        assert "some.h5" in text

    def test_no_places(self, map_of, tmp_path, capsys):
        assert map_of(ra=np.full(200, np.nan), source_id=np.full(200, -1)) == 1
        assert "no star passes the cuts (no position: 200)" in one_line(capsys)
        assert not (tmp_path / "some.fits").exists()

    def test_all_flagged(self, map_of, capsys):
        assert map_of("--cut", "quality_flags=8", quality_flags=np.full(200, 9, np.uint8)) == 1
        assert "no star passes the cuts (quality_flags: 200)" in one_line(capsys)

    def test_no_stars_at_all(self, map_of, capsys):
        assert map_of(rows=0) == 1
        assert "there are no stars" in one_line(capsys)

    def test_output_exists(self, map_of, tmp_path, capsys):
        assert map_of() == 0
        before = (tmp_path / "some.fits").read_bytes()
        assert map_of("--estimate", "mean") == 1
        assert "exists; --overwrite" in one_line(capsys)
        assert (tmp_path / "some.fits").read_bytes() == before
        assert map_of("--estimate", "mean", "--overwrite") == 0
        assert (tmp_path / "some.fits").read_bytes() != before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--cut", "nonsense=3"], "no cut 'nonsense'"),
            (["--distances", "1,x"], "is no list of numbers"),
            (["--distances", "1,0.5"], "numbers [kpc] from 0 on that grow"),
            (["--nside", "100"], "power of two"),
            (["-o", "some.txt"], "must end in .fits"),
            (["-o", "nowhere/some.fits"], "its folder does not exist"),
        ],
    )
    def test_options(self, map_of, capsys, arguments, message):
        assert map_of(*arguments) == 1
        assert message in one_line(capsys)

    def test_columns_of_blocks(self, stars):
        block = {name: values[:5] for name, values in stars.items()}
        for gone, message in (
            ({"ext"}, "stars have no ext"),
            ({"ra", "source_id"}, "neither ra and dec nor source_id"),
        ):
            with pytest.raises(InputError, match=message):
                map_of_blocks([{name: values for name, values in block.items() if name not in gone}])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--view", "sky", "--bins", "0"], "no distance bin 0: there are 1 to 3"),
            (["--view", "sky", "-o", "sky.gif"], "must end in one of .png"),
            (["-o", "sky.png"], "say which with --view"),
            (["--extent", "-1"], "not between 0 and 100"),
            (["--view", "sky", "--bayestar"], "beside the bird's-eye view of ext alone"),
            (["--view", "birdseye", "--bayestar", "none.h5"], "none.h5"),
        ],
    )
    def test_plot_options(self, dust, tmp_path, monkeypatch, capsys, arguments, message):
        pytest.importorskip("dustmaps")
        monkeypatch.chdir(tmp_path)
        assert main(["map", "plot", str(dust), *arguments]) == 1
        assert message in one_line(capsys)
        assert list(tmp_path.iterdir()) == []

    def test_plot_of_something_else(self, catalog, dust, tmp_path, capsys):
        Table({"a": [1.0]}).write(tmp_path / "other.fits")
        with fits.open(dust) as file:
            del file["BINS"]
            file.writeto(tmp_path / "part.fits")
        (tmp_path / "short.fits").write_bytes(dust.read_bytes()[:30000])
        for path in (tmp_path / "other.fits", tmp_path / "part.fits", tmp_path / "short.fits", catalog, tmp_path):
            assert main(["map", "plot", str(path)]) == 1
            text = one_line(capsys)
            assert str(path) in text
            assert "is no map of `xpkern map`" in text or "is no file" in text
        assert main(["map", "plot", str(tmp_path / "absent.fits")]) == 1
        assert "is not there" in one_line(capsys)

    def test_pictures_exist(self, dust, tmp_path, capsys):
        picture = tmp_path / "a.png"
        picture.write_bytes(b"mine")
        assert main(["map", "plot", str(dust), "--view", "birdseye", "-o", str(picture)]) == 1
        assert "exists; --overwrite" in one_line(capsys)
        assert picture.read_bytes() == b"mine"


def test_help_has_examples(capsys):
    for command, example in ((["map"], "xpkern map catalog.h5 -o dust.fits"), (["map", "plot"], "--view sky --bins")):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
        assert example in capsys.readouterr().out
