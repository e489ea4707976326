"""What tests of files share: rows of anything, and a reader of every format."""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
from astropy.table import Table
from astropy.units import UnitsWarning

from xpkern.catalog.rows import StarRows
from xpkern.grid import N_FLUX, N_PARAMETERS

#: Endings of the formats that a catalogue may have.
SUFFIXES = [".h5", ".fits", ".ecsv", ".parquet"]


def random_rows(rng: np.random.Generator, n: int) -> StarRows:
    """Rows of anything: every kind of number a column may hold, unfitted stars among them."""
    scale = 10.0 ** rng.uniform(-30, 30, n)

    def numbers(*shape: int) -> np.ndarray:
        values = rng.normal(size=(n, *shape)) * scale.reshape(-1, *[1] * len(shape))
        values[rng.uniform(size=n) < 0.2] = np.nan
        return values

    def integers(dtype: type) -> np.ndarray:
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, n, dtype=dtype, endpoint=True)

    matrix = np.abs(numbers(N_PARAMETERS, N_PARAMETERS))
    return StarRows(
        source_id=integers(np.int64),
        observed={"ra": numbers(), "dec": numbers(), "ruwe": np.full(n, np.inf)},
        plx_observed=numbers(),
        plx_error=np.abs(numbers()),
        params=numbers(N_PARAMETERS),
        model_plx=numbers(),
        covariance=matrix,
        fisher=matrix,
        loss=numbers(),
        chi2=numbers(),
        chi2_learned=numbers(),
        ln_prior=numbers(),
        gradient_norm=numbers(),
        decrement=numbers(),
        residual=rng.normal(size=(n, N_FLUX)).astype(np.float32),
        used=rng.uniform(size=(n, N_FLUX)) < 0.5,
        confidence=numbers(3),
        quality_flags=integers(np.uint8),
        status=integers(np.uint32),
        iterations=rng.integers(0, 100, n, dtype=np.int32),
        minima=integers(np.int32),
        second_params=numbers(N_PARAMETERS),
        second_gap=numbers(),
    )


def part_of(rows: StarRows, block: slice) -> StarRows:
    part = {
        name: {key: column[block] for key, column in value.items()} if name == "observed" else value[block]
        for name, value in ((each.name, getattr(rows, each.name)) for each in fields(rows))
    }
    return replace(rows, **part)


def read(path: Path) -> Table:
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            table = Table({name: file[name][()] for name in file}, meta=dict(file.attrs))
            for name in file:
                table[name].unit = file[name].attrs["unit"] or None
                table[name].description = file[name].attrs["description"]
                table[name].meta["ucd"] = file[name].attrs["ucd"]
            return table
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'dex' did not parse as fits unit", UnitsWarning)
        return Table.read(path)
