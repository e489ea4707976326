"""From Gaia's files to stars that can be fitted: spectra, parallaxes, photometry, and what is wrong with them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpkern.engine import Engine, get_engine
from xpkern.engine.arrays import namespace_of, to_host
from xpkern.engine.contract import Coefficients, Float64
from xpkern.engine.packed import present_samples
from xpkern.errors import InputError
from xpkern.grid import BANDS, N_FLUX, N_PACKED, XP_WAVELENGTH
from xpkern.model import Noise, load_model
from xpkern.observe.calibration import Calibration
from xpkern.observe.gaia_source import GAIA_COLUMNS, SourceTable
from xpkern.observe.observations import Observations
from xpkern.observe.parallax_zero_point import INPUTS as ZERO_POINT_INPUTS
from xpkern.observe.parallax_zero_point import ZERO_POINTS, parallax_zero_point
from xpkern.observe.photometry import COLUMN_NAMES, NOT_APPLIED, Infrared, PhotometryCuts, check_photometry
from xpkern.observe.spectra import one_by_one, read_blocks
from xpkern.observe.whiteners import drop_samples
from xpkern.observe.xp_block import BLOCK_ROWS, SeenSources, XpBlock
from xpkern.status import Status
from xpkern.threads import in_order, number_of_threads


def read_xp(
    paths: Any,
    gaia_source: Any = None,
    photometry: Any = None,
    calibration: Calibration | None = None,
    noise: Noise | None = None,
    engine: str | Engine = "auto",
    threads: int | None = None,
    *,
    photometry_cuts: PhotometryCuts | None = None,
    parallax_zero_point: str = "lindegren2021",
) -> Observations:
    """Read XP continuous mean spectra into memory, calibrated and ready for :func:`xpkern.fit`.

    A star takes 9.5 kB; :func:`iter_xp` does the same a block at a time.

    Parameters
    ----------
    paths : path or table, or sequence of these
        Gaia's table ``xp_continuous_mean_spectrum`` or ``xp_sampled_mean_spectrum``, in files of any format or in
        memory; see :func:`xpkern.observe.spectra.read_blocks`. Sampled ones get ``Status.SAMPLED_SPECTRUM``.
    gaia_source : path or table, optional
        With ``source_id``, ``parallax``, ``parallax_error`` [mas], and what else is known of the sources; see
        :meth:`xpkern.observe.gaia_source.SourceTable.of` for what counts as a table.
    photometry : path or table, or sequence of these, optional
        With ``source_id`` and the columns of :mod:`xpkern.observe.photometry`. The first table that has some of
        2MASS gives 2MASS, and the first that has some of unWISE gives that; ``gaia_source`` is the last of them.
    calibration : Calibration, optional
        That of Gaia DR3 when not given.
    noise : Noise, optional
        What is added to the archive's covariance; the default model's when not given.
    engine : str or Engine
        Which engine turns coefficients into fluxes and whiteners.
    threads : int, optional
        Every core this process may use when not given.
    photometry_cuts : PhotometryCuts, optional
        Which infrared measurements count; those of ZGR23 when not given.
    parallax_zero_point : {"lindegren2021", "none"}
        What is subtracted from the parallaxes of sources for which ``gaia_source`` has its inputs
        (:data:`xpkern.observe.parallax_zero_point.INPUTS`); ``columns["parallax"]`` stays as it was.

    Returns
    -------
    Observations
        One star for each row, in the order of the files. A row that cannot be read is a star with
        ``Status.BAD_ROW``, and ``reasons`` says why.

    Raises
    ------
    InputError
        If a file or a table cannot be read, or a file breaks off (:func:`iter_xp` yields the rows before the break).
    """
    reader = XpReader(paths, gaia_source, photometry, calibration, noise, engine, photometry_cuts, parallax_zero_point)
    return Observations.concatenate(in_order(reader.blocks(), reader.observe, threads=number_of_threads(threads)))


def iter_xp(
    paths: Any,
    gaia_source: Any = None,
    photometry: Any = None,
    calibration: Calibration | None = None,
    noise: Noise | None = None,
    engine: str | Engine = "auto",
    threads: int | None = None,
    *,
    rows: int = BLOCK_ROWS,
    prefetch: int = 0,
    photometry_cuts: PhotometryCuts | None = None,
    parallax_zero_point: str = "lindegren2021",
) -> Iterator[Observations]:
    """Read XP continuous mean spectra block by block: memory does not grow with the files.

    Parameters
    ----------
    paths, gaia_source, photometry, calibration, noise, engine, threads
        As in :func:`read_xp`.
    rows : int
        Stars of a block; the last block of each file may be shorter. Each takes 25 kB while it is worked on.
    prefetch : int
        Blocks that a thread of its own reads ahead while the caller works on the one before. It is one of
        ``threads``: leave it out of those that are given to :func:`xpkern.fit`.
    photometry_cuts, parallax_zero_point
        As in :func:`read_xp`.

    Yields
    ------
    Observations
        At least one block, of no stars if the files hold none.

    Raises
    ------
    InputError
        As :func:`read_xp`; for a gzip file that breaks off, after every complete row before the break was yielded.
    """
    if prefetch < 0:
        raise InputError(f"{prefetch} is not a number of blocks", field="prefetch")
    reader = XpReader(paths, gaia_source, photometry, calibration, noise, engine, photometry_cuts, parallax_zero_point)
    blocks = reader.blocks(rows)
    if prefetch == 0:
        return (reader.observe(block, threads=threads) for block in blocks)
    return in_order(blocks, reader.observe, threads=2, ahead=prefetch)


#: Columns that are read of a table, by what it is of.
WANTED = {
    "gaia_source": tuple(dict.fromkeys((*GAIA_COLUMNS, *ZERO_POINT_INPUTS, *COLUMN_NAMES))),
    "photometry": COLUMN_NAMES,
}


def table_of(table: Any, kind: str) -> SourceTable:
    """Return a table with what a fit needs of it.

    Parameters
    ----------
    table : path or table
        As :meth:`xpkern.observe.gaia_source.SourceTable.of` takes it.
    kind : {"gaia_source", "photometry"}

    Raises
    ------
    InputError
        If it cannot be read, or holds no photometry although that is what it is for.
    """
    found = SourceTable.of(table, kind, WANTED[kind])
    if kind == "photometry":
        check_photometry(found)
    return found


class XpReader:
    """Files and tables that have been found good, and what makes stars of their rows.

    Parameters
    ----------
    paths, gaia_source, photometry, calibration, noise, engine, photometry_cuts, parallax_zero_point
        As in :func:`read_xp`.

    Raises
    ------
    InputError
        If nothing is given to read, a table cannot be read, the calibration has other samples than the model, or there
        is no such zero point.
    """

    def __init__(
        self,
        paths: Any,
        gaia_source: Any = None,
        photometry: Any = None,
        calibration: Calibration | None = None,
        noise: Noise | None = None,
        engine: str | Engine = "auto",
        photometry_cuts: PhotometryCuts | None = None,
        parallax_zero_point: str = "lindegren2021",
    ) -> None:
        if parallax_zero_point not in ZERO_POINTS:
            raise InputError(
                f"{parallax_zero_point!r} is none of {', '.join(ZERO_POINTS)}", field="parallax_zero_point"
            )
        self.photometry_cuts = PhotometryCuts() if photometry_cuts is None else photometry_cuts
        self.files = one_by_one(paths)
        if not self.files:  # as of a pattern that nothing matches
            raise InputError("no file or table is given", field="paths")
        self.calibration = Calibration.default() if calibration is None else calibration
        if not np.array_equal(self.calibration.wavelength, XP_WAVELENGTH):
            raise InputError(
                f"the calibration ({self.calibration.release}) has other samples than 392, 402 ... 992 nm",
                field="wavelength",
            )
        self.noise = load_model()[0].noise if noise is None else noise
        self.sources = None if gaia_source is None else table_of(gaia_source, "gaia_source")
        if self.sources is not None:
            self.sources.require(("parallax", "parallax_error"))
        self.photometry = [table_of(table, "photometry") for table in one_by_one(photometry)]
        self.infrared = Infrared(
            [*self.photometry, *([] if self.sources is None else [self.sources])], self.photometry_cuts
        )
        self.engine = get_engine(engine)
        absent = [name for name in ZERO_POINT_INPUTS if self.sources is None or name not in self.sources]
        self.correct_parallaxes = parallax_zero_point != "none" and not absent
        if absent and parallax_zero_point != "none":
            missing = "gaia_source table" if self.sources is None else f"column {absent[0]}"
            parallax_zero_point = f"{NOT_APPLIED}no {missing}"
        self.provenance: dict[str, object] = {
            **{f"photometry_cut_{name}": setting for name, setting in self.infrared.settings.items()},
            "parallax_zero_point": parallax_zero_point,
        }

    def blocks(self, rows: int = BLOCK_ROWS) -> Generator[XpBlock | None, None, None]:
        """The rows of all files, block by block: what cannot be done in parallel. None, once, if there is no row.

        Parameters
        ----------
        rows : int
            Rows of a block; the last block of each file may be shorter.

        Raises
        ------
        InputError
            If ``rows`` is not positive. While it is iterated over: as :func:`xpkern.observe.spectra.read_blocks`.
        """
        if rows < 1:
            raise InputError(f"{rows} is not a number of rows", field="rows")
        return self._blocks(rows)

    def _blocks(self, rows: int) -> Generator[XpBlock | None, None, None]:
        is_empty = True
        # counted only: what is in a row of a catalogue does not depend on the files beside its own
        of_all_files = SeenSources() if len(self.files) > 1 else None
        for file in self.files:
            with contextlib.closing(
                read_blocks(
                    file,
                    self.calibration,
                    rows=rows,
                    need_standard_deviation=self.noise.sigma == "zgr23",
                )
            ) as blocks:
                seen = SeenSources()
                for block in blocks:
                    is_empty = False
                    block.repeated = seen.add(block.source_id, ~block.bad)
                    if of_all_files is not None:
                        again = of_all_files.add(block.source_id, ~block.bad)
                        block.in_earlier_files = int(np.count_nonzero(again & ~block.repeated))
                    yield block
        if is_empty:
            yield None

    def observe(
        self, block: XpBlock | None, threads: int | None = 1, bring: Callable[[np.ndarray], Any] = np.asarray
    ) -> Observations:
        """Calibrate the spectra of a block and join what the tables know of its sources; no other block matters.

        Parameters
        ----------
        block : XpBlock or None
            None has no stars.
        threads : int, optional
            That the engine may use.
        bring : callable
            Brings an array to where the observations are to be, as :func:`xpkern.engine.keeping` yields it.
        """
        if block is None:
            return Observations.from_arrays(flux=np.empty((0, N_FLUX)), packed_factor=np.empty((0, N_PACKED)))
        has_bp, has_rp = block.coefficients.has_bp, block.coefficients.has_rp
        status = np.zeros(len(block), np.uint32)

        def mark(bit: Status, stars: NDArray[np.bool_]) -> None:
            status[stars] |= np.uint32(bit)

        mark(Status.BAD_ROW, block.bad)
        mark(Status.NO_BP, ~has_bp & ~block.bad)
        mark(Status.NO_RP, ~has_rp & ~block.bad)
        mark(Status.SAMPLED_SPECTRUM, np.full(len(block), block.is_sampled))
        mark(Status.REPEATED_SOURCE, block.repeated)

        counts: Counter[str] = Counter()
        if block.in_earlier_files:
            counts["sources_in_earlier_files"] = block.in_earlier_files
        rows = np.full(len(block), -1) if self.sources is None else self.sources.rows_of(block.source_id)
        band_flux, band_error = self._infrared(block, counts)
        n_bands = np.isfinite(band_error).sum(axis=1)
        mark(Status.NO_INFRARED, n_bands == 0)
        mark(Status.INCOMPLETE_INFRARED, (n_bands > 0) & (n_bands < len(BANDS)))

        columns = self._columns(rows)
        if self.sources is not None:
            mark(Status.NO_GAIA_SOURCE, rows < 0)
        plx, plx_err = self._corrected_parallax(columns["parallax"], rows, counts), columns["parallax_error"]
        measured = np.isfinite(plx) & np.isfinite(plx_err) & (plx_err > 0)
        mark(Status.NO_PARALLAX, ~measured)

        coefficients = Coefficients(**{name: bring(array) for name, array in vars(block.coefficients).items()})
        calibrated = self.engine.calibrate(
            block.calibration, coefficients, self.noise, bring(band_flux), bring(band_error), threads=threads
        )
        flux, whitener = calibrated.flux, calibrated.whitener
        if block.missing is not None:
            # beyond what an absent band leaves out
            lost = namespace_of(flux).zeros(flux.shape, bool)
            lost[:, : block.missing.shape[1]] = bring(block.missing)
            lost &= present_samples(whitener)
            mark(Status.MISSING_SAMPLES, to_host(lost.any(axis=1)))
            flux, whitener = np.where(lost, np.float32(0), flux), drop_samples(whitener, lost)
        return Observations(
            source_id=block.source_id,
            flux=flux,
            whitener=whitener,
            plx=bring(np.where(measured, plx, 0.0)),
            plx_err=bring(np.where(measured, plx_err, np.inf)),
            status=bring(status) | calibrated.status,
            columns=columns,
            noise=self.noise,
            reasons=block.reasons,
            counts=counts,
        )

    def _corrected_parallax(self, archive: Float64, rows: NDArray[np.intp], counts: Counter[str]) -> Float64:
        """Parallaxes less their zero point, where it is known; how many that are is counted."""
        if self.sources is None or not self.correct_parallaxes:
            return archive
        zero_point = parallax_zero_point(*(self.sources.numbers(name, rows) for name in ZERO_POINT_INPUTS))
        known = np.isfinite(zero_point) & np.isfinite(archive)
        counts["parallaxes_corrected"] += int(np.count_nonzero(known))
        return np.where(known, archive - zero_point, archive)

    def _infrared(self, block: XpBlock, counts: Counter[str]) -> tuple[Float64, Float64]:
        """Fluxes and errors (n, 5) of the infrared bands; a row that cannot be read has none. What was found and what
        was removed is counted.
        """
        removed: Counter[str] = Counter()
        known = block.source_id[~block.bad]
        for number, table in enumerate(self.photometry, 1):
            counts[f"photometry_sources_{number}"] = int(np.count_nonzero(table.rows_of(known) >= 0))
        flux, error = self.infrared.flux(np.where(block.bad, -1, block.source_id), removed)
        counts.update({f"photometry_removed_{cut}": number for cut, number in removed.items()})
        return flux, error

    def _columns(self, rows: NDArray[np.intp]) -> dict[str, np.ndarray]:
        """Columns of the stars at some rows of gaia_source; NaN where it has none."""
        columns = {name: np.full(len(rows), np.nan) for name in GAIA_COLUMNS}
        if self.sources is not None:
            columns |= {name: self.sources.numbers(name, rows) for name in GAIA_COLUMNS if name in self.sources}
        return columns
