"""A catalogue judged anew: confidences, quality flags and status of every row, from its diagnostics companion."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path

import numpy as np

from xpkern.catalog.cuts import CutCounts
from xpkern.catalog.derived import DERIVED, derived_rows
from xpkern.catalog.hats import (
    INDEX,
    Partition,
    describe,
    most_rows,
    order_and_pixel,
    partial_name,
    refuse_taken_hats,
)
from xpkern.catalog.judgement import judge
from xpkern.catalog.manifest import ColumnStatistics, manifest_beside, write_manifest, write_manifest_of_folder
from xpkern.catalog.output import TableOutput, checked_output
from xpkern.catalog.parquet_writer import ParquetWriter
from xpkern.catalog.pending import commit_folder
from xpkern.catalog.provenance import check_model, confidence_digest
from xpkern.catalog.schema import CONFIDENCES, DIAGNOSTICS, LAYOUTS, Column
from xpkern.catalog.stream import CatalogReader, StoredBlocks, StoredRows
from xpkern.catalog.writers import WRITERS
from xpkern.errors import InputError
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior

#: Rows that are judged together.
BLOCK_ROWS = 1 << 16

#: Tables that are written, the catalogue last.
_KINDS = ("diagnostics", "catalog")

#: Columns and attributes of the tables that are written.
Tables = Mapping[str, tuple[Sequence[Column], Mapping[str, object]]]

#: Attributes of a file that its writer adds itself.
_WRITERS_OWN = ("rows",)


@dataclass
class FlagSummary:
    """What became of a catalogue.

    Attributes
    ----------
    files : dict of str to Path
        Those written, by kind.
    rows : int
    changed : int
        Rows whose quality flags are others than before.
    cuts : CutCounts
        How many stars pass each cut now.
    """

    files: dict[str, Path] = field(default_factory=dict)
    rows: int = 0
    changed: int = 0
    cuts: CutCounts = field(default_factory=CutCounts.none)


def flag_catalog(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    model: FluxModel,
    prior: TypePrior,
    derived: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int], object] | None = None,
) -> FlagSummary:
    """Compute confidences, quality flags and the status bits that depend on thresholds anew.

    With the model that the catalogue was fitted with they are what the fit itself would have written, bit by bit. What
    it takes is in the diagnostics companion; catalogue and companion are read and written a block at a time, and appear
    together once both are complete.

    Parameters
    ----------
    path : path-like
        A catalogue of either layout, in HDF5, FITS, ECSV or Parquet, with its companion beside it; or a folder in the
        HATS layout, as ``xpkern collect`` makes it, with the companion in it.
    output : path-like, optional
        Name of the new catalogue, whose ending says the format; of a folder that of another folder. Without it, the
        catalogue itself is replaced, a folder once the whole of the new one is there.
    model, prior : FluxModel, TypePrior
        Those of the catalogue; the model with classifiers, or without, which makes confidences NaN.
    derived : bool
        Whether to add the columns :data:`xpkern.catalog.derived.DERIVED`; where a catalogue has them, they are computed
        anew in any case.
    overwrite : bool
        Whether an output of that name is replaced.
    on_progress : callable, optional
        Called with the number of rows of each block.

    Raises
    ------
    InputError
        If the companion is absent, is of other rows or lacks columns; if the catalogue was made with another model, is
        in no layout of ours, or has columns of its own, which would be lost.
    """
    path = Path(path)
    target = path if output is None else Path(output)
    in_place = target.exists() and target.samefile(path)
    reader, companions = CatalogReader(path), CatalogReader(path, table="diagnostics")
    is_folder = path.is_dir()
    if is_folder:
        if target.suffix in WRITERS:
            raise InputError(
                "the name of a file, where a folder is flagged: its flags are written in place, or into another folder",
                file=str(target),
            )
        if in_place:
            target = target.resolve()  # not the link to it
        refuse_taken_hats(target, overwrite=overwrite or in_place)
        if [*map(order_and_pixel, reader.paths)] != [*map(order_and_pixel, companions.paths)]:
            raise InputError("its companion has files of other pixels", file=str(path))
    else:
        inputs = () if in_place else (path, *companions.paths)
        checked_output(target, inputs, overwrite=overwrite or in_place, kinds=_KINDS)
    check_model(reader, model, prior)
    with closing(StoredBlocks(reader.paths[0])) as blocks:
        names = [name for name in blocks.names if not (is_folder and name == INDEX.name)]
    layout = LAYOUTS[_layout(names, path)]
    has_derived = derived or DERIVED[0].name in names
    columns = [*([INDEX] if is_folder else []), *layout, *(DERIVED if has_derived else ())]
    tables: Tables = {
        "catalog": (_stored(columns, "catalog"), _attributes(reader, model)),
        "diagnostics": (_stored(DIAGNOSTICS, "diagnostics"), _attributes(companions, model)),
    }
    read = [*([INDEX.name] if is_folder else []), *(column.name for column in layout)]
    summary, statistics = FlagSummary(), ColumnStatistics()

    def judged(file: Path, companion: Path) -> Iterator[StoredRows]:
        for block, beside in _row_by_row(file, companion, read, layout[0].name):
            before = block["quality_flags"]
            _judge_rows(block, beside, model, prior, has_derived=has_derived)
            summary.rows += len(before)
            summary.changed += int(np.count_nonzero(before != block["quality_flags"]))
            summary.cuts.add(block["quality_flags"])
            statistics.add(block)
            yield _merged(block, beside)
            if on_progress is not None:
                on_progress(len(before))

    if is_folder:
        _write_folder(path, target, tables, zip(reader.paths, companions.paths, strict=True), judged, statistics)
        summary.files = {"catalog": target}
    else:
        with TableOutput(target, tables, _KINDS) as files:
            for rows in judged(path, companions.paths[0]):
                files.append(rows)
            has_manifest = manifest_beside(path).exists()
            manifest_beside(target).unlink(missing_ok=True)  # it speaks of what is about to be replaced
            summary.files = files.commit()
        if has_manifest:
            write_manifest(manifest_beside(target), [*summary.files.values()], statistics, summary.rows)
    return summary


def _judge_rows(
    block: StoredRows, beside: StoredRows, model: FluxModel, prior: TypePrior, *, has_derived: bool
) -> None:
    """Set anew what is thought of some stars, in rows of the catalogue and of its companion."""
    judged = judge(beside, model.confidence, prior)
    for k, column in enumerate(CONFIDENCES):
        block[column.name] = judged.confidence[:, k]
    block["quality_flags"] = judged.quality_flags
    beside["status"] = judged.status
    if "status" in block:
        block["status"] = judged.status
    if has_derived:
        rows = derived_rows(block, model, beside["phot_g_mean_mag"])
        block |= {column.name: column.compute(rows) for column in DERIVED}


def _write_folder(
    path: Path,
    target: Path,
    tables: Tables,
    files: Iterable[tuple[Path, Path]],
    judged: Callable[[Path, Path], Iterator[StoredRows]],
    statistics: ColumnStatistics,
) -> None:
    """Write a catalogue in the HATS layout, file by file, under a temporary name; it gets its own once it is whole."""
    partial = partial_name(target)
    partitions = []
    try:
        for file, companion in files:
            written: dict[str, ParquetWriter] = {}
            try:
                for table, (columns, attributes) in tables.items():
                    name = Partition(*order_and_pixel(file), rows=0).file(partial, table)
                    name.parent.mkdir(parents=True, exist_ok=True)
                    written[table] = ParquetWriter(name, columns, attributes)
                for rows in judged(file, companion):
                    for writer in written.values():
                        writer.append(rows)
                for writer in written.values():
                    writer.close()
            finally:
                for writer in written.values():
                    writer.abandon()
            partitions.append(Partition(*order_and_pixel(file), rows=written["catalog"].rows))
        describe(partial, target.name, partitions, most_rows(path))
        write_manifest_of_folder(partial, statistics, sum(each.rows for each in partitions))
        commit_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _layout(names: Sequence[str], path: Path) -> str:
    """Which layout a catalogue is in: it has all of its columns, and none that would be lost."""
    for layout, columns in LAYOUTS.items():
        expected = [column.name for column in columns]
        if expected[0] not in names:
            continue
        missing = [name for name in expected if name not in names]
        if missing:
            raise InputError(f"missing: not a catalogue in the layout {layout}", file=str(path), field=missing[0])
        known = {*expected, *(column.name for column in DERIVED)}
        others = [name for name in names if name not in known]
        if others:
            message = f"a column of its own, which is in no layout and would be lost ({len(others)} of them)"
            raise InputError(message, file=str(path), field=others[0])
        return layout
    raise InputError(f"not a catalogue in any of the layouts {', '.join(LAYOUTS)}", file=str(path))


def _row_by_row(
    path: Path, companion: Path, columns: Sequence[str], identifier: str
) -> Iterator[tuple[StoredRows, StoredRows]]:
    """Blocks of catalogue and companion, of the same stars.

    Raises
    ------
    InputError
        If they are not.
    """
    first = 0
    with (
        closing(StoredBlocks(path, columns, BLOCK_ROWS)) as catalog,
        closing(StoredBlocks(companion, [column.name for column in DIAGNOSTICS], BLOCK_ROWS)) as diagnostics,
    ):
        for block, beside in zip_longest(catalog, diagnostics):
            if block is None or beside is None or not np.array_equal(block[identifier], beside["source_id"]):
                message = f"its rows are not those of {path.name}, from row {first + 1} to {first + BLOCK_ROWS}"
                raise InputError(message, file=str(companion), field="source_id")
            yield block, beside
            first += len(block)


def _stored(columns: Sequence[Column], table: str) -> list[Column]:
    """Columns whose values are there, under their names after that of the table."""
    return [replace(column, values=itemgetter(f"{table}/{column.name}")) for column in columns]


def _merged(block: StoredRows, beside: StoredRows) -> StoredRows:
    return StoredRows(
        {f"catalog/{name}": values for name, values in block.items()}
        | {f"diagnostics/{name}": values for name, values in beside.items()}
    )


def _attributes(reader: CatalogReader, model: FluxModel) -> dict[str, object]:
    """What the file says of itself, and which classifiers have judged it now."""
    kept = {name: value for name, value in reader.attributes.items() if name not in _WRITERS_OWN}
    return kept | {"confidence_digest": confidence_digest(model)}
