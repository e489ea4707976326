"""The grid search of every engine, against scores computed candidate by candidate."""

from __future__ import annotations

import numpy as np
import pytest
from mock_stars import (
    assert_same,
    infrared_missing,
    random_model,
    random_params,
    random_prior,
    random_stars,
    side_missing,
    some_bands_missing,
)

from xpkern.engine.packed import present_samples
from xpkern.fit.candidates import CandidateGrid
from xpkern.observe.whiteners import dense_whitener


def random_grid(rng, model, prior, *, types=9, exts=21, guess="ratio_of_sums", score="prior", window=None):
    theta = prior.sample(types, rng)
    bare = np.column_stack([theta, np.zeros(types), np.ones(types)])
    samples = np.arange(model.n_samples)
    return CandidateGrid(
        types=theta,
        ext=np.geomspace(0.01, 10.0, exts),
        base_flux=np.exp(model.ln_flux(bare)),
        ext_curve=model.ext_curve,
        penalty=-2.0 * prior.ln_density(theta) if score == "prior" else np.zeros(types),
        window=(samples > len(samples) // 4) & (samples < len(samples) // 2) if window is None else window,
        guess=guess,
        score=score,
        plx_bounds=(1e-4, 1e3),
    )


def slow_scores(model, grid, stars, star):
    """Score and parallax of every candidate, (t, e) each, by the inverse of the dense covariance."""
    kept = np.flatnonzero(present_samples(stars.whitener)[star])
    dense = dense_whitener(stars.whitener[star : star + 1])[0][np.ix_(kept, kept)]
    observed = stars.flux[star].astype(float)
    window = [sample for sample in kept if grid.window[sample]]
    mean, sigma = stars.mean[star, -1], stars.sigma[star, -1]
    scores, parallaxes = np.empty((len(grid.types), len(grid.ext))), np.empty((len(grid.types), len(grid.ext)))
    for t, theta in enumerate(grid.types):
        for e, ext in enumerate(grid.ext):
            flux = np.exp(model.ln_flux(np.array([[*theta, ext, 1.0]])))[0]
            if not window:
                square = mean**2 if np.isfinite(sigma) and mean > 0 else 1.0
            elif grid.guess == "ratio_of_sums":
                square = observed[window].sum() / flux[window].sum()
            else:
                square = np.mean([max(observed[i] / flux[i], 0.0) for i in window])
            plx = min(max(np.sqrt(max(square, 0.0)), 1e-4), 1e3)
            difference = (plx**2 * flux - observed)[kept]
            score = difference @ (dense.T @ dense) @ difference
            score += ((plx - mean) / sigma) ** 2 if grid.score == "parallax" else grid.penalty[t]
            scores[t, e], parallaxes[t, e] = score, plx
    return scores, parallaxes


def assert_best(model, grid, stars, found):
    for star in range(len(stars)):
        scores, parallaxes = slow_scores(model, grid, stars, star)
        t = np.abs(grid.types - found[star, :-2]).max(axis=1).argmin()
        e = np.abs(grid.ext - found[star, -2]).argmin()
        np.testing.assert_allclose(found[star, :-1], [*grid.types[t], grid.ext[e]], rtol=1e-14)
        np.testing.assert_allclose(found[star, -1], parallaxes[t, e], rtol=1e-5)
        # single precision: 1e-7 times the condition of the covariance, of what the residuals add up to
        assert scores[t, e] <= scores.min() + 1e-3 * (1.0 + np.abs(scores.min()))


@pytest.mark.parametrize(("guess", "score"), [("ratio_of_sums", "prior"), ("mean_of_ratios", "parallax")])
@pytest.mark.parametrize("name", ["complete", "no infrared", "some bands", "no BP", "no RP", "no parallax"])
def test_best_candidate(engine, rng, name, guess, score):
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 4)
    missing = {
        "no infrared": infrared_missing(4),
        "some bands": some_bands_missing(rng, 4),
        "no BP": side_missing(4, "bp"),
        "no RP": side_missing(4, "rp"),
    }.get(name)
    stars = random_stars(rng, model, params, missing=missing, parallax=name != "no parallax")
    grid = random_grid(rng, model, prior, guess=guess, score=score)
    found = engine.search(grid, stars)
    assert found.dtype == np.float64
    assert_best(model, grid, stars, found)


