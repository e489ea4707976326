"""The recipe of ZGR23: it ends where the authors' code ends, and every one of its options does what it says."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import h5py
import numpy as np
import pytest
from mock_stars import (
    assert_same,
    infrared_missing,
    random_model,
    random_params,
    random_prior,
    random_stars,
    some_bands_missing,
)

import xpkern as xk
from xpkern.cli import main
from xpkern.engine.contract import LossTerms
from xpkern.engine.reference import ReferenceEngine
from xpkern.fit.covariance import invert_fisher_absolute
from xpkern.fit.fit import default_box
from xpkern.fit.zgr23 import Zgr23Options, candidate_grid, zgr23_solution
from xpkern.grid import WAVELENGTH
from xpkern.observe.simulate import simulate
from xpkern.status import Status

REFERENCE = ReferenceEngine()

#: The recipe in little, for the slow engines.
SHORT = Zgr23Options(types=6, exts=9, adam_steps=40, adam_decay_every=20, sgd_rounds=2, sgd_steps=10, sgd_decay_every=4)

needs_cpu = pytest.mark.skipif(xk.available_engines()["cpu"] is not None, reason="the extension module is not built")


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return simulate(*xk.load_model(), 6, seed=7).write(tmp_path_factory.mktemp("survey"))


@pytest.fixture
def mock(rng):
    model, prior = random_model(rng), random_prior(rng)
    return model, prior, random_params(rng, prior, 17)


def solve(engine, model, prior, stars, options, *, start=None, terms=None, threads=1):
    box = default_box(prior)
    return zgr23_solution(engine, model, prior, stars, start, terms or LossTerms(), box, options, threads=threads)


def observations(stars):
    return xk.Observations.from_arrays(
        flux=stars.flux, packed_factor=stars.whitener, plx=stars.mean[:, 4], plx_err=stars.sigma[:, 4]
    )


@needs_cpu
class TestAgainstTheAuthorsCode:
    """On the shared stars: ``zgr23_*`` is where the authors' TensorFlow code began and ended."""

    def test_from_their_starts_it_ends_where_theirs_does(self, optimum, optimum_model, optimum_observations):
        found = xk.fit(optimum_observations, *optimum_model, optimizer="zgr23", start=linear(optimum["zgr23_start"]))
        np.testing.assert_allclose(found.loss, optimum["zgr23_loss"], rtol=0, atol=0.01)
        assert (found.status & (Status.NOT_CONVERGED | Status.HESSIAN_NOT_POSITIVE | Status.ON_BOX_EDGE) == 0).all()
        offset = found.params - linear(optimum["zgr23_params"])
        assert np.sqrt(np.einsum("na,nab,nb->n", offset, found.fisher, offset)).max() < 0.05
        # theirs has no parallax term
        fisher = found.fisher.copy()
        fisher[:, 4, 4] -= 1.0 / optimum["plx_err"].astype(float) ** 2
        scale = np.sqrt(np.einsum("naa->na", found.fisher))
        difference = np.abs(fisher - optimum["zgr23_fisher"]) / scale[:, :, None] / scale[:, None, :]
        assert difference.max() < 1e-3

    def test_its_own_grid_is_as_good_as_theirs(self, optimum, optimum_model, optimum_observations):
        found = xk.fit(optimum_observations, *optimum_model, optimizer="zgr23")
        best = np.abs(found.loss - optimum["best_loss"]) <= 0.01
        assert best.sum() >= (np.abs(optimum["zgr23_loss"] - optimum["best_loss"]) <= 0.01).sum()
        theirs = np.abs(optimum["zgr23_loss"] - optimum["best_loss"]) <= 0.01
        np.testing.assert_allclose(found.loss[best & theirs], optimum["zgr23_loss"][best & theirs], rtol=0, atol=0.01)
        assert (found.loss >= optimum["best_loss"] - 0.01).all()
        assert (found.iterations == 8192).all()
        assert (found.minima == 1).all()
        assert np.isnan(found.second_gap).all()

    def test_the_published_codes_options(self, optimum, optimum_model, optimum_observations):
        found = xk.fit(optimum_observations, *optimum_model, optimizer=Zgr23Options.published_code())
        assert (np.abs(found.loss - optimum["best_loss"]) <= 0.01).mean() > 0.9
        assert (found.iterations == 12288).all()


