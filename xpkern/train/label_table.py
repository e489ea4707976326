"""One table of labels from several surveys: each star once, its survey told, every star left out counted."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile
from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.observe.crossmatch import cross_match
from xpkern.observe.gaia_source import SourceTable
from xpkern.train import label_surveys as surveys
from xpkern.train.catalogue_file import read_catalogue
from xpkern.train.cuts import CutCount, Sieve
from xpkern.train.label_surveys import SURVEYS, TABLE, Mask, Survey
from xpkern.train.labels import TYPE_LABELS, kilokelvin_of, read_labels

#: From this temperature on [kK] the labels of LAMOST's stars are those of Hot Payne (Fig. 1 of ZGR23).
HOT_FROM = 7.0

#: Largest distance [arcsec] of a spectrum from its Gaia source (section 2.2 of ZGR23).
SEPARATION = 0.25

#: Errors of labels below these are raised to them [kK, dex, dex]: surveys quote errors of the fit to a spectrum,
#: which are smaller than what differs between two spectra of a star. (Recipes have floors of their own, which add up.)
ERROR_FLOORS = {"teff_err": 0.02, "feh_err": 0.02, "logg_err": 0.02}

_LABELS = tuple(f"{label}{end}" for label in TYPE_LABELS for end in ("", "_err"))
_EXT = ("ext", "ext_err")
_SNR = ("snr_g", "snr_r", "snr_i", "snr")


@dataclass
class Overlap:
    """Stars that two surveys have measured.

    Attributes
    ----------
    kept, other : str
        The survey whose labels are used, and the other one.
    stars : int
    difference, scatter : (3,) float64
        Median, and half the range from 16 to 84 %, of the other's teff [kK], feh, logg minus the kept ones.
    """

    kept: str
    other: str
    stars: int
    difference: Float64
    scatter: Float64

    def __str__(self) -> str:
        parts = (
            f"{name} {scale * shift:+.{digits}f} +- {scale * width:.{digits}f}{unit}"
            for name, shift, width, scale, digits, unit in zip(
                TYPE_LABELS, self.difference, self.scatter, (1000.0, 1.0, 1.0), (0, 3, 3), (" K", "", ""), strict=True
            )
        )
        return f"{self.other} minus {self.kept}, {self.stars} stars: {', '.join(parts)}"


@dataclass
class LabelTable:
    """Labels of n stars, each once.

    Attributes
    ----------
    columns : dict of str to (n,) array
        source_id, survey, teff and teff_err [kK], feh, feh_err, logg, logg_err [dex]; ext and ext_err [mag] where a
        table had them (NaN: unknown); ratios of signal to noise that every star has.
    counts : dict of str to list of CutCount
        What became of each catalogue's rows.
    overlaps : list of Overlap
    """

    columns: dict[str, NDArray]
    counts: dict[str, list[CutCount]]
    overlaps: list[Overlap]

    def __len__(self) -> int:
        return len(self.columns["source_id"])

    def lines(self) -> list[str]:
        """What was done, line by line, in ASCII."""
        lines = []
        for name, counts in self.counts.items():
            lines.append(f"{name}:")
            lines += [f"{count.left:>12,}  {count.condition} (-{count.removed:,})" for count in counts]
        return [*lines, *(str(overlap) for overlap in self.overlaps)]

    def write(self, path: Path) -> None:
        """Write a FITS table, temperatures in K, :meth:`lines` in its header; it appears once it is complete.

        Raises
        ------
        InputError
            If the name does not end in .fits, or its folder does not exist.
        """
        from astropy.table import Table

        if path.suffix != ".fits":
            raise InputError("the name of a label table must end in .fits", file=str(path))
        table = Table(self.columns)
        for name in table.colnames:
            if name.startswith("teff"):
                table[name] = 1000.0 * table[name]
                table[name].unit = "K"
            elif name in _EXT:
                table[name].unit = "mag"
        table.meta["comments"] = self.lines()
        with PendingFile(path) as partial:
            table.write(partial, format="fits")


@dataclass
class _Measurements:
    """Rows of one catalogue by our names; ``teff`` in kK; sieved as it goes."""

    name: str
    columns: dict[str, NDArray]
    sieve: Sieve
    best: str = ""
    masks: tuple[Mask, ...] = ()
    cuts: dict[str, Any] = field(default_factory=dict)
    id_release: str = ""


def make_label_table(
    catalogues: Sequence[tuple[str, str | Path]],
    *,
    gaia_source: Any = None,
    limits: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
    hot_from: float = HOT_FROM,
    separation: float = SEPARATION,
) -> LabelTable:
    """Read catalogues and put their labels together.

    A star that several catalogues have is taken from the one that is named first: labels of two surveys differ by more
    than their errors say, so that a mean of both would be on neither scale. By how much they differ is measured on
    these stars (:class:`Overlap`). Of several spectra in one survey that of highest signal-to-noise ratio counts.

    LAMOST and Hot Payne, given both, are one survey with two sets of labels: a spectrum that both have has Hot Payne's
    if these say that it is ``hot_from`` or hotter, else LAMOST's; LAMOST's own labels from ``hot_from`` on are left
    out.

    Parameters
    ----------
    catalogues : sequence of (str, path)
        Survey ("lamost", "hot_payne", "apogee", "galah", "table") and file.
    gaia_source : path or table, optional
        ``source_id``, ``ra``, ``dec``: spectra of LAMOST are matched to it by position, as ZGR23 did. Without it
        LAMOST's own identifiers count, which are of an earlier release of Gaia.
    limits : mapping of str to float, optional
        Limits by name, "snr" for every survey that has it or "apogee.snr" for one; the forbidden bits for a flag. An
        error's limit is in kK or dex. ``inf`` (or ``-inf`` for a ratio of signal to noise, 0 for a flag) lifts it.
    floors : mapping of str to float, optional
        Smallest errors, over :data:`ERROR_FLOORS`, in kK and dex.
    hot_from : float
        Temperature in kK.
    separation : float
        Largest distance in arcsec.

    Raises
    ------
    InputError
        If a survey or a limit is unknown, a file cannot be read or lacks a column, or no label is left.
    """
    _check(catalogues, limits or {}, floors or {})
    smallest = {**ERROR_FLOORS, **(floors or {})}
    sources = None if gaia_source is None else SourceTable.of(gaia_source, "gaia_source", ("ra", "dec"))
    if sources is not None:
        sources.require(["ra", "dec"])
    files = {survey: Path(path) for survey, path in catalogues if survey != TABLE}
    blocks: list[_Measurements] = []
    for survey, path in catalogues:
        if survey == TABLE:
            blocks.append(_table(Path(path)))
        elif survey == "lamost":
            blocks += _lamost(files, sources, hot_from, separation)
        elif survey == "hot_payne":
            if "lamost" not in files:
                blocks.append(_hot_payne(files[survey], sources, hot_from, separation))
        else:
            blocks.append(_survey(survey, files[survey]))
    for block in blocks:
        _sieve(block, limits or {}, smallest)
    return _combine(blocks)


def _check(catalogues: Sequence[tuple[str, Any]], limits: Mapping[str, float], floors: Mapping[str, float]) -> None:
    known = [*SURVEYS, TABLE]
    names = [survey for survey, _ in catalogues]
    if not names:
        raise InputError(f"no catalogue is given: name one as SURVEY=FILE, SURVEY one of {', '.join(known)}")
    for survey in names:
        if survey not in known:
            raise InputError(f"no survey is called {survey!r}: {_nearest(survey, known)}")
        if survey != TABLE and names.count(survey) > 1:
            raise InputError(f"{survey} is given twice")
    allowed = surveys.limit_names()
    short = [name.split(".")[1] for name in allowed]
    for name in limits:
        if name not in allowed and name not in short:
            raise InputError(f"no limit is called {name!r}: {_nearest(name, [*dict.fromkeys(short), *allowed])}")
    for name in floors:
        if name not in ERROR_FLOORS:
            raise InputError(f"no error is called {name!r}: {_nearest(name, list(ERROR_FLOORS))}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def _read(releases: tuple[Survey, ...], path: Path) -> tuple[Survey, dict[str, NDArray]]:
    """The release a file is of, and its columns by our names: labels as numbers in kK and dex, flags as bits."""
    survey = releases[0]
    if len(releases) > 1:
        ids = {release.release: release.columns["source_id"] for release in releases}
        there, _ = read_catalogue(path, ids)
        without_id = [release for release in releases if "source_id" in release.optional]
        if not there and not without_id:
            wanted = " or ".join(f"{names[0]} ({release})" for release, names in ids.items())
            raise InputError(f"is no catalogue of {survey.name}: it has no column {wanted}", file=str(path))
        survey = next((release for release in releases if release.release in there), *without_id[:1])
    columns, units = read_catalogue(path, survey.columns)
    for ours, theirs in survey.columns.items():
        if ours not in columns and ours not in survey.optional:
            message = f"is no catalogue of {survey.name} ({survey.release}): it has no column {theirs[0]}"
            raise InputError(message, file=str(path), field=theirs[0])
    masks = {mask.name for mask in survey.masks}
    for name in set(columns) & {*_LABELS, *_SNR, *masks, "ra", "dec"}:
        try:
            columns[name] = surveys.flags(columns[name]) if name in masks else surveys.number(columns[name])
        except (TypeError, ValueError) as error:
            raise InputError(f"not a column of numbers ({error})", file=str(path), field=name) from None
    if "source_id" in columns:
        columns["source_id"] = surveys.source_ids(columns["source_id"])
    factor = {
        name: kilokelvin_of(columns["teff"], units.get(name) or units.get("teff"), str(path), name)
        for name in ("teff", "teff_err")
    }
    for name in factor:
        columns[name] *= factor[name]
    return survey, columns


def _survey(name: str, path: Path) -> _Measurements:
    """A catalogue with source_ids of Gaia's third release."""
    survey, columns = _read(SURVEYS[name], path)
    columns["survey"] = _names(name, len(columns["teff"]))
    block = _block(survey, columns, f"spectra in {path.name} ({name} {survey.release})")
    block.sieve.require("with a source_id", columns["source_id"] > 0)
    return block


