"""What comes out of a training run: the finished model with its prior and provenance, and a file on its stars."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile
from xpkern.engine.contract import Float64
from xpkern.grid import BANDS, N_XP, PARAMETERS, WAVELENGTH
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.train.cuts import CutCount
from xpkern.train.extinction_law import EXT_UNIT, factor_to_law, grey_to_law, optical_depth
from xpkern.train.flux_scale import SCALE_SIGMA, THEORETICAL_ERROR
from xpkern.train.phases import Run
from xpkern.train.recipe import Epochs, Rounds
from xpkern.train.state import EpochRecord
from xpkern.train.training_set import seen_share
from xpkern.train.type_prior_fit import fit_prior_of_kind
from xpkern.version import __version__

#: A flux sample that a smaller share of the stars has is not learned: the model says nothing about it.
LEAST_SEEN = 0.01

#: Fractional error of such samples: they have no weight in a fit.
UNSEEN_ERROR = 100.0


@dataclass(frozen=True)
class Outcome:
    """A trained model and what is known of it.

    Attributes
    ----------
    model : FluxModel
    prior : TypePrior
    stars : dict of str to int
        Numbers of stars: "training", "high_quality", "clean", "held_out".
    validation_loss, validation_median : float
        Eqs. 13-14 of all held-out stars at their optima; NaN if there are none.
    unseen : tuple of str
        Flux samples that were not learned.
    kept : str
        Which of the run's models this is, and what held-out stars said of it.
    """

    model: FluxModel
    prior: TypePrior
    stars: dict[str, int]
    validation_loss: float
    validation_median: float
    unseen: tuple[str, ...]
    kept: str


def outcome_of(run: Run, *, unit_of_law: bool = False) -> Outcome:
    """Judge the model of a finished run by all held-out stars, fit the prior and put everything together.

    Where no label has an extinction, or these are not to tell the unit, the run's E and R, known up to a factor, are
    brought into the law's unit. Where hardly a star has a parallax, R is known up to a constant: R(Ks) is by the law.
    """
    unit_of_law = unit_of_law or not _has_labelled_ext(run)
    recipe, data = run.recipe, run.set
    learned_from = np.flatnonzero(_learned_from(run))
    losses = run.validation_losses(np.flatnonzero(data.held_out))
    losses = losses[np.isfinite(losses)]
    prior, note = fit_prior_of_kind(run.stars.mean[learned_from, :3], recipe.prior, recipe.split.seed)
    observed = run.training[~data.is_anchor[run.training]]
    unseen = seen_share(data.stars, learned_from) < LEAST_SEEN
    has_anchors = bool(data.is_anchor.any())
    has_scale = data.has_parallax[observed].mean() >= LEAST_SEEN
    beyond = unseen & has_anchors & (np.arange(len(unseen)) > N_XP + BANDS.index("Ks"))
    _fix_extinction(run, grey=not has_scale, unit=unit_of_law, beyond=beyond)
    state = run.state
    names = tuple(_sample_name(sample) for sample in np.flatnonzero(unseen).tolist())
    stars = {
        "training": len(observed),
        "high_quality": int(data.high_quality[observed].sum()),
        "clean": int(state.clean[observed].sum()),
        "held_out": int(data.held_out.sum()),
    }
    outcome = Outcome(
        model=state.model,
        prior=prior,
        stars=stars,
        validation_loss=float(losses.mean()) if len(losses) else np.nan,
        validation_median=float(np.median(losses)) if len(losses) else np.nan,
        unseen=names,
        kept=_kept(run),
    )
    noise = Noise.eq2(
        sigma=recipe.noise.sigma,
        photometry_floor=recipe.noise.photometry,
        theoretical=unseen,
        theoretical_error=THEORETICAL_ERROR if has_anchors else UNSEEN_ERROR,
    )
    model = replace(
        state.model,
        noise=noise,
        theoretical=unseen,
        scale_sigma=0.0 if has_scale else SCALE_SIGMA,
        ext_unit=EXT_UNIT if unit_of_law else "that of the extinctions among the labels",
        provenance=_provenance(run, outcome, note),
        licence="that of the data it was trained on",
    )
    return replace(outcome, model=replace(model, card=_card(run, replace(outcome, model=model), note)))


def _learned_from(run: Run) -> NDArray[np.bool_]:
    """Stars whose spectra the last phase that moved the model, as it was kept, has used."""
    observed = ~run.set.held_out & ~run.set.is_anchor
    used = observed
    kept = kept_epoch(run)
    for _, phase in run.phases[: None if kept is None else kept.phase + 1]:
        if isinstance(phase, Rounds) or (isinstance(phase, Epochs) and phase.model_rate > 0):
            used = observed
            if phase.stars != "all":
                used = used & (run.set.high_quality if phase.stars == "high_quality" else run.state.clean)
    return used


def kept_epoch(run: Run) -> EpochRecord | None:
    """The epoch after which the model was as it is now; None if no epoch was judged."""
    judged = [record for record in run.state.history if np.isfinite(record.validation_loss)]
    if not judged:
        return None
    best = run.state.best
    return best.record if run.recipe.split.keep_best and best is not None else judged[-1]


def _kept(run: Run) -> str:
    """Which model of the run the outcome is, as a line of text."""
    kept = kept_epoch(run)
    if kept is None:
        return "the last one, as no held-out star could judge"
    last = run.state.history[-1]
    why = "the best by held-out stars" if run.recipe.split.keep_best else "the last"
    text = f"that of phase {run.phases[kept.phase][0]}, epoch {kept.epoch + 1}, {why}: {kept.validation_loss:.2f}"
    same = (kept.phase, kept.epoch) == (last.phase, last.epoch)  # records hold NaN, which no other equals
    return text if same else f"{text}, where the last had {last.validation_loss:.2f}"


def _sample_name(sample: int) -> str:
    return BANDS[sample - N_XP] if sample >= N_XP else f"{WAVELENGTH[sample]:.0f} nm"


def _fix_extinction(run: Run, *, grey: bool, unit: bool, beyond: NDArray[np.bool_]) -> None:
    """Bring R, and the stars with it, to what a law says of it and no star does; no flux of theirs changes.

    Parameters
    ----------
    run : Run
    grey : bool
        Whether R(Ks) / R at the pivot becomes the law's: a constant is added to R, and parallaxes follow.
    unit : bool
        Whether R at the pivot becomes the law's: R is multiplied, and E follows.
    beyond : (m,) bool
        Samples beyond Ks at which R goes on from there as the law does.
    """
    law, ext_curve, params = optical_depth(WAVELENGTH), run.state.model.ext_curve.copy(), run.state.params.copy()
    ext, plx, ks = PARAMETERS.index("ext"), PARAMETERS.index("plx"), N_XP + BANDS.index("Ks")
    if grey:
        change = grey_to_law(ext_curve, WAVELENGTH)
        ext_curve += change
        params[:, plx] *= np.exp(0.5 * change * params[:, ext])
    ext_curve[beyond] = ext_curve[ks] * law[beyond] / law[ks]
    if unit:
        factor = factor_to_law(ext_curve, WAVELENGTH)
        ext_curve *= factor
        params[:, ext] /= factor
    run.state = replace(run.state, model=replace(run.state.model, ext_curve=ext_curve), params=params)


def _has_labelled_ext(run: Run) -> bool:
    rows = run.training[~run.set.is_anchor[run.training]]
    return bool(np.isfinite(run.set.stars.sigma[rows, PARAMETERS.index("ext")]).any())


def _provenance(run: Run, outcome: Outcome, note: str) -> dict[str, str]:
    def listed(counts: tuple[CutCount, ...] | list[CutCount]) -> str:
        return json.dumps([[getattr(count, item.name) for item in fields(count)] for count in counts], default=int)

    return {
        "made_by": f"xpkern train, version {__version__}",
        "recipe": run.recipe.name,
        "recipe_digest": run.recipe.digest,
        "recipe_settings": json.dumps(run.recipe.settings()),
        "data_digest": run.set.digest,
        "engine": " ".join([run.engine.name, getattr(run.engine, "instruction_set", "")]).strip(),
        "stars": json.dumps(outcome.stars),
        "cuts": listed(run.set.counts),
        "high_quality_cuts": listed(run.set.high_quality_counts),
        "self_cleaning": listed(run.state.clean_counts),
        "validation_loss": repr(outcome.validation_loss),
        "validation_median": repr(outcome.validation_median),
        "kept_model": outcome.kept,
        "prior_fit": note,
        "survey_offsets": json.dumps(_offsets(run)) if len(run.set.surveys) > 1 else "",
        "not_learned": " ".join(outcome.unseen),
    }


def _offsets(run: Run) -> dict[str, list[float]]:
    """What each survey's teff [kK], feh, logg [dex] are above those of the reference, which comes first."""
    return {name: offset.tolist() for name, offset in zip(run.set.surveys, run.state.offsets, strict=True)}


