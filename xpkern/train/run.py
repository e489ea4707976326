"""From labels and files of spectra to a trained model: the training run as a whole, which can be taken up again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xpkern.catalog.pending import PendingFile
from xpkern.engine import Engine, get_engine
from xpkern.engine.groups import STARS_OF_GROUP
from xpkern.errors import InputError
from xpkern.model.arrays import digest
from xpkern.model.model_file import save_model
from xpkern.model.noise import Noise
from xpkern.observe.calibration import Calibration
from xpkern.observe.gaia_source import GAIA_COLUMNS, SourceTable
from xpkern.observe.parallax_zero_point import INPUTS as ZERO_POINT_INPUTS
from xpkern.observe.photometry import COLUMN_NAMES
from xpkern.observe.read import XpReader
from xpkern.observe.spectra import one_by_one
from xpkern.threads import in_order, number_of_threads
from xpkern.train.atmospheres import load_atmospheres
from xpkern.train.labels import Labels, read_labels
from xpkern.train.outcome import Outcome, offset_table, outcome_of, write_stars
from xpkern.train.packages import default_cache
from xpkern.train.phases import Progress, Run
from xpkern.train.recipe import Recipe
from xpkern.train.recipe_file import load_recipe
from xpkern.train.state import Checkpoint
from xpkern.train.training_set import (
    SOURCE_COLUMNS,
    TrainingSet,
    candidates,
    foresee,
    gather,
    load_set,
    save_set,
)

#: In the folder of a run's work: the training set but for its whiteners.
_STARS = "stars.npz"

#: Bytes at either end of a file of spectra that, with its size, tell it from another.
_SAMPLE = 1 << 16


@dataclass
class TrainingFiles:
    """What a run writes: the model, what became of its stars, figures; ``work`` is gone once these are complete."""

    model: Path
    stars: Path = field(init=False)
    work: Path = field(init=False)

    def __post_init__(self) -> None:
        self.stars = self.model.with_name(f"{self.model.stem}.stars.h5")
        self.work = self.model.with_name(f"{self.model.stem}.work")

    def figure(self, name: str) -> Path:
        """Name of a figure beside the model."""
        return self.model.with_name(f"{self.model.stem}.{name}.png")

    def remove_work(self) -> None:
        """Remove the work folder; what a kill leaves of it is no training set, as that goes first."""
        with contextlib.suppress(OSError):
            (self.work / _STARS).unlink()
        shutil.rmtree(self.work, ignore_errors=True)


def train(
    labels: Any,
    spectra: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    gaia_source: Any,
    photometry: Any = None,
    reddening: Any = None,
    calibration: Calibration | None = None,
    recipe: str | Path | Recipe = "default",
    engine: str | Engine = "auto",
    threads: int | None = None,
    restart: bool = False,
    figures: bool = True,
    checkpoint_seconds: float = 60.0,
    log: Callable[[str], object] | None = None,
    on_stars: Callable[[int], object] | None = None,
    on_progress: Callable[[Progress], object] | None = None,
) -> Outcome:
    """Train a model on labelled stars.

    A run that was stopped, in whatever way, goes on where its last checkpoint was when it is called again with the
    same arguments, and ends with the same bytes. What it needs for that is in a folder beside the output,
    ``<name>.work``, which takes 9.3 kB a star and is removed in the end.

    Parameters
    ----------
    labels : path or table
        As :func:`xpkern.train.labels.read_labels` takes them.
    spectra : path or sequence of paths
        XP continuous spectra, as :func:`xpkern.read_xp` takes them. Spectra of stars without labels are passed over.
    output : path
        Name of the model file. ``<name>.stars.h5`` and figures come beside it.
    gaia_source, photometry : path or table
        As :func:`xpkern.read_xp` takes them, ``photometry`` perhaps several; ``gaia_source`` has the parallaxes, and
        may have columns for the cuts.
    reddening : path or table, optional
        Extinctions of the stars, where the labels do not tell them.
    calibration : Calibration, optional
        Of the spectra's release; Gaia DR3's when not given.
    recipe : str, path or Recipe
        "default", "large", "zgr23", "no_parallax", or the name of a TOML file.
    engine : str or Engine
    threads : int, optional
        Results do not depend on it.
    restart : bool
        Whether to throw away what an earlier run has left beside this output.
    figures : bool
        Whether to draw.
    checkpoint_seconds : float
        Time between two checkpoints at least.
    log : callable, optional
        Told in lines of text what is done.
    on_stars : callable, optional
        Called with the number of stars of each block of spectra that was read.
    on_progress : callable, optional
        Called with a :class:`xpkern.train.phases.Progress` after each epoch.

    Returns
    -------
    Outcome

    Raises
    ------
    InputError
        If something in the input or the recipe is wrong, nothing is left to train on, it would not fit into memory
        or on the disk, or the work folder is that of another recipe or of other data.
    TrainingFailed
        If the loss is no longer finite; the last good checkpoint stays.
    """
    say = log if log is not None else _silent
    files = TrainingFiles(Path(output))
    if files.model.suffix not in (".h5", ".hdf5"):
        raise InputError("a model file is HDF5: its name must end in .h5 or .hdf5", file=str(output))
    if files.model.is_dir() or not files.model.absolute().parent.is_dir():
        raise InputError("is a folder" if files.model.is_dir() else "its folder does not exist", file=str(output))
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    chosen_engine = get_engine(engine)
    if restart:
        files.remove_work()
    paths = [Path(spectra)] if isinstance(spectra, (str, os.PathLike)) else [Path(path) for path in spectra]
    for path in paths:
        if not path.is_file():
            raise InputError("no such file", file=str(path))
    training_set = _training_set(
        files,
        recipe,
        labels,
        paths,
        gaia_source,
        photometry,
        reddening,
        calibration,
        chosen_engine,
        threads,
        say,
        on_stars,
    )
    for count in training_set.counts:
        say(str(count))
    for count in training_set.high_quality_counts:
        say(str(count))
    checkpoint = Checkpoint(files.work / "checkpoint.npz", recipe.name, recipe.digest, training_set.digest)
    run = Run(
        recipe,
        training_set,
        chosen_engine,
        threads=threads,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        on_progress=on_progress,
    )
    if run.resumed and run.state.phase < len(run.phases):
        say(f"going on with phase {run.phases[run.state.phase][0]}, epoch {run.state.unit + 1}")
    run.finish()
    for count in run.state.clean_counts:
        say(str(count))
    outcome = outcome_of(run)
    say(f"the model is {outcome.kept}")
    if len(training_set.surveys) > 1:
        say(offset_table(run))
    write_stars(files.stars, run, outcome)
    if figures:
        from xpkern.train.figures import draw_figures

        draw_figures(files.figure, run, outcome)
    save_model(files.model, outcome.model, outcome.prior)
    files.remove_work()
    return outcome


def _silent(text: str) -> None:
    pass


def training_noise(recipe: Recipe) -> Noise:
    """Noise of the whiteners that the model is trained with."""
    return Noise.eq2(sigma=recipe.noise.sigma, photometry_floor=recipe.noise.photometry_in_training)


def _training_set(
    files: TrainingFiles,
    recipe: Recipe,
    labels: Any,
    paths: list[Path],
    gaia_source: Any,
    photometry: Any,
    reddening: Any,
    calibration: Calibration | None,
    engine: Engine,
    threads: int | None,
    say: Callable[[str], object],
    on_stars: Callable[[int], object] | None,
) -> TrainingSet:
    """The set an earlier run has put together for the same recipe from the same files, or a new one."""
    whiteners, rest, identity = (files.work / name for name in ("whiteners.f32", _STARS, "identity.json"))
    facts = {
        "recipe": recipe.digest,
        "recipe_name": recipe.name,
        "whiteners": f"{STARS_OF_GROUP} side by side",
        "data": _data_digest((labels, gaia_source, *(one_by_one(photometry) or [None]), reddening), paths),
    }
    if calibration is not None:
        facts["data"] = digest([facts["data"], calibration.bp_design, calibration.rp_design])
    files.work.mkdir(exist_ok=True)
    for left in files.work.glob(".*.partial"):  # of a run that was killed while it wrote
        left.unlink(missing_ok=True)
    if identity.exists():
        _check_identity(files.work, json.loads(identity.read_text()), facts)
    if rest.exists():
        return load_set(rest, whiteners)
    try:
        label_table = labels if isinstance(labels, Labels) else read_labels(labels, reddening)
        wanted = (*GAIA_COLUMNS, *ZERO_POINT_INPUTS, *COLUMN_NAMES, *SOURCE_COLUMNS)
        sources = SourceTable.of(gaia_source, "gaia_source", wanted)
        if recipe.anchors.stars:
            sources = sources.completed(("parallax", "parallax_error"))
        chosen = candidates(label_table, sources, recipe)
        foresee(len(chosen) + recipe.anchors.stars, files.work)
        atmospheres = load_atmospheres(default_cache()) if recipe.anchors.stars else None
        say(f"reading the spectra of up to {len(chosen):,} stars")
        noise = training_noise(recipe)
        reader = XpReader(paths, sources, photometry, calibration, noise=noise, engine=engine)

        def blocks() -> Any:
            for block in in_order(reader.blocks(), reader.observe, threads=number_of_threads(threads)):
                yield block
                if on_stars is not None:
                    on_stars(len(block))

        training_set = gather(chosen, blocks(), recipe, whiteners, atmospheres=atmospheres)
    except BaseException:
        whiteners.unlink(missing_ok=True)
        if not any(files.work.iterdir()):
            files.work.rmdir()
        raise
    _write_text(identity, json.dumps(facts))
    save_set(training_set, rest)
    return training_set


def _write_text(path: Path, text: str) -> None:
    """Write a small file, which appears under its name only once it is complete."""
    with PendingFile(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _check_identity(work: Path, have: dict[str, str], want: dict[str, str]) -> None:
    if have.get("recipe") != want["recipe"]:
        same_name = " of the same name" if have.get("recipe_name") == want["recipe_name"] else ""
        what = f"holds the work of another recipe{same_name} ({have.get('recipe_name')!r}, not {want['recipe_name']!r})"
    elif have.get("data") != want["data"]:
        what = "holds the work of other labels, tables or spectra"
    elif have.get("whiteners") != want["whiteners"]:
        what = "holds the work of another version of xpkern"
    else:
        return
    raise InputError(f"{what}: give another output, or --restart to begin anew", file=str(work))


def _data_digest(tables: tuple[Any, ...], paths: list[Path]) -> str:
    """What tells these inputs from others: tables whole, files of spectra by name, size and both ends."""
    parts: list[object] = [_table_digest(table) for table in tables]
    for path in paths:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_SAMPLE)
            file.seek(max(size - _SAMPLE, 0))
            ends = hashlib.sha256(head + file.read(_SAMPLE)).hexdigest()
        parts += [path.name, size, ends]
    return digest(parts)


def _table_digest(table: Any) -> str:
    if isinstance(table, (str, os.PathLike)):
        sha = hashlib.sha256()
        try:
            with open(table, "rb") as file:
                while piece := file.read(1 << 20):
                    sha.update(piece)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror or error})", file=str(table)) from None
        return sha.hexdigest()
    if table is None:
        return ""
    if isinstance(table, (Labels, SourceTable)):
        raise InputError("give tables as paths, astropy tables or dicts of arrays")
    names = table.colnames if hasattr(table, "colnames") else list(table)
    return digest([part for name in names for part in (name, np.asarray(table[name]))])
