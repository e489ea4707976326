"""The stars of a training run: labels joined with spectra by source_id, cut, split, and kept where they can be reached.

Whiteners are written, as they are made, into one file that is mapped into memory: 2.06 million stars take 18 GB there,
and there is never a second copy. What goes in is decided before the first spectrum is read, so that too small a disk or
memory is refused at the beginning. Once all are there they are put into the order of the set, in place, and sixteen of
them side by side (:mod:`xpkern.engine.groups`). That order is random, so that some of these groups are a random sample
of the stars, but held-out stars, of which batches have none, and those that are not high-quality share no group with
others (except where one kind ends): then few groups have stars that a phase does not want.

What a star lacks is data without weight: a parallax or an extinction with sigma = inf, a band that its whitener leaves
out. Stars made of theory (:mod:`xpkern.train.anchors`) have source_ids below 0; they are always trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile
from xpkern.engine.contract import Float32, Float64
from xpkern.engine.groups import GroupedStars, WhitenerGroups
from xpkern.engine.packed import present_samples
from xpkern.errors import InputError
from xpkern.grid import N_FLUX, N_PARAMETERS, PARAMETERS
from xpkern.observe.gaia_source import SourceTable, share_of
from xpkern.observe.observations import Observations
from xpkern.status import UNFITTED
from xpkern.train.anchors import anchor_stars
from xpkern.train.atmospheres import Atmospheres
from xpkern.train.cuts import CUT_COLUMNS, CutCount, Sieve
from xpkern.train.labels import SURVEY, TYPE_LABELS, Labels
from xpkern.train.recipe import Recipe, label_error_floors
from xpkern.train.start import start_params
from xpkern.train.whitener_store import WHITENER_BYTES, WhitenerStore, map_whiteners

#: Bytes of a star in memory besides its whitener: fluxes, constraints, parameters, their copies.
OTHER_BYTES = 4 * N_FLUX + 8 * 6 * N_PARAMETERS + 64

#: Memory [bytes] that is needed besides the stars: the program, blocks of spectra, the prior's fit.
BASE_MEMORY = 600 << 20

#: Columns of gaia_source that training needs or may cut on.
SOURCE_COLUMNS = ("parallax", "parallax_error", *CUT_COLUMNS)


@dataclass
class TrainingSet:
    """n labelled stars with spectra.

    Attributes
    ----------
    source_id : (n,) int64
    stars : GroupedStars
        Fluxes, whiteners (perhaps mapped from a file), and the labels with their floors as constraints.
    start : (n, 5) float64
        Linear parameters the labels say.
    held_out, high_quality : (n,) bool
        Stars the model never sees; stars within the recipe's high-quality cuts.
    survey : (n,) int64
        Number of each star's survey among ``surveys``.
    surveys : tuple of str
        The one whose labels are right as they are comes first.
    counts : list of CutCount
    high_quality_counts : list of CutCount
    digest : str
        SHA-256 (hex) of all of the above.
    """

    source_id: NDArray[np.int64]
    stars: GroupedStars
    start: Float64
    held_out: NDArray[np.bool_]
    high_quality: NDArray[np.bool_]
    survey: NDArray[np.int64]
    surveys: tuple[str, ...]
    counts: list[CutCount]
    high_quality_counts: list[CutCount]
    digest: str

    def __len__(self) -> int:
        return len(self.source_id)

    def with_whiteners(self, whitener: Float32) -> TrainingSet:
        """The same stars with a covariance of another noise, (n, p); anchors keep theirs."""
        whitener = np.where(self.is_anchor[:, None], self.stars.whitener[:], whitener).astype(np.float32)
        new = hashlib.sha256(self.digest.encode() + whitener.tobytes()).hexdigest()
        return replace(self, stars=replace(self.stars, whitener=WhitenerGroups.of(whitener)), digest=new)

    @property
    def is_anchor(self) -> NDArray[np.bool_]:
        """Which stars are made of theory, (n,)."""
        return self.source_id < 0

    @property
    def has_parallax(self) -> NDArray[np.bool_]:
        """Which stars have a measured parallax, (n,)."""
        return np.isfinite(self.stars.sigma[:, -1]) & ~self.is_anchor


@dataclass
class Candidates:
    """Stars of the labels that pass every condition which can be tested without their spectra.

    Attributes
    ----------
    labels : Labels
    rows : (n,) int
        Of the labels, sorted by source_id.
    source_id : (n,) int64
        Increasing.
    counts : list of CutCount
    high_quality : (n,) bool
    high_quality_counts : list of CutCount
    """

    labels: Labels
    rows: NDArray[np.intp]
    source_id: NDArray[np.int64]
    counts: list[CutCount]
    high_quality: NDArray[np.bool_]
    high_quality_counts: list[CutCount]

    def __len__(self) -> int:
        return len(self.rows)


def candidates(labels: Labels, sources: SourceTable, recipe: Recipe) -> Candidates:
    """Join labels with gaia_source and apply the recipe's cuts.

    Raises
    ------
    InputError
        If no star is left; the message says after which condition.
    """
    rows = sources.rows_of(labels.source_id)
    parallax, parallax_error = (
        sources.numbers(name, rows) if name in sources else np.full(len(labels), np.nan)
        for name in ("parallax", "parallax_error")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        parallax_snr = parallax / parallax_error

    def column(name: str) -> Float64 | None:
        if name == "parallax_over_error":
            return parallax_snr
        of_labels = labels.column(name)
        if of_labels is not None or name not in sources:
            return of_labels
        return sources.numbers(name, rows)

    sieve = Sieve(len(labels), "stars with labels")
    sieve.require("in gaia_source", rows >= 0)
    _some_left(sieve, labels, "no star of the labels is in gaia_source: are these source_ids of the same release?")
    for k, label in enumerate(TYPE_LABELS):
        sieve.require(f"{label} is a number", np.isfinite(labels.mean[:, k]))
        _some_left(sieve, labels, "holds no number for any star that is left", label)
        sieve.require(f"{label}_err is positive", np.greater(labels.error[:, k], 0.0))
        _some_left(sieve, labels, "zero, negative or missing for every star that is left", f"{label}_err")
    if labels.has_ext:
        unknown = np.isnan(labels.mean[:, -1])
        sieve.require("ext_err is positive, or ext unknown", unknown | (labels.error[:, -1] > 0.0))
        _some_left(sieve, labels, "zero, negative or missing for every star that is left", "ext_err")
    if not recipe.anchors.stars:
        measured = np.isfinite(parallax) & np.greater(parallax_error, 0)
        if not measured[sieve.kept].any():
            message = "no star that is left has a parallax with an error, nor has the recipe anchors in place of them"
            raise InputError(f"{message}: try the recipe no_parallax", file=sources.name, field="parallax")
    sieve.cut(recipe.cut_list, column)
    _some_left(sieve, labels, "no star passes the recipe's cuts")

    best = Sieve(len(labels), "")
    best.kept &= sieve.kept
    best.counts = []
    best.cut(recipe.high_quality_list, column)

    kept = np.flatnonzero(sieve.kept)
    kept = kept[np.argsort(labels.source_id[kept])]
    return Candidates(labels, kept, labels.source_id[kept], sieve.counts, best.kept[kept], best.counts)


def _some_left(sieve: Sieve, labels: Labels, message: str, field: str | None = None) -> None:
    if not sieve.kept.any():
        emptied = next(count for count in sieve.counts if count.left == 0)
        raise InputError(f"{message} (none left by: {emptied.condition})", file=labels.table.name, field=field)


def is_held_out(source_id: NDArray[np.int64], recipe: Recipe) -> NDArray[np.bool_]:
    """Which stars only judge: decided by the source_id and the seed alone, whatever the other stars are."""
    return share_of(source_id, recipe.split.seed) < recipe.split.held_out


def free_memory() -> int:
    """Bytes of memory that this process may still use: of the machine, and of the control group it is in."""
    free = 1 << 62
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    except OSError:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no control group that says
    return free


def foresee(n_stars: int, folder: Path | None) -> None:
    """Refuse a set that would not fit, before anything is read.

    Parameters
    ----------
    n_stars : int
        Stars there may be.
    folder : Path, optional
        Where their whiteners will lie; in memory when not given.

    Raises
    ------
    InputError
        If memory or disk are too small; the message says what is needed and what there is.
    """
    needed = n_stars * (WHITENER_BYTES + OTHER_BYTES) + BASE_MEMORY
    if needed > (free := free_memory()):
        raise InputError(
            f"{n_stars:,} stars need {_gigabytes(needed)} of memory and {_gigabytes(free)} are free: train on fewer "
            "labels, or where there is more"
        )
    if folder is not None:
        needed = n_stars * (WHITENER_BYTES + OTHER_BYTES)
        if needed > (free := shutil.disk_usage(folder).free):
            raise InputError(
                f"{n_stars:,} stars need {_gigabytes(needed)} of disk and {_gigabytes(free)} are free", file=str(folder)
            )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def gather(
    chosen: Candidates,
    blocks: Iterable[Observations],
    recipe: Recipe,
    whitener_file: Path | None = None,
    *,
    atmospheres: Atmospheres | None = None,
    judges: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
) -> TrainingSet:
    """Put the candidates' spectra and the recipe's anchors together, in an order that only they and the seed decide.

    Parameters
    ----------
    chosen : Candidates
    blocks : iterable of Observations
        Those of other stars are passed over. Of a star that comes twice the first counts.
    recipe : Recipe
    whitener_file : Path, optional
        Where the whiteners go; they stay in memory when not given.
    atmospheres : Atmospheres, optional
        What the anchors are made of; needed if the recipe has any.
    judges : callable, optional
        Says of source_ids which stars only judge; the recipe's split when not given.

    Raises
    ------
    InputError
        If no spectrum is that of a candidate, none of them is usable, or the recipe's reference survey has none.
    """
    store = WhitenerStore(len(chosen) + recipe.anchors.stars, whitener_file)
    seen = np.zeros(len(chosen), bool)
    found, unusable, twice = 0, 0, 0
    positions: list[NDArray[np.intp]] = []
    fluxes: list[Float32] = []
    parallaxes: list[Float64] = []
    sha = hashlib.sha256()
    for block in blocks:
        position = np.minimum(np.searchsorted(chosen.source_id, block.source_id), len(chosen) - 1)
        rows = np.flatnonzero(chosen.source_id[position] == block.source_id)
        _, first = np.unique(position[rows], return_index=True)
        new = rows[np.sort(first)]
        new = new[~seen[position[new]]]
        twice += len(rows) - len(new)
        seen[position[new]] = True
        found += len(new)
        usable = (block.status[new] & np.uint32(UNFITTED)) == 0
        unusable += int(np.count_nonzero(~usable))
        new = new[usable]
        store.append(block.whitener[new])
        sha.update(block.whitener[new].tobytes())
        positions.append(position[new])
        fluxes.append(block.flux[new])
        parallaxes.append(np.column_stack([block.plx[new], block.plx_err[new]]))
    counts = list(chosen.counts)
    counts.append(CutCount("with a spectrum", len(chosen) - found, found))
    counts.append(CutCount("with a usable spectrum", unusable, found - unusable))
    if twice:
        counts.append(CutCount(f"{twice:,} spectra of stars that were there already passed over", 0, found - unusable))
    if not found:
        raise InputError("no spectrum has the source_id of a star that passed the cuts", file=chosen.labels.table.name)
    if found == unusable:
        raise InputError(f"of {found:,} spectra with labels none is usable", file=chosen.labels.table.name)
    position = np.concatenate(positions)
    plx = np.concatenate(parallaxes)
    mean, sigma = _constraints(chosen, position, plx, recipe)
    source_id, high_quality = chosen.source_id[position], chosen.high_quality[position]
    with_spectrum = CutCount("high-quality, with a spectrum", 0, int(high_quality.sum()))
    held_out = is_held_out(source_id, recipe) if judges is None else judges(source_id)
    surveys, survey = _surveys(chosen, position, recipe)
    if recipe.anchors.stars:
        if atmospheres is None:
            raise InputError("the recipe has anchors: they need model atmospheres", field="atmospheres")
        anchors = anchor_stars(mean[~held_out, :3], recipe.anchors, atmospheres, recipe.split.seed)
        store.append(anchors.whitener)
        sha.update(anchors.whitener.tobytes())
        fluxes.append(anchors.flux)
        mean, sigma = np.concatenate([mean, anchors.mean]), np.concatenate([sigma, anchors.sigma])
        source_id = np.concatenate([source_id, -1 - np.arange(len(anchors))])
        high_quality = np.append(high_quality, np.ones(len(anchors), bool))
        held_out = np.append(held_out, np.zeros(len(anchors), bool))
        survey = np.append(survey, np.zeros(len(anchors), np.int64))
    order = _order_of_set(source_id, held_out, high_quality, recipe)
    flux, mean, sigma = np.concatenate(fluxes)[order], mean[order], sigma[order]
    source_id, survey = source_id[order], survey[order]
    held_out, high_quality = held_out[order], high_quality[order]
    training_set = TrainingSet(
        source_id=source_id,
        stars=GroupedStars(flux, store.finish(order), mean, sigma),
        start=start_params(mean, sigma, flux, recipe),
        held_out=held_out,
        high_quality=high_quality,
        survey=survey,
        surveys=surveys,
        counts=counts,
        high_quality_counts=[*chosen.high_quality_counts, with_spectrum],
        digest="",
    )
    for array in (source_id, flux, mean, sigma, training_set.start, high_quality, survey):
        sha.update(np.ascontiguousarray(array).tobytes())
    sha.update("\0".join(surveys).encode())
    training_set.digest = sha.hexdigest()
    return training_set


def _order_of_set(
    source_id: NDArray[np.int64], held_out: NDArray[np.bool_], high_quality: NDArray[np.bool_], recipe: Recipe
) -> NDArray[np.intp]:
    """Training stars, high-quality ones first, each kind in random order; then held-out stars by source_id."""
    random = np.where(held_out, 0.0, share_of(source_id, recipe.split.seed))
    order: NDArray[np.intp] = np.lexsort((source_id, random, ~high_quality & ~held_out, held_out))
    return order


def _constraints(
    chosen: Candidates, position: NDArray[np.intp], plx: Float64, recipe: Recipe
) -> tuple[Float64, Float64]:
    """Labels and parallaxes with their errors, floors added, each (n, 5); 0 and inf where there is none."""
    rows = chosen.rows[position]
    mean = np.column_stack([chosen.labels.mean[rows], plx[:, 0]])
    sigma = np.column_stack([chosen.labels.error[rows], plx[:, 1]])
    floors = np.broadcast_to(label_error_floors(recipe.label_floors), sigma.shape).copy()
    ext = PARAMETERS.index("ext")
    floors[:, ext] = np.hypot(floors[:, ext], recipe.label_floors.ext_fraction * np.abs(mean[:, ext]))
    sigma = np.hypot(sigma, floors)
    known = np.isfinite(mean) & np.isfinite(sigma)
    return np.where(known, mean, 0.0), np.where(known, sigma, np.inf)


def _surveys(
    chosen: Candidates, position: NDArray[np.intp], recipe: Recipe
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the surveys, the reference first and the others by their number of stars, and each star's among them."""
    names, of_star, counts = np.unique(
        chosen.labels.survey[chosen.rows[position]], return_inverse=True, return_counts=True
    )
    reference = recipe.surveys.reference
    if reference and reference not in names:
        have = ", ".join(names.tolist()) if (names != "").all() else "none is named"
        raise InputError(
            f"no star that is left is of the reference survey {reference!r} ({have})",
            file=chosen.labels.table.name,
            field=SURVEY,
        )
    order = np.lexsort((names, -counts, names != reference))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return tuple(names[order].tolist()), rank[of_star.reshape(-1)]


