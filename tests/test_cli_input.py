"""The command line given bad input: what a user sees."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
from astropy.table import Table
from command_lines import ENGINE, STARS, SUN, catalog_arguments, first_row, one_line, read

import xpkern as xk
from xpkern.catalog.flags import ALL_BITS
from xpkern.cli import command_line, main
from xpkern.status import Status


class TestBadInput:
    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_an_error_in_a_late_block_loses_no_row_before_it(self, bulk_files, expected_catalog, tmp_path, threads):
        broken = tmp_path / "broken.csv.gz"
        content = bulk_files.spectra.read_bytes()
        broken.write_bytes(content[: int(0.8 * len(content))])
        seen: list[int] = []
        with pytest.raises(xk.InputError, match="end too early") as caught:
            xk.make_catalog(
                broken,
                tmp_path / "catalog.h5",
                gaia_source=bulk_files.gaia_source,
                engine=ENGINE,
                threads=threads,
                rows=2,
                on_progress=seen.append,
            )
        kept = read(tmp_path / "catalog.incomplete.h5")
        assert len(kept["source_id"]) == sum(seen) >= STARS // 2
        assert (caught.value.file, caught.value.row) == (str(broken), sum(seen) + 1)
        for name, values in kept.items():
            np.testing.assert_array_equal(values, expected_catalog[name][: sum(seen)], err_msg=name)

    def test_what_was_not_read_is_told(self, bulk_files, tmp_path, capsys):
        broken = tmp_path / "broken.csv"
        broken.write_bytes(b"source_id\n")
        arguments = catalog_arguments(bulk_files.spectra, bulk_files)
        place = arguments.index(str(bulk_files.spectra)) + 1
        for others, told in ((["c.csv"], "c.csv was not read"), (["c.csv", "d.csv"], "c.csv and 1 after it were not")):
            given = [*arguments[:place], str(broken), *(str(tmp_path / name) for name in others), *arguments[place:]]
            for name in others:
                (tmp_path / name).write_bytes(broken.read_bytes())
            assert main([*given, "-o", str(tmp_path / "catalog.h5"), "--overwrite"]) == 1
            message = one_line(capsys)
            assert str(broken) in message
            assert f"the {STARS} rows before it are in {tmp_path / 'catalog.incomplete.h5'}; " in message
            assert told in message

    def test_truncated_gzip(self, bulk_files, expected_catalog, tmp_path, capsys):
        content = bulk_files.spectra.read_bytes()
        broken = tmp_path / "broken.csv.gz"
        broken.write_bytes(content[: int(0.7 * len(content))])
        assert main([*catalog_arguments(broken, bulk_files), "-o", str(tmp_path / "catalog.h5")]) == 1
        kept = read(tmp_path / "catalog.incomplete.h5")
        rows = len(kept["source_id"])
        message = one_line(capsys)
        assert 0 < rows < STARS
        assert f"{broken}, row {rows + 1}: " in message
        assert f"the {rows} rows before it are in {tmp_path / 'catalog.incomplete.h5'}" in message
        for name, values in kept.items():  # nothing that could be read is lost
            np.testing.assert_array_equal(values, expected_catalog[name][:rows], err_msg=name)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "broken.csv.gz",
            "catalog.incomplete.diagnostics.h5",
            "catalog.incomplete.h5",
        ]

    def test_a_wrong_checksum_at_the_end_leaves_every_row_in_doubt(self, shared_data, tmp_path, capsys):
        content = bytearray((shared_data / "real" / "XpContinuousMeanSpectrum_real-30.csv.gz").read_bytes())
        content[-8] ^= 1
        broken = tmp_path / "broken.csv.gz"
        broken.write_bytes(content)
        assert main(["spectra", str(broken), "--engine", ENGINE, "-o", str(tmp_path / "s.h5")]) == 1
        message = one_line(capsys)
        rows = len(read(tmp_path / "s.incomplete.h5")["source_id"])
        kept = f"rows before it, some of which may be damaged, are in {tmp_path / 's.incomplete.h5'}"
        assert f"the {rows} {kept}" in message

    def test_a_file_broken_before_its_first_row_leaves_nothing(self, bulk_files, tmp_path, capsys):
        broken = tmp_path / "broken.csv.gz"
        broken.write_bytes(bulk_files.spectra.read_bytes()[:300])
        assert main([*catalog_arguments(broken, bulk_files), "-o", str(tmp_path / "catalog.h5")]) == 1
        assert str(broken) in one_line(capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["broken.csv.gz"]

    @pytest.mark.parametrize("damage", ["garbage", "array"])
    def test_a_bad_row_keeps_its_place_and_costs_no_other(
        self, bulk_files, bulk_lines, expected_catalog, tmp_path, capsys, damage
    ):
        start, star = first_row(bulk_lines), 4
        source_id = int(expected_catalog["source_id"][star])
        damaged = list(bulk_lines)
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
        assert main([*catalog_arguments(spectra, bulk_files), "-o", str(tmp_path / "catalog.h5")]) == 3
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
            np.testing.assert_array_equal(values[others], expected_catalog[name][others], err_msg=name)

        with open(tmp_path / "catalog.reasons.csv", newline="") as stream:
            (reason,) = csv.DictReader(stream)
        assert int(reason["row"]) == star + 1
        assert "damaged.csv" in reason["reason"]
        assert str(tmp_path) not in reason["reason"]
        if damage == "array":
            assert catalog["source_id"][star] == source_id == int(reason["source_id"])
            assert reason["field"] == "bp_coefficients"
            assert "54" in reason["reason"]

    def test_no_matching_gaia_source_row(self, bulk_files, expected_catalog, tmp_path, capsys):
        table = Table.read(bulk_files.gaia_source)
        gone = int(table["source_id"][2])
        table[table["source_id"] != gone].write(tmp_path / "source.csv")
        arguments = ["catalog", str(bulk_files.spectra), "--source", str(tmp_path / "source.csv"), "--engine", ENGINE]
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
        np.testing.assert_array_equal(catalog["teff"][others], expected_catalog["teff"][others])

    @pytest.mark.parametrize("content", [b"not a model", None], ids=["garbage", "truncated"])
    def test_unreadable_model_file(self, bulk_files, tmp_path, capsys, content):
        model = tmp_path / "model.h5"
        if content is None:
            xk.save_model(model, *xk.load_model())
            content = model.read_bytes()[: model.stat().st_size // 2]
        model.write_bytes(content)
        arguments = [*catalog_arguments(bulk_files.spectra, bulk_files), "--model", str(model)]
        assert main([*arguments, "-o", str(tmp_path / "catalog.h5")]) == 1
        assert f"xpkern: {model}: not a readable HDF5 file" in one_line(capsys)
        assert [path.name for path in tmp_path.iterdir()] == ["model.h5"]

    def test_model_file_without_a_field(self, bulk_files, tmp_path, capsys):
        model = tmp_path / "model.h5"
        xk.save_model(model, *xk.load_model())
        with h5py.File(model, "a") as file:
            del file["flux/ext_curve"]
        assert main(["predict", *SUN, "--model", str(model)]) == 1
        assert f"{model}, field flux/ext_curve: missing" in one_line(capsys)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"spectra": "absent.csv.gz"}, "absent.csv.gz: no such file"),
            ({"source": "absent.csv"}, "absent.csv"),
            ({"output": "catalog.txt"}, "catalog.txt: the name must end in .h5, .hdf5, .fits, .ecsv or .parquet"),
            ({"output": "absent/catalog.h5"}, "catalog.h5: its folder does not exist"),
        ],
    )
    def test_names_that_cannot_be(self, bulk_files, tmp_path, monkeypatch, capsys, change, message):
        monkeypatch.chdir(tmp_path)
        names = {"spectra": bulk_files.spectra, "source": bulk_files.gaia_source, "output": "catalog.h5", **change}
        arguments = ["catalog", str(names["spectra"]), "--source", str(names["source"]), "--engine", ENGINE]
        assert main([*arguments, "-o", names["output"]]) == 1
        assert message in one_line(capsys)
        assert list(tmp_path.iterdir()) == []

    def test_the_same_file_twice_or_as_output(self, bulk_files, tmp_path, capsys):
        spectra = str(bulk_files.spectra)
        assert main(["catalog", spectra, spectra, "-o", str(tmp_path / "catalog.h5")]) == 1
        assert f"{spectra}: given twice\n" in one_line(capsys)
        (tmp_path / "link.csv.gz").symlink_to(spectra)
        assert main(["catalog", spectra, str(tmp_path / "link.csv.gz"), "-o", str(tmp_path / "catalog.h5")]) == 1
        assert f"link.csv.gz: given twice: it is {spectra}" in one_line(capsys)
        table = tmp_path / "spectra.h5"
        table.write_bytes(b"precious")
        assert main(["catalog", str(table), "-o", str(table)]) == 1
        assert "is both input and output" in one_line(capsys)
        assert table.read_bytes() == b"precious"

    def test_no_star_can_be_fitted(self, bulk_files, bulk_lines, tmp_path, capsys):
        start = first_row(bulk_lines)
        spectra = tmp_path / "empty.csv"
        spectra.write_bytes(b"".join([*bulk_lines[:start], b"1,2\n", b"3,4\n"]))
        assert main([*catalog_arguments(spectra, bulk_files), "-o", str(tmp_path / "catalog.h5")]) == 1
        message = one_line(capsys)
        assert message.startswith(f"xpkern: {tmp_path / 'catalog.h5'}: no star could be fitted; its column status says")
        assert f"{tmp_path / 'catalog.reasons.csv'} of rows that could not be read; the first: row 1" in message
        assert read(tmp_path / "catalog.h5")["quality_flags"].tolist() == [ALL_BITS, ALL_BITS]


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

    def test_every_help_teaches_by_example(self):
        commands = list(command_line.command_parsers(command_line.build_parser()))
        assert len(commands) > 20
        for command in commands:
            _, _, examples = command.format_help().partition("\nexample")
            assert re.search(rf"^ .*{command.prog}\b", examples, re.MULTILINE), command.prog

    def test_version(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert capsys.readouterr().out == f"xpkern {xk.__version__}\n"
