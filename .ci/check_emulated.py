"""The whole path on an emulated processor: it must choose the instruction set named, and work.

Usage: ``python .ci/check_emulated.py FOLDER`` writes some simulated stars, on this processor, as an emulated one takes
twenty times as long; then ``qemu-x86_64 -cpu Nehalem python .ci/check_emulated.py FOLDER scalar``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import xpkern as xk

STARS = 16

folder, *expected = sys.argv[1:]
model, prior = xk.load_model()
if not expected:
    from xpkern.observe.simulate import simulate

    simulate(model, prior, STARS, seed=1).write(folder)
    sys.exit()
chosen = xk.get_engine("cpu").instruction_set
assert [chosen] == expected, f"{chosen} was chosen on a processor whose best is {expected[0]}"
(spectra,) = Path(folder).glob("Xp*.csv.gz")
obs = xk.read_xp(spectra, gaia_source=Path(folder) / "gaia_source.csv")
fit = xk.fit(obs, model, prior)
converged = (fit.status & np.uint32(xk.Status.NOT_CONVERGED)) == 0
assert len(fit) == STARS, f"{len(fit)} of {STARS} stars were read"
assert np.isfinite(fit.params).all(), "a star has no solution"
assert converged.sum() >= 14, f"{converged.sum()} of {STARS} stars converged"
print(f"emulated processor: {chosen} was chosen, {converged.sum()} of {STARS} stars fitted")
