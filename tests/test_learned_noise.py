"""A learned noise: its object, its place in a model file, and the covariances that engines make of it."""

from __future__ import annotations

from dataclasses import replace

import h5py
import numpy as np
import pytest
from mock_stars import (
    assert_same,
    correlation_in_blocks,
    infrared_missing,
    random_model,
    random_params,
    random_prior,
    random_stars,
    side_missing,
    some_bands_missing,
)

import xpkern as xk
from xpkern.engine.contract import StarData
from xpkern.engine.packed import present_samples, unpack_factor
from xpkern.grid import BLOCKS, N_FLUX, WAVELENGTH
from xpkern.model.model_error import ModelError


def random_error(rng, *, inputs=3, groups=5, samples=N_FLUX, size=0.03, factor=None):
    """Groups scattered over the types of :func:`mock_stars.random_prior`, with correlated errors of about ``size``."""
    roots = rng.normal(0.0, size / np.sqrt(2 * samples), (groups, samples, 2 * samples))
    covariance = roots @ roots.swapaxes(1, 2)
    covariance = 0.5 * (covariance + covariance.swapaxes(1, 2)) + (0.3 * size) ** 2 * np.eye(samples)
    centre = np.array([5.5, -0.3, 3.5, 0.1])[:inputs] + rng.normal(0.0, 0.7, (groups, inputs))
    scale = rng.uniform(0.3, 0.8, inputs)
    return ModelError(centre, scale, covariance, rng.uniform(0.5, 2.0) if factor is None else factor)


def learned(rng, **options):
    return replace(xk.Noise.eq2(), model_error=random_error(rng, **options))


def test_groups_blend_into_a_covariance_everywhere(rng):
    error = random_error(rng)
    theta = np.vstack([error.centre, rng.normal([5.5, -0.3, 3.5], 3.0, (200, 3))])
    share = error.shares(theta)
    np.testing.assert_allclose(share.sum(axis=1), 1.0, rtol=1e-12)
    for star in range(len(theta)):
        distance = (((theta[star] - error.centre) / error.scale) ** 2).sum(axis=1)
        assert share[star].argmax() == distance.argmin()
        weight = np.exp(-0.5 * (distance - distance.min()))
        weight[weight < 1e-4] = 0.0
        np.testing.assert_allclose(share[star], weight / weight.sum(), rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(error.at(theta), np.einsum("ng,gij->nij", share, error.covariance))
    assert np.linalg.eigvalsh(error.at(theta)).min() > 0.0
    far = error.at(np.array([[1e4, -1e4, 1e4]]))[0]
    assert np.isfinite(far).all()
    # smooth: a small step changes S in proportion, but where a group of no weight gets its share
    step = 1e-6
    change = np.abs(error.at(theta + step) - error.at(theta)).max(axis=(1, 2))
    assert (change < 1e-4 * np.abs(error.covariance).max()).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": [1.0, 0.0, 1.0]}, "scale: must be positive"),
        ({"scale": [1.0, 1.0]}, r"scale: shape \(2,\), expected \(3,\)"),
        ({"centre": np.zeros((2, 3))}, r"covariance: shape .* expected \(2, any, any\)"),
        ({"covariance": -np.eye(4)[None]}, "covariance: that of group 0 is not symmetric and positive definite"),
        ({"covariance": np.triu(np.ones((4, 4)))[None]}, "covariance: that of group 0 is not symmetric"),
        ({"covariance": np.full((1, 4, 4), np.nan)}, "covariance: holds numbers that are not finite"),
        ({"covariance": np.ones((1, 4, 3))}, "covariance: shape .* not square"),
        (
            {"centre": np.zeros((33, 3)), "covariance": np.tile(np.eye(4), (33, 1, 1))},
            "centre: 33 groups, at most 32 are possible",
        ),
        ({"archive_factor": 0.0}, "archive_factor: 0.0 is not a finite number > 0"),
        ({"archive_factor": np.inf}, "archive_factor: inf is not a finite number > 0"),
    ],
)
def test_bad_model_error(change, message):
    given = {"centre": np.zeros((1, 3)), "scale": np.ones(3), "covariance": np.eye(4)[None]}
    ModelError(**given)
    with pytest.raises(xk.InputError, match=message):
        ModelError(**(given | change))


def test_noise_with_a_model_error(rng):
    noise = learned(rng)
    assert (xk.Noise.eq2().kind, noise.kind) == ("eq2", "learned")
    assert noise.digest not in (xk.Noise.eq2().digest, learned(rng).digest)
    assert noise.without_model_error().digest == xk.Noise.eq2().digest
    with pytest.raises(xk.InputError, match=r"model_error: of 12 samples, that of Eq\. 2 of 66"):
        replace(xk.Noise.eq2(), model_error=random_error(rng, samples=12))
    with pytest.raises(xk.InputError, match="noise: learned for 66 samples and 4 inputs, the model has 66 and 3"):
        replace(random_model(rng), noise=learned(rng, inputs=4))


