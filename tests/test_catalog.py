"""The catalogue: columns, flags, files that are complete or absent, and the same bytes however they were made."""

from __future__ import annotations

import csv
import errno
import os
import re
import struct
import time
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table

import xpkern as xk
from xpkern.catalog import hdf5_writer
from xpkern.catalog.flags import ALL_BITS, LN_PRIOR_PUBLISHED_OFFSET, QualityFlags, quality_flags
from xpkern.catalog.output import CatalogOutput
from xpkern.catalog.pending import PendingFile, commit_together
from xpkern.catalog.rows import BP_USED, RP_USED, star_rows
from xpkern.catalog.schema import DEFAULT, DIAGNOSTICS, LAYOUTS, ZGR23
from xpkern.grid import BANDS, N_FLUX, N_XP, PARAMETERS
from xpkern.status import Status

STARS = 20

#: ZGR23 Table 2, with the data types and shapes of the published files.
PUBLISHED = [
    ("gdr3_source_id", "int64", ()),
    ("ra", "float64", ()),
    ("dec", "float64", ()),
    ("stellar_params_est", "float32", (5,)),
    ("stellar_params_err", "float32", (5,)),
    ("chi2_opt", "float32", ()),
    ("ln_prior", "float32", ()),
    ("teff_confidence", "float32", ()),
    ("feh_confidence", "float32", ()),
    ("logg_confidence", "float32", ()),
    ("quality_flags", "uint8", ()),
    ("stellar_params_icov_triu", "float32", (15,)),
    ("stellar_params_cov_triu", "float32", (15,)),
]


