"""Download everything that a catalogue of some sources needs, piece by piece, so that it can go on after any break."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpkern.archive.queries import Selection, gaia_source_query, two_mass_query
from xpkern.archive.service import Archive, joined
from xpkern.catalog.pending import PendingFile
from xpkern.errors import InputError

if TYPE_CHECKING:
    from astropy.table import Table

#: Sources of a piece: what DataLink gives at a time.
PIECE = 2000

#: Record of what has been fetched, in the folder.
_RECORD = "fetch.json"

#: Sources of which something did not come, in the folder, and why.
_MISSING = "missing.csv"
_NO_SPECTRUM = "no spectrum came though gaia_source says that there is one"
_NOT_FOUND = "not in gaia_source or without XP spectra"


@dataclass
class FetchSummary:
    """What is in the folder.

    Attributes
    ----------
    folder : Path
    spectra : list of Path
        Files of spectra (csv.gz).
    gaia_source, two_mass : Path
        Tables of all sources.
    sources, with_spectra, with_two_mass : int
        Sources that the archive says have XP spectra, those whose spectra it gave, those with a 2MASS star.
    asked, not_found : int
        Sources of the list, or of the query of one's own, and how many of them are not in gaia_source or have no XP
        spectra; 0 for a selection.
    missing : Path, optional
        Sources whose spectra did not come, and those that were not found, each with the reason, if there are any.
    """

    folder: Path
    spectra: list[Path] = field(default_factory=list)
    gaia_source: Path = Path()
    two_mass: Path = Path()
    sources: int = 0
    with_spectra: int = 0
    with_two_mass: int = 0
    asked: int = 0
    not_found: int = 0
    missing: Path | None = None


def fetch(
    folder: str | os.PathLike[str],
    selection: Selection | Sequence[int] | str,
    *,
    archive: Archive | None = None,
    piece: int = PIECE,
    on_sources: Callable[[int], object] | None = None,
) -> FetchSummary:
    """Download sources with XP spectra: gaia_source, 2MASS, and the spectra themselves.

    Parameters
    ----------
    folder : path-like
        Made if its own folder exists. One that holds the beginning of the same download is completed, and spectra that
        did not come with it are asked for once more: servers lose some at times.
    selection : Selection, sequence of int, or str
        A selection, numbers of sources, or a query of one's own in ADQL that returns ``source_id``.
    archive : Archive, optional
        ESA's, DR3, when not given.
    piece : int
        Sources that are asked for at a time.
    on_sources : callable, optional
        Called with the number of sources of each finished piece.

    Returns
    -------
    FetchSummary

    Raises
    ------
    InputError
        If the folder holds another download, or the archive refuses or does not answer; what has come so far stays.
    """
    archive = Archive() if archive is None else archive
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, and should be a folder", file=str(folder))
    if not folder.absolute().parent.is_dir():
        raise InputError("its folder does not exist", file=str(folder))
    folder.mkdir(exist_ok=True)
    record = _Record(folder, _what(selection, piece))
    on_sources = on_sources or (lambda sources: None)
    earlier = len(record.pieces)
    if not record.complete:
        for table in _pieces(archive, selection, record, piece):
            record.add(_fetch_piece(archive, folder, table, len(record.pieces)))
            on_sources(len(table))
        _collect(folder, len(record.pieces))
        record.finish()
    without_spectra = [
        source_id
        for number in range(len(record.pieces))
        for source_id in _lost(archive, folder, record, number, ask=number < earlier)
    ]
    summary = _summary(folder, record)
    _note_missing(summary, without_spectra, _asked(selection, record))
    return summary


def _what(selection: Selection | Sequence[int] | str, piece: int) -> dict[str, Any]:
    """What tells one download from another."""
    if isinstance(selection, Selection):
        return {"condition": selection.condition, "piece": piece}
    if isinstance(selection, str):
        return {"adql": selection, "piece": piece}
    return {"sources": [int(number) for number in selection], "piece": piece}


def _asked(selection: Selection | Sequence[int] | str, record: _Record) -> NDArray[np.int64] | None:
    """Sources that were named, by a list or by the query of one's own, each once, ascending."""
    if isinstance(selection, Selection):
        return None
    return np.unique(np.asarray(record.listed if isinstance(selection, str) else selection, np.int64))


