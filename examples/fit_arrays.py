"""Fit stars given as plain arrays: a flux vector and its covariance, from any source."""

import numpy as np

import xpkern as xk


def main() -> None:
    model, prior = xk.load_model()
    rng = np.random.default_rng(1)
    truth = np.array([[5.8, -0.1, 4.4, 0.1, 5.0], [4.7, -0.4, 2.5, 0.4, 0.8]])
    teff, feh, logg, ext, plx = truth.T
    flux = model.predict(teff=teff, feh=feh, logg=logg, ext=ext, plx=plx)

    # Each sample has an error of 1 %, and all of them share a calibration error of 0.5 %.
    covariance = np.einsum("ni,nj->nij", 0.005 * flux, 0.005 * flux)
    covariance[:, range(66), range(66)] += (0.01 * flux) ** 2
    flux += np.stack([rng.multivariate_normal(np.zeros(66), one) for one in covariance])

    # Any L with L^T L = C^-1 will do; this is the inverse of the Cholesky factor.
    whitener = np.linalg.inv(np.linalg.cholesky(covariance))
    obs = xk.Observations.from_arrays(flux=flux, whitener=whitener, plx=plx, plx_err=0.02 * plx)
    fit = xk.fit(obs, model, prior)
    for true, found, cov in zip(truth, fit.params, fit.cov, strict=True):
        print("true ", " ".join(f"{value:8.3f}" for value in true))
        print("found", " ".join(f"{value:8.3f}" for value in found))
        print("  +- ", " ".join(f"{value:8.3f}" for value in np.sqrt(np.diag(cov))))


if __name__ == "__main__":
    main()
