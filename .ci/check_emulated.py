"""The whole path on an emulated processor: it must choose the instruction set named, and work.

Usage: ``qemu-x86_64 -cpu Nehalem python .ci/check_emulated.py scalar``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import xpkern as xk
from xpkern.observe.simulate import simulate

(expected,) = sys.argv[1:]
model, prior = xk.load_model()
chosen = xk.get_engine("cpu").instruction_set
assert chosen == expected, f"{chosen} was chosen on a processor whose best is {expected}"
with tempfile.TemporaryDirectory() as folder:
    files = simulate(model, prior, 16, seed=1).write(Path(folder))
    obs = xk.read_xp(files.spectra, gaia_source=files.gaia_source)
fit = xk.fit(obs, model, prior)
converged = (fit.status & np.uint32(xk.Status.NOT_CONVERGED)) == 0
assert np.isfinite(fit.params).all(), "a star has no solution"
assert converged.sum() >= 14, f"{converged.sum()} of 16 stars converged"
print(f"emulated processor: {chosen} was chosen, {converged.sum()} of 16 stars fitted")