class _Record:
    """The pieces that are complete, on the disk."""

    def __init__(self, folder: Path, what: dict[str, Any]) -> None:
        self._path = folder / _RECORD
        self._what = what
        self.pieces: list[dict[str, Any]] = []
        self.complete = False
        self.listed: list[int] | None = None
        if not self._path.exists():
            if any(folder.iterdir()):
                raise InputError(f"is not empty, and holds no {_RECORD} of a download to go on with", file=str(folder))
            return
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            same = stored["what"] == what
            self.pieces, self.complete, self.listed = stored["pieces"], stored["complete"], stored["listed"]
        except (ValueError, KeyError, TypeError):
            raise InputError("is no record of a download", file=str(self._path)) from None
        if not same:
            raise InputError("holds another download; give another folder", file=str(folder))

    def add(self, piece: dict[str, Any]) -> None:
        self.pieces.append(piece)
        self.write()

    def finish(self) -> None:
        self.complete = True
        self.write()

    def list_sources(self, source_ids: list[int]) -> None:
        """Note which sources a query of one's own gave: it might give others another time."""
        self.listed = source_ids
        self.write()

    def write(self) -> None:
        """Put it on the disk."""
        stored = {"what": self._what, "pieces": self.pieces, "complete": self.complete, "listed": self.listed}
        with PendingFile(self._path) as partial:
            partial.write_text(json.dumps(stored) + "\n", encoding="utf-8")


def _pieces(
    archive: Archive, selection: Selection | Sequence[int] | str, record: _Record, piece: int
) -> Iterator[Table]:
    """Rows of gaia_source that are still to come, some at a time, ascending in source_id."""
    if isinstance(selection, Selection):
        last = record.pieces[-1]["last"] if record.pieces else -1
        # only an empty answer is the end: a short one may have been cut off by the archive's own limit
        while len(table := archive.query(gaia_source_query(selection.and_after(last), piece))[0]):
            yield table
            last = int(table["source_id"][-1])
        return
    source_ids = selection if not isinstance(selection, str) else record.listed
    if source_ids is None:
        source_ids = _listed_by(archive, str(selection))
        record.list_sources(source_ids)
    numbers = np.unique(np.asarray(source_ids, np.int64))
    starts = range(0, len(numbers), piece)
    for start in starts[len(record.pieces) :]:
        of_piece = numbers[start : start + piece].tolist()
        yield _all_rows(archive, gaia_source_query, Selection.sources(of_piece), piece)


def _listed_by(archive: Archive, adql: str) -> list[int]:
    table, truncated = archive.query(adql)
    if "source_id" not in table.colnames:
        raise InputError(f"the query returns {', '.join(table.colnames)}, no source_id", field="adql")
    if truncated:
        raise InputError(f"the archive cut its answer off after {len(table):,} rows: ask for less", field="adql")
    return [int(number) for number in table["source_id"]]


def _all_rows(archive: Archive, query: Callable[[Selection, int], str], selection: Selection, rows: int) -> Table:
    """Every row of a query, also where the archive cuts off."""
    from astropy.table import vstack

    tables = [archive.query(query(selection, rows))[0]]
    while len(tables[-1]):
        tables.append(archive.query(query(selection.and_after(int(tables[-1]["source_id"][-1])), rows))[0])
    full = [table for table in tables if len(table)] or tables[:1]
    return vstack(full, metadata_conflicts="silent")


def _fetch_piece(archive: Archive, folder: Path, table: Table, number: int) -> dict[str, Any]:
    """Files of some sources, each whole under its name or not there; the record of the piece."""
    source_ids = [int(source_id) for source_id in table["source_id"]]
    files = _names(folder, number)
    spectra, two_mass = b"", None
    if source_ids:
        two_mass = _all_rows(archive, two_mass_query, Selection.sources(source_ids), len(source_ids))
        spectra = archive.spectra(source_ids)
    _write_table(table, files["gaia_source"])
    if two_mass is not None:
        _write_table(two_mass, files["two_mass"])
    if spectra:
        _write_spectra(spectra, files["spectra"])
    return {
        "first": source_ids[0] if source_ids else -1,
        "last": source_ids[-1] if source_ids else -1,
        "sources": len(source_ids),
        "with_spectra": len(_sources_in(spectra, files["spectra"]).intersection(source_ids)),
        "with_two_mass": 0 if two_mass is None else len(two_mass),
    }


def _names(folder: Path, number: int) -> dict[str, Path]:
    return {
        "gaia_source": folder / f"gaia_source-{number:05d}.fits",
        "two_mass": folder / f"two_mass-{number:05d}.fits",
        "spectra": folder / f"xp_continuous-{number:05d}.csv.gz",
    }


