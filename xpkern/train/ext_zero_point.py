"""The zero point of E, the same for all stellar types: APOGEE's A_K is not, and a model learned with it is not either.

A_K is of two kinds (Zasowski et al. 2013). Near the Galactic plane it is a colour excess, 0.918 (H - [4.5] - 0.08)
(RJCE; Majewski et al. 2011), with one intrinsic colour for all types, though cool stars, luminous giants above all, are
redder. Far from the plane it is that of a map of the whole column of dust, where the type does not matter: there A_K of
neighbours on the sky is the same, and near the plane it is not.

A model learned with both is between them, wrong in the zero point of E by some w(Theta). Of a star whose type is known
the spectrum then says an E, and

    E(map) = E - w(Theta),    E(colour) = a (E - w(Theta)) + o(Theta).

o, what E by colours is too large by, and a, the unit of colours in that of the spectra, do not depend on w, nor on how
far the model has gone after which of the two. w and o are linear between knots of Teff and log g, w in [Fe/H] as well
(and a w in the second equation is taken for w: both are small), and found by least squares, in which a label far off (a
star behind which the map sees more dust, one with dust of its own) counts by its distance, not its square.

Right labels would not do: to make a model bluer at some type and all E there larger changes next to no residual, so
that first-order steps never get anywhere in that direction from where the training has begun. w is taken out at once:
of the last layer's weights W, biases c and inputs h

    h W + c  <-  h (W + v R) + c + u R,    h v + u = -w.

No type that is fitted changes by it, unless E is at its edge, 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from xpkern.engine.contract import Float64
from xpkern.model.flux_model import FluxModel
from xpkern.observe.source_position import galactic_latitude, position
from xpkern.train.apogee_library import EXT_OF_AK, Library

#: Galactic latitude [deg] up to which A_K is by colours, and from which on it is by a map; between, by either.
COLOUR_LATITUDE, MAP_LATITUDE = 16.0, 24.0

#: Right ascension, declination and radius [deg] of the Magellanic Clouds, whose own dust the map is without.
_CLOUDS = ((80.9, -69.8, 10.0), (13.2, -72.8, 6.0))

#: Knots of teff [kK] and of log g.
TEFF_KNOTS = np.array([3.3, 3.5, 3.7, 3.9, 4.2, 4.6, 5.2, 6.5])
LOGG_KNOTS = np.array([0.5, 2.5, 4.5])

#: [Fe/H] about which w is linear in it.
MIDDLE_FEH = -0.5

#: Errors of E by a map and by colours [mag], to which such shares of E are added in quadrature.
_MAP_ERROR, _COLOUR_ERROR, _MAP_SHARE, _COLOUR_SHARE = 0.03, 0.08, 0.15, 0.1

#: Types that the model does not know and that are to stay as they are, and the root of how often each counts.
_HOT = np.array([(teff, feh, logg) for teff in (7.0, 7.5, 8.0, 9.0) for feh in (-0.6, 0.0, 0.5) for logg in (3.3, 4.2)])
_HOT_COUNT = 10.0

#: w and o are 0 within this [mag], a is 1, as if one more star said so: it decides where there is none.
_OPINION = 0.1


@dataclass(frozen=True)
class ExtZeroPoint:
    """What a model's zero point of E is, and what E by colours is too large by.

    Attributes
    ----------
    of_model : (2, t, l) float64
        w at :data:`TEFF_KNOTS`, :data:`LOGG_KNOTS` and a middle [Fe/H] [mag], and its slope [mag/dex].
    of_colours : (t, l) float64
        o at these knots [mag].
    unit_of_colours : float
        a.
    by_colour, by_map : (t, l) float64
        How many stars of either kind tell of each knot.
    """

    of_model: Float64
    of_colours: Float64
    unit_of_colours: float
    by_colour: Float64
    by_map: Float64

    def taken_from(self, model: FluxModel, theta: Float64) -> FluxModel:
        """The model without its zero point of E, as well as its last layer can, over stellar types (n, 3)."""
        hats, metal_rich = _hats(theta), theta[:, 1] - MIDDLE_FEH
        zero_point = hats @ self.of_model[0].ravel() + metal_rich * (hats @ self.of_model[1].ravel())
        warm, warmest = TEFF_KNOTS[-2:]
        zero_point *= np.clip((warmest - theta[:, 0]) / (warmest - warm), 0.0, 1.0)
        theta = np.concatenate([theta, _HOT])
        zero_point = np.append(zero_point, np.zeros(len(_HOT)))
        count = np.append(np.ones(len(zero_point) - len(_HOT)), np.full(len(_HOT), _HOT_COUNT))
        inputs = (theta - model.input_zp) / model.input_scale
        for weight, bias in zip(model.weights[:-1], model.biases[:-1], strict=True):
            inputs = np.tanh(inputs @ weight + bias)
        with threadpool_limits(1):  # sums are then taken in one order
            design = np.column_stack([inputs, np.ones(len(theta))])
            *of_weights, of_bias = np.linalg.lstsq(design * count[:, None], -zero_point * count)[0]
        return replace(
            model,
            weights=[*model.weights[:-1], model.weights[-1] + np.outer(of_weights, model.ext_curve)],
            biases=[*model.biases[:-1], model.biases[-1] + of_bias * model.ext_curve],
        )


def find_zero_point(library: Library, ext: Float64) -> ExtZeroPoint:
    """Find it from stars of known types.

    Parameters
    ----------
    library : Library
    ext : (n,) float64
        E that some model's fits to the spectra say at APOGEE's types, A_K unseen [mag].
    """
    latitude = np.abs(galactic_latitude(library.source_id))
    by_colour = latitude < COLOUR_LATITUDE
    by_map = (latitude >= MAP_LATITUDE) & ~_in_clouds(library.source_id)
    rows = np.flatnonzero((by_colour | by_map) & np.isfinite(library.ak) & np.isfinite(ext))
    by_colour, by_map, ext = by_colour[rows], by_map[rows], ext[rows]
    label = library.ak[rows] * EXT_OF_AK
    error = np.where(by_map, np.hypot(_MAP_ERROR, _MAP_SHARE * label), np.hypot(_COLOUR_ERROR, _COLOUR_SHARE * label))
    hats = _hats(library.theta[rows])
    metal_rich = library.theta[rows, 1:2] - MIDDLE_FEH
    columns = np.hstack([-hats * by_colour[:, None], hats, hats * metal_rich, (ext * by_colour)[:, None]])
    knots = hats.shape[1]
    design = np.vstack([columns / error[:, None], np.eye(columns.shape[1]) / _OPINION])
    goal = np.append((ext - label) / error, np.zeros(columns.shape[1]))

    def robust(square: Float64) -> Float64:
        """2 (sqrt(1 + square) - 1) of stars, the square itself of the opinion; and two derivatives."""
        of_star, loss = 1.0 + square[: len(rows)], np.stack([square, np.ones_like(square), np.zeros_like(square)])
        loss[:, : len(rows)] = 2.0 * (np.sqrt(of_star) - 1.0), of_star**-0.5, -0.5 * of_star**-1.5
        return loss

    with threadpool_limits(1):  # sums are then taken in one order
        found = least_squares(
            lambda x: design @ x - goal, np.zeros(columns.shape[1]), jac=lambda _: design, loss=robust
        )
    shape = (len(TEFF_KNOTS), len(LOGG_KNOTS))
    return ExtZeroPoint(
        of_model=found.x[knots : 3 * knots].reshape(2, *shape),
        of_colours=found.x[:knots].reshape(shape),
        unit_of_colours=1.0 - float(found.x[-1]),
        by_colour=hats[by_colour].sum(axis=0).reshape(shape),
        by_map=hats[by_map].sum(axis=0).reshape(shape),
    )


def _in_clouds(source_id: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which sources lie in front of, or in, one of the Magellanic Clouds."""
    ra, dec = np.radians(position(source_id))
    found = np.zeros(len(ra), bool)
    for cloud in _CLOUDS:
        cloud_ra, cloud_dec, radius = np.radians(cloud)
        cosine = np.sin(dec) * np.sin(cloud_dec) + np.cos(dec) * np.cos(cloud_dec) * np.cos(ra - cloud_ra)
        found |= cosine > np.cos(radius)
    return found


def _hats(theta: Float64) -> Float64:
    """Share (n, t l) of each knot in stellar types (n, 3): linear between them, 1 in all."""
    teff, logg = (
        np.stack([np.interp(values, knots, each) for each in np.eye(len(knots))], axis=1)
        for values, knots in ((theta[:, 0], TEFF_KNOTS), (theta[:, 2], LOGG_KNOTS))
    )
    return (teff[:, :, None] * logg[:, None, :]).reshape(len(theta), len(TEFF_KNOTS) * len(LOGG_KNOTS))