def _block(survey: Survey, columns: dict[str, NDArray], what: str) -> _Measurements:
    sieve = Sieve(len(columns["teff"]), what)
    return _Measurements(survey.name, columns, sieve, survey.best, survey.masks, dict(survey.cuts), survey.id_release)


def _names(name: str, n: int) -> NDArray:
    return np.full(n, name, dtype="U16")


def _lamost(
    files: Mapping[str, Path], sources: SourceTable | None, hot_from: float, separation: float
) -> list[_Measurements]:
    """LAMOST's stars, those that are hot with Hot Payne's labels, and Hot Payne's others."""
    path = files["lamost"]
    survey, columns = _read(SURVEYS["lamost"], path)
    columns["survey"] = _names("lamost", len(columns["teff"]))
    block = _block(survey, columns, f"spectra in {path.name} (lamost {survey.release})")
    if "hot_payne" not in files:
        _identify(block, sources, separation, path)
        return [block]
    for name in ("obsdate", "planid", "spid", "fiberid"):
        if name not in columns:
            raise InputError("needed to find Hot Payne's labels of a spectrum, and missing", file=str(path), field=name)
    hot = _hot_payne(files["hot_payne"], sources, hot_from, separation)
    row_of = {specid: row for row, specid in enumerate(surveys.specids(columns))}
    rows = np.array([row_of.get(specid, -1) for specid in surveys.texts(hot.columns["specid"])], np.intp)
    is_hot = hot.columns["teff"] >= hot_from
    taken = (rows >= 0) & is_hot
    for name in _LABELS:
        columns[name][rows[taken]] = hot.columns[name][taken]
    columns["survey"][rows[taken]] = "hot_payne"
    block.sieve.counts.append(
        CutCount(f"labels of {int(taken.sum()):,} spectra are Hot Payne's", 0, block.sieve.counts[-1].left)
    )
    cool = ~(columns["teff"] >= hot_from)
    block.sieve.require(
        f"cooler than {1000 * hot_from:g} K, or in Hot Payne", cool | (columns["survey"] == "hot_payne")
    )
    _identify(block, sources, separation, path)
    hot.sieve.require(f"not among the spectra of {path.name}", rows < 0)
    return [block, hot]


