"""The command line: what it does, and what a user sees when input is bad or the run is interrupted."""

from __future__ import annotations

import csv
import gzip
import io
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from astropy.table import Table

import xpkern as xk
from xpkern.catalog.flags import ALL_BITS
from xpkern.cli import command_line, doctor, main
from xpkern.engine.cuda import device
from xpkern.engine.cuda.device import DeviceFacts
from xpkern.grid import N_XP, WAVELENGTH
from xpkern.observe.simulate import SurveyFiles, simulate
from xpkern.status import Status

STARS = 12
ENGINE = "cpu" if xk.available_engines()["cpu"] is None else "reference"
SUN = ["--teff", "5.77", "--feh", "0", "--logg", "4.44", "--ext", "0.1", "--plx", "10"]


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> SurveyFiles:
    return simulate(*xk.load_model(), STARS, seed=5).write(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def lines(survey) -> list[bytes]:
    """Lines of the bulk file, its header first."""
    return gzip.decompress(survey.spectra.read_bytes()).splitlines(keepends=True)


@pytest.fixture(scope="module")
def expected(survey, tmp_path_factory) -> dict[str, np.ndarray]:
    """The catalogue of the undamaged survey."""
    output = tmp_path_factory.mktemp("expected") / "catalog.h5"
    assert main([*catalog_arguments(survey.spectra, survey), "-o", str(output)]) == 0
    return read(output)


def catalog_arguments(spectra: Path, survey: SurveyFiles) -> list[str]:
    return ["catalog", str(spectra), "--source", str(survey.gaia_source), "--engine", ENGINE]


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def first_row(lines: list[bytes]) -> int:
    """Index of the line of the first star: after the comments and the names."""
    return next(index for index, line in enumerate(lines) if not line.startswith(b"#")) + 1


def one_line(capsys) -> str:
    """The only line on standard error."""
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    assert text.startswith("xpkern: ")
    return text


class TestCatalog:
    def test_a_row_for_every_source_and_a_summary(self, survey, tmp_path, capsys):
        assert main([*catalog_arguments(survey.spectra, survey), "-o", str(tmp_path / "catalog.h5")]) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith(f"{STARS} stars, {STARS} fitted (100.0 %) in ")
        assert printed.err == ""  # no progress bar where nobody looks
        catalog = read(tmp_path / "catalog.h5")
        truth = Table.read(survey.truth)
        np.testing.assert_array_equal(catalog["source_id"], truth["source_id"])
        assert np.isfinite(catalog["teff"]).all()
        assert (catalog["bands_used"] >= 96).all()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog.diagnostics.h5", "catalog.h5"]
        with h5py.File(tmp_path / "catalog.h5") as file:
            assert file.attrs["calibration_release"] == "Gaia DR3"
            assert file.attrs["sigma_convention"] == "archive"
            assert file.attrs["noise_digest"] == xk.load_model()[0].noise.digest

    def test_bytes_depend_on_neither_threads_nor_blocks_nor_place_nor_time(self, survey, tmp_path):
        contents = []
        for threads, rows in (("1", None), ("2", None), ("1", 3), ("2", 3), ("5", 1)):
            folder = tmp_path / f"with {threads} {rows}"
            folder.mkdir()
            output = folder / f"catalog{threads}.h5"
            if rows is None:
                assert main([*catalog_arguments(survey.spectra, survey), "-o", str(output), "--threads", threads]) == 0
            else:
                xk.make_catalog(
                    survey.spectra,
                    output,
                    gaia_source=survey.gaia_source,
                    engine=ENGINE,
                    threads=int(threads),
                    rows=rows,
                )
            contents.append((output.read_bytes(), output.with_suffix(".diagnostics.h5").read_bytes()))
        assert all(content == contents[0] for content in contents)
        assert str(tmp_path).encode() not in contents[0][0] + contents[0][1]

    def test_blocks_and_files_do_not_matter(self, survey, lines, expected, tmp_path):
        start = first_row(lines)
        parts = [tmp_path / "a.csv", tmp_path / "b.csv"]
        parts[0].write_bytes(b"".join(lines[: start + 5]))
        parts[1].write_bytes(b"".join([*lines[:start], *lines[start + 5 :]]))
        seen: list[int] = []
        summary = xk.make_catalog(
            parts,
            tmp_path / "catalog.h5",
            gaia_source=survey.gaia_source,
            engine=ENGINE,
            rows=3,
            on_progress=seen.append,
        )
        assert (summary.rows, summary.fitted, seen) == (STARS, STARS, [3, 2, 3, 3, 1])
        for name, values in read(tmp_path / "catalog.h5").items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)

    def test_published_layout_and_convention(self, survey, expected, tmp_path):
        arguments = catalog_arguments(survey.spectra, survey)
        output = tmp_path / "catalog.h5"
        assert main([*arguments, "-o", str(output), "--layout", "zgr23", "--sigma", "zgr23"]) == 0
        with h5py.File(output) as file:
            assert file.attrs["sigma_convention"] == "zgr23"
            assert list(file)[:4] == ["gdr3_source_id", "ra", "dec", "stellar_params_est"]
            # another reading of the errors weighs the same spectra differently
            assert not np.array_equal(file["chi2_opt"], expected["chi2"])

    def test_another_model(self, survey, tmp_path):
        model, prior = xk.load_model()
        other = xk.FluxModel.from_arrays(
            model.weights, model.biases, 1.01 * model.ext_curve, model.input_zp, model.input_scale, model.wavelength
        )
        xk.save_model(tmp_path / "other.h5", other, prior)
        arguments = [*catalog_arguments(survey.spectra, survey), "--model", str(tmp_path / "other.h5")]
        assert main([*arguments, "-o", str(tmp_path / "catalog.h5")]) == 0
        with h5py.File(tmp_path / "catalog.h5") as file:
            assert file.attrs["model_digest"] == xk.load_model(tmp_path / "other.h5")[0].digest != model.digest