def linear(params):
    """Their columns end in ln ext and ln plx."""
    return np.column_stack([params[:, :3], np.exp(params[:, 3:])])


@pytest.mark.parametrize("name", ["complete", "no infrared", "some bands", "no parallax"])
def test_engines_agree(engine, rng, mock, name):
    model, prior, truth = mock
    missing = {"no infrared": infrared_missing(17), "some bands": some_bands_missing(rng, 17)}.get(name)
    stars = random_stars(rng, model, truth, missing=missing, parallax=name != "no parallax")
    found, expected = (solve(chosen, model, prior, stars, SHORT) for chosen in (engine, REFERENCE))
    # two candidates of nearly the same score, or a component of the gradient near 0, may fall to either side
    same = np.abs(found.loss - expected.loss) < 1e-2 * (1.0 + np.abs(expected.loss))
    assert same.mean() > 0.8
    again = REFERENCE.evaluate(model, prior, stars, found.params, LossTerms())
    np.testing.assert_allclose(found.loss, again.loss, rtol=1e-5, atol=1e-3)
    sigma = np.sqrt(np.diagonal(np.linalg.inv(expected.fisher), axis1=1, axis2=2))
    assert (np.abs(found.residual - expected.residual)[same].max(axis=1) < 0.5).mean() > 0.7
    assert (np.abs(found.params - expected.params) < 2.0 * sigma)[same].mean() > 0.9


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17])
def test_a_star_does_not_notice_its_neighbours(engine, rng, mock, count):
    model, prior, truth = mock
    missing = some_bands_missing(rng, 17)
    missing[3] = True
    stars = random_stars(rng, model, truth, missing=missing)
    options = replace(SHORT, adam_steps=8)
    whole, order = solve(engine, model, prior, stars, options), rng.permutation(17)
    some = solve(engine, model, prior, stars[:count], options, threads=2)
    shuffled = solve(engine, model, prior, stars[order], options, threads=3)
    for field in fields(whole):
        value = getattr(whole, field.name)
        if engine.name == "reference" and field.name not in ("params", "loss"):
            continue
        assert_same(engine.name, getattr(some, field.name), value[:count])
        assert_same(engine.name, getattr(shuffled, field.name), value[order])
    if engine.name != "reference":
        np.testing.assert_array_equal(whole.status == Status.NO_DATA, np.arange(17) == 3)
        assert np.isnan(whole.params[3]).all()
        assert whole.minima[3] == whole.iterations[3] == 0


