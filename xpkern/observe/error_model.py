r"""How large the errors of XP coefficients are, and how they are correlated: a small model for the simulator.

For each photometer (BP, RP) and basis function j the squared error grows with the star's mean flux F in that
photometer [1e-18 W m-2 nm-1] as background, photon noise and calibration noise do,

    e_j^2 = exp(2 s z) (a_j^2 + b_j F + c_j^2 F^2),     z ~ N(0, 1),

with one factor exp(s z) per star and photometer (number of transits, colour). The correlation matrix lies on the
line between that of faint, background-limited stars and that of bright, calibration-limited ones,

    rho = (1 - t) rho_faint + t rho_bright,     0 <= t(F) <= 1,

which is positive definite for every t because both ends are. The shipped numbers are a fit to real Gaia DR3
sources; :func:`fit_error_model` made them, and ``python -m xpkern.observe.error_model`` makes them again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from xpkern.engine.contract import Float64

if TYPE_CHECKING:
    from xpkern.observe.calibration import Calibration

#: log10 F at which the star-to-star scatter of the errors is tabulated.
SCATTER_NODES = np.array([0.0, 1.0, 1.75, 2.5, 4.0])

#: log10 F where the correlations start to leave the faint limit, and where they have reached the bright one
#: (G of about 16 and 11).
CORRELATION_LIMITS = (1.0, 3.0)

#: How far a mean over few stars is drawn towards the identity: what their scatter alone would have it overstate.
SHRINKAGE = 0.05

_PHOTOMETERS = ("bp", "rp")


@dataclass(frozen=True)
class PhotometerErrors:
    """Error model of one photometer.

    Attributes
    ----------
    variance : (3, n) float64
        a_j^2, b_j and c_j^2 of the n basis functions.
    scatter : (len(SCATTER_NODES),) float64
        Standard deviation of ln e shared by all coefficients of a star, at :data:`SCATTER_NODES`.
    correlation_faint, correlation_bright : (n, n) float64
        The two ends of the correlation matrix.
    """

    variance: Float64
    scatter: Float64
    correlation_faint: Float64
    correlation_bright: Float64

    @cached_property
    def _factors(self) -> tuple[NDArray, NDArray]:
        return np.linalg.cholesky(self.correlation_faint), np.linalg.cholesky(self.correlation_bright)

    def draw_errors(self, mean_flux: Float64, scale: Float64) -> NDArray[np.float32]:
        """Errors of the coefficients, (N, n) float32, for mean fluxes and unit normal ``scale`` z, both (N,)."""
        powers = mean_flux[:, None] ** np.arange(3)
        scatter = np.interp(np.log10(np.maximum(mean_flux, 1e-9)), SCATTER_NODES, self.scatter)
        return (np.exp(scatter * scale)[:, None] * np.sqrt(powers @ self.variance)).astype(np.float32)

    def correlation(self, mean_flux: Float64) -> Float64:
        """Correlation matrices (N, n, n)."""
        bright = _bright_share(mean_flux)[:, None, None]
        return self.correlation_faint + bright * (self.correlation_bright - self.correlation_faint)

    def correlation_triangle(self, mean_flux: Float64) -> NDArray[np.float32]:
        """Their strict lower triangles (N, n (n - 1) / 2), row-major: the archive's order."""
        faint, bright = (_to_triangle(end) for end in (self.correlation_faint, self.correlation_bright))
        triangle = _bright_share(mean_flux).astype(np.float32)[:, None] * (bright - faint).astype(np.float32)
        triangle += faint.astype(np.float32)
        return triangle

    def draw_noise(self, mean_flux: Float64, rng: np.random.Generator) -> Float64:
        """Noise in units of the errors, (N, n), with covariance ``correlation(mean_flux)``."""
        faint, bright = self._factors
        share = _bright_share(mean_flux)[:, None]
        shape = (len(mean_flux), len(faint))
        noise = np.sqrt(1.0 - share) * (rng.standard_normal(shape) @ faint.T)
        return noise + np.sqrt(share) * (rng.standard_normal(shape) @ bright.T)


