"""The files of one catalogue: they appear together, complete, or not at all."""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeVar

from xpkern.catalog.pending import PendingFile, commit_together, naming, refuse_taken
from xpkern.catalog.schema import DIAGNOSTICS, Column, columns_of
from xpkern.catalog.table_writer import TableWriter
from xpkern.catalog.writers import writer_for
from xpkern.grid import WAVELENGTH

_Output = TypeVar("_Output", bound="TableOutput")

#: Kinds of files that are written under the name of a catalogue, and of a table of spectra.
CATALOG_KINDS, SPECTRA_KINDS = ("reasons", "diagnostics", "catalog"), ("reasons", "spectra")

REASON_COLUMNS = ("source_id", "row", "field", "reason")


class TableOutput:
    """Tables of the same stars, and the reasons of rows that could not be read, while they are written.

    A context manager: what has not been committed when it ends is removed.

    Parameters
    ----------
    path : path-like
        Name of the first table; its ending says the format (:data:`xpkern.catalog.writers.WRITERS`). The others are
        named after it.
    tables : mapping of str to (columns, attributes)
        By kind (:func:`file_names`).
    kinds : tuple of str
        Of all tables that there may be under such a name, that of ``path`` last: a companion of an earlier one that is
        not written again is removed.
    writer : type of TableWriter, optional
        What writes them; by the ending of the name when not given.

    Raises
    ------
    InputError
        If the name cannot be that of a table.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        tables: Mapping[str, tuple[Sequence[Column], Mapping[str, object]]],
        kinds: tuple[str, ...],
        writer: type[TableWriter] | None = None,
    ) -> None:
        self.path = checked_output(path)
        self.reason_count = 0
        self._reasons_stream: TextIO | None = None
        self._kinds = kinds
        self._files = {kind: PendingFile(file_names(self.path)[kind]) for kind in self._kinds}
        self._writers: list[TableWriter] = []
        writer = writer_for(self.path) if writer is None else writer
        try:
            for kind, (columns, attributes) in tables.items():
                self._writers.append(writer(self._files[kind].partial, columns, attributes))
        except BaseException:
            self.discard()
            raise

    def __enter__(self: _Output) -> _Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()

    @property
    def rows(self) -> int:
        """Stars appended so far."""
        return self._writers[0].rows

    def append(self, rows: Any) -> None:
        """Add stars at the end of every table: anything that their columns can be computed of."""
        for writer in self._writers:
            writer.append(rows)

    def append_reasons(self, reasons: Iterable[tuple[int, int, str, str]]) -> None:
        """Add (source_id, row, field, reason) of rows that could not be read; the first one makes the file."""
        file = self._files["reasons"].partial
        with naming(file):
            for reason in reasons:
                if self._reasons_stream is None:
                    self._reasons_stream = open(file, "w", newline="", encoding="utf-8")  # noqa: SIM115
                    csv.writer(self._reasons_stream, lineterminator="\n").writerow(REASON_COLUMNS)
                csv.writer(self._reasons_stream, lineterminator="\n").writerow(reason)
                self.reason_count += 1

    def commit(self, path: Path | None = None, attributes: Mapping[str, object] | None = None) -> dict[str, Path]:
        """Complete the files and give them their names, or names after ``path`` in the same folder.

        Parameters
        ----------
        path : Path, optional
        attributes : mapping, optional
            More attributes, which are known only now.

        Returns
        -------
        dict of str to Path
            The files there are, by kind; that of the name comes last.
        """
        for writer in self._writers:
            writer.close(attributes)
        if self._reasons_stream is not None:
            with naming(self._files["reasons"].partial):
                self._reasons_stream.close()
        names = {kind: file_names(self.path if path is None else path)[kind] for kind in self._kinds}
        written = {kind: name for kind, name in names.items() if self._files[kind].partial.exists()}
        for kind in names.keys() - written.keys():
            names[kind].unlink(missing_ok=True)  # of an earlier catalogue of this name, and no companion of this one
        commit_together([(self._files[kind], name) for kind, name in written.items()])
        return written

    def discard(self) -> None:
        """Remove what has not been committed."""
        for writer in self._writers:
            writer.abandon()
        if self._reasons_stream is not None:
            with contextlib.suppress(OSError):  # what a full disk refuses is removed anyway
                self._reasons_stream.close()
        for file in self._files.values():
            file.discard()


class CatalogOutput(TableOutput):
    """A catalogue and its diagnostics companion.

    Parameters
    ----------
    path : path-like
    layout : str
        Name of a layout.
    attributes : mapping
        Of the files: what made them.
    diagnostics : bool
        Whether to write the companion.

    Raises
    ------
    InputError
        If the layout is unknown, or the name cannot be that of a catalogue.
    """

    def __init__(
        self, path: str | os.PathLike[str], layout: str, attributes: Mapping[str, object], *, diagnostics: bool = True
    ) -> None:
        tables: dict[str, tuple[Sequence[Column], Mapping[str, object]]] = {"catalog": (columns_of(layout), attributes)}
        if diagnostics:
            tables["diagnostics"] = (DIAGNOSTICS, {**attributes, "wavelength": WAVELENGTH})
        super().__init__(path, tables, CATALOG_KINDS)


def file_names(path: Path) -> dict[str, Path]:
    """Names of files by kind. A catalogue, or a table of spectra, comes last: where it is, its companions are."""
    return {
        "reasons": path.with_name(f"{path.stem}.reasons.csv"),
        "diagnostics": path.with_name(f"{path.stem}.diagnostics{path.suffix}"),
        "spectra": path,
        "catalog": path,
    }


def checked_output(
    path: str | os.PathLike[str],
    inputs: Iterable[str | os.PathLike[str]] = (),
    *,
    overwrite: bool = True,
    kinds: tuple[str, ...] = ("catalog",),
) -> Path:
    """Return the name as a path if a catalogue can be written there: what would fail at the end fails before the start.

    Parameters
    ----------
    path : path-like
    inputs : iterable of path-like
        Files that must not be written over, by the catalogue or its companions.
    overwrite : bool
        Whether files of these names may be replaced.
    kinds : tuple of str
        Of the files that will be written (:func:`file_names`).

    Raises
    ------
    InputError
        If the ending is that of no format, the folder does not exist, or there is a file that must stay.
    """
    path = Path(path)
    writer_for(path)
    final = PendingFile(path).final
    inputs = list(inputs)
    for kind in reversed(kinds):
        refuse_taken(file_names(final)[kind], inputs, overwrite=overwrite)
    return final
