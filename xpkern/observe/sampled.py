r"""Spectra that come as sampled fluxes with independent errors: Gaia's product ``XP_SAMPLED``.

Here the samples themselves are the coefficients: a design matrix that picks them, times the merge weight of its band,
gives f_BP = w_BP f and f_RP = w_RP f, and everything that is done with coefficients can be done with them. Where both
bands contribute, each is given the error

.. math:: e' = e / \sqrt{w_{BP}^2 + w_{RP}^2},

so that the variance of the sum, (w_BP e')² + (w_RP e')², is e² as the file says.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Coefficients, Float64
from xpkern.grid import XP_WAVELENGTH
from xpkern.observe.calibration import FLUX_UNIT, Calibration
from xpkern.units import factor_to

#: Samples of the archive's product [nm].
SAMPLE_WAVELENGTH = np.arange(336.0, 1021.0, 2.0)
N_SAMPLES = SAMPLE_WAVELENGTH.size

#: Unit of fluxes and errors for which a table names none.
SAMPLE_UNIT = "W m-2 nm-1"

#: How the archive and astropy write it, and nothing.
_SPELLINGS = frozenset({SAMPLE_UNIT, "W.m**-2.nm**-1", "W.nm-1.m-2", "W / (m2 nm)", "W / (nm m2)", ""})

#: Where BP and RP overlap [nm]; between its ends, the weight of BP falls from 1 to 0 along a line.
OVERLAP = (635.0, 643.0)


def bp_weight(wavelength: Float64) -> Float64:
    """Return the weight w_BP with which BP is merged into a spectrum; w_RP = 1 - w_BP."""
    begin, end = OVERLAP
    return np.clip((end - wavelength) / (end - begin), 0.0, 1.0)


_W_BP = bp_weight(XP_WAVELENGTH)
_OF_BP, _OF_RP = np.flatnonzero(_W_BP > 0.0), np.flatnonzero(_W_BP < 1.0)
_USED = np.searchsorted(SAMPLE_WAVELENGTH, XP_WAVELENGTH)
_ERROR_SCALE = 1.0 / np.hypot(_W_BP, 1.0 - _W_BP)


@lru_cache(maxsize=1)
def sampled_calibration() -> Calibration:
    """Return the calibration whose coefficients are samples [1e-18 W m-2 nm-1]."""
    pick = np.eye(XP_WAVELENGTH.size)
    return Calibration(
        release="sampled spectra",
        instrument_model="fluxes as they came",
        bp_design=(_W_BP[:, None] * pick)[:, _OF_BP],
        rp_design=((1.0 - _W_BP)[:, None] * pick)[:, _OF_RP],
        wavelength=XP_WAVELENGTH,
        bp_basis_function_id=0,
        rp_basis_function_id=0,
    )


def sample_factors(units: Mapping[str, str], file: str) -> tuple[float, float]:
    """Return by what fluxes and their errors are multiplied to be in :data:`SAMPLE_UNIT`.

    Parameters
    ----------
    units : mapping of str to str
        What a table says of its columns.
    file : str

    Raises
    ------
    InputError
        If a unit is none of a flux density per wavelength.
    """

    def factor(name: str) -> float:
        unit = units.get(name, "").strip()
        # without astropy, as nearly every file has it
        return 1.0 if unit in _SPELLINGS else factor_to(SAMPLE_UNIT, unit, name, file, must_be_understood=True)

    return factor("flux"), factor("flux_error")


def coefficients_of_samples(
    samples: Coefficients, factors: tuple[float, float] = (1.0, 1.0)
) -> tuple[Coefficients, NDArray[np.bool_]]:
    """Turn sampled spectra into coefficients of :func:`sampled_calibration`.

    Parameters
    ----------
    samples : Coefficients
        Fluxes and errors of n stars at :data:`SAMPLE_WAVELENGTH` in ``bp`` and ``bp_error``; a sample whose flux or
        error is NaN is missing. ``has_bp`` says which stars have a spectrum.
    factors : (float, float)
        By what fluxes, errors are multiplied to be in W m-2 nm-1.

    Returns
    -------
    coefficients : Coefficients
        A band none of whose own samples is there is absent.
    missing : (n, 61) bool
        Samples that are missing; their coefficients are 0 ± 1.
    """
    # the archive's fluxes are float32, which is all that text and binary files agree in
    flux = samples.bp[:, _USED].astype(np.float32).astype(np.float64) * factors[0] / FLUX_UNIT
    error = samples.bp_error[:, _USED].astype(np.float64) * factors[1] / FLUX_UNIT * _ERROR_SCALE
    missing = ~(np.isfinite(flux) & np.isfinite(error)) | ~samples.has_bp[:, None]
    flux, error = np.where(missing, 0.0, flux), np.where(missing, 1.0, error).astype(np.float32)
    n = len(flux)
    one = np.ones(n, np.float32)

    def uncorrelated(size: int) -> NDArray[np.float32]:
        return np.zeros((n, size * (size - 1) // 2), np.float32)

    return (
        Coefficients(
            bp=np.ascontiguousarray(flux[:, _OF_BP]),
            rp=np.ascontiguousarray(flux[:, _OF_RP]),
            bp_error=np.ascontiguousarray(error[:, _OF_BP]),
            rp_error=np.ascontiguousarray(error[:, _OF_RP]),
            bp_correlation=uncorrelated(_OF_BP.size),
            rp_correlation=uncorrelated(_OF_RP.size),
            bp_standard_deviation=one,
            rp_standard_deviation=one.copy(),
            has_bp=np.asarray(~missing[:, _W_BP == 1.0].all(axis=1)),
            has_rp=np.asarray(~missing[:, _W_BP == 0.0].all(axis=1)),
        ),
        missing,
    )
