"""A block of stars, ready to be fitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xpkern.engine.arrays import as_array, namespace_of, on_device, to_host
from xpkern.engine.contract import Float32, Float64, StarData
from xpkern.engine.packed import diagonal_positions, packed_size, present_samples
from xpkern.errors import InputError
from xpkern.grid import N_FLUX, N_PARAMETERS, WAVELENGTH
from xpkern.model.arrays import shape_text
from xpkern.model.noise import Noise
from xpkern.observe.whiteners import dense_whitener, drop_samples, pack_whitener
from xpkern.status import UNFITTED, Status, mark
from xpkern.units import FLUX, PARALLAX, numbers_in


@dataclass
class Observations:
    """Fluxes, whiteners and constraints of n stars. Nothing in the numerical arrays is NaN: missing is explicit.

    The arrays of flux, whitener, parallax, status and constraints may be CuPy's, all of them; the others are NumPy's.

    Attributes
    ----------
    source_id : (n,) int64
    flux : (n, 66) float32
        Flux [1e-18 W m-2 nm-1] at ``wavelength``, infrared bands included; 0 where missing.
    whitener : (n, 2211) float32
        Packed Cholesky factors; see :class:`xpkern.engine.contract.Calibrated`.
    plx, plx_err : (n,) float64
        Parallax and its error [mas]; 0 and inf where missing.
    status : (n,) uint32
        Bits of :class:`xpkern.status.Status`.
    constraint_mean, constraint_err : (n, 5) float64, or None
        Gaussian constraints on the linear parameters other than the parallax; 0 and inf where there is none.
    columns : dict of str to (n,) array
        What is known of the stars from elsewhere, such as ra, dec, phot_g_mean_mag; NaN where absent.
    noise : Noise, optional
        The noise model the whiteners contain.
    wavelength : (66,) float64
        Samples [nm].
    reasons : list of (source_id, row, field, message)
        Why rows of the input could not be used.
    counts : Counter of str
        How many infrared measurements each cut removed (``photometry_removed_*``), how many sources each table given
        as photometry has (``photometry_sources_1``, ...), and how many parallaxes a zero point was subtracted from
        (``parallaxes_corrected``).
    """

    source_id: NDArray[np.int64]
    flux: Float32
    whitener: Float32
    plx: Float64
    plx_err: Float64
    status: NDArray[np.uint32]
    constraint_mean: Float64 | None = None
    constraint_err: Float64 | None = None
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    noise: Noise | None = None
    wavelength: Float64 = field(default_factory=WAVELENGTH.copy)
    reasons: list[tuple[int, int, str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def from_arrays(
        cls,
        *,
        flux: ArrayLike,
        whitener: ArrayLike | None = None,
        packed_factor: ArrayLike | None = None,
        plx: ArrayLike | None = None,
        plx_err: ArrayLike | None = None,
        source_id: ArrayLike | None = None,
        constraint_mean: ArrayLike | None = None,
        constraint_err: ArrayLike | None = None,
        noise: Noise | None = None,
    ) -> Observations:
        """Stars from plain arrays.

        If ``flux`` is on a GPU (CuPy's, or anything with ``__cuda_array_interface__``), so are the observations, and
        ``packed_factor`` is read in place. What is done on the host: dense whiteners are factorised, and those stars
        whose missing samples the packed ones still hold are brought there and back. Fluxes and parallaxes with units
        of astropy are converted.

        Parameters
        ----------
        flux : (n, 66) array_like
            Flux [1e-18 W m-2 nm-1]. A sample that is not finite is taken out of the covariance and counted in the
            status.
        whitener : (n, 66, 66) array_like
            Any L with L^T L = C^-1; zero columns are missing samples. This or ``packed_factor`` is required.
        packed_factor : (n, 2211) array_like
            The stored form itself. A row of the factor that is not finite is a missing sample.
        plx, plx_err : (n,) array_like, optional
            Parallax and its error [mas]; not finite, masked, or an error that is not positive, means missing.
        source_id : (n,) array_like, optional
            0, 1, 2, … when not given.
        constraint_mean, constraint_err : (n, 5) array_like, optional
            Gaussian constraints on (teff, feh, logg, ext, plx); not finite means none.
        noise : Noise, optional
            The noise of Eq. 2 that C contains. A learned noise takes it out of C again; where none is said to be in
            it, C is taken for what the measurement alone has, and the learned noise comes on top.

        Returns
        -------
        Observations

        Raises
        ------
        InputError
            If shapes do not fit together, both or neither of the whiteners are given, or a parallax is constrained
            twice. What is wrong with one star only is a bit of its status.
        """
        flux = _floats(numbers_in(flux, FLUX, "flux"), "flux", (None, N_FLUX), np.float32)
        stars, xp = len(flux), namespace_of(flux)
        status = xp.zeros(stars, np.uint32)
        if (whitener is None) == (packed_factor is None):
            raise InputError("give either whitener or packed_factor", field="whitener")
        if whitener is not None:
            square = to_host(whitener)
            square = _floats(square, "whitener", (stars, N_FLUX, N_FLUX), square.dtype)
            of_host, usable = pack_whitener(square)
            finite = np.isfinite(square).all(axis=(1, 2))
            mark(status, xp.asarray(~finite), Status.BAD_ROW)
            mark(status, xp.asarray(finite & ~usable), Status.SINGULAR_COVARIANCE)
            packed, missing = xp.asarray(of_host), xp.zeros(flux.shape, bool)
        else:
            packed, missing = _without_bad_rows(
                _floats(packed_factor, "packed_factor", (stars, packed_size(N_FLUX)), np.float32, xp)
            )
        missing |= ~np.isfinite(flux)
        lost = missing & (present_samples(packed) | ~np.isfinite(flux))
        mark(status, lost.any(axis=1), Status.MISSING_SAMPLES)
        packed = drop_samples(packed, missing)
        present = present_samples(packed)
        mark(status, ~present.any(axis=1), Status.NO_DATA)

        plx, plx_err = _measured(plx, plx_err, "plx", (stars,), xp, PARALLAX)
        mark(status, ~np.isfinite(plx_err), Status.NO_PARALLAX)
        mean, error = None, None
        if constraint_mean is not None or constraint_err is not None:
            mean, error = _measured(constraint_mean, constraint_err, "constraint_mean", (stars, N_PARAMETERS), xp)
            if (np.isfinite(error[:, -1]) & np.isfinite(plx_err)).any():
                raise InputError("the parallax of a star is given here and in plx", field="constraint_mean")
        return cls(
            source_id=_source_ids(source_id, stars),
            flux=np.where(present, flux, np.float32(0)),
            whitener=packed,
            plx=plx,
            plx_err=plx_err,
            status=status,
            constraint_mean=mean,
            constraint_err=error,
            noise=noise,
        )

    def __len__(self) -> int:
        return len(self.source_id)

    def __repr__(self) -> str:
        with_parallax = int(np.isfinite(self.plx_err).sum())
        return f"Observations({len(self):,} stars, {self.flux.shape[1]} samples, {with_parallax:,} with a parallax)"

    def __getitem__(self, stars: slice) -> Observations:
        """A range of the stars; arrays are views, ``reasons`` and ``counts`` stay whole."""
        if not isinstance(stars, slice):
            raise TypeError("observations are sliced by ranges: obs[a:b]; obs.take(rows) copies any rows")
        return self.take(stars)

    def take(self, stars: slice | NDArray[Any]) -> Observations:
        """Some of the stars: a range (views), row numbers or a mask (copies); ``reasons`` and ``counts`` stay whole."""
        return Observations(
            source_id=self.source_id[stars],
            flux=self.flux[stars],
            whitener=self.whitener[stars],
            plx=self.plx[stars],
            plx_err=self.plx_err[stars],
            status=self.status[stars],
            constraint_mean=None if self.constraint_mean is None else self.constraint_mean[stars],
            constraint_err=None if self.constraint_err is None else self.constraint_err[stars],
            columns={name: column[stars] for name, column in self.columns.items()},
            noise=self.noise,
            wavelength=self.wavelength,
            reasons=self.reasons,
            counts=self.counts,
        )

    @classmethod
    def concatenate(cls, blocks: Iterable[Observations]) -> Observations:
        """All stars of several blocks, in order.

        A column that some blocks lack is NaN there (0 in columns of integers).

        Raises
        ------
        InputError
            If there is no block, or they differ in wavelength or noise model.
        """
        blocks = list(blocks)
        if not blocks:
            raise InputError("no observations to concatenate")
        first = blocks[0]
        for block in blocks[1:]:
            if not np.array_equal(block.wavelength, first.wavelength):
                raise InputError("blocks differ", field="wavelength")
            if _noise_digest(block.noise) != _noise_digest(first.noise):
                raise InputError("blocks differ in their noise model", field="noise")

        xp = namespace_of(first.flux)

        def join(name: str) -> np.ndarray:
            return xp.concatenate([getattr(block, name) for block in blocks])

        constrained = any(block.constraint_err is not None for block in blocks)
        constraints = [block._constraints() for block in blocks] if constrained else []
        return cls(
            source_id=np.concatenate([block.source_id for block in blocks]),
            flux=join("flux"),
            whitener=join("whitener"),
            plx=join("plx"),
            plx_err=join("plx_err"),
            status=join("status"),
            constraint_mean=xp.concatenate([mean for mean, _ in constraints]) if constrained else None,
            constraint_err=xp.concatenate([error for _, error in constraints]) if constrained else None,
            columns=_join_columns(blocks),
            noise=first.noise,
            wavelength=first.wavelength,
            reasons=[reason for block in blocks for reason in block.reasons],
            counts=_sum_of_counts(blocks),
        )

    def whitener_dense(self, star: int) -> Float64:
        """Lower-triangular T with T^T T = C^-1 of one star, (66, 66) float64; zero where samples are missing."""
        index = range(len(self))[star]
        return dense_whitener(to_host(self.whitener[index : index + 1]))[0]

    def on_host(self) -> Observations:
        """The same stars with arrays of NumPy throughout; these observations themselves if they have no others."""
        if not on_device(self.flux):
            return self
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        arrays: dict[str, Any] = {name: to_host(array) for name, array in given.items() if on_device(array)}
        return replace(self, **arrays)

    def star_data(self) -> StarData:
        """What an engine needs of the stars; those that cannot be fitted have no weight anywhere."""
        mean, error = self._constraints()
        measured = np.isfinite(self.plx_err)
        mean[:, -1] = np.where(measured, self.plx, mean[:, -1])
        error[:, -1] = np.where(measured, self.plx_err, error[:, -1])
        unfitted = (self.status & np.uint32(UNFITTED)) != 0
        whitener = self.whitener
        if unfitted.any():
            whitener = np.where(unfitted[:, None], np.float32(0), whitener)
        xp = namespace_of(self.flux)
        return StarData(
            flux=xp.ascontiguousarray(self.flux),
            whitener=xp.ascontiguousarray(whitener),
            mean=mean,
            sigma=error,
        )

    def _constraints(self) -> tuple[Float64, Float64]:
        """New arrays (n, 5) of the constraints, 0 and inf where there are none."""
        shape, xp = (len(self), N_PARAMETERS), namespace_of(self.flux)
        if self.constraint_mean is None or self.constraint_err is None:
            return xp.zeros(shape), xp.full(shape, np.inf)
        return self.constraint_mean.copy(), self.constraint_err.copy()


def _floats(
    values: ArrayLike | None, name: str, shape: tuple[int | None, ...], dtype: np.dtype | type, xp: Any = None
) -> np.ndarray:
    """A contiguous array of that shape; where ``xp`` has its arrays, else where the values are."""
    try:
        given = as_array(values) if xp is None else xp.asarray(as_array(values))
        with np.errstate(over="ignore"):
            kind = np.float64 if np.dtype(dtype).kind != "f" else dtype
            array = namespace_of(given).ascontiguousarray(given, dtype=kind)
    except (TypeError, ValueError) as error:
        raise InputError(f"not an array of numbers: {error}", field=name) from None
    if array.ndim != len(shape) or any(want not in (None, have) for have, want in zip(array.shape, shape, strict=True)):
        raise InputError(f"shape {given.shape}, expected {shape_text(shape, 'n')}", field=name)
    return array


def _without_bad_rows(packed: Float32) -> tuple[Float32, np.ndarray]:
    """Stored factors with 0 for what is not finite, and the samples (n, m) whose row of the factor that concerns."""
    xp = namespace_of(packed)
    finite = np.isfinite(packed)
    missing = xp.zeros((len(packed), N_FLUX), bool)
    if finite.all():
        return packed, missing
    row_of_entry = xp.asarray(np.tril_indices(N_FLUX)[0])
    stars, entries = np.nonzero(~finite)
    missing[stars, row_of_entry[entries]] = True
    packed = np.where(finite, packed, np.float32(0))
    # a lost diagonal must not read as "missing already": the rest of its column still matters
    diagonal = xp.asarray(diagonal_positions(N_FLUX))
    packed[:, diagonal] = np.where(finite[:, diagonal], packed[:, diagonal], np.float32(1))
    return packed, missing


def _measured(
    values: ArrayLike | None,
    errors: ArrayLike | None,
    name: str,
    shape: tuple[int, ...],
    xp: Any,
    unit: str | None = None,
) -> tuple[Float64, Float64]:
    """Values and errors with 0 and inf where either is unusable."""
    if (values is None) != (errors is None):
        raise InputError("a value needs its error, and an error its value", field=name)
    if values is None:
        return xp.zeros(shape), xp.full(shape, np.inf)
    value = _floats(numbers_in(values, unit, name), name, shape, np.float64, xp)
    error_name = f"error of {name}"
    error = _floats(numbers_in(errors, unit, error_name), error_name, shape, np.float64, xp)
    usable = np.isfinite(value) & np.isfinite(error) & (error > 0)
    return np.where(usable, value, 0.0), np.where(usable, error, np.inf)


def _source_ids(values: ArrayLike | None, stars: int) -> NDArray[np.int64]:
    if values is None:
        return np.arange(stars, dtype=np.int64)
    if np.ma.is_masked(values):
        raise InputError("some are masked", field="source_id")
    ids = to_host(values)
    if ids.shape != (stars,) or (stars > 0 and ids.dtype.kind not in "iu"):
        raise InputError(f"shape {ids.shape} of {ids.dtype}, expected ({stars},) integers", field="source_id")
    return ids.astype(np.int64)


def _sum_of_counts(blocks: list[Observations]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for block in blocks:
        counts.update(block.counts)  # a sum of Counters would leave out what is 0
    return counts


def _noise_digest(noise: Noise | None) -> str | None:
    return None if noise is None else noise.digest


def _join_columns(blocks: list[Observations]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for block in blocks for name in block.columns)
    joined = {}
    for name in names:
        dtype = np.result_type(*(block.columns[name].dtype for block in blocks if name in block.columns))
        absent: float = np.nan if dtype.kind == "f" else 0
        joined[name] = np.concatenate(
            [
                block.columns[name] if name in block.columns else np.full(len(block), absent).astype(dtype)
                for block in blocks
            ]
        )
    return joined