def _hot_payne(path: Path, sources: SourceTable | None, hot_from: float, separation: float) -> _Measurements:
    survey, columns = _read(SURVEYS["hot_payne"], path)
    columns["survey"] = _names("hot_payne", len(columns["teff"]))
    block = _block(survey, columns, f"spectra in {path.name} (hot_payne {survey.release})")
    block.sieve.require(f"{1000 * hot_from:g} K or hotter", columns["teff"] >= hot_from)
    _identify(block, sources, separation, path)
    return block


def _identify(block: _Measurements, sources: SourceTable | None, separation: float, path: Path) -> None:
    """Give spectra of LAMOST the source_id of the Gaia source at their place, or that which the catalogue names."""
    columns = block.columns
    if sources is not None and "ra" in columns and "dec" in columns:
        columns["source_id"] = match_positions(columns["ra"], columns["dec"], sources, separation)
        block.sieve.require(f"within {separation:g} arcsec of a Gaia source", columns["source_id"] > 0)
    elif "source_id" in columns:
        block.sieve.require(f"with a source_id, of {block.id_release}", columns["source_id"] > 0)
    elif block.name == "hot_payne":  # beside LAMOST's catalogue, which has places or identifiers
        columns["source_id"] = np.zeros(len(columns["teff"]), np.int64)
        block.sieve.require("with a position, and a gaia_source to find it in", columns["source_id"] > 0)
    else:
        raise InputError("has neither gaia_source_id nor, with a gaia_source, ra and dec", file=str(path))


