"""The command line: ``xpkern predict`` and ``xpkern doctor``."""

from __future__ import annotations

import re
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from astropy.table import Table
from command_lines import ENGINE, SUN, one_line

import xpkern as xk
from xpkern.cli import doctor, main
from xpkern.engine.cuda import device
from xpkern.engine.cuda.device import DeviceFacts
from xpkern.grid import N_XP, WAVELENGTH


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

    @pytest.mark.parametrize("option", ["-o", "--plot"])
    def test_a_file_that_exists_stays(self, tmp_path, capsys, option):
        path = tmp_path / ("sun.ecsv" if option == "-o" else "sun.png")
        path.write_bytes(b"precious")
        assert main(["predict", *SUN, option, str(path)]) == 1
        assert f"{path}: exists; --overwrite" in one_line(capsys)
        assert path.read_bytes() == b"precious"
        assert main(["predict", *SUN, option, str(path), "--overwrite"]) == 0
        assert path.stat().st_size > 1000

    def test_a_type_the_model_does_not_know(self, capsys):
        assert main(["predict", *SUN, "--logg", "12"]) == 0
        assert "outside the region the model was trained on" in one_line(capsys)


class TestDoctor:
    def test_names_everything(self, capsys):
        code = main(["doctor"])
        printed = capsys.readouterr().out
        assert printed.startswith(f"xpkern     {xk.__version__}, Python 3.")
        for line in ("machine ", "cpu ", "reference ", "reader ", "writers ", "model ", "fit ", "gpu ", "libraries "):
            assert f"\n{line}" in printed
        if ENGINE == "cpu":
            assert code == 0
            assert "threads" in printed

    def test_libraries_are_those_that_are_required(self):
        requirements = [text for text in metadata.requires("xpkern") if "extra ==" not in text]
        required = {re.match(r"[\w-]+", text)[0] for text in requirements}
        assert required - {"tomli"} == set(doctor.LIBRARIES) - {"tomli"}

    def test_a_missing_library_counts(self, monkeypatch, capsys):
        for name in ("machine", "cpu_engine", "reference_engine", "reader", "writers", "model", "self_test"):
            monkeypatch.setattr(doctor, name, lambda: "ready")
        monkeypatch.setattr(doctor, "LIBRARIES", ("numpy", "no-such-library"))
        assert main(["doctor"]) == 1
        assert capsys.readouterr().out.endswith("no-such-library MISSING\n")

    def test_something_broken_is_said_and_counts(self, monkeypatch, capsys):
        def broken() -> str:
            raise ImportError("libstdc++ too old")

        monkeypatch.setattr(doctor, "cpu_engine", broken)
        assert main(["doctor"]) == 1
        assert "cpu        NOT USABLE: ImportError: libstdc++ too old" in capsys.readouterr().out

    def test_gpu_or_why_not(self, monkeypatch):
        def unavailable():
            raise xk.DeviceUnavailable("no NVIDIA driver")

        facts = DeviceFacts("NVIDIA H100", "9.0", 132, 85_000_000_000, 232_448, "13.0", "NVRTC 13.0", "CuPy 14.2.0")
        monkeypatch.setattr(device, "open_device", unavailable)
        assert doctor.gpu() == "not used: no NVIDIA driver"
        found = SimpleNamespace(facts=facts, free_memory=lambda: 84_000_000_000)
        monkeypatch.setattr(device, "open_device", lambda: found)
        assert doctor.gpu() == (
            "engine ready: NVIDIA H100, compute capability 9.0, 84.0 of 85.0 GB free, driver for CUDA 13.0; "
            "through CuPy 14.2.0, kernels by NVRTC 13.0"
        )