def offset_table(run: Run) -> str:
    """The surveys, their training stars and offsets, as a table in Markdown."""
    training = run.set.survey[run.training[~run.set.is_anchor[run.training]]]
    rows = [
        f"| {name} | {np.count_nonzero(training == number):,} | {1000.0 * teff:+.0f} | {feh:+.3f} | {logg:+.3f} |"
        for number, (name, (teff, feh, logg)) in enumerate(_offsets(run).items())
    ]
    head = ["| survey | training stars | Teff [K] | [Fe/H] | log g |", "|---|---:|---:|---:|---:|"]
    return "\n".join([*head, *rows])


def _card(run: Run, outcome: Outcome, note: str) -> str:
    """The model card, Markdown."""

    def listed(counts: tuple[CutCount, ...] | list[CutCount]) -> str:
        return "\n".join(f"    {count}" for count in counts)

    stars = ", ".join(f"{count:,} {name.replace('_', '-')}" for name, count in outcome.stars.items())
    unseen = ", ".join(outcome.unseen) or "none"
    surveys = ""
    if len(run.set.surveys) > 1:
        surveys = f"""
## Label surveys

What each survey's labels are above those of {run.set.surveys[0]}, which are taken to be right.

{offset_table(run)}
"""
    anchors = int(run.set.is_anchor.sum())
    scale = "measured parallaxes" if not outcome.model.scale_sigma else "not calibrated: parallaxes are too few"
    if anchors:
        scale += f"; {anchors:,} stars made of theory (J, H, Ks good to {run.recipe.anchors.scale:.0%})"
    return f"""\
# Model card: trained with the recipe `{run.recipe.name}`

{stars} stars. Held-out stars, each at the optimum of Eqs. 13-14 of Zhang, Green & Rix (2023) under this model: mean
loss {outcome.validation_loss:.2f}, median {outcome.validation_median:.2f}.
Of the run's models, {outcome.kept}.

Samples that less than {LEAST_SEEN:.0%} of the stars have, and that were not learned: {unseen}.
Unit of extinction: {outcome.model.ext_unit}.
Absolute scale: {scale}; `scale_sigma` = {outcome.model.scale_sigma:g}.
Prior: {run.recipe.prior.kind}, {note}; 0.1 % of its mass lies below ln p = {outcome.prior.ln_prior_threshold:.2f}.

{surveys}
## Stars left after each cut

{listed(run.set.counts)}

High-quality stars among them:

{listed(run.set.high_quality_counts)}

Self-cleaning:

{listed(run.state.clean_counts) if run.state.clean_counts else "    none"}
"""