class TestBadInput:
    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_an_error_in_a_late_block_loses_no_row_before_it(self, survey, expected, tmp_path, threads):
        broken = tmp_path / "broken.csv.gz"
        content = survey.spectra.read_bytes()
        broken.write_bytes(content[: int(0.8 * len(content))])
        seen: list[int] = []
        with pytest.raises(xk.InputError, match="end too early") as caught:
            xk.make_catalog(
                broken,
                tmp_path / "catalog.h5",
                gaia_source=survey.gaia_source,
                engine=ENGINE,
                threads=threads,
                rows=2,
                on_progress=seen.append,
            )
        kept = read(tmp_path / "catalog.incomplete.h5")
        assert len(kept["source_id"]) == sum(seen) >= STARS // 2
        assert (caught.value.file, caught.value.row) == (str(broken), sum(seen) + 1)
        for name, values in kept.items():
            np.testing.assert_array_equal(values, expected[name][: sum(seen)], err_msg=name)

    def test_truncated_gzip(self, survey, expected, tmp_path, capsys):
        content = survey.spectra.read_bytes()
        broken = tmp_path / "broken.csv.gz"
        broken.write_bytes(content[: int(0.7 * len(content))])
        assert main([*catalog_arguments(broken, survey), "-o", str(tmp_path / "catalog.h5")]) == 1
        kept = read(tmp_path / "catalog.incomplete.h5")
        rows = len(kept["source_id"])
        message = one_line(capsys)
        assert 0 < rows < STARS
        assert f"{broken}, row {rows + 1}: " in message
        assert f"the {rows} rows before it are in {tmp_path / 'catalog.incomplete.h5'}" in message
        for name, values in kept.items():  # nothing that could be read is lost
            np.testing.assert_array_equal(values, expected[name][:rows], err_msg=name)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "broken.csv.gz",
            "catalog.incomplete.diagnostics.h5",
            "catalog.incomplete.h5",
        ]

    def test_a_file_broken_before_its_first_row_leaves_nothing(self, survey, tmp_path, capsys):
        broken = tmp_path / "broken.csv.gz"
        broken.write_bytes(survey.spectra.read_bytes()[:300])
        assert main([*catalog_arguments(broken, survey), "-o", str(tmp_path / "catalog.h5")]) == 1
        assert str(broken) in one_line(capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["broken.csv.gz"]

    @pytest.mark.parametrize("damage", ["garbage", "array"])
    def test_a_bad_row_keeps_its_place_and_costs_no_other(self, survey, lines, expected, tmp_path, capsys, damage):
        start, star = first_row(lines), 4
        source_id = int(expected["source_id"][star])
        damaged = list(lines)
        if damage == "garbage":
            damaged[start + star] = b"what is this\n"
        else:
            names = damaged[start - 1].decode().strip().split(",")
            row = next(csv.reader([damaged[start + star].decode()]))
            index = names.index("bp_coefficients")
            row[index] = row[index].rsplit(",", 1)[0] + row[index][-1]
            written = io.StringIO()
            csv.writer(written, lineterminator="\n").writerow(row)
            damaged[start + star] = written.getvalue().encode()
        spectra = tmp_path / "damaged.csv"
        spectra.write_bytes(b"".join(damaged))
        assert main([*catalog_arguments(spectra, survey), "-o", str(tmp_path / "catalog.h5")]) == 3
        printed = capsys.readouterr()
        field = "field bp_coefficients" if damage == "array" else "field "
        assert printed.err.startswith("xpkern: rows that could not be read: 1 (")
        assert f"the first: row {star + 1}, {field}" in printed.err
        assert "damaged.csv" in printed.err
        assert printed.err.count("\n") == 1
        assert f"{STARS} stars, {STARS - 1} fitted" in printed.out
        assert "1  status 64 BAD_ROW" in printed.out

        catalog = read(tmp_path / "catalog.h5")
        assert catalog["status"][star] & Status.BAD_ROW
        assert catalog["quality_flags"][star] == ALL_BITS
        assert np.isnan(catalog["teff"][star])
        others = np.arange(STARS) != star
        for name, values in catalog.items():
            np.testing.assert_array_equal(values[others], expected[name][others], err_msg=name)

        with open(tmp_path / "catalog.reasons.csv", newline="") as stream:
            (reason,) = csv.DictReader(stream)
        assert int(reason["row"]) == star + 1
        assert "damaged.csv" in reason["reason"]
        assert str(tmp_path) not in reason["reason"]
        if damage == "array":
            assert catalog["source_id"][star] == source_id == int(reason["source_id"])
            assert reason["field"] == "bp_coefficients"
            assert "54" in reason["reason"]

    def test_no_matching_gaia_source_row(self, survey, expected, tmp_path, capsys):
        table = Table.read(survey.gaia_source)
        gone = int(table["source_id"][2])
        table[table["source_id"] != gone].write(tmp_path / "source.csv")
        arguments = ["catalog", str(survey.spectra), "--source", str(tmp_path / "source.csv"), "--engine", ENGINE]
        assert main([*arguments, "-o", str(tmp_path / "catalog.h5")]) == 3
        printed = capsys.readouterr()
        assert "1  status 16 NO_GAIA_SOURCE" in printed.out
        assert printed.err == "xpkern: sources without a row in the gaia_source table: 1\n"
        catalog = read(tmp_path / "catalog.h5")
        (star,) = np.flatnonzero(catalog["source_id"] == gone)
        assert catalog["status"][star] & Status.NO_GAIA_SOURCE
        assert catalog["status"][star] & Status.NO_PARALLAX
        assert np.isnan(catalog["parallax"][star])
        assert np.isfinite(catalog["teff"][star])  # the spectrum alone is enough
        assert not catalog["quality_flags"][star] & 32
        others = np.arange(STARS) != star
        np.testing.assert_array_equal(catalog["teff"][others], expected["teff"][others])

    @pytest.mark.parametrize("content", [b"not a model", None], ids=["garbage", "truncated"])
    def test_unreadable_model_file(self, survey, tmp_path, capsys, content):
        model = tmp_path / "model.h5"
        if content is None:
            xk.save_model(model, *xk.load_model())
            content = model.read_bytes()[: model.stat().st_size // 2]
        model.write_bytes(content)
        arguments = [*catalog_arguments(survey.spectra, survey), "--model", str(model)]
        assert main([*arguments, "-o", str(tmp_path / "catalog.h5")]) == 1
        assert f"xpkern: {model}: not a readable HDF5 file" in one_line(capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]

    def test_model_file_without_a_field(self, survey, tmp_path, capsys):
        model = tmp_path / "model.h5"
        xk.save_model(model, *xk.load_model())
        with h5py.File(model, "a") as file:
            del file["flux/ln_ext_curve"]
        assert main(["predict", *SUN, "--model", str(model)]) == 1
        assert f"{model}, field flux/ln_ext_curve: missing" in one_line(capsys)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"spectra": "absent.csv.gz"}, "absent.csv.gz: no such file"),
            ({"source": "absent.csv"}, "absent.csv"),
            ({"output": "catalog.fits"}, "catalog.fits: a catalogue is HDF5"),
            ({"output": "absent/catalog.h5"}, "catalog.h5: its folder does not exist"),
        ],
    )
    def test_names_that_cannot_be(self, survey, tmp_path, monkeypatch, capsys, change, message):
        monkeypatch.chdir(tmp_path)
        names = {"spectra": survey.spectra, "source": survey.gaia_source, "output": "catalog.h5", **change}
        arguments = ["catalog", str(names["spectra"]), "--source", str(names["source"]), "--engine", ENGINE]
        assert main([*arguments, "-o", names["output"]]) == 1
        assert message in one_line(capsys)
        assert list(tmp_path.iterdir()) == []

    def test_the_same_file_twice_or_as_output(self, survey, tmp_path, capsys):
        spectra = str(survey.spectra)
        assert main(["catalog", spectra, spectra, "-o", str(tmp_path / "catalog.h5")]) == 1
        assert "given twice" in one_line(capsys)
        table = tmp_path / "spectra.h5"
        table.write_bytes(b"precious")
        assert main(["catalog", str(table), "-o", str(table)]) == 1
        assert "is both input and output" in one_line(capsys)
        assert table.read_bytes() == b"precious"

    def test_no_star_can_be_fitted(self, survey, lines, tmp_path, capsys):
        start = first_row(lines)
        spectra = tmp_path / "empty.csv"
        spectra.write_bytes(b"".join([*lines[:start], b"1,2\n", b"3,4\n"]))
        assert main([*catalog_arguments(spectra, survey), "-o", str(tmp_path / "catalog.h5")]) == 1
        assert "no star could be fitted" in one_line(capsys)
        assert read(tmp_path / "catalog.h5")["quality_flags"].tolist() == [ALL_BITS, ALL_BITS]


