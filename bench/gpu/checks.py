"""Whether the GPU computes what the float64 reference engine computes: before anything is timed."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

import xpkern as xk
from bench.stars import infrared, model_and_prior, observed, survey
from xpkern.engine import Engine
from xpkern.engine.contract import Calibrated, Descent, FitOptions, FrozenNoise, LossTerms, Solution, StarData
from xpkern.engine.packed import unpack_factor
from xpkern.engine.training import EpochResult, ModelArrays, Steps
from xpkern.fit.candidates import CandidateGrid
from xpkern.fit.fit import default_box
from xpkern.fit.start import start_grid
from xpkern.fit.zgr23 import Zgr23Options, candidate_grid
from xpkern.observe.calibration import Calibration

#: Stars that the reference engine, which is slow, is asked about.
FEW_STARS = 192

#: Losses that count as equal; distance, in sigma, within which two ends are in one minimum.
_SAME_LOSS, _SAME_MINIMUM = 0.01, 0.3


@dataclass(frozen=True)
class Check:
    """One comparison: what, by how much the engines differ, and how much they may."""

    name: str
    found: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether they agree; NaN is no agreement."""
        return bool(self.found <= self.allowed)

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "WRONG"
        return f"{verdict:5s} {self.name:66s} {self.found:10.3g} (allowed {self.allowed:.3g})"


class Sample:
    """Some simulated stars, and everything that engines are asked about them."""

    def __init__(self, n_stars: int) -> None:
        self.model, self.prior = model_and_prior()
        self.learned = xk.load_model()[0].noise
        self.survey = survey(n_stars)
        self.stars = observed(self.survey, engine="cpu").star_data()
        self.truth = self.survey.truth
        self.grid = start_grid(self.model, self.prior)
        self.box, self.terms = default_box(self.prior), LossTerms()
        self.bands = infrared(self.survey)
        self.labelled = StarData(
            self.stars.flux, self.stars.whitener, self.truth, np.full(self.truth.shape, 0.1) + 0.1 * self.truth[:, :1]
        )


def run_everything(engine: Engine, sample: Sample) -> None:
    """Each operation once, for a sanitizer to watch."""
    start = engine.start(sample.grid, sample.stars, FitOptions())[:, 0]
    _calibrated(engine, sample)
    engine.predict(sample.model, sample.truth)
    engine.evaluate(sample.model, sample.prior, sample.stars, sample.truth, sample.terms)
    engine.invert_information(_fit(engine, sample).fisher)
    engine.fit(sample.model, sample.prior, sample.stars, start, sample.terms, sample.box, FitOptions())
    _frozen(engine, sample)
    engine.prior_curvature(sample.prior, sample.truth[:, :3])
    engine.search(_candidates(sample), sample.stars)
    _descended(engine, sample)
    _gradient(engine, sample)
    _epoch(engine, sample)


def check_everything(engine: Engine, sample: Sample) -> list[Check]:
    """Hold every operation against the reference engine, and against itself with the stars in another order."""
    reference = xk.get_engine("reference")
    return [
        *_check_calibration(engine, reference, sample),
        *_check_loss(engine, reference, sample),
        *_check_fit(engine, reference, sample),
        *_check_second_pass(engine, reference, sample),
        *_check_descent(engine, reference, sample),
        *_check_training(engine, reference, sample),
        *_check_bytes(engine, sample),
    ]


def _check_calibration(engine: Engine, reference: Engine, sample: Sample) -> list[Check]:
    ours, theirs = _calibrated(engine, sample), _calibrated(reference, sample)
    factor, expected = (unpack_factor(each.whitener) for each in (ours, theirs))
    size = np.sqrt(np.einsum("nij,nij->ni", expected, expected))[:, :, None]
    return [
        Check("calibrate: flux, share of its largest", _relative(ours.flux, theirs.flux), 1e-6),
        Check(
            "calibrate: factor, share of its row",
            float(np.max(np.abs(factor - expected) / np.maximum(size, 1e-30))),
            1e-4,
        ),
        Check("calibrate: stars with another status", float(np.sum(ours.status != theirs.status)), 0.0),
    ]


