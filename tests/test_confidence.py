"""Confidence in fitted parameters: the networks, their training, their place in a model file, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_lines import one_line
from judged_stars import labelled_rows, labels_of, random_confidence, write_catalog
from mock_stars import random_model, random_prior
from scipy.special import expit

import xpkern as xk
from xpkern.catalog.judgement import features_of, stored_judgement_columns
from xpkern.cli import main
from xpkern.engine.confidence import confidences, reference_confidences
from xpkern.model.confidence import STAR_FEATURES, Confidence, feature_names
from xpkern.status import UNFITTED
from xpkern.train.confidence import calibration_error, labelled_fits, train_confidence
from xpkern.train.confidence_files import with_confidence
from xpkern.train.labels import read_labels
from xpkern.train.relu_network import Examples, NetworkSettings, ReluNetwork, platt, train_network

try:
    from xpkern.engine import _cpu
except ImportError:
    INSTRUCTION_SETS = []
else:
    INSTRUCTION_SETS = _cpu.instruction_sets()

#: Few epochs: the stars of these tests are easy to tell apart.
SETTINGS = NetworkSettings(hidden=(16, 16), batch=256, rate=3e-3, plateau=8, patience=16, epochs=30)

STARS = 1500


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> dict:
    """A model, a catalogue of its fits, labels, and classifiers that were trained on them by the command."""
    rng = np.random.default_rng(20261126)
    folder = tmp_path_factory.mktemp("judged")
    model, prior = random_model(rng), random_prior(rng)
    xk.save_model(folder / "base.h5", replace(model, card="# A model\n"), prior)
    model, prior = xk.load_model(folder / "base.h5")
    rows = labelled_rows(rng, STARS, model, prior)
    labels = labels_of(rng, rows)
    catalog = write_catalog(folder / "catalog.h5", rows, model, prior)
    fits = labelled_fits(catalog, read_labels(labels), model, prior)
    trained = train_confidence(fits, model, settings=SETTINGS, seed=4)
    return {"folder": folder, "model": model, "prior": prior, "rows": rows, "labels": labels} | {
        "catalog": catalog,
        "fits": fits,
        "trained": trained,
    }


def random_features(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Numbers of every size, missing ones among them."""
    features = rng.normal(size=(n, width)) * 10.0 ** rng.uniform(-3.0, 2.0, (n, width))
    features[rng.uniform(size=features.shape) < 0.05] = np.nan
    features[rng.uniform(size=features.shape) < 0.01] = np.inf
    features[rng.uniform(size=features.shape) < 0.01] = -3e38
    return features.astype(np.float32)


class TestKernel:
    @pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
    @pytest.mark.parametrize("hidden", [(64, 64, 64), (5,), ()])
    def test_is_the_reference(self, rng, instruction_set, hidden):
        classifiers = random_confidence(rng, np.linspace(400.0, 990.0, 17), hidden)
        for n in (0, 1, 15, 16, 17, 100):
            features = random_features(rng, n, len(classifiers.features))
            found = confidences(classifiers, features, instruction_set=instruction_set)
            assert (found.shape, found.dtype) == ((n, 3), np.float32)
            # sums of a hundred products in single precision, before a sigmoid whose slope is 1/4 at most
            np.testing.assert_allclose(found, reference_confidences(classifiers, features), rtol=0, atol=2e-5)

    @pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
    def test_does_not_depend_on_company(self, rng, instruction_set):
        classifiers = random_confidence(rng, np.linspace(400.0, 990.0, 66))
        features = random_features(rng, 301, len(classifiers.features))
        together = confidences(classifiers, features, instruction_set=instruction_set)
        order = rng.permutation(301)
        shuffled = confidences(classifiers, features[order], instruction_set=instruction_set, threads=3)
        np.testing.assert_array_equal(shuffled, together[order])
        parts = [
            confidences(classifiers, part, instruction_set=instruction_set) for part in np.split(features, [1, 40])
        ]
        np.testing.assert_array_equal(np.concatenate(parts), together)

    def test_a_missing_feature_is_filled_and_a_large_one_cut_off(self, rng):
        classifiers = random_confidence(rng, np.array([500.0, 600.0]))
        features = rng.normal(size=(8, len(classifiers.features))).astype(np.float32)
        gone, filled = features.copy(), features.copy()
        gone[:, 3], filled[:, 3] = np.nan, classifiers.fill[3]
        np.testing.assert_array_equal(confidences(classifiers, gone), confidences(classifiers, filled))
        far, farther = features.copy(), features.copy()
        far[:, 5], farther[:, 5] = 1e3, 1e30
        np.testing.assert_array_equal(confidences(classifiers, far), confidences(classifiers, farther))


