"""Survey runs: what counts as done, what fails and is tried again, and that nothing is lost when one dies."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.table import Table
from command_lines import ENGINE, one_line, read, write_settings

import xpkern as xk
from xpkern.cli import main
from xpkern.cli.run import PARTIAL, RESUME
from xpkern.errors import InputError
from xpkern.observe.read import table_of
from xpkern.processes import server_of_processes
from xpkern.shards import Ledger, State, load_settings, run_survey
from xpkern.shards.settings import shard_name
from xpkern.shards.work import Unit, claimed, prepare_folder
from xpkern.shards.workers import Outcome, attempt, process_number
from xpkern.survey.run import simulate_survey

FILES, STARS_OF_A_FILE = 3, 16


@pytest.fixture(scope="session")
def small_survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a survey with three files of spectra."""
    folder = tmp_path_factory.mktemp("survey") / "sim"
    simulate_survey(folder, FILES * STARS_OF_A_FILE, seed=3, truth="model", stars_per_file=STARS_OF_A_FILE)
    return folder


@pytest.fixture
def survey(small_survey: Path, tmp_path: Path) -> Path:
    """Settings of a run in a folder of its own, with the survey's files in it."""
    shutil.copytree(small_survey, tmp_path / "sim")
    return write_settings(tmp_path)


def shards_of(folder: Path) -> dict[str, bytes]:
    """What a run leaves but its log."""
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir()) if path.is_file()}


