"""Recipes: every number of a training run, in a small TOML file that names each of them.

``zgr23.toml`` and ``default.toml`` come with the package. A recipe of one's own either has every key, or begins with
``base = "default"`` and has those that differ.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, get_type_hints

from xpkern.engine.contract import Descent, LossTerms
from xpkern.errors import InputError
from xpkern.grid import PARAMETERS
from xpkern.model.arrays import digest
from xpkern.model.noise import SIGMA_CONVENTIONS
from xpkern.train.cuts import CUTS, Cut

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Recipes that come with the package.
SHIPPED = ("default", "zgr23")

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
    """

    seed: int
    held_out: float
    judges: int

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
            return 0.5 * (1.0 + math.cos(math.pi * progress / self.epochs))
        return self.drop ** sum(progress >= epoch for epoch in self.drops)


@dataclass(frozen=True)
class Rounds:
    """Rounds of L-BFGS for the model on its profile loss, each star at its own optimum, in even coordinates.

    See :mod:`xpkern.train.curvature`.

    Attributes
    ----------
    stars : str
        One of :data:`SELECTIONS`.
    rounds : int
    iterations : int
        Of L-BFGS in a round.
    most_stars : int
        Stars of a round at most, drawn anew for each.
    metric_stars : int
        Stars of these that tell how the loss curves.
    damping : float
        See :meth:`xpkern.train.curvature.EvenCoordinates.of`.
    """

    kind: ClassVar[str] = "rounds"

    stars: str
    rounds: int
    iterations: int
    most_stars: int
    metric_stars: int
    damping: float

    def __post_init__(self) -> None:
        _require_selection(self.stars)
        for name in ("rounds", "iterations", "most_stars", "metric_stars"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a number of at least 1")
        _require(self.damping > 0, "damping", self.damping, "positive")


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
_PHASES: dict[str, type] = {phase.kind: phase for phase in (Epochs, Rounds, DescendStars, NewtonStars, Clean)}


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


def load_recipe(name: str | Path) -> Recipe:
    """A recipe that comes with the package, or that of a TOML file.

    Parameters
    ----------
    name : str or path
        "default", "zgr23" or the name of a file.

    Raises
    ------
    InputError
        If there is no such recipe, or the file is no TOML, has an unknown key (the message names the nearest known
        one), lacks one, or has a value of the wrong kind.
    """
    settings, file = _read(name), _file_name(name)
    chain = [file]
    while "base" in settings:
        base = settings.pop("base")
        if not isinstance(base, str) or base not in SHIPPED:
            raise InputError(f"{base!r} is none of {', '.join(SHIPPED)}", file=file, field="base")
        settings = _merged(_read(base), settings)
        chain.append(_file_name(base))
    reader = _Reader(file)
    recipe: Recipe = reader.table(Recipe, settings, "")
    return recipe


def _file_name(name: str | Path) -> str:
    return f"{name}.toml" if name in SHIPPED else str(name)


def _read(name: str | Path) -> dict[str, Any]:
    file = _file_name(name)
    try:
        if name in SHIPPED:
            text = (resources.files("xpkern.train") / "recipes" / file).read_text(encoding="utf-8")
        else:
            text = Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        near = _nearest(str(name), SHIPPED)
        raise InputError(f"no such recipe: give a file or one of {', '.join(SHIPPED)}{near}", file=file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", file=file) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML: {error}", file=file) from None


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``changes`` in place of its own, table by table.

    A phase of another kind has other keys: it replaces the base's.
    """
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        if both and value.get("kind", base[key].get("kind")) == base[key].get("kind"):
            merged[key] = _merged(base[key], value)
        else:
            merged[key] = value
    return merged


class _Reader:
    """Turns tables of one file into dataclasses; every complaint names the file and the key."""

    def __init__(self, file: str) -> None:
        self.file = file

    def table(self, kind: type, table: Any, where: str) -> Any:
        """An instance of a dataclass from a table with exactly its fields as keys."""
        if not isinstance(table, dict):
            raise InputError("must be a table", file=self.file, field=where)
        types = get_type_hints(kind)
        known = [field.name for field in fields(kind)]
        self._check_keys(table, known, where)
        values = {name: self._value(types[name], table[name], _join(where, name)) for name in known}
        try:
            return kind(**values)
        except InputError as error:
            raise InputError(error.message, file=self.file, field=_join(where, error.field or "")) from None

    def _value(self, kind: Any, value: Any, where: str) -> Any:
        if where in ("cuts", "high_quality"):
            return self._limits(value, where)
        if where == "phase":
            return self._phases(value)
        if hasattr(kind, "__dataclass_fields__"):
            return self.table(kind, value, where)
        if kind == tuple[int, ...]:
            if isinstance(value, list) and all(_is_number(item, int) for item in value):
                return tuple(value)
            raise InputError(f"{value!r} is not a list of whole numbers", file=self.file, field=where)
        if kind in (str, bool) and isinstance(value, kind):
            return value
        if kind not in (str, bool) and _is_number(value, kind):
            return kind(value)
        expected = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise InputError(f"{value!r} is not {expected}", file=self.file, field=where)

    def _limits(self, table: Any, where: str) -> Mapping[str, float]:
        if not isinstance(table, dict):
            raise InputError("must be a table", file=self.file, field=where)
        self._check_keys(table, list(CUTS), where, all_needed=False)
        return MappingProxyType({name: self._value(float, table[name], _join(where, name)) for name in table})

    def _phases(self, table: Any) -> Mapping[str, Phase]:
        if not isinstance(table, dict) or not table:
            raise InputError("must be a table with a table for each phase", file=self.file, field="phase")
        phases = {}
        for name, phase in table.items():
            where = _join("phase", name)
            if not isinstance(phase, dict):
                raise InputError("must be a table", file=self.file, field=where)
            kind = phase.get("kind")
            if kind not in _PHASES:
                near = _nearest(str(kind), _PHASES)
                message = f"{kind!r} is none of {', '.join(_PHASES)}{near}"
                raise InputError(message, file=self.file, field=_join(where, "kind"))
            settings = {key: value for key, value in phase.items() if key != "kind"}
            phases[name] = self.table(_PHASES[kind], settings, where)
        return MappingProxyType(phases)

    def _check_keys(self, table: dict[str, Any], known: list[str], where: str, *, all_needed: bool = True) -> None:
        for key in table:
            if key not in known:
                near = _nearest(key, known) or f"; known are {', '.join(known)}"
                raise InputError(f"unknown key{near}", file=self.file, field=_join(where, key))
        if all_needed and (missing := [key for key in known if key not in table]):
            message = 'missing; a recipe that begins with base = "default" needs only what differs'
            raise InputError(message, file=self.file, field=_join(where, missing[0]))


def _nearest(word: str, known: Any) -> str:
    """Ask whether the nearest known word was meant; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _join(where: str, key: str) -> str:
    return ".".join(part for part in (where, key) if part)


def _is_number(value: Any, kind: type) -> bool:
    """Whether TOML's value is a number of this kind; whole numbers are floats too, NaN is none."""
    return isinstance(value, (int, kind)) and not isinstance(value, bool) and value == value


def _require(good: bool, field: str, value: object, expected: str) -> None:
    if not good:
        raise InputError(f"{value!r} is not {expected}", field=field)


def _require_selection(stars: str) -> None:
    _require(stars in SELECTIONS, "stars", stars, f"one of {', '.join(SELECTIONS)}")


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        kind = {"kind": value.kind} if type(value) in _PHASES.values() else {}
        return kind | {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def label_error_floors(floors: LabelFloors) -> tuple[float, ...]:
    """Floors in the order of :data:`xpkern.grid.PARAMETERS`; none for the parallax."""
    return tuple(float(getattr(floors, name, 0.0)) for name in PARAMETERS)
