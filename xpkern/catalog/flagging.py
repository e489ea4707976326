"""A catalogue judged anew: confidences, quality flags and status of every row, from its diagnostics companion."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path

import numpy as np

from xpkern.catalog.cuts import CutCounts
from xpkern.catalog.derived import DERIVED, derived_rows
from xpkern.catalog.judgement import judge
from xpkern.catalog.output import TableOutput, checked_output
from xpkern.catalog.provenance import check_model, confidence_digest
from xpkern.catalog.schema import CONFIDENCES, DIAGNOSTICS, LAYOUTS, Column
from xpkern.catalog.stream import CatalogReader, StoredBlocks, StoredRows
from xpkern.errors import InputError
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior

#: Rows that are judged together.
BLOCK_ROWS = 1 << 16

#: Tables that are written, the catalogue last.
_KINDS = ("diagnostics", "catalog")

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
        A catalogue of either layout, in HDF5, FITS, ECSV or Parquet, with its companion beside it.
    output : path-like, optional
        Name of the new catalogue, whose ending says the format. Without it, the catalogue itself is replaced.
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
    companion = CatalogReader(path, table="diagnostics").paths[0]
    checked_output(target, () if in_place else (path, companion), overwrite=overwrite or in_place, kinds=_KINDS)
    reader = CatalogReader(path)
    check_model(reader, model, prior)
    with closing(StoredBlocks(path)) as blocks:
        names = blocks.names
    layout = _layout(names, path)
    has_derived = derived or DERIVED[0].name in names
    columns = [*LAYOUTS[layout], *(DERIVED if has_derived else ())]
    tables: dict[str, tuple[Sequence[Column], Mapping[str, object]]] = {
        "catalog": (_stored(columns, "catalog"), _attributes(reader, model)),
        "diagnostics": (
            _stored(DIAGNOSTICS, "diagnostics"),
            _attributes(CatalogReader(path, table="diagnostics"), model),
        ),
    }
    summary = FlagSummary()
    with TableOutput(target, tables, _KINDS) as files:
        for block, beside in _row_by_row(path, companion, LAYOUTS[layout]):
            before = block["quality_flags"]
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
            files.append(_merged(block, beside))
            summary.rows += len(before)
            summary.changed += int(np.count_nonzero(before != judged.quality_flags))
            summary.cuts.add(judged.quality_flags)
            if on_progress is not None:
                on_progress(len(before))
        summary.files = files.commit()
    return summary


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


def _row_by_row(path: Path, companion: Path, columns: Sequence[Column]) -> Iterator[tuple[StoredRows, StoredRows]]:
    """Blocks of catalogue and companion, of the same stars.

    Raises
    ------
    InputError
        If they are not.
    """
    identifier = columns[0].name
    first = 0
    with (
        closing(StoredBlocks(path, [column.name for column in columns], BLOCK_ROWS)) as catalog,
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
