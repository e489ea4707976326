"""The shards of a run as a catalogue in the HATS layout (:mod:`xpkern.catalog.hats`).

A pixel is divided until it has at most so many rows. Each row has its pixel of order 29, by which a file is sorted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.hats import (
    INDEX,
    INDEX_ORDER,
    SUBFOLDERS,
    Partition,
    describe,
    partial_name,
    refuse_taken_hats,
)
from xpkern.catalog.manifest import ColumnStatistics, write_manifest_of_folder
from xpkern.catalog.parquet_writer import ParquetWriter
from xpkern.catalog.pending import commit_folder
from xpkern.catalog.schema import DIAGNOSTICS, Column, columns_of
from xpkern.catalog.stream import StoredRows
from xpkern.errors import InputError
from xpkern.grid import WAVELENGTH
from xpkern.observe.source_position import BITS_BELOW_PIXEL, PIXEL_LEVEL
from xpkern.shards.collect import IDENTIFIER, CollectSummary, Shards, stored
from xpkern.shards.settings import RunSettings

#: Rows of a partition at most.
PARTITION_ROWS = 1_000_000

#: The highest order of a partition.
_HIGHEST_ORDER = 10


def collect_hats(
    settings: RunSettings,
    output: str | os.PathLike[str],
    *,
    partition_rows: int = PARTITION_ROWS,
    overwrite: bool = False,
    on_rows: Callable[[int], object] | None = None,
) -> CollectSummary:
    """Write the shards as one catalogue in the HATS layout, with the diagnostics companion in the same folder.

    Parameters
    ----------
    settings : RunSettings
    output : path-like
        Folder to make; it appears once it is complete.
    partition_rows : int
        Rows of a partition at most, if its pixel can still be divided.
    overwrite : bool
        Whether to replace a catalogue in the HATS layout that stands there.
    on_rows : callable, optional
        Called with the number of rows of each block.

    Returns
    -------
    CollectSummary

    Raises
    ------
    InputError
        If there is no shard or no row in them, some are of other settings or damaged, the folder exists, or cdshealpix
        is not installed.
    """
    folder = Path(output)
    refuse_taken_hats(folder, overwrite=overwrite)
    shards = Shards.of(settings)
    columns = columns_of(settings.layout)
    identifier = IDENTIFIER[settings.layout]
    position = [identifier, "ra", "dec"]
    counts = np.zeros(12 << 2 * _HIGHEST_ORDER, np.int64)
    for rows in shards.in_order(shards.catalogs, position):
        pixels = healpix_index(rows["ra"], rows["dec"], rows[identifier]) >> 2 * (INDEX_ORDER - _HIGHEST_ORDER)
        counts += np.bincount(pixels, minlength=len(counts))
    partitions = list(_divided(counts, partition_rows))
    if not partitions:
        raise InputError(
            "the shards have no rows, and the HATS layout has no empty catalogue: give the name of a file",
            file=str(folder),
        )
    partial = partial_name(folder)
    tables: dict[str, tuple[Sequence[Column], Mapping[str, object]]] = {
        "catalog": ([INDEX, *columns], shards.attributes),
        "diagnostics": (DIAGNOSTICS, {**shards.attributes, "wavelength": WAVELENGTH}),
    }
    summary = CollectSummary(shards=len(shards.catalogs), missing=shards.missing, duplicates=shards.duplicates())
    statistics = ColumnStatistics()
    try:
        for subfolder in SUBFOLDERS.values():
            (partial / subfolder).mkdir(parents=True)
        files = {table: _Files(partial, partitions, table, *about) for table, about in tables.items()}
        both = zip(
            shards.in_order(shards.catalogs, [column.name for column in columns]),
            shards.in_order(shards.diagnostics, [column.name for column in DIAGNOSTICS]),
            strict=True,
        )
        for rows, beside in both:
            rows[INDEX.name] = beside[INDEX.name] = healpix_index(rows["ra"], rows["dec"], rows[identifier])
            files["catalog"].append(rows)
            files["diagnostics"].append(beside)
            statistics.add(rows)
            summary.rows += len(rows)
            if on_rows is not None:
                on_rows(len(rows))
        describe(partial, folder.name, partitions, partition_rows)
        write_manifest_of_folder(partial, statistics, summary.rows)
        commit_folder(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    summary.files = [folder]
    return summary


def healpix_index(ra: NDArray[Any], dec: NDArray[Any], source_id: NDArray[Any]) -> NDArray[np.int64]:
    """Pixel of order 29 of each row; of one without a position, the first of the pixel that its source_id names.

    Parameters
    ----------
    ra, dec : (n,) array
        [deg]
    source_id : (n,) int64
    """
    try:
        from astropy import units
        from astropy.coordinates import Latitude, Longitude
        from cdshealpix.nested import lonlat_to_healpix
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install 'xpkern[survey]'") from None
    index = np.asarray(source_id, np.int64) >> BITS_BELOW_PIXEL << 2 * (INDEX_ORDER - PIXEL_LEVEL)
    known = np.isfinite(ra) & np.isfinite(dec)
    if known.any():
        longitude, latitude = Longitude(ra[known] * units.deg), Latitude(dec[known] * units.deg)
        index[known] = lonlat_to_healpix(longitude, latitude, INDEX_ORDER).astype(np.int64)
    return index


def _divided(counts: NDArray[np.int64], most: int) -> Iterator[Partition]:
    """Pixels with at most so many rows, from the counts at the highest order."""
    levels = [counts]
    for _ in range(_HIGHEST_ORDER):
        levels.insert(0, levels[0].reshape(-1, 4).sum(axis=1))
    open_pixels: NDArray[np.intp] = np.arange(12)
    for order, of_level in enumerate(levels):
        open_pixels = open_pixels[of_level[open_pixels] > 0]
        small = (of_level[open_pixels] <= most) | (order == _HIGHEST_ORDER)
        for pixel in open_pixels[small]:
            yield Partition(order, int(pixel), int(of_level[pixel]))
        open_pixels = (4 * open_pixels[~small, None] + np.arange(4)).ravel()


class _Files:
    """The files of partitions of one table while rows come by source_id: a partition's rows lie near each other.

    Rows wait until their partition has all of them; as an order of source_id is nearly one of pixels, few wait.
    """

    def __init__(
        self,
        folder: Path,
        partitions: Sequence[Partition],
        table: str,
        columns: Sequence[Column],
        attributes: Mapping[str, object],
    ) -> None:
        self._folder, self._table = folder, table
        self._columns = stored(columns)
        self._attributes = attributes
        by_start = sorted(partitions, key=lambda each: each.pixel << 2 * (INDEX_ORDER - each.order))
        self._partitions = by_start
        self._starts = np.array([each.pixel << 2 * (INDEX_ORDER - each.order) for each in by_start], np.int64)
        self._waiting: dict[int, list[StoredRows]] = {}
        self._counts = np.zeros(len(by_start), np.int64)

    def append(self, rows: StoredRows) -> None:
        """Add rows, each with its index; write the partitions that have all of theirs."""
        partition = np.searchsorted(self._starts, rows[INDEX.name], side="right") - 1
        for number in np.unique(partition):
            chosen = partition == number
            part = StoredRows({name: values[chosen] for name, values in rows.items()})
            self._waiting.setdefault(int(number), []).append(part)
            self._counts[number] += len(part)
            if self._counts[number] == self._partitions[number].rows:
                self._write(int(number))

    def _write(self, number: int) -> None:
        parts = self._waiting.pop(number)
        # a column of all parts at a time, and then some rows: a partition is in memory once, not several times
        whole = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
        order = np.argsort(whole[INDEX.name], kind="stable")
        path = self._partitions[number].file(self._folder, self._table)
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = ParquetWriter(path, self._columns, self._attributes)
        try:
            for first in range(0, len(order), writer.group_rows):
                some = order[first : first + writer.group_rows]
                writer.append(StoredRows({name: values[some] for name, values in whole.items()}))
            writer.close()
        finally:
            writer.abandon()
