"""Maps in FITS: tables of HEALPix pixels that healpy, astropy and TOPCAT read.

Each of the tables MEAN, DIFFERENCE (of ext: a bin less the one before it, the first less nothing), ERROR, STARS and
NSIDE has a row for every pixel (PIXEL, nested, Galactic, of the finest nside) and a column for every distance bin; BINS
has a row for every distance bin, OUTCOMES one for everything that may become of a star. Equal maps give equal bytes.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile
from xpkern.errors import InputError
from xpkern.maps.cube import SkyCube, Tile
from xpkern.maps.settings import OUTCOMES, MapCuts, MapSettings
from xpkern.version import __version__

#: FITS files are made of blocks of this size [B].
_BLOCK = 2880

#: Tables of pixels: their name, attribute of a tile, data type in the file.
_TABLES = (("MEAN", "value", ">f4"), ("ERROR", "error", ">f4"), ("STARS", "stars", ">i4"), ("NSIDE", "nside", ">i2"))

#: What FITS calls these data types.
_FORMATS = {">f4": "E", ">i4": "J", ">i2": "I"}

#: Keyword of each cut's limit.
_CUT_KEYWORDS = {
    "misfit": "CUTMISF",
    "quality_flags": "CUTFLAGS",
    "confidence": "CUTCONF",
    "value": "CUTVALUE",
    "parallax_error": "CUTPLX",
    "error": "CUTERROR",
}

#: Keyword of each attribute, and what it is.
_ATTRIBUTES = {
    "model_digest": ("MODEL", "digest of the model of the catalogue"),
    "catalog_digest": ("CATALOG", "digest of columns read"),
    "positions": ("POSITION", "where the stars' places are from"),
    "misfit": ("MISFIT", "what is below the limit of that name"),
    "not_applied": ("NOTCUT", "cuts that lack a column"),
}

#: Characters of a card that are left for a text and its comment.
_ROOM = 64

#: Columns of BINS beside NEAR and FAR: data type, whether in the unit of the quantity, meaning.
_PER_BIN = {
    "stars": (">i8", False, "stars used"),
    "pixels": (">i8", False, "coarsest pixels with enough stars, over which the following are means"),
    "mean": (">f8", True, "mean"),
    "cut": (">f8", True, "its change by the cut on the error"),
    "weights": (">f8", True, "its change by weights 1 / error^2"),
    "scatter": (">f8", True, "its change by as much scatter of 1 / parallax again"),
}


def write_map(
    path: Path,
    settings: MapSettings,
    tiles: Iterable[Tile],
    rows: int,
    *,
    per_bin: Mapping[str, NDArray[Any]],
    outcomes: Mapping[str, int],
    attributes: Mapping[str, str],
) -> None:
    """Write a map tile by tile; the file appears once it is complete.

    Parameters
    ----------
    path : Path
    settings : MapSettings
    tiles : iterable of Tile
        Their pixels increase.
    rows : int
        Pixels of all tiles.
    per_bin, outcomes, attributes : mapping
        As those of :class:`xpkern.maps.cube.SkyCube`.
    """
    tables = list(_TABLES)
    if settings.quantity == "ext":
        tables.insert(1, ("DIFFERENCE", "difference", ">f4"))
    with PendingFile(path) as partial, open(partial, "wb") as stream:
        _write_primary(stream, settings, outcomes, attributes)
        starts, records = [], []
        for name, _, kind in tables:
            record = np.dtype([("PIXEL", ">i4"), ("bins", kind, (settings.bins,))])
            stream.write(_header_of_pixels(name, kind, rows, settings))
            starts.append(stream.tell())
            records.append(record)
            stream.seek(starts[-1] + rows * record.itemsize)
            stream.write(bytes(-stream.tell() % _BLOCK))
        end = stream.tell()
        for tile in tiles:
            for number, (_, attribute, _) in enumerate(tables):
                part = np.empty(len(tile.pixel), records[number])
                part["PIXEL"] = tile.pixel
                part["bins"] = difference(tile.value) if attribute == "difference" else getattr(tile, attribute)
                stream.seek(starts[number])
                stream.write(part.tobytes())
                starts[number] = stream.tell()
        stream.seek(end)
        _write_table(stream, "BINS", _table_of_bins(settings, per_bin), settings.unit)
        counts = [(name, outcomes.get(name, 0)) for name in OUTCOMES]
        _write_table(stream, "OUTCOMES", np.array(counts, [("OUTCOME", "S32"), ("STARS", ">i8")]), "")


def difference(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """Value of each distance bin less that of the one before it, of the first less 0; (n, bins) like ``value``."""
    return np.diff(value, axis=1, prepend=np.float32(0))


def read_map(path: str | os.PathLike[str]) -> SkyCube:
    """Read a map that :func:`write_map` wrote.

    Raises
    ------
    InputError
        If the file is not there, or is no such map.
    """
    from astropy.io import fits

    path = Path(path)
    if not path.is_file():
        raise InputError("is not there" if not path.exists() else "is no file", file=str(path))
    try:
        with warnings.catch_warnings(), fits.open(path, memmap=True) as file:
            warnings.simplefilter("error")  # of what is truncated or damaged
            return _cube_of(file)
    except InputError as error:
        raise InputError(error.message, file=str(path), field=error.field) from None
    except (OSError, KeyError, ValueError, TypeError, IndexError, Warning) as error:
        reason = str(error).strip("'\"") or type(error).__name__
        raise InputError(f"is no map of `xpkern map` ({reason})", file=str(path)) from error


def _cube_of(file: Any) -> SkyCube:
    header = file[0].header
    if "QUANTITY" not in header or "MEAN" not in file:
        raise InputError("is no map of `xpkern map`: it has no table MEAN with a QUANTITY")
    table = file["BINS"].data
    cuts = {name: header.get(keyword, "off") for name, keyword in _CUT_KEYWORDS.items()}
    off = {name: -math.inf if name == "confidence" else math.inf for name in cuts}
    settings = MapSettings(
        quantity=header["QUANTITY"],
        estimate=header["ESTIMATE"],
        edges=(*(float(edge) for edge in table["NEAR"]), float(table["FAR"][-1])),
        nsides=tuple(int(text) for text in header["NSIDES"].split()),
        min_stars=header["MINSTARS"],
        cuts=MapCuts(**{name: off[name] if limit == "off" else float(limit) for name, limit in cuts.items()}),
    )
    columns = {}
    for name, attribute, kind in _TABLES:
        record = np.dtype([("PIXEL", ">i4"), ("bins", kind, (settings.bins,))])
        rows = np.asarray(file[name].data).view(np.ndarray)
        if rows.dtype.itemsize != record.itemsize:
            raise InputError(f"has not {settings.bins} distance bins", field=name)
        columns[attribute] = rows.view(record)["bins"].astype(np.dtype(kind).newbyteorder("="))
        columns["pixel"] = rows.view(record)["PIXEL"].astype(np.int64)
    return SkyCube(
        settings,
        Tile(**columns),
        {name: np.array(table[name.upper()]) for name in _PER_BIN},
        {row["OUTCOME"]: int(row["STARS"]) for row in file["OUTCOMES"].data},
        {name: header[keyword] for name, (keyword, _) in _ATTRIBUTES.items() if keyword in header},
    )


def _write_primary(
    stream: BinaryIO, settings: MapSettings, outcomes: Mapping[str, int], attributes: Mapping[str, str]
) -> None:
    from astropy.io import fits

    header = fits.PrimaryHDU().header
    header["CREATOR"] = (f"xpkern {__version__}", "software")
    header["QUANTITY"] = (settings.quantity, "what is mapped")
    header["BUNIT"] = (settings.unit, "its unit")
    header["ESTIMATE"] = (settings.estimate, "of the stars of a cell")
    header["NSIDES"] = (" ".join(map(str, settings.nsides)), "finest first")
    header["MINSTARS"] = (settings.min_stars, "stars that a cell must have")
    for name, limit in settings.limits.as_dict().items():
        header[_CUT_KEYWORDS[name]] = (limit if math.isfinite(limit) else "off", f"limit of {name}")
    header["USED"] = (outcomes.get("used", 0), "stars used; OUTCOMES counts the others")
    for name, (keyword, meaning) in _ATTRIBUTES.items():
        if value := attributes.get(name):
            header[keyword] = (value, meaning if len(value) + len(meaning) < _ROOM else "")
    stream.write(header.tostring().encode("ascii"))


def _header_of_pixels(name: str, kind: str, rows: int, settings: MapSettings) -> bytes:
    """Header of a table of pixels, in the words of HEALPix."""
    from astropy.io import fits

    unit = settings.unit if kind == ">f4" else None
    columns = [fits.Column("PIXEL", "J")]
    columns += [fits.Column(f"BIN_{k:02d}", _FORMATS[kind], unit) for k in range(1, settings.bins + 1)]
    header = fits.BinTableHDU.from_columns(columns, nrows=0, name=name).header
    for number, (near, far) in enumerate(pairwise(settings.edges), 2):
        header[f"TCOMM{number}"] = f"distance {near:.4f} to {far:.4f} kpc"
    for keyword, value, comment in (
        ("PIXTYPE", "HEALPIX", "HEALPix pixels"),
        ("ORDERING", "NESTED", "how they are numbered"),
        ("COORDSYS", "G", "Galactic"),
        ("NSIDE", settings.nsides[0], "of the rows"),
        ("INDXSCHM", "EXPLICIT", "the column PIXEL tells which"),
        ("OBJECT", "PARTIAL", "part of the sky"),
        ("GRAIN", 1, "pixels of a row"),
        ("OBS_NPIX", rows, "pixels"),
    ):
        header[keyword] = (value, comment)
    header["NAXIS2"] = rows
    return header.tostring().encode("ascii")


def _table_of_bins(settings: MapSettings, per_bin: Mapping[str, NDArray[Any]]) -> NDArray[np.void]:
    kinds = [("NEAR", ">f8"), ("FAR", ">f8"), *((name.upper(), kind) for name, (kind, _, _) in _PER_BIN.items())]
    table = np.zeros(settings.bins, kinds)
    table["NEAR"], table["FAR"] = settings.edges[:-1], settings.edges[1:]
    for name in _PER_BIN:
        table[name.upper()] = per_bin[name]
    return table


def _write_table(stream: BinaryIO, name: str, table: NDArray[np.void], unit: str) -> None:
    """Write a small table with the units and meanings that :data:`_PER_BIN` has for its columns."""
    from astropy.io import fits

    hdu = fits.BinTableHDU(table, name=name)
    for number, column in enumerate(table.dtype.names or (), 1):
        if column in ("NEAR", "FAR"):
            hdu.header.set(f"TUNIT{number}", "kpc", after=f"TFORM{number}")
        elif column.lower() in _PER_BIN and name == "BINS":
            _, has_unit, meaning = _PER_BIN[column.lower()]
            if has_unit:
                hdu.header.set(f"TUNIT{number}", unit, after=f"TFORM{number}")
            hdu.header[f"TCOMM{number}"] = meaning
    stream.write(hdu.header.tostring().encode("ascii"))
    stream.write(table.tobytes())
    stream.write(bytes(-stream.tell() % _BLOCK))
