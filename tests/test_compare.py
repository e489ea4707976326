"""Two catalogues of the same stars, in any format and layout."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from catalog_files import SUFFIXES, part_of, random_rows
from command_lines import one_line

import xpkern as xk
from xpkern.catalog.rows import StarRows
from xpkern.catalog.schema import DEFAULT, PARAMETER_COLUMNS, ZGR23
from xpkern.catalog.writers import writer_for
from xpkern.cli import main

STARS = 150
OFFSET = np.array([0.05, -0.1, 0.2, 0.01, 0.3])


@pytest.fixture
def rows(rng) -> StarRows:
    """Stars of which half are reliable, with errors of 2 in each parameter."""
    rows = random_rows(rng, STARS)
    object.__setattr__(rows, "source_id", rng.permutation(10**18 + np.arange(STARS)))
    object.__setattr__(rows, "params", rng.normal(size=(STARS, 5)))
    object.__setattr__(rows, "covariance", np.tile(4.0 * np.eye(5), (STARS, 1, 1)))
    object.__setattr__(rows, "quality_flags", np.where(np.arange(STARS) % 2, 7, 8).astype(np.uint8))
    return rows


def write(path, columns, rows):
    writer = writer_for(path)(path, columns, {})
    writer.append(rows)
    writer.close()
    return path


@pytest.fixture
def other(rows, rng) -> StarRows:
    """The same stars but a few, in another order, moved by known amounts."""
    moved = part_of(rows, rng.permutation(STARS)[: STARS - 50])
    object.__setattr__(moved, "params", moved.params - OFFSET)
    return moved


@pytest.mark.parametrize(("suffix", "layout"), [*zip(SUFFIXES, (ZGR23, DEFAULT, ZGR23, DEFAULT), strict=True)])
def test_difference_of_each_parameter(rows, other, suffix, layout, tmp_path, capsys):
    second = write(tmp_path / "second.h5", layout, other)
    first = write(tmp_path / f"first{suffix}", DEFAULT, rows)
    found = xk.compare_catalogs(first, second)
    assert (found.first, found.second, found.common) == (STARS, STARS - 50, STARS - 50)
    assert found.compared == int((other.quality_flags < 8).sum())
    for line, column, offset in zip(found.parameters, PARAMETER_COLUMNS, OFFSET, strict=True):
        assert (line.name, line.unit, line.stars) == (column.name, column.unit, found.compared)
        assert line.median == pytest.approx(offset * column.per_unit, rel=1e-4)
        assert line.width == pytest.approx(0.0, abs=1e-6 * column.per_unit)
        assert line.median_in_errors == pytest.approx(offset / np.sqrt(8.0), rel=1e-4)
    assert main(["compare", str(first), str(second), "--all"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{STARS - 50} of {STARS} sources are in both, all of them; first minus second:"
    assert printed[2].split()[:5] == ["teff", "K", str(STARS - 50), "50.0", "0.0"]


def test_files_of_the_published_catalogue(rows, other, tmp_path):
    parts = [write(tmp_path / f"{n}.h5", ZGR23, part_of(other, s)) for n, s in enumerate((slice(9), slice(9, None)))]
    whole = xk.compare_catalogs(write(tmp_path / "f.h5", DEFAULT, rows), write(tmp_path / "w.h5", ZGR23, other))
    assert xk.compare_catalogs(tmp_path / "f.h5", parts) == whole


def test_what_cannot_be_compared(rows, tmp_path, capsys):
    first = write(tmp_path / "first.h5", DEFAULT, part_of(rows, slice(0, 9)))
    rest = write(tmp_path / "rest.h5", DEFAULT, part_of(rows, slice(9, 20)))
    twice = write(tmp_path / "twice.h5", DEFAULT, part_of(rows, np.array([0, 1, 0])))
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["teff"] = np.zeros(3)
    (tmp_path / "text.fits").write_text("no table")
    for name, message in (
        (rest, f"{first}, field source_id: no source of it is in the other catalogue"),
        (tmp_path / "none.h5", f"{tmp_path / 'none.h5'}, field source_id: missing: this is no catalogue"),
        (tmp_path / "text.fits", f"{tmp_path / 'text.fits'}, field source_id: missing: this is no catalogue"),
        (tmp_path / "absent.h5", f"{tmp_path / 'absent.h5'}: no such file"),
    ):
        assert main(["compare", str(first), str(name)]) == 1
        assert message in one_line(capsys)
    assert main(["compare", str(twice), str(first)]) == 1
    assert "occurs more than once" in one_line(capsys)
