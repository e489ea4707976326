"""A catalogue in the HATS layout: Parquet files by HEALPix pixel, which LSDB opens.

::

    FOLDER/hats.properties, properties, partition_info.csv
    FOLDER/manifest.json
    FOLDER/dataset/_common_metadata, _metadata
    FOLDER/dataset/Norder=K/Dir=D/Npix=P.parquet      D = P // 10000 * 10000

A pixel is divided until it has at most so many rows. Each row has its pixel of order 29, by which a file is sorted.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.parquet_writer import ParquetWriter
from xpkern.catalog.schema import Column, columns_of
from xpkern.catalog.stream import StoredRows
from xpkern.errors import InputError
from xpkern.observe.source_position import BITS_BELOW_PIXEL, PIXEL_LEVEL
from xpkern.shards.collect import IDENTIFIER, CollectSummary, Shards, stored
from xpkern.shards.manifest import ColumnStatistics, write_manifest
from xpkern.shards.settings import RunSettings
from xpkern.version import __version__

if TYPE_CHECKING:
    pass

#: Rows of a partition at most.
PARTITION_ROWS = 1_000_000

#: Order of the index of each row, and the highest order of a partition.
_INDEX_ORDER, _HIGHEST_ORDER = 29, 10

#: Files that say what it is, by the present name and the former one.
_PROPERTIES = ("hats.properties", "properties")

#: The index, as HATS names it.
_INDEX = Column(
    "_healpix_29", "int64", "", "pos.healpix", "HEALPix pixel, nested, of order 29", itemgetter("_healpix_29")
)


@dataclass(frozen=True)
class Partition:
    """A pixel, and how many rows lie in it."""

    order: int
    pixel: int
    rows: int

    def file(self, folder: Path) -> Path:
        """Its file."""
        directory = self.pixel // 10_000 * 10_000
        return folder / "dataset" / f"Norder={self.order}" / f"Dir={directory}" / f"Npix={self.pixel}.parquet"


def collect_hats(
    settings: RunSettings,
    output: str | os.PathLike[str],
    *,
    partition_rows: int = PARTITION_ROWS,
    overwrite: bool = False,
    on_rows: Callable[[int], object] | None = None,
) -> CollectSummary:
    """Write the shards as one catalogue in the HATS layout.

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
        If there is no shard, some are of other settings or damaged, the folder exists, or cdshealpix is not installed.
    """
    folder = Path(output)
    replaces = folder.exists()
    if replaces and not overwrite:
        raise InputError("exists; --overwrite (overwrite=True) replaces it", file=str(folder))
    if replaces and not (folder / _PROPERTIES[0]).is_file():
        raise InputError("exists, and is no catalogue in the HATS layout: it is not replaced", file=str(folder))
    if not folder.absolute().parent.is_dir():
        raise InputError("its folder does not exist", file=str(folder))
    shards = Shards.of(settings)
    shards.verify(shards.catalogs)
    columns = columns_of(settings.layout)
    identifier = IDENTIFIER[settings.layout]
    position = [identifier, "ra", "dec"]
    counts = np.zeros(12 << 2 * _HIGHEST_ORDER, np.int64)
    for rows in shards.in_order(shards.catalogs, position):
        pixels = healpix_index(rows["ra"], rows["dec"], rows[identifier]) >> 2 * (_INDEX_ORDER - _HIGHEST_ORDER)
        counts += np.bincount(pixels, minlength=len(counts))
    partitions = list(_divided(counts, partition_rows))
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    summary = CollectSummary(shards=len(shards.catalogs), missing=shards.missing, duplicates=shards.duplicates())
    statistics = ColumnStatistics()
    try:
        (partial / "dataset").mkdir(parents=True)
        with _Files(partial, partitions, columns, shards.attributes) as files:
            for rows in shards.in_order(shards.catalogs, [column.name for column in columns]):
                rows[_INDEX.name] = healpix_index(rows["ra"], rows["dec"], rows[identifier])
                files.append(rows)
                statistics.add(rows)
                summary.rows += len(rows)
                if on_rows is not None:
                    on_rows(len(rows))
        _describe(partial, folder.name, partitions, columns, shards.attributes, partition_rows)
        complete = sorted(path for path in partial.rglob("*") if path.is_file())
        write_manifest(partial / "manifest.json", complete, statistics, summary.rows)
        if replaces:
            shutil.rmtree(folder)
        os.replace(partial, folder)
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
    index = np.asarray(source_id, np.int64) >> BITS_BELOW_PIXEL << 2 * (_INDEX_ORDER - PIXEL_LEVEL)
    known = np.isfinite(ra) & np.isfinite(dec)
    if known.any():
        longitude, latitude = Longitude(ra[known] * units.deg), Latitude(dec[known] * units.deg)
        index[known] = lonlat_to_healpix(longitude, latitude, _INDEX_ORDER).astype(np.int64)
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
    """The files of partitions while rows come by source_id: a partition's rows lie near each other.

    Rows wait until their partition has all of them; as an order of source_id is nearly one of pixels, few wait.
    """

    def __init__(
        self, folder: Path, partitions: Sequence[Partition], columns: Sequence[Column], attributes: dict[str, object]
    ) -> None:
        self._folder = folder
        self._columns = stored([_INDEX, *columns])
        self._attributes = attributes
        by_start = sorted(partitions, key=lambda each: each.pixel << 2 * (_INDEX_ORDER - each.order))
        self._partitions = by_start
        self._starts = np.array([each.pixel << 2 * (_INDEX_ORDER - each.order) for each in by_start], np.int64)
        self._waiting: dict[int, list[StoredRows]] = {}
        self._counts = np.zeros(len(by_start), np.int64)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()

    def append(self, rows: StoredRows) -> None:
        partition = np.searchsorted(self._starts, rows[_INDEX.name], side="right") - 1
        for number in np.unique(partition):
            chosen = partition == number
            part = StoredRows({name: values[chosen] for name, values in rows.items()})
            self._waiting.setdefault(int(number), []).append(part)
            self._counts[number] += len(part)
            if self._counts[number] == self._partitions[number].rows:
                self._write(int(number))

    def _write(self, number: int) -> None:
        parts = self._waiting.pop(number)
        order = np.argsort(np.concatenate([part[_INDEX.name] for part in parts]), kind="stable")
        rows = StoredRows({name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]})
        path = self._partitions[number].file(self._folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = ParquetWriter(path, self._columns, self._attributes)
        try:
            writer.append(rows)
            writer.close()
        finally:
            writer.abandon()


def _describe(
    folder: Path,
    name: str,
    partitions: Sequence[Partition],
    columns: Sequence[Column],
    attributes: dict[str, object],
    most: int,
) -> None:
    """Write what LSDB reads first."""
    from pyarrow import parquet

    dataset = folder / "dataset"
    collected = []
    schema = None
    for partition in sorted(partitions, key=lambda each: (each.order, each.pixel)):
        path = partition.file(folder)
        metadata = parquet.read_metadata(path)
        metadata.set_file_path(str(path.relative_to(dataset)))
        collected.append(metadata)
        schema = metadata.schema.to_arrow_schema() if schema is None else schema
    if schema is None:
        raise InputError("there are no rows to write", file=str(folder))
    parquet.write_metadata(schema, dataset / "_common_metadata")
    parquet.write_metadata(schema, dataset / "_metadata", metadata_collector=collected)
    lines = ["Norder,Npix", *(f"{each.order},{each.pixel}" for each in partitions)]
    (folder / "partition_info.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    properties = {
        "obs_collection": name,
        "dataproduct_type": "object",
        "hats_nrows": sum(each.rows for each in partitions),
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": _INDEX.name,
        "hats_col_healpix_order": _INDEX_ORDER,
        "hats_max_rows": most,
        "hats_order": max(each.order for each in partitions),
        "hats_npix_suffix": ".parquet",
        "moc_sky_fraction": f"{sum(4.0**-each.order for each in partitions) / 12:.5f}",
        "hats_builder": f"xpkern v{__version__}",
        "hats_version": "v1.0",
    }
    text = "".join(f"{key}={value}\n" for key, value in properties.items())
    for file in _PROPERTIES:
        (folder / file).write_text(text, encoding="utf-8")
