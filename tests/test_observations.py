"""Observations: every way in, what counts as missing, and the way out to an engine."""

from __future__ import annotations

import numpy as np
import pytest

import xpkern as xk
from xpkern.engine.packed import pack_factor, packed_size, sample_count
from xpkern.grid import N_FLUX, N_PACKED
from xpkern.status import Status


def random_covariance(rng, size=N_FLUX):
    """Condition number of some thousands after scaling, variances over four decades."""
    root = rng.normal(size=(size, size + 10)) / np.sqrt(size)
    sigma = 10.0 ** rng.uniform(-3, 1, size)
    return (root @ root.T + 1e-3 * np.eye(size)) * np.outer(sigma, sigma)


def whitener_of(covariance, kept, rng):
    """A dense, not triangular L with L^T L = C^-1 on the kept samples, zero columns elsewhere."""
    inverse = np.linalg.inv(covariance[np.ix_(kept, kept)])
    values, vectors = np.linalg.eigh(inverse)
    root = np.sqrt(values)[:, None] * vectors.T
    rotation = np.linalg.qr(rng.normal(size=(N_FLUX, N_FLUX)))[0]
    whitener = np.zeros((N_FLUX, N_FLUX))
    whitener[:, kept] = rotation[:, : len(kept)] @ root
    return whitener


def inverse_on(covariance, kept):
    inverse = np.zeros_like(covariance)
    inverse[np.ix_(kept, kept)] = np.linalg.inv(covariance[np.ix_(kept, kept)])
    return inverse


def assert_inverse(obs, star, expected):
    """T^T T is C^-1 to what float32 storage of G leaves, amplified by the condition number."""
    whitener = obs.whitener_dense(star)
    np.testing.assert_array_equal(whitener, np.tril(whitener))
    scale = np.sqrt(np.diag(expected))
    scale[scale == 0] = 1.0
    assert np.abs((whitener.T @ whitener - expected) / np.outer(scale, scale)).max() < 2e-4