_ARRAYS = ("source_id", "start", "held_out", "high_quality", "survey")
_STAR_ARRAYS = ("flux", "mean", "sigma")


def save_set(training_set: TrainingSet, path: Path) -> None:
    """Write everything but the whiteners; the file appears under its name only once it is complete."""
    arrays = {name: getattr(training_set, name) for name in _ARRAYS}
    arrays |= {name: getattr(training_set.stars, name) for name in _STAR_ARRAYS}
    facts = {
        "counts": _plain_counts(training_set.counts),
        "high_quality_counts": _plain_counts(training_set.high_quality_counts),
        "surveys": training_set.surveys,
        "digest": training_set.digest,
    }
    with PendingFile(path) as partial, open(partial, "wb") as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)


def load_set(path: Path, whitener_file: Path) -> TrainingSet:
    """Read what :func:`save_set` wrote, and map the whiteners."""
    with np.load(path) as stored:
        facts = json.loads(str(stored["facts"]))
        arrays = {name: stored[name] for name in _ARRAYS}
        of_stars = {name: stored[name] for name in _STAR_ARRAYS}
    whitener = map_whiteners(whitener_file, len(arrays["source_id"]))
    return TrainingSet(
        stars=GroupedStars(of_stars["flux"], whitener, of_stars["mean"], of_stars["sigma"]),
        counts=[CutCount(*count) for count in facts["counts"]],
        high_quality_counts=[CutCount(*count) for count in facts["high_quality_counts"]],
        surveys=tuple(facts["surveys"]),
        digest=facts["digest"],
        **arrays,
    )


def _plain_counts(counts: Iterable[CutCount]) -> list[list[object]]:
    return [list(astuple(count)) for count in counts]


def seen_share(stars: GroupedStars, rows: NDArray[np.intp]) -> Float64:
    """Share of some stars that has each flux sample, (m,)."""
    seen = np.zeros(stars.flux.shape[1])
    for first in range(0, len(rows), 4096):
        seen += present_samples(stars.whitener[rows[first : first + 4096]]).sum(axis=0)
    return seen / max(len(rows), 1)
