"""The posterior against dense grids and quadrature, against truths drawn from its own priors, and its bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mock_stars import random_model, random_params, random_prior, random_stars
from scipy import stats
from test_learned_noise import learned, stars_with_eq2

import xpkern as xk
from bench.posterior import SIGHTLINE, calibration_box, draw_stars, rank_chi2, ranks
from bench.stars import model_and_prior
from xpkern.catalog.schema import PARAMETER_COLUMNS
from xpkern.engine.contract import Box, LossTerms, StarData
from xpkern.engine.reference_loss import star_loss
from xpkern.errors import InputError
from xpkern.fit.fit import default_box
from xpkern.fit.posterior_result import COLUMNS, PosteriorFlag, weighted_quantile
from xpkern.fit.sightline_prior import SightlinePrior
from xpkern.fit.student_mixture import DEGREES_OF_FREEDOM, StudentMixture
from xpkern.fit.target import StarDensity, Target

#: The loss as a density in the linear parameters.
PLAIN = LossTerms(prior=True, jacobian_ext=False, jacobian_plx=False)


def observations_of(stars: StarData, mean: np.ndarray | None = None, error: np.ndarray | None = None):
    return xk.Observations.from_arrays(
        flux=stars.flux,
        packed_factor=stars.whitener,
        plx=stars.mean[:, -1],
        plx_err=stars.sigma[:, -1],
        constraint_mean=mean,
        constraint_err=error,
    )


@pytest.fixture(params=[0.0, 0.2], ids=["scale known", "scale theoretical"])
def model(request: pytest.FixtureRequest, rng: np.random.Generator) -> xk.FluxModel:
    return replace(random_model(rng), scale_sigma=request.param)


def test_density_is_the_loss_of_the_engine(rng, model):
    """What is sampled is exp(-loss / 2) of Eq. 19, times priors and Jacobians written down here once more."""
    prior = random_prior(rng)
    params = random_params(rng, prior, 1)
    stars = random_stars(rng, model, params)
    sightline = SightlinePrior(ext_scale=0.4, distance_scale=1.3)
    box = default_box(prior)
    density = StarDensity(Target(xk.get_engine("reference"), model, prior, sightline, box), stars)
    shape = density.gaussians(params)
    y = (
        shape.centre
        + 0.5 * rng.standard_normal((200, shape.centre.shape[1])) @ np.linalg.cholesky(shape.covariance[0]).T
    )
    y[:, 0] = np.abs(y[:, 0])
    found, at = density.at(y)
    unit = np.column_stack([at[:, :-1], np.ones(len(at))])
    white = np.linalg.solve(np.linalg.inv(density.whitener), np.exp(model.ln_flux(unit)).T).T
    best = np.log(white @ density.white_flux) - np.log(np.square(white).sum(axis=1))
    shown = np.exp(y[:, 4] + 0.5 * best)
    rows = np.zeros(len(y), int)
    repeated = StarData(stars.flux[rows], stars.whitener[rows], stars.mean[rows], stars.sigma[rows])
    free = replace(repeated, sigma=np.full_like(repeated.sigma, np.inf))
    at_shown = np.column_stack([at[:, :-1], shown])
    expected = -0.5 * star_loss(model, prior, free, at_shown, PLAIN).loss
    expected -= 0.5 * ((at[:, -1] - stars.mean[0, -1]) / stars.sigma[0, -1]) ** 2
    expected += sightline.ln_density(at[:, -2], at[:, -1], box) + np.log(at[:, -1])
    if model.scale_sigma > 0:
        expected += stats.norm.logpdf(np.log(shown), np.log(at[:, -1]), 0.5 * model.scale_sigma)
    else:
        np.testing.assert_allclose(at[:, -1], shown, rtol=1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-6)


def test_laplace_is_the_curvature_of_the_density(rng, model):
    prior = random_prior(rng)
    params = random_params(rng, prior, 1)
    stars = random_stars(rng, model, params, snr=300.0)
    box, engine = default_box(prior), xk.get_engine("reference")
    density = StarDensity(Target(engine, model, prior, SightlinePrior(0.5, 1.0), box), stars)
    at = engine.fit(model, prior, stars, params, LossTerms(), box, xk.FitOptions()).params
    shape = density.gaussians(at)
    size, centre = shape.centre.shape[1], shape.centre[0]
    steps = 0.02 * np.linalg.cholesky(shape.covariance[0]).T  # along which the curvature is one
    pairs = (
        steps[:, None, None] * np.array([1, 1, -1, -1])[:, None] + steps[:, None] * np.array([1, -1, 1, -1])[:, None]
    )
    height = density.at((centre + pairs).reshape(-1, size))[0].reshape(size, size, 4)
    curvature = -(height @ [1.0, -1.0, -1.0, 1.0]) / (4 * 0.02**2)
    # the Gaussian was made at the mode in ln E; here its curvature is looked at a fraction of an error away
    np.testing.assert_allclose(curvature, np.eye(size), atol=0.25)


@pytest.mark.parametrize("dusty", [True, False])
def test_extinction_and_parallax_against_a_dense_grid(rng, model, dusty):
    """Labels pin the type: what is left has two parameters (three with the scale), which a grid can hold."""
    prior = random_prior(rng)
    truth = random_params(rng, prior, 1)
    truth[:, -2] = 0.3 if dusty else 0.003  # the latter is a fraction of its error: cut off at 0
    shown = truth.copy()
    shown[:, -1] *= np.exp(0.5 * model.scale_sigma * rng.standard_normal())
    stars = random_stars(rng, model, shown, snr=20.0)
    stars.mean[:, -1], stars.sigma[:, -1] = truth[:, -1] * (1 + 0.1 * rng.standard_normal()), 0.1 * truth[:, -1]
    error = np.array([[1e-4, 1e-4, 1e-4, np.nan, np.nan]])
    mean = np.where(np.isfinite(error), truth, np.nan)
    sightline = SightlinePrior(ext_scale=0.2, distance_scale=0.7)
    found = xk.posterior(observations_of(stars, mean, error), model, prior, samples=2500, sightline=sightline)
    assert found.ess[0] > 400

    box = found.box
    ext = np.linspace(1e-9, found.samples[0, :, 3].max() + 0.1, 300)
    plx = found.samples[0, :, 4].mean() * np.exp(np.linspace(-0.6, 0.6, 300))
    # the flux depends on ext and on the parallax by its own scale; both dimensions are summed over one after the other
    params = np.column_stack([np.repeat(truth[:, :3], len(ext), axis=0), ext, np.ones(len(ext))])
    whitener = xk.Observations.from_arrays(flux=stars.flux, packed_factor=stars.whitener).whitener_dense(0)
    white, observed = np.exp(model.ln_flux(params)) @ whitener.T, whitener @ stars.flux[0].astype(float)
    residual = plx[:, None] ** 2 * white[:, None, :] - observed
    of_flux = -0.5 * np.square(residual).sum(axis=2) + prior.ln_density(truth[:, :3])
    highest = of_flux.max()
    density = np.exp(of_flux - highest)
    if model.scale_sigma > 0:  # p(plx_s | plx), and the integral over ln plx_s
        width = 0.5 * model.scale_sigma
        kernel = stats.norm.pdf(np.log(plx)[:, None], np.log(plx), width) * np.gradient(np.log(plx))[:, None]
        density = density @ kernel
    density *= np.exp(-0.5 * ((plx - stars.mean[0, -1]) / stars.sigma[0, -1]) ** 2)
    flat_ext, flat_plx = np.repeat(ext, len(plx)), np.tile(plx, len(ext))
    density *= np.exp(sightline.ln_density(flat_ext, flat_plx, box)).reshape(density.shape)
    in_ext = np.trapezoid(density, plx, axis=1)
    evidence = np.log(np.trapezoid(in_ext, ext)) + highest + 1.5 * np.log(2 * np.pi) + 3 * np.log(1e-4)
    in_plx = np.trapezoid(density, ext, axis=0)
    for values, marginal, k in ((ext, in_ext, 3), (plx, in_plx, 4)):
        cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (marginal[1:] + marginal[:-1]) * np.diff(values))])
        expected = np.interp([0.16, 0.5, 0.84], cumulative / cumulative[-1], values)
        spread = expected[2] - expected[0]
        # five standard errors of a quantile of so many effective samples
        np.testing.assert_allclose(
            found.quantile([0.16, 0.5, 0.84])[0, :, k], expected, atol=5 * 0.8 * spread / np.sqrt(found.ess[0])
        )
    assert found.ln_evidence[0] == pytest.approx(evidence, abs=6 / np.sqrt(found.ess[0]) + 0.02)


def test_truths_drawn_from_the_priors_have_uniform_ranks():
    """Simulation-based calibration, short; `python -m bench posterior` has the long one."""
    model, prior = model_and_prior()  # covariances of the stars are known, there is no noise to be allowed for
    drawn = draw_stars(model, prior, SIGHTLINE, calibration_box(prior), 24, seed=77)
    found = xk.posterior(
        drawn.observations, model, prior, samples=500, sightline=SIGHTLINE, box=calibration_box(prior), seed=3
    )
    assert (found.ess > 20).mean() > 0.9
    _, chance = rank_chi2(ranks(found, drawn.truth), bins=4)
    assert (chance > 1e-4).all()
    # which a bias of a standard deviation does not pass
    _, chance = rank_chi2(ranks(found, drawn.truth + 2.0 * found.width), bins=4)
    assert (chance < 1e-4).all()


def test_mixture_is_normalised_however_it_is_cut_off(rng):
    """The mean of p / q over draws from q is 1, whatever density p inside the cut.

    Here p falls off faster than q, and nowhere is many times as dense: then a mean is as near as its own scatter says.
    A normal density would not do far out, where a handful of the draws would have all the weight.
    """
    size, nu = 4, DEGREES_OF_FREEDOM
    for offset in (-4.0, -1.0, 0.5, 6.0):  # of the edge, in standard deviations
        root = np.tril(rng.normal(0, 0.3, (size, size)), -1) + np.diag(rng.uniform(0.5, 2.0, size))
        centre = rng.normal(0, 1, size)
        lower = centre[0] + offset * root[0, 0]
        mixture = StudentMixture(np.ones(1), centre[None], root[None], lower, np.inf)
        mixture = mixture.joined(replace(mixture, root=2.0 * mixture.root), 0.3)
        drawn = mixture.sample(4000, rng)
        assert (drawn[:, 0] >= lower).all()
        standard = np.linalg.solve(root, (drawn - centre).T).T
        first = np.maximum(standard[:, 0], offset)
        of_first = stats.truncnorm(offset, np.inf) if offset <= 0 else stats.expon(offset)
        spread = np.sqrt((nu + first**2) / (nu + 1.0))
        ln_p = of_first.logpdf(first) + stats.norm.logpdf(standard[:, 1:], scale=spread[:, None]).sum(axis=1)
        weight = np.exp(ln_p - np.log(np.diagonal(root)).sum() - mixture.ln_density(drawn))
        assert weight.max() < 3
        assert weight.mean() == pytest.approx(1.0, abs=5 * weight.std() / np.sqrt(len(weight)))


@pytest.mark.parametrize("sightline", [SightlinePrior(), SightlinePrior(0.3, 1.1), SightlinePrior(2.0, None)])
def test_sightline_priors_are_normalised_and_sampled(rng, sightline):
    box = Box(np.array([0.0, 0.01]), np.array([4.0, 20.0]))
    ext, plx = np.linspace(0, 4, 2001), np.geomspace(0.01, 20, 4001)
    of_ext = np.exp(sightline.ln_density(ext, np.full_like(ext, 1.0), box))
    of_plx = np.exp(sightline.ln_density(np.full_like(plx, 1.0), plx, box))
    at_one = np.exp(sightline.ln_density(np.ones(1), np.ones(1), box))[0]
    assert np.trapezoid(of_ext, ext) * np.trapezoid(of_plx, plx) == pytest.approx(at_one, rel=1e-4)
    drawn = sightline.sample(3000, box, rng)
    for values, marginal, found in ((ext, of_ext, drawn[:, 0]), (plx, of_plx, drawn[:, 1])):
        cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (marginal[1:] + marginal[:-1]) * np.diff(values))])
        share = np.interp(found, values, cumulative / cumulative[-1])
        assert stats.kstest(share, "uniform").pvalue > 1e-5
    _, slope, bend = sightline.slopes(np.array([0.7]))
    step = 1e-4
    value = [sightline.ln_density(np.ones(1), np.array([0.7 * np.exp(s)]), box)[0] for s in (-step, 0, step)]
    assert slope[0] == pytest.approx((value[2] - value[0]) / (2 * step), abs=1e-5)
    assert bend[0] == pytest.approx((value[2] - 2 * value[1] + value[0]) / step**2, abs=1e-4)


@pytest.fixture(scope="module", params=["learned", "eq2"])
def few(request: pytest.FixtureRequest) -> xk.Posterior:
    """Posteriors of simulated stars without parallaxes, whose giants look like dwarfs, under both kinds of noise."""
    model, prior = xk.load_model() if request.param == "learned" else model_and_prior()
    assert model.noise.kind == request.param
    drawn = draw_stars(model, prior, SIGHTLINE, calibration_box(prior), 6, seed=5)
    obs = drawn.observations
    obs = replace(obs, plx=np.zeros(6), plx_err=np.full(6, np.inf))
    return xk.posterior(obs, model, prior, samples=500, seed=11, threads=1)


def test_samples_do_not_depend_on_threads_or_company(few):
    obs, model, prior = few.fit.observations, few.fit.model, few.fit.prior
    other = xk.posterior(obs, model, prior, samples=500, seed=11, threads=2, stars=[4, 1])
    np.testing.assert_array_equal(other.source_id, few.source_id[[4, 1]])
    np.testing.assert_allclose(other.samples, few.samples[[4, 1]], rtol=1e-9)
    assert not np.array_equal(
        xk.posterior(obs, model, prior, samples=500, seed=12, stars=[1]).samples[0], few.samples[1]
    )


def test_result_holds_together(few):
    np.testing.assert_allclose(few.weights.sum(axis=1), 1.0)
    np.testing.assert_allclose(np.nansum(few.mode_weight, axis=1), 1.0)
    assert (few.n_modes >= 1).all()
    np.testing.assert_allclose(few.mode_loss[:, 0], np.nanmin(few.mode_loss, axis=1))
    assert (few.mode_loss[:, 0] <= few.fit.loss + 1e-3).all()
    # the fit's optimum is one of the modes: both are of one loss
    own = np.arange(6), few.own_mode
    np.testing.assert_allclose(few.mode_loss[own], few.fit.loss, atol=1e-3)
    np.testing.assert_allclose(few.mode_params[own][:, :4], few.fit.params[:, :4], atol=1e-3)
    low, middle, high = few.interval.transpose(1, 0, 2)
    assert (low <= middle).all()
    assert (middle <= high).all()
    table = few.to_table()
    assert str(table["teff_p50"].unit) == "K"
    np.testing.assert_allclose(table["teff_p50"], 1000 * middle[:, 0])
    assert set(few.modes_table()["source_id"]) == set(few.source_id)
    drawn = few.draws(300)
    assert drawn.shape == (6, 300, 5)
    for star in range(6):
        assert set(map(tuple, drawn[star])) <= set(map(tuple, few.samples[star]))
    with pytest.raises(InputError, match="field count"):
        few.draws(0)
    with pytest.raises(InputError, match="field levels"):
        few.quantile(1.5)


def test_columns_are_called_as_in_the_catalogue():
    assert [(name, unit) for name, unit, _ in COLUMNS] == [(each.name, each.unit) for each in PARAMETER_COLUMNS]


def test_quantiles_of_weighted_values_are_those_of_repeated_ones(rng):
    values, times = rng.standard_normal(400), rng.integers(1, 5, 400)
    levels = np.array([0.1, 0.5, 0.84])
    found = weighted_quantile(values, times / times.sum(), levels)
    repeated, half = np.repeat(values, times), 0.5 * times.max() / times.sum()
    assert (found >= np.quantile(repeated, levels - half, method="lower")).all()
    assert (found <= np.quantile(repeated, levels + half, method="higher")).all()
    alike = weighted_quantile(values, np.full(400, 3.0), levels)
    np.testing.assert_allclose(alike, np.quantile(values, levels, method="hazen"), rtol=1e-12)


def test_learned_noise_is_frozen_where_the_fit_froze_it(rng):
    model, prior = replace(random_model(rng), noise=learned(rng, size=0.02)), random_prior(rng)
    params = random_params(rng, prior, 2)
    stars = stars_with_eq2(rng, model, params, np.zeros((2, 66), bool), model.noise)
    obs = replace(observations_of(stars), noise=model.noise)
    found = xk.posterior(obs, model, prior, samples=200)
    assert found.fit.noise_kind == "learned"
    np.testing.assert_allclose(found.mode_params[:, 0], found.fit.params, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(found.mode_loss[:, 0], found.fit.loss, atol=0.01)
    plain = xk.posterior(obs, model, prior, samples=200, noise="eq2")
    np.testing.assert_allclose(plain.mode_loss[:, 0], plain.fit.loss, atol=0.01)
    assert (np.abs(plain.mode_loss[:, 0] - found.mode_loss[:, 0]) > 0.1).all()


def test_what_is_at_the_edge_of_the_box_is_flagged(few):
    obs, prior = few.fit.observations, few.fit.prior
    box = default_box(prior)
    clear = few.interval[:, 1, 3] / few.width[:, 3]
    star = int(np.argmax(clear))  # whose dust is seen best: the box ends below what its spectrum asks for
    assert clear[star] > 5  # between no dust and that edge there is room
    assert not few.flags[star] & PosteriorFlag.ON_BOX_EDGE
    tight = Box(box.lower, np.where(np.arange(5) == 3, few.interval[star, 0, 3], box.upper))
    found = xk.posterior(obs, few.fit.model, prior, samples=500, stars=[star], box=tight)
    assert found.flags[0] & PosteriorFlag.ON_BOX_EDGE
    assert found.samples[..., 3].max() <= tight.upper[3]


def test_a_star_without_data_has_no_samples(few):
    obs = few.fit.observations.take(slice(0, 2))
    nothing = np.arange(2) == 1
    obs = replace(
        obs,
        whitener=np.where(nothing[:, None], np.float32(0), obs.whitener),
        status=obs.status | np.where(nothing, np.uint32(xk.Status.NO_DATA), np.uint32(0)),
    )
    found = xk.posterior(obs, few.fit.model, few.fit.prior, samples=50)
    assert found.flags[1] == PosteriorFlag.NOT_FITTED
    assert found.ess[1] == 0
    assert np.isnan(found.samples[1]).all()
    assert np.isnan(found.interval[1]).all()
    assert np.isfinite(found.samples[0]).all()
    assert len(xk.posterior(obs, few.fit.model, few.fit.prior, samples=50, stars=[])) == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"samples": 0}, "samples"),
        ({"samples": -3}, "samples"),
        ({"stars": [9]}, "stars"),
        ({"stars": [0.5]}, "stars"),
        ({"stars": [True]}, "stars"),
        ({"noise": "white"}, "noise"),
    ],
)
def test_bad_input(few, options, field):
    with pytest.raises(InputError, match=f"field {field}"):
        xk.posterior(few.fit.observations, few.fit.model, few.fit.prior, **options)


def test_a_model_that_has_learned_no_noise_has_none_to_offer(few):
    model, prior = model_and_prior()
    with pytest.raises(InputError, match="field noise: the model's residuals have taught it none"):
        xk.posterior(few.fit.observations, model, prior, noise="learned")


@pytest.mark.parametrize("scales", [{"ext_scale": 0.0}, {"distance_scale": -1.0}, {"distance_scale": np.inf}])
def test_bad_sightlines(scales):
    with pytest.raises(InputError, match=f"field {next(iter(scales))}"):
        SightlinePrior(**scales)