class TestFeatures:
    def test_are_those_of_appendix_b(self, rng):
        model, prior = random_model(rng), random_prior(rng)
        rows = labelled_rows(rng, 50, model, prior)
        columns = stored_judgement_columns(rows)
        features = dict(zip(feature_names(model.wavelength), features_of(columns).T, strict=True))
        assert len(features) == 20 + 66
        for name, expected in {
            "ln_rchi2_opt": np.log(rows.chi2 / 61.0),
            "ln_dplx2": np.log(np.maximum(((rows.params[:, 4] - rows.plx_observed) / rows.plx_error) ** 2, 1e-7)),
            "ln_prior": rows.ln_prior,
            "teff_est": rows.params[:, 0],
            "logg_est_err": rows.error[:, 2],
            "asinh_plx_snr": np.arcsinh(rows.plx_observed / rows.plx_error),
            "ln_ruwe": np.log(rows.observed["ruwe"]),
            "norm_dg": rows.observed["norm_dg"],
            "fidelity_v2": np.full(50, np.nan),
            "asinh_residual_392nm": np.arcsinh(rows.residual[:, 0].astype(np.float16).astype(float)),
            "asinh_residual_4602.8nm": np.arcsinh(rows.residual[:, 65].astype(np.float16).astype(float)),
        }.items():
            np.testing.assert_allclose(features[name], expected, rtol=2e-6, atol=2e-6, err_msg=name)

    def test_do_not_depend_on_company_or_memory_layout(self, rng):
        rows = labelled_rows(rng, 53, random_model(rng), random_prior(rng))
        columns = stored_judgement_columns(rows)
        together = features_of(columns)
        for part in (slice(0, 1), slice(1, 30), slice(5, 53, 3)):
            alone = features_of({name: values[part] for name, values in columns.items()})
            np.testing.assert_array_equal(alone, together[part])
        swapped = {name: values.astype(values.dtype.newbyteorder()) for name, values in columns.items()}
        np.testing.assert_array_equal(features_of(swapped), together)

    def test_residuals_beyond_16_bits_are_large_and_not_missing(self, rng):
        rows = labelled_rows(rng, 4, random_model(rng), random_prior(rng))
        rows.residual[:3, 0] = [1e9, -1e9, np.nan]
        found = features_of(stored_judgement_columns(rows))[:, len(STAR_FEATURES)]
        np.testing.assert_allclose(found[:2], [np.arcsinh(65504.0), -np.arcsinh(65504.0)], rtol=1e-6)
        assert np.isnan(found[2])


