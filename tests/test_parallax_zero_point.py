"""The zero point of Gaia's parallaxes, and that it is subtracted where it is known and only there."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table
from catalog_files import read
from command_lines import ENGINE

import xpkern as xk
from xpkern.cli import main
from xpkern.observe.parallax_zero_point import INPUTS, parallax_zero_point

#: G, nu_eff, pseudocolour, ecl_lat, solution, and what the authors' own code (zpt of 2020-07-20) gives [mas].
PUBLISHED = [
    (12.89, 1.302, 1.433, 75.66, 95, -0.008761),
    (19.593, 1.686, 1.486, -45.34, 95, -0.012946),
    (17.151, 1.131, 1.716, 79.13, 31, -0.06709),
    (18.71, 1.644, 1.53, 37.9, 31, -0.016816),
    (16.827, 1.239, 1.579, 11.38, 95, -0.021548),
    (21.384, 1.348, 1.329, -35.1, 95, 0.02195),
    (15.787, 1.678, 1.719, -83.37, 31, -0.037362),
    (17.278, 1.565, 1.434, -89.8, 95, -0.025058),
]


def test_published_values():
    *inputs, expected = np.array(PUBLISHED).T
    np.testing.assert_allclose(parallax_zero_point(*inputs), expected, atol=0.51e-6)  # they round to 1e-6


def test_the_authors_code_everywhere(rng):
    zpt = pytest.importorskip("zero_point.zpt")
    zpt.load_tables()
    n = 20_000
    inputs = (
        rng.uniform(6.001, 20.999, n),
        rng.uniform(1.101, 1.899, n),
        rng.uniform(1.241, 1.719, n),
        rng.uniform(-90, 90, n),
        rng.choice([31, 95], n),
    )
    np.testing.assert_allclose(parallax_zero_point(*inputs), zpt.get_zpt(*inputs), atol=0.51e-6)


def test_continuous_in_magnitude_and_constant_beyond_its_range():
    magnitude = np.linspace(4.0, 23.0, 190_001)
    same = np.ones_like(magnitude)
    for solution in (31, 95):
        value = parallax_zero_point(magnitude, 1.5 * same, 1.5 * same, 30.0 * same, solution * same)
        assert np.abs(np.diff(value)).max() < 2e-5
        assert np.ptp(value[magnitude <= 6.0]) == np.ptp(value[magnitude >= 21.0]) == 0.0


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({}, True),
        ({0: np.nan}, False),
        ({1: np.nan}, False),
        ({2: np.nan}, True),  # a pseudocolour is for the other solution
        ({3: np.nan}, False),
        ({4: 3}, False),  # a position only
        ({4: np.nan}, False),
        ({1: 1.09}, False),
        ({1: 1.91}, False),
        ({4: 95, 1: np.nan}, True),
        ({4: 95, 2: 1.75}, False),
    ],
)
def test_where_it_is_not_known(change, known):
    inputs = [15.0, 1.5, 1.5, 20.0, 31.0]
    for index, value in change.items():
        inputs[index] = value
    assert np.isfinite(parallax_zero_point(*(np.array([value]) for value in inputs)))[0] == known


class TestReading:
    @pytest.fixture
    def sources(self, bulk_files):
        table = Table.read(bulk_files.gaia_source)
        n = len(table)
        table["nu_eff_used_in_astrometry"] = np.full(n, 1.45)
        table["pseudocolour"] = np.full(n, np.nan)
        table["ecl_lat"] = np.linspace(-80.0, 80.0, n)
        table["astrometric_params_solved"] = np.full(n, 31)
        table["astrometric_params_solved"][3] = 3
        return table

    def test_subtracted_where_its_inputs_are(self, bulk_files, sources):
        obs = xk.read_xp(bulk_files.spectra, gaia_source=sources, engine=ENGINE)
        expected = parallax_zero_point(*(np.asarray(sources[name], float) for name in INPUTS))
        raw = obs.columns["parallax"]
        np.testing.assert_array_equal(raw, sources["parallax"])
        np.testing.assert_array_equal(obs.plx, np.where(np.isnan(expected), raw, raw - expected))
        assert np.isnan(expected).tolist() == [star == 3 for star in range(len(raw))]
        assert (obs.plx - raw)[0] == pytest.approx(-expected[0])
        assert obs.counts["parallaxes_corrected"] == len(raw) - 1

    @pytest.mark.parametrize("without", [None, *INPUTS[1:]])
    def test_not_subtracted_unless_asked_for_and_possible(self, bulk_files, sources, without):
        if without is not None:
            sources.remove_column(without)
        name = "none" if without is None else "lindegren2021"
        obs = xk.read_xp(bulk_files.spectra, gaia_source=sources, engine=ENGINE, parallax_zero_point=name)
        np.testing.assert_array_equal(obs.plx, obs.columns["parallax"])
        assert "parallaxes_corrected" not in obs.counts

    @pytest.mark.parametrize("without", [None, "ecl_lat"])
    def test_what_is_said_of_it(self, bulk_files, sources, without, tmp_path, capsys):
        if without is not None:
            sources.remove_column(without)
        sources.write(tmp_path / "source.csv")
        words = ["spectra", str(bulk_files.spectra), "--source", str(tmp_path / "source.csv"), "--engine", ENGINE]
        assert main([*words, "-o", str(tmp_path / "s.h5")]) == 0
        setting = "lindegren2021" if without is None else "not applied: no column ecl_lat"
        line = f"  {len(sources) - 1:>10}  parallaxes corrected, zero point = lindegren2021\n"
        if without is not None:
            line = f"\n              parallax_zero_point: {setting}\n"
        assert line in capsys.readouterr().out
        assert read(tmp_path / "s.h5").meta["parallax_zero_point"] == setting

    def test_unknown_zero_point(self, bulk_files):
        with pytest.raises(xk.InputError, match="'zinn' is none of lindegren2021, none"):
            xk.read_xp(bulk_files.spectra, parallax_zero_point="zinn")

    def test_in_the_catalogue(self, bulk_files, sources, tmp_path):
        sources["norm_dg"] = np.linspace(-20.0, -11.0, len(sources))
        summary = xk.make_catalog(bulk_files.spectra, tmp_path / "c.fits", gaia_source=sources, engine=ENGINE)
        catalog = read(tmp_path / "c.fits")
        expected = parallax_zero_point(*(np.asarray(sources[name], float) for name in INPUTS))
        np.testing.assert_array_equal(catalog["parallax_archive"], sources["parallax"])
        np.testing.assert_allclose(
            catalog["parallax"], catalog["parallax_archive"] - np.nan_to_num(expected), rtol=0, atol=1e-12
        )
        companion = read(tmp_path / "c.diagnostics.fits")
        np.testing.assert_allclose(companion["norm_dg"], sources["norm_dg"], rtol=1e-6)
        assert summary.counts["parallaxes_corrected"] == catalog.meta["parallaxes_corrected"] == len(catalog) - 1
        assert summary.input_rules["parallax_zero_point"] == catalog.meta["parallax_zero_point"] == "lindegren2021"
