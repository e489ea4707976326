"""The demonstration: it runs, says what it did, its files are reproducible, and its pulls are honest."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from xpkern import demo
from xpkern.catalog.run import make_catalog
from xpkern.catalog.schema import PARAMETER_COLUMNS
from xpkern.errors import InputError
from xpkern.model import load_model
from xpkern.observe.simulate import simulate
from xpkern.report.comparison import Comparison, median_and_width

FILES = {
    "XpContinuousMeanSpectrum_simulated.csv.gz",
    "gaia_source.csv",
    "truth.csv",
    "catalog.h5",
    "catalog.diagnostics.h5",
    "demo.png",
}


@pytest.fixture(scope="module")
def by_one_thread(tmp_path_factory) -> tuple[Path, str]:
    """Folder of a demonstration, and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert demo.run(folder, n_stars=80, seed=4, threads=1) == 0
    return folder, printed.getvalue()


def test_demo_writes_its_files_and_says_where(by_one_thread):
    folder, printed = by_one_thread
    assert {path.name for path in folder.iterdir()} == FILES
    assert all(str(folder / name) in printed for name in FILES)
    assert "simulated  80 stars" in printed
    assert all(column.name in printed for column in PARAMETER_COLUMNS)
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with h5py.File(folder / "catalog.h5") as catalog:
        assert catalog["source_id"].shape == (80,)


def test_same_seed_same_bytes_whatever_the_threads(by_one_thread, tmp_path):
    demo.run(tmp_path, n_stars=80, seed=4, threads=2)
    for name in FILES:
        assert (by_one_thread[0] / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_survey_of_one_star_is_drawn_too(tmp_path):
    assert demo.run(tmp_path, n_stars=1, seed=1) == 0


def test_importing_the_demo_does_not_import_matplotlib():
    code = "import sys, xpkern.demo; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Comparison:
    """1,500 simulated stars, each with an error of its flux scale drawn."""
    folder = tmp_path_factory.mktemp("survey")
    model, prior = load_model()
    files = simulate(model, prior, 1500, seed=11).write(folder)
    summary = make_catalog(
        files.spectra, folder / "catalog.h5", gaia_source=files.gaia_source, model=model, prior=prior, noise="eq2"
    )
    return Comparison.read(summary.files["catalog"], files.truth)


def test_nearly_every_simulated_star_is_fitted_well(comparison):
    assert comparison.fitted.all()
    assert comparison.converged.mean() > 0.97
    assert comparison.reliable.mean() > 0.93
    assert np.median(comparison.chi2_per_dof) == pytest.approx(1.0, abs=0.05)


def test_pulls_of_simulated_stars_are_standard_normal(comparison):
    statistics = comparison.statistics(comparison.high_quality)
    assert statistics["teff"].stars > 300
    for line in statistics.values():
        # The prior and the modes in ln E, ln plx shift and narrow the pulls a little; a covariance or a noise that is
        # off by a factor of 1.3 does not pass.
        assert abs(line.pull) < 0.3
        assert 0.82 < line.pull_width < 1.18


def test_comparison_joins_by_source_id_not_by_position(tmp_path):
    rows = 5
    rng = np.random.default_rng(0)
    source_id = np.arange(10, 10 + rows)
    truth = rng.uniform(1.0, 5.0, (rows, 5))
    with h5py.File(tmp_path / "catalog.h5", "w") as catalog:
        catalog["source_id"] = source_id
        for k, column in enumerate(PARAMETER_COLUMNS):
            catalog[column.name] = truth[:, k] * column.per_unit + 0.5
            catalog[f"{column.name}_error"] = np.full(rows, 0.25)
        for name in ("phot_g_mean_mag", "parallax", "parallax_error", "chi2"):
            catalog[name] = np.ones(rows)
        catalog["chi2_dof"] = np.array([1, 2, 0, 1, 1], np.int16)
        catalog["status"], catalog["quality_flags"] = np.zeros(rows, np.uint32), np.zeros(rows, np.uint8)

    def write_truth(order):
        lines = ["source_id,teff,feh,logg,ext,plx"]
        lines += [",".join([str(source_id[i]), *map(repr, truth[i].tolist())]) for i in order]
        (tmp_path / "truth.csv").write_text("\n".join(lines) + "\n")

    write_truth([3, 1, 4, 0, 2])
    comparison = Comparison.read(tmp_path / "catalog.h5", tmp_path / "truth.csv")
    np.testing.assert_allclose(comparison.residual, 0.5)
    np.testing.assert_allclose(comparison.pull, 2.0)
    np.testing.assert_array_equal(np.isnan(comparison.chi2_per_dof), [False, False, True, False, False])

    write_truth([3, 1, 4, 0])
    with pytest.raises(InputError, match="is missing"):
        Comparison.read(tmp_path / "catalog.h5", tmp_path / "truth.csv")


def test_median_and_width_of_a_normal_sample(rng):
    middle, width = median_and_width(3.0 + 2.0 * rng.standard_normal(100_000))
    assert middle == pytest.approx(3.0, abs=0.05)
    assert width == pytest.approx(2.0, abs=0.05)
    assert np.isnan(median_and_width(np.empty(0))).all()
