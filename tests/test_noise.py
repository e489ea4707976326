"""The noise of Eq. 2 as an object."""

from __future__ import annotations

import numpy as np
import pytest

import xpkern as xk
from xpkern.grid import N_FLUX, N_XP


def test_defaults_are_those_of_the_paper():
    noise = xk.Noise.eq2()
    np.testing.assert_array_equal(noise.independent[:N_XP], 0.005)
    np.testing.assert_array_equal(noise.independent[N_XP:], 0.01)
    assert (noise.common, noise.bp, noise.rp, noise.floor) == (0.005, 0.001, 0.001, 1e-9)
    assert noise.sigma == "archive"


def test_options():
    theoretical = np.zeros(N_FLUX, bool)
    theoretical[-2:] = True
    noise = xk.Noise.eq2(sigma="zgr23", photometry_floor=0.0, theoretical=theoretical, theoretical_error=0.3)
    np.testing.assert_array_equal(noise.independent[N_XP:], [0, 0, 0, 0.3, 0.3])
    assert noise.sigma == "zgr23"


def test_digest_changes_with_every_number():
    variants = [
        xk.Noise.eq2(),
        xk.Noise.eq2(sigma="zgr23"),
        xk.Noise.eq2(photometry_floor=0.02),
        xk.Noise(independent=np.zeros(N_FLUX), common=0.004),
        xk.Noise(independent=np.zeros(N_FLUX)),
        xk.Noise(independent=np.zeros(N_FLUX), floor=1e-8),
    ]
    assert len({noise.digest for noise in variants}) == len(variants)
    assert xk.Noise.eq2().digest == variants[0].digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": "gaia"}, "sigma: 'gaia' is none of archive, zgr23"),
        ({"photometry_floor": -0.01}, "independent: negative error"),
        ({"photometry_floor": np.nan}, "independent: holds numbers that are not finite"),
        ({"theoretical": [True]}, r"theoretical: shape \(1,\), expected \(66,\)"),
    ],
)
def test_bad_options(arguments, message):
    with pytest.raises(xk.InputError, match=message):
        xk.Noise.eq2(**arguments)
