"""What astropy, pandas and masked arrays add to numbers: units, and values that are missing."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from xpkern.errors import InputError

#: Units in which fluxes, temperatures and parallaxes are meant wherever arrays are given.
FLUX, TEFF, PARALLAX = "1e-18 W m-2 nm-1", "1e3 K", "mas"


def numbers_in(values: Any, unit: str | None, field: str) -> Any:
    """Numbers in a unit, NaN where they are masked; what has neither a unit nor a mask comes back as it is.

    Parameters
    ----------
    values : array_like
        An astropy Quantity or Column, a masked array and a pandas Series say more than their numbers.
    unit : str, optional
        In which the numbers are meant; when not given, theirs is not looked at.
    field : str
        What they are called, for the message.

    Raises
    ------
    InputError
        If they have a unit of something else.
    """
    if hasattr(values, "__cuda_array_interface__"):
        return values
    if hasattr(values, "isna") and hasattr(values, "to_numpy"):  # pandas
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    factor = 1.0 if unit is None else factor_to(unit, getattr(values, "unit", None), field)
    if isinstance(values, np.ma.MaskedArray):
        data, mask = np.asarray(np.ma.getdata(values)), np.ma.getmaskarray(values)
    elif hasattr(values, "unmasked"):  # astropy's own kind of masks
        data, mask = np.asarray(values.unmasked), np.asarray(values.mask)
    elif factor != 1.0:
        return np.asarray(values) * factor
    else:
        return values
    if mask.any():
        data = np.where(mask, np.nan, data)
    return data if factor == 1.0 else data * factor


def factor_to(unit: str, given: Any, field: str, file: str | None = None, *, must_be_understood: bool = False) -> float:
    """By what numbers in a unit that is given are multiplied to be in ``unit``; 1 if none is given that is understood.

    Raises
    ------
    InputError
        If it is a unit of something else; with ``must_be_understood``, also if it is none that is known.
    """
    if str(given or "").strip() in ("", unit):
        return 1.0
    from astropy import units

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spellings that are discouraged, but understood
        its_unit = units.Unit(given, parse_strict="silent")
    if isinstance(its_unit, units.UnrecognizedUnit):
        if must_be_understood:
            raise InputError(f"its unit, {given}, is not understood: name one like {unit}", file=file, field=field)
        return 1.0
    try:
        return float(its_unit.to(unit))
    except (ValueError, TypeError):
        raise InputError(f"its unit is {given}, which is no {unit}", file=file, field=field) from None
