"""Reddening from small maps in the real ones' formats, read by dustmaps itself."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from command_lines import one_line
from scipy.stats import norm

from xpkern.cli import main
from xpkern.errors import InputError, XpkernError
from xpkern.observe.reddening import DRAWS, DustMaps, reddening
from xpkern.train.labels import read_labels

healpy = pytest.importorskip("healpy")
pytest.importorskip("dustmaps")

#: Distance moduli of Bayestar19's 120 steps, and the map's samples.
MODULI = np.arange(4.0, 18.9, 0.125)
SAMPLES = 5
NORTH, SOUTH = 0.07, 0.12


def column(sample: np.ndarray | int, modulus: np.ndarray) -> np.ndarray:
    """E of a sample at a distance modulus: a thin cloud at 8 (400 pc), a little more dust all along."""
    return (0.3 + 0.1 * sample) * norm.cdf(modulus, 8.0, 0.5) + 0.01 * modulus


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """A map of the eastern half of the northern sky (in Galactic coordinates), and SFD's two caps."""
    folder = tmp_path_factory.mktemp("maps")
    nside = 4
    pixels = np.arange(12 * nside**2)
    longitude, latitude = healpy.pix2ang(nside, pixels, nest=True, lonlat=True)
    pixels = pixels[(latitude > 0) & (longitude < 180)]
    kind = [("nside", "u4"), ("healpix_index", "u8"), ("n_stars", "u4"), ("converged", "u1")]
    info = np.zeros(len(pixels), [*kind, ("DM_reliable_min", "f4"), ("DM_reliable_max", "f4")])
    info["nside"], info["healpix_index"], info["converged"] = nside, pixels, 1
    info["DM_reliable_min"], info["DM_reliable_max"] = 6.0, np.nan
    profile = column(np.arange(SAMPLES)[:, None], MODULI)
    with h5py.File(folder / "bayestar2019.h5", "w") as file:
        file["pixel_info"] = info
        file["pixel_info"].attrs["DM_bin_edges"] = MODULI
        file["samples"] = np.broadcast_to(profile, (len(pixels), *profile.shape)).astype("f4")
        file["best_fit"] = np.broadcast_to(profile[0], (len(pixels), len(MODULI))).astype("f4")
    for pole, sign, value in (("ngp", 1, NORTH), ("sgp", -1, SOUTH)):
        size = 32
        image = fits.PrimaryHDU(np.full((size, size), value, ">f4"))
        image.header.update(
            CTYPE1="GLON-ZEA",
            CTYPE2="GLAT-ZEA",
            CRVAL1=90.0,
            CRVAL2=90.0 * sign,
            CRPIX1=size / 2 + 0.5,
            CRPIX2=size / 2 + 0.5,
            CD1_1=-162.0 / size,
            CD1_2=0.0,
            CD2_1=0.0,
            CD2_2=162.0 / size * sign,
            LONPOLE=180.0,
        )
        image.writeto(folder / f"SFD_dust_4096_{pole}.fits")
    return folder


def stars(longitude, latitude, parallax, error):
    """A table of gaia_source."""
    place = SkyCoord(np.asarray(longitude) * units.deg, np.asarray(latitude) * units.deg, frame="galactic").icrs
    n = len(np.atleast_1d(longitude))
    return {
        "source_id": np.arange(1, n + 1) * 1_234_567_891_011,
        "ra": place.ra.deg,
        "dec": place.dec.deg,
        "parallax": np.broadcast_to(parallax, n).astype(float),
        "parallax_error": np.broadcast_to(error, n).astype(float),
    }


def of(folder: Path, **changes) -> DustMaps:
    return DustMaps(**{"bayestar": folder / "bayestar2019.h5", "sfd": folder} | changes)


def test_mean_and_error_at_a_star_s_distance(maps, rng):
    parallax = np.array([20.0, 2.5, 2.5, 1.0, 0.3])
    error = np.array([0.05, 0.02, 0.5, 0.1, 0.2])
    found = reddening(stars(rng.uniform(20, 160, 5), np.full(5, 40.0), parallax, error), of(maps))
    # a fine quadrature over the parallax, and the samples
    u = np.linspace(0, 1, 20002)[1:-1]
    drawn = np.maximum(parallax[:, None] + error[:, None] * np.clip(norm.ppf(u), -5, 5), 1e-4)
    modulus = 10.0 - 5.0 * np.log10(drawn)
    nearer = np.minimum(1.0, 10.0 ** (0.2 * (modulus - MODULI[0])))  # before the map's first step E grows evenly
    e = np.stack([nearer * column(sample, np.clip(modulus, MODULI[0], MODULI[-1])) for sample in range(SAMPLES)])
    mean, spread = e.mean(axis=(0, 2)), e.std(axis=(0, 2))
    # E grows with distance, so that a draw in each part of the parallax's distribution is off by less than the range of
    # E over the number of parts; and the map is interpolated between steps of 0.125 mag
    allowed = np.ptp(e, axis=(0, 2)) / DRAWS + 0.001
    assert (np.abs(found.ext - mean) < allowed).all()
    np.testing.assert_allclose(found.ext_err, np.sqrt(spread**2 + 0.03**2 + (0.1 * mean) ** 2), rtol=0.02)
    assert set(found.origin) == {"bayestar19"}
    few = reddening(stars([60.0], [40.0], 2.5, 0.02), of(maps, samples=1))
    np.testing.assert_allclose(few.ext, column(0, 10.0 - 5.0 * np.log10(2.5)), atol=0.002)