class TestNetwork:
    def test_gradient(self, rng):
        network = ReluNetwork.random((7, 6, 5, 1), rng)
        for bias in network.biases:  # where all inputs are dropped, a relu without one stands on its kink
            bias[:] = rng.normal(size=bias.shape)
        double = ReluNetwork(network.parameters.astype(np.float64), [], [])  # float32 is too coarse for differences
        place = 0
        for weight, bias in zip(network.weights, network.biases, strict=True):
            double.weights.append(double.parameters[place : place + weight.size].reshape(weight.shape))
            place += weight.size
            double.biases.append(double.parameters[place : place + bias.size])
            place += bias.size
        examples = Examples(
            rng.normal(size=(40, 7)), (rng.uniform(size=40) < 0.5).astype(float), rng.uniform(0.5, 1.5, 40)
        )

        def loss_and_gradient() -> tuple[float, np.ndarray]:
            loss, gradient = double.gradient(
                examples, 1e-2, 0.3, np.random.default_rng(1)
            )  # the same dropout each time
            return loss, gradient.parameters

        _, gradient = loss_and_gradient()
        step, found = 1e-6, np.empty(len(gradient))
        for k in range(len(gradient)):
            before = double.parameters[k]
            double.parameters[k] = before + step
            above, _ = loss_and_gradient()
            double.parameters[k] = before - step
            below, _ = loss_and_gradient()
            double.parameters[k] = before
            found[k] = (above - below) / (2.0 * step)
        # a kink of a relu within the step would cost its slope: rare, and then of one parameter
        wrong = np.abs(found - gradient) > 1e-4 * np.abs(gradient) + 1e-6
        assert wrong.sum() <= 1

    def test_dropout_keeps_the_mean(self, rng):
        network = ReluNetwork.random((5, 1), rng)  # no hidden layer: nothing is dropped
        examples = Examples(rng.normal(size=(9, 5)).astype("f"), np.ones(9, "f"), np.ones(9, "f"))
        plain, _ = network.gradient(examples, 0.0, 0.0, np.random.default_rng(1))
        assert network.gradient(examples, 0.0, 0.9, np.random.default_rng(2))[0] == plain

    def test_learns_what_can_be_learned_and_stops(self, rng):
        inputs = rng.normal(size=(900, 4)).astype(np.float32)
        good = inputs[:, 0] * inputs[:, 1] > 0  # no single input tells
        parts = [Examples.balanced(inputs[part], good[part]) for part in (slice(0, 600), slice(600, 900))]
        settings = NetworkSettings(hidden=(16, 16), batch=64, rate=3e-3, plateau=6, patience=12, epochs=120)
        network, history = train_network(*parts, settings, np.random.default_rng(3))
        again, _ = train_network(*parts, settings, np.random.default_rng(3))
        np.testing.assert_array_equal(network.parameters, again.parameters)
        assert ((network.logit(inputs[600:]) > 0) == good[600:]).mean() > 0.9
        assert len(history) == 120 or len(history) - (int(np.argmin(history)) + 1) == settings.patience

    def test_classes_weigh_the_same(self):
        examples = Examples.balanced(np.zeros((10, 1), np.float32), np.arange(10) < 8)
        assert examples.weight[:8].sum() == pytest.approx(5.0)
        assert examples.weight.mean() == pytest.approx(1.0)

    def test_platt_finds_the_probability(self, rng):
        logit = rng.normal(0.0, 2.0, 40000)
        good = rng.uniform(size=40000) < expit(0.6 * logit - 0.8)
        slope, offset = platt(logit, good)
        assert (slope, offset) == pytest.approx((0.6, -0.8), abs=0.06)
        slope, _ = platt(np.array([-1.0, -2.0, 1.0, 2.0]), np.array([False, False, True, True]))
        assert np.isfinite(slope)  # although the classes do not overlap


class TestTraining:
    def test_tells_good_from_bad_and_is_a_probability(self, judged):
        for report in judged["trained"].reports:
            assert report.roc_auc > 0.9
            assert report.scatter_factor > 1.4
            # three hundred held-out stars in ten bins: 0.02-0.03 is noise
            assert report.calibration_error < 0.12
            assert max(report.importance, key=report.importance.get) in ("residuals", "ln_rchi2_opt")

    def test_only_fitted_stars_that_pass_the_basic_cut(self, judged):
        counts, rows = judged["fits"].counts, judged["rows"]
        assert counts["rows"] == counts["labelled"] == STARS
        fitted = (rows.status & np.uint32(UNFITTED)) == 0
        passes = fitted & (rows.chi2 <= 122.0) & (rows.ln_prior >= judged["prior"].ln_prior_threshold)
        assert counts["fitted"] == fitted.sum()
        assert counts["pass the basic cut"] == len(judged["fits"]) == passes.sum() < fitted.sum()

    def test_chi2_is_that_of_eq_27(self, judged):
        rows, labels, fits = judged["rows"], judged["labels"], judged["fits"]
        place = np.searchsorted(rows.source_id, fits.source_id)
        label = np.column_stack([labels["teff"] / 1000.0, labels["feh"], labels["logg"]])[place]
        error = np.column_stack([labels["teff_err"] / 1000.0, labels["feh_err"], labels["logg_err"]])[place]
        expected = (rows.params[place, :3] - label) ** 2 / (rows.error[place, :3] ** 2 + error**2 + 0.01)
        np.testing.assert_allclose(fits.chi2, expected, rtol=1e-4, atol=1e-6)

    def test_the_same_seed_gives_the_same_classifiers(self, judged):
        few = replace(SETTINGS, epochs=2)
        one, same = (
            train_confidence(judged["fits"], judged["model"], settings=few, seed=1).classifiers for _ in range(2)
        )
        assert one.digest == same.digest

    def test_features_that_nobody_has_are_without_effect(self, judged, rng):
        classifiers = judged["trained"].classifiers
        features = judged["fits"].features[:20].copy()
        before = confidences(classifiers, features)
        features[:, STAR_FEATURES.index("asinh_g_snr")] = rng.normal(size=20)
        np.testing.assert_array_equal(confidences(classifiers, features), before)

    def test_calibration_error(self):
        probability = np.repeat([0.2, 0.8], 50)
        good = np.concatenate([np.arange(50) < 10, np.arange(50) < 40])
        rng = np.random.default_rng(0)
        order = rng.permutation(100)
        assert calibration_error(np.full(100, 0.5), good[order]) < 0.25
        assert calibration_error(1.0 - probability, good) == pytest.approx(0.6, abs=0.2)

    def test_too_few_of_a_class(self, judged):
        fits = judged["fits"]
        with pytest.raises(xk.InputError, match=r"field teff: 0 good and \d+ bad estimates among the training stars"):
            train_confidence(replace(fits, chi2=np.full_like(fits.chi2, 20.0)), judged["model"], settings=SETTINGS)
        with pytest.raises(xk.InputError, match="0 bad estimates among the training stars, at least 16"):
            train_confidence(replace(fits, chi2=np.full_like(fits.chi2, 1.0)), judged["model"], settings=SETTINGS)
        with pytest.raises(xk.InputError, match="0 good and 0 bad estimates"):
            train_confidence(replace(fits, chi2=np.full_like(fits.chi2, np.nan)), judged["model"], settings=SETTINGS)
        one = fits[np.arange(len(fits)) == 0]
        with pytest.raises(xk.InputError, match="estimates among the training stars, at least 16 of each are needed"):
            train_confidence(one, judged["model"], settings=SETTINGS)


