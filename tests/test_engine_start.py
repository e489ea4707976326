"""The start of the search: every type of the grid, moved and reddened by dense least squares, one star at a time."""

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
from xpkern.fit.start import N_COLUMNS, N_TYPES, start_grid
from xpkern.observe.whiteners import dense_whitener


def combine(first, of_first, second, of_second):
    """Mean of two numbers weighted by their variances, and its variance."""
    variance = 1.0 / (1.0 / of_first + 1.0 / of_second)
    return variance * (first / of_first + second / of_second), variance


def guess_of(grid, flux, variance):
    """Flux of the samples that are present, (m,): the grid's mean spectrum, neighbours and sample by their errors."""
    present = variance > 0
    guess = np.ones(len(flux))
    kept = np.flatnonzero(present)
    typical = np.exp(grid.mean)
    sigma = np.sqrt(variance[kept])
    scale = np.linalg.lstsq((typical[kept] / sigma)[:, None], flux[kept] / sigma, rcond=None)[0][0]
    typical = typical * max(scale, 1e-12)
    for sample in kept:
        window = np.arange(*grid.window[sample])
        window = window[present[window]]
        expected = typical[sample]
        noise = variance[window].sum() / len(window) ** 2
        mean, of_mean = combine(flux[window].mean(), noise, expected, (0.8 * expected) ** 2)
        mean = max(mean, 0.1 * expected)
        guess[sample], _ = combine(flux[sample], variance[sample], mean, of_mean + (0.1 * mean) ** 2)
        guess[sample] = max(guess[sample], 0.1 * np.sqrt(variance[sample]))
    return guess


def slow_candidates(grid, stars, star):
    """Score (t,) and parameters (t, k) of every type for one star."""
    present = present_samples(stars.whitener)[star]
    kept = np.flatnonzero(present)
    whitener = dense_whitener(stars.whitener[star : star + 1])[0][np.ix_(kept, kept)]
    variance = np.zeros(len(present))
    variance[kept] = np.diag(np.linalg.inv(whitener.T @ whitener))
    flux = stars.flux[star].astype(float)
    guess = guess_of(grid, flux, variance)
    ln_flux = np.log(guess) + np.clip((flux - guess) / guess, -30, 30) - grid.mean
    level = ln_flux[kept].mean()
    origin = grid.inverse @ np.where(variance > 0, ln_flux - level, 0.0)
    origin[1] += 0.5 * level
    # besides the star's own data, each coordinate is tied to the origin: weakly, and to a part of what is known of it
    columns = whitener * guess[kept] @ grid.basis[kept]
    ridge = np.sqrt(0.01 + 1e-6 * (columns**2).sum(axis=0))
    columns = np.vstack([columns, np.diag(ridge)])
    y = np.concatenate([whitener * guess[kept] @ ln_flux[kept], ridge * origin])
    response = columns[:, :2]
    solve = np.linalg.pinv(response)
    covariance = np.linalg.inv(response.T @ response)
    observed, sigma = stars.mean[star, -1], stars.sigma[star, -1]
    scores, params = [], []
    for index in range(len(grid)):
        spectrum, slope = (columns @ at[index] for at in (grid.position, grid.slope))
        left, left_slope = y - spectrum, -slope
        at, per_step = solve @ left, solve @ left_slope
        left, left_slope = left - response @ at, left_slope - response @ per_step
        normal = left_slope.T @ left_slope
        plx = np.exp(at[1])
        stiffness = plx**2 / (sigma**2 + plx**2 * covariance[1, 1])
        matrix = normal + grid.prior_precision[index] + stiffness * np.outer(per_step[1], per_step[1])
        pull = grid.prior_gradient[index] - left_slope.T @ left - stiffness * (plx - observed) / plx * per_step[1]
        step = np.linalg.solve(matrix, pull)
        step /= max(1.0, np.abs(step / grid.reach).max())
        left = left + left_slope @ step
        score = left @ left - 2.0 * (grid.ln_prior[index] + grid.prior_gradient[index] @ step)
        score += step @ grid.prior_precision[index] @ step
        at = at + per_step @ step
        # ext and ln plx together: the spectrum's Gaussian, then the parallax linearised there, then - 2 ln ext
        plx = np.exp(at[1])
        precision = np.linalg.inv(covariance)
        if np.isfinite(sigma):
            precision = precision + np.diag([0.0, (plx / sigma) ** 2])
            shift = np.linalg.solve(precision, [0.0, -plx * (plx - observed) / sigma**2])
            score += shift @ np.linalg.inv(covariance) @ shift + ((plx - observed + plx * shift[1]) / sigma) ** 2
            at = at + shift
        both = np.linalg.inv(precision)
        ext = max(0.5 * (at[0] + np.sqrt(at[0] ** 2 + 4.0 * both[0, 0])), 1e-3)
        ln_plx = at[1] + both[0, 1] / both[0, 0] * (ext - at[0])
        score += (ext - at[0]) ** 2 / both[0, 0] - 2.0 * np.log(ext) - 2.0 * ln_plx
        scores.append(score)
        params.append([*(grid.types[index] + step), ext, np.exp(ln_plx)])
    return np.array(scores), np.array(params)


