"""What made a catalogue: the attributes of its file."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from xpkern.engine.contract import FitOptions, LossTerms
from xpkern.errors import InputError
from xpkern.version import __version__

if TYPE_CHECKING:
    from xpkern.catalog.stream import CatalogReader
    from xpkern.fit.result import Fit
    from xpkern.fit.zgr23 import Zgr23Options
    from xpkern.model import FluxModel, Noise, TypePrior
    from xpkern.observe.calibration import Calibration

ACKNOWLEDGEMENT = (
    "made from data of the ESA mission Gaia, processed by the Gaia DPAC: https://www.cosmos.esa.int/gaia says how to "
    "acknowledge them"
)

#: Where confidences are unknown.
NO_CLASSIFIERS = "none: the model has no classifiers of confidence"

#: Where a fit does not know how its observations were made.
GIVEN = "unknown: observations were given as fluxes and whiteners"


def provenance(
    *,
    layout: str,
    model: FluxModel,
    prior: TypePrior,
    noise: Noise | None,
    calibration: Calibration | None,
    terms: LossTerms,
    options: FitOptions | Zgr23Options,
    engine: str,
    instruction_set: str,
) -> dict[str, object]:
    """Attributes of a catalogue file.

    Nothing in them depends on when, where, on how many threads or from which folder the catalogue was made.

    Parameters
    ----------
    layout : str
    model : FluxModel
    prior : TypePrior
    noise : Noise, optional
        That the fit allowed for; None if the observations came with whiteners of unknown making.
    calibration : Calibration, optional
        That made fluxes of coefficients; None if they came as fluxes.
    terms : LossTerms
    options : FitOptions or Zgr23Options
        Its type says which optimizer it was.
    engine, instruction_set : str
        What computed; the instruction set is empty for an engine that has only one.

    Returns
    -------
    dict of str to str, float or bool
    """
    optional_terms = {"prior": terms.prior, "jacobian_ext": terms.jacobian_ext, "jacobian_plx": terms.jacobian_plx}
    return {
        "xpkern_version": __version__,
        "layout": layout,
        "model_digest": model.digest,
        "prior_digest": prior.digest,
        "ln_prior_threshold": prior.ln_prior_threshold,
        "confidence_digest": confidence_digest(model),
        "ext_unit": model.ext_unit,
        "scale_theoretical": bool(model.scale_sigma > 0),
        "scale_sigma": model.scale_sigma,
        **_of_spectra(noise, calibration),
        "loss_terms": " ".join(["chi2", "constraints", *(name for name, used in optional_terms.items() if used)]),
        "optimizer": "newton" if isinstance(options, FitOptions) else "zgr23",
        **{f"fit_{name}": value for name, value in asdict(options).items()},
        "engine": engine,
        "instruction_set": instruction_set,
        "acknowledgement": ACKNOWLEDGEMENT,
    }


def confidence_digest(model: FluxModel) -> str:
    """What tells a model's classifiers of confidence from others."""
    return NO_CLASSIFIERS if model.confidence is None else model.confidence.digest


def check_model(reader: CatalogReader, model: FluxModel, prior: TypePrior) -> None:
    """Refuse a catalogue of another model: residuals and priors mean what they mean under one.

    Raises
    ------
    InputError
        If its attributes name another model or prior, or none.
    """
    for name, digest in (("model_digest", model.digest), ("prior_digest", prior.digest)):
        found = str(reader.attributes.get(name, ""))
        if found != digest:
            made = f"it was made with {found[:12]}" if found else "it does not say which one made it"
            message = f"this {name.partition('_')[0]} is {digest[:12]}, {made}"
            raise InputError(message, file=str(reader.paths[0]), field=name)


def provenance_of_spectra(
    noise: Noise, calibration: Calibration, engine: str, instruction_set: str
) -> dict[str, object]:
    """Attributes of a file of calibrated spectra; parameters as in :func:`provenance`."""
    return {
        "xpkern_version": __version__,
        **_of_spectra(noise, calibration),
        "engine": engine,
        "instruction_set": instruction_set,
        "acknowledgement": ACKNOWLEDGEMENT,
    }


def _of_spectra(noise: Noise | None, calibration: Calibration | None) -> dict[str, object]:
    return {
        "noise_kind": GIVEN if noise is None else noise.kind,
        "noise_digest": GIVEN if noise is None else noise.digest,
        "sigma_convention": GIVEN if noise is None else noise.sigma,
        "calibration_release": GIVEN if calibration is None else calibration.release,
        "instrument_model": GIVEN if calibration is None else calibration.instrument_model,
    }


def _noise_of(fit: Fit) -> Noise | None:
    """The noise a fit allowed for, as far as it is known."""
    if fit.noise_kind == "learned":
        return fit.model.noise
    of_observations = fit.observations.noise
    return None if of_observations is None else of_observations.without_model_error()


def provenance_of_fit(fit: Fit, layout: str) -> dict[str, object]:
    """Attributes of the catalogue of one fit, as far as the fit knows."""
    return provenance(
        layout=layout,
        model=fit.model,
        prior=fit.prior,
        noise=_noise_of(fit),
        calibration=None,
        terms=fit.terms,
        options=fit.options,
        engine=fit.engine,
        instruction_set=fit.instruction_set,
    )
