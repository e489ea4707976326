"""The whole path on a processor without AVX: run under an emulator of one, it must choose the baseline and work."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import xpkern as xk
from xpkern.observe.simulate import simulate

model, prior = xk.load_model()
engine = xk.get_engine("cpu")
assert engine.instruction_set == "scalar", f"{engine.instruction_set} was chosen on a processor without AVX"
with tempfile.TemporaryDirectory() as folder:
    files = simulate(model, prior, 16, seed=1).write(Path(folder))
    obs = xk.read_xp(files.spectra, gaia_source=files.gaia_source)
fit = xk.fit(obs, model, prior)
converged = (fit.status & np.uint32(xk.Status.NOT_CONVERGED)) == 0
assert np.isfinite(fit.params).all(), "a star has no solution"
assert converged.sum() >= 14, f"{converged.sum()} of 16 stars converged"
print(f"baseline: {converged.sum()} of 16 stars fitted without AVX")