def match_positions(ra: Float64, dec: Float64, sources: SourceTable, separation: float) -> NDArray[np.int64]:
    """source_id of the nearest source to each place (n,), in degrees; 0 where none is within ``separation`` arcsec."""
    rows = np.arange(len(sources))
    nearest = cross_match(ra, dec, sources.numbers("ra", rows), sources.numbers("dec", rows), separation)
    found = np.zeros(len(ra), np.int64)
    found[nearest.source] = sources.source_id[nearest.row]
    return found


def _table(path: Path) -> _Measurements:
    """A table with our names; its ``survey`` where it tells one."""
    labels = read_labels(path)
    rows = np.arange(len(labels))
    columns: dict[str, NDArray] = {"source_id": labels.source_id}
    for k, label in enumerate((*TYPE_LABELS, "ext") if labels.has_ext else TYPE_LABELS):
        columns[label], columns[f"{label}_err"] = labels.mean[:, k], labels.error[:, k]
    columns["survey"] = _names(TABLE, len(rows))
    if "survey" in labels.table:
        columns["survey"] = np.array([name or TABLE for name in labels.table.texts("survey", rows)], dtype="U16")
    for name in _SNR:
        if (values := labels.column(name)) is not None:
            columns[name] = values
    return _Measurements(TABLE, columns, Sieve(len(rows), f"rows of {path.name}"))