@pytest.mark.parametrize("name", ["complete", "no infrared", "some bands", "no BP", "no RP", "no parallax", "noisy"])
def test_best_type(engine, rng, name):
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 12)
    missing = {
        "no infrared": infrared_missing(12),
        "some bands": some_bands_missing(rng, 12),
        "no BP": side_missing(12, "bp"),
        "no RP": side_missing(12, "rp"),
    }.get(name)
    stars = random_stars(
        rng, model, params, missing=missing, parallax=name != "no parallax", snr=3.0 if name == "noisy" else 50.0
    )
    grid = start_grid(model, prior)
    found = engine.start(grid, stars, FitOptions(starts=1))[:, 0]
    assert found.shape == params.shape
    assert found.dtype == np.float64
    for star in range(12):
        scores, candidates = slow_candidates(grid, stars, star)
        distance = np.abs(candidates - found[star]) / (1.0 + np.abs(candidates))
        chosen = distance.max(axis=1).argmin()
        # float32 engines square the condition number of the basis
        assert distance[chosen].max() < (1e-6 if engine.name == "reference" else 0.02)
        assert scores[chosen] <= scores.min() + 1e-3 * (100.0 + np.abs(scores).min() + np.median(scores) - scores.min())


def test_the_start_is_close_to_the_truth(engine, rng):
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 200)
    stars = random_stars(rng, model, params, snr=50.0)
    found = engine.start(start_grid(model, prior), stars, FitOptions(starts=1))[:, 0]
    assert np.median(np.abs(found[:, 0] - params[:, 0])) < 0.1
    assert np.median(np.abs(found[:, -2] - params[:, -2])) < 0.05
    assert np.median(np.abs(found[:, -1] / params[:, -1] - 1.0)) < 0.05


def test_further_starts_are_the_best_of_other_types(engine, rng):
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 12)
    stars = random_stars(rng, model, params, snr=3.0, parallax=False)
    grid = start_grid(model, prior)
    every = engine.start(grid, stars, FitOptions(starts=6, gate=1e6))
    several = 0
    for star in range(12):
        scores, candidates = slow_candidates(grid, stars, star)
        left = scores.copy()
        for start in every[star][np.isfinite(every[star, :, 0])]:
            at = np.abs(candidates - start).max(axis=1).argmin()
            np.testing.assert_allclose(start, candidates[at], rtol=0.02, atol=0.02)
            slack = 0.05 * (1.0 + np.abs(scores.min()))
            assert scores[at] <= left.min() + slack
            left[(np.abs(candidates[:, :3] - candidates[at, :3]) <= grid.apart + 1e-9).all(axis=1)] = np.inf
        # a gate leaves out those that are too high
        gate = 0.5 * (scores.min() + np.median(scores)) - scores.min()
        few = engine.start(grid, stars[star : star + 1], FitOptions(starts=6, gate=gate))[0]
        taken = np.isfinite(few[:, 0])
        several += taken.sum() > 1
        np.testing.assert_array_equal(few[taken], every[star][taken]) if engine.name != "reference" else None
        for start in few[taken]:
            assert scores[np.abs(candidates - start).max(axis=1).argmin()] <= scores.min() + gate + slack
    assert several > 3


