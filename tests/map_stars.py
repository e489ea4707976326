"""Stars behind clouds of known extinction, for the tests of maps."""

from __future__ import annotations

import numpy as np

from xpkern.observe.population import to_equatorial

#: Clouds: longitude, latitude, radius [rad], distance [kpc], E [mag].
CLOUDS = ((1.0, 0.3, 0.5, 0.3, 0.8), (4.0, -0.5, 0.7, 0.6, 1.2))


def clouds(longitude, latitude, distance):
    """E (n, k) of directions (n,) [rad] up to distances (k,) [kpc]: two thin clouds, and a little dust all along."""
    return ext_at(longitude[:, None], latitude[:, None], np.asarray(distance))


def ext_at(longitude, latitude, distance):
    """E of places, whose coordinates have the shapes that NumPy fits together."""
    direction, ext = unit(longitude, latitude), 0.1 * distance
    for centre_l, centre_b, radius, at, through in CLOUDS:
        angle = np.arccos(np.clip(direction @ unit(centre_l, centre_b), -1, 1))
        ext = ext + np.where(distance > at, through * np.exp(-0.5 * (angle / radius) ** 2), 0.0)
    return ext


def unit(longitude, latitude):
    across = np.cos(latitude)
    return np.stack([across * np.cos(longitude), across * np.sin(longitude), np.sin(latitude)], axis=-1)


def sky_of_stars(rng, n, *, parallax_error=0.02):
    """Columns of a catalogue of n stars all over the sky within 1 kpc, and the true E as :func:`clouds` gives it."""
    longitude, sine = rng.uniform(0, 2 * np.pi, n), rng.uniform(-1, 1, n)
    distance = rng.uniform(0.1, 1.0, n)
    ext = ext_at(longitude, np.arcsin(sine), distance)
    error = rng.uniform(0.01, 0.03, n)
    ra, dec = to_equatorial(longitude, sine)
    feh = -0.2 - 0.3 * distance
    columns = {
        "source_id": np.arange(1, n + 1) << 35,
        "ra": ra,
        "dec": dec,
        "ext": (ext + error * rng.normal(size=n)).astype(np.float32),
        "ext_error": error.astype(np.float32),
        "feh": (feh + 0.1 * rng.normal(size=n)).astype(np.float32),
        "feh_error": np.full(n, 0.1, np.float32),
        "feh_confidence": np.ones(n, np.float32),
        "parallax_est": (1.0 / distance + parallax_error * rng.normal(size=n)).astype(np.float32),
        "parallax_est_error": np.full(n, parallax_error, np.float32),
        "loss": rng.chisquare(61, n).astype(np.float32),
        "chi2_dof": np.full(n, 61, np.int16),
        "quality_flags": np.zeros(n, np.uint8),
    }
    return columns, clouds
