"""The command line where its output cannot be, or must not: one line that says so, and nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from catalog_files import SUFFIXES
from catalog_files import read as read_table
from command_lines import ENGINE, STARS, SUN, catalog_arguments, one_line

import xpkern as xk
from xpkern.cli import catalog, main, spectra
from xpkern.grid import N_XP
from xpkern.model.model_file import default_model_path
from xpkern.observe.photometry import PhotometryCuts
from xpkern.observe.simulate import SurveyFiles

NOBODY = 65534


def spectra_arguments(survey: SurveyFiles) -> list[str]:
    """Of a command that writes in the same way as that for catalogues, without a fit."""
    return ["spectra", *catalog_arguments(survey.spectra, survey)[1:]]


class TestFormats:
    @pytest.mark.parametrize("suffix", [".parquet"])  # those of test_spectra.py do not fit; HDF5 is the expected one
    def test_the_same_catalogue_with_its_companion(self, bulk_files, expected_catalog, tmp_path, capsys, suffix):
        path = tmp_path / f"catalog{suffix}"
        assert main([*catalog_arguments(bulk_files.spectra, bulk_files), "-o", str(path)]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""  # quiet where standard error is no terminal
        assert f"{path}, {path.with_suffix('.diagnostics' + suffix)}" in printed.out
        table = read_table(path)
        assert table.colnames == list(expected_catalog)
        for name, values in expected_catalog.items():
            np.testing.assert_array_equal(np.asarray(table[name]), values, err_msg=name)
        companion = read_table(path.with_suffix(f".diagnostics{suffix}"))
        np.testing.assert_array_equal(companion["source_id"], expected_catalog["source_id"])
        assert sorted(each.name for each in tmp_path.iterdir()) == [f"catalog.diagnostics{suffix}", path.name]

    def test_counts_of_the_cuts_are_printed_and_kept(self, bulk_files, tmp_path, capsys):
        table = read_table(bulk_files.gaia_source.with_suffix(".csv"))
        infrared = table["source_id", "j_m", "j_msigcom", "ph_qual"]
        infrared["ph_qual"] = ["BAA"] * 3 + ["AAA"] * (len(infrared) - 3)
        infrared["norm_dg"] = np.where(np.arange(len(infrared)) == 5, -1.0, np.nan)
        infrared.write(tmp_path / "infrared.ecsv")
        good = int(np.isfinite(np.ma.filled(infrared["j_m"].astype(float), np.nan)).sum())
        more = ["--photometry", str(tmp_path / "infrared.ecsv"), "--photometry-cut", "twomass_extended=off"]
        output = tmp_path / "spectra.h5"
        assert main([*spectra_arguments(bulk_files), *more, "-o", str(output)]) == 0
        printed = capsys.readouterr().out
        removed = {line.split()[3]: line.split()[0] for line in printed.splitlines() if " removed, " in line}
        assert removed["twomass_quality"] == "3"
        assert removed["twomass_norm_dg"] == "1"
        assert f"\n  {len(infrared):>10,}  sources with a row in photometry table 1\n" in printed
        assert "\n              twomass_extended: off\n" in printed
        assert "unwise" not in printed  # there is none in that table
        with h5py.File(output) as file:
            assert file.attrs["photometry_cut_twomass_quality"] == "A"
            assert file.attrs["photometry_removed_twomass_quality"] == 3
            assert file.attrs["photometry_removed_twomass_norm_dg"] == 1
            assert file.attrs["photometry_cut_twomass_extended"] == "off"
            assert np.count_nonzero(np.isfinite(file["flux"][:, N_XP])) == good - 4

    def test_the_help_lists_the_cuts_there_are(self):
        listed = dict(word.split("=") for word in catalog.CUTS.split() if "=" in word)
        assert PhotometryCuts.parse(f"{name}={value}" for name, value in listed.items()) == PhotometryCuts()
        assert set(listed) == set(vars(PhotometryCuts()))

    def test_verbose_says_what_is_used(self, bulk_files, tmp_path, capsys):
        assert main([*spectra_arguments(bulk_files), "-v", "-o", str(tmp_path / "c.ecsv")]) == 0
        said = capsys.readouterr().err.splitlines()
        assert said[0] == f"xpkern: gaia_source: {STARS} rows of {bulk_files.gaia_source}"
        assert f"xpkern: engine {ENGINE}, " in said[2]
        assert said[-1].startswith(f"xpkern: written: {tmp_path}")


class TestExisting:
    @pytest.mark.parametrize("command", ["catalog", "spectra"])
    def test_is_kept_unless_it_may_be_replaced(self, bulk_files, tmp_path, capsys, command):
        output = tmp_path / "table.fits"
        output.write_bytes(b"precious")
        arguments = [*catalog_arguments(bulk_files.spectra, bulk_files), "-o", str(output)]
        arguments[0] = command
        assert main(arguments) == 1
        assert f"{output}: exists; --overwrite (overwrite=True) replaces it" in one_line(capsys)
        assert output.read_bytes() == b"precious"
        if command == "spectra":
            assert main([*arguments, "--overwrite"]) == 0
            assert len(read_table(output)) == STARS

    @pytest.mark.parametrize("companion", ["c.diagnostics.h5", "c.reasons.csv"])
    def test_so_is_its_companion(self, bulk_files, tmp_path, capsys, companion):
        (tmp_path / companion).write_bytes(b"precious")
        assert main([*catalog_arguments(bulk_files.spectra, bulk_files), "-o", str(tmp_path / "c.h5")]) == 1
        assert f"{tmp_path / companion}: exists" in one_line(capsys)
        assert [path.name for path in tmp_path.iterdir()] == [companion]

    @pytest.mark.parametrize("option", ["--source", "--photometry", "--model", "FILE"])
    @pytest.mark.parametrize("link", [False, True])
    def test_an_input_is_never_replaced(self, bulk_files, tmp_path, capsys, option, link):
        given = tmp_path / "input.h5"
        given.write_bytes(b"precious")
        output = tmp_path / "link.h5" if link else given
        if link:
            output.symlink_to(given)
        spectra = [str(given)] if option == "FILE" else [str(bulk_files.spectra), option, str(given)]
        assert main(["catalog", *spectra, "-o", str(output), "--overwrite", "--engine", ENGINE]) == 1
        assert f"{given}: is both input and output" in one_line(capsys)
        assert given.read_bytes() == b"precious"


class TestHelp:
    def test_the_example_of_spectra_fits_as_the_catalogue_does(
        self, bulk_files, expected_catalog, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        assert main([*spectra_arguments(bulk_files), "-o", "spectra.h5"]) == 0
        code = re.search(r'python -c "([^"]*)"', spectra.EPILOG)[1]
        printed: list[xk.Fit] = []
        exec(code, {"print": printed.append})
        (found,) = printed
        assert len(found) == 9
        teff = 1000.0 * found.params[:, 0]
        np.testing.assert_allclose(teff, expected_catalog["teff"][:9], rtol=1e-4)


class TestModel:
    @pytest.fixture
    def model(self, tmp_path) -> Path:
        xk.save_model(tmp_path / "model.h5", *xk.load_model())
        return tmp_path / "model.h5"

    @pytest.mark.parametrize(
        ("field", "index", "value", "message"),
        [
            ("flux/weights_1", (3, 4), np.nan, "field flux/weights"),
            ("flux/biases_0", 2, np.inf, "field flux/biases"),
            ("flux/wavelength", 5, 441.0, "field flux/wavelength: other wavelengths than those of the spectra"),
        ],
    )
    def test_numbers_that_cannot_be(self, bulk_files, model, tmp_path, capsys, field, index, value, message):
        with h5py.File(model, "a") as file:
            file[field][index] = value
        arguments = [*catalog_arguments(bulk_files.spectra, bulk_files), "--model", str(model)]
        assert main([*arguments, "-o", str(tmp_path / "catalog.h5")]) == 1
        assert f"{model}, {message}" in one_line(capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]

    def test_a_foreign_file(self, bulk_files, tmp_path, capsys):
        foreign = tmp_path / "foreign.h5"
        with h5py.File(foreign, "w") as file:
            file["teff"] = np.zeros(3)
        arguments = [*catalog_arguments(bulk_files.spectra, bulk_files), "--model", str(foreign)]
        assert main([*arguments, "-o", str(tmp_path / "catalog.h5")]) == 1
        assert f"{foreign}, field format_version: missing: this is no model file" in one_line(capsys)

    def test_a_folder(self, tmp_path, capsys):
        assert main(["predict", *SUN, "--model", str(tmp_path)]) == 1
        assert f"{tmp_path}: not a readable HDF5 file" in one_line(capsys)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, unlike pytest's."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, whom no permission stops."""
    os.seteuid(NOBODY)
    try:
        if not os.access(default_model_path(), os.R_OK, effective_ids=True):
            pytest.skip("other users cannot read this checkout")
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.usefixtures("expected_catalog")  # by then every module is imported
class TestPermissions:
    def arguments(self, folder: Path, bulk_files) -> list[str]:
        for path in (bulk_files.spectra, bulk_files.gaia_source):
            shutil.copy(path, folder)
            (folder / path.name).chmod(0o644)
        source = str(folder / bulk_files.gaia_source.name)
        return ["spectra", str(folder / bulk_files.spectra.name), "--source", source, "--engine", ENGINE]

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_folder_that_cannot_be_written(self, bulk_files, open_folder, capsys, suffix):
        arguments = self.arguments(open_folder, bulk_files)
        before = sorted(path.name for path in open_folder.iterdir())
        with as_nobody():
            assert main([*arguments, "-o", str(open_folder / f"c{suffix}")]) == 1
        message = one_line(capsys)
        assert message.startswith(f"xpkern: {open_folder}/.c{suffix}.")
        assert message.endswith("Permission denied\n")
        assert sorted(path.name for path in open_folder.iterdir()) == before

    @pytest.mark.parametrize("what", ["spectra", "source", "model"])
    def test_a_file_that_cannot_be_read(self, bulk_files, open_folder, capsys, what):
        arguments = self.arguments(open_folder, bulk_files)
        secret = {"spectra": arguments[1], "source": arguments[3], "model": str(open_folder / "model.h5")}[what]
        if what == "model":
            xk.save_model(secret, *xk.load_model())
            arguments += ["--model", secret]
        Path(secret).chmod(0o000)
        output = open_folder / "output"
        output.mkdir()
        output.chmod(0o777)
        with as_nobody():
            assert main([*arguments, "-o", str(output / "c.h5")]) == 1
        message = one_line(capsys)
        assert message.startswith(f"xpkern: {secret}: ")
        assert "Permission denied" in message
        assert list(output.iterdir()) == []


