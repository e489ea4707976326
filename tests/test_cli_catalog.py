"""``xpkern catalog``: what it writes, and what is left when the run is interrupted."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.table import Table
from command_lines import ENGINE, STARS, SUN, catalog_arguments, first_row, read

import xpkern as xk
from xpkern.cli import main


class TestCatalog:
    def test_a_row_for_every_source_and_a_summary(self, bulk_files, tmp_path, capsys):
        assert main([*catalog_arguments(bulk_files.spectra, bulk_files), "-o", str(tmp_path / "catalog.h5")]) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith(f"{STARS} stars, {STARS} fitted (100.0 %) in ")
        assert printed.err == ""  # no progress bar where nobody looks
        catalog = read(tmp_path / "catalog.h5")
        truth = Table.read(bulk_files.truth)
        np.testing.assert_array_equal(catalog["source_id"], truth["source_id"])
        assert np.isfinite(catalog["teff"]).all()
        assert (catalog["bands_used"] >= 96).all()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["catalog.diagnostics.h5", "catalog.h5"]
        with h5py.File(tmp_path / "catalog.h5") as file:
            assert file.attrs["calibration_release"] == "Gaia DR3"
            assert file.attrs["sigma_convention"] == "archive"
            assert file.attrs["noise_digest"] == xk.load_model()[0].noise.digest

    def test_bytes_depend_on_neither_threads_nor_blocks_nor_place_nor_time(self, bulk_files, tmp_path):
        contents = []
        for threads, rows in (("1", None), ("2", None), ("1", 3), ("2", 3), ("5", 1)):
            folder = tmp_path / f"with {threads} {rows}"
            folder.mkdir()
            output = folder / f"catalog{threads}.h5"
            if rows is None:
                assert (
                    main([*catalog_arguments(bulk_files.spectra, bulk_files), "-o", str(output), "--threads", threads])
                    == 0
                )
            else:
                xk.make_catalog(
                    bulk_files.spectra,
                    output,
                    gaia_source=bulk_files.gaia_source,
                    engine=ENGINE,
                    threads=int(threads),
                    rows=rows,
                )
            contents.append((output.read_bytes(), output.with_suffix(".diagnostics.h5").read_bytes()))
        assert all(content == contents[0] for content in contents)
        assert str(tmp_path).encode() not in contents[0][0] + contents[0][1]

    def test_blocks_and_files_do_not_matter(self, bulk_files, bulk_lines, expected_catalog, tmp_path):
        start = first_row(bulk_lines)
        parts = [tmp_path / "a.csv", tmp_path / "b.csv"]
        parts[0].write_bytes(b"".join(bulk_lines[: start + 5]))
        parts[1].write_bytes(b"".join([*bulk_lines[:start], *bulk_lines[start + 5 :]]))
        seen: list[int] = []
        summary = xk.make_catalog(
            parts,
            tmp_path / "catalog.h5",
            gaia_source=bulk_files.gaia_source,
            engine=ENGINE,
            rows=3,
            on_progress=seen.append,
        )
        assert (summary.rows, summary.fitted, seen) == (STARS, STARS, [3, 2, 3, 3, 1])
        for name, values in read(tmp_path / "catalog.h5").items():
            np.testing.assert_array_equal(values, expected_catalog[name], err_msg=name)

    def test_published_layout_and_convention(self, bulk_files, expected_catalog, tmp_path):
        arguments = catalog_arguments(bulk_files.spectra, bulk_files)
        output = tmp_path / "catalog.h5"
        assert main([*arguments, "-o", str(output), "--layout", "zgr23", "--sigma", "zgr23"]) == 0
        with h5py.File(output) as file:
            assert file.attrs["sigma_convention"] == "zgr23"
            assert list(file)[:4] == ["gdr3_source_id", "ra", "dec", "stellar_params_est"]
            # another reading of the errors weighs the same spectra differently
            assert not np.array_equal(file["chi2_opt"], expected_catalog["chi2"])

    def test_another_model(self, bulk_files, tmp_path):
        model, prior = xk.load_model()
        other = xk.FluxModel.from_arrays(
            model.weights, model.biases, 1.01 * model.ext_curve, model.input_zp, model.input_scale, model.wavelength
        )
        xk.save_model(tmp_path / "other.h5", other, prior)
        arguments = [*catalog_arguments(bulk_files.spectra, bulk_files), "--model", str(tmp_path / "other.h5")]
        assert main([*arguments, "-o", str(tmp_path / "catalog.h5")]) == 0
        with h5py.File(tmp_path / "catalog.h5") as file:
            assert file.attrs["model_digest"] == xk.load_model(tmp_path / "other.h5")[0].digest != model.digest


class TestInterruption:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize(("threads", "name"), [("1", "catalog.h5"), ("3", "catalog.parquet")])
    def test_leaves_nothing_behind(self, bulk_files, bulk_lines, tmp_path, number, code, threads, name):
        # a file that never ends: the run is certainly not over when the signal comes
        reader, writer = os.pipe()
        spectra = Path(f"/dev/fd/{reader}")
        folder = tmp_path / "output"
        folder.mkdir()
        arguments = [*catalog_arguments(spectra, bulk_files), "-o", str(folder / name), "--threads", threads]
        with (
            subprocess.Popen(
                [sys.executable, "-m", "xpkern", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                # whoever runs the tests in the background has made children ignore Ctrl-C
                preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
                pass_fds=(reader,),
            ) as process,
            open(reader, "rb"),
            open(writer, "wb") as stream,
        ):
            stream.write(b"".join(bulk_lines))
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

    @pytest.mark.parametrize(("kilobytes", "name"), [(8, "catalog.h5"), (20, "catalog.parquet")])
    def test_a_full_disk_leaves_nothing_behind(self, bulk_files, tmp_path, kilobytes, name):
        arguments = [sys.executable, "-m", "xpkern", *catalog_arguments(bulk_files.spectra, bulk_files)]
        result = subprocess.run(
            [*arguments, "-o", str(tmp_path / name)],
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
