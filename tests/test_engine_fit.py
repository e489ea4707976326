"""The fit of every engine: it ends where the reference says the optimum is, and says how it got there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from mock_stars import (
    assert_same,
    correlation_in_blocks,
    infrared_missing,
    random_model,
    random_params,
    random_prior,
    random_stars,
    side_missing,
    some_bands_missing,
)

from xpkern.engine.contract import Box, FitOptions, LossTerms, StarData
from xpkern.engine.packed import present_samples
from xpkern.engine.reference import ReferenceEngine
from xpkern.engine.reference_fit import SMALLEST_EXT
from xpkern.fit.fit import default_box
from xpkern.fit.start import start_grid
from xpkern.model import load_model
from xpkern.observe.whiteners import dense_whitener
from xpkern.status import Status

REFERENCE = ReferenceEngine()


def fit(engine, model, prior, stars, start, *, terms=None, box=None, options=None, threads=1):
    return engine.fit(
        model,
        prior,
        stars,
        start,
        terms or LossTerms(),
        box or default_box(prior),
        options or FitOptions(),
        threads=threads,
    )


def loss_tolerance(loss):
    return np.maximum(1e-3, 1e-5 * np.abs(loss))


@pytest.fixture
def mock(rng):
    model, prior = random_model(rng), random_prior(rng)
    return model, prior, random_params(rng, prior, 17)


def assert_optimum(model, prior, stars, found, terms, *, share=0.6):
    """No further Newton step of the reference engine lowers the loss by more than it should.

    At least ``share`` of the stars must have an optimum inside the box: random networks push some onto its edge.
    """
    at = REFERENCE.evaluate(model, prior, stars, found.params, terms)
    assert (np.abs(found.loss - at.loss) <= loss_tolerance(at.loss)).all()
    converged = (found.status & (Status.NOT_CONVERGED | Status.ON_BOX_EDGE | Status.HESSIAN_NOT_POSITIVE)) == 0
    assert ((found.status & Status.NOT_CONVERGED) == 0).all()
    assert converged.mean() >= share
    for star in np.flatnonzero(converged):
        step = np.linalg.solve(at.hessian[star], at.gradient[star])
        predicted = 0.5 * at.gradient[star] @ step
        assert -1e-6 <= predicted <= 2e-5 * max(1.0, 0.01 * at.loss[star]) + loss_tolerance(at.loss[star]) / 10
    return converged


@pytest.mark.parametrize(
    "name", ["complete", "no infrared", "some bands", "no BP", "no RP", "no parallax", "blocks", "blocks of RP"]
)
def test_optimum(engine, rng, mock, name):
    model, prior, truth = mock
    missing = {
        "no infrared": infrared_missing(17),
        "some bands": some_bands_missing(rng, 17),
        "no BP": side_missing(17, "bp"),
        "no RP": side_missing(17, "rp"),
        "blocks of RP": side_missing(17, "bp"),
    }.get(name)
    correlation = correlation_in_blocks() if name.startswith("blocks") else None
    stars = random_stars(rng, model, truth, missing=missing, parallax=name != "no parallax", correlation=correlation)
    found = fit(engine, model, prior, stars, truth)
    converged = assert_optimum(model, prior, stars, found, LossTerms())
    # the parameters that the data determine come back within their errors: chi^2 of 5 degrees of freedom
    offset = (found.params - truth)[converged]
    squares = np.einsum("na,nab,nb->n", offset, found.fisher[converged], offset)
    assert np.median(squares) < 15.0


@pytest.mark.parametrize("terms", [LossTerms(False, True, True), LossTerms(True, False, False)])
def test_optimum_of_other_losses(engine, rng, mock, terms):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth)
    stars.mean[:, :4], stars.sigma[:, :4] = truth[:, :4], 0.3
    found = fit(engine, model, prior, stars, truth, terms=terms)
    assert_optimum(model, prior, stars, found, terms)


@pytest.mark.parametrize("snr", [0.1, 3.0, 300.0, 3000.0])
@pytest.mark.parametrize("blocks", [False, True])
def test_optimum_at_any_signal_to_noise(engine, rng, mock, snr, blocks):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth, snr=snr, correlation=correlation_in_blocks() if blocks else None)
    # without a signal, Eq. 19 falls for ever towards large extinction: almost every star ends on the edge
    share = 0.6 if snr > 1 else 0.0
    assert_optimum(model, prior, stars, fit(engine, model, prior, stars, truth), LossTerms(), share=share)


def test_what_is_reported_belongs_to_the_solution(engine, rng, mock):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth, missing=some_bands_missing(rng, 17))
    found = fit(engine, model, prior, stars, truth)
    at = REFERENCE.evaluate(model, prior, stars, found.params, LossTerms())
    np.testing.assert_allclose(found.ln_prior, at.ln_prior, atol=1e-4)
    assert (np.abs(found.chi2 - at.chi2) <= loss_tolerance(at.chi2)).all()
    for name in ("hessian", "fisher"):
        expected = getattr(at, name)
        scale = np.sqrt(np.abs(np.einsum("naa->na", expected)))
        difference = (getattr(found, name) - expected) / (scale[:, :, None] * scale[:, None, :])
        assert np.abs(difference).max() <= 1e-3
    present = present_samples(stars.whitener)
    for star, whitener in enumerate(dense_whitener(stars.whitener)):
        kept = np.flatnonzero(present[star])
        root = whitener[np.ix_(kept, kept)]
        sigma = np.sqrt(np.diag(np.linalg.inv(root.T @ root)))
        flux = engine.predict(model, found.params[star : star + 1])[0, kept]
        # float32 residuals of order 1, from fluxes rounded to 6e-8 of themselves
        np.testing.assert_allclose(found.residual[star, kept], (flux - stars.flux[star, kept]) / sigma, atol=1e-4)
        assert not found.residual[star, ~present[star]].any()
    assert (found.iterations >= 1).all()
    dtypes = {name: values.dtype for name, values in vars(found).items()}
    assert dtypes.pop("residual") == np.float32
    assert dtypes.pop("iterations") == np.int32
    assert dtypes.pop("minima") == np.int32
    assert dtypes.pop("status") == np.uint32
    assert set(dtypes.values()) == {np.dtype(np.float64)}


def test_star_without_data(engine, rng, mock):
    model, prior, truth = mock
    missing = np.zeros((17, 66), bool)
    missing[[0, 9]] = True
    stars = random_stars(rng, model, truth, missing=missing)
    found = fit(engine, model, prior, stars, start_grid(model, prior))
    without = missing.all(axis=1)
    np.testing.assert_array_equal((found.status & Status.NO_DATA) != 0, without)
    for name in ("params", "loss", "chi2", "ln_prior", "gradient", "hessian", "fisher", "decrement"):
        values = getattr(found, name)
        assert np.isnan(values[without]).all()
        assert np.isfinite(values[~without]).all() or name == "decrement"
    assert not found.residual[without].any()
    assert (found.iterations[without] == 0).all()


def test_box(engine, rng, mock):
    """Every solution lies in the box; on its edge it carries a bit."""
    model, prior, truth = mock
    stars = random_stars(rng, model, truth)
    lower, upper = default_box(prior).lower.copy(), default_box(prior).upper.copy()
    lower[0], upper[0] = np.median(truth[:, 0]), np.median(truth[:, 0]) + 1.0
    upper[3] = 0.2
    box = Box(lower, upper)
    start = np.clip(truth, lower + 1e-3, upper - 1e-3)
    found = fit(engine, model, prior, stars, start, box=box)
    margin = 1e-6 * np.abs(upper)
    assert (found.params >= lower - margin).all()
    assert (found.params <= upper + margin).all()
    on_edge = ((found.params <= lower + margin) | (found.params >= upper - margin)).any(axis=1)
    assert on_edge.any()
    np.testing.assert_array_equal((found.status & Status.ON_BOX_EDGE) != 0, on_edge)
    expected = fit(REFERENCE, model, prior, stars, start, box=box)
    both = ((found.status | expected.status) & Status.NOT_CONVERGED) == 0
    close = np.abs(found.loss - expected.loss) <= 0.01 + loss_tolerance(expected.loss)
    # from a start pushed onto the edge, two paths may end in different optima now and then
    assert close[both].mean() > 0.7


def test_the_edge_without_dust_is_few_steps_away(engine, rng, mock):
    model, prior, truth = mock
    truth[:, 3] = 0.01
    stars = random_stars(rng, model, truth)
    stars.mean[:, 3], stars.sigma[:, 3] = -1.0, 0.01  # whoever says so, it asks for less than no dust
    start = truth.copy()
    start[:, 3] = 0.5
    found = fit(engine, model, prior, stars, start, terms=LossTerms(True, False, False))
    assert ((found.status & Status.NOT_CONVERGED) == 0).all()
    assert ((found.status & Status.ON_BOX_EDGE) != 0).all()
    np.testing.assert_allclose(found.params[:, 3], SMALLEST_EXT, rtol=1e-6)
    assert np.median(found.iterations) < np.log2(0.5 / SMALLEST_EXT)  # as many as it takes by halves


def test_giving_up_is_said(engine, rng, mock):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth, snr=300.0)
    start = truth * np.array([0.8, 1.5, 1.2, 2.0, 1.5])
    found = fit(engine, model, prior, stars, start, options=FitOptions(max_iterations=1))
    given_up = (found.status & Status.NOT_CONVERGED) != 0
    assert given_up.any()
    whole = fit(engine, model, prior, stars, start)
    assert ((whole.status & Status.NOT_CONVERGED) == 0).all()
    # a step in each precision may do for some stars, not for those that are said to have been given up
    assert (found.loss[given_up] > whole.loss[given_up]).any()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17])
def test_a_star_does_not_notice_its_neighbours(engine, rng, mock, count):
    model, prior, truth = mock
    stars = random_stars(rng, model, truth, missing=some_bands_missing(rng, 17))
    related = random_stars(rng, model, truth, correlation=correlation_in_blocks())
    in_blocks = rng.random(17) < 0.5
    for field in dataclasses.fields(StarData):
        getattr(stars, field.name)[in_blocks] = getattr(related, field.name)[in_blocks]
    grid = start_grid(model, prior)
    everything = fit(engine, model, prior, stars, grid)
    some = fit(engine, model, prior, stars[:count], grid, threads=2)
    order = rng.permutation(17)
    shuffled = fit(engine, model, prior, stars[order], grid, threads=3)
    if engine.name == "reference":
        for found, rows in ((some, slice(count)), (shuffled, order)):
            np.testing.assert_allclose(found.loss, everything.loss[rows], rtol=1e-6, atol=1e-4)
        return
    for field in vars(everything):
        assert_same(engine.name, getattr(some, field), getattr(everything, field)[:count])
        assert_same(engine.name, getattr(shuffled, field), getattr(everything, field)[order])


def test_the_best_optimum_is_found(engine, optimum, optimum_model, optimum_observations):
    """All but at most one of the shared mock stars, within 0.01 of the best of many float64 searches."""
    model, prior = optimum_model
    found = fit(engine, model, prior, optimum_observations.star_data(), start_grid(model, prior), threads=2)
    best = np.abs(found.loss - optimum["best_loss"]) <= 0.01
    assert (~best).sum() <= 1
    assert not (found.status & (Status.NOT_CONVERGED | Status.HESSIAN_NOT_POSITIVE | Status.ON_BOX_EDGE)).any()
    assert (found.decrement >= 0).all()
    assert found.decrement.max() <= 1e-3
    expected = np.column_stack([optimum["best_params"][:, :3], np.exp(optimum["best_params"][:, 3:])])
    offset = (found.params - expected)[best]
    # a predicted drop of 1e-5 (1e-7 of the loss) leaves less than 2 % of a standard deviation
    distance = np.sqrt(np.einsum("na,nab,nb->n", offset, optimum["best_fisher"][best], offset))
    assert distance.max() < 0.05


def test_more_starts_than_a_warp_has_lanes(engine, rng):
    """Each is searched from, as few are: the lowest minimum is the same, or lower."""
    model, prior = load_model()
    stars = random_stars(rng, model, random_params(rng, prior, 4), snr=30.0)
    box, grid = default_box(prior), start_grid(model, prior)
    few, many = (
        engine.fit(model, prior, stars, grid, LossTerms(), box, FitOptions(starts=starts, gate=1e6))
        for starts in (4, 40)
    )
    assert (many.loss <= few.loss + 1e-3).all()
    assert (many.iterations > few.iterations + 36).all()  # one evaluation of each start at least


def test_more_starts_find_lower_minima_and_say_what_they_found(engine, rng):
    """Without a parallax, giants and dwarfs of the real model look alike: more searches may only lower the loss."""
    model, prior = load_model()
    stars = random_stars(rng, model, random_params(rng, prior, 60), snr=5.0, parallax=False)
    box, grid = default_box(prior), start_grid(model, prior)
    one, four = (
        engine.fit(model, prior, stars, grid, LossTerms(), box, FitOptions(starts=starts)) for starts in (1, 4)
    )
    # of two searches that meet, one goes on: it converges to the same minimum, by its own path
    tolerance = FitOptions().tolerance * np.maximum(1.0, 0.01 * one.loss)
    assert (four.loss <= one.loss + 4.0 * tolerance).all()
    assert four.iterations.mean() > one.iterations.mean()
    assert (one.minima == 1).all()
    assert np.isnan(one.second_gap).all()
    several = four.minima > 1
    assert several.any()
    np.testing.assert_array_equal(several, np.isfinite(four.second_gap))
    assert (four.second_gap[several] >= 0).all()
    again = engine.evaluate(model, prior, stars[several], four.second_params[several], LossTerms())
    np.testing.assert_allclose(again.loss, (four.loss + four.second_gap)[several], rtol=1e-6, atol=1e-3)
    apart = np.abs(four.second_params - four.params)[several]
    assert (apart.max(axis=1) > 0.01).all()


def test_only_gaussian_constraints(engine, rng):
    """Without flux there is nothing to fit, whatever the constraints say."""
    model, prior = random_model(rng), random_prior(rng)
    params = random_params(rng, prior, 2)
    stars = random_stars(rng, model, params, missing=np.ones((2, 66), bool))
    constrained = StarData(stars.flux, stars.whitener, params, np.full_like(params, 0.1))
    assert np.isnan(fit(engine, model, prior, constrained, params).loss).all()
