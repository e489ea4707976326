"""Settings of a survey run, its batch script, which part of it a job of one has, and how fast it goes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from command_lines import one_line, write_settings

from xpkern.cli import main
from xpkern.errors import InputError
from xpkern.shards import load_settings
from xpkern.shards.pace import Pace
from xpkern.shards.run import part_of_batch_job
from xpkern.shards.settings import shard_name


def array_task(number: int, lowest: int, highest: int, count: int, step: int = 1) -> dict[str, str]:
    """What Slurm tells a task of an array."""
    told = {"ID": number, "MIN": lowest, "MAX": highest, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


def step_task(rank: int, ranks: int) -> dict[str, str]:
    """What Slurm tells a process that srun has started."""
    return {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(ranks), "SLURM_NTASKS": str(ranks)}


def set_slurm(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    """Let Slurm tell this, and nothing else."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def touched_survey(folder: Path) -> Path:
    """Settings of a run of three files, which are there and empty."""
    (folder / "sim").mkdir()
    for name in ("Xp_1.csv.gz", "Xp_2.csv.gz", "Xp_3.csv.gz", "gaia_source.fits"):
        (folder / "sim" / name).touch()
    return write_settings(folder)


class TestSettings:
    def test_names_start_from_the_file_and_one_table_may_serve_each_range(self, tmp_path):
        (tmp_path / "in put é").mkdir()
        for name in ("Xp_000000-003111.csv.gz", "Xp_003112-005263.csv.gz"):
            (tmp_path / "in put é" / name).touch()
        settings = load_settings(
            write_settings(tmp_path, spectra="in put é/Xp_*.csv.gz", gaia_source="G_{range}.csv", starts=2)
        )
        files = settings.input_files()
        assert [shard_name(path) for path in files] == ["Xp_000000-003111", "Xp_003112-005263"]
        assert settings.tables_for(files[1], "gaia_source") == [tmp_path / "G_003112-005263.csv"]
        assert settings.tables_for(files[1], "photometry") == []
        assert settings.fit_options().starts == 2
        with pytest.raises(InputError, match=r"its name has no range, as 000000-003111, for G_\{range\}.csv"):
            settings.tables_for(Path("other.csv"), "gaia_source")
        names = ["J.csv", "W_{range}"]
        several = load_settings(write_settings(tmp_path, spectra="in put é/Xp_*.csv.gz", photometry=names))
        assert several.tables_for(files[0], "photometry") == [tmp_path / "J.csv", tmp_path / "W_000000-003111"]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"treads": 2}, "field treads: unknown key; did you mean threads?"),
            ({"spectra": 7}, "field spectra: 7 is neither text nor a list of texts"),
            ({"spectra": []}, "field spectra: no file is named"),
            ({"threads": "2"}, "field threads: '2' is not a whole number"),
            ({"starts": 0}, "field starts: 0 is not a positive number"),
            ({"starts": 2, "optimizer": "zgr23"}, "field starts: is for newton only"),
            ({"layout": "wide"}, "field layout: 'wide' is none of default, zgr23"),
            ({"engine": "gpu"}, "field engine: 'gpu' is none of auto, cuda, cpu, reference"),
            ({"photometry_cuts": ["unwise_q=0.5"]}, "field photometry_cuts: 'unwise_q=0.5' is not NAME=VALUE of a cut"),
        ],
    )
    def test_a_wrong_setting_is_named(self, tmp_path, changes, message):
        with pytest.raises(InputError, match="survey") as caught:
            load_settings(write_settings(tmp_path, **changes))
        assert message in str(caught.value)

    def test_files_that_are_not_there_not_toml_or_of_one_name(self, tmp_path):
        with pytest.raises(InputError, match="no such file"):
            load_settings(tmp_path / "none.toml")
        (tmp_path / "broken.toml").write_text("spectra = ")
        with pytest.raises(InputError, match=r"broken.toml: not valid TOML"):
            load_settings(tmp_path / "broken.toml")
        (tmp_path / "short.toml").write_text('spectra = "a"')
        with pytest.raises(InputError, match="field output: missing"):
            load_settings(tmp_path / "short.toml")
        with pytest.raises(InputError, match=r"field spectra: no such file: sim/Xp\*.csv.gz"):
            load_settings(write_settings(tmp_path)).input_files()
        for folder in "ab":
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "same.csv").touch()
        with pytest.raises(InputError, match="would both be the shard same"):
            load_settings(write_settings(tmp_path, spectra=["a/*.csv", "b/*.csv"])).input_files()

    def test_links_to_a_file_are_that_file_and_links_in_a_circle_do_no_harm(self, tmp_path):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "one.csv").touch()
        (tmp_path / "a" / "back").symlink_to(tmp_path / "a")
        (tmp_path / "a" / "also.csv").symlink_to(tmp_path / "a" / "one.csv")
        settings = load_settings(write_settings(tmp_path, spectra="a/**/*.csv"))
        assert [os.path.realpath(path) for path in settings.input_files()] == [str(tmp_path / "a" / "one.csv")]


