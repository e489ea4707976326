"""How close one evaluation of the star loss comes to the core's limit of fused multiply-adds.

The count is of the linear algebra alone (NOTES.md derives it); exp, tanh, the prior and the 5 x 5 solve are done in the
same time but not counted, so the share is a lower bound of what the units do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from xpkern.grid import BLOCKS
from xpkern.model.flux_model import FluxModel

#: Numbers of evaluations of which the times are subtracted.
FEW, MANY = 1, 3


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


def seconds_per_evaluation(fit_with_at_most: Callable[[int], Any], n_stars: int, *, rounds: int = 7) -> float:
    """Time [s] of one evaluation of one star, the step that it leads to included.

    Parameters
    ----------
    fit_with_at_most : callable
        Fits all stars with that many single-precision evaluations and one final one, from starts so far away that
        none converges earlier. What a fit costs besides evaluations is the same for any number and cancels.
    n_stars : int
    rounds : int
        Rounds, in alternating order; the median difference counts.
    """
    differences = []
    for number in range(rounds):
        seconds = {}
        for evaluations in (FEW, MANY) if number % 2 == 0 else (MANY, FEW):
            best = np.inf
            for _ in range(3):
                start = time.perf_counter()
                fit_with_at_most(evaluations)
                best = min(best, time.perf_counter() - start)
            seconds[evaluations] = best
        differences.append(seconds[MANY] - seconds[FEW])
    return statistics.median(differences) / (MANY - FEW) / n_stars
