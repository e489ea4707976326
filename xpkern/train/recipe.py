"""What a recipe is: every number of a training run, named and checked.

:mod:`xpkern.train.recipe_file` reads them from TOML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

from xpkern.engine.contract import Descent, LossTerms
from xpkern.errors import InputError
from xpkern.grid import PARAMETERS
from xpkern.model.arrays import digest
from xpkern.model.noise import SIGMA_CONVENTIONS
from xpkern.train.cuts import CUTS, Cut

#: Stars that a phase may work on.
SELECTIONS = ("all", "high_quality", "clean")


@dataclass(frozen=True)
class Split:
    """Which stars the model never sees.

    Attributes
    ----------
    seed : int
        Of the split, of the network's start and of the order of the stars.
    held_out : float
        Share of the stars that only judge.
    judges : int
        Of these, at most so many give the validation loss of an epoch; all of them give that of the finished model.
    keep_best : bool
        Whether a phase ends with the model of the lowest validation loss so far, not with its last one.
    """

    seed: int
    held_out: float
    judges: int
    keep_best: bool

    def __post_init__(self) -> None:
        _require(0 <= self.held_out < 1, "held_out", self.held_out, "a share of at least 0 and below 1")
        _require(self.judges >= 1, "judges", self.judges, "a number of stars")
        _require(self.seed >= 0, "seed", self.seed, "a number >= 0")


@dataclass(frozen=True)
class LabelFloors:
    """What is added in quadrature to the errors of the labels.

    Attributes
    ----------
    teff, feh, logg, ext : float
        [kK, dex, dex, mag].
    ext_fraction : float
        Of the extinction itself.
    """

    teff: float
    feh: float
    logg: float
    ext: float
    ext_fraction: float


@dataclass(frozen=True)
class SurveySettings:
    """What is done where the labels come from several surveys.

    Attributes
    ----------
    offsets : bool
        Whether each survey's offset in (teff, feh, logg) is solved for, before every round.
    reference : str
        The survey whose labels are right as they are; the one with most stars when empty.
    """

    offsets: bool
    reference: str


@dataclass(frozen=True)
class AnchorSettings:
    """Stars made of theory among the training stars; see :mod:`xpkern.train.anchors`.

    Attributes
    ----------
    stars : int
        How many; 0 for none.
    scale : float
        Fractional error of each of J, H, Ks.
    infrared, infrared_cool : float
        Fractional error of W1 and W2 over Ks, above and below the temperature down to which atmospheres know them.
    optical : float
        Fractional error of each XP sample.
    """

    stars: int
    scale: float
    infrared: float
    infrared_cool: float
    optical: float

    def __post_init__(self) -> None:
        _require(self.stars >= 0, "stars", self.stars, "a number >= 0")
        for name in ("scale", "infrared", "infrared_cool", "optical"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "positive")


@dataclass(frozen=True)
class NoiseSettings:
    """Systematic errors of the spectra (Eq. 2).

    Attributes
    ----------
    sigma : {"archive", "zgr23"}
        How the archive's errors are read; see :class:`xpkern.model.noise.Noise`.
    photometry_in_training, photometry : float
        Fractional error added to every infrared band while training, and when the model is used.
    """

    sigma: str
    photometry_in_training: float
    photometry: float

    def __post_init__(self) -> None:
        _require(self.sigma in SIGMA_CONVENTIONS, "sigma", self.sigma, f"one of {', '.join(SIGMA_CONVENTIONS)}")


@dataclass(frozen=True)
class Start:
    """Where the training starts.

    Attributes
    ----------
    hidden : tuple of int
        Width of the network's hidden layers.
    output : {"median", "regression"}
        Spectra the network starts with: the median of all, or those of a linear regression on its hidden layers.
    ext_curve : {"law", "flat"}
        Extinction curve: a standard law, or 1 at every wavelength.
    ext : float
        Extinction [mag] of a star without a label of it.
    smallest_ext : float
        Least extinction [mag] a star starts from: at 0 its logarithm would have no slope.
    """

    hidden: tuple[int, ...]
    output: str
    ext_curve: str
    ext: float
    smallest_ext: float

    def __post_init__(self) -> None:
        _require(self.output in ("median", "regression"), "output", self.output, "median or regression")
        _require(self.ext_curve in ("law", "flat"), "ext_curve", self.ext_curve, "law or flat")
        _require(bool(self.hidden) and min(self.hidden) >= 1, "hidden", self.hidden, "a list of widths")
        for name in ("ext", "smallest_ext"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "positive")


@dataclass(frozen=True)
class LossSettings:
    """Terms of the stars' loss while training.

    Attributes
    ----------
    jacobian_ext, jacobian_plx : bool
        Whether - 2 ln ext and - 2 ln plx of Eq. 14 are among them. They favour large extinctions under a flat curve:
        with labels of an error sigma they make E too large, and R too small, by 1 / mean((E / sigma)^2).
    """

    jacobian_ext: bool
    jacobian_plx: bool

    @property
    def terms(self) -> LossTerms:
        """What the engine is asked for."""
        return LossTerms(prior=False, jacobian_ext=self.jacobian_ext, jacobian_plx=self.jacobian_plx)


@dataclass(frozen=True)
class PriorSettings:
    """The mixture over stellar types that goes into the model file.

    Attributes
    ----------
    kind : {"coverage", "zgr23"}
        Flattened over what the training stars cover, or as ZGR23 fitted theirs.
    components : int
    most_stars : int
        At most so many labels are used.
    """

    kind: str
    components: int
    most_stars: int

    def __post_init__(self) -> None:
        _require(self.kind in ("coverage", "zgr23"), "kind", self.kind, "coverage or zgr23")
        _require(self.components >= 2, "components", self.components, "a number of at least 2")
        _require(self.most_stars >= 1, "most_stars", self.most_stars, "a number of stars")


@dataclass(frozen=True)
class Epochs:
    """Passes over the stars in batches: a step of the model, and one of the batch's stars if they have a rate.

    Attributes
    ----------
    stars : str
        One of :data:`SELECTIONS`.
    epochs, batch : int
    optimizer : {"sgd", "adam"}
        Of the model.
    model_rate, star_rate : float
        Learning rates at the start; 0 for a model, or stars, that stay as they are.
    momentum : float
        Of the model's "sgd".
    model_clip, star_clip : float
        Norm to which a longer gradient of the model, or of one star, is scaled down.
    schedule : {"drops", "cosine"}
        Both rates are multiplied by ``drop`` before each epoch of ``drops`` (counted from 0), or fall to 0 as half a
        cosine.
    drops : tuple of int
    drop : float
    newton_every : int
        In every so many epochs, the first among them, each star is brought to the optimum of its loss just before its
        batch comes; 0 for never.
    """

    kind: ClassVar[str] = "epochs"

    stars: str
    epochs: int
    batch: int
    optimizer: str
    model_rate: float
    star_rate: float
    momentum: float
    model_clip: float
    star_clip: float
    schedule: str
    drops: tuple[int, ...]
    drop: float
    newton_every: int

    def __post_init__(self) -> None:
        _require_selection(self.stars)
        _require(self.optimizer in ("sgd", "adam"), "optimizer", self.optimizer, "sgd or adam")
        _require(self.schedule in ("drops", "cosine"), "schedule", self.schedule, "drops or cosine")
        _require(self.epochs >= 1, "epochs", self.epochs, "a number of at least 1")
        _require(self.batch >= 1, "batch", self.batch, "a number of stars")
        _require(self.newton_every >= 0, "newton_every", self.newton_every, "a number >= 0")
        for name in ("model_rate", "star_rate", "momentum", "model_clip", "star_clip", "drop"):
            value = getattr(self, name)
            _require(value >= 0, name, value, "a number >= 0")
        _require(self.model_rate > 0 or self.star_rate > 0, "model_rate", self.model_rate, "positive, nor is star_rate")

    def decay(self, progress: float) -> float:
        """Factor to the rates after a number of epochs, which may have a fraction."""
        if self.schedule == "cosine":
            return _half_cosine(progress / self.epochs)
        return self.drop ** sum(progress >= epoch for epoch in self.drops)


@dataclass(frozen=True)
class Rounds:
    """Rounds of Adam's steps of the model down its profile loss, each star at its own optimum, in even coordinates.

    See :mod:`xpkern.train.curvature`.

    Attributes
    ----------
    stars : str
        One of :data:`SELECTIONS`.
    rounds : int
        Coordinates are renewed for each.
    steps : int
        Of a round, each with the stars of one batch.
    batch : int
    rate : float
        Length of the steps at the start, in each even coordinate; it falls to 0 as half a cosine over the phase.
    metric_stars : int
        Stars that tell how the loss curves.
    damping : float
        See :meth:`xpkern.train.curvature.EvenCoordinates.of`.
    weight_penalty : float
        How many times Eq. 12's penalty on the weights counts. The more, the smoother is the model where stars are few.
    """

    kind: ClassVar[str] = "rounds"

    stars: str
    rounds: int
    steps: int
    batch: int
    rate: float
    metric_stars: int
    damping: float
    weight_penalty: float

    def __post_init__(self) -> None:
        _require_selection(self.stars)
        for name in ("rounds", "steps", "batch", "metric_stars"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a number of at least 1")
        _require(self.weight_penalty >= 0, "weight_penalty", self.weight_penalty, "a number >= 0")
        for name in ("rate", "damping"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "positive")

    def decay(self, progress: float) -> float:
        """Factor to the rate after a number of rounds, which may have a fraction."""
        return _half_cosine(progress / self.rounds)


@dataclass(frozen=True)
class DescendStars:
    """First-order steps of each star, the model fixed; arguments as :class:`xpkern.engine.contract.Descent`."""

    kind: ClassVar[str] = "descend"

    stars: str
    method: str
    steps: int
    rate: float
    decay: float
    decay_every: int
    clip: float

    def __post_init__(self) -> None:
        _require_selection(self.stars)
        self.descent  # noqa: B018 - it checks its numbers

    @property
    def descent(self) -> Descent:
        """What the engine is asked for."""
        return Descent(self.method, self.steps, self.rate, self.decay, self.decay_every, self.clip)


@dataclass(frozen=True)
class NewtonStars:
    """Each star is brought to the optimum of its loss (Eqs. 13-14), the model fixed."""

    kind: ClassVar[str] = "newton"

    stars: str

    def __post_init__(self) -> None:
        _require_selection(self.stars)


@dataclass(frozen=True)
class Clean:
    """Self-cleaning: stars that disagree with their labels or their spectrum no longer count as "clean".

    Attributes
    ----------
    theta, plx : float
        Largest difference from the labels of the stellar type, and from the parallax, in standard errors.
    flux : float
        Largest residual of any flux sample, in standard errors.
    """

    kind: ClassVar[str] = "clean"

    theta: float
    plx: float
    flux: float


Phase = Epochs | Rounds | DescendStars | NewtonStars | Clean
#: Kinds of phases by their names in a recipe.
PHASES: dict[str, type] = {phase.kind: phase for phase in (Epochs, Rounds, DescendStars, NewtonStars, Clean)}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run does with its data.

    Attributes
    ----------
    name : str
    split : Split
    cuts, high_quality : mapping of str to float
        Limits by the names of :data:`xpkern.train.cuts.CUTS`: for a star to be used at all, and to be among the
        high-quality ones.
    label_floors : LabelFloors
    surveys : SurveySettings
    anchors : AnchorSettings
    noise : NoiseSettings
    loss : LossSettings
    start : Start
    prior : PriorSettings
    phase : mapping of str to Epochs, Rounds, DescendStars, NewtonStars or Clean
        In the order in which they are done.
    """

    name: str
    split: Split
    cuts: Mapping[str, float]
    high_quality: Mapping[str, float]
    label_floors: LabelFloors
    surveys: SurveySettings
    anchors: AnchorSettings
    noise: NoiseSettings
    loss: LossSettings
    start: Start
    prior: PriorSettings
    phase: Mapping[str, Phase]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of every setting, whatever the file looks like."""
        return digest([_plain(self)])

    @property
    def cut_list(self) -> list[Cut]:
        """Cuts of a star to be used at all."""
        return [CUTS[name].at(limit) for name, limit in self.cuts.items()]

    @property
    def high_quality_list(self) -> list[Cut]:
        """Cuts of a high-quality star."""
        return [CUTS[name].at(limit) for name, limit in self.high_quality.items()]

    def settings(self) -> dict[str, Any]:
        """Every setting as plain dicts, lists, numbers and texts."""
        plain: dict[str, Any] = _plain(self)
        return plain


def _half_cosine(share: float) -> float:
    """From 1 at the beginning to 0 at the end."""
    return 0.5 * (1.0 + math.cos(math.pi * share))


def _require(good: bool, field: str, value: object, expected: str) -> None:
    if not good:
        raise InputError(f"{value!r} is not {expected}", field=field)


def _require_selection(stars: str) -> None:
    _require(stars in SELECTIONS, "stars", stars, f"one of {', '.join(SELECTIONS)}")


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        kind = {"kind": value.kind} if type(value) in PHASES.values() else {}
        return kind | {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def label_error_floors(floors: LabelFloors) -> tuple[float, ...]:
    """Floors in the order of :data:`xpkern.grid.PARAMETERS`; none for the parallax."""
    return tuple(float(getattr(floors, name, 0.0)) for name in PARAMETERS)
