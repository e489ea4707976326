"""How close one evaluation of the star loss comes to the core's limit of fused multiply-adds.

The count is of the linear algebra alone (NOTES.md derives it); exp, tanh, the prior and the 5 x 5 solve are done in the
same time but not counted, so the share is a lower bound of what the units do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpkern.engine.contract import Float64
from xpkern.grid import BLOCKS
from xpkern.model.flux_model import FluxModel

#: Numbers of evaluations of which the times are subtracted.
FEW, MANY = 1, 3

#: Turns of a round.
TURNS = 5


def multiply_adds_of_evaluation(model: FluxModel, *, in_blocks: bool) -> dict[str, int]:
    """Fused multiply-adds of one single-precision evaluation (loss, gradient, Gauss-Newton matrix) of one star.

    ``in_blocks``: where the factor of its covariance is Eq. 2's and whitening makes use of that; else it is a triangle.
    """
    sizes = [weight.shape for weight in model.weights]
    inputs, samples = sizes[0][0], sizes[-1][1]
    parameters = inputs + 2
    columns = parameters + 1  # slopes and residual
    of_column = samples * (samples - 1) // 2
    if in_blocks:
        alone, leading, linked = BLOCKS
        rows_of_trailing = range(leading - alone + 1, linked - alone + 1)
        of_column = leading * (leading - 1) // 2 + alone + sum(rows_of_trailing) + samples - linked
    return {
        "network, values": sum(rows * columns_ for rows, columns_ in sizes),
        "network, tangents": inputs * sum(rows * columns_ for rows, columns_ in sizes[1:]),
        "whitening": columns * of_column,
        "normal equations": samples * (parameters * (parameters + 1) // 2 + parameters + 1),
    }


@dataclass(frozen=True)
class UnderRoof:
    """Evaluations and the roof above them: one value for each round.

    Attributes
    ----------
    seconds : array
        Time [s] of one evaluation of one star, the step that it leads to included.
    roof : array
        The peak [GFLOP/s] of the same moment.
    """

    seconds: Float64
    roof: Float64

    def shares(self, operations: float) -> Float64:
        """Share of the peak in each round; ``operations`` of one evaluation, a multiply-add counted as two."""
        return 1e-9 * operations / self.seconds / self.roof


def evaluations_under_roof(
    fit_with_at_most: Callable[[int], Any], roof: Callable[[], float], n_stars: int, *, rounds: int = 7
) -> UnderRoof:
    """Measure evaluations and the roof in turns.

    Parameters
    ----------
    fit_with_at_most : callable
        Fits all stars with that many single-precision evaluations and one final one, from starts so far away that
        none converges earlier. What a fit costs besides evaluations is the same for any number and cancels.
    roof : callable
        Returns the peak [GFLOP/s], measured once.
    n_stars : int
    rounds : int
        Rounds, in alternating order. Of a round's few turns the best of each counts: they all last a fifth of a second,
        as the clock of a core changes from one second to the next.
    """
    seconds, roofs = [], []
    for number in range(rounds):
        best, highest = dict.fromkeys((FEW, MANY), np.inf), 0.0
        for _ in range(TURNS):
            for evaluations in (FEW, MANY) if number % 2 == 0 else (MANY, FEW):
                start = time.perf_counter()
                fit_with_at_most(evaluations)
                best[evaluations] = min(best[evaluations], time.perf_counter() - start)
            highest = max(highest, roof())
        seconds.append((best[MANY] - best[FEW]) / (MANY - FEW) / n_stars)
        roofs.append(highest)
    return UnderRoof(np.array(seconds), np.array(roofs))