def test_a_star_without_samples_gets_a_start_too(engine, rng):
    model, prior = random_model(rng), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 3), missing=np.ones((3, 66), bool))
    found = engine.start(start_grid(model, prior), stars, FitOptions(starts=1))[:, 0]
    assert np.isfinite(found).all()
    assert (found[:, -2:] > 0).all()


@pytest.mark.parametrize("snr", [1e-3, 1e4])
def test_starts_are_finite_whatever_the_noise(engine, rng, snr):
    model, prior = random_model(rng), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 20), snr=snr)
    stars.flux[0] = 0.0
    stars.flux[1] *= -1.0
    stars.flux[2] *= 1e6
    found = engine.start(start_grid(model, prior), stars, FitOptions(starts=1))[:, 0]
    assert np.isfinite(found).all()
    assert (found[:, -2:] > 0).all()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17])
def test_a_star_does_not_notice_how_many_there_are(engine, rng, count):
    model, prior = random_model(rng), random_prior(rng)
    stars = random_stars(rng, model, random_params(rng, prior, 17))
    grid = start_grid(model, prior)
    options = FitOptions(starts=3)
    some = engine.start(grid, stars[:count], options)
    np.testing.assert_allclose(
        some, engine.start(grid, stars, options)[:count], rtol=1e-6 if engine.name == "reference" else 0
    )


def test_basis_holds_the_types_and_their_slopes(rng):
    model, prior = random_model(rng), random_prior(rng)
    grid = start_grid(model, prior, n_types=20)
    assert len(grid) == 20
    assert grid.basis.shape == (66, N_COLUMNS)
    params = np.column_stack([grid.types, np.full(20, 0.3), np.full(20, 2.0)])
    coordinates = grid.position + np.r_[0.3, np.log(2.0), np.zeros(N_COLUMNS - 2)]
    np.testing.assert_allclose(grid.mean + coordinates @ grid.basis.T, model.ln_flux(params), atol=0.3)
    step = np.array([0.01, -0.01, 0.02])
    moved = params + np.r_[step, 0.0, 0.0]
    change = model.ln_flux(moved) - model.ln_flux(params)
    expected = (grid.slope @ step) @ grid.basis.T
    assert np.abs(expected - change).mean() < 0.3 * np.abs(change).mean()
    np.testing.assert_allclose(grid.inverse @ grid.basis, np.eye(N_COLUMNS), atol=1e-9)
    np.testing.assert_allclose(grid.ln_prior, prior.ln_density(grid.types))
    assert (grid.window[:61, 1] - grid.window[:61, 0] >= 3).all()
    np.testing.assert_array_equal(grid.window[61:, 1] - grid.window[61:, 0], 1)


def test_a_grid_for_fewer_samples_than_columns(rng):
    prior = random_prior(rng)
    model = random_model(rng, samples=8)
    grid = start_grid(model, prior)
    assert grid.basis.shape == (8, N_COLUMNS)
    params = np.column_stack([grid.types, np.zeros(len(grid)), np.ones(len(grid))])
    np.testing.assert_allclose(grid.mean + grid.position @ grid.basis.T, model.ln_flux(params), atol=1e-9)


def test_types_are_spread_over_the_prior(rng):
    prior = random_prior(rng)
    types = start_grid(random_model(rng), prior).types
    assert len(types) == N_TYPES
    drawn = prior.sample(4000, rng)
    unit = drawn.std(axis=0)

    def distance(centres):
        return np.sqrt(np.square((drawn[:, None] - centres) / unit).sum(axis=2).min(axis=1).mean())

    # nearer to what the prior draws than as many draws are, and than the means of its components
    assert distance(types) < distance(prior.sample(N_TYPES, rng))
    assert distance(types) < distance(prior.means)