def _check_loss(engine: Engine, reference: Engine, sample: Sample) -> list[Check]:
    ours, theirs = (
        each.evaluate(sample.model, sample.prior, sample.stars, sample.truth, sample.terms)
        for each in (engine, reference)
    )
    flux = [each.predict(sample.model, sample.truth) for each in (engine, reference)]
    scale = np.sqrt(np.abs(np.einsum("naa->na", theirs.fisher)))
    scaled = np.abs(ours.fisher - theirs.fisher) / (scale[:, :, None] * scale[:, None, :])
    allowed = np.maximum(1e-3, 1e-5 * np.abs(theirs.loss))
    return [
        Check("predict: flux, relative", float(np.max(np.abs(flux[0] / flux[1] - 1.0))), 1e-9),
        Check("evaluate: loss, of max(1e-3, 1e-5 loss)", float(np.max(np.abs(ours.loss - theirs.loss) / allowed)), 1.0),
        Check("evaluate: Fisher matrix, scaled to a unit diagonal", float(np.max(scaled)), 1e-3),
    ]


def _check_fit(engine: Engine, reference: Engine, sample: Sample) -> list[Check]:
    ours, theirs = _fit(engine, sample), _fit(reference, sample)
    few = max(0.02, 2.0 / len(sample.stars))  # shares of stars
    at_end = reference.evaluate(sample.model, sample.prior, sample.stars, ours.params, sample.terms)
    allowed = np.maximum(1e-3, 1e-5 * np.abs(at_end.loss))
    # by the curvature of the loss: logg and plx together are hardly confined, each alone would say nothing
    step = _in_x(ours.params) - _in_x(theirs.params)
    off = np.sqrt(np.abs(0.5 * np.einsum("na,nab,nb->n", step, theirs.hessian, step)))
    return [
        Check(
            "fit: reported loss, of max(1e-3, 1e-5 loss)", float(np.max(np.abs(ours.loss - at_end.loss) / allowed)), 1.0
        ),
        Check("fit: share of stars in a higher minimum", float(np.mean(at_end.loss > theirs.loss + _SAME_LOSS)), few),
        Check("fit: distance where the minimum is one, sigma", float(np.max(off[off < _SAME_MINIMUM])), 0.01),
        Check("fit: stars with another kind of status", float(np.mean(ours.status != theirs.status)), few),
        *_check_covariance(engine, reference, ours.fisher),
    ]


def _check_covariance(engine: Engine, reference: Engine, fisher: np.ndarray) -> list[Check]:
    (ours, _, floored), (theirs, _, expected) = (each.invert_information(fisher) for each in (engine, reference))
    scale = np.sqrt(np.einsum("naa->na", theirs))
    scaled = np.abs(ours - theirs) / (scale[:, :, None] * scale[:, None, :])
    return [
        Check("covariance, scaled to a unit diagonal", float(np.max(scaled)), 1e-8),
        Check("covariance: stars whose eigenvalues are raised by one alone", float(np.sum(floored != expected)), 0.0),
    ]


def _check_second_pass(engine: Engine, reference: Engine, sample: Sample) -> list[Check]:
    ours, theirs = _frozen(engine, sample), _frozen(reference, sample)
    factor, expected = (unpack_factor(each.whitener) for each in (ours, theirs))
    size = np.sqrt(np.einsum("nij,nij->ni", expected, expected))[:, :, None]
    curvature = [each.prior_curvature(sample.prior, sample.truth[:, :3]) for each in (engine, reference)]
    return [
        Check(
            "freeze: factor, share of its row",
            float(np.max(np.abs(factor - expected) / np.maximum(size, 1e-30))),
            1e-4,
        ),
        Check("freeze: ln det", float(np.max(np.abs(ours.ln_det - theirs.ln_det))), 1e-6),
        Check("prior's curvature, share of its largest", _relative(*curvature), 1e-9),
    ]


def _check_descent(engine: Engine, reference: Engine, sample: Sample) -> list[Check]:
    found = [each.search(_candidates(sample), sample.stars) for each in (engine, reference)]
    steps = [_descended(each, sample) for each in (engine, reference)]
    loss = [reference.evaluate(sample.model, sample.prior, sample.stars, params, sample.terms).loss for params in steps]
    difference = np.abs(loss[0] - loss[1]) / np.maximum(1.0, loss[1])
    return [
        Check("search: share of stars with another candidate", float(np.mean(found[0][:, 0] != found[1][:, 0])), 0.02),
        Check("descend: loss after 64 steps of Adam, relative, median", float(np.median(difference)), 1e-3),
    ]


