"""``xpkern convert``: the compact file says what the csv says, damaged rows included; nothing is made twice or half."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_lines import ENGINE, one_line, read

import xpkern as xk
from xpkern.cli import main
from xpkern.errors import InputError
from xpkern.observe.calibration import Calibration
from xpkern.observe.spectra import read_blocks
from xpkern.shards import convert
from xpkern.shards.convert import convert_spectra
from xpkern.survey.planted import Planted
from xpkern.survey.run import simulate_survey

ROWS = 40


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two bulk files, whose rows miss bands and are damaged, more often than in any survey."""
    folder = tmp_path_factory.mktemp("convert") / "sim"
    simulate_survey(
        folder, 2 * ROWS, seed=5, truth="model", stars_per_file=ROWS, planted=Planted(bad_row=0.1, no_bp=0.1)
    )
    return folder


def files_in(survey: Path) -> list[Path]:
    return sorted(survey.glob("Xp*.csv.gz"))


def catalogue(spectra: Path, survey: Path, output: Path) -> dict[str, bytes]:
    """The bytes of the catalogue and its diagnostics."""
    xk.make_catalog(spectra, output, gaia_source=survey / "gaia_source.fits", engine=ENGINE)
    return {path.name: path.read_bytes() for path in (output, output.with_suffix(".diagnostics.h5"))}


def test_a_lossless_file_gives_the_same_catalogue(survey, tmp_path):
    spectra = files_in(survey)[0]
    summary = convert_spectra([spectra], tmp_path / "compact", lossless=True)
    (file,) = summary.files
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = catalogue(spectra, survey, tmp_path / "a/catalog.h5")
    assert catalogue(file.output, survey, tmp_path / "b/catalog.h5") == first
    assert file.rows == ROWS
    status = read(tmp_path / "a/catalog.h5")["status"]
    assert file.unreadable == np.count_nonzero(status & xk.Status.BAD_ROW) > 0
    assert np.count_nonzero(status & xk.Status.NO_BP) > 0
    reasons = (tmp_path / "compact" / f"{file.output.stem}.reasons.csv").read_text()
    assert reasons == (tmp_path / "a/catalog.reasons.csv").read_text()


def test_a_compact_file_rounds_coefficients_and_nothing_else(survey, tmp_path):
    spectra = files_in(survey)[0]
    (file,) = convert_spectra([spectra], tmp_path).files
    calibration = Calibration.default()
    for theirs, ours in zip(read_blocks(spectra, calibration), read_blocks(file.output, calibration), strict=True):
        for name in ("source_id", "bad"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        for name, values in vars(theirs.coefficients).items():
            expected = values.astype("f4") if name in ("bp", "rp") else values
            rows = theirs.coefficients.has_bp if name.startswith("bp") else theirs.coefficients.has_rp
            rows = slice(None) if name.startswith("has") else rows
            np.testing.assert_array_equal(getattr(ours.coefficients, name)[rows], expected[rows], err_msg=name)
    with h5py.File(file.output) as stored:
        assert all(stored[name].fletcher32 for name in stored)


def test_a_standard_deviation_that_is_not_told_stays_unknown(survey, tmp_path):
    import gzip

    lines = gzip.decompress(files_in(survey)[0].read_bytes()).decode().splitlines()
    header = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    names = [name.replace("bp_standard_deviation", "not_known") for name in lines[header].split(",")]
    path = tmp_path / "without.csv"
    path.write_text("\n".join([",".join(names), *lines[header + 1 :]]) + "\n")
    (file,) = convert_spectra([path], tmp_path / "compact").files
    needed = {"need_standard_deviation": True}
    for theirs, ours in zip(
        read_blocks(path, Calibration.default(), **needed),
        read_blocks(file.output, Calibration.default(), **needed),
        strict=True,
    ):
        np.testing.assert_array_equal(ours.bad, theirs.bad)
        assert np.count_nonzero(ours.bad) > ROWS // 2


def test_a_damaged_chunk_is_told(survey, tmp_path):
    (file,) = convert_spectra([files_in(survey)[0]], tmp_path).files
    with h5py.File(file.output) as stored:
        place = stored["rp_coefficients"].id.get_chunk_info(0).byte_offset
    with open(file.output, "r+b") as stream:
        stream.seek(place + 1000)
        byte = stream.read(1)
        stream.seek(place + 1000)
        stream.write(bytes([byte[0] ^ 1]))
    with pytest.raises(InputError, match="row 1, field rp_coefficients: cannot be read"):
        list(read_blocks(file.output, Calibration.default()))


def test_what_is_there_is_not_made_again(survey, tmp_path, capsys):
    folder = tmp_path / "a folder, ü"
    arguments = ["convert", *map(str, files_in(survey)), "-o", str(folder)]
    assert main([*arguments, "--processes", "2"]) == 3  # rows could not be read
    captured = capsys.readouterr()
    assert f"2 files converted, 0 were there: {2 * ROWS} rows" in captured.out
    assert "xpkern: rows that could not be read: " in captured.err
    outputs = sorted(folder.glob("*.h5"))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in outputs}
    outputs[0].unlink()
    assert main(arguments) == 3
    captured = capsys.readouterr()
    assert "1 files converted, 1 were there" in captured.out
    assert "; the first: row " in captured.err
    assert main(arguments) == 3
    captured = capsys.readouterr()
    assert "0 files converted, 2 were there" in captured.out
    assert re.fullmatch(r"xpkern: rows that could not be read: \d+\n", captured.err)
    assert outputs[0].read_bytes() == before[outputs[0]][1]
    assert outputs[1].stat().st_mtime_ns == before[outputs[1]][0]
    # another option, or another input, is another file
    assert main([*arguments, "--lossless"]) == 1
    assert "exists, of another input or otherwise made; --overwrite replaces it" in capsys.readouterr().err
    assert main([*arguments, "--lossless", "--overwrite"]) == 3
    with h5py.File(outputs[1]) as stored:
        assert stored["bp_coefficients"].dtype == np.float64