def _sieve(block: _Measurements, limits: Mapping[str, float], smallest: Mapping[str, float]) -> None:
    """Take out what has no labels, what its survey warns of, what is beyond the limits, repeats; raise small errors."""
    sieve, columns = block.sieve, block.columns
    for label in TYPE_LABELS:
        sieve.require(f"{label} is a number", np.isfinite(columns[label]))
        sieve.require(f"{label}_err is positive", np.greater(columns[f"{label}_err"], 0.0))

    def limit_of(name: str, usual: float) -> float:
        return limits.get(f"{block.name}.{name}", limits.get(name, usual))

    for mask in block.masks:
        if mask.name in columns:
            bits = int(limit_of(mask.name, mask.bits))
            changed = mask if bits == mask.bits else Mask(mask.name, bits, "as asked for")
            sieve.require(str(changed), changed.passed(columns[mask.name]))
    sieve.cut([cut.at(limit_of(name, limit)) for name, (cut, limit) in block.cuts.items()], columns.get)
    kept = np.flatnonzero(sieve.kept)
    quality = columns[block.best][kept] if block.best else np.zeros(len(kept))
    best_first = kept[np.lexsort((kept, -quality, columns["source_id"][kept]))]
    _, first = np.unique(columns["source_id"][best_first], return_index=True)
    is_best = np.zeros(len(sieve.kept), bool)
    is_best[best_first[first]] = True
    sieve.require("the best spectrum of each star", is_best)
    for name, floor in smallest.items():
        low = sieve.kept & (columns[name] < floor)
        if low.any():
            columns[name] = np.where(low, floor, columns[name])
            left = sieve.counts[-1].left
            sieve.counts.append(CutCount(f"{name} of {int(low.sum()):,} raised to {floor:g}", 0, left))


def _combine(blocks: list[_Measurements]) -> LabelTable:
    """Each star once, by the first catalogue that has it, sorted by source_id."""
    overlaps = []
    for later, block in enumerate(blocks):
        rows = np.flatnonzero(block.sieve.kept)
        before = np.zeros(len(block.sieve.kept), bool)
        for earlier in blocks[:later]:
            theirs = np.flatnonzero(earlier.sieve.kept)
            _, ours, first = np.intersect1d(
                block.columns["source_id"][rows], earlier.columns["source_id"][theirs], return_indices=True
            )
            if len(ours):
                overlaps.append(_overlap(earlier, theirs[first], block, rows[ours]))
                before[rows[ours]] = True
        if later:
            block.sieve.require("not in a catalogue named before", ~before)
    kept = [np.flatnonzero(block.sieve.kept) for block in blocks]
    if not sum(map(len, kept)):
        emptied = next(count for count in blocks[0].sieve.counts if count.left == 0)
        raise InputError(f"no label is left; of {blocks[0].name} none is left by: {emptied.condition}")
    columns = {}
    for name in ("source_id", "survey", *_LABELS, *_EXT, *_SNR):
        if not any(name in block.columns for block in blocks):
            continue
        parts = [
            block.columns[name][rows] if name in block.columns else np.full(len(rows), np.nan)
            for block, rows in zip(blocks, kept, strict=True)
        ]
        joined = np.concatenate(parts)
        if name not in _SNR or np.isfinite(joined).all():
            columns[name] = joined
    order = np.argsort(columns["source_id"])
    counts = {f"{number}. {block.name}": block.sieve.counts for number, block in enumerate(blocks, 1)}
    return LabelTable({name: values[order] for name, values in columns.items()}, counts, overlaps)


def _overlap(kept: _Measurements, rows: NDArray, other: _Measurements, other_rows: NDArray) -> Overlap:
    difference = np.column_stack(
        [other.columns[label][other_rows] - kept.columns[label][rows] for label in TYPE_LABELS]
    )
    low, median, high = np.quantile(difference, [0.16, 0.5, 0.84], axis=0)
    return Overlap(kept.name, other.name, len(rows), median, 0.5 * (high - low))