@dataclass(frozen=True)
class ErrorModel:
    """Errors and correlations of XP coefficients by brightness.

    Attributes
    ----------
    bp, rp : PhotometerErrors
    coupling : float
        Correlation between the photometers of the star's scatter z.
    """

    bp: PhotometerErrors
    rp: PhotometerErrors
    coupling: float

    @classmethod
    def default(cls) -> ErrorModel:
        """The model fitted to real Gaia DR3 sources that ships with xpkern."""
        with resources.as_file(resources.files("xpkern.observe") / "data" / "error_model.npz") as path:
            return cls.load(path)

    @classmethod
    def load(cls, path: str | Path) -> ErrorModel:
        """Read what :meth:`save` wrote."""
        with np.load(path) as stored:
            photometers = {}
            for name in _PHOTOMETERS:
                correlations = stored[f"{name}_correlation"].astype(np.float64) * 1e-4
                photometers[name] = PhotometerErrors(
                    variance=np.exp(stored[f"{name}_ln_variance"].astype(np.float64)),
                    scatter=stored[f"{name}_scatter"].astype(np.float64),
                    correlation_faint=_from_triangle(correlations[0]),
                    correlation_bright=_from_triangle(correlations[1]),
                )
            return cls(coupling=float(stored["coupling"]), **photometers)

    def save(self, path: str | Path) -> None:
        """Write the model as a small NumPy archive; correlations are rounded to 1e-4."""
        arrays: dict[str, Any] = {"coupling": np.float32(self.coupling)}
        for name in _PHOTOMETERS:
            photometer: PhotometerErrors = getattr(self, name)
            arrays[f"{name}_ln_variance"] = np.log(photometer.variance).astype(np.float32)
            arrays[f"{name}_scatter"] = photometer.scatter.astype(np.float32)
            ends = [photometer.correlation_faint, photometer.correlation_bright]
            arrays[f"{name}_correlation"] = np.rint([_to_triangle(end) * 1e4 for end in ends]).astype(np.int16)
        np.savez_compressed(path, **arrays)

    def draw_errors(
        self, bp_flux: Float64, rp_flux: Float64, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Errors of the BP and RP coefficients, each (N, n), for mean fluxes (N,) in the two photometers."""
        scale = rng.standard_normal((2, len(bp_flux)))
        scale[1] = self.coupling * scale[0] + np.sqrt(1.0 - self.coupling**2) * scale[1]
        return self.bp.draw_errors(bp_flux, scale[0]), self.rp.draw_errors(rp_flux, scale[1])


def photometer_fluxes(calibration: Calibration, flux: Float64) -> tuple[Float64, Float64]:
    """Mean flux F of BP and of RP, each (N,), over the XP samples (N, 61) that only one of them sees."""
    sees_bp, sees_rp = calibration.bp_design.any(axis=1), calibration.rp_design.any(axis=1)
    return flux[:, sees_bp & ~sees_rp].mean(axis=1), flux[:, sees_rp & ~sees_bp].mean(axis=1)


def sample_correlation(flux: Float64, calibration: Calibration, error_model: ErrorModel) -> Float64:
    """Correlation matrices of sampled spectra (n, 61, 61): what the archive's errors are for stars of such fluxes.

    A sampled spectrum tells the error of each sample but not how they are correlated: neighbours are, strongly, and
    with alternating signs.

    Parameters
    ----------
    flux : (n, 61) float64
        XP samples [1e-18 W m-2 nm-1].
    calibration : Calibration
    error_model : ErrorModel
        For as many coefficients as the calibration's.
    """
    covariance = np.zeros((len(flux), flux.shape[1], flux.shape[1]))
    sides = ((error_model.bp, calibration.bp_design), (error_model.rp, calibration.rp_design))
    for (photometer, design), mean_flux in zip(sides, photometer_fluxes(calibration, flux), strict=True):
        positive = np.maximum(mean_flux, 1e-9)
        error = photometer.draw_errors(positive, np.zeros(len(flux))).astype(np.float64)
        sigma = error[:, :, None] * photometer.correlation(positive) * error[:, None, :]
        covariance += design @ sigma @ design.T
    size = np.sqrt(np.einsum("njj->nj", covariance))
    return covariance / (size[:, :, None] * size[:, None, :])


def _bright_share(mean_flux: Float64) -> Float64:
    """The t of the module's formula, (N,)."""
    low, high = CORRELATION_LIMITS
    return np.clip((np.log10(np.maximum(mean_flux, 1e-9)) - low) / (high - low), 0.0, 1.0)


def _to_triangle(matrix: Float64) -> Float64:
    """Strict lower triangle, row-major, of (..., n, n): the archive's order."""
    rows, columns = np.tril_indices(matrix.shape[-1], -1)
    return matrix[..., rows, columns]


def _from_triangle(triangle: Float64) -> Float64:
    """Correlation matrix (n, n) of a strict lower triangle."""
    size = int((1 + np.sqrt(1 + 8 * len(triangle))) / 2)
    matrix = np.zeros((size, size))
    matrix[np.tril_indices(size, -1)] = triangle
    return matrix + matrix.T + np.eye(size)


def _fit_variance(mean_flux: Float64, error: Float64) -> Float64:
    """a_j^2, b_j, c_j^2 of one coefficient: a robust fit of ln e, in logarithms so that all three stay positive."""
    ln_error = np.log(error)

    def residual(ln_terms: Float64) -> Float64:
        return 0.5 * np.log(np.exp(ln_terms) @ mean_flux ** np.arange(3)[:, None]) - ln_error

    typical = 2.0 * np.median(ln_error)
    start = [typical, typical - np.log(np.median(mean_flux)), typical - 2.0 * np.log(np.max(mean_flux))]
    return np.exp(least_squares(residual, start, loss="soft_l1", f_scale=0.3, bounds=(-40.0, 20.0)).x)


def _fit_photometer(
    mean_flux: Float64, error: Float64, correlation_flux: Float64, correlation: NDArray[np.floating]
) -> tuple[PhotometerErrors, Float64]:
    """Error model of one photometer, and every star's common deviation in ln e in units of the scatter."""
    variance = np.stack([_fit_variance(mean_flux, column) for column in error.T], axis=1)
    expected = np.sqrt(mean_flux[:, None] ** np.arange(3) @ variance)
    deviation = np.median(np.log(error / expected), axis=1)

    # Robust scatter of the stars nearest to each node, around their own median: the fit's error is no scatter.
    log_flux = np.log10(mean_flux)
    nearest = np.argmin(np.abs(log_flux[:, None] - SCATTER_NODES), axis=1)
    groups = [deviation[nearest == k] for k in range(len(SCATTER_NODES))]
    scatter = np.array([1.4826 * np.median(np.abs(group - np.median(group))) for group in groups])

    share = _bright_share(correlation_flux)
    ends = [
        (1.0 - SHRINKAGE) * _from_triangle(correlation[group].mean(axis=0)) + SHRINKAGE * np.eye(error.shape[1])
        for group in (share < 0.5, share >= 0.5)
    ]
    photometer = PhotometerErrors(variance, scatter, *ends)
    return photometer, deviation / np.interp(log_flux, SCATTER_NODES, scatter)


def fit_error_model(
    bp_flux: Float64,
    rp_flux: Float64,
    bp_error: Float64,
    rp_error: Float64,
    correlated: tuple[Float64, Float64, NDArray[np.floating], NDArray[np.floating]],
) -> ErrorModel:
    """Fit the error model to real stars.

    Parameters
    ----------
    bp_flux, rp_flux : (N,)
        Mean flux in each photometer; stars with a mean below 0.3 (G of about 20) are left out.
    bp_error, rp_error : (N, n)
        Errors of the coefficients.
    correlated : bp_flux, rp_flux (M,), bp_correlation, rp_correlation (M, n (n - 1) / 2)
        Stars whose correlations are known, as the archive's strict lower triangles.
    """
    usable = (bp_flux > 0.3) & (rp_flux > 0.3)
    bp, bp_deviation = _fit_photometer(bp_flux[usable], bp_error[usable], correlated[0], correlated[2])
    rp, rp_deviation = _fit_photometer(rp_flux[usable], rp_error[usable], correlated[1], correlated[3])
    clipped = np.clip([bp_deviation, rp_deviation], -3.0, 3.0)
    return ErrorModel(bp, rp, coupling=float(np.corrcoef(clipped)[0, 1]))


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m xpkern.observe.error_model CORRELATED.csv.gz UNCORRELATED.npz OUTPUT.npz``."""
    from xpkern.observe.calibration import Calibration
    from xpkern.observe.spectra import read_blocks

    parser = argparse.ArgumentParser(prog="python -m xpkern.observe.error_model", description=__doc__)
    parser.add_argument("correlated", help="bulk file with correlations")
    parser.add_argument("uncorrelated", help="NumPy archive of coefficients and errors without correlations")
    parser.add_argument("output", help="the model file to write")
    options = parser.parse_args(arguments)

    calibration = Calibration.default()

    def fluxes(bp: Float64, rp: Float64) -> tuple[Float64, Float64]:
        return photometer_fluxes(calibration, bp @ calibration.bp_design.T + rp @ calibration.rp_design.T)

    few = next(read_blocks(options.correlated, calibration)).coefficients
    few_flux = fluxes(few.bp, few.rp)
    with np.load(options.uncorrelated) as many:
        many_flux = fluxes(many["bp_coefficients"], many["rp_coefficients"])
        bp_error = np.vstack([few.bp_error, many["bp_coefficient_errors"]]).astype(np.float64)
        rp_error = np.vstack([few.rp_error, many["rp_coefficient_errors"]]).astype(np.float64)
    fitted = fit_error_model(
        np.concatenate([few_flux[0], many_flux[0]]),
        np.concatenate([few_flux[1], many_flux[1]]),
        bp_error,
        rp_error,
        (few_flux[0], few_flux[1], few.bp_correlation, few.rp_correlation),
    )
    fitted.save(options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