class TestHessian:
    """The test of section 4.2, in the linear parameters, against differences of gradients."""

    def slow_test(self, model, prior, stars, params, terms, *, jacobian):
        """Smallest eigenvalue over the largest, of the Hessian scaled by the parameters, (n,)."""
        terms = terms if jacobian else replace(terms, jacobian_ext=False, jacobian_plx=False)
        step = 1e-5 * np.abs(params) + 1e-7

        def gradient(at):
            slope = np.column_stack([np.ones((len(at), 3)), at[:, 3:]])
            return REFERENCE.evaluate(model, prior, stars, at, terms).gradient / slope

        columns = []
        for a in range(params.shape[1]):
            shift = np.eye(params.shape[1])[a] * step
            columns.append((gradient(params + shift) - gradient(params - shift)) / (2.0 * step[:, a, None]))
        hessian = np.stack(columns, axis=2) * params[:, :, None] * params[:, None, :]
        values = np.linalg.eigvalsh(0.5 * (hessian + hessian.swapaxes(1, 2)))
        return values[:, 0] / np.abs(values).max(axis=1)

    @pytest.mark.parametrize("jacobian", [True, False])
    def test_it_is_that_of_the_linear_parameters(self, engine, rng, jacobian):
        model, prior = random_model(rng), random_prior(rng)
        truth = random_params(rng, prior, 120)
        # faint, with ext far below its error: there the Jacobian terms decide
        stars = random_stars(rng, model, truth, snr=3.0)
        params = truth * rng.uniform(0.7, 1.3, truth.shape)
        params[::3, 3] *= 0.1
        box = default_box(prior)
        params = np.clip(params, box.lower, box.upper)
        options = Zgr23Options(adam_steps=0, sgd_rounds=0, jacobian_in_hessian=jacobian)
        found = solve(engine, model, prior, stars, options, start=params)
        np.testing.assert_allclose(found.params, params, rtol=1e-12)
        smallest = self.slow_test(model, prior, stars, params, LossTerms(), jacobian=jacobian)
        clear = np.abs(smallest) > 1e-4
        failed = (found.status & Status.HESSIAN_NOT_POSITIVE) != 0
        np.testing.assert_array_equal(failed[clear], smallest[clear] < 0)
        assert clear.mean() > 0.5
        assert failed[clear].any()
        assert not failed[clear].all()

    def test_only_stars_that_fail_take_part_in_further_rounds(self, engine, rng):
        model, prior = random_model(rng), random_prior(rng)
        truth = random_params(rng, prior, 60)
        stars = random_stars(rng, model, truth, snr=5.0)
        start = truth * rng.uniform(0.7, 1.3, truth.shape)
        options = Zgr23Options(adam_steps=3, sgd_rounds=0, sgd_steps=7, sgd_rate=1e-4)
        before = solve(engine, model, prior, stars, options, start=start)
        failed = (before.status & Status.HESSIAN_NOT_POSITIVE) != 0
        assert failed.any()
        assert not failed.all()
        assert (before.iterations == 3).all()
        after = solve(engine, model, prior, stars, replace(options, sgd_rounds=4), start=start)
        assert_same(engine.name, after.params[~failed], before.params[~failed])
        assert (after.iterations[~failed] == 3).all()
        rounds, rest = np.divmod(after.iterations[failed] - 3, 7)
        assert (rest == 0).all()
        assert ((rounds >= 1) & (rounds <= 4)).all()
        still = (after.status & Status.HESSIAN_NOT_POSITIVE) != 0
        assert not still[~failed].any()
        assert (rounds[still[failed]] == 4).all()
        assert (np.abs(after.params - before.params)[failed].max(axis=1) > 0).all()
        # a share of failures that is small enough ends the rounds
        stopped = solve(engine, model, prior, stars, replace(options, sgd_rounds=4, sgd_stop=1.0), start=start)
        assert_same(engine.name, stopped.params, before.params)

    def test_rounds_have_falling_rates(self):
        options = Zgr23Options()
        assert [options.sgd(number).rate for number in range(4)] == [1e-5, 5e-6, 2.5e-6, 1.25e-6]
        assert options.sgd(3).decay_every == 4096
        assert options.sgd(3).steps == 12288
        assert options.sgd(3).method == "sgd"
        assert asdict(options.adam) == {
            "method": "adam", "steps": 8192, "rate": 0.01, "decay": 0.5, "decay_every": 768, "clip": 100.0,
        }  # fmt: skip


