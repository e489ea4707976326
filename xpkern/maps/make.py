"""From a catalogue to a map, in blocks of rows: memory does not grow with the number of stars."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.pending import PendingFile, refuse_taken
from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.maps.bias import BinBias, biases
from xpkern.maps.binning import StarBins
from xpkern.maps.cube import SkyCube, Tile, best_resolution
from xpkern.maps.map_file import write_map
from xpkern.maps.median import WaitingStars
from xpkern.maps.settings import OUTCOMES, USUAL_DOF, MapSettings
from xpkern.maps.sky import pixels_of_stars

Block = Mapping[str, NDArray[Any]]

#: Rows of a block: few enough that its columns are small beside the cells.
_ROWS = 1 << 17

#: Columns that are used where a catalogue has them.
OPTIONAL = ("source_id", "ra", "dec", "loss", "chi2", "chi2_dof", "quality_flags")


def required_columns(settings: MapSettings) -> tuple[str, ...]:
    """Columns that a catalogue must have."""
    return (settings.quantity, f"{settings.quantity}_error", "parallax_est", "parallax_est_error")


def optional_columns(settings: MapSettings) -> tuple[str, ...]:
    """Columns that are used where a catalogue has them."""
    return (*OPTIONAL, "feh_confidence") if settings.quantity == "feh" else OPTIONAL


@dataclass
class MapSummary:
    """What came of a catalogue.

    Attributes
    ----------
    outcomes : dict of str to int
        What became of its stars (:data:`xpkern.maps.settings.OUTCOMES`).
    rows : int
    by_source_id : int
        Stars placed by their source_id, for want of coordinates.
    cells : dict of int to int
        Finest cells whose number is of each nside.
    per_bin : BinBias
    attributes : dict of str to str
        Of the file.
    """

    outcomes: dict[str, int]
    rows: int
    by_source_id: int
    per_bin: BinBias
    attributes: dict[str, str]
    cells: dict[int, int] = field(default_factory=dict)


def make_map(
    catalogs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: MapSettings | None = None,
    *,
    overwrite: bool = False,
    on_rows: Callable[[int], object] | None = None,
) -> MapSummary:
    """Map the stars of a catalogue, or of several, and write the map as FITS.

    Parameters
    ----------
    catalogs : sequence of path-like
        Files, or folders in the HATS layout, as :class:`xpkern.catalog.stream.CatalogReader` reads them; they are added
        in this order.
    output : path-like
        ``*.fits``
    settings : MapSettings, optional
    overwrite : bool
    on_rows : callable, optional
        Called with the number of rows of each block.

    Returns
    -------
    MapSummary

    Raises
    ------
    InputError
        If a file is no catalogue or lacks a column, no star passes the cuts, or the output cannot be written.
    """
    from xpkern.catalog.stream import CatalogReader

    settings = settings or MapSettings()
    path = checked_map_name(output, catalogs, overwrite=overwrite)
    reader = CatalogReader(catalogs)
    blocks = reader.blocks(required_columns(settings), optional=optional_columns(settings), rows=_ROWS)
    with ExitStack() as stack:
        stars = _Stars(settings, path.absolute().parent, stack)
        for block in blocks:
            stars.add(block)
            if on_rows is not None:
                on_rows(len(block[settings.quantity]))
        return stars.write(path, str(reader.attributes.get("model_digest", "")))


def map_of_blocks(blocks: Iterable[Block], settings: MapSettings | None = None, *, folder: Path = Path()) -> SkyCube:
    """Map stars that are at hand, in memory.

    Parameters
    ----------
    blocks : iterable of mapping of str to (n,) array
        Columns of stars by their names in a catalogue: ``ext`` and ``ext_error`` (or those of ``feh``),
        ``parallax_est``, ``parallax_est_error``, and ``ra`` and ``dec``, or Gaia's ``source_id``; ``loss`` or ``chi2``,
        ``chi2_dof``, ``quality_flags``, ``feh_confidence`` where there are cuts on them.
    settings : MapSettings, optional
    folder : Path
        Where stars wait for a median, on the disk.

    Raises
    ------
    InputError
        If a column is missing, or no star passes the cuts.
    """
    settings = settings or MapSettings()
    with ExitStack() as stack:
        stars = _Stars(settings, folder, stack)
        for block in blocks:
            stars.add(block)
        summary = stars.summary("")
        parts = list(stars.tiles())
        names = ("pixel", "value", "error", "stars", "nside")
        tile = Tile(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
        told = {name: text for name, text in summary.attributes.items() if text}
        return SkyCube(settings, tile, asdict(summary.per_bin), summary.outcomes, told)


def checked_map_name(
    output: str | os.PathLike[str], inputs: Sequence[str | os.PathLike[str]] = (), *, overwrite: bool
) -> Path:
    """Return the name as a path if a map can be written there.

    Raises
    ------
    InputError
        If it does not end in .fits, its folder does not exist, or there is a file that must stay.
    """
    path = Path(output)
    if path.suffix != ".fits":
        raise InputError("the name of a map must end in .fits", file=str(path))
    refuse_taken(PendingFile(path).final, inputs, overwrite=overwrite)
    return path


class _Stars:
    """The stars of a map while they come in blocks."""

    def __init__(self, settings: MapSettings, folder: Path, stack: ExitStack) -> None:
        self.settings = settings
        self.bins = StarBins(settings)
        self.waiting = None
        if settings.estimate == "median":
            self.waiting = stack.enter_context(WaitingStars(settings, self.bins.tile_order, folder))
        self.by_source_id = 0
        self.rows = 0
        self._digests: dict[str, Any] = {}

    def add(self, block: Block) -> None:
        """Add stars."""
        settings = self.settings
        missing = [name for name in required_columns(settings) if name not in block]
        if missing:
            raise InputError(f"stars have no {', '.join(missing)}", field=missing[0])
        if "source_id" not in block and not {"ra", "dec"} <= block.keys():
            raise InputError("stars have neither ra and dec nor source_id: where they are is not known", field="ra")
        self._digest(block)
        value, error, parallax, parallax_error = (_floats(block[name]) for name in required_columns(settings))
        pixel, named = pixels_of_stars(block.get("ra"), block.get("dec"), block.get("source_id"), self.bins.order)
        misfit, flags, confidence = self._judged(block, len(value))
        found = self.bins.add(pixel, value, error, parallax, parallax_error, misfit, flags, confidence)
        if self.waiting is not None:
            self.waiting.add(pixel, found, value)
        self.by_source_id += named
        self.rows += len(value)

    def _judged(self, block: Block, n: int) -> tuple[Float64, Float64, Float64]:
        """Misfit, flags and confidence of stars; what the catalogue does not tell passes."""
        misfit, flags, confidence = np.full(n, -np.inf), np.full(n, -np.inf), np.full(n, np.inf)
        if (loss := block.get("loss", block.get("chi2"))) is not None:
            dof = _floats(block["chi2_dof"]) if "chi2_dof" in block else np.full(n, float(USUAL_DOF))
            misfit = np.divide(_floats(loss), dof, out=np.full(n, np.nan), where=dof > 0)
        if "quality_flags" in block:
            flags = _floats(block["quality_flags"])
        if "feh_confidence" in block:
            confidence = _floats(block["feh_confidence"])
        return misfit, flags, confidence

    def _digest(self, block: Block) -> None:
        """Keep a digest of each column, which does not depend on how the rows are divided into blocks."""
        for name in (*required_columns(self.settings), *optional_columns(self.settings)):
            if name in block:
                digest = self._digests.setdefault(name, hashlib.blake2b(digest_size=16))
                digest.update(np.ascontiguousarray(block[name]))

    def summary(self, model_digest: str) -> MapSummary:
        """What has come of the stars.

        Raises
        ------
        InputError
            If none of them is used.
        """
        outcomes = dict(zip(OUTCOMES, self.bins.outcomes.tolist(), strict=True))
        if not outcomes["used"]:
            reasons = "; ".join(f"{name}: {number:,}" for name, number in outcomes.items() if number)
            raise InputError(f"no star passes the cuts ({reasons or 'there are no stars'})", field="cut")
        columns = self._digests.keys()
        needs = {"misfit": {"loss", "chi2"}, "quality_flags": {"quality_flags"}, "confidence": {"feh_confidence"}}
        limits = self.settings.limits.as_dict()
        absent = [name for name, any_of in needs.items() if np.isfinite(limits[name]) and not any_of & columns]
        misfit = "loss" if "loss" in columns else "chi2" if "chi2" in columns else "nothing"
        dof = "chi2_dof" if "chi2_dof" in columns else str(USUAL_DOF)
        if not self.by_source_id:
            places = "ra, dec"
        else:
            places = "source_id" if self.by_source_id == self.rows - outcomes["no position"] else "ra, dec; source_id"
        whole = hashlib.blake2b(digest_size=16)
        for name in sorted(columns):
            whole.update(name.encode() + self._digests[name].digest())
        attributes = {
            "model_digest": model_digest,
            "catalog_digest": whole.hexdigest(),
            "positions": places,
            "misfit": misfit if misfit == "nothing" else f"{misfit} / {dof}",
            "not_applied": " ".join(absent),
        }
        return MapSummary(outcomes, self.rows, self.by_source_id, biases(self.bins), attributes)

    def tiles(self) -> Iterator[Tile]:
        """The map, tile by tile."""
        size = self.bins.pixels_of_tile
        source = self.bins if self.waiting is None else self.waiting
        for tile in np.flatnonzero(self.bins.touched):
            pixel = np.arange(tile * size, (tile + 1) * size)
            yield best_resolution(pixel, source.levels(int(tile)), self.settings)

    def write(self, path: Path, model_digest: str) -> MapSummary:
        """Write the map."""
        summary = self.summary(model_digest)
        summary.cells = dict.fromkeys(self.settings.nsides, 0)

        def counted() -> Iterator[Tile]:
            for tile in self.tiles():
                for nside in summary.cells:
                    summary.cells[nside] += int((tile.nside == nside).sum())
                yield tile

        rows = int(self.bins.touched.sum()) * self.bins.pixels_of_tile
        write_map(
            path,
            self.settings,
            counted(),
            rows,
            per_bin=asdict(summary.per_bin),
            outcomes=summary.outcomes,
            attributes=summary.attributes,
        )
        return summary


def _floats(values: NDArray[Any]) -> Float64:
    return np.ascontiguousarray(values, np.float64)
