"""The examples run and say something sensible."""

import runpy
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run_example(name, *arguments):
    return runpy.run_path(str(EXAMPLES / name))["main"](*arguments)


def test_predict_spectra(capsys):
    run_example("predict_spectra.py")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    fluxes = np.array(rows, dtype=float)[:, 1:]
    assert fluxes.shape[1] == 6
    assert (fluxes[:, :2] > fluxes[:, 1:3]).all(), "more dust, less light"


def test_fit_arrays(capsys):
    run_example("fit_arrays.py")
    lines = [line.split()[1:] for line in capsys.readouterr().out.splitlines()]
    true, found, error = (np.array(lines[first::3], dtype=float) for first in range(3))
    assert (np.abs(found - true) < 5 * error + 0.02 * np.abs(true)).all()


def test_fit_file(shared_data, tmp_path, capsys):
    run_example(
        "fit_file.py",
        str(shared_data / "real" / "XpContinuousMeanSpectrum_real-30.csv.gz"),
        str(shared_data / "real" / "gaia_source_real-30.csv"),
        str(tmp_path / "catalog.h5"),
    )
    assert "30 stars in" in capsys.readouterr().out
    assert (tmp_path / "catalog.h5").is_file()
