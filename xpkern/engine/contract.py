"""What every engine does: the types that go in and come out, and the protocol itself.

An engine computes; it knows nothing of files. Arrays are C-contiguous; ``n`` counts stars, ``m`` samples (66 by
default), ``p = m (m + 1) / 2`` the packed triangle of a whitener, ``k`` stellar parameters (5 by default).

The *linear* parameters are (teff [kK], feh, logg, ext, plx [mas]); the coordinates *x* are
(teff, feh, logg, ln ext, ln plx).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from xpkern.errors import InputError

if TYPE_CHECKING:
    from xpkern.engine.groups import GroupedStars
    from xpkern.engine.training import EpochResult, ModelMoments, Steps
    from xpkern.fit.candidates import CandidateGrid
    from xpkern.fit.start import StartGrid
    from xpkern.model.flux_model import FluxModel
    from xpkern.model.noise import Noise
    from xpkern.model.type_prior import TypePrior
    from xpkern.observe.calibration import Calibration

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass
class Coefficients:
    """XP spectra of n stars as the archive stores them. Nothing in here is NaN: what is absent is marked so.

    Attributes
    ----------
    bp, rp : (n, n_bp), (n, n_rp) float64
        Coefficients of the basis functions; zeros where the spectrum is absent.
    bp_error, rp_error : same shapes, float32
        Their standard errors, as in the archive (they contain the standard deviation s).
    bp_correlation, rp_correlation : (n, n_bp (n_bp - 1) / 2) and the same for RP, float32
        Strict lower triangle of the correlation matrix, row-major.
    bp_standard_deviation, rp_standard_deviation : (n,) float32
        The archive's s; only ``sigma="zgr23"`` uses it.
    has_bp, has_rp : (n,) bool
        Whether the spectrum exists and is usable.
    """

    bp: Float64
    rp: Float64
    bp_error: Float32
    rp_error: Float32
    bp_correlation: Float32
    rp_correlation: Float32
    bp_standard_deviation: Float32
    rp_standard_deviation: Float32
    has_bp: NDArray[np.bool_]
    has_rp: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.bp)


@dataclass
class Calibrated:
    """Fluxes and whiteners of n stars.

    Attributes
    ----------
    flux : (n, m) float32
        Flux [1e-18 W m-2 nm-1]; 0 where missing.
    whitener : (n, p) float32
        Packed lower triangle, row-major, of the Cholesky factor G of C = G G^T, the diagonal holding 1 / G_jj;
        a missing sample has a zero row, column and reciprocal diagonal.
    status : (n,) uint32
        Bits of :class:`xpkern.status.Status`.
    """

    flux: Float32
    whitener: Float32
    status: NDArray[np.uint32]


@dataclass
class StarData:
    """What the loss of n stars is computed from.

    Attributes
    ----------
    flux : (n, m) float32
    whitener : (n, p) float32
        As in :class:`Calibrated`.
    mean, sigma : (n, k) float64
        Gaussian constraints on the linear parameters; ``sigma = inf`` where there is none (``mean`` is then 0).
    """

    flux: Float32
    whitener: Float32
    mean: Float64
    sigma: Float64

    def __len__(self) -> int:
        return len(self.flux)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> StarData:
        """Some of the stars; views where ``rows`` is a slice."""
        return StarData(self.flux[rows], self.whitener[rows], self.mean[rows], self.sigma[rows])


@dataclass
class FrozenNoise:
    """Covariances of n stars under a learned noise, factorised.

    Attributes
    ----------
    whitener : (n, p) float32
        As in :class:`Calibrated`; zeros for a star without a usable covariance.
    ln_det : (n,) float64
        ln det C over the samples that are not missing; NaN for a star without a usable covariance.
    """

    whitener: Float32
    ln_det: Float64


@dataclass(frozen=True)
class LossTerms:
    """Which optional terms the star loss has (Eqs. 13-14 and 19).

    Attributes
    ----------
    prior : bool
        - 2 ln p_GMM(teff, feh, logg).
    jacobian_ext, jacobian_plx : bool
        - 2 ln ext and - 2 ln plx.
    """

    prior: bool = True
    jacobian_ext: bool = True
    jacobian_plx: bool = True


@dataclass(frozen=True)
class Box:
    """Where the optimum is sought: lower and upper bounds of the linear parameters, each (k,) float64."""

    lower: Float64
    upper: Float64


@dataclass(frozen=True)
class FitOptions:
    """How hard the optimiser tries.

    Attributes
    ----------
    max_iterations : int
        Evaluations of the loss in each stage before the star goes to the next one.
    tolerance : float
        Converged when the predicted drop of the loss is below ``tolerance * max(1, 0.01 * loss)``.
    starts : int
        At most so many searches of a star that begins from a grid: from the best of the grid's types and, one after
        the other, the best of those unlike all before, as long as their expected loss is within ``gate`` of the
        first one's. The lowest optimum is the star's. An engine may give up a search once it sees that another one of
        the star has found, or is about to find, the same optimum.
    gate : float
        A difference of loss.
    """

    max_iterations: int = 40
    tolerance: float = 1e-5
    starts: int = 4
    gate: float = 4.0

    def __post_init__(self) -> None:
        for name, smallest in (("max_iterations", 1), ("starts", 1), ("tolerance", 0.0), ("gate", 0.0)):
            value = getattr(self, name)
            if not value >= smallest:
                raise InputError(f"{value} is not a number >= {smallest}", field=name)


@dataclass(frozen=True)
class Descent:
    """A run of first-order steps in x, as many for every star.

    Attributes
    ----------
    method : {"adam", "sgd"}
        Adam, or plain gradient descent.
    steps : int
    rate : float
        Learning rate of the first step.
    decay : float
        Factor to the rate after every ``decay_every`` steps.
    decay_every : int
    clip : float
        Norm to which a star's gradient is scaled down where it is larger; inf for never.
    """

    method: str
    steps: int
    rate: float
    decay: float = 0.5
    decay_every: int = 768
    clip: float = math.inf

    def __post_init__(self) -> None:
        if self.method not in ("adam", "sgd"):
            raise InputError(f"{self.method!r} is neither adam nor sgd", field="method")
        for name, smallest in (("steps", 0), ("rate", 0.0), ("decay", 0.0), ("decay_every", 1), ("clip", 0.0)):
            value = getattr(self, name)
            if not value >= smallest:
                raise InputError(f"{value} is not a number >= {smallest}", field=name)


@dataclass
class Evaluation:
    """The star loss and its derivatives at given parameters, all float64.

    Attributes
    ----------
    loss, chi2, ln_prior : (n,)
        ``ln_prior`` is the normalised GMM density, computed even where the loss leaves it out.
    gradient : (n, k)
        Of the loss, in x.
    hessian : (n, k, k)
        Of the loss, in x; exact.
    fisher : (n, k, k)
        J^T C^-1 J + diag(1 / sigma^2), in the linear parameters (Eqs. 21-22).
    """

    loss: Float64
    chi2: Float64
    ln_prior: Float64
    gradient: Float64
    hessian: Float64
    fisher: Float64


@dataclass
class Solution(Evaluation):
    """Where the fit ended: an :class:`Evaluation` at ``params``, and how it got there.

    A star without data has NaN in every float except ``residual``, and a status bit.

    Attributes
    ----------
    params : (n, k) float64
        Linear parameters.
    decrement : (n,) float64
        Predicted drop of the loss of one more Newton step, g^T H^-1 g / 2 in x.
    residual : (n, m) float32
        (predicted - observed) / sigma with sigma the square root of C's diagonal; 0 where missing.
    iterations : (n,) int32
        Evaluations of the loss, over all stages.
    status : (n,) uint32
        Bits of :class:`xpkern.status.Status`.
    minima : (n,) int32
        Distinct minima that the searches of the star found; 0 for a star without data. One in the valley of the first
        search may go unnoticed.
    second_params : (n, k) float64
        Linear parameters of the second lowest of them; NaN where there is none.
    second_gap : (n,) float64
        How much higher the loss is there; NaN where there is none.
    """

    params: Float64 = field(default_factory=lambda: np.empty((0, 0)))
    decrement: Float64 = field(default_factory=lambda: np.empty(0))
    residual: Float32 = field(default_factory=lambda: np.empty((0, 0), np.float32))
    iterations: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    status: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    minima: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    second_params: Float64 = field(default_factory=lambda: np.empty((0, 0)))
    second_gap: Float64 = field(default_factory=lambda: np.empty(0))


class Engine(Protocol):
    """The operations of an engine. ``threads=None`` means every core this process may use."""

    name: str

    def calibrate(
        self,
        calibration: Calibration,
        coefficients: Coefficients,
        noise: Noise,
        photometry_flux: Float64,
        photometry_error: Float64,
        *,
        threads: int | None = None,
    ) -> Calibrated:
        """Flux and whitener from coefficients (Eqs. 2-4); bands (n, 5) with error inf are missing."""
        ...

    def freeze_noise(
        self,
        model: FluxModel,
        noise: Noise,
        stars: StarData,
        contained: Noise | None,
        params: Float64,
        *,
        threads: int | None = None,
    ) -> FrozenNoise:
        """Whiteners of C = (f f^T) o S(Theta) + archive_factor C_gaia, f and S those of linear parameters (n, k).

        C_gaia is the covariance that the stars' whiteners stand for less the terms of Eq. 2, with the observed flux,
        that ``contained`` has; all of it where that is None. Missing samples stay missing.
        """
        ...

    def prior_curvature(self, prior: TypePrior, theta: Float64, *, threads: int | None = None) -> Float64:
        """Minus the Hessian of ln p_GMM, (n, d, d), at stellar types (n, d)."""
        ...

    def predict(self, model: FluxModel, params: Float64, *, threads: int | None = None) -> Float64:
        """Flux (n, m) of linear parameters (n, k) (Eq. 8)."""
        ...

    def evaluate(
        self,
        model: FluxModel,
        prior: TypePrior,
        stars: StarData,
        params: Float64,
        terms: LossTerms,
        *,
        threads: int | None = None,
    ) -> Evaluation:
        """Loss, gradient, Hessian and Fisher matrix at linear parameters (n, k)."""
        ...

    def start(self, grid: StartGrid, stars: StarData, options: FitOptions, *, threads: int | None = None) -> Float64:
        """Starts of each star, best first, as linear parameters (n, starts, k); NaN where it has fewer."""
        ...

    def fit(
        self,
        model: FluxModel,
        prior: TypePrior,
        stars: StarData,
        start: StartGrid | Float64,
        terms: LossTerms,
        box: Box,
        options: FitOptions,
        *,
        threads: int | None = None,
    ) -> Solution:
        """Lowest optimum of the star loss from the starts of a grid, or that from given parameters (n, k)."""
        ...

    def invert_information(
        self, information: Float64, *, threads: int | None = None
    ) -> tuple[Float64, Float64, np.ndarray]:
        """Covariances (n, k, k) of information matrices such as Fisher's, their inverses, where the floor acted (n,).

        See :func:`xpkern.fit.covariance.invert_information`.
        """
        ...

    def search(self, grid: CandidateGrid, stars: StarData, *, threads: int | None = None) -> Float64:
        """Candidate of each star with the lowest score, as linear parameters (n, k); the first of equal ones."""
        ...

    def descend(
        self,
        model: FluxModel,
        prior: TypePrior,
        stars: StarData,
        start: Float64,
        terms: LossTerms,
        box: Box,
        descent: Descent,
        *,
        threads: int | None = None,
    ) -> Float64:
        """Linear parameters (n, k) where first-order steps from given ones end; each step is clamped to the box."""
        ...

    def train_step(
        self, model: FluxModel, stars: StarData, params: Float64, *, threads: int | None = None
    ) -> tuple[float, list[Float64], list[Float64], Float64]:
        """Eq. 12 averaged over the stars, and its gradient in weights, biases and ln R."""
        ...

    def train_epoch(
        self,
        model: FluxModel,
        stars: StarData | GroupedStars,
        params: Float64,
        batches: Int64,
        terms: LossTerms,
        box: Box,
        model_steps: Steps | None,
        star_steps: Steps | None,
        moments: ModelMoments | None,
        *,
        threads: int | None = None,
    ) -> EpochResult:
        """First-order steps of the model and of the stars, batch by batch (Section 3.2 of the paper).

        In each batch the model takes one step against the gradient of Eq. 12 averaged over the batch's stars, ln R in
        place of R; then each of these stars takes one step against the gradient of its own loss (Eqs. 13-14) in x,
        under the new model. Stars are brought into the box before and after their step; one whose gradient is not
        finite takes none. A run of batches dealt out over several calls gives the same bytes as one call.

        Parameters
        ----------
        model : FluxModel
        stars : StarData or GroupedStars
            n stars; read in place, never copied. Whiteners that lie in groups need no gathering on the CPU where
            a group's stars follow one another in the batches, in ascending order; no result depends on it but by
            rounding.
        params : (n, k) float64
            Linear parameters; left as they are.
        batches : (steps, size) int64
            Rows of the stars of each batch, none twice in a batch.
        terms : LossTerms
            ``prior`` must be False: in training, labels take its place (``stars.mean`` and ``sigma``).
        box : Box
            Of the stars' steps.
        model_steps, star_steps : Steps or None
            One rate for each batch; None where that side does not move. Stars have gradient descent without momentum.
        moments : ModelMoments or None
            From the call before; None at the start.

        Raises
        ------
        InputError
            If shapes, batches or settings do not fit together; the message names them.
        TrainingDiverged
            If the model's loss in a batch, or the model after its step, is not finite. Nothing is lost: the error
            carries the batch, the stars to blame, and the result of all steps before that batch.
        """
        ...
