"""The best stack of Python packages for the archive's csv.gz files: isal, pyarrow, pysimdjson and NumPy.

Measured for a row of 33 kB on one core: igzip 65 us, pyarrow's csv reader 35, the arrays 67 by simdjson (orjson
195; Arrow's own csv reader, given the arrays as columns, 1,200), A Sigma A^T with batched Cholesky 125.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
from isal import igzip

import xpkern as xk
from bench.peers.numpy_calibration import numpy_calibrate
from xpkern.engine.contract import Coefficients
from xpkern.observe.calibration import Calibration

try:
    import simdjson
except ImportError as error:  # an extra of the benchmarks, not of xpkern
    raise ImportError("this peer needs pysimdjson: pip install 'xpkern[bench]' (or pip install pysimdjson)") from error

#: Rows calibrated together: what is made of them stays in the cache.
ROWS = 128

#: Bytes of text that pyarrow parses at a time.
BLOCK = 1 << 23

ARRAYS = {"": "coefficients", "_error": "coefficient_errors", "_correlation": "coefficient_correlations"}


def python_calibrate(path: Path, calibration: Calibration, noise: xk.Noise) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield flux (n, 61) and Cholesky factor (n, 61, 61) of all rows of a csv.gz file, ``ROWS`` at a time."""
    for coefficients in read_coefficients(path):
        yield numpy_calibrate(calibration, coefficients, noise)


def read_coefficients(path: Path) -> Iterator[Coefficients]:
    """Yield the rows of a csv.gz file; both spectra of every row must be there."""
    columns = [f"{side}_{name}" for side in ("bp", "rp") for name in ARRAYS.values()]
    with igzip.open(path, "rb") as stream:
        comments = 0
        while stream.readline().startswith(b"#"):
            comments += 1
        stream.seek(0)
        batches = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK, skip_rows=comments),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pyarrow.binary())
            ),
        )
        for batch in batches:
            for first in range(0, batch.num_rows, ROWS):
                yield _coefficients(batch.slice(first, ROWS))


def _coefficients(batch: pyarrow.RecordBatch) -> Coefficients:
    parser = simdjson.Parser()

    def numbers(column: str) -> np.ndarray:
        cells = batch.column(column).to_pylist()
        return np.array([np.frombuffer(parser.parse(cell).as_buffer(of_type="d")) for cell in cells])

    arrays = {f"{side}{ours}": numbers(f"{side}_{name}") for side in ("bp", "rp") for ours, name in ARRAYS.items()}
    unit, present = np.ones(batch.num_rows, np.float32), np.ones(batch.num_rows, bool)
    return Coefficients(
        **arrays, bp_standard_deviation=unit, rp_standard_deviation=unit, has_bp=present, has_rp=present
    )
