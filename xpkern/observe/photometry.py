"""Infrared photometry: Vega magnitudes to flux (Eq. 5) and the rules on what counts (ZGR23 sections 2.3 and 2.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


#: What is looked for in a table; for each band the first that is there with its error wins.
COLUMNS = (
    BandColumns("J", "j_m", "j_msigcom"),
    BandColumns("H", "h_m", "h_msigcom"),
    BandColumns("Ks", "ks_m", "ks_msigcom"),  # as the Gaia archive has it
    BandColumns("Ks", "k_m", "k_msigcom"),  # as IRSA has it
    *(
        BandColumns(band, value.format(name), error.format(name), in_magnitudes)
        for band, name in (("W1", "w1"), ("W2", "w2"))
        for value, error, in_magnitudes in (
            ("flux_{}", "dflux_{}", False),  # unWISE
            ("{}_flux", "{}_dflux", False),
            ("{}mag", "{}mag_error", True),
            ("{}mpro", "{}sigmpro", True),  # AllWISE at IRSA
            ("{}mpro", "{}mpro_error", True),  # and in the Gaia archive
        )
    ),
)

#: Bands of 2MASS in the order of the letters of ``ph_qual``; the others are unWISE's.
TWOMASS_BANDS = ("J", "H", "Ks")


@dataclass(frozen=True)
class PhotometryCuts:
    """Which measurements count; None switches a cut off.

    A measurement must be positive, too, and have an error; a value that is missing passes no cut but ``norm_dg``.

    Attributes
    ----------
    twomass_quality : str or None
        Letters that a band's own letter in ``ph_qual`` may be.
    twomass_extended : bool or None
        Whether a match with an extended source (``ext_key`` is not empty) may count.
    twomass_norm_dg, unwise_norm_dg : float or None
        ``norm_dg`` [mag] from which on neighbours contaminate the measurement; missing means that there is none
        within 30 arcsec.
    unwise_separation : float or None
        Distance of the match [arcsec] (``separation``), below which it counts.
    unwise_fracflux, unwise_qf : float or None
        What must be exceeded by the part of the flux in the source's pixels that is its own, and by the part of good
        pixels.
    unwise_error : float or None
        Fractional error below which a flux counts.
    """

    twomass_quality: str | None = "A"
    twomass_extended: bool | None = False
    twomass_norm_dg: float | None = TWOMASS_CROWDING
    unwise_norm_dg: float | None = UNWISE_CROWDING
    unwise_separation: float | None = 0.25
    unwise_fracflux: float | None = 0.8
    unwise_qf: float | None = 0.8
    unwise_error: float | None = 0.2

    @classmethod
    def parse(cls, settings: Iterable[str]) -> PhotometryCuts:
        """Cuts from texts such as ``"unwise_qf=0.5"`` and ``"unwise_separation=off"``; the others are the usual ones.

        Raises
        ------
        InputError
            If there is no such cut, or it does not take such a value.
        """
        usual = {each.name: each.default for each in fields(cls)}
        changed: dict[str, Any] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or name not in usual:
                near = get_close_matches(name, usual, 1)
                hint = f"; did you mean {near[0]}?" if near else f": {', '.join(usual)}"
                raise InputError(f"{setting!r} is not NAME=VALUE of a cut{hint}", field="photometry_cut")
            changed[name] = None if text == "off" else _value_like(usual[name], name, text)
        return cls(**changed)


def _value_like(usual: object, name: str, text: str) -> object:
    """A text as a value of the same type as the usual one."""
    if isinstance(usual, str):
        return text
    try:
        return {"true": True, "false": False}[text] if isinstance(usual, bool) else float(text)
    except (KeyError, ValueError):
        wanted = "true or false" if isinstance(usual, bool) else "a number"
        raise InputError(f"{text!r} is neither off nor {wanted}", field=name) from None


#: How it begins what is said of a cut, or of the zero point of parallaxes, in place of its setting; then comes why.
NOT_APPLIED = "not applied: "

#: What is said of a cut of a survey of which there is no magnitude.
NO_MAGNITUDES = f"{NOT_APPLIED}no such magnitudes"


@dataclass(frozen=True)
class _Rule:
    """How a cut is made: column that it looks at (of one band), and what passes, by values and the cut's setting."""

    bands: tuple[str, ...]
    columns: tuple[str, ...]
    passes: Callable[[Any, Any], NDArray[np.bool_]]

    def column(self, table: SourceTable, band: str) -> str | None:
        """Which of its columns the table has, if any."""
        names = (name.format(band.lower()) for name in self.columns)
        return next((name for name in names if name in table), None)


_UNWISE_BANDS = tuple(band for band in BANDS if band not in TWOMASS_BANDS)

