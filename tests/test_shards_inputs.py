"""Inputs of a survey run that change, go away, or are not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from astropy.table import Table
from command_lines import one_line, read, write_settings

from xpkern.cli import main
from xpkern.cli.run import PARTIAL
from xpkern.errors import InputError
from xpkern.shards import Ledger, State, load_settings, run_survey
from xpkern.shards.work import fingerprint
from xpkern.survey.run import simulate_survey

FILES, STARS_OF_A_FILE = 3, 16


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a survey with three files of spectra."""
    folder = tmp_path_factory.mktemp("survey") / "sim"
    simulate_survey(folder, FILES * STARS_OF_A_FILE, seed=3, truth="model", stars_per_file=STARS_OF_A_FILE)
    return folder


@pytest.fixture
def survey(simulated: Path, tmp_path: Path) -> Path:
    """Settings of a run in a folder of its own, with the survey's files in it."""
    shutil.copytree(simulated, tmp_path / "sim")
    return write_settings(tmp_path)


def test_another_input_or_version_is_another_shard(survey, monkeypatch):
    settings = load_settings(survey)
    run_survey(settings)
    first, second, _ = settings.input_files()
    first.write_bytes(second.read_bytes())
    assert Ledger.of(settings).states == [State.CHANGED, State.DONE, State.DONE]
    first.unlink()
    monkeypatch.setattr("xpkern.shards.work.__version__", "0.0.0")
    assert Ledger.of(settings).states == [State.CHANGED] * FILES