@pytest.fixture(scope="session")
def undisturbed(small_survey: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The shards of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(small_survey, folder / "sim")
    run_survey(load_settings(write_settings(folder)))
    return shards_of(folder)


class TestRun:
    def test_every_file_has_the_shard_that_a_catalogue_of_it_would_be(self, survey, capsys):
        assert main(["run", str(survey)]) == 0
        printed = capsys.readouterr()
        assert f"{FILES} of {FILES} files to do" in printed.out
        assert f"{FILES} shards, {FILES * STARS_OF_A_FILE} stars" in printed.out
        for unit in (Unit.of(path, load_settings(survey)) for path in load_settings(survey).input_files()):
            alone = survey.parent / f"{unit.name}.alone.h5"
            xk.make_catalog(unit.spectra, alone, gaia_source=survey.parent / "sim" / "gaia_source.fits", engine=ENGINE)
            assert alone.read_bytes() == unit.catalog.read_bytes()
            record = json.loads(unit.done.read_text())
            assert record["rows"] == STARS_OF_A_FILE
            assert record["files"]["catalog"]["bytes"] == unit.catalog.stat().st_size
        assert main(["run", str(survey)]) == 0
        assert f"0 of {FILES} files to do" in capsys.readouterr().out
        assert main(["status", str(survey)]) == 0
        assert f"{FILES}  done: {FILES * STARS_OF_A_FILE} stars" in capsys.readouterr().out
        lines = [
            json.loads(line)
            for path in survey.parent.glob("shards/log/*.jsonl")
            for line in path.read_text().splitlines()
        ]
        assert [line["outcome"] for line in lines] == ["done"] * FILES

    def test_processes_and_parts_do_not_matter(self, survey, undisturbed):
        settings = load_settings(survey)
        run_survey(settings, part=2, parts=2)
        assert Ledger.of(settings).count() == {State.DONE: 1, State.LEFT: 2}
        run_survey(settings, part=1, parts=2, processes=2)
        assert shards_of(survey.parent) == undisturbed

    def test_a_table_of_all_is_read_once_and_again_when_it_has_changed(self, survey, undisturbed, monkeypatch):
        read_of = []

        def counted(path, kind):
            read_of.append((path.name, kind))
            return table_of(path, kind)

        monkeypatch.setattr("xpkern.shards.work.table_of", counted)
        settings = load_settings(survey)
        run_survey(settings)
        assert read_of == [("gaia_source.fits", "gaia_source")]
        assert shards_of(survey.parent) == undisturbed
        file = survey.parent / "sim" / "gaia_source.fits"
        table = Table.read(file)
        table["parallax"] += 1.0
        table.write(file, overwrite=True)
        run_survey(settings, again=(State.CHANGED,))
        assert len(read_of) == 2
        changed = shards_of(survey.parent)
        assert all(changed[name] != data for name, data in undisturbed.items() if name.endswith(".h5"))

    def test_good_files_are_done_and_bad_ones_are_named(self, survey, capsys):
        good, cut, empty = sorted((survey.parent / "sim").glob("Xp*.csv.gz"))
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
        empty.write_bytes(b"")
        assert main(["run", str(survey), "--processes", "2"]) == PARTIAL
        printed = capsys.readouterr()
        assert "2 files have no shard" in printed.err
        failed = [line for line in printed.out.splitlines() if line.startswith("failed: ")]
        for file in (cut, empty):
            assert [line.count(file.name) for line in failed if line.startswith(f"failed: {file}")] == [1]
        # what was whole before the break is kept under a name that says so
        assert (survey.parent / "shards" / f"{shard_name(cut)}.incomplete.h5").exists()
        assert main(["status", str(survey)]) == PARTIAL
        printed = capsys.readouterr().out
        assert "1  done" in printed
        assert "2  failed" in printed
        # what failed is not tried again by itself
        assert main(["run", str(survey)]) == PARTIAL
        assert f"0 of {FILES} files to do" in capsys.readouterr().out
        cut.write_bytes(good.read_bytes())
        assert main(["rerun", str(survey), "--failed", "--dry-run"]) == 0
        assert "2 of 3 files would be worked on" in capsys.readouterr().out
        assert main(["rerun", str(survey), "--failed"]) == PARTIAL
        assert sorted(path.name for path in survey.parent.glob("shards/*incomplete*")) == []
        assert Ledger.of(load_settings(survey)).count() == {State.DONE: 2, State.FAILED: 1}

    def test_a_file_without_rows_has_a_shard_without_rows(self, survey):
        first = min((survey.parent / "sim").glob("Xp*.csv.gz"))
        lines = gzip.decompress(first.read_bytes()).splitlines(keepends=True)
        header = [line for line in lines if line.startswith(b"#")]
        first.write_bytes(gzip.compress(b"".join(lines[: len(header) + 1])))
        summary = run_survey(load_settings(survey))
        assert (len(summary.done), summary.rows) == (FILES, (FILES - 1) * STARS_OF_A_FILE)
        assert summary.failed == {}

    def test_names_with_spaces_and_letters_of_any_alphabet(self, small_survey, undisturbed, tmp_path, capsys):
        """Of folders, files, shards: the same bytes under other names."""
        folder = tmp_path / "été 2026 [a]"
        shutil.copytree(small_survey, folder / "sim")
        first = min((folder / "sim").glob("Xp*.csv.gz"))
        first.rename(first.with_name("Xp ein Stück Ω*.csv.gz"))
        settings = write_settings(folder, output="die Scherben, ü")
        assert main(["run", str(settings)]) == 0
        found = {path.name: path.read_bytes() for path in (folder / "die Scherben, ü").iterdir() if path.is_file()}
        stem = shard_name(first)
        for name, data in undisturbed.items():
            if not name.endswith(".done.json"):
                assert found[name.replace(stem, "Xp ein Stück Ω*")] == data
        assert main(["status", str(settings)]) == 0
        assert f"{FILES}  done" in capsys.readouterr().out
        for option in ([], ["--virtual"]):
            assert main(["collect", str(settings), "-o", str(folder / f"Κατάλογος {len(option)}.h5"), *option]) == 0

    def test_links_that_lead_nowhere_are_named_and_the_others_are_done(self, survey, capsys):
        sim = survey.parent / "sim"
        (sim / "Xp_circle.csv.gz").symlink_to("Xp_circle.csv.gz")
        (sim / "Xp_gone.csv.gz").symlink_to("nowhere")
        assert main(["run", str(survey)]) == PARTIAL
        assert "2 files have no shard; the first: Xp_circle.csv.gz: " in capsys.readouterr().err
        assert main(["status", str(survey)]) == PARTIAL
        circle, gone = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
        assert "Xp_circle.csv.gz: Too many levels of symbolic links" in circle
        assert "Xp_gone.csv.gz: No such file or directory" in gone
        (sim / "Xp_later.csv.gz").symlink_to("nor here")  # left, and of no size
        assert main(["status", str(survey)]) == PARTIAL
        printed = capsys.readouterr()
        assert "1  left" in printed.out
        assert printed.err == ""
        (sim / "Xp_later.csv.gz").unlink()
        assert Ledger.of(load_settings(survey)).count() == {State.DONE: FILES, State.FAILED: 2}

    def test_other_settings_never_mix_with_what_is_there(self, survey, undisturbed, capsys):
        assert main(["run", str(survey)]) == 0
        write_settings(survey.parent, starts=1)
        assert main(["run", str(survey)]) == 1
        assert f"{FILES} of {FILES} shards" in capsys.readouterr().err
        assert shards_of(survey.parent) == undisturbed
        assert main(["status", str(survey)]) == 0
        assert f"{FILES}  made by other settings" in capsys.readouterr().out
        assert main(["rerun", str(survey), "--changed"]) == 0
        assert Ledger.of(load_settings(survey)).count() == {State.DONE: FILES}
        assert shards_of(survey.parent) != undisturbed
        # a limit of the machine changes nothing
        write_settings(survey.parent, starts=1, threads=1, attempts=7)
        assert Ledger.of(load_settings(survey)).count() == {State.DONE: FILES}

    def test_what_a_kill_left_between_the_names_is_removed(self, survey, undisturbed):
        (survey.parent / "shards").mkdir()
        first = min((survey.parent / "sim").glob("Xp*.csv.gz"))
        for ending in ("partial", "replaced"):
            (survey.parent / "shards" / f".{shard_name(first)}.h5.4711.{ending}").write_bytes(b"left")
        run_survey(load_settings(survey))
        assert shards_of(survey.parent) == undisturbed

    def test_a_marker_without_its_files_is_none(self, survey):
        settings = load_settings(survey)
        run_survey(settings)
        units = [Unit.of(path, settings) for path in settings.input_files()]
        units[0].catalog.write_bytes(units[0].catalog.read_bytes()[:-1])
        units[1].catalog.with_suffix(".diagnostics.h5").unlink()
        units[2].done.write_text("{")
        assert Ledger.of(settings).states == [State.LEFT] * FILES

    def test_what_may_go_well_next_time_is_tried_again(self, survey, monkeypatch):
        monkeypatch.setattr("xpkern.shards.run.FIRST_PAUSE", 0.0)
        calls: list[str] = []

        def flaky(units, digest, progress):
            for unit in units:
                calls.append(unit.name)
                if calls.count(unit.name) < 3:
                    yield Outcome(unit, error="the disk was away")
                else:
                    yield attempt(unit, digest)

        settings = load_settings(survey)
        summary = run_survey(settings, attempts=flaky)
        assert len(summary.done) == FILES
        assert len(calls) == 3 * FILES
        assert summary.failed == {}

        def hopeless(units, digest, progress):
            yield from (Outcome(unit, error="no disk") for unit in units)

        shutil.rmtree(survey.parent / "shards")
        summary = run_survey(settings, attempts=hopeless)
        assert set(summary.failed.values()) == {"no disk"}
        assert {record["attempts"] for record in Ledger.of(settings).records} == {settings.attempts}

    def test_one_unit_is_never_made_by_two_at_once(self, survey):
        settings = load_settings(survey)
        run_survey(settings, part=1, parts=FILES)
        unit = Unit.of(settings.input_files()[1], settings)
        with claimed(unit) as ours:
            assert ours
            summary = run_survey(settings)
            assert summary.elsewhere == [unit]
            assert len(summary.done) == FILES - 2
        assert len(run_survey(settings).done) == 1

    def test_what_another_run_has_made_meanwhile_is_not_made_again(self, survey):
        settings = load_settings(survey)
        ledger = Ledger.of(settings)
        unit = ledger.units[0]
        prepare_folder(settings)
        assert attempt(unit, ledger.settings_digest).record is not None
        before = unit.done.stat(), unit.catalog.stat()
        outcome = attempt(unit, ledger.settings_digest)
        assert outcome.elsewhere
        assert outcome.record is None
        assert (unit.done.stat(), unit.catalog.stat()) == before

    def test_two_runs_at_once(self, survey, undisturbed):
        command = [sys.executable, "-m", "xpkern", "run", str(survey)]
        runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
        assert [run.wait(timeout=120) for run in runs] == [0, 0]
        assert shards_of(survey.parent) == undisturbed

    def test_what_every_file_needs_is_looked_for_before_the_first(self, survey, capsys):
        """A wrong name would be every file's failure, which only `rerun --failed` tries again."""
        for name in ("gaia_source", "photometry", "calibration", "model"):
            write_settings(survey.parent, **{name: "nothing.fits"})
            assert main(["run", str(survey)]) == 1
            assert "nothing.fits" in one_line(capsys)
        (survey.parent / "broken.npz").write_bytes(b"PK\x03\x04")
        write_settings(survey.parent, calibration="broken.npz")
        assert main(["run", str(survey)]) == 1
        assert "broken.npz: not a readable calibration file" in one_line(capsys)
        assert not list(survey.parent.glob("shards/*.json"))

    def test_photometry_of_several_tables_tells_shards_apart(self, survey):
        gaia = Table.read(survey.parent / "sim" / "gaia_source.fits")
        of_2mass = ["j_m", "j_msigcom", "h_m", "h_msigcom", "ks_m", "ks_msigcom", "ph_qual"]
        unwise = [name for name in gaia.colnames if name.endswith(("_w1", "_w2")) or name == "separation"]
        assert set(of_2mass) < set(gaia.colnames)
        assert len(unwise) > 5
        for name, columns in (("two_mass", of_2mass), ("unwise", unwise)):
            gaia[["source_id", *columns]].write(survey.parent / f"{name}.fits")
        run_survey(load_settings(survey))
        whole = [read(unit.catalog) for unit in Ledger.of(load_settings(survey)).units]
        gaia.remove_columns([*of_2mass, *unwise])
        gaia.write(survey.parent / "alone.fits")
        several = {"gaia_source": "alone.fits", "photometry": ["two_mass.fits", "unwise.fits"], "output": "several"}
        settings = load_settings(write_settings(survey.parent, **several))
        run_survey(settings)
        for unit, expected in zip(Ledger.of(settings).units, whole, strict=True):
            for name, values in read(unit.catalog).items():
                np.testing.assert_array_equal(values, expected[name], err_msg=name)
        for names in (["two_mass.fits"], ["unwise.fits", "two_mass.fits"]):
            other = load_settings(write_settings(survey.parent, **several | {"photometry": names}))
            assert Ledger.of(other).count() == {State.CHANGED: FILES}

    def test_bad_places(self, survey, tmp_path):
        settings = load_settings(write_settings(tmp_path, output="no/such/folder"))
        with pytest.raises(InputError, match="its folder does not exist"):
            run_survey(settings)
        (tmp_path / "shards").write_text("")
        with pytest.raises(InputError, match="is a file, and should be the folder"):
            run_survey(load_settings(write_settings(tmp_path)))


class TestDeaths:
    def test_killed_at_any_moment_and_started_again(self, survey, undisturbed):
        command = [sys.executable, "-m", "xpkern", "run", str(survey), "--processes", "2"]
        started = time.monotonic()
        seconds = 3.0
        for _ in range(3):
            run = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
            time.sleep(random.uniform(0.2, seconds))
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
        assert time.monotonic() - started < 60
        assert main(["run", str(survey)]) == 0
        left = {name: data for name, data in shards_of(survey.parent).items() if not name.startswith(".")}
        assert left == undisturbed
        assert not [path for path in (survey.parent / "shards").iterdir() if path.suffix == ".partial"]

    @pytest.mark.skipif(ENGINE != "cpu", reason="the reference has no instruction sets")
    def test_processes_have_the_environment_of_now(self, survey, monkeypatch):
        server_of_processes()  # as a run before this one would have left it, with the environment of then
        monkeypatch.setenv("XPKERN_ISA", "scalar")
        run_survey(load_settings(survey), processes=2)
        for shard in (survey.parent / "shards").glob("*.h5"):
            with h5py.File(shard) as file:
                assert file.attrs["instruction_set"] == "scalar"

    def test_processes_come_with_what_they_need(self):
        with ProcessPoolExecutor(1, mp_context=server_of_processes()) as pool:

            def there(what: str) -> object:
                return pool.submit(eval, what).result()

            assert there("'xpkern.shards.workers' in __import__('sys').modules")
            assert there("__import__('gc').isenabled()")
            assert there("__import__('gc').get_freeze_count()") > 0

    def test_a_worker_that_is_killed_costs_an_attempt(self, survey, undisturbed, monkeypatch):
        monkeypatch.setattr("xpkern.shards.run.FIRST_PAUSE", 0.0)
        killed: list[int] = []

        def kill_one(ledger, units):
            import threading

            def kill() -> None:
                deadline = time.monotonic() + 60
                while not killed and time.monotonic() < deadline:
                    for pid in _children():
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
                        return
                    time.sleep(0.01)

            threading.Thread(target=kill).start()

        settings = load_settings(survey)
        summary = run_survey(settings, processes=2, on_start=kill_one)
        assert len(killed) == 1
        assert len(summary.done) == FILES
        assert shards_of(survey.parent) == undisturbed

    def test_sigterm_says_resume(self, survey, undisturbed):
        write_settings(survey.parent, engine="reference")
        run = subprocess.Popen(
            [sys.executable, "-m", "xpkern", "run", str(survey)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert "files to do" in run.stdout.readline()
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=60)
        assert run.returncode == RESUME
        assert "stopped by SIGTERM; " in errors
        assert "the same command goes on" in errors
        write_settings(survey.parent)
        assert main(["run", str(survey)]) == 0
        assert sorted(shards_of(survey.parent)) == sorted(undisturbed)

    @pytest.mark.parametrize("moment", ["settings.load_settings", "run.prepare_folder"])
    def test_sigterm_says_resume_before_anything_is_done(self, survey, monkeypatch, capsys, moment):
        monkeypatch.setattr(f"xpkern.shards.{moment}", lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert main(["run", str(survey)]) == RESUME
        assert one_line(capsys) == "xpkern: stopped by SIGTERM: the same command goes on\n"

    def test_no_space_left(self, survey, undisturbed):
        """A disk that is full half-way: what fitted on it stays, the rest is done once there is room."""
        disk = survey.parent / "disk"
        disk.mkdir()
        size = sum(map(len, undisturbed.values())) // 2
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("may not mount a small file system here")
        try:
            settings = load_settings(write_settings(survey.parent, output="disk/shards", attempts=1))
            summary = run_survey(settings)
            assert summary.failed
            for message in summary.failed.values():
                assert re.fullmatch(rf"{re.escape(str(disk))}/shards/\.Xp.*: No space left on device", message)
            assert not [path for path in (disk / "shards").rglob("*") if path.suffix == ".partial"]
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            run_survey(settings, again=(State.FAILED,))
            assert Ledger.of(settings).count() == {State.DONE: FILES}
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device that is always full")
    def test_no_space_left_for_the_log(self, survey, capsys):
        log = survey.parent / "shards" / "log" / f"{process_number()}.jsonl"
        log.parent.mkdir(parents=True)
        log.symlink_to("/dev/full")
        assert main(["run", str(survey)]) == 1
        assert one_line(capsys) == f"xpkern: {log}: No space left on device\n"

    def test_output_that_can_only_be_read(self, survey, undisturbed, capsys):
        """Each command says so in a line, and a run goes on where it was once it can write again."""
        disk = survey.parent / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("may not mount a small file system here")
        try:
            settings = write_settings(survey.parent, output="disk/shards", attempts=1)
            assert main(["run", str(settings), "--part", "1/3"]) == 0
            before = shards_of(disk)
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            first, *_ = load_settings(settings).input_files()
            gaia = str(survey.parent / "sim" / "gaia_source.fits")
            capsys.readouterr()
            for arguments in (
                ["run", str(settings)],
                ["collect", str(settings), "-o", str(disk / "catalog.h5")],
                ["collect", str(settings), "--virtual", "-o", str(disk / "catalog.h5")],
                ["convert", str(first), "-o", str(disk)],
                ["match", gaia, "--to", gaia, "--radius", "1", "-o", str(disk / "matched.h5")],
            ):
                assert main(arguments) == 1, arguments
                lines = capsys.readouterr().err.splitlines()
                assert any("Read-only file system" in line or "Permission denied" in line for line in lines)
                assert all(line.startswith("xpkern: ") for line in lines)
                assert str(disk) in "".join(lines)
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            assert shards_of(disk) == before
            assert main(["run", str(settings)]) == 0
            assert shards_of(disk) == undisturbed
        finally:
            subprocess.run(["umount", str(disk)], check=True)


class TestDealing:
    def test_dask(self, survey, undisturbed):
        distributed = pytest.importorskip("distributed")
        with distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster:
            assert main(["run", str(survey), "--dask", cluster.scheduler_address]) == 0
        assert shards_of(survey.parent) == undisturbed


def _children() -> list[int]:
    """Processes that this one has asked for to make shards."""
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]