@pytest.mark.parametrize("snr", [1e-3, 1.0, 1e5])
def test_signal_to_noise(engine, rng, snr):
    """Faint stars have negative fluxes, bright ones scores of 1e12: pruning must lose neither."""
    model, prior = random_model(rng), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 4), snr=snr)
    for guess in ("ratio_of_sums", "mean_of_ratios"):
        grid = random_grid(rng, model, prior, guess=guess)
        assert_best(model, grid, stars, engine.search(grid, stars))


@pytest.mark.parametrize(("types", "exts"), [(1, 1), (3, 15), (2, 16), (2, 17), (5, 61)])
def test_sizes_of_grids(engine, rng, types, exts):
    model, prior = random_model(rng), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 2))
    grid = random_grid(rng, model, prior, types=types, exts=exts)
    assert_best(model, grid, stars, engine.search(grid, stars))


def test_other_models(engine, rng):
    model, prior = random_model(rng, hidden=(9,), samples=21), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 3))
    grid = random_grid(rng, model, prior)
    assert_best(model, grid, stars, engine.search(grid, stars))


def test_without_a_sample_to_compare(engine, rng):
    """The observed parallax where there is a positive one, else 1 mas."""
    model, prior = random_model(rng), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 4))
    stars.mean[1, -1], stars.sigma[1, -1] = 0.0, np.inf
    stars.mean[2, -1] = -0.5
    grid = random_grid(rng, model, prior, window=np.zeros(model.n_samples, bool))
    found = engine.search(grid, stars)
    np.testing.assert_allclose(found[:, -1], [stars.mean[0, -1], 1.0, 1.0, stars.mean[3, -1]], rtol=1e-6)
    assert_best(model, grid, stars, found)


def test_the_first_of_equals_wins(engine, rng):
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 3)
    stars = random_stars(rng, model, params)
    grid = random_grid(rng, model, prior)
    types = np.repeat(grid.types[:1], 9, axis=0) + 1e-13 * np.arange(9)[:, None]
    twins = CandidateGrid(
        types, grid.ext, np.repeat(grid.base_flux[:1], 9, axis=0), grid.ext_curve, np.zeros(9), grid.window,
        grid.guess, grid.score, grid.plx_bounds,
    )  # fmt: skip
    np.testing.assert_array_equal(engine.search(twins, stars)[:, :3], np.repeat(types[:1], 3, axis=0))


def test_stars_without_data_or_sense(engine, rng):
    """No sample, or a flux that overflows every score: the first candidate, and no neighbour notices."""
    model, prior = random_model(rng), random_prior(rng)
    missing = np.zeros((3, model.n_samples), bool)
    missing[1] = True
    stars = random_stars(rng, model, random_params(rng, prior, 3), missing=missing)
    grid = random_grid(rng, model, prior, score="parallax")
    alone = engine.search(grid, stars[:1])
    stars.flux[2] = np.nan
    found = engine.search(grid, stars)
    assert_same(engine.name, found[:1], alone)
    np.testing.assert_array_equal(found[2, :4], [*grid.types[0], grid.ext[0]])
    assert np.isfinite(found[1]).all()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17])
def test_a_star_does_not_notice_its_neighbours(engine, rng, count):
    model, prior = random_model(rng), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 17))
    grid = random_grid(rng, model, prior)
    whole, order = engine.search(grid, stars), rng.permutation(17)
    assert_same(engine.name, engine.search(grid, stars[:count], threads=2), whole[:count])
    assert_same(engine.name, engine.search(grid, stars[order], threads=3), whole[order])


def test_same_candidates_for_any_threads_and_order(engine, rng):
    """More stars than a task of a thread holds."""
    model, prior = random_model(rng), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 100))
    grid = random_grid(rng, model, prior, types=4, exts=5)
    whole, order = engine.search(grid, stars, threads=1), rng.permutation(100)
    assert_same(engine.name, engine.search(grid, stars, threads=3), whole)
    assert_same(engine.name, engine.search(grid, stars[order], threads=2), whole[order])