def test_model_file(rng, tmp_path):
    model, prior = replace(random_model(rng), noise=learned(rng)), random_prior(rng)
    xk.save_model(tmp_path / "model.h5", model, prior)
    loaded, _ = xk.load_model(tmp_path / "model.h5")
    assert loaded.noise.digest == model.noise.digest
    for name in ("centre", "scale", "covariance"):
        np.testing.assert_array_equal(
            getattr(loaded.noise.model_error, name), getattr(model.noise.model_error, name), err_msg=name
        )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda noise: noise.attrs.__setitem__("kind", "guessed"), "noise/kind: noise model 'guessed' is unknown"),
        (lambda noise: noise.__delitem__("covariance"), "noise/covariance: missing"),
        (lambda noise: noise.attrs.__delitem__("archive_factor"), "noise/archive_factor: missing"),
        (lambda noise: noise["scale"].__setitem__(0, -1.0), "noise/scale: must be positive"),
        (
            lambda noise: (noise.__delitem__("covariance"), noise.create_dataset("covariance", data=[np.eye(65)] * 5)),
            "noise/model_error: of 65 samples, that of Eq. 2 of 66",
        ),
    ],
)
def test_damaged_model_file(rng, tmp_path, damage, message):
    xk.save_model(tmp_path / "model.h5", replace(random_model(rng), noise=learned(rng)), random_prior(rng))
    with h5py.File(tmp_path / "model.h5", "a") as file:
        damage(file["noise"])
    with pytest.raises(xk.ModelFileError, match=message):
        xk.load_model(tmp_path / "model.h5")


def dense_covariance(model, noise, stars, contained, params, star):
    """C of one star over the samples it has, straight from the formulas."""
    kept = np.flatnonzero(present_samples(stars.whitener)[star])
    factor = unpack_factor(stars.whitener[star : star + 1])[0][np.ix_(kept, kept)]
    np.fill_diagonal(factor, 1.0 / np.diagonal(factor))
    archive = factor @ factor.T
    if contained is not None:
        observed = stars.flux[star].astype(float)[kept]
        wavelength = model.wavelength[kept]
        spectrum = wavelength < 1000.0
        bp = np.select([wavelength < 642.0, wavelength == 642.0], [1.0, 0.5], 0.0)
        archive -= np.diag((contained.independent[kept] * observed) ** 2)
        for error, part in ((contained.common, spectrum), (contained.bp, bp), (contained.rp, spectrum * (1.0 - bp))):
            archive -= error**2 * np.outer(part * observed, part * observed)
    flux = np.exp(model.ln_flux(params[star : star + 1]))[0, kept]
    error = noise.model_error
    distance = (((params[star, : model.n_inputs] - error.centre) / error.scale) ** 2).sum(axis=1)
    weight = np.exp(-0.5 * (distance - distance.min()))
    weight[weight < 1e-4] = 0.0
    blended = sum(w * c for w, c in zip(weight / weight.sum(), error.covariance, strict=True))
    return kept, error.archive_factor * archive + np.outer(flux, flux) * blended[np.ix_(kept, kept)]


def stars_with_eq2(rng, model, params, missing, noise, correlation=None):
    """Stars whose covariances contain the noise of Eq. 2 besides that of the measurement."""
    stars = random_stars(rng, model, params, missing=missing, correlation=correlation)
    present = present_samples(stars.whitener)
    factor = unpack_factor(stars.whitener)
    diagonal = np.einsum("njj->nj", factor)
    np.divide(1.0, diagonal, out=diagonal, where=present)
    flux = stars.flux.astype(float)
    covariance = factor @ factor.swapaxes(1, 2)
    np.einsum("njj->nj", covariance)[:] += (noise.independent * flux) ** 2
    for fractions in noise.common_errors(WAVELENGTH):
        covariance += (fractions * flux)[:, :, None] * (fractions * flux)[:, None, :]
    np.einsum("njj->nj", covariance)[~present] = 1.0
    from xpkern.engine.packed import pack_factor

    return replace(stars, whitener=pack_factor(np.linalg.cholesky(covariance), present))


def measured_in_blocks():
    """Correlation (m, m) of a measurement whose BP and RP have nothing in common but a sample."""
    correlation = correlation_in_blocks()
    alone, leading, linked = BLOCKS
    correlation[leading:linked, :alone] = correlation[:alone, leading:linked] = 0.0
    return correlation + np.eye(N_FLUX)


