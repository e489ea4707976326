"""Infrared photometry: Vega magnitudes to flux (Eq. 5) and the rules on what counts (ZGR23 sections 2.3 and 2.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.grid import BAND_AB_OFFSET, BAND_WAVELENGTH, BANDS
from xpkern.observe.calibration import FLUX_UNIT
from xpkern.observe.gaia_source import SourceTable

#: Flux density of magnitude 0 in the AB system [W m-2 Hz-1]: 3631 Jy.
AB_ZERO_POINT = 3631e-26

#: Speed of light [m s-1].
LIGHT_SPEED = 299_792_458.0

#: Flux [1e-18 W m-2 nm-1] of Vega magnitude 0 in each band: Eq. 5 with m = 0.
ZERO_MAGNITUDE_FLUX: dict[str, float] = {
    band: AB_ZERO_POINT * LIGHT_SPEED / (wavelength * 1e-9) ** 2 * 1e-9 / FLUX_UNIT * 10 ** (-0.4 * offset)
    for band, wavelength, offset in zip(BANDS, BAND_WAVELENGTH, BAND_AB_OFFSET, strict=True)
}

#: Magnitude whose flux is one "Vega nanomaggy", the unit of the unWISE catalogue.
NANOMAGGY_MAGNITUDE = 22.5

#: 2MASS sees what Gaia resolves as one star: with ``norm_dg`` above this a neighbour contaminates it.
TWOMASS_CROWDING = -5.0
#: The same for unWISE, whose images are less sharp still.
UNWISE_CROWDING = -10.0

#: An unWISE detection counts if more than this part of the flux in its pixels is its own, and of its pixels is good,
#: and if its fractional error is smaller than that.
UNWISE_MIN_FRACFLUX, UNWISE_MIN_QF, UNWISE_MAX_ERROR = 0.8, 0.8, 0.2


def flux_of_magnitude(band: str, magnitude: ArrayLike) -> Float64:
    """Flux [1e-18 W m-2 nm-1] of a Vega magnitude in one of :data:`xpkern.grid.BANDS` (Eq. 5)."""
    return ZERO_MAGNITUDE_FLUX[band] * 10.0 ** (-0.4 * np.asarray(magnitude, np.float64))


def magnitude_of_flux(band: str, flux: ArrayLike) -> Float64:
    """Vega magnitude of a positive flux [1e-18 W m-2 nm-1]: the inverse of :func:`flux_of_magnitude`."""
    return -2.5 * np.log10(np.asarray(flux, np.float64) / ZERO_MAGNITUDE_FLUX[band])


@dataclass(frozen=True)
class BandColumns:
    """Columns in which a survey gives one band.

    Attributes
    ----------
    band : str
        One of :data:`xpkern.grid.BANDS`.
    value, error : str
        Columns of the measurement and of its standard error.
    in_magnitudes : bool
        Whether these are Vega magnitudes; else Vega nanomaggies.
    """

    band: str
    value: str
    error: str
    in_magnitudes: bool = True


#: What is looked for in a table; for each band the first that is there wins.
COLUMNS = (
    BandColumns("J", "j_m", "j_msigcom"),
    BandColumns("H", "h_m", "h_msigcom"),
    BandColumns("Ks", "ks_m", "ks_msigcom"),
    BandColumns("W1", "flux_w1", "dflux_w1", in_magnitudes=False),
    BandColumns("W1", "w1mag", "w1mag_error"),
    BandColumns("W2", "flux_w2", "dflux_w2", in_magnitudes=False),
    BandColumns("W2", "w2mag", "w2mag_error"),
)

#: Bands of 2MASS in the order of the letters of ``ph_qual``; the others are unWISE's.
TWOMASS_BANDS = ("J", "H", "Ks")

#: Columns that say whether a measurement counts.
QUALITY_COLUMNS = ("ph_qual", "ext_key", "norm_dg", "fracflux_w1", "fracflux_w2", "qf_w1", "qf_w2")

#: Every column that this module may look at.
COLUMN_NAMES = (*(name for column in COLUMNS for name in (column.value, column.error)), *QUALITY_COLUMNS)


def infrared_flux(table: SourceTable, rows: np.ndarray) -> tuple[Float64, Float64]:
    """Infrared fluxes of some sources of a table.

    Parameters
    ----------
    table : SourceTable
        With any of :data:`COLUMN_NAMES`.
    rows : (n,) int
        Rows of the table; -1 for a source that it does not have.

    Returns
    -------
    flux, error : (n, 5) float64
        In the order of :data:`xpkern.grid.BANDS` [1e-18 W m-2 nm-1]; 0 and inf where missing or not to be used.

    Raises
    ------
    InputError
        If a band has no column of errors, or 2MASS no ``ph_qual``.
    """
    flux, error = np.zeros((len(rows), len(BANDS))), np.full((len(rows), len(BANDS)), np.inf)
    quality = table.texts("ph_qual", rows) if "ph_qual" in table else None
    done: set[str] = set()
    for column in COLUMNS:
        if column.band in done or column.value not in table:
            continue
        done.add(column.band)
        value, deviation = table.numbers(column.value, rows), table.numbers(column.error, rows)
        if column.in_magnitudes:
            band_flux = flux_of_magnitude(column.band, value)
            band_error = band_flux * (0.4 * np.log(10.0)) * deviation
        else:
            unit = flux_of_magnitude(column.band, NANOMAGGY_MAGNITUDE)
            band_flux, band_error = unit * value, unit * deviation
        usable = np.isfinite(band_flux) & (band_flux > 0) & np.isfinite(band_error) & (band_error > 0)
        usable &= _counts(table, column.band, rows, quality, band_error / np.where(usable, band_flux, 1.0))
        index = BANDS.index(column.band)
        flux[usable, index], error[usable, index] = band_flux[usable], band_error[usable]
    return flux, error


def _counts(
    table: SourceTable, band: str, rows: np.ndarray, quality: list[str] | None, fractional_error: np.ndarray
) -> np.ndarray:
    """Whether a measurement may be used, by those rules whose columns the table has; ``quality`` is ``ph_qual``."""
    is_twomass = band in TWOMASS_BANDS
    good = np.ones(len(rows), bool)
    if "norm_dg" in table:
        # a missing norm_dg compares as false: there is no neighbour within 30 arcsec
        good &= ~(table.numbers("norm_dg", rows) >= (TWOMASS_CROWDING if is_twomass else UNWISE_CROWDING))
    if is_twomass:
        if quality is None:
            raise InputError("2MASS magnitudes need this column of quality letters", file=table.name, field="ph_qual")
        letter = TWOMASS_BANDS.index(band)
        good &= [letters[letter : letter + 1] == "A" for letters in quality]
        if "ext_key" in table:
            good &= np.isnan(table.numbers("ext_key", rows))
        return good
    for column, least in ((f"fracflux_{band.lower()}", UNWISE_MIN_FRACFLUX), (f"qf_{band.lower()}", UNWISE_MIN_QF)):
        if column in table:
            good &= table.numbers(column, rows) > least
    return good & (fractional_error < UNWISE_MAX_ERROR)