def _write_spectra(spectra: bytes, path: Path) -> None:
    with PendingFile(path) as partial:
        partial.write_bytes(gzip.compress(spectra, 6, mtime=0))


def _sources_in(spectra: bytes, path: Path) -> set[int]:
    """Sources that a table of spectra has rows of."""
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(spectra), "utf-8", newline=""))
    try:
        column = next(rows, ["source_id"]).index("source_id")
        return {int(row[column]) for row in rows if row}
    except (ValueError, IndexError, csv.Error):
        raise InputError("no source_id", file=str(path), row=rows.line_num - 1, field="source_id") from None


def _lost(archive: Archive, folder: Path, record: _Record, number: int, *, ask: bool) -> list[int]:
    """Sources of a piece whose spectra did not come, nor do when they are asked for once more."""
    piece = record.pieces[number]
    if piece["with_spectra"] >= piece["sources"]:
        return []
    # by the files: they hold what came, also where a break kept the record from saying so
    files = _names(folder, number)
    source_ids = _source_ids(files["gaia_source"] if files["gaia_source"].exists() else folder / "gaia_source.fits")
    of_piece = source_ids[(source_ids >= piece["first"]) & (source_ids <= piece["last"])].tolist()
    spectra = gzip.decompress(files["spectra"].read_bytes()) if files["spectra"].exists() else b""
    there = _sources_in(spectra, files["spectra"])
    lost = [source_id for source_id in of_piece if source_id not in there]
    if lost and ask and (more := archive.spectra(lost)):
        came = _sources_in(more, files["spectra"])
        if came.intersection(lost):
            _write_spectra(joined([table for table in (spectra, more) if table]), files["spectra"])
        lost = [source_id for source_id in lost if source_id not in came]
    if piece["with_spectra"] != piece["sources"] - len(lost):
        piece["with_spectra"] = piece["sources"] - len(lost)
        record.write()
    return lost


def _source_ids(path: Path) -> NDArray[np.int64]:
    from astropy.table import Table

    if not path.exists():
        raise InputError("no such file, which the download has made: start it anew in another folder", file=str(path))
    return np.asarray(Table.read(path, format="fits")["source_id"], np.int64)


def _note_missing(summary: FetchSummary, without_spectra: list[int], asked: NDArray[np.int64] | None) -> None:
    """Write which sources lack what, if any do, and count those that were asked for."""
    missing = [(source_id, _NO_SPECTRUM) for source_id in without_spectra]
    if asked is not None:
        there = _source_ids(summary.gaia_source) if len(asked) != summary.sources else asked
        not_found = np.setdiff1d(asked, there).tolist()
        summary.asked, summary.not_found = len(asked), len(not_found)
        missing += [(source_id, _NOT_FOUND) for source_id in not_found]
    path = summary.folder / _MISSING
    if not missing:
        path.unlink(missing_ok=True)
        return
    with PendingFile(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("source_id", "reason"), *missing])
    summary.missing = path


def _write_table(table: Table, path: Path) -> None:
    with PendingFile(path) as partial:
        for name in table.colnames:
            if table[name].dtype == object:
                table[name] = table[name].astype(str)
        table.meta = {}
        table.write(partial, format="fits", overwrite=True)


def _collect(folder: Path, pieces: int) -> None:
    """Write one table for all pieces; theirs stay until the record says that it is complete."""
    from astropy.table import Table, vstack

    for name in ("gaia_source", "two_mass"):
        parts = [path for path in (_names(folder, number)[name] for number in range(pieces)) if path.exists()]
        if parts:
            tables = [Table.read(part, format="fits") for part in parts]
            _write_table(vstack(tables, metadata_conflicts="silent"), folder / f"{name}.fits")


def _summary(folder: Path, record: _Record) -> FetchSummary:
    """What there is; tables of pieces are removed, now that there are whole ones."""
    summary = FetchSummary(folder, gaia_source=folder / "gaia_source.fits", two_mass=folder / "two_mass.fits")
    for number, piece in enumerate(record.pieces):
        files = _names(folder, number)
        summary.sources += piece["sources"]
        summary.with_spectra += piece["with_spectra"]
        summary.with_two_mass += piece["with_two_mass"]
        if files["spectra"].exists():
            summary.spectra.append(files["spectra"])
        for name in ("gaia_source", "two_mass"):
            files[name].unlink(missing_ok=True)
    return summary
