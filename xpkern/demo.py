"""``xpkern demo``: a small survey, simulated, taken through the whole path, compared with the truth and drawn."""

from __future__ import annotations

import os
import time
from pathlib import Path

import h5py
import numpy as np

from xpkern.catalog.run import make_catalog
from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.model import FluxModel, load_model
from xpkern.observe.observations import Observations
from xpkern.observe.read import iter_xp
from xpkern.observe.simulate import SurveyFiles, simulate
from xpkern.report.comparison import Comparison
from xpkern.report.demo_page import SMALLEST_EXT_SNR, ExampleSpectrum, draw_page

#: Magnitudes among which the example spectrum is chosen: the noise is visible, and so are the lines.
EXAMPLE_MAGNITUDES = (14.0, 16.0)

EXPLANATION = f"""\
bias, scatter: median and half of the central 68 % of fitted − true; error: median standard error
pull, width: the same of (fitted − true) / error, ideally 0 and 1; the estimate of ext is the mode in ln E, high by
design (about one error) where there is no dust to see: the page shows those of ext > {SMALLEST_EXT_SNR:.0f} errors"""


def run(
    output_dir: str | os.PathLike[str] = "xpkern-demo",
    n_stars: int = 2000,
    seed: int = 1,
    threads: int | None = None,
) -> int:
    """Simulate, fit, compare, draw; print what happens and where the files are.

    Parameters
    ----------
    output_dir : path-like
        Made if it does not exist; earlier files of the same names are replaced.
    n_stars : int
    seed : int
        Of the simulated survey.
    threads : int, optional
        Every core this process may use when not given.

    Returns
    -------
    int
        Exit code: 0.
    """
    folder = Path(output_dir)
    model, prior = load_model()

    clock = time.perf_counter()
    files = simulate(model, prior, n_stars, seed=seed).write(folder)
    print(f"simulated  {n_stars:,} stars in {_since(clock)}", flush=True)

    clock = time.perf_counter()
    summary = make_catalog(
        files.spectra,
        folder / "catalog.h5",
        gaia_source=files.gaia_source,
        model=model,
        prior=prior,
        threads=threads,
        overwrite=True,
        noise="eq2",  # the stars are the model's own: what it has learned of being wrong does not apply
    )
    print(f"fitted     {summary.fitted:,} of {summary.rows:,} in {_since(clock)}, from the files to the catalogue")

    clock = time.perf_counter()
    comparison = Comparison.read(summary.files["catalog"], files.truth)
    page = folder / "demo.png"
    with h5py.File(summary.files["diagnostics"]) as diagnostics:
        model_plx = diagnostics["model_plx"][:].astype(np.float64)
    draw_page(page, comparison, _example(model, files, comparison, model_plx, threads))
    print(f"drawn      in {_since(clock)}\n")

    print(comparison.table())
    print(f"\n{EXPLANATION}\n")
    written = {
        "spectra in Gaia's bulk format": files.spectra,
        "parallaxes and photometry": files.gaia_source,
        "true parameters": files.truth,
        "catalogue": summary.files["catalog"],
        "its diagnostics": summary.files["diagnostics"],
        "the page": page,
    }
    for what, path in written.items():
        print(f"{what:<31}{path}")
    return 0


def _since(clock: float) -> str:
    return f"{time.perf_counter() - clock:.1f} s"


def _example(
    model: FluxModel, files: SurveyFiles, comparison: Comparison, model_plx: Float64, threads: int | None
) -> ExampleSpectrum:
    """The star whose fit is the most ordinary: a dusty high-quality one with a chi2 per degree of freedom near 1.

    model_plx (n,) is that of the fits; see :class:`xpkern.fit.result.Fit`.
    """
    low, high = EXAMPLE_MAGNITUDES
    oddity = np.abs(comparison.chi2_per_dof - 1.0) + np.where(comparison.truth[:, 3] > 0.15, 0.0, 10.0)
    oddity += np.where((comparison.g > low) & (comparison.g < high), 0.0, 100.0)
    oddity += np.where(comparison.high_quality, 0.0, 1000.0)
    row = int(np.argmin(np.where(np.isfinite(oddity), oddity, np.inf)))
    flux, sigma = _observed(files, row, model, threads)
    teff, feh, logg, ext = comparison.estimate[row, :4]
    fitted = model.predict(teff=teff / 1000.0, feh=feh, logg=logg, ext=ext, plx=model_plx[row])[0]
    return ExampleSpectrum(model.wavelength, flux, sigma, fitted, row)


def _observed(files: SurveyFiles, row: int, model: FluxModel, threads: int | None) -> tuple[Float64, Float64]:
    """Observed flux and standard errors (66,) of one row of the survey, NaN where missing."""
    first = 0
    for block in iter_xp(files.spectra, gaia_source=files.gaia_source, noise=model.noise, threads=threads):
        if row < first + len(block):
            return _flux_and_sigma(block, row - first)
        first += len(block)
    raise InputError(f"has fewer rows than the catalogue ({first})", file=os.fspath(files.spectra))


def _flux_and_sigma(observations: Observations, row: int) -> tuple[Float64, Float64]:
    whitener = observations.whitener_dense(row)
    seen = np.diagonal(whitener) > 0
    flux, sigma = np.full((2, len(seen)), np.nan)
    factor = np.linalg.inv(whitener[np.ix_(seen, seen)])
    flux[seen] = observations.flux[row][seen]
    sigma[seen] = np.linalg.norm(factor, axis=1)
    return flux, sigma