class TestOptions:
    def test_those_of_the_paper_and_of_the_code(self):
        paper, code = Zgr23Options(), Zgr23Options.published_code()
        assert (paper.types, paper.exts, paper.score, paper.guess) == (512, 61, "prior", "ratio_of_sums")
        assert (code.types, code.exts, code.score, code.guess) == (128, 31, "parallax", "mean_of_ratios")
        assert (code.sgd_round_factor, code.sgd_stop, code.jacobian_in_hessian) == (0.25, 1e-3, False)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"score": "best"}, "field score: 'best' is none of prior, parallax"),
            ({"guess": "median"}, "field guess: 'median' is none of ratio_of_sums, mean_of_ratios"),
            ({"types": 0}, "field types: 0 is not a number >= 1"),
            ({"adam_rate": -0.1}, "field adam_rate: -0.1 is not a number >= 0"),
            ({"sgd_stop": float("nan")}, "field sgd_stop: nan is not"),
        ],
    )
    def test_that_make_no_sense(self, wrong, message):
        with pytest.raises(xk.InputError, match=message):
            Zgr23Options(**wrong)

    def test_grid_of_the_paper(self, rng, mock):
        model, prior, _ = mock
        grid = candidate_grid(model, prior, default_box(prior), Zgr23Options())
        assert len(grid) == 512 * 61
        np.testing.assert_allclose(np.diff(np.log10(grid.ext)), 0.05)
        np.testing.assert_allclose(grid.ext[[0, -1]], [0.01, 10.0])
        np.testing.assert_array_equal(WAVELENGTH[grid.window], np.arange(592.0, 783.0, 10.0))
        np.testing.assert_allclose(grid.penalty, -2.0 * prior.ln_density(grid.types))
        teff, feh, logg = grid.types[7]
        expected = model.predict(teff=teff, feh=feh, logg=logg, ext=0.0, plx=1.0)
        np.testing.assert_allclose(grid.base_flux[7], expected.ravel())
        # 512 draws: their mean is the prior's to a twentieth of its spread
        offset = grid.types.mean(axis=0) - prior.weights @ prior.means
        assert (np.abs(offset) < 0.25 * grid.types.std(axis=0)).all()
        again = candidate_grid(model, prior, default_box(prior), Zgr23Options())
        np.testing.assert_array_equal(again.types, grid.types)

    def test_grid_of_the_code(self, mock):
        model, prior, _ = mock
        grid = candidate_grid(model, prior, default_box(prior), Zgr23Options.published_code())
        assert (len(grid.types), len(grid.ext)) == (128, 31)
        assert (grid.penalty == 0).all()
        np.testing.assert_array_equal(np.flatnonzero(grid.window), np.arange(22, 44))

    def test_regular_grid(self, engine, rng):
        model, prior = xk.load_model()
        options = replace(SHORT, grid="regular", adam_steps=2, sgd_rounds=0)
        grid = candidate_grid(model, prior, default_box(prior), options)
        expected = [
            (3.0 + 0.3 * i, -2.0 + 0.3 * j, -1.0 + 0.3 * k) for i in range(21) for j in range(10) for k in range(21)
        ]
        likely = prior.ln_density(expected) >= prior.ln_prior_threshold
        np.testing.assert_allclose(grid.types, np.array(expected)[likely], atol=1e-12)
        stars = random_stars(rng, model, random_params(rng, prior, 2))
        assert np.isfinite(solve(engine, model, prior, stars, options).loss).all()

    def test_regular_grid_where_there_is_none(self, rng):
        few = random_prior(rng, inputs=2)
        with pytest.raises(xk.InputError, match="field grid: regular is for 3 inputs, not 2"):
            candidate_grid(random_model(rng, inputs=2), few, default_box(few), Zgr23Options(grid="regular"))
        far = xk.TypePrior.from_arrays([1.0], [[50.0, 0.0, 3.0]], [np.eye(3)])
        with pytest.raises(xk.InputError, match="field grid: no point"):
            candidate_grid(random_model(rng), far, default_box(far), Zgr23Options(grid="regular"))

    def test_terms_of_the_loss_are_those_of_the_fit(self, engine, rng, mock):
        model, prior, truth = mock
        stars = random_stars(rng, model, truth)
        terms = LossTerms(prior=False, jacobian_plx=False)
        found = solve(engine, model, prior, stars, replace(SHORT, adam_steps=5), start=truth, terms=terms)
        expected = REFERENCE.evaluate(model, prior, stars, found.params, terms)
        np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5, atol=1e-3)