#: The cuts in the order in which they are made. ``unwise_error`` looks at no column of its own.
_RULES = {
    "twomass_extended": _Rule(TWOMASS_BANDS, ("ext_key",), lambda key, allowed: np.isnan(key) | allowed),
    # a missing norm_dg compares as false: there is no neighbour within 30 arcsec
    "twomass_norm_dg": _Rule(TWOMASS_BANDS, ("norm_dg",), lambda value, limit: ~(value >= limit)),
    "unwise_norm_dg": _Rule(_UNWISE_BANDS, ("norm_dg",), lambda value, limit: ~(value >= limit)),
    "unwise_separation": _Rule(_UNWISE_BANDS, ("unwise_separation", "separation"), lambda value, limit: value < limit),
    "unwise_fracflux": _Rule(_UNWISE_BANDS, ("fracflux_{}", "{}_fracflux"), lambda value, limit: value > limit),
    "unwise_qf": _Rule(_UNWISE_BANDS, ("qf_{}", "{}_qf"), lambda value, limit: value > limit),
}

#: Columns that say whether a measurement counts.
QUALITY_COLUMNS = (
    "ph_qual",
    *dict.fromkeys(
        name.format(band.lower()) for rule in _RULES.values() for name in rule.columns for band in rule.bands
    ),
)

#: Every column that this module may look at.
COLUMN_NAMES = (*(name for column in COLUMNS for name in (column.value, column.error)), *QUALITY_COLUMNS)


def check_photometry(table: SourceTable) -> None:
    """Refuse a table that says nothing of any infrared measurement.

    Raises
    ------
    InputError
        If it has neither a band nor ``norm_dg``; the message names what is looked for, and what is most like it.
    """
    if _columns_in(table) or "norm_dg" in table:
        return
    first = {column.band: f"{column.value} and {column.error}" for column in reversed(COLUMNS)}
    wanted = f"neither magnitudes of 2MASS ({first['J']}, ...) nor fluxes of unWISE ({first['W1']}, ...)"
    near = table.nearest([name for column in COLUMNS for name in (column.value, column.error)])
    found = f"the nearest columns are {', '.join(near)}" if near else table.content
    message = f"is no table of infrared photometry: it has {wanted}; {found}"
    raise InputError(message, file=table.name)


def infrared_flux(
    table: SourceTable,
    rows: np.ndarray,
    cuts: PhotometryCuts | None = None,
    removed: Counter[str] | None = None,
    bands: Collection[str] = BANDS,
) -> tuple[Float64, Float64]:
    """Infrared fluxes of some sources of a table.

    Parameters
    ----------
    table : SourceTable
        With any of :data:`COLUMN_NAMES`.
    rows : (n,) int
        Rows of the table; -1 for a source that it does not have.
    cuts : PhotometryCuts, optional
        The usual ones when not given. A cut whose column the table does not have is not made.
    removed : Counter, optional
        To this is added how many measurements each cut removes of those that the cuts before it let pass; under
        "no_positive_flux", those that are no measurements.
    bands : collection of str, optional
        Which to look for; all when not given.

    Returns
    -------
    flux, error : (n, 5) float64
        In the order of :data:`xpkern.grid.BANDS` [1e-18 W m-2 nm-1]; 0 and inf where missing or not to be used.

    Raises
    ------
    InputError
        If a band has no column of errors, or 2MASS no ``ph_qual``.
    """
    cuts = PhotometryCuts() if cuts is None else cuts
    removed = Counter() if removed is None else removed
    flux, error = np.zeros((len(rows), len(BANDS))), np.full((len(rows), len(BANDS)), np.inf)
    quality: NDArray[np.uint32] | None = None
    for column in _columns_in(table, bands):
        value, deviation = table.numbers(column.value, rows), table.numbers(column.error, rows)
        if column.in_magnitudes:
            band_flux = flux_of_magnitude(column.band, value)
            band_error = band_flux * (0.4 * np.log(10.0)) * deviation
        else:
            unit = flux_of_magnitude(column.band, NANOMAGGY_MAGNITUDE)
            band_flux, band_error = unit * value, unit * deviation
        usable = np.isfinite(band_flux) & (band_flux > 0) & np.isfinite(band_error) & (band_error > 0)
        removed["no_positive_flux"] += int(np.count_nonzero(np.isfinite(value) & ~usable))

        def keep(cut: str, passes: NDArray[np.bool_], usable: NDArray[np.bool_] = usable) -> None:
            removed[cut] += int(np.count_nonzero(usable & ~passes))
            usable &= passes

        if column.band in TWOMASS_BANDS and cuts.twomass_quality is not None:
            if quality is None:
                quality = _quality_letters(table, rows)
            letters = quality[:, TWOMASS_BANDS.index(column.band), None]
            wanted = np.array([ord(letter) for letter in cuts.twomass_quality], np.uint32)
            keep("twomass_quality", np.asarray((letters == wanted).any(axis=1)))
        for cut, rule in _RULES.items():
            limit, name = getattr(cuts, cut), rule.column(table, column.band)
            if column.band in rule.bands and limit is not None and name is not None:
                keep(cut, rule.passes(table.numbers(name, rows), limit))
        if column.band not in TWOMASS_BANDS and cuts.unwise_error is not None:
            keep("unwise_error", band_error < cuts.unwise_error * band_flux)
        index = BANDS.index(column.band)
        flux[usable, index], error[usable, index] = band_flux[usable], band_error[usable]
    return flux, error


