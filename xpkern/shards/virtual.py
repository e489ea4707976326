"""One catalogue that refers to the shards: HDF5 datasets whose values stay in the shards' own files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np

from xpkern.catalog.checked_file import CheckedFile
from xpkern.catalog.hdf5_writer import create_file
from xpkern.catalog.output import CATALOG_KINDS, checked_output, file_names
from xpkern.catalog.pending import PendingFile, commit_together
from xpkern.errors import InputError
from xpkern.grid import WAVELENGTH
from xpkern.shards.collect import CollectSummary, Shards, files_to_keep
from xpkern.shards.settings import RunSettings

#: What a reader finds in place of a shard that is gone, by kind of number: of bits, all of them.
_NOTHING: dict[str, Callable[[np.dtype], float]] = {
    "f": lambda dtype: np.nan,
    "i": lambda dtype: -1,
    "u": lambda dtype: int(np.iinfo(dtype).max),
}


def collect_virtual(
    settings: RunSettings,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    on_rows: Callable[[int], object] | None = None,
) -> CollectSummary:
    """Write a catalogue, and its diagnostics companion, that refer to the shards and hold no values themselves.

    Shards follow each other by their first source_id, their rows as they are: a catalogue whose files of spectra are
    each in the order of source_id and do not overlap, as Gaia's, is in that order. It takes no room, and no longer than
    to read the shards once, as they are held against their checksums; they must stay where they are, seen from the
    catalogue. HDF5 gives NaN, -1 or all bits for rows of a shard that is not there.

    Parameters
    ----------
    settings : RunSettings
    output : path-like
        With the ending of HDF5.
    overwrite, on_rows
        As :func:`xpkern.shards.collect.collect`.

    Returns
    -------
    CollectSummary
        ``in_order`` says whether it is by source_id.

    Raises
    ------
    InputError
        As :func:`xpkern.shards.collect.collect`; if the name has not the ending of HDF5.
    """
    final = checked_output(output, files_to_keep(settings), overwrite=overwrite, kinds=CATALOG_KINDS)
    if final.suffix not in (".h5", ".hdf5"):
        raise InputError("only HDF5 can refer to other files: the name must end in .h5 or .hdf5", file=str(output))
    return refer_to(Shards.of(settings), final, on_rows)


def refer_to(shards: Shards, final: Path, on_rows: Callable[[int], object] | None = None) -> CollectSummary:
    """Write the files of :func:`collect_virtual`."""
    first = [int(numbers.min()) if len(numbers) else -1 for numbers in shards.source_id]
    order = sorted(range(len(first)), key=first.__getitem__)
    whole = np.concatenate([shards.source_id[index] for index in order])
    summary = CollectSummary(
        shards=len(order),
        rows=len(whole),
        missing=shards.missing,
        duplicates=shards.duplicates(),
        in_order=bool((whole[1:] >= whole[:-1]).all()),
    )
    names = file_names(final)
    files = {kind: PendingFile(names[kind]) for kind in ("diagnostics", "catalog")}
    try:
        for kind, paths in (("diagnostics", shards.diagnostics), ("catalog", shards.catalogs)):
            attributes = {**shards.attributes, "rows": len(whole)}
            if kind == "diagnostics":
                attributes["wavelength"] = WAVELENGTH
            lengths = [len(shards.source_id[index]) for index in order]
            _refer(files[kind].partial, [paths[index] for index in order], lengths, attributes)
        names["reasons"].unlink(missing_ok=True)  # of an earlier catalogue of this name
        commit_together([(file, names[kind]) for kind, file in files.items()])
    finally:
        for file in files.values():
            file.discard()
    summary.files = [names[kind] for kind in files]
    if on_rows is not None:
        on_rows(summary.rows)
    return summary


def _refer(path: Path, shards: Sequence[Path], lengths: Sequence[int], attributes: dict[str, object]) -> None:
    """Write a file whose datasets are those of the shards, one after the other."""
    stream = CheckedFile(path)
    folder = path.absolute().parent
    with create_file(stream) as file, h5py.File(shards[0]) as like:
        for name, column in like.items():
            shape = (sum(lengths), *column.shape[1:])
            layout = h5py.VirtualLayout(shape, column.dtype)
            start = 0
            for shard, length in zip(shards, lengths, strict=True):
                if length:
                    where = os.path.relpath(shard.absolute(), folder)
                    source = h5py.VirtualSource(where, name, (length, *column.shape[1:]))
                    layout[start : start + length] = source
                start += length
            dataset = file.create_virtual_dataset(name, layout, _NOTHING[column.dtype.kind](column.dtype))
            for key, value in column.attrs.items():
                dataset.attrs[key] = value
        for key, value in attributes.items():
            file.attrs[key] = value
    stream.close()
    stream.check()