MISSING = {
    "nothing": lambda rng, n: np.zeros((n, N_FLUX), bool),
    "infrared": lambda rng, n: infrared_missing(n),
    "some bands": some_bands_missing,
    "bp": lambda rng, n: side_missing(n, "bp"),
    "anything": lambda rng, n: rng.random((n, N_FLUX)) < 0.3,
}


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("contains", [False, True])
@pytest.mark.parametrize("blocks", [False, True])
def test_frozen_covariance(rng, engine, missing, contains, blocks):
    model, noise = random_model(rng), learned(rng)
    params = random_params(rng, random_prior(rng), 11)
    contained = xk.Noise.eq2() if contains else None
    mask = MISSING[missing](rng, 11)
    mask[7] = True  # a star without data
    if contains:
        correlation = measured_in_blocks() if blocks else None
        stars = stars_with_eq2(rng, model, params, mask, contained, correlation)
    else:
        stars = random_stars(rng, model, params, missing=mask, correlation=correlation_in_blocks() if blocks else None)
    frozen = engine.freeze_noise(model, noise, stars, contained, params)
    assert (frozen.whitener.dtype, frozen.ln_det.dtype) == (np.float32, np.float64)
    np.testing.assert_array_equal(present_samples(frozen.whitener), present_samples(stars.whitener))
    assert np.isnan(frozen.ln_det[7])
    assert not frozen.whitener[7].any()
    for star in np.delete(np.arange(11), 7):
        kept, expected = dense_covariance(model, noise, stars, contained, params, star)
        factor = unpack_factor(frozen.whitener[star : star + 1])[0]
        assert not np.delete(factor, kept, axis=0).any()
        assert not np.delete(factor, kept, axis=1).any()
        factor = factor[np.ix_(kept, kept)]
        np.fill_diagonal(factor, 1.0 / np.diagonal(factor))
        size = np.sqrt(np.diagonal(expected))
        # G is stored in float32, 6e-8, and 66 such products are summed
        np.testing.assert_allclose(factor @ factor.T / np.outer(size, size), expected / np.outer(size, size), atol=3e-6)
        np.testing.assert_allclose(frozen.ln_det[star], np.linalg.slogdet(expected)[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stars", [0, 1, 15, 16, 17])
def test_frozen_covariance_of_any_number_of_stars(rng, engine, stars):
    model, noise = random_model(rng, hidden=(8,)), learned(rng, groups=1)
    params = random_params(rng, random_prior(rng), stars)
    data = random_stars(rng, model, params)
    in_blocks = rng.random(stars) < 0.5
    data.whitener[in_blocks] = random_stars(rng, model, params, correlation=correlation_in_blocks()).whitener[in_blocks]
    frozen = engine.freeze_noise(model, noise, data, xk.Noise.eq2(), params, threads=3)
    assert frozen.whitener.shape == data.whitener.shape
    assert frozen.ln_det.shape == (stars,)
    order = rng.permutation(stars)
    shuffled = engine.freeze_noise(model, noise, data[order], xk.Noise.eq2(), params[order], threads=1)
    assert_same(engine.name, shuffled.whitener, frozen.whitener[order])
    assert_same(engine.name, shuffled.ln_det, frozen.ln_det[order])


def test_frozen_covariance_of_other_models(rng, engine):
    model = random_model(rng, inputs=4, hidden=(5, 9), samples=13)
    noise = xk.Noise(independent=np.full(13, 0.01), model_error=random_error(rng, inputs=4, samples=13, groups=3))
    params = random_params(rng, random_prior(rng, inputs=4), 6)
    stars = random_stars(rng, model, params)
    frozen = engine.freeze_noise(model, noise, stars, None, params)
    for star in range(6):
        _, expected = dense_covariance(model, noise, stars, None, params, star)
        np.testing.assert_allclose(frozen.ln_det[star], np.linalg.slogdet(expected)[1], atol=1e-6)


def test_stars_without_a_usable_covariance(rng, engine):
    """Parameters that are no numbers, and Eq. 2 taken out of covariances that do not contain it."""
    model, noise = random_model(rng), learned(rng, size=1e-5, factor=1.0)
    params = random_params(rng, random_prior(rng), 20)
    stars = random_stars(rng, model, params, snr=1e4)
    broken = params.copy()
    broken[3] = np.nan
    frozen = engine.freeze_noise(model, noise, stars, None, broken)
    assert np.isnan(frozen.ln_det[3])
    assert not frozen.whitener[3].any()
    assert np.isfinite(np.delete(frozen.ln_det, 3)).all()
    nothing_left = engine.freeze_noise(model, noise, stars, xk.Noise.eq2(), params)
    assert np.isnan(nothing_left.ln_det).all()
    assert not nothing_left.whitener.any()


def test_no_model_error_to_freeze(rng, engine):
    model = random_model(rng, hidden=(4,))
    params = random_params(rng, random_prior(rng), 2)
    stars = random_stars(rng, model, params)
    with pytest.raises(xk.InputError, match="noise: nothing was learned from residuals"):
        engine.freeze_noise(model, xk.Noise.eq2(), stars, None, params)


def test_star_data_is_left_alone(rng, engine):
    model, noise = random_model(rng, hidden=(4,)), learned(rng)
    params = random_params(rng, random_prior(rng), 5)
    stars = random_stars(rng, model, params)
    before = StarData(**{name: array.copy() for name, array in vars(stars).items()})
    engine.freeze_noise(model, noise, stars, xk.Noise.eq2(), params)
    for name, array in vars(before).items():
        np.testing.assert_array_equal(getattr(stars, name), array)
