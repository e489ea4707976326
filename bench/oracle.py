"""Where the lowest optimum of a star is: the best of many random starts, judged in float64.

The searches from random starts are those of the engine under test (they only propose); the reference engine then
carries the best one to its optimum and computes its loss, in float64 and by other code. It takes minutes, so the answer
is kept in a file named by a hash of everything it depends on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xpkern.engine import Engine, get_engine
from xpkern.engine.contract import Box, FitOptions, Float64, LossTerms, StarData
from xpkern.fit.fit import default_box
from xpkern.model.arrays import digest
from xpkern.model.flux_model import FluxModel
from xpkern.model.type_prior import TypePrior

#: A star is in its best optimum if its loss is within this of the lowest one known.
SAME_LOSS = 0.01

#: Random starts of each star, and the seed they are drawn with.
N_STARTS, SEED = 128, 19

#: Stars of which all starts are searched together.
BLOCK = 256

#: Below this a random extinction starts no lower: the spectrum hardly notices, and the logarithm has no end.
SMALLEST_EXT = 0.01

CACHE = Path(__file__).parent / "results" / "local"


def lowest_loss(engine: Engine, model: FluxModel, prior: TypePrior, stars: StarData) -> Float64:
    """Loss (n,) of each star's lowest optimum that its random starts lead to.

    Parameters
    ----------
    engine : Engine
        Searches.
    model : FluxModel
    prior : TypePrior
    stars : StarData
    """
    name = digest([model.digest, prior.digest, N_STARTS, SEED, *vars(stars).values()])[:20]
    file = CACHE / f"oracle-{name}.npy"
    if file.exists():
        return np.load(file)
    box, rng = default_box(prior), np.random.default_rng(SEED)
    params = np.concatenate(
        [_search(engine, model, prior, stars[first : first + BLOCK], box, rng) for first in range(0, len(stars), BLOCK)]
    )
    loss = get_engine("reference").fit(model, prior, stars, params, LossTerms(), box, FitOptions()).loss
    CACHE.mkdir(parents=True, exist_ok=True)
    np.save(file, loss)
    return loss


def random_starts(box: Box, number: int, rng: np.random.Generator) -> Float64:
    """Linear parameters (n, k), uniform in the box in stellar type, ln ext and ln plx."""
    lower, upper = box.lower.copy(), box.upper.copy()
    lower[-2] = max(lower[-2], SMALLEST_EXT)
    lower[-2:], upper[-2:] = np.log(lower[-2:]), np.log(upper[-2:])
    starts = rng.uniform(lower, upper, (number, len(lower)))
    starts[:, -2:] = np.exp(starts[:, -2:])
    return starts


def _search(
    engine: Engine, model: FluxModel, prior: TypePrior, stars: StarData, box: Box, rng: np.random.Generator
) -> Float64:
    """Linear parameters (n, k) where the best of each star's random starts ended."""
    size = len(stars)
    repeated = stars[np.repeat(np.arange(size), N_STARTS)]
    start = random_starts(box, size * N_STARTS, rng)
    found = engine.fit(model, prior, repeated, start, LossTerms(), box, FitOptions())
    loss = np.where(np.isfinite(found.loss), found.loss, np.inf).reshape(size, N_STARTS)
    return found.params.reshape(size, N_STARTS, -1)[np.arange(size), loss.argmin(axis=1)]
