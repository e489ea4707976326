"""Catalogues of spectroscopic surveys that labels come from: their columns, missing values, flags and usual cuts.

=============  ======================================================================================================
LAMOST         DR8 v2.0, low resolution, stars of types A, F, G, K: ``dr8_v2.0_LRS_stellar.fits`` or ``.csv``
Hot Payne      Xiang et al. (2022), O, B and A stars of LAMOST DR6, with the columns ZGR23's code reads: ``SpecID``,
               ``Teff``, ``e_Teff``, ``logg``, ``e_logg``, ``[Fe/H]``, ``e_[Fe/H]``, and ``RA``, ``Dec`` if it has them
APOGEE         DR17: ``allStarLite-dr17-synspec_rev1.fits``, or ``allStar``
GALAH          DR3: ``GALAH_DR3_main_allstar_v2.fits``; DR4: ``galah_dr4_allstar_240705.fits``
table          source_id, teff, feh, logg, their errors, and perhaps survey: as :func:`xpkern.train.labels.read_labels`
=============  ======================================================================================================

Temperatures are in kelvin in all four surveys. LAMOST marks what it could not measure by -9999, APOGEE by NaN, -999.99
or -9999.99, GALAH by NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from xpkern.train.cuts import CUTS, Cut


@dataclass(frozen=True)
class Mask:
    """Bits of a survey's flags that a star must not have.

    Attributes
    ----------
    name : str
        What limits call it, and its column in this package.
    bits : int
        Forbidden bits; -1 forbids any.
    meaning : str
        Their names in the survey's documentation.
    """

    name: str
    bits: int
    meaning: str

    def passed(self, flags: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which stars have none of the bits, (n,)."""
        return (flags & np.int64(self.bits)) == 0

    def __str__(self) -> str:
        return f"{self.name} == 0" if self.bits == -1 else f"{self.name} & {self.bits} == 0 ({self.meaning})"


def _bits(**names: int) -> tuple[int, str]:
    """The sum of some bits by number, and their names."""
    return sum(1 << bit for bit in names.values()), ", ".join(names)


#: Signal-to-noise ratio of a survey that tells one number for a spectrum.
SNR = Cut("snr", ("snr",), is_least=True)


@dataclass(frozen=True)
class Survey:
    """One release of a catalogue.

    Attributes
    ----------
    name, release : str
    columns : mapping of str to tuple of str
        Our names, and the names (in lower case) the column may have in the catalogue.
    optional : frozenset of str
        Those of our names that may be missing.
    cuts : mapping of str to (Cut, float)
        Usual limits by name.
    masks : tuple of Mask
    best : str
        Of several spectra of a star, that with the most of this is kept.
    id_release : str
        Gaia release of its source_ids.
    """

    name: str
    release: str
    columns: Mapping[str, tuple[str, ...]]
    optional: frozenset[str] = frozenset()
    cuts: Mapping[str, tuple[Cut, float]] = field(default_factory=dict)
    masks: tuple[Mask, ...] = ()
    best: str = ""
    id_release: str = "Gaia DR3"


#: Section 2.5 of ZGR23: kK, dex, dex.
_ERROR_CUTS = {name: (CUTS[name], 0.5) for name in ("teff_err", "feh_err", "logg_err")}

_LAMOST = Survey(
    name="lamost",
    release="DR8 v2.0",
    columns={
        "source_id": ("gaia_source_id",),
        "ra": ("ra",),
        "dec": ("dec",),
        "obsdate": ("obsdate",),
        "planid": ("planid",),
        "spid": ("spid",),
        "fiberid": ("fiberid",),
        "snr_g": ("snrg",),
        "snr_r": ("snrr",),
        "snr_i": ("snri",),
        **{name: (name,) for name in ("teff", "teff_err", "feh", "feh_err", "logg", "logg_err")},
    },
    optional=frozenset({"source_id", "ra", "dec", "obsdate", "planid", "spid", "fiberid"}),
    cuts={**{name: (CUTS[name], 20.0) for name in ("snr_g", "snr_r", "snr_i")}, **_ERROR_CUTS},
    best="snr_g",
    id_release="Gaia DR2 (so says the documentation of DR8 v1.0)",
)

#: The same after ``xpkern match``, which gives each spectrum the source that is nearest.
_LAMOST_MATCHED = replace(
    _LAMOST,
    release=f"{_LAMOST.release}, matched",
    columns={**_LAMOST.columns, "source_id": ("source_id",)},
    optional=_LAMOST.optional - {"source_id"},
    id_release="Gaia DR3",
)

_HOT_PAYNE = Survey(
    name="hot_payne",
    release="Xiang et al. 2022",
    columns={
        "specid": ("specid",),
        "ra": ("ra", "raj2000", "radeg"),
        "dec": ("dec", "dej2000", "dedeg"),
        "teff": ("teff",),
        "teff_err": ("e_teff",),
        "feh": ("[fe/h]",),
        "feh_err": ("e_[fe/h]",),
        "logg": ("logg",),
        "logg_err": ("e_logg",),
    },
    optional=frozenset({"ra", "dec"}),
    cuts=_ERROR_CUTS,
)

