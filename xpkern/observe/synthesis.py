r"""From a true spectrum to the coefficients that the archive would have of it.

A star's flux f (61 XP samples) becomes coefficients by a harmless choice among all that reproduce it, the one of
least norm in the metric of a covariance Sigma_0 = diag(e) rho diag(e),

    c = P f,        P = Sigma_0 A^T (A Sigma_0 A^T)^-1,        A P = 1,

with A the calibration's design matrix (BP and RP side by side), e and rho from the error model. Any Sigma_0 gives
A c = f; only the part of c that no sample sees depends on it. So P is tabulated by brightness, and each star takes the
nearest one. Noise drawn from the star's own Sigma is then added.
"""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Coefficients, Float64
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel, photometer_fluxes

#: log10 of the mean flux [1e-18 W m-2 nm-1] at which P is tabulated.
BRIGHTNESS_NODES = np.arange(-2.0, 6.1, 0.5)

#: Standard deviation of a fit of a mean spectrum: 1 plus a gamma variable of this scale.
_DEVIATION_EXCESS = 0.1


class SpectrumSynthesis:
    """Observes spectra as Gaia would.

    Parameters
    ----------
    calibration : Calibration
    error_model : ErrorModel
        For as many coefficients as the calibration's.
    """

    def __init__(self, calibration: Calibration, error_model: ErrorModel) -> None:
        self.calibration = calibration
        self.error_model = error_model
        #: P at each node, (nodes, n_bp + n_rp, 61).
        self.inverse_designs = np.stack([self._inverse_design(10.0**node) for node in BRIGHTNESS_NODES])

    def _inverse_design(self, mean_flux: float) -> Float64:
        """P (n_bp + n_rp, 61) of stars with this mean flux in BP and in RP."""
        weighted = []
        for photometer, design in (
            (self.error_model.bp, self.calibration.bp_design),
            (self.error_model.rp, self.calibration.rp_design),
        ):
            brightness = np.array([mean_flux])
            error = photometer.draw_errors(brightness, np.zeros(1))[0].astype(np.float64)
            covariance = error[:, None] * photometer.correlation(brightness)[0] * error
            weighted.append(covariance @ design.T)
        sigma_design = np.vstack(weighted)
        design = np.hstack([self.calibration.bp_design, self.calibration.rp_design])
        inverse = np.linalg.solve(design @ sigma_design, sigma_design.T).T
        # the matrix that was solved with is badly conditioned: a second step makes A P = 1 hold to the last digits
        return inverse + inverse @ (np.eye(len(design)) - design @ inverse)

    def observe(self, flux: Float64, sides: Float64, rng: np.random.Generator) -> Coefficients:
        """Coefficients with noise.

        Parameters
        ----------
        flux : (n, 61) float64
            XP samples [1e-18 W m-2 nm-1].
        sides : (2, n) float64
            Factors on the coefficients of BP and of RP: their systematic errors.
        rng : numpy.random.Generator

        Returns
        -------
        Coefficients
        """
        brightness = photometer_fluxes(self.calibration, flux)
        errors = self.error_model.draw_errors(*brightness, rng)
        exact = self._exact(flux, brightness)
        bp, rp = (
            part * side[:, None] + error * photometer.draw_noise(mean_flux, rng)
            for part, side, error, photometer, mean_flux in zip(
                np.split(exact, [self.calibration.n_bp], axis=1),
                sides,
                errors,
                (self.error_model.bp, self.error_model.rp),
                brightness,
                strict=True,
            )
        )
        present = np.ones(len(flux), bool)
        bp_deviation, rp_deviation = (1.0 + _DEVIATION_EXCESS * rng.gamma(1.0, 1.0, (2, len(flux)))).astype(np.float32)
        return Coefficients(
            bp=bp,
            rp=rp,
            bp_error=errors[0],
            rp_error=errors[1],
            bp_correlation=self.error_model.bp.correlation_triangle(brightness[0]),
            rp_correlation=self.error_model.rp.correlation_triangle(brightness[1]),
            bp_standard_deviation=bp_deviation,
            rp_standard_deviation=rp_deviation,
            has_bp=present,
            has_rp=present.copy(),
        )

    def _exact(self, flux: Float64, brightness: tuple[Float64, Float64]) -> Float64:
        """P f, (n, n_bp + n_rp)."""
        log_flux = 0.5 * np.log10(np.maximum(brightness, 1e-9)).sum(axis=0)
        step = BRIGHTNESS_NODES[1] - BRIGHTNESS_NODES[0]
        nearest = np.rint((log_flux - BRIGHTNESS_NODES[0]) / step).astype(np.intp)
        nearest = np.clip(nearest, 0, len(BRIGHTNESS_NODES) - 1)
        exact = np.empty((len(flux), self.inverse_designs.shape[1]))
        for node in np.unique(nearest):
            stars = nearest == node
            exact[stars] = flux[stars] @ self.inverse_designs[node].T
        return exact
