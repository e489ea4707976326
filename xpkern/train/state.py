"""What a training run has reached: everything that the next step depends on, and nothing else. Also its file.

A run that is killed and goes on from the file ends with the same bytes as one that was left alone: orders of stars come
from the seed and the number of the epoch, never from a generator that remembers.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile
from xpkern.engine.contract import Float64
from xpkern.engine.training import ModelArrays, ModelMoments
from xpkern.errors import InputError
from xpkern.model.flux_model import FluxModel
from xpkern.train.cuts import CutCount

_FORMAT = 3


@dataclass(frozen=True)
class EpochRecord:
    """Losses of one epoch.

    Attributes
    ----------
    phase, epoch : int
        Counted from 0.
    model_loss : float
        Eq. 12, mean over the batches, each before its step; NaN where the model stays.
    star_loss : float
        Eqs. 13-14, median over the stars; NaN where the stars stay.
    validation_loss, validation_median : float
        Eqs. 13-14 of held-out stars, each at its own optimum under the model after the epoch: mean and median.
    """

    phase: int
    epoch: int
    model_loss: float
    star_loss: float
    validation_loss: float
    validation_median: float


@dataclass(frozen=True)
class Best:
    """The model of the lowest validation loss of a run so far, its surveys' offsets, its line of the history."""

    record: EpochRecord
    model: FluxModel
    offsets: Float64


@dataclass(frozen=True)
class Snapshot:
    """What is worth a look after a phase.

    Attributes
    ----------
    phase : str
        Name of the phase; "start" before the first.
    ext_curve : (m,) float64
    drift : (5, 3) float64
        Quantiles at -1, 0 and +1 standard deviation of (parameter - label) / error over the training stars; NaN for
        a parameter without labels.
    """

    phase: str
    ext_curve: Float64
    drift: Float64


@dataclass(frozen=True)
class State:
    """Where a run is: before unit ``unit`` of phase ``phase``.

    Attributes
    ----------
    phase, unit : int
        A unit is an epoch, or a chunk of stars.
    model : FluxModel
    params : (n, 5) float64
    clean : (n,) bool
        Stars that self-cleaning has left; all before it.
    offsets : (s, 3) float64
        What each survey's teff, feh, logg are above those of the reference, which comes first.
    moments : ModelMoments or None
        None before the first step of a phase.
    history : tuple of EpochRecord
    snapshots : tuple of Snapshot
    clean_counts : tuple of CutCount
    best : Best or None
        None before the first epoch that held-out stars could judge.
    """

    phase: int
    unit: int
    model: FluxModel
    params: Float64
    clean: NDArray[np.bool_]
    offsets: Float64
    moments: ModelMoments | None = None
    history: tuple[EpochRecord, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    clean_counts: tuple[CutCount, ...] = field(default=())
    best: Best | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The file a state is kept in.

    Attributes
    ----------
    path : Path
    recipe_name, recipe_digest : str
    data_digest : str
        Of the training set.
    """

    path: Path
    recipe_name: str
    recipe_digest: str
    data_digest: str

    def save(self, state: State) -> None:
        """Write the state; the file is replaced only once the new one is complete."""
        facts = {
            "format": _FORMAT,
            "recipe_name": self.recipe_name,
            "recipe_digest": self.recipe_digest,
            "data_digest": self.data_digest,
            "phase": state.phase,
            "unit": state.unit,
            "layers": len(state.model.weights),
            "moment_steps": None if state.moments is None else state.moments.steps,
            "snapshots": [snapshot.phase for snapshot in state.snapshots],
            "clean_counts": [list(astuple(count)) for count in state.clean_counts],
            "best": None if state.best is None else astuple(state.best.record),
        }
        arrays: dict[str, Any] = {"params": state.params, "clean": state.clean, "offsets": state.offsets}
        arrays |= _model_arrays(state.model)
        if state.best is not None:
            arrays |= {f"best_{name}": array for name, array in _model_arrays(state.best.model).items()}
            arrays["best_offsets"] = state.best.offsets
        if state.moments is not None:
            arrays["first_moment"] = state.moments.first.flatten()
            arrays["second_moment"] = state.moments.second.flatten()
        arrays["history"] = np.array([astuple(record) for record in state.history], np.float64).reshape(-1, 6)
        if state.snapshots:
            arrays["curves"] = np.stack([snapshot.ext_curve for snapshot in state.snapshots])
            arrays["drifts"] = np.stack([snapshot.drift for snapshot in state.snapshots])
        with PendingFile(self.path) as partial, open(partial, "wb") as file:
            np.savez(file, facts=np.array(json.dumps(facts)), **arrays)

    def load(self) -> State | None:
        """The state in the file; None if there is no file.

        Raises
        ------
        InputError
            If the file cannot be read, or belongs to another recipe or other data.
        """
        if not self.path.exists():
            return None
        try:
            with open(self.path, "rb") as file, np.load(file) as stored:
                arrays = {name: stored[name] for name in stored.files}
            facts = json.loads(str(arrays.pop("facts")))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"not a readable checkpoint ({error}); --restart begins anew", file=str(self.path)
            ) from None
        self._check(facts)
        model = _model(arrays, facts["layers"])
        best = moments = None
        if facts["best"] is not None:
            of_best = {name.removeprefix("best_"): array for name, array in arrays.items() if name.startswith("best_")}
            best = Best(EpochRecord(*facts["best"]), _model(of_best, facts["layers"]), of_best["offsets"])
        if facts["moment_steps"] is not None:
            first, second = (ModelArrays.unflatten(arrays[f"{name}_moment"], model) for name in ("first", "second"))
            moments = ModelMoments(first, second, facts["moment_steps"])
        history = tuple(EpochRecord(int(row[0]), int(row[1]), *map(float, row[2:])) for row in arrays["history"])
        snapshots = tuple(
            Snapshot(name, arrays["curves"][k], arrays["drifts"][k]) for k, name in enumerate(facts["snapshots"])
        )
        return State(
            phase=facts["phase"],
            unit=facts["unit"],
            model=model,
            params=arrays["params"],
            clean=arrays["clean"],
            offsets=arrays["offsets"],
            moments=moments,
            history=history,
            snapshots=snapshots,
            clean_counts=tuple(CutCount(*count) for count in facts["clean_counts"]),
            best=best,
        )

    def _check(self, facts: dict[str, Any]) -> None:
        if facts.get("format") != _FORMAT:
            what = f"a checkpoint of format {facts.get('format')}, this version of xpkern reads {_FORMAT}"
        elif facts["recipe_digest"] != self.recipe_digest:
            same_name = " of the same name" if facts["recipe_name"] == self.recipe_name else ""
            what = f"a checkpoint of another recipe{same_name} ({facts['recipe_name']!r}, not {self.recipe_name!r})"
        elif facts["data_digest"] != self.data_digest:
            what = "a checkpoint of other stars"
        else:
            return
        raise InputError(f"{what}: give another output, or --restart to begin anew", file=str(self.path))


def _model_arrays(model: FluxModel) -> dict[str, Float64]:
    arrays = {name: getattr(model, name) for name in ("ext_curve", "input_zp", "input_scale", "wavelength")}
    for layer, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        arrays |= {f"weights_{layer}": weight, f"biases_{layer}": bias}
    return arrays


def _model(arrays: dict[str, Float64], layers: int) -> FluxModel:
    return FluxModel.from_arrays(
        [arrays[f"weights_{layer}"] for layer in range(layers)],
        [arrays[f"biases_{layer}"] for layer in range(layers)],
        *(arrays[name] for name in ("ext_curve", "input_zp", "input_scale", "wavelength")),
    )
