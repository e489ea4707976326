"""The start of the search, scored candidate by candidate."""

from __future__ import annotations

import numpy as np
import pytest
from mock_stars import (
    infrared_missing,
    random_model,
    random_params,
    random_prior,
    random_stars,
    side_missing,
    some_bands_missing,
)

from xpkern.engine.contract import FitOptions
from xpkern.engine.packed import present_samples
from xpkern.fit.start import N_TYPES, start_grid
from xpkern.observe.whiteners import dense_whitener


def slow_scores(grid, stars, star):
    """Score and parallax of every candidate for one star; None where no band has a weight."""
    present = present_samples(stars.whitener)[star]
    kept = np.flatnonzero(present)
    whitener = dense_whitener(stars.whitener[star : star + 1])[0][np.ix_(kept, kept)]
    variance = np.zeros(len(present))
    variance[kept] = np.diag(np.linalg.inv(whitener.T @ whitener))
    bands = []
    for band in range(grid.band_flux.shape[1]):
        members = np.flatnonzero(grid.band_of_sample == band)
        if present[members].all():
            observed = stars.flux[star, members].astype(float).mean()
            bands.append((band, observed, 1.0 / (variance[members].mean() + (0.05 * observed) ** 2)))
    if not bands:
        return None
    observed_plx, sigma = stars.mean[star, -1], stars.sigma[star, -1]
    scores, parallaxes = [], []
    for flux, ln_prior in zip(grid.band_flux, grid.ln_prior, strict=True):
        square = sum(w * o * flux[b] for b, o, w in bands) / sum(w * flux[b] ** 2 for b, o, w in bands)
        plx = min(max(np.sqrt(max(square, 0.0)), 1e-4), 1e3)
        score = sum(w * (plx**2 * flux[b] - o) ** 2 for b, o, w in bands) - 2.0 * ln_prior
        score += (plx - observed_plx) ** 2 / (sigma**2 + (0.1 * plx) ** 2)
        scores.append(score)
        parallaxes.append(plx)
    return np.array(scores), np.array(parallaxes)


@pytest.mark.parametrize("name", ["complete", "no infrared", "some bands", "no BP", "no RP", "no parallax"])
def test_best_candidate(engine, rng, name):
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 12)
    missing = {
        "no infrared": infrared_missing(12),
        "some bands": some_bands_missing(rng, 12),
        "no BP": side_missing(12, "bp"),
        "no RP": side_missing(12, "rp"),
    }.get(name)
    stars = random_stars(rng, model, params, missing=missing, parallax=name != "no parallax")
    grid = start_grid(model, prior)
    found = engine.start(grid, stars, FitOptions())[:, 0]
    assert found.shape == params.shape
    assert found.dtype == np.float64
    for star in range(12):
        scores, parallaxes = slow_scores(grid, stars, star)
        chosen = np.flatnonzero((np.abs(grid.params[:, :-1] - found[star, :-1]) < 1e-12).all(axis=1))
        # float32 engines score to about 1e-5 of the terms that nearly cancel; candidates closer than that are equal
        assert scores[chosen].min() <= scores.min() + 1e-3 * (1.0 + np.abs(scores.min()))
        np.testing.assert_allclose(found[star, -1], parallaxes[chosen[0]], rtol=1e-5)


def test_further_starts_are_the_best_of_other_types(engine, rng):
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 12)
    stars = random_stars(rng, model, params, snr=3.0, parallax=False)
    grid = start_grid(model, prior)
    options = FitOptions(starts=5, gate=30.0)
    found = engine.start(grid, stars, options)
    assert found.shape == (12, 5, 5)
    several = 0
    for star in range(12):
        scores, _ = slow_scores(grid, stars, star)
        left = np.ones(len(grid), bool)
        starts = found[star][np.isfinite(found[star]).all(axis=1)]
        several += len(starts) > 1
        assert np.isnan(found[star, len(starts) :]).all()
        for start in starts:
            chosen = np.flatnonzero((np.abs(grid.params[:, :-1] - start[:-1]) < 1e-12).all(axis=1))
            assert left[chosen].any()
            slack = 1e-3 * (1.0 + np.abs(scores.min()))
            assert scores[chosen][left[chosen]].min() <= scores[left].min() + slack
            assert scores[chosen].min() <= scores.min() + options.gate + slack
            left &= (np.abs(grid.params[:, :3] - start[:3]) > grid.apart).any(axis=1)
        if len(starts) < options.starts and left.any():
            assert scores[left].min() >= scores.min() + options.gate - slack
    assert several > 3


def test_without_a_band(engine, rng):
    """The most probable type, at the observed parallax if there is a positive one."""
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 3)
    stars = random_stars(rng, model, params, missing=np.ones((3, 66), bool))
    stars.mean[1, -1], stars.sigma[1, -1] = 0.0, np.inf
    stars.mean[2, -1] = -0.5
    grid = start_grid(model, prior)
    found = engine.start(grid, stars, FitOptions())[:, 0]
    best = grid.params[grid.ln_prior.argmax()]
    np.testing.assert_allclose(found[:, :-1], np.broadcast_to(best[:-1], (3, 4)))
    np.testing.assert_allclose(found[:, -1], [stars.mean[0, -1], 1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17])
def test_a_star_does_not_notice_how_many_there_are(engine, rng, count):
    model, prior = random_model(rng), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 17))
    grid = start_grid(model, prior)
    options = FitOptions(starts=3)
    some = engine.start(grid, stars[:count], options)
    np.testing.assert_allclose(
        some, engine.start(grid, stars, options)[:count], rtol=1e-9 if engine.name == "reference" else 0
    )


def test_grid_is_of_types_and_extinctions(rng):
    model, prior = random_model(rng), random_prior(rng)
    grid = start_grid(model, prior, n_ext=6)
    assert len(grid) == 6 * N_TYPES
    assert grid.band_of_sample.dtype == np.int32
    assert (np.bincount(grid.band_of_sample)[:12] >= 5).all()
    assert (np.bincount(grid.band_of_sample)[12:] == 1).all()
    assert grid.band_flux.shape == (len(grid), 17)
    np.testing.assert_allclose(grid.ln_prior, prior.ln_density(grid.params[:, :3]))
    flux = model.predict(**dict(zip(("teff", "feh", "logg", "ext", "plx"), grid.params.T, strict=True)))
    np.testing.assert_allclose(grid.band_flux[:, 3], flux[:, grid.band_of_sample == 3].mean(axis=1))
    np.testing.assert_allclose(grid.band_flux[:, 16], flux[:, 65])
    few = start_grid(random_model(rng, samples=20), prior)
    assert few.band_flux.shape[1] == 4


def test_types_are_spread_over_the_prior(rng):
    prior = random_prior(rng)
    types = np.unique(start_grid(random_model(rng), prior).params[:, :3], axis=0)
    assert len(types) == N_TYPES
    drawn = prior.sample(4000, rng)
    unit = drawn.std(axis=0)

    def distance(centres):
        return np.sqrt(np.square((drawn[:, None] - centres) / unit).sum(axis=2).min(axis=1).mean())

    # nearer to what the prior draws than as many draws are, and than the means of its components
    assert distance(types) < distance(prior.sample(N_TYPES, rng))
    assert distance(types) < distance(prior.means)
