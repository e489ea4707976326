"""Another survey's catalogue, matched to Gaia's sources on the sky, as a table by source_id; both larger than memory.

Both sides go to disk by the cell of a cubic grid of directions in which they lie, stars near a border in every cell
that a match may reach, so that each cell is matched by itself and finds what the whole would. The grid is of unit
vectors: there are neither poles nor a seam in right ascension. Matches go to disk once more, by source_id, and are
written in its order, which is that of Gaia's own files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.match_sides import Rows, Side, Sources, each_once
from xpkern.catalog.output import TableOutput, checked_output
from xpkern.catalog.schema import SOURCE_ID, Column
from xpkern.errors import InputError
from xpkern.observe.crossmatch import ARCSEC, LARGEST_RADIUS, Matcher
from xpkern.observe.photometry import COLUMN_NAMES
from xpkern.observe.sorted_runs import SortedRuns, key_ranges
from xpkern.threads import number_of_threads
from xpkern.version import __version__

#: Records of both sides that are matched, or written, at a time.
PART_ROWS = 1 << 20

#: Matches go to disk by so many of the upper bits of their source_id.
_ID_BITS = 18

#: Names that columns of the other catalogue must not have in the output, as they would be confused.
_RESERVED = ("source_id", "separation", "index", "ra", "dec")

NearestOf = Literal["source", "row"]


@dataclass(frozen=True)
class Survey:
    """What is known of a survey's catalogue.

    Attributes
    ----------
    name : str
    ra, dec : str
        Its columns of positions [deg].
    radius : float
        Largest separation of a match [arcsec].
    nearest_of : {"source", "row"}
        Whether each source has its nearest row, or each row its nearest source.
    epoch : float, optional
        Mean epoch of its positions [yr], where it is known.
    columns : tuple of str, optional
        What is taken of it, as far as it is there; everything when not given.
    only : mapping of str to int
        Rows without this value of a column are left out, if the column is there.
    source_columns : tuple of str
        What is taken of the table of sources, if it is there.
    """

    name: str
    ra: str = "ra"
    dec: str = "dec"
    radius: float = np.nan
    nearest_of: NearestOf = "source"
    epoch: float | None = None
    columns: tuple[str, ...] | None = None
    only: Mapping[str, int] = field(default_factory=dict)
    source_columns: tuple[str, ...] = ()


SURVEYS = {
    survey.name: survey
    for survey in (
        # The radius is that of the cut that ZGR23's code makes. The epoch is the mean of the 14 coverages of the sky
        # that "neo6" adds up (ZGR23 section 2.4): 2 in 2010, 12 from December 2013 to December 2019. In the overlaps of
        # its images unWISE lists stars twice, and calls one of the two primary. norm_dg tells whether neighbours blend.
        Survey(
            "unwise",
            radius=0.25,
            epoch=2016.1,
            columns=("unwise_objid", "unwise_detid", *COLUMN_NAMES),
            only={"primary": 1},
            source_columns=("norm_dg",),
        ),
        # The radius is that of ZGR23 section 2.2. A star may have many spectra, the best of which `xpkern labels`
        # chooses, so that each spectrum has the source that is nearest. Positions are those of the catalogues from
        # which its targets were taken, of no common epoch.
        Survey("lamost", radius=0.25, nearest_of="row"),
    )
}


@dataclass
class MatchSummary:
    """What was matched.

    Attributes
    ----------
    file : Path
    sources, rows, matches : int
        Read, read, and written.
    removed : dict of str to int
        How many of them each rule left out.
    left_out : list of str
        Columns of the catalogue that are not in the output: arrays.
    """

    file: Path
    sources: int = 0
    rows: int = 0
    matches: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def match_tables(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    survey: str | None = None,
    ra: str | None = None,
    dec: str | None = None,
    columns: Sequence[str] | None = None,
    radius: float | None = None,
    nearest_of: NearestOf | None = None,
    one_to_one: bool = False,
    epoch: float | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    on_rows: Callable[[int], object] | None = None,
) -> MatchSummary:
    """Match a catalogue to Gaia's sources on the sky and write what it says of them, by source_id.

    Memory holds a million rows at a time; the rest is on disk beside the output, some 100 bytes a row.

    Parameters
    ----------
    files : path-like, or sequence
        The catalogue, in any format that :func:`xpkern.observe.tables.open_table` reads.
    sources : path-like, or sequence
        ``source_id``, ``ra``, ``dec`` [deg], and for ``epoch`` ``pmra``, ``pmdec`` [mas/yr] and perhaps ``ref_epoch``.
    output : path-like
        Its ending says the format, as for :func:`xpkern.make_catalog`. Columns: ``source_id``, ``separation``
        [arcsec], and those of the catalogue, of which ``ra``, ``dec`` and others that would be confused get the
        survey's name before their own. Sorted by source_id.
    survey : {"unwise", "lamost"}, optional
        A catalogue that is known (:data:`SURVEYS`): it says what else is not given.
    ra, dec : str, optional
        The catalogue's columns of positions [deg]; "ra" and "dec" when not given.
    columns : sequence of str, optional
        Columns of the catalogue to write; all of numbers or text when not given.
    radius : float, optional
        Largest separation of a match [arcsec]; required where the survey does not say it.
    nearest_of : {"source", "row"}, optional
        Each source with its nearest row (default), or each row with its nearest source.
    one_to_one : bool
        Only pairs of which each is the other's nearest.
    epoch : float, optional
        Year to which the sources are moved by their proper motions before they are matched; not at all when not given.
    overwrite : bool
        Whether to replace the output.
    threads : int, optional
    on_rows : callable, optional
        Called with the number of rows of each block that was read, of both sides.

    Returns
    -------
    MatchSummary

    Raises
    ------
    InputError
        If a file cannot be read or has no such column, one side has no rows, the radius is not between 0 and 1800,
        the epoch is no year, nothing matches, or the output's name is taken or that of no format.
    OSError
        If the disk is full.
    """
    if survey is not None and survey not in SURVEYS:
        raise InputError(f"no survey is called {survey!r}: there are {', '.join(SURVEYS)}", field="survey")
    known = Survey("") if survey is None else SURVEYS[survey]
    files, sources = _paths(files), _paths(sources)
    final = checked_output(output, [*files, *sources], overwrite=overwrite)
    radius = known.radius if radius is None else radius
    if not 0 < radius <= LARGEST_RADIUS:
        message = "is required" if np.isnan(radius) else f"{radius:g} arcsec is not between 0 and {LARGEST_RADIUS:g}"
        raise InputError(message, field="radius")
    if epoch is not None and not np.isfinite(epoch):
        raise InputError(f"{epoch:g} is no year", field="--epoch")
    nearest_of = "source" if one_to_one else nearest_of or known.nearest_of
    folder, threads = final.absolute().parent, number_of_threads(threads)
    progress = on_rows or (lambda rows: None)
    ours = Sources(sources, epoch, known.source_columns)
    theirs = Rows(files, (ra or known.ra).lower(), (dec or known.dec).lower(), columns, known.columns, known.only)
    chord = 2.0 * np.sin(0.5 * radius / ARCSEC) * (1 + 1e-9) + 1e-12
    # what is the nearest of its partner, too, must be compared with all of that one's partners, twice as far away
    halo_of_sources = 2 * chord if one_to_one else chord if nearest_of == "row" else 0.0
    halo_of_rows = chord if nearest_of == "source" else 0.0
    removed: dict[str, int] = {}
    with (
        closing(ours.spill(folder, halo_of_sources, progress)),
        closing(theirs.spill(folder, halo_of_rows, progress)),
    ):
        joined = _output_columns(ours, theirs, known.name or "other")
        dtype = np.dtype(
            [
                ("source_id", np.int64),
                ("separation", np.float64),
                ("index", np.int64),
                *((column.name, np.dtype(column.dtype)) for _, _, column in joined),
            ]
        )
        shift = max(0, ours.largest_id.bit_length() - _ID_BITS)
        with closing(SortedRuns(folder, dtype, 1 << _ID_BITS)) as matches:
            one_sided = 0
            for of_sources, of_rows in _parts(ours, theirs):
                source, row, separation, mutual = _nearest(of_sources, of_rows, nearest_of, radius, threads)
                if one_to_one:
                    one_sided += int(np.count_nonzero(~mutual))
                    source, row, separation = source[mutual], row[mutual], separation[mutual]
                records = np.zeros(len(source), dtype)
                records["source_id"], records["separation"] = of_sources["source_id"][source], separation
                records["index"] = of_rows["index"][row]
                for side, name, column in joined:
                    records[column.name] = of_sources[name][source] if side is ours else of_rows[name][row]
                matches.add(records, np.clip(records["source_id"] >> shift, 0, (1 << _ID_BITS) - 1))
            removed = {**ours.removed, **theirs.removed}
            if one_to_one:
                removed["pairs of which one has a nearer partner"] = one_sided
            found = int(matches.counts.sum())
            if not found:
                raise InputError(
                    f"none of its {theirs.rows:,} rows lies within {radius:g} arcsec of one of {ours.rows:,} sources: "
                    "are the positions of both in degrees, and of the same part of the sky?",
                    file=str(files[0]),
                )
            whole = ours if nearest_of == "source" else theirs
            removed[f"{whole.what} without a match"] = whole.usable - found - (one_sided if one_to_one else 0)
            attributes = {
                "matched": known.name or files[0].name,
                "radius": radius,
                "nearest_of_each": "pair" if one_to_one else nearest_of,
                "sources_moved_to": "not moved" if epoch is None else epoch,
                "xpkern_version": __version__,
                **{f"removed: {name}": count for name, count in removed.items()},
            }
            columns_written = [column for _, _, column in joined]
            repeated = _write(final, matches, columns_written, attributes, nearest_of == "source")
    if repeated:
        removed["repeated sources"] = repeated
    return MatchSummary(final, ours.rows, theirs.rows, found - repeated, removed, theirs.left_out)


def _paths(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    return [Path(given)] if isinstance(given, (str, os.PathLike)) else [Path(path) for path in given]


def _parts(ours: Side, theirs: Side) -> Iterator[tuple[NDArray, NDArray]]:
    """Records of both sides in a range of cells, and of what a match may reach outside of it."""
    for first, end in key_ranges(ours.runs.counts + theirs.runs.counts, PART_ROWS):
        if ours.runs.counts[first:end].any() and theirs.runs.counts[first:end].any():
            of_sources, of_rows = (each_once(side.runs.part(first, end), first, end) for side in (ours, theirs))
            yield of_sources, of_rows


def _nearest(
    of_sources: NDArray, of_rows: NDArray, nearest_of: NearestOf, radius: float, threads: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Indices of sources and rows, the separation, and whether each is the other's nearest: of the cells' own only."""
    each, others = (of_sources, of_rows) if nearest_of == "source" else (of_rows, of_sources)
    matcher = Matcher(each["ra"], each["dec"], radius, threads=threads)
    matcher.add(others["ra"], others["dec"])
    found = matcher.result()
    own = each["own"][found.source]
    pairs = (found.source[own], found.row[own])
    source, row = pairs if nearest_of == "source" else pairs[::-1]
    return source, row, found.separation[own], found.mutual[own]