@pytest.fixture(scope="module")
def stars(optimum) -> xk.Observations:
    """Stars with all that can happen to one: no parallax, no spectrum in BP, no data at all, an unreadable row."""
    flux = optimum["flux"][:STARS].copy()
    plx_error = optimum["plx_err"][:STARS].copy()
    flux[3, : N_XP // 2] = np.nan
    flux[5] = np.nan
    plx_error[7] = np.nan
    obs = xk.Observations.from_arrays(
        flux=flux,
        whitener=optimum["flux_sqrticov"][:STARS],
        plx=optimum["plx"][:STARS],
        plx_err=plx_error,
        source_id=np.arange(STARS) + 10**18,
    )
    obs.status[6] |= np.uint32(Status.BAD_ROW)
    obs.columns = {"ra": np.linspace(0.0, 350.0, STARS), "dec": np.linspace(-80.0, 80.0, STARS)}
    return obs


@pytest.fixture(scope="module")
def fitted(stars, optimum_model) -> xk.Fit:
    return xk.fit(stars, *optimum_model, engine="reference")


@pytest.fixture
def attributes() -> dict[str, object]:
    return {"layout": "default", "model_digest": "0" * 64}


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


class TestSchema:
    @pytest.mark.parametrize("columns", [DEFAULT, ZGR23, DIAGNOSTICS], ids=["default", "zgr23", "diagnostics"])
    def test_every_column_is_described(self, columns):
        assert len({column.name for column in columns}) == len(columns)
        for column in columns:
            assert check_ucd(column.ucd, check_controlled_vocabulary=True), column.name
            units.Unit(column.unit)
            assert len(column.description) > 10, column.name

    def test_published_layout_is_table_2(self):
        assert [(column.name, column.dtype, column.shape) for column in ZGR23] == PUBLISHED

    def test_unknown_layout(self, fitted):
        with pytest.raises(xk.InputError, match="'fancy' is none of default, zgr23"):
            fitted.to_table("fancy")


class TestDefaultLayout:
    def test_units_of_teff_are_kelvin_in_value_error_and_covariance(self, fitted):
        table = fitted.to_table()
        assert table["teff"].unit == units.K
        assert table["teff_error"].unit == units.K
        good = fitted.fitted
        to_kelvin = np.array([1000.0, 1.0, 1.0, 1.0, 1.0])
        names = ["teff", "feh", "logg", "ext", "parallax_est"]
        params = np.column_stack([table[name] for name in names])
        np.testing.assert_allclose(params[good], (fitted.params * to_kelvin)[good], rtol=1e-6)
        error = np.column_stack([table[f"{name}_error"] for name in names])
        correlation = np.tile(np.eye(5), (STARS, 1, 1))
        for i in range(5):
            for j in range(i + 1, 5):
                correlation[:, i, j] = correlation[:, j, i] = table[f"{names[i]}_{names[j]}_corr"]
        covariance = error[:, :, None] * correlation * error[:, None, :]
        expected = fitted.cov * to_kelvin[:, None] * to_kelvin
        scale = np.sqrt(np.einsum("nii,njj->nij", expected, expected))
        assert np.abs((covariance - expected) / scale)[good].max() < 1e-5

    @pytest.mark.filterwarnings("ignore:.*dex")  # no unit of the VO
    @pytest.mark.parametrize("layout", ["default", "zgr23"])
    def test_a_votable_holds_it(self, fitted, tmp_path, layout):
        for table in (fitted.to_table(layout), fitted.diagnostics):
            path = tmp_path / "table.vot"
            table.write(path, format="votable", overwrite=True)
            back = Table.read(path, format="votable")
            assert back.colnames == table.colnames
            for name in {"status", "quality_flags"} & set(back.colnames):
                np.testing.assert_array_equal(back[name], table[name])
            if "status" in table.colnames:
                assert table["status"].dtype == np.int64
                assert table["status"].description
                assert table["status"].meta["ucd"]
                np.testing.assert_array_equal(table["status"], fitted.status)

    def test_measured_columns(self, fitted, stars):
        table = fitted.to_table()
        np.testing.assert_array_equal(table["source_id"], stars.source_id)
        np.testing.assert_array_equal(table["ra"], stars.columns["ra"])
        assert np.isnan(table["phot_g_mean_mag"]).all()
        assert np.flatnonzero(np.isnan(table["parallax"])).tolist() == [7]
        assert np.flatnonzero(np.isnan(table["parallax_error"])).tolist() == [7]

    def test_bands_used_and_degrees_of_freedom(self, fitted, optimum):
        table = fitted.to_table()
        good = fitted.fitted
        has_sample = (np.abs(optimum["flux_sqrticov"][:STARS]).sum(axis=1) > 0) & good[:, None]
        for index in range(len(BANDS)):
            np.testing.assert_array_equal((table["bands_used"] & (1 << index)) > 0, has_sample[:, N_XP + index])
        np.testing.assert_array_equal((table["bands_used"] & RP_USED) > 0, good)
        assert np.flatnonzero(good & ((table["bands_used"] & BP_USED) == 0)).tolist() == [3]
        lost = np.zeros(STARS, int)
        lost[3] = N_XP // 2
        np.testing.assert_array_equal(table["chi2_dof"][good], (has_sample.sum(axis=1) - lost - 5)[good])

    def test_ln_prior_is_normalised_here_and_published_there(self, fitted, optimum_model):
        good = fitted.fitted
        expected = optimum_model[1].ln_density(fitted.params[good, :3])
        np.testing.assert_allclose(fitted.to_table()["ln_prior"][good], expected, atol=1e-5)
        published = fitted.to_table("zgr23")["ln_prior"][good]
        np.testing.assert_allclose(published, expected + LN_PRIOR_PUBLISHED_OFFSET, atol=1e-5)
        assert pytest.approx(2.757, abs=1e-3) == LN_PRIOR_PUBLISHED_OFFSET


class TestPublishedLayout:
    def test_values_and_triangles(self, fitted):
        table, good = fitted.to_table("zgr23"), fitted.fitted
        np.testing.assert_allclose(table["stellar_params_est"][good], fitted.params[good], rtol=1e-6)
        rows, columns = zip(*[(i, j) for i in range(5) for j in range(i, 5)], strict=True)
        for name, matrix in (("icov", fitted.fisher), ("cov", fitted.cov)):
            triangle = table[f"stellar_params_{name}_triu"][good]
            np.testing.assert_allclose(triangle, matrix[good][:, rows, columns], rtol=1e-6)
        variance = table["stellar_params_cov_triu"][good][:, [0, 5, 9, 12, 14]]
        np.testing.assert_allclose(table["stellar_params_err"][good] ** 2, variance, rtol=1e-6)


class TestUnfittedStars:
    @pytest.mark.parametrize("layout", list(LAYOUTS))
    def test_have_a_row_of_nan_and_every_flag(self, fitted, layout):
        table = fitted.to_table(layout)
        assert len(table) == STARS
        assert np.flatnonzero(~fitted.fitted).tolist() == [5, 6]
        for star in (5, 6):
            assert table["quality_flags"][star] == ALL_BITS == 63
            assert np.isnan(table["ln_prior"][star])
        for name in set(table.colnames) & {
            "teff",
            "teff_error",
            "loss",
            "stellar_params_est",
            "stellar_params_cov_triu",
        }:
            assert np.isnan(table[name][5:7]).all()
            assert np.isfinite(table[name][fitted.fitted]).all()

    def test_their_status_says_why(self, fitted):
        status = fitted.to_table()["status"]
        assert status[5] & Status.NO_DATA
        assert status[6] & Status.BAD_ROW
        assert fitted.to_table()["bands_used"][5:7].tolist() == [0, 0]


def flags_of(**changes: object) -> int:
    """Flags of one star that passes everything but for what is changed."""
    star: dict[str, object] = {
        "confidence": np.array([[0.9, 0.9, 0.9]]),
        "chi2": np.array([61.0]),
        "ln_prior": np.array([-3.0]),
        "ln_prior_threshold": -7.43,
        "parallax_deviation": np.array([-5.0]),
        "fitted": np.array([True]),
    }
    return int(quality_flags(**{**star, **changes})[0])  # type: ignore[arg-type]


class TestQualityFlags:
    def test_a_good_star_has_none(self):
        assert flags_of() == 0

    @pytest.mark.parametrize("index", range(3))
    @pytest.mark.parametrize("value", [0.4999, np.nan])
    def test_confidence(self, index, value):
        confidence = np.full((1, 3), 0.5)
        assert flags_of(confidence=confidence) == 0
        confidence[0, index] = value
        assert flags_of(confidence=confidence) == 1 << index

    @pytest.mark.parametrize(
        ("changes", "flag"),
        [
            ({"chi2": np.array([122.1])}, QualityFlags.POOR_FIT),
            ({"chi2": np.array([np.nan])}, QualityFlags.POOR_FIT),
            ({"ln_prior": np.array([-7.44])}, QualityFlags.UNLIKELY_TYPE),
            ({"ln_prior": np.array([np.nan])}, QualityFlags.UNLIKELY_TYPE),
            ({"parallax_deviation": np.array([10.05])}, QualityFlags.PARALLAX_DISAGREES),
            ({"parallax_deviation": np.array([-10.05])}, QualityFlags.PARALLAX_DISAGREES),
        ],
    )
    def test_each_cut(self, changes, flag):
        assert flags_of(**changes) == flag

    @pytest.mark.parametrize(
        "changes",
        [
            {"chi2": np.array([121.9])},
            {"ln_prior": np.array([-7.42])},
            {"parallax_deviation": np.array([9.95])},
            {"parallax_deviation": np.array([np.nan])},
        ],
    )
    def test_passes(self, changes):
        assert flags_of(**changes) == 0

    def test_no_fit_sets_bits_0_to_5_and_never_6_or_7(self):
        assert flags_of(fitted=np.array([False])) == 0b00111111

    def test_without_classifiers_every_star_is_unsure_but_may_be_reliable(self, fitted):
        flags = np.asarray(fitted.to_table()["quality_flags"])[fitted.fitted]
        assert (flags & 7 == 7).all()
        assert (flags < 8).any()


class TestFiles:
    @pytest.mark.parametrize("layout", list(LAYOUTS))
    def test_a_written_fit_reads_back(self, fitted, tmp_path, layout):
        fitted.write(tmp_path / "catalog.h5", layout=layout)
        table = fitted.to_table(layout)
        with h5py.File(tmp_path / "catalog.h5") as file:
            assert list(file) == table.colnames
            for column in LAYOUTS[layout]:
                dataset = file[column.name]
                assert dataset.dtype == column.dtype
                assert dataset.attrs["unit"] == column.unit
                assert dataset.attrs["ucd"] == column.ucd
                assert dataset.attrs["description"] == column.description
                np.testing.assert_array_equal(dataset[()], table[column.name])
            assert file.attrs["rows"] == STARS
            assert file.attrs["model_digest"] == fitted.model.digest
            assert file.attrs["prior_digest"] == fitted.prior.digest
            assert file.attrs["engine"] == "reference"
            assert file.attrs["loss_terms"] == "chi2 constraints prior jacobian_ext jacobian_plx"
        assert [path.name for path in tmp_path.iterdir()] == ["catalog.h5"]

    def test_nothing_carries_a_time(self, fitted, tmp_path):
        before = int(time.time())
        fitted.write(tmp_path / "catalog.h5")
        content = (tmp_path / "catalog.h5").read_bytes()
        # HDF5 stamps a group with the times of access, modification, change and birth, in seconds
        assert not any(struct.pack("<4I", *[now] * 4) in content for now in range(before, int(time.time()) + 1))
        with h5py.File(tmp_path / "catalog.h5") as file:
            assert not any(file[name].id.get_create_plist().get_obj_track_times() for name in file)

    @pytest.mark.parametrize("chunk_rows", [4, 7, 20, 4096])
    def test_bytes_do_not_depend_on_the_blocks(self, fitted, attributes, tmp_path, monkeypatch, rng, chunk_rows):
        monkeypatch.setattr(hdf5_writer.Hdf5Writer, "group_rows", chunk_rows)
        rows = star_rows(fitted)
        contents = []
        for attempt in range(3):
            cuts = np.sort(rng.integers(0, STARS + 1, attempt))
            path = tmp_path / f"catalog-{attempt}.h5"
            with CatalogOutput(path, "default", attributes) as output:
                for block in np.split(np.arange(STARS), cuts):
                    part = {
                        name: {key: column[block] for key, column in value.items()}
                        if name == "observed"
                        else value[block]
                        for name, value in ((each.name, getattr(rows, each.name)) for each in fields(rows))
                    }
                    output.append(replace(rows, **part))
                assert output.rows == STARS
                output.commit()
            contents.append((path.read_bytes(), (tmp_path / f"catalog-{attempt}.diagnostics.h5").read_bytes()))
        assert contents[0] == contents[1] == contents[2]
        np.testing.assert_array_equal(read(tmp_path / "catalog-2.h5")["teff"], fitted.to_table()["teff"])

    def test_a_file_that_exists_is_kept_unless_it_may_be_replaced(self, fitted, tmp_path):
        fitted.write(tmp_path / "c.parquet", diagnostics=True)
        before = (tmp_path / "c.parquet").read_bytes()
        with pytest.raises(xk.InputError, match=r"c\.parquet: exists"):
            fitted.write(tmp_path / "c.parquet")
        fitted.write(tmp_path / "c.parquet", overwrite=True)
        assert (tmp_path / "c.parquet").read_bytes() == before
        # what stood beside it belonged to the catalogue that was replaced
        assert [path.name for path in tmp_path.iterdir()] == ["c.parquet"]

    def test_no_stars_at_all(self, fitted, attributes, tmp_path):
        with CatalogOutput(tmp_path / "catalog.h5", "zgr23", attributes) as output:
            output.commit()
        columns = read(tmp_path / "catalog.h5")
        assert list(columns) == [name for name, _, _ in PUBLISHED]
        assert columns["stellar_params_est"].shape == (0, 5)

    def test_companion_holds_what_later_stages_need(self, fitted, attributes, tmp_path):
        with CatalogOutput(tmp_path / "catalog.h5", "default", attributes) as output:
            output.append(star_rows(fitted))
            output.commit()
        with h5py.File(tmp_path / "catalog.diagnostics.h5") as file:
            assert file["residual"].dtype == np.float16
            assert file["residual"].shape == (STARS, N_FLUX)
            np.testing.assert_array_equal(file.attrs["wavelength"], fitted.model.wavelength)
            good = fitted.fitted
            np.testing.assert_allclose(file["residual"][()][good], fitted.residual[good], rtol=1e-3, atol=1e-4)
            assert np.isnan(file["residual"][5]).all()
            np.testing.assert_allclose(file["loss"][()][good], fitted.loss[good], rtol=1e-6)
            np.testing.assert_array_equal(file["status"], fitted.status)
            deviation = (fitted.params[0, PARAMETERS.index("plx")] - fitted.observations.plx[0]) / (
                fitted.observations.plx_err[0]
            )
            assert file["parallax_deviation"][0] == pytest.approx(deviation, rel=1e-5)
            assert np.isnan(file["parallax_deviation"][7])

    def test_reasons_have_a_file_only_where_there_are_any(self, fitted, attributes, tmp_path):
        for reasons in ([(12, 3, "bp_coefficients", "a.csv: 54 numbers, expected 55")], []):
            with CatalogOutput(tmp_path / "catalog.h5", "default", attributes) as output:
                output.append(star_rows(fitted))
                output.append_reasons(reasons)
                files = output.commit()
            assert ("reasons" in files) == bool(reasons)
            assert (tmp_path / "catalog.reasons.csv").exists() == bool(reasons)
            if reasons:
                with open(files["reasons"], newline="") as stream:
                    assert list(csv.reader(stream)) == [
                        ["source_id", "row", "field", "reason"],
                        ["12", "3", "bp_coefficients", "a.csv: 54 numbers, expected 55"],
                    ]

    def test_without_a_commit_the_folder_is_left_as_it_was(self, fitted, attributes, tmp_path):
        (tmp_path / "catalog.h5").write_bytes(b"of an earlier run")
        with CatalogOutput(tmp_path / "catalog.h5", "default", attributes) as output:
            output.append(star_rows(fitted))
            output.append_reasons([(1, 1, "", "unreadable")])
            assert len(list(tmp_path.iterdir())) == 4  # and then something goes wrong before the commit
        assert [path.name for path in tmp_path.iterdir()] == ["catalog.h5"]
        assert (tmp_path / "catalog.h5").read_bytes() == b"of an earlier run"

    @pytest.mark.parametrize("before", ["nothing", "others", "one"])
    @pytest.mark.parametrize("call", range(5))
    def test_an_interruption_between_the_names_changes_nothing(self, tmp_path, monkeypatch, before, call):
        """Whichever of the renames it comes in: what stood there stays, and nothing new is half there."""
        names = [tmp_path / "a", tmp_path / "b"]
        for name in {"nothing": [], "others": names, "one": names[1:]}[before]:
            name.write_text("old")
        pending = [PendingFile(name) for name in names]
        for file in pending:
            file.partial.write_text("new")
        calls = iter(range(100))
        rename = os.replace

        def interrupted(source, target):
            if next(calls) == call:
                raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(os, "replace", interrupted)
        expected = {name: name.read_text() for name in names if name.exists()}
        try:
            commit_together(list(zip(pending, names, strict=True)))
        except KeyboardInterrupt:
            pass
        else:
            expected = dict.fromkeys(names, "new")
        for file in pending:
            file.discard()
        assert {path: path.read_text() for path in tmp_path.iterdir()} == expected

    def test_nothing_is_visible_before_the_commit(self, fitted, attributes, tmp_path):
        with CatalogOutput(tmp_path / "catalog.h5", "default", attributes) as output:
            output.append(star_rows(fitted))
            assert all(path.name.startswith(".") for path in tmp_path.iterdir())
            output.commit()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog.diagnostics.h5", "catalog.h5"]

    @pytest.mark.parametrize("name", ["catalog.txt", "catalog", "absent/catalog.h5", ""])
    def test_names_that_cannot_be(self, fitted, tmp_path, name):
        with pytest.raises(xk.InputError, match=r"must end in .h5|folder does not exist"):
            fitted.write(tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    def test_interrupted_while_files_get_their_names(self, fitted, attributes, tmp_path, monkeypatch):
        real_replace = os.replace

        def interrupted(source: Path, target: Path) -> None:
            if Path(target).name == "catalog.h5":
                raise KeyboardInterrupt
            real_replace(source, target)

        monkeypatch.setattr(os, "replace", interrupted)
        with CatalogOutput(tmp_path / "catalog.h5", "default", attributes) as output:
            output.append(star_rows(fitted))
            with pytest.raises(KeyboardInterrupt):
                output.commit()
        assert list(tmp_path.iterdir()) == []


def test_a_pending_file_replaces_another_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def fail_midway() -> None:
        with PendingFile(path) as partial:
            partial.write_text("half")
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        fail_midway()
    assert path.read_text() == "before"
    with PendingFile(path) as partial:
        partial.write_text("whole")
        assert path.read_text() == "before"
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
class TestFullDisk:
    """The system names no file where a write to an open one fails."""

    def test_of_a_pending_file(self, tmp_path):
        def write() -> None:
            with PendingFile(tmp_path / "a") as partial:
                partial.symlink_to("/dev/full")
                partial.write_text("more than there is room for")

        with pytest.raises(OSError, match=rf"No space left on device: .*/\.a\.{os.getpid()}\.partial"):
            write()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("reasons", [1, 10_000])
    def test_of_reasons(self, attributes, tmp_path, reasons):
        """At once, or when what waits in memory is written."""

        def write() -> None:
            with CatalogOutput(tmp_path / "catalog.h5", "default", attributes) as output:
                (tmp_path / f".catalog.reasons.csv.{os.getpid()}.partial").symlink_to("/dev/full")
                output.append_reasons([(4711, 1, "bp_coefficients", "not a number")] * reasons)
                output.commit()

        with pytest.raises(OSError, match=r"No space left on device: .*/\.catalog\.reasons\.csv"):
            write()
        assert list(tmp_path.iterdir()) == []

    def test_of_errors_that_name_a_file_or_are_others(self, tmp_path):
        for error in (OSError(errno.ENOSPC, "full", "other"), OSError(errno.EIO, "lost"), OSError("of a library")):
            said = str(error)
            with pytest.raises(OSError, match=re.escape(said)) as caught, PendingFile(tmp_path / "a"):
                raise error
            assert str(caught.value) == said