@pytest.fixture
def stars(rng):
    """Four stars: complete, two bands missing, the blue half missing, nothing there."""
    kept = [np.arange(66), np.delete(np.arange(66), [61, 64]), np.arange(26, 66), np.arange(0)]
    covariances = [random_covariance(rng) for _ in kept]
    whitener = np.array([whitener_of(c, k, rng) for c, k in zip(covariances, kept, strict=True)])
    return kept, covariances, whitener, rng.uniform(0.1, 3.0, (4, 66)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_any_whitener(stars, dtype):
    kept, covariances, whitener, flux = stars
    obs = xk.Observations.from_arrays(flux=flux, whitener=whitener.astype(dtype))
    np.testing.assert_array_equal(obs.status & ~np.uint32(Status.NO_PARALLAX), [0, 0, 0, Status.NO_DATA])
    for star in range(4):
        assert_inverse(obs, star, inverse_on(covariances[star], kept[star]))
        present = np.isin(np.arange(66), kept[star])
        np.testing.assert_array_equal(obs.flux[star], np.where(present, flux[star], 0.0))
    assert obs.whitener.shape == (4, N_PACKED)
    assert obs.whitener.dtype == obs.flux.dtype == np.float32


def test_stored_form_is_taken_as_it_is(stars):
    _, _, whitener, flux = stars
    obs = xk.Observations.from_arrays(flux=flux, whitener=whitener)
    again = xk.Observations.from_arrays(flux=flux, packed_factor=obs.whitener)
    np.testing.assert_array_equal(again.whitener, obs.whitener)
    np.testing.assert_array_equal(again.status, obs.status)


def test_flux_that_is_not_finite_is_marginalised(stars):
    """What remains of C, not of its inverse: the errors of the neighbours do not shrink."""
    _, covariances, whitener, flux = stars
    flux[0, [3, 40]] = np.nan, np.inf
    obs = xk.Observations.from_arrays(flux=flux, whitener=whitener)
    assert obs.status[0] & Status.MISSING_SAMPLES
    assert not (obs.status[1:] & Status.MISSING_SAMPLES).any()
    assert_inverse(obs, 0, inverse_on(covariances[0], np.delete(np.arange(66), [3, 40])))
    assert not obs.flux[0, [3, 40]].any()


def test_a_row_of_the_factor_that_is_not_finite_is_a_missing_sample(stars):
    _, covariances, whitener, flux = stars
    packed = xk.Observations.from_arrays(flux=flux, whitener=whitener).whitener.copy()
    rows = np.tril_indices(66)[0]
    packed[0, np.flatnonzero(rows == 10)[4]] = np.nan
    packed[0, np.flatnonzero(rows == 20)[-1]] = np.inf
    obs = xk.Observations.from_arrays(flux=flux, packed_factor=packed)
    assert obs.status[0] & Status.MISSING_SAMPLES
    assert_inverse(obs, 0, inverse_on(covariances[0], np.delete(np.arange(66), [10, 20])))


def test_whiteners_that_cannot_be_used(stars):
    _, _, whitener, flux = stars
    whitener[0, 5, 7] = np.nan
    whitener[1, :, 9] = 2.0 * whitener[1, :, 12]
    obs = xk.Observations.from_arrays(flux=flux, whitener=whitener)
    assert obs.status[0] & Status.BAD_ROW
    assert obs.status[1] & Status.SINGULAR_COVARIANCE
    assert not obs.star_data().whitener[:2].any()
    assert obs.star_data().whitener[2].any()


@pytest.mark.parametrize("bad", [(np.nan, 0.1), (1.0, np.nan), (1.0, np.inf), (1.0, 0.0), (1.0, -0.1)])
def test_missing_parallax(stars, bad):
    _, _, whitener, flux = stars
    obs = xk.Observations.from_arrays(
        flux=flux, whitener=whitener, plx=[-0.3, 1.0, bad[0], 2.0], plx_err=[0.1, 0.1, bad[1], 0.2]
    )
    np.testing.assert_array_equal(obs.plx, [-0.3, 1.0, 0.0, 2.0])
    np.testing.assert_array_equal(obs.plx_err, [0.1, 0.1, np.inf, 0.2])
    np.testing.assert_array_equal((obs.status & Status.NO_PARALLAX) != 0, [False, False, True, False])
    data = obs.star_data()
    np.testing.assert_array_equal(data.mean[:, 4], obs.plx)
    np.testing.assert_array_equal(data.sigma[:, 4], obs.plx_err)
    assert np.isinf(data.sigma[:, :4]).all()


def test_units_and_masks(stars):
    """As columns of astropy and pandas have them: the same numbers, and nothing behind a mask is one."""
    import pandas
    from astropy import units
    from astropy.table import MaskedColumn
    from astropy.utils.masked import Masked

    _, _, whitener, flux = stars
    plx, plx_err, mask = np.array([0.5, 1.0, 9.0, 2.0]), np.array([0.1, 0.1, 0.3, 0.2]), [False, False, True, False]
    expected = xk.Observations.from_arrays(
        flux=np.where(np.arange(66) == 3, np.nan, flux),
        whitener=whitener,
        plx=np.where(mask, np.nan, plx),
        plx_err=plx_err,
    )
    masked_flux = np.ma.array(flux, mask=np.arange(4 * 66).reshape(4, 66) % 66 == 3)
    for given, error in (
        (np.ma.array(plx, mask=mask), plx_err),
        (MaskedColumn(plx, mask=mask, unit="mas"), plx_err),
        (MaskedColumn(plx / 1000, mask=mask, unit="arcsec"), (plx_err * units.mas).to(units.uas)),
        (Masked(plx * units.mas, mask=mask), plx_err * units.mas),
        (pandas.Series(np.where(mask, None, plx), dtype="Float64"), pandas.Series(plx_err)),
    ):
        obs = xk.Observations.from_arrays(flux=masked_flux, whitener=whitener, plx=given, plx_err=error)
        np.testing.assert_allclose(obs.plx, expected.plx, rtol=1e-14)
        np.testing.assert_allclose(obs.plx_err, expected.plx_err, rtol=1e-14)
        for name in ("flux", "whitener", "status"):
            np.testing.assert_array_equal(getattr(obs, name), getattr(expected, name))
    in_watts = (flux * 1e-18).astype(np.float64) * units.Unit("W m-2 nm-1")
    obs = xk.Observations.from_arrays(flux=in_watts.to("erg s-1 cm-2 AA-1"), whitener=whitener)
    np.testing.assert_allclose(obs.flux[0], flux[0], rtol=1e-6)
    for wrong in ({"plx": plx * units.pc, "plx_err": plx_err}, {"flux": flux * units.Jy}):
        with pytest.raises(xk.InputError, match=r"its unit is \w+, which is no"):
            xk.Observations.from_arrays(**{"flux": flux, "whitener": whitener, **wrong})
    with pytest.raises(xk.InputError, match="field source_id: some are masked"):
        xk.Observations.from_arrays(flux=flux, whitener=whitener, source_id=np.ma.array([1, 2, 3, 4], mask=mask))


def test_constraints(stars):
    _, _, whitener, flux = stars
    mean, error = np.full((4, 5), 0.5), np.full((4, 5), np.inf)
    error[:, 0], error[1, 0], mean[2, 0] = 0.1, np.nan, np.nan
    obs = xk.Observations.from_arrays(
        flux=flux, whitener=whitener, plx=np.ones(4), plx_err=np.ones(4), constraint_mean=mean, constraint_err=error
    )
    data = obs.star_data()
    np.testing.assert_array_equal(data.sigma[:, 0], [0.1, np.inf, np.inf, 0.1])
    np.testing.assert_array_equal(data.mean[:, 0], [0.5, 0.0, 0.0, 0.5])
    np.testing.assert_array_equal(data.sigma[:, 4], 1.0)
    error[:, 4] = 0.3
    with pytest.raises(xk.InputError, match="the parallax of a star is given here and in plx"):
        xk.Observations.from_arrays(
            flux=flux, whitener=whitener, plx=np.ones(4), plx_err=np.ones(4), constraint_mean=mean, constraint_err=error
        )
    alone = xk.Observations.from_arrays(flux=flux, whitener=whitener, constraint_mean=mean, constraint_err=error)
    np.testing.assert_array_equal(alone.star_data().sigma[:, 4], 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flux": np.ones((4, 61))}, r"field flux: shape \(4, 61\), expected \(n, 66\)"),
        ({"flux": [["bright"] * 66] * 4}, "field flux: not an array of numbers"),
        ({"whitener": None}, "field whitener: give either whitener or packed_factor"),
        ({"packed_factor": np.ones((4, N_PACKED))}, "field whitener: give either whitener or packed_factor"),
        ({"whitener": np.ones((3, 66, 66))}, r"field whitener: shape \(3, 66, 66\), expected \(4, 66, 66\)"),
        ({"plx": np.ones(4)}, "field plx: a value needs its error"),
        ({"plx": np.ones(3), "plx_err": np.ones(4)}, r"field plx: shape \(3,\), expected \(4,\)"),
        ({"source_id": np.ones(4)}, r"field source_id: shape \(4,\) of float64, expected \(4,\) integers"),
    ],
)
def test_bad_arrays(stars, change, message):
    _, _, whitener, flux = stars
    with pytest.raises(xk.InputError, match=message):
        xk.Observations.from_arrays(**{"flux": flux, "whitener": whitener} | change)