class TestFit:
    def test_a_user_chooses_it(self, engine, rng, mock):
        model, prior, truth = mock
        stars = random_stars(rng, model, truth)
        found = xk.fit(observations(stars), model, prior, engine=engine, optimizer=SHORT)
        assert found.options == SHORT
        assert found.fitted.all()
        expected = solve(engine, model, prior, stars, SHORT)
        assert_same(engine.name, found.params, expected.params)
        np.testing.assert_allclose(found.cov @ found.icov, np.broadcast_to(np.eye(5), (17, 5, 5)), atol=1e-5)
        assert len(found.to_table("zgr23")) == len(found.diagnostics) == 17

    @needs_cpu
    def test_names_of_optimizers(self, rng, mock):
        model, prior, truth = mock
        obs = observations(random_stars(rng, model, truth[:2]))
        by_name = xk.fit(obs, model, prior, optimizer="zgr23")
        assert by_name.options == Zgr23Options()
        np.testing.assert_array_equal(by_name.params, xk.fit(obs, model, prior, optimizer=Zgr23Options()).params)
        newton = xk.fit(obs, model, prior, optimizer="newton")
        assert isinstance(newton.options, xk.FitOptions)
        np.testing.assert_array_equal(newton.params, xk.fit(obs, model, prior).params)

    def test_what_does_not_fit_together(self, rng, mock):
        model, prior, truth = mock
        obs = observations(random_stars(rng, model, truth[:2]))
        with pytest.raises(xk.InputError, match="field optimizer: 'sgd' is neither newton, zgr23 nor"):
            xk.fit(obs, model, prior, optimizer="sgd")
        with pytest.raises(xk.InputError, match="field options: starts, tolerance and the like are newton's"):
            xk.fit(obs, model, prior, optimizer="zgr23", options=xk.FitOptions())
        with pytest.raises(xk.InputError, match="field start: a StartGrid is for newton"):
            xk.fit(obs, model, prior, optimizer="zgr23", start=xk.fit.__globals__["start_grid"](model, prior))

    def test_stars_without_a_fit(self, engine, rng, mock):
        model, prior, truth = mock
        stars = random_stars(rng, model, truth)
        stars.flux[1] = np.nan
        found = xk.fit(observations(stars), model, prior, engine=engine, optimizer=SHORT)
        np.testing.assert_array_equal(found.fitted, np.arange(17) != 1)
        assert np.isnan(found.params[1]).all()
        assert np.isnan(found.cov[1]).all()
        nothing = xk.fit(observations(stars[:0]), model, prior, engine=engine, optimizer=SHORT)
        assert len(nothing) == 0

    def test_status_of_what_has_not_converged(self, engine, rng, mock):
        model, prior, truth = mock
        stars = random_stars(rng, model, truth, snr=300.0)
        found = xk.fit(observations(stars), model, prior, engine=engine, optimizer=SHORT)
        far = found.decrement > 1e-5 * np.maximum(1.0, 0.01 * found.loss)
        np.testing.assert_array_equal((found.status & Status.NOT_CONVERGED) != 0, far)
        assert far.any()

    def test_edge_of_the_box(self, engine, rng, mock):
        model, prior, truth = mock
        obs = observations(random_stars(rng, model, truth))
        box = default_box(prior)
        upper = box.upper.copy()
        upper[3] = 0.05
        narrow = xk.Box(box.lower, upper)
        options = replace(SHORT, sgd_rounds=0)
        found = xk.fit(obs, model, prior, engine=engine, optimizer=options, box=narrow)
        assert (found.params[:, 3] <= 0.05 * (1 + 1e-12)).all()
        on_edge = found.params[:, 3] >= 0.05 * (1 - 1e-12)
        assert on_edge.any()
        assert ((found.status & Status.ON_BOX_EDGE) != 0)[on_edge].all()
        # an optimum on the edge has converged although the loss falls beyond it
        newton = xk.fit(obs, model, prior, engine="reference", box=narrow, options=xk.FitOptions(tolerance=1e-9))
        there = xk.fit(
            obs, model, prior, engine=engine, box=narrow, start=newton.params, optimizer=replace(options, adam_steps=0)
        )
        ended = (newton.status & (Status.NOT_CONVERGED | Status.HESSIAN_NOT_POSITIVE)) == 0
        on_edge = ended & ((newton.status & Status.ON_BOX_EDGE) != 0)
        assert on_edge.any()
        assert ((there.status & Status.ON_BOX_EDGE) != 0)[on_edge].all()
        assert ((there.status & Status.NOT_CONVERGED) == 0)[on_edge].all()


