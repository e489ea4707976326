"""The model that comes with the package."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

import xpkern as xk
from xpkern.grid import N_XP, WAVELENGTH, in_scale_window
from xpkern.model.model_file import default_model_path
from xpkern.status import Status
from xpkern.train import extinction_law

SOLAR_RADIUS, KILOPARSEC = 6.957e8, 3.0856775814913673e19


def planck(wavelength, teff):
    """Surface flux pi B_lambda [W m-2 nm-1] at wavelengths [nm]."""
    c1, c2 = 3.741771852e-16, 1.438776877e-2
    metre = wavelength * 1e-9
    return c1 / metre**5 / np.expm1(c2 / (metre * teff)) * 1e-9


@pytest.fixture(scope="module")
def default():
    return xk.load_model()


def test_default_model_says_what_it_is(default):
    model, prior = default
    card = default_model_path().with_name("default_card.md").read_text(encoding="utf-8")
    assert model.card == card
    assert "test stars" in card
    assert "opened before" in card
    assert model.scale_sigma > 0
    assert model.theoretical.tolist() == [False] * 64 + [True] * 2
    assert model.noise.independent[64:].min() > model.noise.independent[61:64].max()
    assert "E(B-V)" in model.ext_unit
    assert {"stars", "atmospheres", "labels"} <= set(model.provenance)
    assert "APOGEE" in model.licence
    assert prior.n_components == 16
    assert default_model_path().stat().st_size < 1_000_000


def test_default_model_of_the_sun(default):
    model, _ = default
    # solar spectrum at the Earth, mean of 592-782 nm (ASTM E-490): 1.5 W m-2 nm-1, seen from 10 pc
    flux = model.predict(teff=5.772, feh=0.0, logg=4.438, ext=0.0, plx=100.0)[0]
    at_10_pc = 1.5e18 / (10.0 * 206264.806) ** 2
    assert flux[in_scale_window(WAVELENGTH)].mean() == pytest.approx(at_10_pc, rel=0.1)
    # M_G = 4.67: G's zero point is 2.5e-11 W m-2 nm-1, and the mean over G is near that of 450-850 nm
    mean = flux[(WAVELENGTH > 450.0) & (WAVELENGTH < 850.0)].mean() * 1e-18
    assert -2.5 * np.log10(mean / 2.5e-11) == pytest.approx(4.67, abs=0.2)


def test_default_extinction_curve_has_the_shape_of_the_law(default):
    model, _ = default
    law = extinction_law.optical_depth(WAVELENGTH)
    pivot = WAVELENGTH == extinction_law.PIVOT
    assert model.ext_curve[pivot] == pytest.approx(law[pivot])
    assert (model.ext_curve > 0).all()
    difference = (model.ext_curve / model.ext_curve[pivot] - law / law[pivot])[: N_XP + 3]
    assert np.sqrt((difference**2).mean()) < 0.02


def test_default_model_is_sane_over_the_whole_prior(default, rng):
    model, prior = default
    theta = prior.sample(20_000, rng)
    flux = model.predict(teff=theta[:, 0], feh=theta[:, 1], logg=theta[:, 2], ext=0.0, plx=1.0)
    assert np.isfinite(flux).all()
    # the wildest that a spectrum may be: colours of black bodies of 1.5 and 20 kK
    colour = np.log(flux[:, 5] / flux[:, 40])
    bound = [np.log(planck(WAVELENGTH[5], t) / planck(WAVELENGTH[40], t)) for t in (1500.0, 20_000.0)]
    assert bound[0] < colour.min() < colour.max() < bound[1]
    surface = planck(WAVELENGTH[N_XP], 1000.0 * np.clip(theta[:, 0], 2.5, 10.0))
    radius = np.sqrt(flux[:, N_XP] * 1e-18 / surface) * KILOPARSEC / SOLAR_RADIUS
    # and what a sun of that log g would have, times the root of masses of a tenth and ten suns
    of_a_sun = 10.0 ** (0.5 * (4.438 - theta[:, 2]))
    assert 0.3 < (radius / of_a_sun).min() < (radius / of_a_sun).max() < 3.2


def test_default_w1_and_w2_follow_the_rayleigh_jeans_slope(default, rng):
    model, prior = default
    theta = prior.sample(2_000, rng)
    theta = theta[(theta[:, 0] > 4.5) & (prior.ln_density(theta) > -6.0)]
    flux = model.predict(teff=theta[:, 0], feh=theta[:, 1], logg=theta[:, 2], ext=0.0, plx=1.0)
    slope = np.log(flux[:, 64:] / flux[:, 63:64]) / np.log(WAVELENGTH[64:] / WAVELENGTH[63])
    assert (np.abs(slope + 3.8) < 0.3).all()


def test_default_model_on_real_stars(default, shared_data):
    """20 bright stars of which Gaia's pipeline knows Teff: no labels to trust to better than a few per cent."""
    folder = shared_data / "real"
    table = Table.read(folder / "gaia_source_real-30.csv")
    known = ~np.ma.getmaskarray(table["parallax"])
    # the table has no errors: 0.03 mas stand in
    table["parallax_error"] = np.where(known, 0.03, np.nan)
    observed = xk.read_xp(folder / "XpContinuousMeanSpectrum_real-30.csv.gz", gaia_source=table)
    fitted = xk.fit(observed, *default)
    reference = {
        int(row["source_id"]): float(row["teff_gspphot"]) / 1000.0
        for row in table
        if not np.ma.is_masked(row["teff_gspphot"])
    }
    teff = np.array([reference.get(int(source), np.nan) for source in observed.source_id])
    learned = (teff > 3.5) & (teff < 6.9)
    assert learned.sum() >= 8
    ratio = fitted.params[learned, 0] / teff[learned]
    assert np.abs(np.median(ratio) - 1.0) < 0.04
    assert (np.abs(ratio - 1.0) < 0.15).all()
    # A stars are outside of what was learned, and the flag says so
    hot = teff > 8.0
    assert hot.sum() >= 3
    assert ((fitted.status[hot] & np.uint32(Status.EXTRAPOLATED)) != 0).all()