class TestLabelledFits:
    def test_labels_that_match_nothing(self, judged):
        labels = judged["labels"] | {"source_id": judged["labels"]["source_id"] + (1 << 50)}
        with pytest.raises(xk.InputError, match=r"catalog.diagnostics.h5: no star of the catalogue has a label"):
            labelled_fits(judged["catalog"], read_labels(labels), judged["model"], judged["prior"])

    def test_all_flagged(self, judged, tmp_path):
        rows = replace(judged["rows"], chi2=np.full(STARS, 500.0))
        catalog = write_catalog(tmp_path / "poor.h5", rows, judged["model"], judged["prior"])
        with pytest.raises(xk.InputError, match="no star with a label passes the basic cut"):
            labelled_fits(catalog, read_labels(judged["labels"]), judged["model"], judged["prior"])

    def test_no_companion(self, judged, tmp_path):
        catalog = write_catalog(tmp_path / "alone.h5", judged["rows"], judged["model"], judged["prior"])
        (tmp_path / "alone.diagnostics.h5").unlink()
        with pytest.raises(xk.InputError, match=r"alone.h5: has no diagnostics companion"):
            labelled_fits(catalog, read_labels(judged["labels"]), judged["model"], judged["prior"])

    def test_another_model(self, judged, rng):
        with pytest.raises(xk.InputError, match=r"field model_digest: this model is \w{12}, it was made with \w{12}"):
            labelled_fits(judged["catalog"], read_labels(judged["labels"]), random_model(rng), judged["prior"])

    def test_labels_that_are_no_numbers_teach_nothing(self, judged):
        labels = {name: values.copy() for name, values in judged["labels"].items()}
        labels["feh"][:] = np.nan
        fits = labelled_fits(judged["catalog"], read_labels(labels), judged["model"], judged["prior"])
        assert np.isnan(fits.chi2[:, 1]).all()
        assert np.isfinite(fits.chi2[:, [0, 2]]).all()


