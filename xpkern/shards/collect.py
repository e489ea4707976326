"""From shards to one catalogue, in the order of source_id."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.manifest import ColumnStatistics, checksum, manifest_beside, write_manifest
from xpkern.catalog.output import CATALOG_KINDS, TableOutput, checked_output, file_names
from xpkern.catalog.pending import refuse_taken
from xpkern.catalog.schema import DIAGNOSTICS, Column, columns_of
from xpkern.catalog.stream import StoredRows
from xpkern.errors import InputError
from xpkern.grid import WAVELENGTH
from xpkern.shards.ledger import Ledger, State
from xpkern.shards.settings import RunSettings
from xpkern.shards.work import Unit, input_files

#: Rows that are sorted together, and rows that are read at a time where only numbers of sources are looked at.
SORTED_ROWS, READ_ROWS = 1 << 18, 1 << 20

#: Name of the column by which sources are told apart, by layout.
IDENTIFIER = {"default": "source_id", "zgr23": "gdr3_source_id"}


@dataclass
class CollectSummary:
    """What was collected.

    Attributes
    ----------
    files : list of Path
    shards, rows : int
    duplicates : list of int
        Sources that are in it more than once, as they are in the files of spectra; every row is kept.
    missing : list of str
        Files of spectra without a shard.
    in_order : bool
        Whether it is in the order of source_id.
    """

    files: list[Path] = field(default_factory=list)
    shards: int = 0
    rows: int = 0
    duplicates: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    in_order: bool = True


def stored(columns: Sequence[Column], table: str = "") -> list[Column]:
    """Columns of which the values are there already, in :class:`StoredRows` under their names after ``table``."""
    return [replace(column, values=itemgetter(table + column.name)) for column in columns]


def files_to_keep(settings: RunSettings) -> Iterator[Path]:
    """What a run reads and has made: nothing that a catalogue may replace."""
    for spectra in input_files(settings):
        unit = Unit.of(spectra, settings)
        yield spectra
        yield from file_names(unit.catalog).values()
        with contextlib.suppress(InputError):  # a file whose name does not tell its tables
            for tables in unit.tables().values():
                yield from tables
    yield from (file for file in (settings.model_file, settings.calibration_file) if file is not None)


@dataclass(frozen=True)
class Shards:
    """The shards of a run that are done, all of the same settings.

    Attributes
    ----------
    layout : str
    catalogs, diagnostics : list of Path
    source_id : list of (n,) int64
        Of each shard.
    attributes : dict
        What made them, and what each cut removed from all of them.
    missing : list of str
        Files of spectra without a shard.
    """

    layout: str
    catalogs: list[Path]
    diagnostics: list[Path]
    source_id: list[NDArray[np.int64]]
    attributes: dict[str, object]
    missing: list[str]

    @classmethod
    def of(cls, settings: RunSettings) -> Shards:
        """The shards there are, of which all bytes are what their markers say.

        Parameters
        ----------
        settings : RunSettings

        Raises
        ------
        InputError
            If there is none, some are of other settings, or one is damaged.
        """
        ledger = Ledger.of(settings)
        units = ledger.of_state(State.DONE)
        changed = ledger.of_state(State.CHANGED)
        if changed:
            raise InputError(
                f"{len(changed)} shards were made by other settings, another model or version, or of another input: "
                "xpkern rerun --changed makes them anew",
                file=str(changed[0].catalog),
            )
        if not units:
            raise InputError("no shard is done", file=str(settings.output_folder))
        for record in ledger.done():
            for file in record["files"].values():
                path = settings.output_folder / file["name"]
                if checksum(path) != {"bytes": file["bytes"], "sha256": file["sha256"]}:
                    raise _damaged(path)
        counts = ledger.totals("counts")
        identifier, numbers, described = IDENTIFIER[settings.layout], [], []
        for unit in units:
            try:
                with h5py.File(unit.catalog) as file:
                    # a shard without rows has no columns
                    numbers.append(np.asarray(file[identifier][()]) if identifier in file else np.empty(0, np.int64))
                    described.append(dict(file.attrs))
            except (OSError, RuntimeError, KeyError):
                raise _damaged(unit.catalog) from None
        attributes = _common_attributes(described, without={"rows", *counts}) | counts
        missing = [unit.spectra.name for unit in ledger.of_state(State.FAILED, State.LEFT)]
        catalogs = [unit.catalog for unit in units]
        diagnostics = [unit.catalog.with_suffix(".diagnostics.h5") for unit in units]
        return cls(settings.layout, catalogs, diagnostics, numbers, attributes, missing)

    def in_order(self, paths: Sequence[Path], names: Sequence[str]) -> Iterator[StoredRows]:
        """Rows of all shards by source_id, a few hundred thousand at a time; equal ones in the order of the shards.

        Parameters
        ----------
        paths : sequence of Path
            A file for each shard, row by row as ``source_id``.
        names : sequence of str
            Columns to read.
        """
        whole = np.sort(np.concatenate(self.source_id))
        if not len(whole):
            yield _empty(paths[0], names)
            return
        ends = [*range(SORTED_ROWS, len(whole), SORTED_ROWS), len(whole)]
        first = int(whole[0])
        for end in ends:
            last = int(whole[end - 1])
            if last < first:  # all of them were copies of the source before
                continue
            parts = []
            for path, numbers in zip(paths, self.source_id, strict=True):
                rows = np.flatnonzero((numbers >= first) & (numbers <= last))
                if len(rows):
                    parts.append((numbers[rows], _rows(path, rows, names)))
            order = np.argsort(np.concatenate([numbers for numbers, _ in parts]), kind="stable")
            yield StoredRows({name: np.concatenate([part[name] for _, part in parts])[order] for name in names})
            first = last + 1

    def duplicates(self) -> list[int]:
        """Sources that there are more than once."""
        whole = np.sort(np.concatenate(self.source_id))
        return [int(number) for number in np.unique(whole[1:][whole[1:] == whole[:-1]])]


def collect(
    settings: RunSettings,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    on_rows: Callable[[int], object] | None = None,
) -> CollectSummary:
    """Write the shards as one catalogue, sorted by source_id, with its diagnostics companion and a manifest.

    The manifest, ``<name>.h5.manifest.json``, has the SHA-256 of both, and of each column range, mean, number of them.

    Parameters
    ----------
    settings : RunSettings
    output : path-like
        Its ending says the format, as for :func:`xpkern.make_catalog`.
    overwrite : bool
        Whether to replace what stands there.
    on_rows : callable, optional
        Called with the number of rows of each block.

    Returns
    -------
    CollectSummary
        Files of spectra without a shard are listed in it.

    Raises
    ------
    InputError
        If there is no shard, some are of other settings or damaged, the name cannot be that of a catalogue, or it is
        taken.
    """
    final = checked_output(output, files_to_keep(settings), overwrite=overwrite, kinds=CATALOG_KINDS)
    manifest = manifest_beside(final)
    refuse_taken(manifest, overwrite=overwrite)
    shards = Shards.of(settings)
    statistics = ColumnStatistics()
    columns = columns_of(settings.layout)
    attributes = shards.attributes
    tables = {
        "catalog": (stored(columns, "catalog/"), attributes),
        "diagnostics": (stored(DIAGNOSTICS, "diagnostics/"), {**attributes, "wavelength": WAVELENGTH}),
    }
    summary = CollectSummary(shards=len(shards.catalogs), missing=shards.missing, duplicates=shards.duplicates())
    with TableOutput(output, tables, CATALOG_KINDS) as written:
        names = [[column.name for column in of_table] for of_table in (columns, DIAGNOSTICS)]
        both = zip(
            shards.in_order(shards.catalogs, names[0]), shards.in_order(shards.diagnostics, names[1]), strict=True
        )
        for catalog, diagnostics in both:
            # both tables have columns of one name that differ: ln_prior in the published convention, and ours
            tagged = {"catalog/": catalog, "diagnostics/": diagnostics}
            written.append(StoredRows({table + name: rows[name] for table, rows in tagged.items() for name in rows}))
            statistics.add(catalog)
            summary.rows += len(catalog)
            if on_rows is not None:
                on_rows(len(catalog))
        summary.files = list(written.commit().values())
    try:
        write_manifest(manifest, summary.files, statistics, summary.rows)
    except BaseException:
        manifest.unlink(missing_ok=True)  # of an earlier catalogue of this name
        raise
    summary.files.insert(0, manifest)
    return summary


def _damaged(path: Path) -> InputError:
    return InputError(
        "is damaged: its SHA-256 is not that of its marker; remove it, and xpkern run makes it anew", file=str(path)
    )


def _common_attributes(described: Sequence[Mapping[str, Any]], without: set[str]) -> dict[str, object]:
    """What made the shards; what differs between them (the instruction set of a cluster's nodes) in all its values."""
    found: dict[str, list[Any]] = {}
    for attributes in described:
        for name, value in attributes.items():
            values = found.setdefault(name, [])
            if not any(np.array_equal(value, other) for other in values):
                values.append(value)
    return {
        name: values[0] if len(values) == 1 else ", ".join(sorted(str(value) for value in values))
        for name, values in found.items()
        if name not in without
    }


def _rows(path: Path, rows: NDArray[np.intp], names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """Some rows, ascending, of some columns."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    with h5py.File(path) as file:
        return {name: np.asarray(file[name][first:last])[rows - first] for name in names}


def _empty(path: Path, names: Sequence[str]) -> StoredRows:
    with h5py.File(path) as file:
        return StoredRows({name: np.asarray(file[name][:0]) for name in names})
