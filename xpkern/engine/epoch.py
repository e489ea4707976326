"""What every engine checks before it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xpkern.engine.contract import Float64, Int64, LossTerms, StarData
from xpkern.engine.training import ModelMoments, Steps
from xpkern.errors import InputError
from xpkern.model.flux_model import FluxModel

if TYPE_CHECKING:
    from xpkern.engine.groups import GroupedStars


def check_epoch(
    model: FluxModel,
    stars: StarData | GroupedStars,
    params: Float64,
    batches: Int64,
    terms: LossTerms,
    model_steps: Steps | None,
    star_steps: Steps | None,
    moments: ModelMoments | None,
) -> None:
    """Refuse what :meth:`xpkern.engine.contract.Engine.train_epoch` cannot do, but for the rows of the batches.

    Raises
    ------
    InputError
        The message names the argument.
    """
    if terms.prior:
        raise InputError("training has no prior on stellar types: labels take its place", field="terms")
    if params.shape != (len(stars), model.n_parameters):
        raise InputError(f"shape {params.shape}, expected ({len(stars)}, {model.n_parameters})", field="params")
    if batches.ndim != 2 or batches.dtype != np.int64:
        raise InputError("must be rows of stars, (steps, size) int64", field="batches")
    if batches.shape[1] == 0 and len(batches) > 0:
        raise InputError("a batch without stars", field="batches")
    for name, steps in (("model_steps", model_steps), ("star_steps", star_steps)):
        if steps is not None and len(steps.rates) != len(batches):
            raise InputError(f"{len(steps.rates)} rates for {len(batches)} batches", field=name)
    if star_steps is not None and (star_steps.method != "sgd" or star_steps.momentum != 0.0):
        raise InputError("stars take steps of sgd without momentum alone (descend has Adam)", field="star_steps")
    if moments is not None:
        expected = [array.shape for array in (*model.weights, *model.biases, model.ext_curve)]
        for arrays in (moments.first, moments.second):
            if [array.shape for array in (*arrays.weights, *arrays.biases, arrays.ln_ext_curve)] != expected:
                raise InputError("not those of this model", field="moments")


def check_rows(batches: Int64, n_stars: int) -> None:
    """Refuse batches with rows that do not exist, or the same star twice.

    Raises
    ------
    InputError
    """
    flat, seen = batches.reshape(-1), np.zeros(n_stars, np.bool_)
    if flat.size == 0 or (flat.min() >= 0 and flat.max() < n_stars):
        seen[flat] = True
        if np.count_nonzero(seen) == flat.size:  # no star twice in all of the epoch: no batch need be looked at
            return
        ordered = np.sort(batches, axis=1)
        if (ordered[:, 1:] != ordered[:, :-1]).all():
            return
    for number, rows in enumerate(batches):
        for row in rows[(rows < 0) | (rows >= n_stars)][:1]:
            raise InputError(f"batch {number} has row {row}, but there are {n_stars} stars", field="batches")
        row, times = np.unique(rows, return_counts=True)
        for twice in row[times > 1][:1]:
            raise InputError(f"batch {number} has row {twice} twice", field="batches")
