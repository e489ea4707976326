"""Catalogues whose numbers are drawn, not fitted: as many stars as a test or a benchmark of what reads them wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xpkern.catalog.flags import quality_flags
from xpkern.catalog.output import CatalogOutput
from xpkern.catalog.rows import StarRows
from xpkern.grid import N_FLUX, N_PARAMETERS
from xpkern.observe.population import ICRS_TO_GALACTIC

#: Stars made at a time.
BLOCK = 1 << 16

#: Shares of dwarfs among the stars, and of stars that no model knows.
DWARFS, STRANGE = 0.7, 0.1

#: Correlations of the errors of teff, feh, logg, ext from the spectrum alone, and of each with the parallax.
_CORRELATION = np.eye(N_PARAMETERS)
for (_i, _j), _rho in {(0, 1): 0.6, (0, 3): 0.85, (1, 3): 0.45, (2, 4): 0.9, (1, 4): -0.3, (0, 2): 0.2}.items():
    _CORRELATION[_i, _j] = _CORRELATION[_j, _i] = _rho


def made_rows(n: int, seed: int = 0, confident: bool = True) -> tuple[StarRows, np.ndarray]:
    """Rows of n made stars, and their true parameters (n, 5): teff [kK], feh, logg, ext, plx [mas]."""
    rng = np.random.default_rng(seed)
    dwarf = rng.uniform(size=n) < DWARFS
    teff = np.where(dwarf, rng.gamma(6.0, 0.45, n) + 3.6, rng.normal(4.75, 0.25, n))
    logg = np.where(dwarf, 4.65 - 0.16 * np.maximum(teff - 5.0, 0.0), 2.4 + 1.9 * (teff - 4.75)) + rng.normal(
        0, 0.08, n
    )
    feh = rng.normal(-0.2, 0.3, n)
    g = 17.65 - rng.exponential(1.6, n)
    absolute = np.where(dwarf, 4.7 - 3.0 * np.log(teff / 5.8) / 0.3, 0.7 + 1.3 * (logg - 2.4))
    plx = 10.0 ** (0.2 * (absolute - g) + 2.0)
    latitude = np.degrees(np.arcsin(np.clip(rng.laplace(0.0, 0.25, n), -1.0, 1.0)))
    ext = rng.gamma(1.2, 0.12, n) * np.exp(-np.abs(latitude) / 15.0) / np.sqrt(plx)
    truth = np.stack([teff, feh, logg, ext, plx], axis=1)

    colour = 0.82 * (5.77 / teff) ** 1.9 + 1.3 * ext

    faint = np.maximum(10.0 ** (0.2 * (g - 15.0)), 0.3)
    sigma = np.stack([0.045 * (teff / 5.5) ** 2, 0.09 + 0 * g, 0.09 + 0 * g, 0.02 + 0 * g, 0.12 * plx], axis=1)
    sigma *= faint[:, None]
    plx_error = 0.02 * faint**1.4
    spectrum = sigma[:, :, None] * sigma[:, None, :] * _CORRELATION
    fisher = np.linalg.inv(spectrum)
    fisher[:, 4, 4] += 1.0 / plx_error**2
    covariance = np.linalg.inv(fisher)
    plx_observed = plx + plx_error * rng.normal(size=n)
    moved = np.einsum("nij,nj->ni", np.linalg.cholesky(spectrum), rng.normal(size=(n, N_PARAMETERS)))
    drawn = truth + moved
    pull = (plx_observed - drawn[:, 4]) / plx_error**2
    params = drawn + covariance[:, :, 4] * pull[:, None]

    strange = rng.uniform(size=n) < STRANGE * (0.4 + (teff > 8.0) + (g > 17.0))
    params[strange, :3] += rng.normal(size=(strange.sum(), 3)) * [1.2, 0.8, 0.9]
    params[:, 3:] = np.maximum(params[:, 3:], 1e-3)
    chi2 = rng.chisquare(61, n) * np.where(strange, rng.uniform(1.5, 6.0, n), 1.0 + 0.15 * (g < 12))
    residual = rng.normal(size=(n, N_FLUX)).astype(np.float32)
    residual += (0.4 * np.sin(np.arange(N_FLUX) / 6.0) * (teff[:, None] - 5.5) / 3.0).astype(np.float32)
    used = np.ones((n, N_FLUX), bool)
    used[rng.uniform(size=n) < 0.15, -2:] = False
    residual[~used] = 0.0
    right = np.where(strange[:, None], rng.beta(2, 5, (n, 3)), rng.beta(8, 2, (n, 3)))
    confidence = right if confident else np.full((n, 3), np.nan)
    longitude = rng.uniform(0.0, 2.0 * np.pi, n)
    b = np.radians(latitude)
    x, y, z = ICRS_TO_GALACTIC.T @ np.stack([np.cos(b) * np.cos(longitude), np.cos(b) * np.sin(longitude), np.sin(b)])
    flags = quality_flags(
        confidence=confidence,
        chi2=chi2,
        ln_prior=np.where(strange, -12.0, -3.0),
        ln_prior_threshold=-10.0,
        parallax_deviation=(params[:, 4] - plx_observed) / plx_error,
        fitted=np.ones(n, bool),
    )
    rows = StarRows(
        source_id=np.cumsum(rng.integers(1, 1 << 20, n)) + (np.int64(seed) << 40),
        observed={
            "ra": np.degrees(np.arctan2(y, x)) % 360.0,
            "dec": np.degrees(np.arcsin(np.clip(z, -1.0, 1.0))),
            "phot_g_mean_mag": g,
            "phot_bp_mean_mag": g + 0.4 * colour,
            "phot_rp_mean_mag": g - 0.6 * colour,
            "parallax": plx_observed,
        },
        plx_observed=plx_observed,
        plx_error=plx_error,
        params=params,
        model_plx=params[:, 4],
        covariance=covariance,
        fisher=fisher,
        loss=chi2 + 3.0,
        chi2=chi2,
        chi2_learned=np.full(n, np.nan),
        ln_prior=np.where(strange, -12.0, -3.0),
        gradient_norm=np.zeros(n),
        decrement=np.zeros(n),
        residual=residual,
        used=used,
        confidence=confidence,
        quality_flags=flags,
        status=np.where(used[:, -1], 0, 32).astype(np.uint32),
        iterations=np.full(n, 6, np.int32),
        minima=np.ones(n, np.int32),
        second_params=np.full((n, N_PARAMETERS), np.nan),
        second_gap=np.full(n, np.nan),
    )
    return rows, truth


def write_made_catalogue(
    path: Path,
    n: int,
    seed: int = 0,
    *,
    layout: str = "default",
    diagnostics: bool = True,
    confident: bool = True,
    labels: Path | None = None,
    labelled: float = 0.5,
) -> Path:
    """Write a made catalogue, and labels of a share of its stars, to files.

    Parameters
    ----------
    path : Path
        Its ending says the format.
    n : int
    seed : int
    layout : str
    diagnostics, confident : bool
        Whether there are the companion, and confidences.
    labels : Path, optional
        FITS file with teff, feh, logg, ext and their errors.
    labelled : float
        Share of the stars that have labels.
    """
    errors = np.array([60.0, 0.06, 0.08, 0.03])
    columns: list[np.ndarray] = []
    ids: list[np.ndarray] = []
    attributes = {"xpkern_version": "made", "model_digest": "none: the numbers are drawn"}
    with CatalogOutput(path, layout, attributes, diagnostics=diagnostics) as output:
        for block, first in enumerate(range(0, n, BLOCK)):
            rows, truth = made_rows(min(BLOCK, n - first), 1000 * seed + block, confident)
            output.append(rows)
            rng = np.random.default_rng([seed, block])
            chosen = rng.uniform(size=len(rows)) < labelled
            ids.append(rows.source_id[chosen])
            value = truth[chosen, :4] * [1000.0, 1.0, 1.0, 1.0]
            columns.append(value + errors * rng.normal(size=value.shape))
        output.commit()
    if labels is not None:
        from astropy.table import Table

        values = np.concatenate(columns)
        table = {"source_id": np.concatenate(ids)}
        for k, name in enumerate(("teff", "feh", "logg", "ext")):
            table[name] = values[:, k].astype(np.float32)
            table[f"{name}_err"] = np.full(len(values), errors[k], np.float32)
        written = Table(table)
        written["teff"].unit = written["teff_err"].unit = "K"
        written.write(labels, overwrite=True)
    return path