class TestFisher:
    def test_eigenvalues_are_floored_as_they_are(self, rng):
        rotation = np.linalg.qr(rng.normal(size=(3, 5, 5)))[0]
        values = np.array([[1e-9, 1.0, 2.0, 3.0, 4.0], [-1.0, 1e-3, 1.0, 1.0, 1e6], [1e-3, 0.1, 1.0, 1e2, 1e4]])
        fisher = (rotation * values[:, None, :]) @ rotation.swapaxes(1, 2)
        fisher = np.concatenate([0.5 * (fisher + fisher.swapaxes(1, 2)), np.full((1, 5, 5), np.nan)])
        covariance, inverse, floored = invert_fisher_absolute(fisher, 1e-6)
        np.testing.assert_array_equal(floored, [True, True, False, False])
        np.testing.assert_array_equal(inverse[2], fisher[2])
        assert np.isnan(covariance[3]).all()
        np.testing.assert_allclose(np.linalg.eigvalsh(covariance[:2])[:, -1], 1e6, rtol=1e-3)
        np.testing.assert_allclose(covariance[2] @ fisher[2], np.eye(5), atol=1e-7)
        assert (np.linalg.eigvalsh(covariance[:3]) > 0).all()

    def test_no_stars(self):
        assert invert_fisher_absolute(np.zeros((0, 5, 5)), 1e-6)[0].shape == (0, 5, 5)

    def test_the_floor_is_the_options(self, engine, rng, mock):
        model, prior, truth = mock
        stars = random_stars(rng, model, truth)
        options = replace(SHORT, fisher_floor=1e4, adam_steps=2, sgd_rounds=0)
        found = xk.fit(observations(stars), model, prior, engine=engine, optimizer=options)
        floored = (found.status & Status.COVARIANCE_FLOORED) != 0
        np.testing.assert_array_equal(floored, np.linalg.eigvalsh(found.fisher)[:, 0] < 1e4)
        assert floored.any()


class TestCatalog:
    @needs_cpu
    def test_command_line(self, survey, tmp_path, capsys):
        arguments = ["catalog", str(survey.spectra), "--source", str(survey.gaia_source), "--engine", "cpu"]
        zgr23, newton = tmp_path / "zgr23.h5", tmp_path / "newton.h5"
        assert main([*arguments, "-o", str(zgr23), "--optimizer", "zgr23"]) == 0
        assert main([*arguments, "-o", str(newton), "--noise", "eq2"]) == 0
        with h5py.File(zgr23) as one, h5py.File(newton) as other:
            assert one.attrs["optimizer"] == "zgr23"
            assert one.attrs["fit_adam_steps"] == 8192
            assert one.attrs["fit_clip"] == 100.0
            assert other.attrs["optimizer"] == "newton"
            assert "fit_tolerance" not in one.attrs
            sigma = other["teff_error"][()]
            assert (np.abs(one["teff"][()] - other["teff"][()]) < 0.1 * sigma).mean() > 0.6
        assert main([*arguments, "-o", str(zgr23), "--optimizer", "zgr23", "--starts", "2", "--overwrite"]) == 1
        assert "newton's" in capsys.readouterr().err

    def test_a_catalogue_from_python(self, engine, survey, tmp_path):
        bytes_of = []
        for rows in (2, 6):
            path = tmp_path / f"catalog-{rows}.h5"
            summary = xk.make_catalog(
                survey.spectra, path, gaia_source=survey.gaia_source, engine=engine, optimizer=SHORT, rows=rows
            )
            assert summary.fitted == 6
            bytes_of.append(path.read_bytes())
            with h5py.File(path) as file:
                assert file.attrs["fit_types"] == 6
                assert file.attrs["optimizer"] == "zgr23"
        if engine.name != "reference":
            assert bytes_of[0] == bytes_of[1]


@needs_cpu
def test_instruction_sets_end_in_the_same_optima(rng):
    from xpkern.engine.cpu import CpuEngine, instruction_sets

    model, prior = xk.load_model()
    truth = random_params(rng, prior, 24)
    stars = random_stars(rng, model, truth, snr=100.0)
    options = Zgr23Options(types=64, exts=16)
    losses = [solve(CpuEngine(isa), model, prior, stars, options).loss for isa in instruction_sets()]
    for other in losses[1:]:
        # a star on the watershed between two minima may fall to either side
        assert (np.abs(losses[0] - other) < 0.01 * np.maximum(1.0, 0.01 * losses[0])).mean() >= 0.8