class TestInterruption:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("threads", ["1", "3"])
    def test_leaves_nothing_behind(self, survey, lines, tmp_path, number, code, threads):
        spectra = tmp_path / "spectra.csv"
        os.mkfifo(spectra)  # a file that never ends: the run is certainly not over when the signal comes
        folder = tmp_path / "output"
        folder.mkdir()
        arguments = [*catalog_arguments(spectra, survey), "-o", str(folder / "catalog.h5"), "--threads", threads]
        with (
            subprocess.Popen(
                [sys.executable, "-m", "xpkern", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # whoever runs the tests in the background has made children ignore Ctrl-C
                preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
            ) as process,
            open(spectra, "wb") as stream,
        ):
            stream.write(b"".join(lines))
            stream.flush()
            deadline = time.monotonic() + 60
            while not list(folder.iterdir()) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            assert [path.name[0] for path in folder.iterdir()] == [".", "."]
            process.send_signal(number)
            output, errors = process.communicate(timeout=60)
        assert process.returncode == code
        assert errors == f"xpkern: interrupted by {signal.Signals(number).name}\n"
        assert output == ""
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("kilobytes", [8, 100])
    def test_a_full_disk_leaves_nothing_behind(self, survey, tmp_path, kilobytes):
        arguments = [sys.executable, "-m", "xpkern", *catalog_arguments(survey.spectra, survey)]
        result = subprocess.run(
            [*arguments, "-o", str(tmp_path / "catalog.h5")],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, kilobytes * 1024)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 1
        assert result.stderr.startswith(f"xpkern: {tmp_path}/.catalog")
        assert result.stderr.endswith("File too large\n")
        assert result.stderr.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_handlers_are_put_back(self, capsys):
        before = signal.getsignal(signal.SIGINT)
        assert main(["predict", *SUN]) == 0
        assert signal.getsignal(signal.SIGINT) is before


class TestErrors:
    def test_debug_shows_where(self, tmp_path):
        arguments = ["predict", *SUN, "--model", str(tmp_path / "absent.h5")]
        for debugging in (["--debug", *arguments], [*arguments, "--debug"]):
            with pytest.raises(xk.ModelFileError, match="no such model file"):
                main(debugging)

    def test_a_defect_is_one_line_too(self, monkeypatch, capsys):
        def broken(options: object) -> int:
            raise ZeroDivisionError("a\nsurprise")

        monkeypatch.setattr(command_line.predict, "run", broken)
        assert main(["predict", *SUN]) == 1
        assert one_line(capsys) == "xpkern: unexpected ZeroDivisionError: a surprise; --debug shows where\n"

    def test_a_reader_that_goes_away(self):
        command = f"{sys.executable} -m xpkern predict {' '.join(SUN)} | head -n 1; echo ${{PIPESTATUS[0]}}"
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
        assert result.stderr == ""
        assert result.stdout.splitlines()[0] == "# %ECSV 1.0"

    def test_no_command_prints_the_help(self, capsys):
        assert main([]) == 2
        assert "xpkern demo" in capsys.readouterr().out

    @pytest.mark.parametrize("command", ["catalog", "predict", "demo"])
    def test_help_teaches_by_example(self, command, capsys):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"xpkern {command} -" in capsys.readouterr().out.replace("XpContinuous", "-XpContinuous")

    def test_version(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert capsys.readouterr().out == f"xpkern {xk.__version__}\n"


class TestPredict:
    @pytest.mark.parametrize(
        ("name", "kind"), [("sun.ecsv", "ascii.ecsv"), ("sun.csv", "ascii.csv"), ("sun.fits", "fits")]
    )
    def test_table_in_a_file(self, tmp_path, name, kind):
        assert main(["predict", *SUN, "-o", str(tmp_path / name)]) == 0
        table = Table.read(tmp_path / name, format=kind)
        model, _ = xk.load_model()
        expected = model.predict(teff=5.77, feh=0.0, logg=4.44, ext=0.1, plx=10.0)[0]
        np.testing.assert_allclose(table["flux"], expected, rtol=1e-12)
        np.testing.assert_array_equal(table["wavelength"], WAVELENGTH)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        if kind != "ascii.csv":
            assert str(table["flux"].unit.to_string("ogip")).startswith("1e-18")
            assert str(table["wavelength"].unit) == "nm"

    def test_table_on_standard_output(self, capsys):
        assert main(["predict", *SUN]) == 0
        table = Table.read(capsys.readouterr().out, format="ascii.ecsv")
        assert len(table) == len(WAVELENGTH)
        assert table["band"][N_XP - 1 :].tolist() == ["XP", "J", "H", "Ks", "W1", "W2"]
        assert table.meta["teff"] == 5.77

    @pytest.mark.parametrize(("name", "start"), [("sun.png", b"\x89PNG"), ("sun.pdf", b"%PDF"), ("sun.svg", b"<?xml")])
    def test_plot(self, tmp_path, name, start, capsys):
        pictures = []
        for folder in (tmp_path / "one", tmp_path / "two"):
            folder.mkdir()
            assert main(["predict", *SUN, "--plot", str(folder / name)]) == 0
            pictures.append((folder / name).read_bytes())
        assert pictures[0].startswith(start)
        assert pictures[0] == pictures[1]
        assert capsys.readouterr().out == ""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (["--teff", "5770"], "teff is in kK"),
            (["--plx", "-1"], "parallax must be positive"),
            (["-o", "sun.txt"], "sun.txt: the name must end in one of .ecsv, .csv, .fits"),
            (["--plot", "sun.gif"], "sun.gif: a picture's name must end in one of .png, .pdf, .svg"),
            (["--plot", "absent/sun.png"], "its folder does not exist"),
        ],
    )
    def test_refusals(self, tmp_path, monkeypatch, capsys, change, message):
        monkeypatch.chdir(tmp_path)
        assert main(["predict", *SUN, *change]) == 1
        assert message in one_line(capsys)
        assert list(tmp_path.iterdir()) == []

    def test_a_type_the_model_does_not_know(self, capsys):
        assert main(["predict", *SUN, "--logg", "12"]) == 0
        assert "outside the region the model was trained on" in one_line(capsys)


