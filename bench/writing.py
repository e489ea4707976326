"""How fast a catalogue is written in each format, against astropy and pandas, and against its bytes written plainly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from astropy.table import Table

import xpkern as xk
from bench.fitting import Fitter
from bench.harness import Contestant, compare, measure_once, null_run
from bench.result import Result
from xpkern.catalog.metadata import astropy_table
from xpkern.catalog.provenance import provenance_of_fit
from xpkern.catalog.rows import StarRows, star_rows
from xpkern.catalog.schema import DEFAULT
from xpkern.catalog.writers import writer_for

#: Rows that come at a time, as from the blocks of a run.
BLOCK_ROWS = 1024

#: Part of the rows that the peers for text are given: they take a tenth of a millisecond for each.
TEXT_SHARE = 8


def bench_write(n_rows: int, rounds: int, engine_name: str) -> Result:
    """Rows of a catalogue to a file: StarRows by our writers, block by block; a table in memory by astropy, pandas."""
    fitter = Fitter(xk.get_engine(engine_name), n_rows)
    fit = xk.fit(fitter.obs, fitter.model, fitter.prior, engine=fitter.engine, threads=1)
    everything, about = star_rows(fit), provenance_of_fit(fit, "default")
    rows = len(everything)
    table = astropy_table(DEFAULT, {column.name: column.compute(everything) for column in DEFAULT}, about)
    few = table[: max(1, rows // TEXT_SHARE)]
    duels, extra = [], dict[str, Any](rows=rows)
    with TemporaryDirectory() as folder:
        path = Path(folder)

        def ours(suffix: str) -> Contestant:
            def write() -> None:
                name = path / f"ours{suffix}"
                writer = writer_for(name)(name, DEFAULT, about)
                for start in range(0, rows, BLOCK_ROWS):
                    writer.append(part_of(everything, slice(start, start + BLOCK_ROWS)))
                writer.close()

            return Contestant(f"xpkern {suffix}", write, rows)

        def astropy(suffix: str, given: Table, **options: Any) -> Contestant:
            name = path / f"astropy{suffix}"
            return Contestant(f"astropy {suffix}", lambda: given.write(name, overwrite=True, **options), len(given))

        for suffix, peer in (
            (".h5", astropy(".h5", table, path="data", serialize_meta=True)),
            (".fits", astropy(".fits", without_dex(table))),
            (".ecsv", astropy(".ecsv", few)),
            (".parquet", astropy(".parquet", table)),
            (".parquet", pandas(table, path / "pandas.parquet")),
        ):
            contestant = ours(suffix)
            duels.append(compare(contestant, peer, rounds=rounds, repeats=1))
            size = (path / f"ours{suffix}").stat().st_size
            plain = Contestant("plain write", plainly(path / "plain", bytes(size)), rows)
            extra[f"{suffix}: bytes a row"] = size / rows
            share = measure_once(contestant, 3) / measure_once(plain, 3)
            extra[f"{suffix}: share of a plain write of its bytes"] = share
        null = null_run(ours(".fits"), rounds=rounds, repeats=1)
    return Result("write", "rows/s", duels, null, extra)


def plainly(name: Path, content: bytes) -> Callable[[], object]:
    """What writes so many bytes."""
    return lambda: name.write_bytes(content)


def part_of(rows: StarRows, stars: slice) -> StarRows:
    """Some of the rows, none of their columns computed yet."""
    part = {each.name: getattr(rows, each.name) for each in fields(rows)}
    observed = {name: column[stars] for name, column in part.pop("observed").items()}
    return StarRows(observed=observed, **{name: values[stars] for name, values in part.items()})


def without_dex(table: Table) -> Table:
    """The same table without the unit that FITS does not know, of which astropy warns each time, and without meta."""
    plain = table.copy(copy_data=False)
    for name in plain.colnames:
        if str(plain[name].unit) == "dex":
            plain[name].unit = None
    plain.meta.clear()
    return plain


def pandas(table: Table, name: Path) -> Contestant:
    """A data frame to Parquet, without units or descriptions."""
    frame = table.to_pandas()
    return Contestant("pandas .parquet, no units", lambda: frame.to_parquet(name), len(frame))
