"""The HATS layout: Parquet files by HEALPix pixel, which LSDB opens, and beside them the companion's.

::

    FOLDER/hats.properties, properties, partition_info.csv
    FOLDER/manifest.json
    FOLDER/dataset/_common_metadata, _metadata
    FOLDER/dataset/Norder=K/Dir=D/Npix=P.parquet      D = P // 10000 * 10000
    FOLDER/diagnostics/Order=K/Dir=D/Pixel=P.parquet  row by row the same stars: ours, HATS does not know it

Validators of HATS take every file of its naming, wherever it lies in the folder, for a partition: the companion's have
another.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from xpkern.catalog.pending import refuse_folder
from xpkern.catalog.schema import Column
from xpkern.errors import InputError
from xpkern.version import __version__

#: Order of the index of each row.
INDEX_ORDER = 29

#: The index, as HATS names it.
INDEX = Column(
    "_healpix_29", "int64", "", "pos.healpix", "HEALPix pixel, nested, of order 29", itemgetter("_healpix_29")
)

#: Folders of the files of each table.
SUBFOLDERS = {"catalog": "dataset", "diagnostics": "diagnostics"}

#: Names of the files of each table beneath, by order, directory and pixel; ``*`` for each finds all of them.
_NAMES = {
    "catalog": "Norder={}/Dir={}/Npix={}.parquet",
    "diagnostics": "Order={}/Dir={}/Pixel={}.parquet",
}

#: Files that say what it is, by the present name and the former one.
PROPERTIES = ("hats.properties", "properties")


@dataclass(frozen=True)
class Partition:
    """A pixel, and how many rows lie in it."""

    order: int
    pixel: int
    rows: int

    def file(self, folder: Path, table: str = "catalog") -> Path:
        """Its file of a table."""
        name = _NAMES[table].format(self.order, self.pixel // 10_000 * 10_000, self.pixel)
        return folder / SUBFOLDERS[table] / name


def hats_files(folder: Path, table: str = "catalog") -> list[Path]:
    """Files of a table, by order and pixel: the same order for both.

    Raises
    ------
    InputError
        If the folder is no catalogue in this layout, or has no such table.
    """
    files = {
        kind: sorted(folder.glob(f"{name}/{_NAMES[kind].format('*', '*', '*')}")) for kind, name in SUBFOLDERS.items()
    }
    if not files["catalog"]:
        raise InputError("is a folder, and no catalogue in the HATS layout", file=str(folder))
    if not files[table]:
        raise InputError(
            f"has no {table} companion in {folder.name}/{SUBFOLDERS[table]}: xpkern collect writes it there",
            file=str(folder),
        )
    return sorted(files[table], key=order_and_pixel)


def order_and_pixel(path: Path) -> tuple[int, int]:
    """Of a file, by its name."""
    order, pixel = path.parts[-3], path.stem
    return int(order.partition("=")[2]), int(pixel.partition("=")[2])


def refuse_taken_hats(folder: Path, *, overwrite: bool) -> None:
    """Raise an InputError unless a catalogue may be put there: only one in this layout is ever replaced."""
    refuse_folder(folder, PROPERTIES[0], "catalogue in the HATS layout", overwrite=overwrite)


def describe(folder: Path, name: str, partitions: Sequence[Partition], most: int) -> None:
    """Write what LSDB reads first.

    Parameters
    ----------
    folder : Path
        With the files of all partitions in it.
    name : str
        Of the catalogue.
    partitions : sequence of Partition
        One at least.
    most : int
        Rows of a partition at most.
    """
    from pyarrow import parquet

    dataset = folder / SUBFOLDERS["catalog"]
    collected = []
    for partition in sorted(partitions, key=lambda each: (each.order, each.pixel)):
        path = partition.file(folder)
        metadata = parquet.read_metadata(path)
        metadata.set_file_path(str(path.relative_to(dataset)))
        collected.append(metadata)
    schema = collected[0].schema.to_arrow_schema()
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
        "hats_col_healpix": INDEX.name,
        "hats_col_healpix_order": INDEX_ORDER,
        "hats_max_rows": most,
        "hats_order": max(each.order for each in partitions),
        "hats_npix_suffix": ".parquet",
        "moc_sky_fraction": f"{sum(4.0**-each.order for each in partitions) / 12:.5f}",
        "hats_builder": f"xpkern v{__version__}",
        "hats_version": "v1.0",
    }
    text = "".join(f"{key}={value}\n" for key, value in properties.items())
    for file in PROPERTIES:
        (folder / file).write_text(text, encoding="utf-8")


def most_rows(folder: Path) -> int:
    """Rows of a partition at most, as the properties have it; 0 where they do not tell."""
    try:
        lines = (folder / PROPERTIES[0]).read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    found = dict(line.partition("=")[::2] for line in lines)
    text = found.get("hats_max_rows", "").strip()
    return int(text) if text.isdigit() else 0


def partial_name(folder: Path) -> Path:
    """Where a folder is made before it gets its name."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.partial")