def test_outside_the_map(maps):
    # west of it 1 kpc away, at latitudes of both sides, then close to the plane; a star with a doubtful parallax
    table = stars([270.0, 90.0, 270.0, 270.0], [60.0, -60.0, 5.0, 60.0], [1.0, 1.0, 1.0, 1.0], [0.05, 0.05, 0.05, 1.0])
    found = reddening(table, of(maps))
    assert found.origin.tolist() == ["sfd", "sfd", "outside, near the plane", "outside, near the plane"]
    np.testing.assert_allclose(found.ext, [NORTH, SOUTH, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(found.ext_err[:2], np.hypot(0.03, [0.1 * NORTH, 0.1 * SOUTH]), rtol=1e-6)
    assert np.isnan(found.ext_err[2:]).all()
    assert found.counts == {"outside, near the plane": 2, "sfd": 2}


def test_stars_without_parallax_or_place(maps):
    table = stars(np.full(4, 60.0), np.full(4, 40.0), [1.0, np.nan, 1.0, -0.5], [0.1, 0.1, np.nan, 0.3])
    table["ra"][0] = np.nan
    found = reddening(table, of(maps))
    assert found.origin.tolist() == ["no position", "no parallax", "no parallax", "bayestar19"]
    assert np.isfinite(found.ext).tolist() == [False, False, False, True]  # a negative parallax: beyond the dust
    assert np.array_equal(np.isfinite(found.ext), np.isfinite(found.ext_err))
    assert len(reddening({name: values[:0] for name, values in table.items()}, of(maps))) == 0


def test_a_star_s_draws_are_its_own(maps, rng, monkeypatch):
    n = 40
    table = stars(rng.uniform(0, 360, n), rng.uniform(-90, 90, n), rng.uniform(0.5, 3, n), 0.3)
    whole = reddening(table, of(maps))
    order = rng.permutation(n)
    monkeypatch.setattr("xpkern.observe.reddening._BLOCK", 7)
    shuffled = reddening({name: values[order] for name, values in table.items()}, of(maps))
    np.testing.assert_array_equal(shuffled.ext, whole.ext[order])
    np.testing.assert_array_equal(shuffled.ext_err, whole.ext_err[order])
    other = reddening(table, of(maps), seed=1)
    by_map = whole.origin == "bayestar19"
    assert (other.ext[by_map] != whole.ext[by_map]).all()
    most = column(SAMPLES - 1, MODULI[-1])  # E grows with distance, and both have a draw in each part
    np.testing.assert_allclose(other.ext[by_map], whole.ext[by_map], atol=most / DRAWS)


def test_table_for_training(maps, tmp_path, capsys):
    table = stars([60.0, 270.0], [40.0, 2.0], 1.0, 0.05)
    Table(table).write(tmp_path / "gaia.fits")
    arguments = ["--map", str(maps / "bayestar2019.h5"), "--sfd", str(maps), "-o", str(tmp_path / "e.fits")]
    assert main(["reddening", str(tmp_path / "gaia.fits"), *arguments]) == 0
    assert "1  outside, near the plane" in capsys.readouterr().out
    labels = {"source_id": table["source_id"], "teff": [5.0, 5.0], "feh": [0.0, 0.0], "logg": [4.0, 4.0]}
    labels |= {f"{name}_err": [0.1, 0.1] for name in ("teff", "feh", "logg")}
    read = read_labels(labels, tmp_path / "e.fits")
    np.testing.assert_array_equal(np.isfinite(read.mean[:, 3]), [True, False])
    assert read.mean[0, 3] == reddening(table, of(maps)).ext[0]


class TestBadInput:
    def test_a_map_that_is_not_there_says_how_to_get_it(self, maps, tmp_path, monkeypatch):
        star = stars([60.0], [40.0], 1.0, 0.05)
        with pytest.raises(InputError, match=r"python -c .import dustmaps.bayestar as map; map.fetch\(\)"):
            reddening(star, DustMaps(tmp_path / "bayestar2019.h5"))
        reddening(star, of(maps, sfd=tmp_path))  # which no star needs
        with pytest.raises(InputError, match=r"SFD is not there: download it by python -c .import dustmaps.sfd"):
            reddening(stars([270.0], [60.0], 1.0, 0.05), of(maps, sfd=tmp_path))
        monkeypatch.setattr("dustmaps.std_paths.config._options", {"data_dir": str(tmp_path)})
        with pytest.raises(InputError, match=str(tmp_path / "bayestar" / "bayestar2019.h5")):
            reddening(star, DustMaps())

    def test_without_dustmaps(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "dustmaps.bayestar", None)
        with pytest.raises(XpkernError, match=r'pip install "xpkern\[dust\]"'):
            reddening(stars([60.0], [40.0], 1.0, 0.05), DustMaps())

    @pytest.mark.parametrize("content", ["text", "other"])
    def test_a_file_that_is_no_map(self, tmp_path, content):
        path = tmp_path / "bayestar2019.h5"
        if content == "text":
            path.write_bytes(b"nothing of the kind")
        else:
            with h5py.File(path, "w") as file:
                file["something"] = 1
        with pytest.raises(InputError, match="is no map of Bayestar19"):
            reddening(stars([60.0], [40.0], 1.0, 0.05), DustMaps(path))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["gaia.csv", "-o", "e.csv"], "must end in .fits"),
            (["absent.csv", "-o", "e.fits"], "absent.csv: cannot be read"),
            (["gaia.csv", "-o", "e.fits"], "the table has no column parallax_error"),
        ],
    )
    def test_on_the_command_line(self, tmp_path, monkeypatch, capsys, arguments, message):
        monkeypatch.chdir(tmp_path)
        Path("gaia.csv").write_text("source_id,ra,dec,parallax\n1,2,3,4\n")
        assert main(["reddening", *arguments]) == 1
        assert message in one_line(capsys)
        assert not Path("e.fits").exists()