class TestModelFile:
    def test_round_trip(self, rng, tmp_path):
        model, prior = random_model(rng), random_prior(rng)
        judging = replace(model, confidence=random_confidence(rng, model.wavelength))
        xk.save_model(tmp_path / "model.h5", judging, prior)
        again, _ = xk.load_model(tmp_path / "model.h5")
        assert again.confidence.features == judging.confidence.features
        assert again.confidence.digest == judging.confidence.digest
        assert (
            again.digest
            == xk.FluxModel.from_arrays(
                again.weights, again.biases, again.ext_curve, again.input_zp, again.input_scale, again.wavelength
            ).digest
        )  # which is that of the flux alone
        other = replace(judging.confidence, fill=judging.confidence.fill + 1)
        assert other.digest != judging.confidence.digest
        features = random_features(rng, 9, len(again.confidence.features))
        np.testing.assert_array_equal(
            confidences(again.confidence, features), confidences(judging.confidence, features)
        )

    def test_without_classifiers(self, rng, tmp_path):
        xk.save_model(tmp_path / "model.h5", random_model(rng), random_prior(rng))
        assert xk.load_model(tmp_path / "model.h5")[0].confidence is None

    def test_of_other_wavelengths(self, rng):
        model = random_model(rng)
        with pytest.raises(xk.InputError, match=r"field confidence/features: .*'asinh_residual_393nm' is the first"):
            replace(model, confidence=random_confidence(rng, model.wavelength + 1.0))
        with pytest.raises(xk.InputError, match="trained for 83 features that are not the 86"):
            replace(model, confidence=random_confidence(rng, model.wavelength[:-3]))

    @pytest.mark.parametrize(
        ("field", "damage", "message"),
        [
            ("centre", lambda values: values[:-1], r"shape \(85,\), expected \(86,\)"),
            ("scale", lambda values: 0.0 * values, "must be positive"),
            ("weights_1", lambda values: np.where(values > 9, values, np.nan), "not finite"),
            ("weights_2", lambda values: values[:2], r"shape \(2, 64, 64\), expected \(3, 64, any\)"),
            ("weights_3", lambda values: np.tile(values, 2), r"expected \(3, 64, 1\)"),
            ("biases_0", None, "missing"),
            ("weights_0", None, "missing"),
            ("features", None, "field confidence/features: missing"),
            ("features", lambda values: values[::-1], "first that differs"),
        ],
    )
    def test_what_is_broken_is_named(self, rng, tmp_path, field, damage, message):
        model, path = random_model(rng), tmp_path / "model.h5"
        xk.save_model(path, replace(model, confidence=random_confidence(rng, model.wavelength)), random_prior(rng))
        with h5py.File(path, "r+") as file:
            values = file[f"confidence/{field}"][()]
            kind = file[f"confidence/{field}"].dtype
            del file[f"confidence/{field}"]
            if damage is not None:
                file.create_dataset(f"confidence/{field}", data=damage(values), dtype=kind)
        with pytest.raises(xk.ModelFileError, match=message) as raised:
            xk.load_model(path)
        assert raised.value.file == str(path)
        assert "confidence" in raised.value.field


class TestCommand:
    @pytest.fixture
    def labels(self, judged, tmp_path) -> Path:
        from astropy.table import Table

        Table(judged["labels"]).write(tmp_path / "labels.fits")
        return tmp_path / "labels.fits"

    def arguments(self, judged, labels, output) -> list[str]:
        base = str(judged["folder"] / "base.h5")
        return ["confidence", "train", str(judged["catalog"]), str(labels), "--model", base, "-o", str(output)]

    def test_writes_model_report_and_figure(self, judged, labels, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("xpkern.train.relu_network.NetworkSettings.__init__", _few_epochs)
        output = tmp_path / "judging.h5"
        arguments = self.arguments(judged, labels, output)
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert "teff  held out" in printed
        model, _ = xk.load_model(output)
        assert model.confidence is not None
        assert model.digest == judged["model"].digest
        assert model.card.count("## Confidence") == 1
        report = json.loads((tmp_path / "judging.confidence.json").read_text())
        assert report["digest"] == model.confidence.digest
        assert list(report["classifiers"]) == ["teff", "feh", "logg"]
        held_out = [each["held_out"] for each in report["classifiers"].values()]
        fewest = min(min(each["good"], each["bad"]) for each in held_out)
        assert (f"only {fewest} held-out stars of a class: these figures are rough" in printed) == (fewest < 50)
        assert (tmp_path / "judging.confidence.png").read_bytes().startswith(b"\x89PNG")
        assert main(arguments) == 1
        assert "exists; --overwrite" in one_line(capsys)

    def test_the_model_card_has_one_section_of_it(self, judged):
        once = with_confidence(judged["model"], judged["trained"])
        assert once.card.startswith("# A model\n\n## Confidence\n")
        assert with_confidence(once, judged["trained"]).card == once.card
        assert "seed 4" in once.provenance["confidence"]

    @pytest.mark.parametrize(
        ("output", "message"), [("model.txt", "must end in .h5"), ("absent/model.h5", "its folder does not exist")]
    )
    def test_refuses_names_before_it_begins(self, judged, labels, tmp_path, capsys, output, message):
        assert main(self.arguments(judged, labels, tmp_path / output)) == 1
        assert message in one_line(capsys)
        companion = judged["folder"] / "catalog.diagnostics.h5"
        assert main([*self.arguments(judged, labels, companion), "--overwrite"]) == 1
        assert "is both input and output" in one_line(capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["labels.fits"]


def _few_epochs(self: NetworkSettings, **_: object) -> None:
    """Settings of the command, but small."""
    for name in NetworkSettings.__dataclass_fields__:
        object.__setattr__(self, name, getattr(SETTINGS, name))
    object.__setattr__(self, "epochs", 2)


def test_repr(rng):
    classifiers: Confidence = random_confidence(rng, np.array([500.0]))
    assert repr(classifiers).startswith("Confidence(teff, feh, logg: 21-64-64-64-1, digest ")
