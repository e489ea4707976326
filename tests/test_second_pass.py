"""The two-pass fit under a learned noise."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from mock_stars import random_model, random_params, random_prior, some_bands_missing
from test_learned_noise import learned, stars_with_eq2

import xpkern as xk
from xpkern.cli import main
from xpkern.engine.contract import Box, FitOptions, FrozenNoise, LossTerms, Solution, StarData
from xpkern.engine.reference_loss import ln_prior_derivatives
from xpkern.fit.second_pass import second_pass
from xpkern.status import Status


@pytest.fixture
def made(rng):
    """A model with a learned noise, its prior, and stars whose covariances contain the noise of Eq. 2."""
    model, prior = replace(random_model(rng, hidden=(16, 16)), noise=learned(rng, size=0.02)), random_prior(rng)
    params = random_params(rng, prior, 40)
    stars = stars_with_eq2(rng, model, params, some_bands_missing(rng, 40), xk.Noise.eq2())
    observations = xk.Observations.from_arrays(
        flux=stars.flux,
        packed_factor=stars.whitener,
        plx=stars.mean[:, -1],
        plx_err=stars.sigma[:, -1],
        noise=model.noise,
    )
    return model, prior, observations


def test_second_fit_is_under_the_covariance_at_the_first_optimum(made, engine):
    model, prior, obs = made
    terms = LossTerms(jacobian_ext=False, jacobian_plx=False)
    prior = replace(
        prior, ln_prior_threshold=float(np.median(prior.ln_density(prior.sample(100, np.random.default_rng(0)))))
    )
    first = xk.fit(obs, model, prior, engine=engine, noise="eq2", terms=terms)
    found = xk.fit(obs, model, prior, engine=engine)
    assert (first.terms, found.terms) == (terms, terms)
    assert (first.noise_kind, found.noise_kind) == ("eq2", "learned")
    assert np.isnan(first.chi2_learned).all()
    single = np.isnan(first.second_gap) & ((found.status & np.uint32(Status.NOT_CONVERGED)) == 0)
    assert single.sum() > 10
    stars = obs.star_data()
    frozen = engine.freeze_noise(model, model.noise, stars, xk.Noise.eq2(), first.params)
    under = replace(stars, whitener=frozen.whitener)
    at = engine.evaluate(model, prior, under, found.params, terms)
    np.testing.assert_allclose(found.loss[single], at.loss[single], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found.chi2_learned[single], at.chi2[single], rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(found.chi2[single], first.chi2[single])
    there = engine.evaluate(model, prior, under, first.params, terms)
    assert (at.loss <= there.loss + 1e-3)[single].all()
    assert np.median((there.loss - at.loss)[single]) > 1e-3  # the noise does move the optimum
    np.testing.assert_allclose(found.fisher[single], at.fisher[single], rtol=1e-3, atol=1e-3 * np.abs(at.fisher).max())
    assert (found.iterations >= first.iterations).all()
    # beyond what the model knows is a star that is there in either pass
    beyond = np.minimum(found.ln_prior, first.ln_prior) < prior.ln_prior_threshold
    assert 0 < beyond[single].sum() < single.sum()
    np.testing.assert_array_equal(((found.status & np.uint32(Status.EXTRAPOLATED)) != 0)[single], beyond[single])


def test_errors_have_the_curvature_of_the_prior(made, engine):
    model, prior, obs = made
    under_eq2 = xk.fit(obs, model, prior, engine=engine, noise="eq2")
    clear = under_eq2.fitted & ((under_eq2.status & np.uint32(Status.COVARIANCE_FLOORED)) == 0)
    np.testing.assert_array_equal(under_eq2.icov[clear], under_eq2.fisher[clear])
    without = xk.fit(obs, model, prior, engine=engine, terms=LossTerms(False, False, False))
    clear = without.fitted & ((without.status & np.uint32(Status.COVARIANCE_FLOORED)) == 0)
    np.testing.assert_array_equal(without.icov[clear], without.fisher[clear])
    found = xk.fit(obs, model, prior, engine=engine)
    added = found.icov - found.fisher
    *_, hessian, _ = ln_prior_derivatives(prior, found.params[:, :3])
    held = found.fitted & (np.linalg.eigvalsh(-hessian)[:, 0] > 0)  # elsewhere only what of it is positive may count
    assert held.sum() > 5
    size = np.abs(found.fisher[held]).max(axis=(1, 2), keepdims=True)
    np.testing.assert_array_less(np.abs(added[held][:, :3, :3] + hessian[held]) / size, 1e-12)
    assert (added[held][:, 3:] == 0).all()
    np.testing.assert_allclose(
        found.cov[held] @ found.icov[held], np.broadcast_to(np.eye(5), (int(held.sum()), 5, 5)), atol=1e-6
    )


def test_stars_do_not_know_of_one_another(made, engine):
    model, prior, obs = made
    whole = xk.fit(obs, model, prior, engine=engine, threads=2)
    parts = [xk.fit(obs[part], model, prior, engine=engine, threads=1) for part in (slice(0, 13), slice(13, 40))]
    for name in ("params", "cov", "loss", "chi2", "chi2_learned", "residual", "minima", "second_gap", "status"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        if engine.name == "reference":
            np.testing.assert_allclose(getattr(whole, name), joined, rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(getattr(whole, name), joined, err_msg=name)


def test_noise_on_top_where_nobody_says_what_a_covariance_contains(made):
    model, prior, obs = made
    without = xk.fit(replace(obs, noise=None), model, prior)
    assert (without.chi2_learned < xk.fit(obs, model, prior).chi2_learned).mean() > 0.8


def test_which_noise_and_terms(made):
    model, prior, obs = made
    plain = replace(model, noise=xk.Noise.eq2())
    found = xk.fit(obs[:3], plain, prior)
    assert (found.noise_kind, found.terms) == ("eq2", LossTerms())
    assert xk.fit(obs[:3], model, prior, noise="eq2").terms == LossTerms()
    assert xk.fit(obs[:3], model, prior, terms=LossTerms()).terms == LossTerms()
    with pytest.raises(xk.InputError, match="noise: the model's residuals have taught it none"):
        xk.fit(obs, plain, prior, noise="learned")
    with pytest.raises(xk.InputError, match="noise: 'student' is none of eq2, learned"):
        xk.fit(obs, model, prior, noise="student")
    with pytest.raises(xk.InputError, match=r"noise: zgr23 knows that of Eq\. 2 alone"):
        xk.fit(obs, model, prior, noise="learned", optimizer="zgr23")
    assert xk.fit(obs[:0], model, prior).noise_kind == "learned"


def test_catalogue(made, tmp_path):
    model, prior, obs = made
    for noise in ("learned", "eq2"):
        fit = xk.fit(obs, model, prior, noise=noise)
        fit.write(tmp_path / f"{noise}.h5")
        with h5py.File(tmp_path / f"{noise}.h5") as file:
            assert file.attrs["noise_kind"] == noise
            np.testing.assert_allclose(file["chi2"][()], fit.chi2, rtol=1e-6)
            np.testing.assert_allclose(file["chi2_learned"][()], fit.chi2_learned, rtol=1e-6)
            poor = (file["quality_flags"][()] & 8) > 0
        np.testing.assert_array_equal(poor, fit.chi2 / 61 > 2)


class Told:
    """An engine that answers what it was told: the minima of stars by where a fit starts."""

    name = "told"

    def __init__(self, ends: dict[float, tuple[float, float, float]]) -> None:
        self.ends = ends  # by teff of the start: teff of the end, loss, ln det; NaN for no covariance

    def freeze_noise(self, model, noise, stars, contained, params, *, threads=None):
        ln_det = np.array([self.ends[teff][2] for teff in params[:, 0]])
        return FrozenNoise(whitener=np.where(np.isnan(ln_det)[:, None], 0, stars.whitener), ln_det=ln_det)

    def fit(self, model, prior, stars, start, terms, box, options, *, threads=None):
        ends = np.array([self.ends[teff] for teff in start[:, 0]]).reshape(-1, 3)
        params = start.copy()
        params[:, 0] = ends[:, 0]
        missing = np.isnan(ends[:, 2])
        params[missing] = np.nan
        status = np.where(missing, np.uint32(Status.NO_DATA), np.uint32(0))
        return solution(params, np.where(missing, np.nan, ends[:, 1]), status=status)

    def evaluate(self, model, prior, stars, params, terms, *, threads=None):
        return solution(params, 100.0 * params[:, 0])


def solution(params, loss, *, minima=None, second=None, gap=None, status=None):
    n = len(params)
    return Solution(
        loss=loss,
        chi2=loss - 1.0,
        ln_prior=np.zeros(n),
        gradient=np.zeros((n, 5)),
        hessian=np.zeros((n, 5, 5)),
        fisher=np.zeros((n, 5, 5)),
        params=params,
        decrement=np.zeros(n),
        residual=np.zeros((n, 66), np.float32),
        iterations=np.full(n, 7, np.int32),
        status=np.zeros(n, np.uint32) if status is None else status.astype(np.uint32),
        minima=np.ones(n, np.int32) if minima is None else minima,
        second_params=np.full((n, 5), np.nan) if second is None else second,
        second_gap=np.full(n, np.nan) if gap is None else gap,
    )


def test_minima_are_compared_with_their_determinants():
    """Five stars: one minimum; two, the first lower; two, the second lower by its determinant; two that become one; no
    covariance at all.
    """
    first_teff, second_teff = [4.0, 4.1, 4.2, 4.3, 4.4], [np.nan, 5.1, 5.2, 5.3, np.nan]
    ends = {
        4.0: (4.01, 10.0, 3.0),
        4.1: (4.11, 10.0, 3.0),
        5.1: (5.11, 9.0, 4.5),
        4.2: (4.21, 10.0, 3.0),
        5.2: (5.21, 10.5, 1.5),
        4.3: (4.31, 10.0, 3.0),
        5.3: (4.31, 10.25, 2.5),
        4.4: (np.nan, np.nan, np.nan),
    }
    params = np.tile([0.0, 0.0, 4.0, 0.1, 1.0], (5, 1))
    second = np.where(np.isnan(second_teff)[:, None], np.nan, params)
    params[:, 0], second[:, 0] = first_teff, second_teff
    first = solution(
        params, np.full(5, 20.0), minima=np.array([1, 2, 3, 2, 1], np.int32), second=second,
        gap=np.where(np.isnan(second_teff), np.nan, 1.0),
    )  # fmt: skip
    stars = StarData(
        np.zeros((5, 66), np.float32), np.ones((5, 2211), np.float32), np.zeros((5, 5)), np.full((5, 5), np.inf)
    )
    model = random_model(np.random.default_rng(0), hidden=(2,))
    box = Box(np.full(5, -9.0), np.full(5, 9.0))
    passed = second_pass(Told(ends), model, None, stars, None, first, LossTerms(), box, FitOptions())
    found = passed.solution
    np.testing.assert_array_equal(found.params[:, 0], [4.01, 4.11, 5.21, 4.31, 4.4])
    np.testing.assert_array_equal(found.loss, [10.0, 10.0, 10.5, 10.25, 20.0])
    np.testing.assert_array_equal(found.minima, [1, 2, 3, 1, 1])
    np.testing.assert_array_equal(found.second_params[:, 0], [np.nan, 5.11, 4.21, np.nan, np.nan])
    np.testing.assert_array_equal(found.second_gap, [np.nan, 0.5, 1.0, np.nan, np.nan])
    # chi2 of Eq. 2 belongs to the first optimum of the minimum that was taken
    np.testing.assert_array_equal(passed.chi2_eq2, [19.0, 19.0, 100.0 * 5.2 - 1.0, 100.0 * 5.3 - 1.0, 19.0])
    np.testing.assert_array_equal(found.iterations, [14, 21, 21, 21, 7])
    np.testing.assert_array_equal(found.status, [0, 0, 0, 0, Status.NOISE_OF_EQ2])


def test_catalogue_of_files(rng, bulk_files, tmp_path):
    """The same bytes in blocks of any size, Eq. 2 alone where it is asked for, on the command line, too."""
    model, prior = xk.load_model()
    model = replace(model, noise=replace(model.noise, model_error=learned(rng).model_error))
    xk.save_model(tmp_path / "model.h5", model, prior)
    options = {"gaia_source": bulk_files.gaia_source, "model": model, "prior": prior}
    contents = []
    for name, rows, threads in (("whole", 1024, 1), ("parts", 7, 2)):
        xk.make_catalog(bulk_files.spectra, tmp_path / f"{name}.h5", rows=rows, threads=threads, **options)
        contents.append((tmp_path / f"{name}.h5").read_bytes())
    assert contents[0] == contents[1]
    xk.make_catalog(bulk_files.spectra, tmp_path / "eq2.h5", noise="eq2", **options)
    command = ["catalog", str(bulk_files.spectra), "--source", str(bulk_files.gaia_source), "--noise", "eq2"]
    assert main([*command, "--model", str(tmp_path / "model.h5"), "-o", str(tmp_path / "command.h5")]) == 0
    assert (tmp_path / "command.h5").read_bytes() == (tmp_path / "eq2.h5").read_bytes()
    with h5py.File(tmp_path / "whole.h5") as whole, h5py.File(tmp_path / "eq2.h5") as plain:
        fitted = np.isfinite(whole["teff"][()])
        assert np.isfinite(whole["chi2_learned"][()][fitted]).all()
        assert np.isnan(plain["chi2_learned"][()]).all()
        assert (whole.attrs["noise_kind"], plain.attrs["noise_kind"]) == ("learned", "eq2")
        assert plain.attrs["noise_digest"] == model.noise.without_model_error().digest
        assert "jacobian" not in whole.attrs["loss_terms"]
        assert "jacobian_ext jacobian_plx" in plain.attrs["loss_terms"]
    model = replace(model, noise=model.noise.without_model_error())
    with pytest.raises(xk.InputError, match="noise: the model's residuals have taught it none"):
        xk.make_catalog(bulk_files.spectra, tmp_path / "none.h5", noise="learned", **options | {"model": model})
