"""What is shipped: names, packages, data and what an import drags in."""

import importlib
import importlib.resources
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import xpkern

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def listed(section_start):
    body = PYPROJECT.split(section_start, 1)[1].split("\n]", 1)[0]
    return re.findall(r'"([^"]+)"', body)


def test_every_package_is_listed():
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "xpkern").rglob("*.py")
        if "data" not in path.parts
    }
    assert set(listed("\npackages = [")) == found | {"xpkern.csrc"}


def test_version_is_stated_once_and_in_the_changelog():
    assert f"## {xpkern.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f'"{xpkern.__version__}"' not in PYPROJECT


def test_sources_are_installed_as_real_files():
    csrc = Path(str(importlib.resources.files("xpkern.csrc")))
    assert (csrc / "core" / "platform.hpp").is_file()


@pytest.mark.parametrize(
    ("package", "names"),
    [
        ("xpkern.model", ["default.h5", "default_card.md", "default_errors.npy"]),
        ("xpkern.observe", ["calibration_gaia_dr3.npz", "error_model.npz"]),
    ],
)
def test_shipped_data_is_there(package, names):
    data = importlib.resources.files(package) / "data"
    assert {item.name for item in data.iterdir()} >= set(names)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("xpkern", ["numpy"]),
        ("xpkern.fit.fit", ["matplotlib", "gaiaxpy", "pandas", "pyarrow", "astropy", "sklearn", "scipy"]),
        ("xpkern.catalog.run", ["matplotlib", "gaiaxpy", "astropy.table"]),
    ],
)
def test_import_stays_light(module, unwanted):
    code = f"import sys, {module}; print(*(name for name in {unwanted!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == []


def test_the_command_line_is_there_before_numpy_is():
    code = """
import sys
from xpkern.cli import command_line
command_line.build_parser()
assert "numpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_fit_is_the_function_whatever_was_imported_of_its_folder():
    code = """
import xpkern
assert "fit" in dir(xpkern) and "Observations" in dir(xpkern)
from xpkern.fit.result import Fit
from xpkern.fit.fit import fit
assert xpkern.fit is fit and xpkern.Fit is Fit
for name in xpkern.__all__:
    assert getattr(xpkern, name) is not None
try:
    xpkern.fits
except AttributeError as error:
    assert "fits" in str(error)
else:
    raise SystemExit("there is no such name")
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


ABSENT = ["gaiaxpy", "isal", "astropy", "matplotlib", "pyarrow", "tqdm", "hypothesis", "cupy", "jax", "pandas"]

WITHOUT_THEM = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import xpkern as xk
import bench.gpu.suite
from bench.stars import observations

fit = xk.fit(observations(4), *xk.load_model(), engine="reference")
assert fit.fitted.all()
"""


def test_fits_and_the_gpu_benchmarks_need_few_libraries():
    """A machine lent for its GPU may have little else."""
    result = subprocess.run([sys.executable, "-c", WITHOUT_THEM], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("tag", ["run", "test"])
def test_readme_commands_are_one_line(tag):
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(rf"^<!-- fresh: {tag} -->\n```\w*\n(.*?)\n```", readme, flags=re.M | re.S)
    assert len(blocks) == 1
    assert "\n" not in blocks[0]


def test_page_of_columns_is_up_to_date():
    page = runpy.run_path(str(ROOT / "docs" / "make_columns.py"))["page"]()
    assert (ROOT / "docs" / "columns.md").read_text() == page, "run docs/make_columns.py"