def test_an_input_is_another_one_by_what_is_in_it(survey):
    settings = load_settings(survey)
    run_survey(settings)
    first, *_ = settings.input_files()
    os.utime(first, (1, 1))
    assert Ledger.of(settings).states == [State.DONE] * FILES
    # a table that serves all files, changed where it stands: neither its size nor its ends are others
    table = survey.parent / "sim" / "gaia_source.fits"
    content = bytearray(table.read_bytes())
    content[len(content) // 2] ^= 1
    table.write_bytes(content)
    assert Ledger.of(settings).states == [State.CHANGED] * FILES


def test_pieces_of_a_large_file_tell_it_from_another(tmp_path, rng):
    path, size = tmp_path / "large.h5", 40 << 20
    with open(path, "wb") as file:
        file.truncate(size)
    before = fingerprint(path)
    with open(path, "r+b") as file:
        file.seek(int(rng.integers(size - size // 200)))
        file.write(b"x" * (size // 200))
    os.utime(path, (1, 1))
    assert fingerprint(path) != before


def test_shards_outlive_their_spectra(survey, capsys):
    settings = load_settings(survey)
    run_survey(settings)
    first, *others = settings.input_files()
    first.unlink()
    assert Ledger.of(settings).states == [State.DONE] * FILES
    catalog = survey.parent / "catalog.h5"
    for path in others:
        path.unlink()
    assert main(["status", str(survey)]) == 0
    assert f"{FILES}  done" in capsys.readouterr().out
    assert main(["run", str(survey)]) == 0
    assert main(["collect", str(survey), "-o", str(catalog)]) == 0
    assert len(read(catalog)["source_id"]) == FILES * STARS_OF_A_FILE
    # settings that speak of none of them leave their shards alone
    other = load_settings(write_settings(survey.parent, spectra=["sim/Y*.csv.gz"]))
    with pytest.raises(InputError, match="no such file"):
        Ledger.of(other)


def test_a_file_that_is_not_there_does_not_keep_the_others(survey, capsys):
    names = [f"sim/{path.name}" for path in load_settings(survey).input_files()]
    write_settings(survey.parent, spectra=[*names, "sim/missing.csv.gz"], attempts=1)
    assert main(["status", str(survey)]) == 0
    assert main(["run", str(survey)]) == PARTIAL
    assert "missing.csv.gz" in capsys.readouterr().err
    assert main(["status", str(survey)]) == PARTIAL
    shutil.copy(survey.parent / names[0], survey.parent / "sim" / "missing.csv.gz")
    assert main(["run", str(survey)]) == 0
    assert len(Ledger.of(load_settings(survey)).of_state(State.DONE)) == FILES + 1


def test_what_failed_is_tried_again_once_its_cause_is_another(survey):
    table = survey.parent / "sim" / "gaia_source.fits"
    whole = table.read_bytes()
    table.write_bytes(whole[:3000])
    settings = load_settings(survey)
    assert len(run_survey(settings).failed) == FILES
    assert Ledger.of(settings).states == [State.FAILED] * FILES
    table.write_bytes(whole)
    assert len(run_survey(settings).done) == FILES


def test_a_marker_of_another_kind_is_none(survey, capsys):
    settings = load_settings(survey)
    run_survey(settings)
    units = Ledger.of(settings).units
    for unit, name in zip(units, ("rows", "counts", "made_of"), strict=True):
        record = json.loads(unit.done.read_text())
        del record[name]
        unit.done.write_text(json.dumps(record))
    assert main(["status", str(survey)]) == 0
    assert f"{FILES}  left" in capsys.readouterr().out


def test_a_pipe_is_refused_and_the_others_are_done(survey, capsys):
    """It could be read only once, and nobody may ever write to it."""
    sim = survey.parent / "sim"
    os.mkfifo(sim / "Xp_pipe.csv.gz")
    for option in ([], ["--processes", "2"]):
        assert main(["run", str(survey), *option]) == PARTIAL
        expected = (
            f"1 files have no shard; the first: Xp_pipe.csv.gz: {sim}/Xp_pipe.csv.gz: is a pipe, which can be read"
        )
        assert expected in one_line(capsys)
    assert Ledger.of(load_settings(survey)).count() == {State.DONE: FILES, State.FAILED: 1}
    first, *_ = load_settings(survey).input_files()
    first.unlink()
    os.mkfifo(first)
    assert main(["status", str(survey)]) == PARTIAL
    assert f"{FILES}  done" in capsys.readouterr().out
    assert main(["convert", str(first), "-o", str(survey.parent / "compact")]) != 0
    assert f"{first}: is a pipe, which can be read only once: give a file" in capsys.readouterr().err


def test_cuts_that_could_not_be_applied_are_told(survey, capsys):
    """As of one catalogue, and counted over the shards: the tables of some may lack what those of others have."""
    table = Table.read(survey.parent / "sim" / "gaia_source.fits")
    for number, path in enumerate(sorted((survey.parent / "sim").glob("Xp*.csv.gz"))):
        cells = f"{number:06d}-{number:06d}"
        path.rename(path.with_name(f"Xp_{cells}.csv.gz"))
        table.write(survey.parent / f"{cells}.fits")
        table.keep_columns([column for column in table.colnames if not column.startswith("qf_")])
    expected = [
        f"{FILES}  shards: parallax_zero_point not applied: no column nu_eff_used_in_astrometry",
        f"{FILES}  shards: twomass_extended not applied: no column ext_key",
        f"{FILES - 1}  shards: unwise_qf not applied: no column qf_w1",
        f"{FILES}  shards: unwise_separation not applied: no column unwise_separation",
    ]
    settings = write_settings(survey.parent, photometry="{range}.fits")
    for command in ("run", "status"):
        assert main([command, str(settings)]) == 0
        lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "not applied" in line]
        assert sorted(lines, key=lambda line: line.partition(": ")[2]) == expected
    (log,) = (survey.parent / "shards" / "log").iterdir()
    lacking = [json.loads(line)["not_applied"] for line in log.read_text().splitlines()]
    assert [len(said) for said in lacking] == [3, 4, 4]
    # markers had not always said it
    for done in (survey.parent / "shards").glob("*.done.json"):
        record = json.loads(done.read_text())
        del record["not_applied"]
        done.write_text(json.dumps(record))
    assert main(["status", str(settings)]) == 0
    printed = capsys.readouterr().out
    assert f"{FILES}  done" in printed
    assert "not applied" not in printed