def test_bad_files_among_good_ones(survey, tmp_path, capsys):
    good = shutil.copy(files_in(survey)[0], tmp_path / "good.csv.gz")
    data = files_in(survey)[1].read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "page.csv").write_text("<!DOCTYPE html><html>Log in</html>")
    (tmp_path / "circle.csv").symlink_to("circle.csv")
    names = ["good.csv.gz", "cut.csv.gz", "empty.csv", "page.csv", "circle.csv", "missing.csv"]
    arguments = ["convert", *(str(tmp_path / name) for name in names), "-o", str(tmp_path / "out")]
    assert main(arguments) == 3
    errors = capsys.readouterr().err
    for name, reason in (
        ("cut.csv.gz, row ", "the gzip data end too early; the "),
        ("empty.csv", "the file is empty"),
        ("page.csv", "a web page"),
        ("circle.csv", "Too many levels of symbolic links"),
        ("missing.csv", "No such file"),
    ):
        (line,) = [line for line in errors.splitlines() if name in line]
        assert reason in line
    left = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {name for name in left if not name.endswith(".reasons.csv")} == {"good.h5", "cut.incomplete.h5"}
    (tmp_path / "cut.csv.gz").write_bytes(data)
    assert main(["convert", str(tmp_path / "cut.csv.gz"), str(good), "-o", str(tmp_path / "out")]) == 3
    left = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {name for name in left if not name.endswith(".reasons.csv")} == {"good.h5", "cut.h5"}
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "page.csv"), "-o", str(tmp_path / "out")]) == 1


def test_bad_places(survey, tmp_path, capsys):
    first, second = map(str, files_in(survey))
    assert main(["convert", first, first, "-o", str(tmp_path / "out")]) == 1
    assert "would both be" in one_line(capsys)
    assert main(["convert", first, "-o", str(tmp_path / "no/folder")]) == 1
    assert "its folder does not exist" in one_line(capsys)
    (tmp_path / "file").touch()
    assert main(["convert", second, "-o", str(tmp_path / "file")]) == 1
    assert "is a file" in one_line(capsys)


def test_where_nothing_can_be_written_it_is_told_what_would_have_been(survey, tmp_path, capsys):
    """Not only the name of a file of which nobody has heard."""
    (tmp_path / ".claims").touch()
    assert main(["convert", str(files_in(survey)[0]), "-o", str(tmp_path)]) == 1
    output = tmp_path / f"{files_in(survey)[0].name.removesuffix('.csv.gz')}.h5"
    assert one_line(capsys).startswith(f"xpkern: failed: {output}: {tmp_path / '.claims'}")


def test_an_input_is_never_replaced(survey, tmp_path, capsys):
    """Not even by itself in fewer bits."""
    convert_spectra(files_in(survey)[:1], tmp_path / "out", lossless=True)
    (output,) = (tmp_path / "out").glob("*.h5")
    before = output.read_bytes()
    (tmp_path / "link.h5").symlink_to(output)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.h5").symlink_to(output)
    for given, folder in ((output, "out"), (tmp_path / "link.h5", "elsewhere")):
        assert main(["convert", str(given), "--overwrite", "-o", str(tmp_path / folder)]) == 1
        assert "is both input and output" in one_line(capsys)
    assert output.read_bytes() == before


def test_a_file_without_rows(survey, tmp_path):
    import gzip

    lines = gzip.decompress(files_in(survey)[0].read_bytes()).splitlines(keepends=True)
    head = [line for line in lines if line.startswith(b"#")]
    (tmp_path / "none.csv").write_bytes(b"".join([*head, lines[len(head)]]))
    (file,) = convert_spectra([tmp_path / "none.csv"], tmp_path / "out").files
    assert (file.rows, file.error) == (0, "")
    assert list(read_blocks(file.output, Calibration.default())) == []
    assert convert_spectra([tmp_path / "none.csv"], tmp_path / "out").files[0].done_before


def test_killed_and_started_again(survey, tmp_path):
    files = [str(path) for path in files_in(survey)]
    convert_spectra(files, tmp_path / "undisturbed")
    command = [sys.executable, "-m", "xpkern", "convert", *files, "-o", str(tmp_path / "killed"), "--processes", "2"]
    for _ in range(2):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(random.uniform(0.5, 2.5))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert main(command[3:-2]) == 3
    whole = {path.name: path.read_bytes() for path in (tmp_path / "undisturbed").iterdir() if path.is_file()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "killed").iterdir() if path.is_file()} == whole


def test_a_file_that_another_process_has(survey, tmp_path):
    source = files_in(survey)[0]
    output = tmp_path / f"{source.name.removesuffix('.csv.gz')}.h5"
    with convert.claim(tmp_path, output.name, [output]) as ours:
        assert ours
        (file,) = convert_spectra([source], tmp_path).files
        assert file.elsewhere
        assert not output.exists()
    assert not convert_spectra([source], tmp_path).files[0].elsewhere
