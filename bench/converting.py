"""What a compact file costs and brings: size, time to make it, time of a catalogue of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import xpkern as xk
from bench.harness import Contestant, compare, measure_once, null_run
from bench.result import Result
from bench.stars import model_and_prior, survey_files
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks
from xpkern.shards.convert import convert_spectra

#: Relative differences of a catalogue of rounded coefficients are told for these columns.
COMPARED = ("teff", "feh", "logg", "ext", "parallax_est")


def bench_convert(n_rows: int, rounds: int, engine_name: str) -> Result:
    """csv.gz to compact HDF5, beside a Python stack that does it, and a catalogue of either; sizes and roundings."""
    files = survey_files(n_rows)
    calibration = Calibration.default()
    with tempfile.TemporaryDirectory(prefix="xpkern-bench-") as name:
        folder = Path(name)

        def convert(lossless: bool) -> Path:
            summary = convert_spectra(
                [files.spectra], folder / ("lossless" if lossless else "compact"), lossless=lossless, overwrite=True
            )
            (file,) = summary.files
            assert not file.error, file.error
            return file.output

        def made_anew() -> None:
            for path in (folder / "compact").glob("*.h5"):
                path.unlink()
            convert(False)

        compact, lossless = convert(False), convert(True)
        ours = Contestant("xpkern convert: csv.gz to compact HDF5", made_anew, n_rows)
        duels, extra = [], dict[str, Any](rows=n_rows)
        try:
            peer = _python_stack(files.spectra, folder / "peer.h5")
            duels.append(
                compare(ours, Contestant("igzip, pyarrow, simdjson, h5py", peer, n_rows), rounds=rounds, repeats=1)
            )
        except ImportError as error:
            extra["Python stack"] = str(error)

        def catalogue(spectra: Path, output: str) -> Callable[[], None]:
            model, prior = model_and_prior()

            def make() -> None:
                xk.make_catalog(
                    [spectra],
                    folder / output,
                    gaia_source=files.gaia_source,
                    model=model,
                    prior=prior,
                    engine=engine_name,
                    threads=1,
                    overwrite=True,
                )

            return make

        of_compact = Contestant("compact HDF5 to catalogue", catalogue(compact, "compact.h5"), n_rows)
        of_text = Contestant("csv.gz to catalogue", catalogue(files.spectra, "text.h5"), n_rows)
        duels.append(compare(of_compact, of_text, rounds=rounds, repeats=1))
        catalogue(lossless, "lossless.h5")()

        def reading(path: Path) -> float:
            def read() -> None:
                for _ in read_blocks(path, calibration):
                    pass

            return 1e6 / measure_once(Contestant("", read, n_rows), 3)

        extra |= {
            "csv.gz: bytes a row": files.spectra.stat().st_size / n_rows,
            "compact: bytes a row": compact.stat().st_size / n_rows,
            "lossless: bytes a row": lossless.stat().st_size / n_rows,
            "csv.gz: reading alone [us a row]": reading(files.spectra),
            "compact: reading alone [us a row]": reading(compact),
            "lossless: same catalogue to the byte": _same_bytes(folder / "lossless.h5", folder / "text.h5"),
        }
        for what, options in (
            ("without checksums", {}),
            ("contiguous", {"chunks": None}),
            ("shuffle, deflate 1", {"shuffle": True, "compression": "gzip", "compression_opts": 1}),
        ):
            other = _copy(compact, folder / "other.h5", options)
            extra[f"compact, {what}: bytes a row"] = other.stat().st_size / n_rows
            extra[f"compact, {what}: reading alone [us a row]"] = reading(other)
        extra |= _roundings(folder / "compact.h5", folder / "text.h5")
        null = null_run(ours, rounds=rounds, repeats=1)
    return Result("convert", "rows/s", duels, null, extra)


def _python_stack(spectra: Path, output: Path) -> Callable[[], None]:
    """The same by the best packages of Python: no checks, no rows with faults."""
    from bench.peers.python_csv import ARRAYS, read_coefficients

    def run() -> None:
        blocks = list(read_coefficients(spectra))
        with h5py.File(output, "w") as file:
            for side in ("bp", "rp"):
                for ours, name in ARRAYS.items():
                    values = np.concatenate([getattr(block, f"{side}{ours}") for block in blocks]).astype(np.float32)
                    chunks = (min(256, len(values)), values.shape[1])
                    file.create_dataset(f"{side}_{name}", data=values, chunks=chunks, fletcher32=True)

    return run


def _copy(source: Path, target: Path, options: dict[str, Any]) -> Path:
    """The same columns stored otherwise."""
    with h5py.File(source) as file, h5py.File(target, "w") as copy:
        for name, data in file.items():
            chosen = {"chunks": data.chunks} | options
            copy.create_dataset(
                name, data=data[()], **{key: value for key, value in chosen.items() if value is not None}
            )
    return target


def _same_bytes(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()


def _roundings(one: Path, other: Path) -> dict[str, float]:
    """Largest change of a parameter by coefficients in 32 bits, in its standard errors, of 99.9 % of the stars."""
    with h5py.File(one) as rounded, h5py.File(other) as exact:
        changes = {}
        for name in COMPARED:
            change = np.abs(rounded[name][()] - exact[name][()]) / exact[f"{name}_error"][()]
            changes[f"{name}: change by rounding, 99.9 % below [standard errors]"] = float(
                np.nanquantile(change, 0.999)
            )
    return changes
