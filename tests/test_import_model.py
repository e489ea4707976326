"""Models from TensorFlow checkpoints: the format, the variables of ZGR23's code, what is damaged or another model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_lines import one_line
from tensorflow_files import SUFFIX, flux_variables, save_with_tensorflow, write_bundle, write_saved_model

import xpkern as xk
from xpkern.cli import main
from xpkern.errors import ModelFileError
from xpkern.grid import WAVELENGTH
from xpkern.model.tensorflow_checkpoint import TensorFlowCheckpoint, _varint, masked_crc32c
from xpkern.model.zgr23_model import import_flux_model, import_type_prior

BY_TENSORFLOW = Path(__file__).parent / "data" / "tensorflow"


def assert_predicts(model, stars, flux):
    stars = stars.astype(np.float64)
    names = ("teff", "feh", "logg", "ext", "plx")
    # TensorFlow computed in float32
    np.testing.assert_allclose(model.predict(**dict(zip(names, stars.T, strict=True))), flux, rtol=2e-5)


def test_what_tensorflow_wrote():
    with np.load(BY_TENSORFLOW / "flux.npz") as stored:
        stars, flux = stored["stars"], stored["flux"]
    model = import_flux_model(BY_TENSORFLOW / "saved")
    assert_predicts(model, stars, flux)
    np.testing.assert_array_equal(model.wavelength, WAVELENGTH)
    checkpoint = TensorFlowCheckpoint(BY_TENSORFLOW / "saved")
    variables = flux_variables()
    assert checkpoint.shapes == {f"{name}{SUFFIX}": values.shape for name, values in variables.items()}
    for name, values in variables.items():
        np.testing.assert_array_equal(checkpoint.array(f"{name}{SUFFIX}"), values)


def test_what_the_installed_tensorflow_writes(tmp_path):
    pytest.importorskip("tensorflow")
    predicted = save_with_tensorflow(tmp_path, flux_variables(7, (3, 32, 32, 32, 66)))
    for path in ("saved", "checkpoint", "checkpoint/flux-1", "checkpoint/flux-1.index"):
        assert_predicts(import_flux_model(tmp_path / path), **predicted)


def test_checksum_of_known_bytes():
    # RFC 3720, B.4: 32 bytes of zeros have 0x8A9136AA, of ones 0x62A8AB43; then rotated by 15 and shifted
    for data, crc in ((bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)):
        assert masked_crc32c(data) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("block_entries", [1, 3, 100])
@pytest.mark.parametrize("restart", [1, 2, 16])
def test_tables_of_any_blocks_and_restarts(tmp_path, rng, block_entries, restart):
    tensors = {
        f"root/{'a' * (k % 4)}{k}/x": rng.normal(size=rng.integers(1, 5, k % 3)).astype(dtype)
        for k, dtype in enumerate(["f4", "f8", "i4", "i8"] * 4)
    }
    write_bundle(tmp_path / "some-1", tensors, block_entries, restart)
    checkpoint = TensorFlowCheckpoint(tmp_path / "some-1")
    assert checkpoint.shapes == {name: values.shape for name, values in tensors.items()}
    for name, values in tensors.items():
        found = checkpoint.array(name)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


def test_a_damaged_byte_is_found_wherever_it_is(tmp_path, rng):
    folder = write_saved_model(tmp_path, flux_variables()) / "variables"
    index, data = folder / "variables.index", folder / "variables.data-00000-of-00001"
    whole = index.read_bytes()
    end_of_entries, _ = _varint(whole, len(whole) - 48)  # the metaindex follows, which holds nothing
    unused = range(24, 28)  # _l2, of which no use is made
    damaged = [(index, byte) for byte in rng.choice(end_of_entries, 20, replace=False)]
    damaged += [(data, byte) for byte in rng.choice(data.stat().st_size, 20, replace=False) if byte not in unused]
    for path, byte in damaged:
        content = path.read_bytes()
        path.write_bytes(content[:byte] + bytes([content[byte] ^ (1 << rng.integers(8))]) + content[byte + 1 :])
        with pytest.raises(ModelFileError, match=f"{path.name}.*checksum"):
            import_flux_model(tmp_path)
        path.write_bytes(content)
    import_flux_model(tmp_path)


@pytest.mark.parametrize("name", ["variables.index", "variables.data-00000-of-00001"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated(tmp_path, name, share):
    path = write_saved_model(tmp_path, flux_variables()) / "variables" / name
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ModelFileError, match=f"{name}.*truncated"):
        import_flux_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"_input_zp": None}, "_input_zp", "missing; this is another model, of: _input_iscale, "),
        ({"_layers/0/w": None}, "_layers/0/w", "missing"),
        ({"_layers/1/b": None}, "_layers/1/b", "missing"),
        ({"_layers/1/w": np.ones((4, 4))}, "weights_1", "shape"),
        ({"_layers/2/b": np.ones(65)}, "biases_2", "shape"),
        ({"_layers/2/w": np.ones((4, 65)), "_layers/2/b": np.ones(65)}, "ext_curve", "shape"),
        ({"_ln_ext_curve": np.ones((2, 33))}, "_ln_ext_curve", "expected a vector"),
        ({"_sample_wavelengths": WAVELENGTH[:-1]}, "_sample_wavelengths", "65 samples from 392 to"),
        ({"_sample_wavelengths": WAVELENGTH + 1}, "_sample_wavelengths", "66 samples from 393 to"),
        ({"_input_iscale": np.array([[1.0, 0.0, 1.0]])}, "input_scale", "not finite"),
        ({"_ln_ext_curve": np.full(66, np.nan)}, "ext_curve", "not finite"),
        (
            {"_layers/1/w": np.ones((8, 4)), "_layers/2/w": np.ones((7, 66))},
            "_layers/1/w",
            "its layers are given the stellar type again",
        ),
    ],
)
def test_another_model_names_what_is_wrong(tmp_path, change, field, message):
    variables = {name: values for name, values in (flux_variables() | change).items() if values is not None}
    write_saved_model(tmp_path, {name: np.asarray(values, np.float32) for name, values in variables.items()})
    with pytest.raises(ModelFileError, match=message) as caught:
        import_flux_model(tmp_path)
    assert caught.value.field == field
    assert caught.value.file.endswith("variables.index")


def test_variable_extinction_is_taken_at_its_zero_point(tmp_path):
    variables = flux_variables()
    curve = variables.pop("_ln_ext_curve")
    variables |= {"_ext_bias": curve[None], "_ext_slope": np.ones((1, 64), np.float32)}
    variables |= {"_ext_slope_unwise": np.zeros((1, 2), np.float32)}
    write_bundle(tmp_path / "flux-3", {f"flux_model/{name}{SUFFIX}": values for name, values in variables.items()})
    model = import_flux_model(tmp_path / "flux-3")
    np.testing.assert_allclose(model.ext_curve, np.exp(curve.astype(np.float64)), rtol=1e-12)
    assert "xi = 0" in model.provenance["extinction"]
    assert "xi = 0" in model.card


def prior_variables(rng, n=4):
    means = rng.normal([5.0, -0.5, 3.5], 0.5, (n, 3))
    roots = rng.normal(size=(n, 3, 3))
    covariances = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(3)
    values, vectors = np.linalg.eigh(covariances)
    inverse_roots = (vectors / np.sqrt(values)[:, None, :]).swapaxes(1, 2)
    weights = rng.dirichlet(np.ones(n))
    variables = {"_weight": weights, "_mean": means[None], "_sqrt_icov": inverse_roots[None]}
    tensors = {f"gauss_mix_model/{name}{SUFFIX}": value.astype(np.float32) for name, value in variables.items()}
    return tensors, xk.TypePrior.from_arrays(weights, means, covariances)


def test_prior_of_the_authors(tmp_path, rng):
    tensors, expected = prior_variables(rng)
    write_bundle(tmp_path / "gmm-1", tensors)
    prior = import_type_prior(tmp_path / "gmm-1")
    theta = expected.sample(50, rng)
    np.testing.assert_allclose(prior.ln_density(theta), expected.ln_density(theta), rtol=1e-3, atol=1e-3)
    for change, message in (
        ({"_mean": np.ones((1, 4, 2))}, "shape"),
        ({"_sqrt_icov": np.zeros((1, 4, 3, 3))}, "mixture"),
    ):
        ((name, values),) = change.items()
        write_bundle(tmp_path / "bad-1", tensors | {f"gauss_mix_model/{name}{SUFFIX}": values.astype(np.float32)})
        with pytest.raises(ModelFileError, match=message):
            import_type_prior(tmp_path / "bad-1")


class TestCommand:
    def test_model_file_fits_stars(self, tmp_path, capsys):
        assert main(["import-model", str(BY_TENSORFLOW / "saved"), "-o", str(tmp_path / "one.h5")]) == 0
        assert "shipped model" in capsys.readouterr().out
        assert main(["import-model", str(BY_TENSORFLOW / "saved"), "-o", str(tmp_path / "two.h5")]) == 0
        assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
        model, prior = xk.load_model(tmp_path / "one.h5")
        assert model.digest == import_flux_model(BY_TENSORFLOW / "saved").digest
        assert prior.n_components == xk.load_model()[1].n_components
        assert model.noise.sigma == "zgr23"
        assert model.provenance["imported_from"].startswith("saved, sha256")

    def test_prior_of_a_checkpoint_a_model_file_and_labels(self, tmp_path, rng):
        tensors, _ = prior_variables(rng)
        write_bundle(tmp_path / "gmm-1", tensors)
        theta = xk.load_model()[1].sample(24, rng)
        columns = [np.arange(1, 25), *np.column_stack([theta, np.full(theta.shape, 0.05)]).T]
        names = "source_id,teff,feh,logg,teff_err,feh_err,logg_err"
        np.savetxt(
            tmp_path / "labels.csv",
            np.column_stack(columns),
            "%d" + 6 * ",%.6f",
            header=names,
            comments="",
            delimiter=",",
        )
        assert main(["import-model", str(BY_TENSORFLOW / "saved"), "-o", str(tmp_path / "plain.h5")]) == 0
        for prior, components in (("gmm-1", 4), ("plain.h5", None), ("labels.csv", 16)):
            arguments = ["import-model", str(BY_TENSORFLOW / "saved"), "--prior", str(tmp_path / prior)]
            assert main([*arguments, "-o", str(tmp_path / "with.h5")]) == 0
            model, found = xk.load_model(tmp_path / "with.h5")
            assert found.n_components == (components or xk.load_model()[1].n_components)
            assert prior in model.provenance["prior"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["absent"], "absent: no such checkpoint or SavedModel"),
            (["empty"], "empty: is no SavedModel of TensorFlow: it holds no variables/variables.index"),
            (["text.txt"], "text.txt: is no SavedModel of TensorFlow"),
            (["text.index"], "text.index: no index of a TensorFlow checkpoint, or truncated"),
            (["gmm-1"], "field _sample_wavelengths: missing; this is another model, of: _mean"),
            ([str(BY_TENSORFLOW / "saved"), "--prior", str(BY_TENSORFLOW / "saved")], "field _weight: missing"),
            ([str(BY_TENSORFLOW / "saved"), "--prior", "text.h5"], "text.h5: not a readable HDF5 file"),
            ([str(BY_TENSORFLOW / "saved"), "-o", "model.txt"], "its name must end in .h5"),
            ([str(BY_TENSORFLOW / "saved"), "-o", "absent/model.h5"], "its folder does not exist"),
        ],
    )
    def test_bad_input_is_told_in_one_line(self, tmp_path, monkeypatch, capsys, rng, arguments, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        for name in ("text.txt", "text.index", "text.h5"):
            (tmp_path / name).write_bytes(b"nothing of the kind" * 10)
        write_bundle(tmp_path / "gmm-1", prior_variables(rng)[0])
        output = [] if "-o" in arguments else ["-o", "model.h5"]
        assert main(["import-model", *arguments, *output]) == 1
        assert message in one_line(capsys)
        assert not (tmp_path / "model.h5").exists()