#: Bits of the ``used`` column of a file on stars.
USED = {"high_quality": 1, "clean": 2, "held_out": 4}


def write_stars(path: Path, run: Run, outcome: Outcome) -> None:
    """Write what became of each star, the losses of each epoch and the extinction curve after each phase.

    Parameters
    ----------
    path : Path
        HDF5 file, which appears under its name only once it is complete. ``stars/`` has a dataset per column,
        ``history/`` one per field of :class:`xpkern.train.state.EpochRecord`, ``phases/`` the curves and drifts.
    run : Run
        A finished one.
    outcome : Outcome
    """
    state, data = run.state, run.set
    observed = ~data.is_anchor
    columns: dict[str, NDArray] = {"source_id": data.source_id}
    units = {"teff": "kK", "ext": "mag", "plx": "mas", "feh": "dex", "logg": "dex"}
    for k, name in enumerate(PARAMETERS):
        columns[name] = state.params[:, k]
        columns[f"{name}_label"] = np.where(np.isfinite(data.stars.sigma[:, k]), run.stars.mean[:, k], np.nan)
        columns[f"{name}_label_err"] = data.stars.sigma[:, k]
    columns["used"] = (
        USED["high_quality"] * data.high_quality + USED["clean"] * state.clean + USED["held_out"] * data.held_out
    ).astype(np.uint8)
    with PendingFile(path) as partial, h5py.File(partial, "w") as file:
        for name, values in columns.items():
            dataset = file.create_dataset(f"stars/{name}", data=values[observed], track_times=False)
            unit = units.get(name.removesuffix("_err").removesuffix("_label"))
            if unit:
                dataset.attrs["unit"] = unit
        file["stars/used"].attrs["bits"] = json.dumps(USED)
        for item in fields(EpochRecord):
            kind = np.int32 if item.name in ("phase", "epoch") else np.float64
            values = np.array([getattr(record, item.name) for record in state.history], kind)
            file.create_dataset(f"history/{item.name}", data=values, track_times=False)
        names = [snapshot.phase for snapshot in state.snapshots]
        file.create_dataset("phases/name", data=names, dtype=h5py.string_dtype(), track_times=False)
        curves = np.stack([snapshot.ext_curve for snapshot in state.snapshots])
        file.create_dataset("phases/ext_curve", data=curves, track_times=False)
        drifts: Float64 = np.stack([snapshot.drift for snapshot in state.snapshots])
        file.create_dataset("phases/drift", data=drifts, track_times=False)
        for key, value in sorted(outcome.model.provenance.items()):
            file.attrs[key] = value