def _output_columns(ours: Side, theirs: Side, prefix: str) -> list[tuple[Side, str, Column]]:
    """Columns of the output, each with the side and the field of its records that it comes from."""
    taken = set(_RESERVED)
    found = []
    for side, of_what in ((ours, "the source"), (theirs, prefix)):
        for number, column in enumerate(side.carried):
            name = column.name
            while name in taken:
                name = f"{prefix}_{name}"
            taken.add(name)
            written = Column(name, column.dtype, "", "", f"{column.name} of {of_what}", itemgetter(name))
            found.append((side, f"c{number}", written))
    return found


def _write(
    final: Path, matches: SortedRuns, columns: Sequence[Column], attributes: Mapping[str, object], sources_once: bool
) -> int:
    """Write the matches by source_id, of each source the nearest first; return how many were repeats of a source."""
    own = (
        replace(SOURCE_ID, values=itemgetter("source_id")),
        Column("separation", "float64", "arcsec", "pos.angDistance", "of source and match", itemgetter("separation")),
    )
    repeated = 0
    with TableOutput(final, {"catalog": ((*own, *columns), attributes)}, ("catalog",)) as written:
        for first, end in key_ranges(matches.counts, PART_ROWS):
            part = matches.part(first, end)
            part = part[np.lexsort((part["index"], part["separation"], part["source_id"]))]
            if sources_once:
                once = np.append(True, part["source_id"][1:] != part["source_id"][:-1])[: len(part)]
                repeated += int(np.count_nonzero(~once))
                part = part[once]
            written.append(part)
        written.commit(attributes={"removed: repeated sources": repeated} if sources_once else None)
    return repeated