class TestDoctor:
    def test_names_everything(self, capsys):
        code = main(["doctor"])
        printed = capsys.readouterr().out
        assert printed.startswith(f"xpkern     {xk.__version__}, Python 3.")
        for line in ("cpu ", "reference ", "reader ", "model ", "gpu ", "libraries "):
            assert f"\n{line}" in printed
        if ENGINE == "cpu":
            assert code == 0
            assert "threads" in printed

    def test_something_broken_is_said_and_counts(self, monkeypatch, capsys):
        def broken() -> str:
            raise ImportError("libstdc++ too old")

        monkeypatch.setattr(doctor, "cpu_engine", broken)
        assert main(["doctor"]) == 1
        assert "cpu        NOT USABLE: ImportError: libstdc++ too old" in capsys.readouterr().out

    def test_gpu_or_why_not(self, monkeypatch):
        def unavailable():
            raise xk.DeviceUnavailable("no NVIDIA driver")

        facts = DeviceFacts("NVIDIA H100", "9.0", 132, 85_000_000_000, "13.0", "NVRTC 13.0", "CuPy 14.2.0")
        monkeypatch.setattr(device, "open_device", unavailable)
        assert doctor.gpu() == "not used: no NVIDIA driver"
        found = SimpleNamespace(facts=facts, free_memory=lambda: 84_000_000_000)
        monkeypatch.setattr(device, "open_device", lambda: found)
        assert doctor.gpu() == (
            "engine ready: NVIDIA H100, compute capability 9.0, 84.0 of 85.0 GB free, driver for CUDA 13.0; "
            "through CuPy 14.2.0, kernels by NVRTC 13.0"
        )