def cuts_made(table: SourceTable, cuts: PhotometryCuts, bands: Collection[str] = BANDS) -> dict[str, object]:
    """Each cut's setting, "off", or why it cannot be made with the columns of a table, for some of its bands."""
    bands = [column.band for column in _columns_in(table, bands)]
    made: dict[str, object] = {}
    for cut, setting in asdict(cuts).items():
        survey = TWOMASS_BANDS if cut.startswith("twomass") else _UNWISE_BANDS
        rule = _RULES.get(cut)
        if not set(bands) & set(survey):
            made[cut] = NO_MAGNITUDES
        elif setting is None:
            made[cut] = "off"
        elif rule is not None and not any(rule.column(table, band) for band in bands if band in rule.bands):
            made[cut] = f"{NOT_APPLIED}no column {rule.columns[0].format(survey[0].lower())}"
        else:
            made[cut] = setting
    return made


class Infrared:
    """What one or several tables tell of the infrared bands of sources: the first that has some of 2MASS gives 2MASS,
    and the first that has some of unWISE gives that.

    The cuts on a measurement look at columns of its own table. ``norm_dg`` tells of the source: where that table lacks
    it, another one's counts.

    Parameters
    ----------
    tables : sequence of SourceTable
    cuts : PhotometryCuts

    Attributes
    ----------
    tables : list of SourceTable
        Those that give a band.
    settings : dict of str to object
        Each cut as :func:`cuts_made` says it; nothing where there is no table.
    """

    def __init__(self, tables: Sequence[SourceTable], cuts: PhotometryCuts) -> None:
        self._cuts = cuts
        self._parts: list[tuple[SourceTable, list[str]]] = []
        crowding = next((table for table in tables if "norm_dg" in table), None)
        surveys = (TWOMASS_BANDS, _UNWISE_BANDS)
        first = [next((table for table in tables if _columns_in(table, survey)), None) for survey in surveys]
        for table in dict.fromkeys(tables):  # the same one may be given twice
            bands = [band for survey, its in zip(surveys, first, strict=True) if its is table for band in survey]
            if bands:
                if crowding is not None and "norm_dg" not in table:
                    rows = crowding.rows_of(table.source_id)
                    table = table.with_column("norm_dg", crowding.numbers("norm_dg", rows))
                self._parts.append((table, bands))
        self.tables = [table for table, _ in self._parts]
        made = [cuts_made(table, cuts, bands) for table, bands in self._parts] or [
            cuts_made(table, cuts) for table in tables[:1]
        ]
        self.settings: dict[str, object] = {}
        for settings in made:
            for cut, setting in settings.items():
                if self.settings.get(cut, NO_MAGNITUDES) == NO_MAGNITUDES:
                    self.settings[cut] = setting

    def flux(self, source_id: NDArray[np.int64], removed: Counter[str] | None = None) -> tuple[Float64, Float64]:
        """Fluxes and errors (n, 5) of some sources, as :func:`infrared_flux`; -1 is no source."""
        flux, error = np.zeros((len(source_id), len(BANDS))), np.full((len(source_id), len(BANDS)), np.inf)
        for table, bands in self._parts:
            of_table, its_error = infrared_flux(table, table.rows_of(source_id), self._cuts, removed, bands)
            own = np.isin(BANDS, bands)
            flux[:, own], error[:, own] = of_table[:, own], its_error[:, own]
        return flux, error


def _columns_in(table: SourceTable, bands: Collection[str] = BANDS) -> list[BandColumns]:
    """Where the table has each of some bands that it has, in the order of the bands."""
    there = [column for column in COLUMNS if column.value in table and column.band in bands]
    with_error = [column for column in there if column.error in table]
    found: dict[str, BandColumns] = {}
    for column in (*with_error, *there):
        found.setdefault(column.band, column)
    return sorted(found.values(), key=lambda column: BANDS.index(column.band))


def _quality_letters(table: SourceTable, rows: np.ndarray) -> NDArray[np.uint32]:
    """Letters of the bands of 2MASS, (n, 3), as Unicode has them; 0 where there is none."""
    if "ph_qual" not in table:
        raise InputError("2MASS magnitudes need this column of quality letters", file=table.name, field="ph_qual")
    texts = table.texts("ph_qual", rows).astype(f"U{len(TWOMASS_BANDS)}")
    return texts.view(np.uint32).reshape(len(rows), len(TWOMASS_BANDS))  # compared twice as fast as texts