class TestParts:
    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({}, (1, 1)),
            (array_task(7, 3, 12, 10), (5, 10)),
            (array_task(4, 4, 4, 1), (1, 1)),
            (step_task(0, 4), (1, 4)),
            # a batch script without srun: one process, for however many tasks there is room
            ({"SLURM_PROCID": "0", "SLURM_NTASKS": "6"}, (1, 1)),
            ({"SLURM_PROCID": "0", "SLURM_NTASKS": "6", **array_task(2, 1, 3, 3)}, (2, 3)),
            ({**array_task(2, 0, 2, 2, step=2), **step_task(1, 3)}, (5, 6)),
        ],
    )
    def test_parts_of_slurm(self, monkeypatch, environment, expected):
        set_slurm(monkeypatch, environment)
        assert part_of_batch_job() == expected

    @pytest.mark.parametrize(
        "environment",
        [
            array_task(7, 1, 7, 3),  # --array=1,2,7
            array_task(2, 1, 7, 3),
            array_task(1, 1, 4, 3),
            array_task(3, 0, 4, 3, step=2),
            array_task(5, 0, 5, 3, step=2),
            array_task(9, 1, 3, 3),
            step_task(3, 3),
        ],
    )
    def test_tasks_that_tell_no_part_are_refused(self, monkeypatch, tmp_path, capsys, environment):
        """They would leave files out, and say that all is well; by hand any part may be asked for."""
        settings = str(touched_survey(tmp_path))
        set_slurm(monkeypatch, environment)
        assert main(["rerun", settings, "--dry-run"]) == 1
        assert "give --part K/N" in one_line(capsys)
        assert main(["rerun", settings, "--dry-run", "--part", "2/3"]) == 0
        assert "1 of 1 files would be worked on" in capsys.readouterr().out

    @pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0"])
    def test_wrong_parts(self, text, capsys):
        with pytest.raises(SystemExit):
            main(["run", "survey.toml", "--shard", text])
        assert "is not K/N with K from 1 to N" in capsys.readouterr().err


class TestBatchScript:
    def test_what_it_says_and_that_an_edited_one_stays(self, tmp_path, capsys):
        settings, script = touched_survey(tmp_path), tmp_path / "job.sh"
        assert main(["run", str(settings), "--write-sbatch", str(script), "--tasks", "2"]) == 0
        assert capsys.readouterr().out.startswith(f"{script}: 2 jobs; edit it")
        text = script.read_text()
        assert "--array=1-2\n" in text
        assert f"-m xpkern run {settings}" in text
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert [path.name for path in (tmp_path / "shards").iterdir()] == ["log"]
        script.write_text(text.replace("04:00:00", "01:00:00"))
        assert main(["run", str(settings), "--write-sbatch", str(script)]) == 1
        assert "job.sh: exists, and may have been edited" in one_line(capsys)
        assert "01:00:00" in script.read_text()

    def test_no_more_jobs_than_files(self, tmp_path, capsys):
        settings, script = touched_survey(tmp_path), tmp_path / "job.sh"
        assert main(["run", str(settings), "--write-sbatch", str(script), "--tasks", "100"]) == 0
        assert ": 3 jobs, as there are no more files, and not 100; " in capsys.readouterr().out
        assert "--array=1-3\n" in script.read_text()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"spectra": "sim/none*.csv.gz"}, "no such file: sim/none*.csv.gz"),
            ({"gaia_source": "sim/none.fits"}, "no such file: sim/none.fits"),
            ({"model": "none.h5"}, "none.h5"),
            ({"output": "no/such/dir"}, "its folder does not exist"),
            ({"output": "survey.toml"}, "is a file"),
        ],
    )
    def test_what_a_run_refuses_is_refused_and_nothing_made(self, tmp_path, capsys, changes, message):
        touched_survey(tmp_path)
        settings = str(write_settings(tmp_path, **changes))
        before = sorted(tmp_path.rglob("*"))
        assert main(["run", settings, "--write-sbatch", str(tmp_path / "job.sh")]) == 1
        said = one_line(capsys)
        assert message in said
        assert sorted(tmp_path.rglob("*")) == before
        assert main(["run", settings]) == 1
        assert one_line(capsys) == said

    def test_nothing_is_made_where_its_folder_or_that_of_the_log_cannot_be(self, tmp_path, capsys):
        settings = str(touched_survey(tmp_path))
        before = sorted(tmp_path.rglob("*"))
        assert main(["run", settings, "--write-sbatch", str(tmp_path / "no" / "job.sh")]) == 1
        assert "its folder does not exist" in one_line(capsys)
        assert sorted(tmp_path.rglob("*")) == before
        (tmp_path / "shards").mkdir()
        (tmp_path / "shards" / "log").touch()
        assert main(["run", settings, "--write-sbatch", str(tmp_path / "job.sh")]) == 1
        assert str(tmp_path / "shards" / "log") in one_line(capsys)
        assert not (tmp_path / "job.sh").exists()
        assert (tmp_path / "shards" / "log").is_file()


class TestPace:
    def test_of_lines_cut_off_and_clocks_set_back(self, tmp_path):
        assert Pace.of(tmp_path) is None
        (tmp_path / "log").mkdir()
        line = {"outcome": "done", "seconds": 10.0, "rows": 100, "input_bytes": 1000}
        times = [0.0, 1000.0, 1010.0, 1020.0]  # the first belongs to a run long ago
        lines = [json.dumps(line | {"unix_time": time}) for time in times]
        (tmp_path / "log" / "a.jsonl").write_text("\n".join([*lines, '{"outcome": "do']))
        pace = Pace.of(tmp_path)
        assert (pace.stars_per_second, pace.bytes_per_second) == (10.0, 100.0)
        assert pace.time_for(0) == ""
        assert pace.time_for(100 * 90 * 60) == "; the rest takes 1.5 h at that"
        (tmp_path / "log" / "a.jsonl").write_text(json.dumps(line | {"unix_time": -5.0, "seconds": 0.0}))
        assert Pace.of(tmp_path).stars_per_second > 0