def test_no_stars():
    obs = xk.Observations.from_arrays(flux=np.zeros((0, 66)), whitener=np.zeros((0, 66, 66)))
    assert len(obs) == 0
    assert len(obs.star_data()) == 0
    assert obs.source_id.dtype == np.int64


def test_ranges_and_concatenation(stars):
    _, _, whitener, flux = stars
    ids = np.array([2**60 + 1, 5, 7, 9])
    obs = xk.Observations.from_arrays(flux=flux, whitener=whitener, source_id=ids, plx=np.ones(4), plx_err=np.ones(4))
    obs.columns["ra"] = np.arange(4.0)
    obs.reasons.append((5, 2, "bp_coefficients", "too short"))
    first, second = obs[:1], obs[1:]
    assert len(second) == 3
    second.columns["bp_rp"] = np.ones(3)
    second.columns["flags"] = np.ones(3, np.int64)
    first.reasons = []
    joined = xk.Observations.concatenate([first, second])
    for name in ("source_id", "flux", "whitener", "plx", "plx_err", "status"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(obs, name))
    np.testing.assert_array_equal(joined.columns["ra"], np.arange(4.0))
    np.testing.assert_array_equal(joined.columns["bp_rp"], [np.nan, 1, 1, 1])
    np.testing.assert_array_equal(joined.columns["flags"], [0, 1, 1, 1])
    assert joined.reasons == [(5, 2, "bp_coefficients", "too short")]
    np.testing.assert_array_equal(obs.whitener_dense(-3), obs.whitener_dense(1))
    with pytest.raises(IndexError):
        obs.whitener_dense(4)
    with pytest.raises(TypeError, match="sliced by ranges"):
        obs[0]
    with pytest.raises(xk.InputError, match="no observations"):
        xk.Observations.concatenate([])
    second.noise = xk.Noise.eq2()
    with pytest.raises(xk.InputError, match="field noise: blocks differ"):
        xk.Observations.concatenate([first, second])


def test_concatenation_keeps_constraints(stars):
    _, _, whitener, flux = stars
    error = np.full((4, 5), 0.1)
    free = xk.Observations.from_arrays(flux=flux, whitener=whitener)
    bound = xk.Observations.from_arrays(
        flux=flux, whitener=whitener, constraint_mean=np.ones((4, 5)), constraint_err=error
    )
    joined = xk.Observations.concatenate([free, bound])
    np.testing.assert_array_equal(joined.star_data().sigma, np.concatenate([np.full((4, 5), np.inf), error]))


def test_packed_triangle(rng):
    assert packed_size(N_FLUX) == N_PACKED
    assert [sample_count(packed_size(size)) for size in range(200)] == list(range(200))
    factor = np.array([[[2.0, 0.0], [3.0, 4.0]]])
    np.testing.assert_array_equal(pack_factor(factor, np.array([[True, True]])), [[0.5, 3.0, 0.25]])
    np.testing.assert_array_equal(pack_factor(factor, np.array([[False, True]])), [[0.0, 0.0, 0.25]])