def _check_training(engine: Engine, reference: Engine, sample: Sample) -> list[Check]:
    (loss, gradient), (expected_loss, expected) = (_gradient(each, sample) for each in (engine, reference))
    ours, theirs = (_epoch(each, sample) for each in (engine, reference))
    moved = [
        ModelArrays(list(each.model.weights), list(each.model.biases), each.model.ext_curve).flatten()
        for each in (ours, theirs)
    ]
    return [
        Check("train_step: loss, relative", abs(loss / expected_loss - 1.0), 1e-5),
        Check(
            "train_step: gradient, share of its norm",
            float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected)),
            1e-3,
        ),
        Check("train_epoch: model after its steps, share of its largest", _relative(*moved), 1e-4),
        Check("train_epoch: loss of the batches, relative", _relative(ours.model_loss, theirs.model_loss), 1e-4),
    ]


def _check_bytes(engine: Engine, sample: Sample) -> list[Check]:
    order = np.random.default_rng(1).permutation(len(sample.stars))
    first, again = _fit(engine, sample), _fit(engine, sample)
    shuffled = engine.fit(
        sample.model, sample.prior, sample.stars[order], sample.grid, sample.terms, sample.box, FitOptions()
    )
    gradients = [_gradient(engine, sample)[1] for _ in range(2)]
    return [
        Check("fit: arrays that differ from run to run", _different(first, again, slice(None)), 0.0),
        Check("fit: arrays that depend on the order of the stars", _different(first, shuffled, order), 0.0),
        Check("train_step: numbers that differ from run to run", float(np.sum(gradients[0] != gradients[1])), 0.0),
    ]


def _different(one: Solution, other: Solution, order: np.ndarray | slice) -> float:
    arrays = [(getattr(one, each.name)[order], getattr(other, each.name)) for each in fields(one)]
    return float(sum(not np.array_equal(a, b, equal_nan=True) for a, b in arrays))


def _in_x(params: np.ndarray) -> np.ndarray:
    return np.column_stack([params[:, :-2], np.log(params[:, -2:])])


def _relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


def _calibrated(engine: Engine, sample: Sample) -> Calibrated:
    return engine.calibrate(Calibration.default(), sample.survey.coefficients, sample.model.noise, *sample.bands)


def _fit(engine: Engine, sample: Sample) -> Solution:
    return engine.fit(sample.model, sample.prior, sample.stars, sample.grid, sample.terms, sample.box, FitOptions())


def _frozen(engine: Engine, sample: Sample) -> FrozenNoise:
    return engine.freeze_noise(sample.model, sample.learned, sample.stars, sample.model.noise, sample.truth)


def _candidates(sample: Sample) -> CandidateGrid:
    return candidate_grid(sample.model, sample.prior, sample.box, Zgr23Options(types=64, exts=31))


def _descended(engine: Engine, sample: Sample) -> np.ndarray:
    return engine.descend(
        sample.model, sample.prior, sample.stars, sample.truth, sample.terms, sample.box, Descent("adam", 64, 0.01)
    )


def _gradient(engine: Engine, sample: Sample) -> tuple[float, np.ndarray]:
    loss, *gradient = engine.train_step(sample.model, sample.labelled, sample.truth)
    return loss, ModelArrays(*gradient).flatten()


def _epoch(engine: Engine, sample: Sample) -> EpochResult:
    size = min(64, len(sample.truth))
    batches = np.arange(len(sample.truth) // size * size, dtype=np.int64).reshape(-1, size)
    steps = Steps("adam", np.full(len(batches), 1e-4))
    of_stars = Steps("sgd", np.full(len(batches), 1e-6), clip=100.0)
    terms = LossTerms(prior=False)
    return engine.train_epoch(
        sample.model, sample.labelled, sample.truth, batches, terms, sample.box, steps, of_stars, None
    )
