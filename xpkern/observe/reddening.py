"""Reddening of stars from the three-dimensional dust map Bayestar19 (Green et al. 2019), through the package dustmaps.

A star's distance is known as well as its parallax, so that E is averaged over distances: of draws from the parallax's
error (normal, within 5 sigma, distance no more than 10 Mpc) times the samples of the map,

    E = mean over draws and samples,   sigma^2 = variance over both + 0.03^2 + (0.1 E)^2,

as the code of ZGR23 does it. Where the map has nothing (south of declination -30 deg) and the star is more than 400 pc
from the Galactic plane, by its parallax plus two sigma, all the dust of its sightline lies before it, and E is that of
Schlegel, Finkbeiner & Davis (1998), with the last two terms as its error. Elsewhere E is not known.

E is in the unit of Bayestar19, close to E(B-V) [mag]; that of SFD, which is E(B-V), is taken as it is.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from xpkern.catalog.pending import PendingFile
from xpkern.engine.contract import Float64
from xpkern.errors import InputError, XpkernError
from xpkern.observe.gaia_source import SourceTable, share_of

#: Columns that are needed of gaia_source.
COLUMNS = ("ra", "dec", "parallax", "parallax_error")

#: Part of the error that is the same for all stars [mag], and that which grows with E.
FLOOR, FLOOR_SHARE = 0.03, 0.1

#: Height [kpc] beyond which a star has all the dust before it.
_ABOVE_THE_DUST = 0.4

#: Largest deviation of a parallax drawn [sigma], and smallest parallax of a distance [mas].
_WIDEST, _SMALLEST_PARALLAX = 5.0, 1e-4

#: Distances drawn for a star.
DRAWS = 64

#: Stars asked for at once.
_BLOCK = 4096

_INSTALL = 'pip install "xpkern[dust]"'


def _fetch_command(module: str) -> str:
    """The command that downloads a map."""
    return f'python -c "import dustmaps.{module} as map; map.fetch()"'


@dataclass
class DustMaps:
    """Bayestar19 and SFD, each loaded when it is first needed.

    Attributes
    ----------
    bayestar : path, optional
        ``bayestar2019.h5``; where dustmaps keeps it when not given.
    sfd : path, optional
        Folder with ``SFD_dust_4096_ngp.fits`` and ``_sgp.fits``; likewise.
    samples : int, optional
        Samples of Bayestar19 that are loaded, all of them when not given; the whole map takes gigabytes of memory.
    """

    bayestar: Path | None = None
    sfd: Path | None = None
    samples: int | None = None
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    def bayestar_samples(self, coordinates: Any) -> Float64:
        """Samples of E (n, samples) at places with distances; NaN outside the map."""
        return self._query("bayestar", lambda found: found.query(coordinates, mode="samples"))

    def sfd_reddening(self, coordinates: Any) -> Float64:
        """E(B-V) of whole sightlines, (n,)."""
        return self._query("sfd", lambda found: found.query(coordinates))

    def _query(self, name: str, ask: Callable[[Any], Any]) -> Float64:
        # dustmaps prints as it loads, and warns of a configuration that need not be there
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if name not in self._loaded:
                self._loaded[name] = getattr(self, f"_load_{name}")()
            return np.asarray(ask(self._loaded[name]), dtype=np.float64)

    def _load_bayestar(self) -> Any:
        dustmaps = _dustmaps("bayestar")
        path = self.bayestar or Path(dustmaps.data_dir()) / "bayestar" / "bayestar2019.h5"
        _require(path, "bayestar", "Bayestar19", "--map FILE")
        try:
            return dustmaps.BayestarQuery(map_fname=str(path), max_samples=self.samples)
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise InputError(f"is no map of Bayestar19 ({error})", file=str(path)) from error

    def _load_sfd(self) -> Any:
        dustmaps = _dustmaps("sfd")
        folder = self.sfd or Path(dustmaps.data_dir()) / "sfd"
        for pole in ("ngp", "sgp"):
            _require(folder / f"SFD_dust_4096_{pole}.fits", "sfd", "SFD", "--sfd FOLDER")
        try:
            return dustmaps.SFDQuery(map_dir=str(folder))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"holds no maps of SFD ({error})", file=str(folder)) from error


def _dustmaps(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"dustmaps.{module}")
    except ImportError as error:
        raise XpkernError(f"maps of dust are read by the package dustmaps ({error}): {_INSTALL}") from None


def _require(path: Path, module: str, name: str, option: str) -> None:
    if not path.is_file():
        where = f"download it by {_fetch_command(module)}, or say where it is with {option}"
        raise InputError(f"the map {name} is not there: {where}", file=str(path))


@dataclass
class Reddening:
    """E of n stars.

    Attributes
    ----------
    source_id : (n,) int64
    ext, ext_err : (n,) float64
        E and its standard error [mag]; NaN where unknown.
    origin : (n,) str
        "bayestar19", "sfd", or why it is unknown.
    """

    source_id: NDArray[np.int64]
    ext: Float64
    ext_err: Float64
    origin: NDArray

    def __len__(self) -> int:
        return len(self.source_id)

    @property
    def counts(self) -> dict[str, int]:
        """Stars of each origin."""
        origins, numbers = np.unique(self.origin, return_counts=True)
        return dict(zip(origins.tolist(), numbers.tolist(), strict=True))

    def write(self, path: Path) -> None:
        """Write source_id, ext, ext_err and origin as a FITS table; it appears once it is complete.

        Raises
        ------
        InputError
            If the name does not end in .fits, or its folder does not exist.
        """
        from astropy.table import Table

        check_name(path)
        columns = {name: getattr(self, name) for name in ("source_id", "ext", "ext_err", "origin")}
        table = Table(columns, meta={"comments": ["E in the unit of Bayestar19, close to E(B-V); SFD as it is"]})
        table["ext"].unit = table["ext_err"].unit = "mag"
        with PendingFile(path) as partial:
            table.write(partial, format="fits")


def check_name(path: Path) -> None:
    """Raise an InputError if a table of reddening cannot have this name."""
    if path.suffix != ".fits":
        raise InputError("the name of a table of reddening must end in .fits", file=str(path))


def reddening(
    gaia_source: Any,
    maps: DustMaps,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    on_stars: Callable[[int], object] | None = None,
) -> Reddening:
    """E of all sources in a table, and its error.

    The distances drawn for a star depend on its source_id and the seed alone: not on the other stars, nor their order.
    They divide the parallax's distribution into parts of one probability, one draw in each.

    Parameters
    ----------
    gaia_source : path or table
        ``source_id``, ``ra``, ``dec`` [deg], ``parallax``, ``parallax_error`` [mas], as
        :meth:`xpkern.observe.gaia_source.SourceTable.of` takes it.
    maps : DustMaps
    seed : int
    draws : int
        Distances drawn for a star.
    on_stars : callable, optional
        Called with the number of stars of each block that is done.

    Raises
    ------
    InputError
        If the table lacks a column, a map that is needed is not there or cannot be read, or ``draws`` is not positive.
    XpkernError
        If dustmaps is not installed.
    """
    if draws < 1:
        raise InputError(f"{draws} draws are too few", field="draws")
    sources = SourceTable.of(gaia_source, "gaia_source", COLUMNS)
    sources.require(COLUMNS)
    n = len(sources)
    result = Reddening(sources.source_id, np.full(n, np.nan), np.full(n, np.nan), np.full(n, "", dtype="U24"))
    for first in range(0, n, _BLOCK):
        rows = np.arange(first, min(first + _BLOCK, n))
        ra, dec, parallax, error = (sources.numbers(name, rows) for name in COLUMNS)
        placed = np.isfinite(ra) & (np.abs(dec) <= 90.0)
        usable = placed & np.isfinite(parallax) & (error > 0)
        result.origin[rows[placed & ~usable]] = "no parallax"
        result.origin[rows[~placed]] = "no position"
        if usable.any():
            _block(result, rows[usable], ra[usable], dec[usable], parallax[usable], error[usable], maps, seed, draws)
        if on_stars is not None:
            on_stars(len(usable))
    result.ext_err[:] = np.sqrt(result.ext_err**2 + FLOOR**2 + (FLOOR_SHARE * result.ext) ** 2)
    return result


def _block(
    result: Reddening,
    rows: NDArray[np.intp],
    ra: Float64,
    dec: Float64,
    parallax: Float64,
    error: Float64,
    maps: DustMaps,
    seed: int,
    draws: int,
) -> None:
    """Set E of some rows, and its error without floors."""
    from astropy import units
    from astropy.coordinates import SkyCoord

    place = SkyCoord(ra * units.deg, dec * units.deg).galactic
    quantile = (np.arange(draws) + share_of(result.source_id[rows], seed)[:, None]) / draws
    deviation = np.clip(ndtri(quantile), -_WIDEST, _WIDEST)
    distance = 1.0 / np.maximum(parallax[:, None] + error[:, None] * deviation, _SMALLEST_PARALLAX)
    longitude, latitude = (np.repeat(angle.deg, draws) * units.deg for angle in (place.l, place.b))
    drawn = maps.bayestar_samples(SkyCoord(longitude, latitude, distance.ravel() * units.kpc, frame="galactic"))
    drawn = drawn.reshape(len(rows), -1)
    result.ext[rows], result.ext_err[rows] = drawn.mean(axis=1), drawn.std(axis=1)
    inside = np.isfinite(result.ext[rows])
    result.origin[rows[inside]] = "bayestar19"
    result.origin[rows[~inside]] = "outside, near the plane"
    result.ext_err[rows[~inside]] = np.nan

    nearest = 1.0 / np.maximum(parallax + 2.0 * error, _SMALLEST_PARALLAX)
    beyond = ~inside & (np.abs(np.sin(place.b.rad)) * nearest > _ABOVE_THE_DUST)
    if beyond.any():
        result.ext[rows[beyond]], result.ext_err[rows[beyond]] = maps.sfd_reddening(place[beyond]), 0.0
        result.origin[rows[beyond]] = "sfd"
