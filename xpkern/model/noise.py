"""The noise that is added to the archive's covariance of a spectrum (Eq. 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.grid import N_BANDS, N_FLUX, N_XP, XP_WAVELENGTH
from xpkern.model.arrays import constant, digest
from xpkern.model.model_error import ModelError

#: The two readings of the archive's errors; see :class:`Noise`.
SIGMA_CONVENTIONS = ("archive", "zgr23")

#: Names of noise models in a model file: that of Eq. 2 alone, and one with a covariance learned from residuals.
KINDS = ("eq2", "learned")

#: Where the spectra of BP and RP meet [nm]; a spectrum already merged does not tell their shares, so half each.
_JUNCTION = 642.0


@dataclass(frozen=True, eq=False)
class Noise:
    """Systematic errors of a flux vector, as fractions of the observed flux f (Eq. 2).

    ::

        C = C_gaia + diag((independent f)^2) + common^2 f f^T + bp^2 f_BP f_BP^T + rp^2 f_RP f_RP^T

    ``common``, ``bp`` and ``rp`` act on the XP samples only; ``independent`` on all of them, the infrared bands
    included, whose own squared error stands in for C_gaia. f_BP and f_RP are the two sides, each times its merge
    weight (they add up to f).

    Attributes
    ----------
    independent : (m,) float64
        Error of each sample on its own.
    common, bp, rp : float
        Error common to all XP samples, to those of BP, to those of RP.
    sigma : {"archive", "zgr23"}
        How the archive's errors are read. "archive": the covariance of the coefficients is diag(e) rho diag(e), for
        the errors e already contain the standard deviation s. "zgr23": that over s^2, per band, which is what
        ZGR23's footnote 2 amounts to.
    floor : float
        Eigenvalues of C of the XP samples below this [(1e-18 W m-2 nm-1)^2] are raised to it.
    model_error : ModelError, optional
        What residuals have taught of the model's own error. With it a fit has two passes: the first with Eq. 2, the
        second with the covariance that :class:`xpkern.model.model_error.ModelError` tells, at the first one's optimum.
    """

    independent: Float64
    common: float = 0.005
    bp: float = 0.001
    rp: float = 0.001
    sigma: str = "archive"
    floor: float = 1e-9
    model_error: ModelError | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "independent", constant(self.independent, "independent", (None,)))
        if (self.independent < 0).any():
            raise InputError("negative error", field="independent")
        for name in ("common", "bp", "rp", "floor"):
            value = float(getattr(self, name))
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{value} is not a finite number >= 0", field=name)
            object.__setattr__(self, name, value)
        if self.sigma not in SIGMA_CONVENTIONS:
            raise InputError(f"{self.sigma!r} is none of {', '.join(SIGMA_CONVENTIONS)}", field="sigma")
        if self.model_error is not None and self.model_error.n_samples != len(self.independent):
            message = f"of {self.model_error.n_samples} samples, that of Eq. 2 of {len(self.independent)}"
            raise InputError(message, field="model_error")

    @classmethod
    def eq2(
        cls,
        *,
        sigma: str = "archive",
        photometry_floor: float = 0.01,
        theoretical: ArrayLike | None = None,
        theoretical_error: float = 0.1,
    ) -> Noise:
        """The noise of ZGR23 on the 66 samples of :data:`xpkern.grid.WAVELENGTH`.

        Parameters
        ----------
        sigma : {"archive", "zgr23"}
            How the archive's errors are read.
        photometry_floor : float
            Fractional error added to every infrared band (absent from the paper, 1 % in its authors' code).
        theoretical : (66,) bool, optional
            Samples whose model is an extrapolation by physics, not learned from data.
        theoretical_error : float
            Fractional error of those, in place of their other one.

        Raises
        ------
        InputError
            If a number is negative, not finite, or ``theoretical`` has another shape.
        """
        independent = np.concatenate([np.full(N_XP, 0.005), np.full(N_BANDS, float(photometry_floor))])
        if theoretical is not None:
            mask = np.asarray(theoretical, dtype=bool)
            if mask.shape != (N_FLUX,):
                raise InputError(f"shape {mask.shape}, expected ({N_FLUX},)", field="theoretical")
            independent[mask] = float(theoretical_error)
        return cls(independent=independent, sigma=sigma)

    @property
    def kind(self) -> str:
        """Name of the noise model in a model file: "eq2", or "learned" where it has a model error."""
        return KINDS[self.model_error is not None]

    def without_model_error(self) -> Noise:
        """The noise of Eq. 2 alone."""
        return replace(self, model_error=None)

    def common_errors(self, wavelength: Float64) -> Float64:
        """Fractional errors of samples (m,) [nm] that are common to several, (3, m): ``common``, ``bp`` and ``rp``.

        A merged spectrum does not tell the shares of BP and RP in the sample where they meet: half each.
        """
        spectrum = wavelength <= XP_WAVELENGTH[-1]
        bp_share = np.where(wavelength < _JUNCTION, 1.0, np.where(wavelength > _JUNCTION, 0.0, 0.5))
        return np.stack([self.common * spectrum, self.bp * bp_share * spectrum, self.rp * (1.0 - bp_share) * spectrum])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that enters C."""
        learned = [] if self.model_error is None else [self.model_error.digest]
        return digest([self.kind, self.independent, self.common, self.bp, self.rp, self.sigma, self.floor, *learned])
