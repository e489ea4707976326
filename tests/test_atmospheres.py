"""Atmospheres, the absolute scale that they give, and the standard law of extinction."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
from mock_atmospheres import NODES, black_body_sdist, planck
from scipy.integrate import trapezoid

from xpkern.errors import InputError
from xpkern.grid import N_XP, WAVELENGTH
from xpkern.train import atmospheres, extinction_law, flux_scale


@pytest.fixture(scope="module")
def black_bodies(tmp_path_factory):
    return atmospheres.read_atmospheres(black_body_sdist(tmp_path_factory.mktemp("grid") / "x.tar"))


def test_atmospheres_are_read_and_interpolated(black_bodies):
    # at a node, whatever feh and log g, beyond the grid too
    flux = np.exp(black_bodies.ln_surface_flux(np.array([[5.0, -0.3, 2.2], [5.0, 0.3, 9.0]])))
    black_body = np.broadcast_to(planck(WAVELENGTH * 10.0, 5000.0) * 1e-2, flux.shape)
    np.testing.assert_allclose(flux[:, :N_XP], black_body[:, :N_XP], rtol=3e-3)
    # Eq. 5 and the mean over the passband differ by the zero point and by the curvature of the spectrum
    np.testing.assert_allclose(flux[:, N_XP:], black_body[:, N_XP:], rtol=0.12)


def test_only_cool_phoenix_and_warm_kurucz_nodes_are_used(black_bodies):
    phoenix, kurucz = (teff / 1000.0 for teff in NODES.values())
    used = np.concatenate([phoenix[phoenix <= 3.9], kurucz[(kurucz >= 4.0) & (kurucz <= 10.0)]])
    np.testing.assert_allclose(black_bodies.teff, used)


def test_mean_over_a_passband_is_the_integral(rng):
    wavelength = np.sort(rng.uniform(300.0, 900.0, 40))
    band = np.sort(rng.uniform(400.0, 800.0, 7))
    response, spectrum = rng.uniform(0.1, 1.0, 7), rng.uniform(0.5, 2.0, 40)
    fine = np.linspace(band[0], band[-1], 400_001)
    weight = np.interp(fine, band, response)
    exact = trapezoid(np.interp(fine, wavelength, spectrum) * weight, fine) / trapezoid(weight, fine)
    # the quadrature is by trapezia on the union of both samplings: the product of two lines is not a line
    assert atmospheres._mean_over(wavelength, band, response) @ spectrum == pytest.approx(exact, rel=0.03)
    assert atmospheres._mean_over(wavelength, band, response).sum() == pytest.approx(1.0)


class Malicious:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_a_pickle_that_calls_anything_is_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="not allowed"):
        atmospheres.read_atmospheres(black_body_sdist(tmp_path / "x.tar", grid=[Malicious()]))
    assert "never" not in capsys.readouterr().out


def test_a_sdist_without_its_files_is_an_error(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w"):
        pass
    with pytest.raises(InputError, match=r"2MASS\.J"):
        atmospheres.read_atmospheres(tmp_path / "x.tar")


def test_the_sun_by_its_own_gravity_and_mass():
    sun = np.array([[5.772, 0.0, 4.438]])
    assert flux_scale.mass(sun) == pytest.approx(1.0, abs=0.02)
    shell = atmospheres.Atmospheres(
        np.array([3.0, 10.0]), np.array([-1.0, 1.0]), np.array([0.0, 5.0]), np.zeros((2, 2, 2, 66))
    )
    radius_over_kpc = 6.957e8 / 3.0856775814913673e19
    flux = np.exp(flux_scale.ln_flux_at_1kpc(shell, sun)) * 1e-18
    np.testing.assert_allclose(flux, radius_over_kpc**2, rtol=0.03)


def test_masses_of_dwarfs_rise_with_teff_and_of_giants_with_metallicity():
    teff = np.linspace(2.5, 10.0, 40)
    dwarfs = flux_scale.mass(np.column_stack([teff, np.zeros(40), np.full(40, 4.6)]))
    assert (np.diff(dwarfs) >= 0).all()
    feh = np.linspace(-2.5, 0.5, 20)
    giants = flux_scale.mass(np.column_stack([np.full(20, 4.5), feh, np.full(20, 2.0)]))
    assert (np.diff(giants) >= 0).all()
    assert 0.8 < giants.min() < giants.max() < 1.3


def test_standard_law():
    # B - V of the law is 1 by definition, A_V is R_V; both for bands, here at their effective wavelengths
    b, v = extinction_law.extinction([440.0, 550.0])
    assert b - v == pytest.approx(1.0, abs=0.06)
    assert v == pytest.approx(3.1, abs=0.1)
    assert extinction_law.extinction([1000.0 / 1.667]) == pytest.approx(2.688)
    assert (np.diff(extinction_law.optical_depth(WAVELENGTH)) < 0).all()
    assert extinction_law.optical_depth([552.0]) * 1.0857362 == pytest.approx(extinction_law.extinction([552.0]))
