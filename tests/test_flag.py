"""A catalogue judged anew: the same as at fit time, in every format, whole or not at all; cuts and derived columns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table
from catalog_files import SUFFIXES, part_of
from catalog_files import read as read_table
from command_lines import catalog_arguments, one_line, read
from judged_stars import labelled_rows, random_confidence, write_catalog
from mock_stars import random_model, random_prior

import xpkern as xk
from xpkern.catalog import flagging
from xpkern.catalog.cuts import CUTS, CutCounts
from xpkern.catalog.derived import DERIVED, DerivedRows, derived_rows
from xpkern.catalog.schema import LAYOUTS
from xpkern.cli import main
from xpkern.observe.population import synthetic_magnitude
from xpkern.status import Status

STARS = 60


@pytest.fixture(scope="module")
def judging() -> tuple[xk.FluxModel, xk.TypePrior]:
    """A model with classifiers, and its prior."""
    rng = np.random.default_rng(7)
    model = random_model(rng)
    return replace(model, confidence=random_confidence(rng, model.wavelength)), random_prior(rng)


@pytest.fixture(scope="module")
def rows(judging):
    return labelled_rows(np.random.default_rng(8), STARS, *judging)


def columns_of(path: Path) -> dict[str, np.ndarray]:
    table = read_table(path)
    return {name: np.asarray(table[name]) for name in table.colnames}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    model, prior = xk.load_model()
    # the fits are of the 66 samples' real numbers: networks that do not saturate on these
    classifiers = random_confidence(np.random.default_rng(3), model.wavelength, (8,))
    path = tmp_path_factory.mktemp("model") / "judging.h5"
    xk.save_model(path, replace(model, confidence=classifiers), prior)
    return path


def assert_same_catalogs(one: Path, other: Path) -> None:
    """To the bit, with companions and what they say of themselves; confidences are neither missing nor certain."""
    diagnostics = [path.with_name(f"{path.stem}.diagnostics{path.suffix}") for path in (one, other)]
    for path, beside in ((one, other), diagnostics):
        expected, found = columns_of(path), columns_of(beside)
        assert list(found) == list(expected)
        for column, values in expected.items():
            np.testing.assert_array_equal(found[column], values, err_msg=column)
        metas = [read_table(file).meta for file in (path, beside)]
        assert metas[0].keys() == metas[1].keys()
        for name, value in metas[0].items():
            np.testing.assert_array_equal(metas[1][name], value, err_msg=name)
    confidence = columns_of(one)["teff_confidence"]
    assert (np.isfinite(confidence) & (confidence > 0) & (confidence < 1)).any()


class TestAsAtFitTime:
    """A fit with classifiers, and one without that is judged with them afterwards."""

    def test_on_the_command_line(self, bulk_files, model_file, tmp_path):
        arguments = [*catalog_arguments(bulk_files.spectra, bulk_files), "--layout", "zgr23"]
        fitted, flagged = tmp_path / "fitted.fits", tmp_path / "flagged.fits"
        assert main([*arguments, "--model", str(model_file), "-o", str(fitted)]) == 0
        assert main([*arguments, "-o", str(flagged)]) == 0
        before = columns_of(flagged)
        assert np.isnan(before["teff_confidence"]).all()
        assert main(["flag", str(flagged), "--model", str(model_file)]) == 0
        assert_same_catalogs(fitted, flagged)

    def test_a_fit_in_memory(self, bulk_files, model_file, tmp_path):
        model, prior = xk.load_model(model_file)
        fit = xk.fit(xk.read_xp(bulk_files.spectra, gaia_source=bulk_files.gaia_source), model, prior)
        table = fit.to_table()
        assert np.isfinite(np.asarray(table["feh_confidence"])[fit.fitted]).all()
        unsure = np.asarray(table["quality_flags"]) & int(xk.QualityFlags.FEH_UNSURE) != 0
        np.testing.assert_array_equal(unsure, ~(np.asarray(table["feh_confidence"]) >= 0.5))
        assert table.meta["confidence_digest"] == model.confidence.digest
        fitted, flagged = tmp_path / "fitted.h5", tmp_path / "flagged.h5"
        fit.write(fitted, diagnostics=True)
        replace(fit, model=replace(model, confidence=None)).write(flagged, diagnostics=True)
        xk.flag_catalog(flagged, model=model, prior=prior)
        assert_same_catalogs(fitted, flagged)
        near = fit.fitted & (fit.second_gap < 10.0)
        for status in (fit.status, np.asarray(table["status"])):
            np.testing.assert_array_equal((status & np.uint32(Status.SECOND_MINIMUM)) != 0, near)
        # a first pass may have seen what the numbers of the second do not tell
        seen = replace(fit, status=fit.status | np.uint32(Status.EXTRAPOLATED)).to_table()["status"]
        assert (np.asarray(seen) & np.uint32(Status.EXTRAPOLATED)).all()


class TestFlagCatalog:
    @pytest.mark.parametrize(
        ("suffix", "layout"), [*((suffix, "default") for suffix in SUFFIXES), (".h5", "zgr23"), (".parquet", "zgr23")]
    )
    def test_every_format_and_layout(self, judging, rows, tmp_path, monkeypatch, suffix, layout):
        monkeypatch.setattr(flagging, "BLOCK_ROWS", 25)
        model, prior = judging
        path = write_catalog(tmp_path / f"catalog{suffix}", rows, model, prior, layout)
        before = columns_of(path)
        told: list[int] = []
        summary = xk.flag_catalog(path, model=model, prior=prior, on_progress=told.append)
        assert (summary.rows, sum(told)) == (STARS, STARS)
        assert summary.files["catalog"] == path
        after = columns_of(path)
        assert list(after) == list(before)
        new = {"teff_confidence", "feh_confidence", "logg_confidence", "quality_flags", "status"}
        for name in before.keys() - new:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
        fitted = (rows.status & np.uint32(Status.NO_DATA)) == 0
        np.testing.assert_array_equal(np.isfinite(after["logg_confidence"]), fitted)
        assert (after["quality_flags"][~fitted] == 63).all()
        assert summary.changed == np.count_nonzero(before["quality_flags"] != after["quality_flags"]) > 0
        companion = columns_of(path.with_name(f"catalog.diagnostics{suffix}"))
        near = fitted & (rows.second_gap < 10.0)
        np.testing.assert_array_equal((companion["status"] & Status.SECOND_MINIMUM) != 0, near)
        assert near.any()
        assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
            [f"catalog{suffix}", f"catalog.diagnostics{suffix}"]
        )

    def test_into_another_format_with_derived_columns(self, judging, rows, tmp_path):
        model, prior = judging
        path = write_catalog(tmp_path / "catalog.h5", rows, model, prior)
        before = path.read_bytes()
        xk.flag_catalog(path, tmp_path / "new.parquet", model=model, prior=prior, derived=True)
        assert path.read_bytes() == before
        found = columns_of(tmp_path / "new.parquet")
        assert list(found)[-len(DERIVED) :] == [column.name for column in DERIVED]
        expected = xk.derived_columns(xk.read_catalog(path), model)
        for column in DERIVED:
            np.testing.assert_array_equal(found[column.name], np.asarray(expected[column.name]), err_msg=column.name)
        with pytest.raises(xk.InputError, match=r"new.parquet: exists"):
            xk.flag_catalog(path, tmp_path / "new.parquet", model=model, prior=prior)
        # flagged once more, it keeps them
        xk.flag_catalog(tmp_path / "new.parquet", tmp_path / "again.fits", model=model, prior=prior)
        again = columns_of(tmp_path / "again.fits")
        np.testing.assert_array_equal(again["m_g"], found["m_g"])

    def test_layouts_derive_the_same(self, judging, rows, tmp_path):
        model, prior = judging
        found = {}
        for layout in LAYOUTS:
            path = write_catalog(tmp_path / f"{layout}.h5", rows, model, prior, layout)
            xk.flag_catalog(path, model=model, prior=prior, derived=True)
            found[layout] = read(path)
        for column in DERIVED:
            np.testing.assert_allclose(
                found["zgr23"][column.name], found["default"][column.name], rtol=2e-4, atol=2e-5, err_msg=column.name
            )

    def test_no_rows(self, judging, rows, tmp_path):
        model, prior = judging
        path = write_catalog(tmp_path / "catalog.h5", part_of(rows, slice(0)), model, prior)
        summary = xk.flag_catalog(path, model=model, prior=prior, derived=True)
        assert summary.rows == 0
        assert summary.cuts.as_dict()["basic cut"] == {"stars": 0, "share": None}

    def test_a_model_without_classifiers(self, judging, rows, tmp_path):
        model, prior = judging
        path = write_catalog(tmp_path / "catalog.h5", rows, model, prior)
        xk.flag_catalog(path, model=model, prior=prior)
        xk.flag_catalog(path, model=replace(model, confidence=None), prior=prior)
        after = read(path)
        assert np.isnan(after["teff_confidence"]).all()
        assert (after["quality_flags"] & 7 == 7).all()

    def test_refusals_leave_everything_as_it_was(self, judging, rows, tmp_path, rng):
        model, prior = judging
        path = write_catalog(tmp_path / "catalog.h5", rows, model, prior)
        companion = tmp_path / "catalog.diagnostics.h5"

        def refused(match: str, **changes: object) -> None:
            files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
            with pytest.raises(xk.InputError, match=match):
                xk.flag_catalog(path, **{"model": model, "prior": prior} | changes)
            assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files

        refused("this model is", model=random_model(rng))
        refused("this prior is", prior=random_prior(rng))
        refused("must end in .h5", output=tmp_path / "catalog.txt")
        with h5py.File(path, "r+") as file:
            file["mine"] = np.zeros(STARS)
        refused("field mine: a column of its own")
        with h5py.File(path, "r+") as file:
            del file["mine"], file["logg_error"]
        refused("field logg_error: missing")
        write_catalog(path, rows, model, prior)
        with h5py.File(companion, "r+") as file:
            file["source_id"][3] += 1
        refused("its rows are not those of catalog.h5, from row 1")
        with h5py.File(companion, "r+") as file:
            del file["residual"]
        refused(r"catalog.diagnostics.h5, field residual: there is no such column")
        companion.unlink()
        refused("has no diagnostics companion")

    def test_an_interruption_leaves_everything_as_it_was(self, judging, rows, tmp_path, monkeypatch):
        model, prior = judging
        path = write_catalog(tmp_path / "catalog.h5", rows, model, prior)
        files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

        def interrupted(count: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            xk.flag_catalog(path, model=model, prior=prior, on_progress=interrupted)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


class TestCuts:
    def test_counts(self, rng):
        flags = rng.integers(0, 64, 500, dtype=np.uint8)
        counts = CutCounts.none()
        counts.add(flags[:100])
        counts.add(flags[100:])
        stars = counts.stars
        assert list(stars) == list(CUTS)
        assert stars["all stars"] == 500
        assert stars["basic cut"] == (flags < 8).sum()
        assert stars["basic cut + confident in feh"] == ((flags < 8) & (flags & 2 == 0)).sum()
        assert stars["basic cut + confident in teff, feh, logg"] == (flags == 0).sum()
        assert counts.lines()[1].split()[-2] == f"{100 * stars['basic cut'] / 500:.1f}"

    def test_command(self, judging, rows, tmp_path, capsys):
        model, prior = judging
        xk.save_model(tmp_path / "model.h5", model, prior)
        loaded, prior = xk.load_model(tmp_path / "model.h5")
        path = write_catalog(tmp_path / "catalog.h5", rows, loaded, prior)
        counts = tmp_path / "cuts.json"
        assert main(["flag", str(path), "--model", str(tmp_path / "model.h5"), "--json", str(counts)]) == 0
        printed = capsys.readouterr().out
        assert f"{STARS} stars, flags of " in printed
        written = json.loads(counts.read_text())
        assert written["all stars"] == {"stars": STARS, "share": 1.0}
        assert written["basic cut"]["stars"] == (read(path)["quality_flags"] < 8).sum()
        before = path.read_bytes()
        assert main(["flag", str(path), "--counts-only"]) == 0
        assert capsys.readouterr().out.splitlines() == printed.splitlines()[1:-1]
        assert path.read_bytes() == before
        assert main(["flag", str(path), "--counts-only", "--json", str(counts)]) == 1
        assert "exists" in one_line(capsys)
        assert main(["flag", str(path), "--counts-only", "--derived"]) == 1
        assert "--derived is for what --counts-only does not do" in one_line(capsys)
        assert xk.count_cuts([path, path]).stars["all stars"] == 2 * STARS
        xk.save_model(tmp_path / "bare.h5", replace(loaded, confidence=None), prior)
        assert main(["flag", str(path), "--model", str(tmp_path / "bare.h5")]) == 0
        assert "`xpkern confidence train CATALOG LABELS -o model.h5` makes them" in capsys.readouterr().out


class TestDerived:
    def test_every_column_is_described(self):
        for column in DERIVED:
            assert check_ucd(column.ucd, check_controlled_vocabulary=True), column.name
            assert len(column.description) > 10

    @pytest.fixture
    def stars(self, rng, judging) -> DerivedRows:
        model, prior = judging
        n = 40
        root = rng.normal(size=(n, 5, 5)) * np.array([0.02, 0.03, 0.03, 0.01, 0.005])[:, None]
        params = np.column_stack([prior.sample(n, rng), rng.uniform(0.05, 1.0, n), rng.uniform(0.5, 3.0, n)])
        return DerivedRows(model, params, root @ root.swapaxes(1, 2), rng.uniform(8.0, 17.0, n))

    def test_errors_are_those_of_draws(self, stars, rng):
        """Errors to first order against the spread of the same quantities over draws of the parameters."""
        draws = 4000
        for star in range(2):
            scale = 0.05  # small enough for the first order to be all
            drawn = rng.multivariate_normal(stars.params[star], scale**2 * stars.covariance[star], draws)
            many = DerivedRows(
                stars.model, drawn, np.broadcast_to(np.eye(5), (draws, 5, 5)), np.full(draws, stars.g[star])
            )
            errors = {column.name: column.compute(stars)[star] for column in DERIVED}
            for name, values in (("a_g", many.a_g[0]), ("m_g", many.m_g[0]), ("a_v", many.a_at(550.0))):
                assert values.std() / scale == pytest.approx(errors[f"{name}_error"], rel=0.06), name

    def test_extinctions(self, stars):
        wavelength, model = stars.model.wavelength[:61], stars.model
        ln_flux = model.ln_flux(stars.params)[:, :61]
        clear = ln_flux + stars.params[:, 3, None] * model.ext_curve[:61]
        expected = synthetic_magnitude("g", wavelength, np.exp(ln_flux)) - synthetic_magnitude(
            "g", wavelength, np.exp(clear)
        )
        np.testing.assert_allclose(stars.a_g[0], expected, rtol=1e-9)
        near = np.argmin(np.abs(wavelength - 552.0))
        np.testing.assert_allclose(stars.a_at(552.0), 1.0857362 * stars.params[:, 3] * model.ext_curve[near], rtol=1e-6)
        distance = 1.0 / stars.params[:, 4]
        expected = stars.g - 5.0 * np.log10(distance * 1000.0) + 5.0 - stars.a_g[0]
        np.testing.assert_allclose(stars.m_g[0], expected, rtol=1e-9)

    def test_distances_are_percentiles(self, judging, rng):
        plx, error = np.array([1.0, 0.1, -0.1, 1.0, np.nan]), np.array([1e-3, 0.1, 0.1, 1.0, 1.0])
        params = np.column_stack([np.ones((5, 4)), plx])
        covariance = np.zeros((5, 5, 5))
        covariance[:, 4, 4] = error**2
        found = DerivedRows(judging[0], params, covariance, np.full(5, np.nan)).distance
        for star in range(4):
            drawn = plx[star] + error[star] * rng.standard_normal(400_000)
            expected = np.quantile(1.0 / drawn[drawn > 0], [0.158655, 0.5, 0.841345])
            np.testing.assert_allclose(found[star], expected, rtol=0.03)
        np.testing.assert_allclose(found[0], [0.999, 1.0, 1.001], rtol=1e-4)
        assert np.isnan(found[4]).all()

    def test_unfitted_stars_and_unknown_magnitudes(self, judging, rows, tmp_path):
        model, prior = judging
        table = xk.read_catalog(write_catalog(tmp_path / "catalog.h5", rows, model, prior))
        table["teff"][0] = np.nan
        del table["phot_g_mean_mag"]
        derived = xk.derived_columns(table, model)
        assert np.isnan(derived["a_g"][0])
        assert np.isnan(derived["m_g"]).all()
        assert np.isnan(derived["m_g_error"]).all()
        assert np.isfinite(derived["a_g_error"][1:]).all()
        assert str(derived["distance"].unit) == "kpc"

    def test_a_catalogue_without_covariances(self, judging):
        table = Table({"source_id": [1], "teff": [5000.0], "feh": [0.0], "logg": [4.0], "ext": [0.1]})
        with pytest.raises(xk.InputError, match="field parallax_est: missing: without errors"):
            xk.derived_columns(table, judging[0])
        published = {"stellar_params_est": np.ones((2, 5)), "stellar_params_err": np.ones((2, 5))}
        with pytest.raises(xk.InputError, match="field stellar_params_cov_triu: missing"):
            derived_rows(published, judging[0])