class TestFullDisk:
    @pytest.fixture
    def small_disk(self, tmp_path) -> Iterator[Path]:
        folder = tmp_path / "disk"
        folder.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("no file system can be mounted here")
        yield folder
        subprocess.run(["umount", str(folder)], check=True)

    @pytest.mark.parametrize("suffix", [".h5", ".fits", ".parquet"])
    def test_says_so_and_leaves_what_was_there(self, bulk_files, small_disk, capsys, suffix):
        (small_disk / f"catalog{suffix}").write_bytes(b"precious")
        arguments = [*spectra_arguments(bulk_files), "--overwrite"]
        assert main([*arguments, "-o", str(small_disk / f"catalog{suffix}")]) == 1
        message = one_line(capsys)
        assert message.startswith(f"xpkern: {small_disk}/.catalog.")
        assert message.endswith("No space left on device\n")
        assert [path.read_bytes() for path in small_disk.iterdir()] == [b"precious"]


class TestClosedOutput:
    def test_a_reader_that_goes_away_costs_no_file(self, bulk_files, tmp_path):
        output = tmp_path / "spectra.h5"
        words = [sys.executable, "-m", "xpkern", *spectra_arguments(bulk_files), "-o", str(output)]
        # the pipe has no reader any more when the summary is printed
        command = f"(sleep 0.1; {' '.join(words)}) | true; echo ${{PIPESTATUS[0]}} >&2"
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert result.stderr == "141\n"
        assert len(read_table(output)) == STARS

    @pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
    @pytest.mark.parametrize("command", ["spectra", "catalog"])
    def test_none_at_all(self, bulk_files, tmp_path, command, closed):
        output = tmp_path / "table.h5"
        words = [sys.executable, "-m", "xpkern", *spectra_arguments(bulk_files), "-o", str(output)]
        words[3] = command
        result = subprocess.run(["bash", "-c", f"{' '.join(words)} {closed}"], capture_output=True, text=True)
        assert result.returncode == 0
        assert result.stderr == ""
        assert len(read_table(output)) == STARS
