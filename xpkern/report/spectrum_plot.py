"""A model spectrum as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xpkern.catalog.pending import PendingFile
from xpkern.errors import InputError
from xpkern.grid import BANDS, N_XP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from xpkern.model import FluxModel

SPECTRUM_COLOUR, DUST_FREE_COLOUR, BAND_COLOUR = "#1b4f8f", "#9a9a9a", "#b5442e"

#: Kinds of pictures, and what matplotlib must leave out of each so that equal spectra give equal bytes.
METADATA: dict[str, dict[str, None]] = {
    ".png": {"Software": None},
    ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    ".svg": {"Date": None, "Creator": None},
}

#: A fixed salt gives equal SVG files equal bytes; GaiaXPy, once imported, asks for LaTeX in every figure; the font is
#: one that comes with matplotlib, so that a machine need not have any.
STYLE: Any = {"svg.hashsalt": "xpkern", "text.usetex": False, "font.family": "DejaVu Sans"}

FLUX_LABEL = r"flux  [$10^{-18}\,\mathrm{W\,m^{-2}\,nm^{-1}}$]"


def plot_spectrum(path: Path, model: FluxModel, star: dict[str, float]) -> None:
    """Draw the predicted spectrum of one star: BP and RP on the left, the infrared bands with it on the right.

    Parameters
    ----------
    path : Path
        Picture to write; its ending decides the format.
    model : FluxModel
    star : dict of str to float
        teff [kK], feh, logg, ext, plx [mas].

    Raises
    ------
    InputError
        If the name has another ending than those of :data:`METADATA`, or its folder does not exist.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    if path.suffix not in METADATA:
        raise InputError(f"a picture's name must end in one of {', '.join(METADATA)}", file=str(path))
    pending = PendingFile(path)
    with rc_context(STYLE):
        figure = Figure(figsize=(10.0, 4.2), layout="constrained")
        optical, all_bands = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_optical(optical, model, star)
        _draw_all_bands(all_bands, model, star)
        figure.suptitle(
            rf"$T_\mathrm{{eff}}$ = {1000 * star['teff']:.0f} K   [Fe/H] = {star['feh']:+.2f}   "
            rf"log g = {star['logg']:.2f}   E = {star['ext']:.2f}   parallax = {star['plx']:g} mas"
        )
        try:
            figure.savefig(pending.partial, format=path.suffix.lstrip("."), dpi=150, metadata=METADATA[path.suffix])
            pending.commit()
        finally:
            pending.discard()


def _draw_optical(axes: Axes, model: FluxModel, star: dict[str, float]) -> None:
    wavelength, flux = model.wavelength[:N_XP], model.predict(**star)[0, :N_XP]
    if star["ext"] > 0:
        without_dust = model.predict(**{**star, "ext": 0.0})[0, :N_XP]
        axes.plot(wavelength, without_dust, color=DUST_FREE_COLOUR, linewidth=1.2, label="without dust")
    axes.plot(wavelength, flux, color=SPECTRUM_COLOUR, linewidth=1.8, label="predicted")
    axes.set(xlabel="wavelength  [nm]", ylabel=FLUX_LABEL, xlim=(wavelength[0], wavelength[-1]))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _draw_all_bands(axes: Axes, model: FluxModel, star: dict[str, float]) -> None:
    wavelength, flux = model.wavelength, model.predict(**star)[0]
    theoretical = np.asarray(model.theoretical)
    axes.loglog(wavelength[:N_XP], flux[:N_XP], color=SPECTRUM_COLOUR, linewidth=1.8)
    for index, name in enumerate(BANDS, start=N_XP):
        face = "none" if theoretical[index] else BAND_COLOUR
        axes.plot(wavelength[index], flux[index], "o", color=BAND_COLOUR, markerfacecolor=face)
        axes.annotate(name, (wavelength[index], flux[index]), (5, 5), textcoords="offset points", color=BAND_COLOUR)
    if theoretical.any():
        axes.plot([], [], "o", color=BAND_COLOUR, markerfacecolor="none", label="from theory alone")
        axes.legend(frameon=False)
    axes.set(xlabel="wavelength  [nm]", xlim=(350, 6500))
    axes.set_xticks([400, 700, 1000, 2000, 5000], labels=["400", "700", "1000", "2000", "5000"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
