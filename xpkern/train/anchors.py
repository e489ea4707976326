"""Stars made of theory, which anchor what the observed ones leave open: the absolute scale, W1 and W2.

Where no star has a parallax, each star's own scale is free, and the loss does not change when the model is made
brighter by any function of the stellar type. Anchors are stars of known type at 1 kpc without dust, whose flux is that
of a model atmosphere and a radius (:mod:`xpkern.train.flux_scale`), as uncertain as theory is. In units of the flux,
the factor G of the covariance of one of them has the columns

    optical   for each XP sample: atmospheres know little of what spectra tell better
    scale     for each of J, H, Ks, where atmospheres are least wrong
    infrared  for W1 and W2, which have the error of Ks besides: what is known is their ratio to Ks

so that each band's ratio to the others is left to the observed stars where these have the band, and to theory where
they have not. To the training an anchor is a star like any other.
"""

from __future__ import annotations

import numpy as np

from xpkern.engine.contract import Float64, StarData
from xpkern.engine.packed import pack_factor
from xpkern.grid import BANDS, N_FLUX, N_PARAMETERS, N_XP
from xpkern.train.atmospheres import Atmospheres
from xpkern.train.flux_scale import ln_flux_at_1kpc
from xpkern.train.recipe import AnchorSettings
from xpkern.train.type_prior_fit import flattening_weights

#: Below this temperature [kK] atmospheres do not know the ratio of W1 and W2 to Ks well.
COOLEST_KNOWN = 4.4

#: How far an anchor's type lies from that of the star it is drawn from, in (ln teff, feh, logg): one standard deviation
#: of most, and of every eighth, which keep the model sane where it has not seen a star.
_NEAR, _FAR, _FAR_EVERY = (0.01, 0.1, 0.1), (0.15, 0.5, 0.5), 8

#: Extinction of an anchor [mag], whose logarithm must exist, and its parallax [mas].
_EXT, _PLX = 1e-3, 1.0

#: Error of an anchor's five parameters: none that matters.
_PINNED = 1e-3

_KS = N_XP + BANDS.index("Ks")
_BEYOND_KS = [N_XP + BANDS.index(band) for band in ("W1", "W2")]


def anchor_stars(types: Float64, settings: AnchorSettings, atmospheres: Atmospheres, seed: int) -> StarData:
    """Anchors over the types of the training stars, rare ones as often as common ones.

    Parameters
    ----------
    types : (n, 3) float64
        Labels of the training stars: teff [kK], feh, logg.
    settings : AnchorSettings
    atmospheres : Atmospheres
    seed : int
        Of the choice.

    Returns
    -------
    StarData
        ``settings.stars`` of them.
    """
    rng = np.random.default_rng(seed)
    chosen = types[rng.choice(len(types), settings.stars, p=flattening_weights(types))]
    spread = np.where(np.arange(len(chosen))[:, None] % _FAR_EVERY == 0, _FAR, _NEAR)
    step = rng.standard_normal(chosen.shape) * spread
    theta = np.column_stack([chosen[:, 0] * np.exp(step[:, 0]), chosen[:, 1:] + step[:, 1:]])
    flux = np.exp(ln_flux_at_1kpc(atmospheres, theta))
    factor = np.zeros((len(theta), N_FLUX, N_FLUX))
    diagonal = np.einsum("njj->nj", factor)
    diagonal[:, :N_XP] = settings.optical
    diagonal[:, N_XP:] = settings.scale
    diagonal[:, _BEYOND_KS] = np.where(theta[:, 0] > COOLEST_KNOWN, settings.infrared, settings.infrared_cool)[:, None]
    factor[:, _BEYOND_KS, _KS] = settings.scale
    present = np.ones(flux.shape, bool)
    mean = np.column_stack([theta, np.full(len(theta), _EXT), np.full(len(theta), _PLX)])
    return StarData(
        flux=flux.astype(np.float32),
        whitener=pack_factor(factor * flux[:, :, None], present),
        mean=mean,
        sigma=np.full((len(theta), N_PARAMETERS), _PINNED),
    )
