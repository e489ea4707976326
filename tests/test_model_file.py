"""Model files: what is written comes back, what is broken is named."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest
from mock_stars import random_model, random_prior

import xpkern as xk
from xpkern.model.model_file import default_model_path


@pytest.fixture
def saved(rng, tmp_path):
    theoretical = np.arange(66) >= 64
    model = dataclasses.replace(
        random_model(rng),
        noise=xk.Noise.eq2(sigma="zgr23", theoretical=theoretical),
        scale_sigma=0.15,
        theoretical=theoretical,
        ext_unit="E(B-V) [mag]",
        provenance={"stars": "mock", "code": "tests"},
        licence="MIT",
        card="# A model\n\nof nothing.\n",
    )
    prior = random_prior(rng)
    path = tmp_path / "model.h5"
    xk.save_model(path, model, prior)
    return path, model, prior


def test_round_trip(saved, rng):
    path, model, prior = saved
    again, prior_again = xk.load_model(path)
    params = np.column_stack([prior.sample(4, rng), np.full(4, 0.3), np.full(4, 1.7)])
    np.testing.assert_array_equal(again.ln_flux(params), model.ln_flux(params))
    for name in ("ext_curve", "input_zp", "input_scale", "wavelength", "theoretical"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))
    for name in ("scale_sigma", "ext_unit", "provenance", "licence", "card"):
        assert getattr(again, name) == getattr(model, name)
    assert again.noise.digest == model.noise.digest
    assert prior_again.digest == prior.digest


def test_digest_survives_every_round_trip(rng, tmp_path):
    for number in range(8):
        model, prior = random_model(rng, hidden=(4,)), random_prior(rng)
        first, second = tmp_path / f"{number}.h5", tmp_path / f"{number}_again.h5"
        xk.save_model(first, model, prior)
        once, prior_once = xk.load_model(first)
        xk.save_model(second, once, prior_once)
        twice, _ = xk.load_model(second)
        assert (once.digest, twice.digest) == (model.digest, model.digest)
        assert second.read_bytes() == first.read_bytes()


def test_file_with_the_logarithm_of_the_curve(saved):
    """As they were written before: R comes back to a rounding, and what is wrong with it is named."""
    path, model, _ = saved
    with h5py.File(path, "a") as file:
        del file["flux/ext_curve"]
        file["flux/ln_ext_curve"] = np.log(model.ext_curve)
    again, _ = xk.load_model(path)
    np.testing.assert_allclose(again.ext_curve, model.ext_curve, rtol=1e-15)
    with h5py.File(path, "a") as file:
        file["flux/ln_ext_curve"][0] = 1e4
    with pytest.raises(xk.ModelFileError, match="flux/ext_curve: holds numbers that are not finite"):
        xk.load_model(path)


def test_same_model_same_bytes(saved, tmp_path):
    path, model, prior = saved
    other = tmp_path / "other.h5"
    xk.save_model(other, model, prior)
    assert other.read_bytes() == path.read_bytes()


def test_other_shapes(rng, tmp_path):
    model, prior = random_model(rng, inputs=2, hidden=(4,), samples=9), random_prior(rng, inputs=2, components=1)
    xk.save_model(tmp_path / "small.h5", model, prior)
    again, _ = xk.load_model(tmp_path / "small.h5")
    assert [weight.shape for weight in again.weights] == [(2, 4), (4, 9)]
    assert again.ext_unit == "mag"


def test_nothing_half_written(saved, tmp_path, monkeypatch):
    path, model, prior = saved
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("xpkern.model.model_file._write", full_disk)
    with pytest.raises(OSError, match="no space left"):
        xk.save_model(path, model, prior)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", None])
def test_not_a_model_file(tmp_path, content):
    path = tmp_path / "model.h5"
    if content is None:
        with pytest.raises(xk.ModelFileError, match=r"model\.h5: no such model file"):
            xk.load_model(path)
        return
    path.write_bytes(content)
    with pytest.raises(xk.ModelFileError, match=r"model\.h5: not a readable HDF5 file"):
        xk.load_model(path)


def test_what_the_system_refuses_is_one_short_line(tmp_path):
    with pytest.raises(xk.ModelFileError) as caught:
        xk.load_model(tmp_path)
    assert str(caught.value) == f"{tmp_path}: not a readable HDF5 file (Is a directory)"


@pytest.mark.parametrize("field", ["flux/weights_1", "noise/independent", "prior/means"])
def test_an_absurd_size_is_never_read(saved, field):
    path, *_ = saved
    with h5py.File(path, "a") as file:
        del file[field]
        file.create_dataset(field, (10**6, 10**6), np.float64, chunks=(1, 1))
    with pytest.raises(xk.ModelFileError, match=rf"field {field}: shape \(1000000, 1000000\) is larger than"):
        xk.load_model(path)


def test_truncated(saved):
    path, *_ = saved
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(xk.ModelFileError, match=r"model\.h5"):
        xk.load_model(path)


FIELDS = [
    "flux/weights_0",
    "flux/weights_1",
    "flux/weights_3",
    "flux/biases_1",
    "flux/biases_3",
    "flux/ext_curve",
    "flux/input_zp",
    "flux/wavelength",
    "flux/theoretical",
    "prior/means",
    "noise/independent",
]


@pytest.mark.parametrize("field", FIELDS)
def test_missing_field_is_named(saved, field):
    path, *_ = saved
    with h5py.File(path, "a") as file:
        del file[field]
    with pytest.raises(xk.ModelFileError, match=rf"model\.h5, field {field}: missing"):
        xk.load_model(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("flux/weights_1", np.full((32, 32), np.nan), "flux/weights_1: holds numbers that are not finite"),
        ("flux/weights_1", np.zeros((3, 32)), r"flux/weights_1: shape \(3, 32\), expected \(32, any\)"),
        ("flux/ext_curve", np.full(66, np.inf), "flux/ext_curve: holds numbers that are not finite"),
        ("flux/ext_curve", np.zeros(65), r"flux/ext_curve: shape \(65,\), expected \(66,\)"),
        ("prior/weights", np.full(5, 1.0), "prior/weights: must be positive and add up to 1"),
        ("noise/independent", np.full(66, -1.0), "noise/independent: negative error"),
        ("flux/input_zp", np.array([b"a", b"b", b"c"]), "flux/input_zp: not an array of numbers"),
    ],
)
def test_bad_field_is_named(saved, field, value, message):
    path, *_ = saved
    with h5py.File(path, "a") as file:
        del file[field]
        file[field] = value
    with pytest.raises(xk.ModelFileError, match=message):
        xk.load_model(path)


@pytest.mark.parametrize(
    ("group", "attribute", "value", "message"),
    [
        ("/", "format_version", 99, "field format_version: version 99 of the model format; .* reads 1"),
        ("/", "format_version", None, "field format_version: missing"),
        ("/", "scale_sigma", np.nan, "scale_sigma: nan is not a finite number"),
        ("prior", "ln_prior_threshold", None, "field prior/ln_prior_threshold: missing"),
        ("noise", "kind", "student", "field noise/kind: noise model 'student' is unknown"),
        ("noise", "common", "much", "noise/common: 'much' is not a finite number"),
    ],
)
def test_bad_attribute_is_named(saved, group, attribute, value, message):
    path, *_ = saved
    with h5py.File(path, "a") as file:
        del file[group].attrs[attribute]
        if value is not None:
            file[group].attrs[attribute] = value
    with pytest.raises(xk.ModelFileError, match=message):
        xk.load_model(path)


def test_default_model_comes_with_the_package():
    if not default_model_path().exists():
        pytest.skip("the default model has not been trained yet")
    model, prior = xk.load_model()
    assert model.n_samples == 66
    assert model.card
    flux = model.predict(teff=5.77, feh=0.0, logg=4.44, ext=0.0, plx=100.0)
    assert (flux > 0).all()
    assert np.isfinite(prior.ln_prior_threshold)
