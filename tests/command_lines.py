"""What the tests of the command line share: its arguments, and how its output is read."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

import xpkern as xk
from xpkern.observe.simulate import SurveyFiles

#: Stars of the survey on disk.
STARS = 12
ENGINE = "cpu" if xk.available_engines()["cpu"] is None else "reference"
SUN = ["--teff", "5.77", "--feh", "0", "--logg", "4.44", "--ext", "0.1", "--plx", "10"]


def catalog_arguments(spectra: Path, survey: SurveyFiles) -> list[str]:
    return ["catalog", str(spectra), "--source", str(survey.gaia_source), "--engine", ENGINE]


def write_settings(folder: Path, **changes: object) -> Path:
    """Settings of a survey run: of the files in ``sim``, with these changes."""
    values = {"spectra": "sim/Xp*.csv.gz", "gaia_source": "sim/gaia_source.fits", "output": "shards", "engine": ENGINE}
    path = folder / "survey.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in (values | changes).items()))
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def first_row(lines: list[bytes]) -> int:
    """Index of the line of the first star: after the comments and the names."""
    return next(index for index, line in enumerate(lines) if not line.startswith(b"#")) + 1


def one_line(capsys) -> str:
    """The only line on standard error."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    assert text.startswith("xpkern: ")
    return text
