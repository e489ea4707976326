"""What the benchmarks on real stars say of residuals that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.real import _extinctions, _mostly_dwarfs, _slope, _types
from xpkern.model.noise import Noise
from xpkern.observe.source_position import galactic_latitude
from xpkern.survey.truth import AtmosphereTruth
from xpkern.train.apogee_library import Library
from xpkern.train.extinction_law import extinction
from xpkern.train.held_out import Residuals

N = 6000


@pytest.fixture
def stars(rng):
    """Residuals of known bias and scatter, E that is A_K's times 1.1, and the library they belong to."""
    source_id = np.sort(rng.choice((12 << 24) << 35, N, replace=False).astype(np.int64))
    theta = np.column_stack([rng.uniform(3.5, 6.9, N), rng.uniform(-2.0, 0.5, N), rng.uniform(0.0, 5.0, N)])
    polar = np.abs(galactic_latitude(source_id)) > 50.0
    patchy = np.abs(np.sin(source_id / 2.0**54))  # alike for neighbours
    ext = np.where(polar, 0.0, patchy)
    sigma = np.full((N, 3), [0.05, 0.1, 0.2])
    difference = [0.02, 0.03, -0.04] + sigma * rng.standard_normal((N, 3))
    g = rng.uniform(10.0, 15.0, N)
    found_ext = 1.1 * ext + np.where(polar, 0.03 + 0.1 * (theta[:, 0] > 5.5), 0.0)
    found = Residuals(source_id, theta, difference, sigma, found_ext, g, np.ones(N), 0)
    ak = np.where(rng.random(N) < 0.9, ext * extinction([2159.0])[0], np.nan)
    return found, Library(source_id, np.zeros((N, 1)), np.zeros((N, 1)), theta, sigma, ak, g)


def test_types(stars):
    found, _ = stars
    said = _types(found)
    assert said["all: stars"] == N
    assert said["all: Teff [K] bias"] == pytest.approx(20.0, abs=4.0)
    assert said["all: [Fe/H] scatter"] == pytest.approx(0.1, rel=0.06)
    assert said["all: log g width of the pulls"] == pytest.approx(1.0, rel=0.06)
    assert said["all: [Fe/H] scatter, standard error"] == pytest.approx(0.1 * 1.0 / np.sqrt(N), rel=0.4)
    assert said["G < 12: stars"] == (found.g < 12.0).sum()
    assert said["log g off by more than 1 dex, share"] < 0.001


def test_extinctions(stars):
    found, library = stars
    said = _extinctions(found, library)
    assert said["E at |b| > 50 deg: stars"] == pytest.approx(N * (1.0 - np.sin(np.radians(50.0))), rel=0.1)
    assert said["E at |b| > 50 deg, teff 4 to 4.5: median"] == pytest.approx(0.03)
    assert said["E at |b| > 50 deg: range over teff"] == pytest.approx(0.1)
    assert said["E at |b| > 50 deg: range over feh"] < 0.1
    assert said["E less that of A_K by maps, logg 2.5 to 3.8: median"] > 0.02
    assert 0.02 < said["E less that of A_K by colours, logg 2.5 to 3.8: median"] < 0.1
    polar = np.abs(galactic_latitude(found.source_id)) > 50.0
    without_offset = replace(found, ext=np.where(polar, 0.0, found.ext))
    said = _extinctions(without_offset, library)
    assert said["E against A_K by patches of the sky: slope"] == pytest.approx(1.1, abs=0.03)


def test_slope_of_points_with_errors_in_both(rng):
    x = rng.uniform(0.0, 1.0, 400)
    slope, error = _slope(x + 0.05 * rng.standard_normal(400), 0.8 * x + 0.05 * rng.standard_normal(400))
    assert slope == pytest.approx(0.8, abs=5.0 * error)
    assert 0.003 < error < 0.03


def test_the_sample_of_dwarfs_and_giants(monkeypatch, truth):
    monkeypatch.setattr("bench.real.AtmosphereTruth", lambda grid: truth)
    monkeypatch.setattr("bench.real.load_atmospheres", lambda cache: None)
    assert isinstance(truth, AtmosphereTruth)
    obs, types = _mostly_dwarfs(50, "auto", Noise.eq2())
    assert len(obs) == len(types) == 50
    assert (types[:, 0] < 30.0).all()
    assert (types[:, 2] > 3.8).mean() > 0.5
    assert np.isfinite(obs.plx_err).mean() > 0.9
