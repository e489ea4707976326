"""How fast spectra are read from each format, beside what reads it today, and what becomes of that in a catalogue."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import xpkern as xk
from bench.coefficients import calibration_of
from bench.fitting import Fitter
from bench.harness import Comparison, Contestant, compare, measure_once, null_run
from bench.ingest import catalogue_contestant, peak_memory, silenced
from bench.result import Result
from bench.spectrum_formats import FILES, TABLES, Columns, columns_of
from bench.stars import survey_files
from xpkern.catalog.output import CatalogOutput
from xpkern.catalog.provenance import provenance_of_fit
from xpkern.catalog.rows import star_rows
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks

#: Rows that formats are given whose peers (or which themselves) take a millisecond for each.
FEW_ROWS = 256

#: The work behind the reading.
PARTS = ("calibrate", "start and fit", "covariance", "write")

#: Lengths of the files whose memory is compared, in multiples of the benchmark's own.
LENGTHS = (1, 4)

#: Formats of which a catalogue is made.
TO_CATALOGUE = {"h5": "HDF5 mirror", "parquet": "Parquet", "fixed.parquet": "Parquet, plain"}


def bench_formats(n_rows: int, rounds: int, engine_name: str) -> Result:
    """Reading each format, beside what reads it today; HDF5 and Parquet to a catalogue; the parser of csv arrays."""
    files = survey_files(n_rows)
    (block,) = read_blocks(files.spectra, Calibration.default(), rows=n_rows)
    columns = columns_of(block.source_id, block.coefficients)
    few = {name: values[:FEW_ROWS] for name, values in columns.items()}
    extra: dict[str, Any] = {"rows": n_rows}
    duels: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="xpkern-bench-") as name:
        folder = Path(name)
        peers = _peers()
        for form, (peer_name, reader, is_slow) in peers.items():
            table, rows = (few, min(FEW_ROWS, n_rows)) if is_slow else (columns, n_rows)
            source = _made(form, table, folder)
            try:
                duels.append(
                    compare(
                        Contestant(f"{form} to blocks", lambda source=source: _read(source), rows),
                        Contestant(peer_name, lambda source=source, reader=reader: reader(source), rows),
                        rounds=rounds,
                        repeats=1,
                    )
                )
            except ImportError as error:
                extra[peer_name] = str(error)
        duels += _parsers(folder, few, rounds, extra)
        contestants = _parts(n_rows, engine_name, folder / "parts.h5")
        for form, name in TO_CATALOGUE.items():
            path = folder / f"spectra.{form}"
            contestants[f"{name}: reading"] = Contestant(name, lambda path=path: _read(path), n_rows)
            contestants[name] = catalogue_contestant(name, path, files.gaia_source, n_rows, engine_name)
        # in turns, as the machine's clock wanders; the best of each, as interruptions only ever slow down
        times_taken: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(rounds):
            for name, contestant in contestants.items():
                times_taken[name].append(1e6 / measure_once(contestant, 1))
        best = {name: min(taken) for name, taken in times_taken.items()}
        extra |= {f"{name} alone [us a row]": best[name] for name in contestants if name not in TO_CATALOGUE.values()}
        for form, name in TO_CATALOGUE.items():
            total = best[f"{name}: reading"] + sum(best[part] for part in PARTS)
            extra |= {
                f"{name} to catalogue, median [rows/s]": 1e6 / sorted(times_taken[name])[rounds // 2],
                f"{name} to catalogue, best [rows/s]": 1e6 / best[name],
                f"{name}: sum of the parts alone, share of the best": total / best[name],
            }
            for times in LENGTHS:
                longer = folder / f"longer.{form}"
                FILES[form](longer, {key: values * times for key, values in columns.items()})
                memory = peak_memory(longer, files.gaia_source, engine_name)
                extra[f"{name}: peak memory, {times * n_rows:,} rows [MB]"] = memory
                longer.unlink()
        null = null_run(contestants[TO_CATALOGUE["h5"]], rounds=rounds, repeats=1)
    return Result("formats", "rows/s", duels, null, extra)


def _made(form: str, columns: Columns, folder: Path) -> Any:
    if form in TABLES:
        return TABLES[form](columns)
    path = folder / f"spectra.{form}"
    FILES[form](path, columns)
    return path


def _read(source: Any) -> None:
    for _ in read_blocks(source, Calibration.default()):
        pass


def _parts(n_rows: int, engine_name: str, scratch: Path) -> dict[str, Contestant]:
    """The parts of the work behind the reading, each done alone."""
    fitter = Fitter(xk.get_engine(engine_name), n_rows)
    fit = xk.fit(fitter.obs, fitter.model, fitter.prior, engine=fitter.engine, threads=1)

    def write() -> None:
        with CatalogOutput(scratch, "default", provenance_of_fit(fit, "default")) as output:
            output.append(star_rows(fit))
            output.commit()

    work = (
        calibration_of(fitter.engine, n_rows),
        lambda: fitter.fit(fitter.grid),
        lambda: fitter.engine.invert_information(fit.fisher),
        write,
    )
    return {name: Contestant(name, run, n_rows) for name, run in zip(PARTS, work, strict=True)}


Reader = Callable[[Any], object]


def _peers() -> dict[str, tuple[str, Reader, bool]]:
    """What reads each format today: (its name, how, whether few rows are enough)."""

    def astropy(path: Path) -> object:
        from astropy.table import Table

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = Table.read(path, format="votable" if path.suffix == ".xml" else None)
            return [np.stack([np.ma.getdata(row) for row in table[name]]) for name in _arrays(table.colnames)]

    def hdf5(path: Path) -> object:
        with h5py.File(path) as file:
            return {name: file[name][()] for name in file}

    def pandas(path: Path) -> object:
        import pandas

        table = pandas.read_parquet(path)
        return [np.stack(table[name].to_numpy()) for name in _arrays(table.columns)]

    def gaiaxpy(path: Path) -> object:
        import gaiaxpy
        from gaiaxpy.input_reader.input_reader import InputReader

        with silenced(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return InputReader(path, gaiaxpy.calibrate, False).read()

    def fastavro(path: Path) -> object:
        import fastavro

        with open(path, "rb") as stream:
            return list(fastavro.reader(stream))

    def frame(table: Any) -> object:
        return [np.stack(table[name].to_numpy()) for name in _arrays(table.columns)]

    return {
        "csv": ("GaiaXPy reads csv", gaiaxpy, True),
        "ecsv": ("astropy reads ECSV", astropy, True),
        "fits": ("astropy reads FITS", astropy, True),
        "fixed.fits": ("astropy reads FITS, arrays of one length", astropy, False),
        "tabledata.xml": ("astropy reads VOTable, text", astropy, True),
        "binary2.xml": ("astropy reads VOTable, binary", astropy, True),
        "avro": ("fastavro reads AVRO, into lists", fastavro, True),
        "h5": ("h5py reads HDF5, into memory", hdf5, False),
        "parquet": ("pandas reads Parquet, arrays stacked", pandas, False),
        "fixed.parquet": ("pandas reads Parquet, plain, arrays stacked", pandas, False),
        "pandas": ("NumPy stacks the arrays of a DataFrame", frame, True),
    }


def _arrays(names: Any) -> list[str]:
    return [name for name in names if name.endswith(("coefficients", "_errors", "_correlations"))]


def _parsers(folder: Path, columns: Columns, rounds: int, extra: dict[str, Any]) -> list[Comparison]:
    """The csv parser beside other parsers of arrays, all from plain text on the disk to float64 arrays."""
    path = folder / "spectra.csv"
    FILES["csv"](path, columns)
    rows = len(columns["source_id"])

    def simdjson() -> None:
        import csv

        from simdjson import Parser

        csv.field_size_limit(1 << 20)
        parser = Parser()
        with open(path, newline="") as stream:
            for row in csv.DictReader(stream):
                for name in _arrays(row):
                    np.frombuffer(parser.parse(row[name].encode()).as_buffer(of_type="d"))

    def polars() -> None:
        import polars

        table = polars.read_csv(path)
        decoded = [polars.col(name).str.json_decode(polars.List(polars.Float64)) for name in _arrays(table.columns)]
        table.with_columns(decoded)

    duels = []
    for name, run in (("csv module and pysimdjson", simdjson), ("polars: read_csv, json_decode", polars)):
        try:
            duels.append(
                compare(
                    Contestant("our parser", lambda: _read(path), rows),
                    Contestant(name, run, rows),
                    rounds=rounds,
                    repeats=1,
                )
            )
        except ImportError as error:
            extra[name] = str(error)
    return duels