#: https://www.sdss4.org/dr17/irspec/apogee-bitmasks
_APOGEE = Survey(
    name="apogee",
    release="DR17",
    columns={
        "source_id": ("gaiaedr3_source_id",),
        "snr": ("snr",),
        "aspcapflag": ("aspcapflag",),
        "starflag": ("starflag",),
        "extratarg": ("extratarg",),
        "teff": ("teff",),
        "teff_err": ("teff_err",),
        "feh": ("fe_h",),
        "feh_err": ("fe_h_err",),
        "logg": ("logg",),
        "logg_err": ("logg_err",),
    },
    optional=frozenset({"extratarg"}),
    cuts={"snr": (SNR, 50.0), **_ERROR_CUTS},
    masks=(
        Mask("aspcapflag", *_bits(M_H_BAD=19, STAR_BAD=23, CHI2_BAD=24, SN_BAD=27, NO_ASPCAP_RESULT=31)),
        Mask("starflag", *_bits(VERY_BRIGHT_NEIGHBOR=3, LOW_SNR=4, SUSPECT_BROAD_LINES=17, MULTIPLE_SUSPECT=21)),
        Mask("extratarg", *_bits(DUPLICATE=4)),
    ),
    best="snr",
)


def _galah(release: str, source_id: str, snr: str, flags: tuple[str, ...]) -> Survey:
    return Survey(
        name="galah",
        release=release,
        columns={
            "source_id": (source_id,),
            "snr": (snr,),
            **{name: (name,) for name in flags},
            "teff": ("teff",),
            "teff_err": ("e_teff",),
            "feh": ("fe_h",),
            "feh_err": ("e_fe_h",),
            "logg": ("logg",),
            "logg_err": ("e_logg",),
        },
        cuts={"snr": (SNR, 30.0), **_ERROR_CUTS},
        masks=tuple(Mask(name, -1, "any") for name in flags),
        best="snr",
    )


#: Releases of each survey that can be read, told apart by the column with Gaia's source_id. GALAH asks to look at
#: flag_fe_h in DR3 and not to in DR4.
SURVEYS: dict[str, tuple[Survey, ...]] = {
    "lamost": (_LAMOST_MATCHED, _LAMOST),
    "hot_payne": (_HOT_PAYNE,),
    "apogee": (_APOGEE,),
    "galah": (
        _galah("DR3", "dr3_source_id", "snr_c3_iraf", ("flag_sp", "flag_fe_h")),
        _galah("DR4", "gaiadr3_source_id", "snr_px_ccd3", ("flag_sp",)),
    ),
}

#: A table of one's own, whose columns have our names already.
TABLE = "table"


def limit_names() -> list[str]:
    """Every name that a limit may have, with its survey."""
    return [
        f"{survey}.{name}"
        for survey, releases in SURVEYS.items()
        for name in dict.fromkeys(
            name for release in releases for name in (*release.cuts, *(mask.name for mask in release.masks))
        )
    ]


#: Numbers at and below this are the surveys' ways to say that there is none.
_MISSING = -999.0


def number(values: NDArray) -> NDArray[np.float64]:
    """A column as numbers (n,), NaN where the survey has none."""
    numbers = np.ma.filled(np.ma.asarray(values).astype(np.float64), np.nan)
    return np.where(np.isfinite(numbers) & (numbers > _MISSING), numbers, np.nan)


def flags(values: NDArray) -> NDArray[np.int64]:
    """A column of flags as bits (n,); every bit set where it has none."""
    filled = np.ma.asarray(values)
    if filled.dtype.kind == "f":
        filled = np.ma.masked_invalid(filled)
    return np.asarray(np.ma.filled(filled.astype(np.int64), -1))


def source_ids(values: NDArray) -> NDArray[np.int64]:
    """A column of Gaia's identifiers (n,), numbers or text; 0 where it has none."""
    filled = np.ma.filled(np.ma.asarray(values), 0 if np.ma.asarray(values).dtype.kind in "iu" else "")
    if filled.dtype.kind not in "iu":
        digits = (str(text.decode("ascii", "replace") if isinstance(text, bytes) else text).strip() for text in filled)
        filled = np.array([int(text) if text.isdigit() else 0 for text in digits], np.int64)
    return np.maximum(filled.astype(np.int64), 0)


def specids(columns: Mapping[str, NDArray]) -> list[str]:
    """Names (n) of LAMOST's spectra as Hot Payne writes them: date, plate, spectrograph, fibre."""
    return [
        f"{_text(date).replace('-', '')}-{_text(plate)}-{int(spectrograph):02d}-{int(fibre):03d}"
        for date, plate, spectrograph, fibre in zip(
            *(columns[name] for name in ("obsdate", "planid", "spid", "fiberid")), strict=True
        )
    ]


def _text(value: object) -> str:
    return (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip()


def texts(values: NDArray) -> list[str]:
    """A column of text (n)."""
    return ["" if value is None else _text(value) for value in np.ma.filled(values, "")]
