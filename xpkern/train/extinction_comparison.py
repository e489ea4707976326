"""A learned extinction curve beside published laws, in a form that neither unit nor zero point of E enters.

    shape(lambda) = E(lambda - Ks) / E(552 nm - Ks) = (R(lambda) - R(Ks)) / (R(552 nm) - R(Ks))

E is defined up to a factor, and its zero point at each stellar type rests on labels; the shape does not depend on the
former, and hardly on the latter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xpkern.catalog.pending import PendingFile
from xpkern.engine.contract import Float64
from xpkern.errors import XpkernError
from xpkern.grid import BANDS, N_XP, WAVELENGTH
from xpkern.train.extinction_law import PIVOT, STANDARD_RV

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Laws of the package dust_extinction that have R(V) as their parameter.
LAWS = ("CCM89", "F99", "F19", "G23")

#: The first of the laws is shown over this range of R(V), too, as in Fig. 15.
RV_RANGE = (2.6, 3.6)

#: Samples that XP spectra and 2MASS have: the published laws are compared there.
COMPARED = N_XP + BANDS.index("Ks") + 1


def curve_shape(ext_curve: Float64) -> Float64:
    """E(lambda - Ks) / E(552 nm - Ks) at the XP samples and J, H, Ks, (64,), of R (66,) or (64,)."""
    at_ks = ext_curve[COMPARED - 1]
    at_pivot = ext_curve[: len(WAVELENGTH)][np.flatnonzero(WAVELENGTH == PIVOT)[0]]
    return (ext_curve[:COMPARED] - at_ks) / (at_pivot - at_ks)


def published_curves(rv: float = STANDARD_RV) -> dict[str, Float64]:
    """A / A(V) of each of :data:`LAWS` at the XP samples and J, H, Ks, (64,).

    Raises
    ------
    XpkernError
        If the package dust_extinction is not installed.
    """
    try:
        from astropy import units
        from dust_extinction import parameter_averages
    except ImportError as error:
        raise XpkernError('published extinction laws need dust_extinction: pip install "xpkern[train]"') from error
    wavelength = WAVELENGTH[:COMPARED] * units.nm
    return {name: np.asarray(getattr(parameter_averages, name)(Rv=rv)(wavelength)) for name in LAWS}


def draw_comparison(path: Path, ext_curve: Float64) -> None:
    """Draw :func:`draw_curves` as PNG.

    Raises
    ------
    XpkernError
        If the package dust_extinction is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from xpkern.train.figures import STYLE

    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.2), layout="constrained")
        draw_curves(figure, ext_curve)
        with PendingFile(path) as partial:
            figure.savefig(partial, format="png", dpi=130, metadata={"Software": None})


def draw_curves(figure: Figure, ext_curve: Float64) -> None:
    """Draw the shape of a learned curve R (66,) and what the published laws differ from it by (Fig. 15).

    Raises
    ------
    XpkernError
        If the package dust_extinction is not installed.
    """
    from xpkern.train.figures import BLUE, GREEN, ORANGE, PURPLE, RED

    learned = curve_shape(ext_curve)
    whole, differences = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    wavelength = WAVELENGTH[:COMPARED]
    whole.plot(wavelength, learned, ".-", color=BLUE, ms=4.0, lw=1.2, label="learned")
    for (name, curve), colour in zip(published_curves().items(), (ORANGE, GREEN, RED, PURPLE), strict=True):
        shape = curve_shape(curve)
        whole.plot(wavelength, shape, color=colour, lw=1.0, label=name)
        differences.plot(wavelength, shape - learned, color=colour, lw=1.2)
    low, high = (curve_shape(published_curves(rv)[LAWS[0]]) - learned for rv in RV_RANGE)
    label = f"{LAWS[0]}, R(V) = {RV_RANGE[0]:g} to {RV_RANGE[1]:g}"
    differences.fill_between(wavelength, low, high, color=ORANGE, alpha=0.18, lw=0, label=label)
    differences.axhline(0.0, color=BLUE, lw=1.2)
    differences.legend(loc="upper right")
    whole.set(ylabel=r"$E(\lambda-K_s)\,/\,E(552\,\mathrm{nm}-K_s)$", title=f"Published laws at R(V) = {STANDARD_RV}")
    differences.set(ylabel="law − learned", xlabel="wavelength  [nm]", xscale="log")
    differences.set_xticks([400, 500, 600, 800, 1000, 1500, 2000], [400, 500, 600, 800, 1000, 1500, 2000])
    differences.minorticks_off()
    whole.legend(ncols=2)
