"""Import the wheel installed in the folder given, from an empty working folder, and look at what it carries."""

from __future__ import annotations

import importlib.resources
import sys
from pathlib import Path

import xpkern
import xpkern.engine._cpu
import xpkern.observe._csv
import xpkern.observe._parquet
from xpkern.train.recipe_file import SHIPPED, load_recipe

site = Path(sys.argv[1]).resolve()
for module in (xpkern, xpkern.engine._cpu, xpkern.observe._csv, xpkern.observe._parquet):
    assert Path(module.__file__).resolve().is_relative_to(site), f"{module.__name__} came from {module.__file__}"
csrc = importlib.resources.files("xpkern.csrc")
for pattern in ("core/*.hpp", "cpu/*.cpp", "cuda/*.cu", "cuda/*.cuh", "cuda/*.cpp"):
    assert list(Path(str(csrc)).glob(pattern)), f"the wheel has no csrc/{pattern}"
for recipe in SHIPPED:
    load_recipe(recipe)
model, prior = xpkern.load_model()
flux = model.predict(teff=5.77, feh=0.0, logg=4.44, ext=0.1, plx=10.0)
assert flux.shape == (1, 66), flux.shape
print(f"wheel: xpkern {xpkern.__version__} imported from {site.name}, model and sources inside")
