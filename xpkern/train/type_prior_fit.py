"""The prior of the default model: it says which stellar types the model knows, not how common they are.

APOGEE chose its stars by its own rules (four in five are giants); the Gaia catalogue has another mixture. So the
density of the training stars is flattened: they are drawn with probabilities that fall with the number of stars of
similar type, and a Gaussian mixture is fitted to the draw. A broad component with little weight lets a fit wander
beyond, where the density is low enough for the flag to be raised.
"""

from __future__ import annotations

import numpy as np
from sklearn.mixture import GaussianMixture

from xpkern.engine.contract import Float64
from xpkern.model.type_prior import TypePrior

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

#: Added to the diagonal of each covariance [kK^2, dex^2]: no component narrower than the labels are good.
_NARROWEST = 1e-3


def fit_type_prior(theta: Float64) -> TypePrior:
    """Mixture over the flattened distribution of stellar types (n, 3)."""
    rng = np.random.default_rng(_SEED)
    flattened = theta[rng.choice(len(theta), size=_DRAWS, p=flattening_weights(theta))]
    mixture = GaussianMixture(COMPONENTS - 1, reg_covar=_NARROWEST, random_state=_SEED).fit(flattened)
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
