"""Small rows of Gaia's csv files, for the tests of their reader."""

from __future__ import annotations

import gzip

import numpy as np

from xpkern.grid import XP_WAVELENGTH
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks

#: Three BP and two RP coefficients: rows that fit on a line.
SMALL = Calibration(
    release="small",
    instrument_model="none",
    bp_design=np.zeros((61, 3)),
    rp_design=np.zeros((61, 2)),
    wavelength=XP_WAVELENGTH,
    bp_basis_function_id=56,
    rp_basis_function_id=57,
)

COLUMNS = ["source_id", "solution_id"] + [
    f"{band}_{name}"
    for band in ("bp", "rp")
    for name in (
        "basis_function_id",
        "n_parameters",
        "standard_deviation",
        "coefficients",
        "coefficient_errors",
        "coefficient_correlations",
    )
]

ROW = {
    "source_id": "4295806720",
    "solution_id": "1",
    "bp_basis_function_id": "56",
    "bp_n_parameters": "3",
    "bp_standard_deviation": "1.25",
    "bp_coefficients": '"[347.1327779877959,-1.0E-4,0.026582440001875898]"',
    "bp_coefficient_errors": '"[1.5,0.25,2.06604E-4]"',
    "bp_coefficient_correlations": '"[0.11236182,-0.05383272,1.0]"',
    "rp_basis_function_id": "57",
    "rp_n_parameters": "2",
    "rp_standard_deviation": "1.5",
    "rp_coefficients": '"[-7.0,8.0]"',
    "rp_coefficient_errors": '"[0.5,0.75]"',
    "rp_coefficient_correlations": '"[-0.5]"',
}


def row_text(columns=COLUMNS, **changes):
    row = ROW | changes
    return ",".join(row[name] for name in columns)


def file_of(tmp_path, rows, columns=COLUMNS, *, before="", end="\n", name="spectra.csv"):
    path = tmp_path / name
    data = (before + end.join([",".join(columns), *rows, ""])).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def read(path, calibration=SMALL, rows=1000, **options):
    """The only block of a small file."""
    blocks = list(read_blocks(path, calibration, rows=rows, **options))
    assert len(blocks) == 1
    return blocks[0]


def assert_same(block, other):
    assert np.array_equal(block.source_id, other.source_id)
    assert np.array_equal(block.bad, other.bad)
    for name, value in vars(block.coefficients).items():
        assert np.array_equal(value, getattr(other.coefficients, name)), name


def real_files(shared_data):
    paths = sorted((shared_data / "gaiaxpy" / "xp_continuous").glob("*.*csv"))
    return [*paths, *(shared_data / "real").glob("Xp*.csv.gz")]
