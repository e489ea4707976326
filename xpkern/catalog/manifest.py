"""What a collected catalogue should be: the checksum of each of its files, and the range of each of its columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile


class ColumnStatistics:
    """Least, greatest and mean value of each column, and how many rows have one, of rows that come in blocks.

    Columns of arrays have these for each place of the array.
    """

    def __init__(self) -> None:
        self._columns: dict[str, list[NDArray[Any]]] = {}

    def add(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Add rows, by column."""
        for name, values in rows.items():
            if len(values) == 0:
                continue
            known = np.isfinite(values) if values.dtype.kind == "f" else np.ones(values.shape, np.bool_)
            if values.dtype.kind == "f":
                values = values.astype(np.float64)
                least, greatest = (
                    np.where(known, values, np.inf).min(axis=0),
                    np.where(known, values, -np.inf).max(axis=0),
                )
            else:  # whole numbers keep all their digits
                least, greatest = values.min(axis=0), values.max(axis=0)
            total = np.where(known, values, 0).sum(axis=0, dtype=np.float64)
            new = [np.count_nonzero(known, axis=0), least, greatest, total]
            old = self._columns.setdefault(name, new)
            if old is not new:
                together = (np.add, np.minimum, np.maximum, np.add)
                self._columns[name] = [join(a, b) for join, a, b in zip(together, old, new, strict=True)]

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """``known``, ``minimum``, ``maximum`` and ``mean`` by column; null where no row has a value."""
        found = {}
        for name, (known, least, greatest, total) in self._columns.items():
            mean = total / np.maximum(known, 1)
            numbers = {"minimum": least, "maximum": greatest, "mean": mean}
            found[name] = {"known": np.asarray(known).tolist()} | {
                key: _where(np.asarray(known) > 0, np.asarray(value)) for key, value in numbers.items()
            }
        return found


def _where(known: NDArray[np.bool_], values: NDArray[Any]) -> Any:
    """Values as JSON has them, null where not known."""
    if values.ndim == 0:
        return values.item() if known else None
    return [value if there else None for value, there in zip(values.tolist(), known.tolist(), strict=True)]


def manifest_beside(catalog: Path) -> Path:
    """Name of the manifest of a catalogue that is a file."""
    return catalog.with_name(f"{catalog.name}.manifest.json")


def write_manifest_of_folder(folder: Path, statistics: ColumnStatistics, rows: int) -> None:
    """Write the manifest of a catalogue that is a folder, ``manifest.json``, of all other files in it."""
    complete = sorted(path for path in folder.rglob("*") if path.is_file())
    write_manifest(folder / "manifest.json", complete, statistics, rows)


def write_manifest(path: Path, files: Sequence[Path], statistics: ColumnStatistics, rows: int) -> None:
    """Write the manifest, a JSON file, of files in its folder or beneath."""
    sums = {str(file.relative_to(path.parent)): checksum(file) for file in files}
    record = {"rows": rows, "files": sums, "columns": statistics.as_dict()}
    with PendingFile(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def checksum(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
