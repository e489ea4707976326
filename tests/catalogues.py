"""Small catalogues of label surveys with the columns, types and missing values of the real ones."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits

#: Gaia sources all catalogues are made of: identifier, place, kelvin, dex, dex.
N = 24
SOURCE_ID = 4_000_000_000_000_000_000 + 1_000_003 * np.arange(1, N + 1)
RA = 10.0 + 0.01 * np.arange(N)
DEC = 40.0 - 0.005 * np.arange(N)
TEFF = np.linspace(4200.0, 9000.0, N)
FEH = np.linspace(-1.5, 0.3, N)
LOGG = np.linspace(1.0, 4.5, N)


def gaia_source() -> dict[str, np.ndarray]:
    return {"source_id": SOURCE_ID[::-1], "ra": RA[::-1], "dec": DEC[::-1]}


def write_fits(path: Path, columns: dict[str, np.ndarray], units: dict[str, str] | None = None) -> Path:
    """A binary table in the first extension, its names as they are."""
    formats = {"f4": "E", "f8": "D", "i2": "I", "i4": "J", "i8": "K"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fits.verify.VerifyWarning)  # Hot Payne's [Fe/H]
        cards = [
            fits.Column(
                name,
                f"{values.dtype.itemsize}A" if values.dtype.kind == "S" else formats[values.dtype.str[1:]],
                unit=(units or {}).get(name),
                array=values,
            )
            for name, values in columns.items()
        ]
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(cards)]).writeto(path, overwrite=True)
    return path


def lamost(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of dr8_v2.0_LRS_stellar; source_ids of an earlier release, as text."""
    off = 0.1 / 3600.0  # arcsec
    return {
        "obsid": np.arange(N, dtype="i4"),
        "obsdate": np.full(N, b"2015-11-02", "S10"),
        "planid": np.full(N, b"HD000101N", "S20"),
        "spid": np.full(N, 3, "i2"),
        "fiberid": np.arange(1, N + 1, dtype="i2"),
        "ra": RA + off / np.cos(np.radians(DEC)),
        "dec": DEC + 0.0,
        "snrg": np.full(N, 50.0, "f4"),
        "snri": np.full(N, 60.0, "f4"),
        "snrr": np.full(N, 70.0, "f4"),
        "gaia_source_id": np.array([str(source + 7) for source in SOURCE_ID], "S20"),
        "teff": TEFF.astype("f4"),
        "teff_err": np.full(N, 30.0, "f4"),
        "logg": LOGG.astype("f4"),
        "logg_err": np.full(N, 0.05, "f4"),
        "feh": FEH.astype("f4"),
        "feh_err": np.full(N, 0.005, "f4"),
    } | changes


def specid(fibre: int) -> bytes:
    return f"20151102-HD000101N-03-{fibre:03d}".ljust(36).encode()


def hot_payne(fibres: list[int], teff: list[float]) -> dict[str, np.ndarray]:
    n = len(fibres)
    return {
        "SpecID": np.array([specid(fibre) for fibre in fibres], "S36"),
        "Teff": np.array(teff, "f4"),
        "e_Teff": np.full(n, 100.0, "f4"),
        "logg": np.full(n, 4.1, "f4"),
        "e_logg": np.full(n, 0.1, "f4"),
        "[Fe/H]": np.full(n, -0.1, "f4"),
        "e_[Fe/H]": np.full(n, 0.1, "f4"),
    }


def apogee(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of allStarLite-dr17-synspec_rev1, one of them a vector."""
    return {
        "APOGEE_ID": np.array([f"2M{number:016d}" for number in range(N)], "S18"),
        "SNR": np.full(N, 150.0, "f4"),
        "GAIAEDR3_SOURCE_ID": SOURCE_ID,
        "ASPCAPFLAG": np.zeros(N, "i8"),
        "STARFLAG": np.zeros(N, "i8"),
        "EXTRATARG": np.zeros(N, "i4"),
        "TEFF": (TEFF + 20).astype("f4"),
        "TEFF_ERR": np.full(N, 15.0, "f4"),
        "LOGG": LOGG.astype("f4"),
        "LOGG_ERR": np.full(N, 0.03, "f4"),
        "FE_H": (FEH + 0.05).astype("f4"),
        "FE_H_ERR": np.full(N, 0.03, "f4"),
    } | changes


def galah(release: int, **changes: np.ndarray) -> dict[str, np.ndarray]:
    names = {
        3: {"dr3_source_id": SOURCE_ID, "snr_c3_iraf": np.full(N, 80.0, "f4")},
        4: {"gaiadr3_source_id": SOURCE_ID, "snr_px_ccd3": np.full(N, 80.0, "f4")},
    }[release]
    return {
        "sobject_id": np.arange(N, dtype="i8"),
        **names,
        "teff": (TEFF - 30).astype("f4"),
        "e_teff": np.full(N, 90.0, "f4"),
        "logg": LOGG.astype("f4"),
        "e_logg": np.full(N, 0.15, "f4"),
        "fe_h": FEH.astype("f4"),
        "e_fe_h": np.full(N, 0.08, "f4"),
        "flag_sp": np.zeros(N, "i4"),
        "flag_fe_h": np.zeros(N, "i4"),
    } | changes


def where(rows: list[int], value: float, other: np.ndarray) -> np.ndarray:
    """A copy of a column with another value in some rows."""
    changed = other.copy()
    changed[rows] = value
    return changed
