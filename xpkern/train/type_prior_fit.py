"""Priors over stellar types, as Gaussian mixtures fitted to labels.

"coverage", that of the default model, says which stellar types the model knows, not how common they are. A label survey
chose its stars by its own rules (of APOGEE's, four in five are giants); the Gaia catalogue has another mixture. So the
density of the training stars is flattened: they are drawn with probabilities that fall with the number of stars of
similar type, and a Gaussian mixture is fitted to the draw. A broad component with little weight lets a fit wander
beyond, where the density is low enough for the flag to be raised.

"zgr23" is the distribution of the labels as they are, fitted as the authors of ZGR23 did.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.model.type_prior import TypePrior

if TYPE_CHECKING:
    from xpkern.train.recipe import PriorSettings

#: Components, the broad one included.
COMPONENTS = 16

#: Cells in which stars count as similar: teff [kK], feh, logg [dex].
_CELL = np.array([0.25, 0.25, 0.4])

#: Number of stars in a cell up to which all of them keep their full weight: below, an outlier would count too much.
_CAP = 30

#: Stellar types drawn for the fit.
_DRAWS = 8192

_SEED = 1

#: Weight of the broad component, and its covariance over that of the draw.
_BROAD_WEIGHT, _BROAD_SPREAD = 0.005, 1.0

#: Added to the diagonal of each covariance [kK^2, dex^2]: no component is narrower than 0.1 kK and 0.1 dex. Narrower
#: ones follow the clumps of a draw, and between two of them a fit of a faint star has two minima.
_NARROWEST = 1e-2

#: ZGR23's mixture: what is added to the diagonal there, as good as labels are; concentration of the weights' prior,
#: times the number of components; iterations at most.
_ZGR23_NARROWEST, _ZGR23_CONCENTRATION, _ZGR23_ITERATIONS = 1e-3, 0.25, 1000


def fit_prior_of_kind(theta: Float64, settings: PriorSettings, seed: int) -> tuple[TypePrior, str]:
    """The prior that a recipe asks for, and a note on the fit.

    Parameters
    ----------
    theta : (n, 3) float64
        Measured labels of training stars: teff [kK], feh, logg.
    settings : PriorSettings
    seed : int
        Of the choice of stars where there are more than the settings want, and of the fit.

    Raises
    ------
    InputError
        If there are fewer stars than components.
    """
    if len(theta) < settings.components:
        message = f"{len(theta)} stars are too few for {settings.components} components"
        raise InputError(message, field="prior.components")
    rng = np.random.default_rng(seed)
    if len(theta) > settings.most_stars:
        theta = theta[np.sort(rng.choice(len(theta), settings.most_stars, replace=False))]
    # one thread: sums are then taken in one order
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the note says it
        if settings.kind == "coverage":
            return fit_type_prior(theta, settings.components), f"fitted to {_DRAWS:,} draws from {len(theta):,} labels"
        mixture = BayesianGaussianMixture(
            n_components=settings.components,
            weight_concentration_prior=_ZGR23_CONCENTRATION / settings.components,
            reg_covar=_ZGR23_NARROWEST,
            max_iter=_ZGR23_ITERATIONS,
            random_state=seed,
        ).fit(theta)
    end = "converged" if mixture.converged_ else "not converged"
    prior = TypePrior.from_arrays(mixture.weights_, mixture.means_, mixture.covariances_)
    return prior, f"fitted to {len(theta):,} labels, {end} after {mixture.n_iter_} iterations"


def fit_type_prior(theta: Float64, components: int = COMPONENTS) -> TypePrior:
    """Mixture over the flattened distribution of stellar types (n, 3), its last component the broad one."""
    rng = np.random.default_rng(_SEED)
    flattened = theta[rng.choice(len(theta), size=_DRAWS, p=flattening_weights(theta))]
    mixture = GaussianMixture(components - 1, reg_covar=_NARROWEST, random_state=_SEED).fit(flattened)
    return TypePrior.from_arrays(
        np.append((1.0 - _BROAD_WEIGHT) * mixture.weights_, _BROAD_WEIGHT),
        np.concatenate([mixture.means_, flattened.mean(axis=0, keepdims=True)]),
        np.concatenate([mixture.covariances_, _BROAD_SPREAD * np.cov(flattened.T)[None]]),
    )


def flattening_weights(theta: Float64) -> Float64:
    """Probability (n,) of drawing each star so that every populated cell of stellar types is drawn about equally."""
    cell = np.floor(theta / _CELL).astype(np.int64)
    _, cell_of_star, stars_in_cell = np.unique(cell, axis=0, return_inverse=True, return_counts=True)
    weight = 1.0 / np.maximum(stars_in_cell[cell_of_star.reshape(-1)], _CAP)
    return weight / weight.sum()
