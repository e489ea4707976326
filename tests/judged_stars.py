"""Classifiers of confidence, and catalogues for them to judge, for the tests: new ones in every run."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

import xpkern as xk
from xpkern.catalog.output import CatalogOutput
from xpkern.catalog.provenance import provenance
from xpkern.catalog.rows import StarRows
from xpkern.engine.contract import FitOptions, LossTerms
from xpkern.grid import N_FLUX
from xpkern.model.confidence import Confidence, feature_names
from xpkern.status import Status

#: Errors of fits and of labels of :func:`labelled_rows` [kK, dex, dex].
ERROR = np.array([0.03, 0.05, 0.05])


def random_confidence(
    rng: np.random.Generator, wavelength: np.ndarray, hidden: tuple[int, ...] = (64, 64, 64)
) -> Confidence:
    """Networks whose confidences of stars like :func:`labelled_rows` are anything between 0 and 1."""
    names = feature_names(wavelength)
    sizes = (len(names), *hidden, 1)
    return Confidence(
        features=names,
        centre=rng.normal(size=len(names)),
        scale=rng.uniform(0.5, 2.0, len(names)),
        fill=rng.normal(size=len(names)),
        weights=[rng.normal(0.0, np.sqrt(2.0 / below), (3, below, above)) for below, above in pairwise(sizes)],
        biases=[rng.normal(0.0, 0.3, (3, above)) for above in sizes[1:]],
    )


def labelled_rows(rng: np.random.Generator, n: int, model: xk.FluxModel, prior: xk.TypePrior) -> StarRows:
    """Fits of n stars, a third of which are bad and show it: in their residuals, more so the worse they are."""
    theta = prior.sample(n, rng)
    worse = np.where(rng.uniform(size=n) < 0.35, rng.uniform(2.0, 3.0, n), 1.0)
    observed = {
        "ra": rng.uniform(0.0, 360.0, n),
        "dec": rng.uniform(-90.0, 90.0, n),
        "phot_g_mean_mag": rng.uniform(10.0, 17.0, n),
        "ruwe": 1.0 + rng.exponential(0.1, n),
        "norm_dg": np.where(rng.uniform(size=n) < 0.5, np.nan, -20.0),
    }
    plx = np.exp(rng.uniform(-1.0, 1.0, n))
    params = np.column_stack([theta, rng.exponential(0.2, n), plx])
    error = np.append(ERROR, [0.02, 0.03])
    covariance = np.broadcast_to(np.diag(error**2), (n, 5, 5)).copy()
    status = np.where(rng.uniform(size=n) < 0.05, int(Status.NO_DATA), 0).astype(np.uint32)
    nothing = np.full(n, np.nan)
    rows = StarRows(
        source_id=np.sort(rng.choice(1 << 40, n, replace=False)).astype(np.int64),
        observed=observed,
        plx_observed=plx + 0.05 * rng.standard_normal(n),
        plx_error=np.full(n, 0.05),
        params=params,
        model_plx=plx,
        covariance=covariance,
        fisher=np.linalg.inv(covariance),
        loss=nothing,
        chi2=61.0 + 5.0 * rng.standard_normal(n) + 10.0 * (worse - 1.0),
        chi2_learned=nothing,
        ln_prior=prior.ln_density(theta),
        gradient_norm=nothing,
        decrement=nothing,
        residual=(worse[:, None] * rng.standard_normal((n, N_FLUX))).astype(np.float32),
        used=np.ones((n, N_FLUX), bool),
        confidence=np.full((n, 3), np.nan),
        quality_flags=np.zeros(n, np.uint8),
        status=status,
        iterations=np.ones(n, np.int32),
        minima=np.ones(n, np.int32),
        second_params=np.full((n, 5), np.nan),
        second_gap=np.where(rng.uniform(size=n) < 0.1, rng.uniform(0.0, 20.0, n), np.nan),
    )
    return replace(rows, observed=observed | {"worse": worse})


def labels_of(rng: np.random.Generator, rows: StarRows, share: float = 1.0) -> dict[str, np.ndarray]:
    """Labels of some of the stars, off by as much as ``observed["worse"]`` says, temperatures in K."""
    n = len(rows)
    sigma = np.hypot(np.hypot(ERROR, ERROR), 0.1)
    off = np.where(rows.observed["worse"] > 1.0, 3.5 * rows.observed["worse"], 0.0)
    label = rows.params[:, :3] + sigma * (rng.standard_normal((n, 3)) * 0.7 + off[:, None])
    chosen = rng.uniform(size=n) < share
    table: dict[str, np.ndarray] = {"source_id": rows.source_id[chosen]}
    for k, (name, unit) in enumerate((("teff", 1000.0), ("feh", 1.0), ("logg", 1.0))):
        table[name] = unit * label[chosen, k]
        table[f"{name}_err"] = np.full(int(chosen.sum()), unit * ERROR[k])
    return table


def write_catalog(
    path: Path, rows: StarRows, model: xk.FluxModel, prior: xk.TypePrior, layout: str = "default"
) -> Path:
    """A catalogue of these rows with its companion."""
    attributes = provenance(
        layout=layout,
        model=model,
        prior=prior,
        noise=None,
        calibration=None,
        terms=LossTerms(),
        options=FitOptions(),
        engine="none",
        instruction_set="",
    )
    with CatalogOutput(path, layout, attributes) as output:
        output.append(rows)
        output.commit()
    return path
