"""Settings of a survey run, which part of it a job of a batch system has, and how fast it goes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_lines import write_settings

from xpkern.cli import main
from xpkern.errors import InputError
from xpkern.shards import load_settings
from xpkern.shards.pace import Pace
from xpkern.shards.run import part_of_batch_job
from xpkern.shards.settings import shard_name


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
            ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "10"}, (5, 10)),
            ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (1, 4)),
            (
                {
                    "SLURM_ARRAY_TASK_ID": "2",
                    "SLURM_ARRAY_TASK_MIN": "0",
                    "SLURM_ARRAY_TASK_COUNT": "2",
                    "SLURM_ARRAY_TASK_STEP": "2",
                    "SLURM_PROCID": "1",
                    "SLURM_NTASKS": "3",
                },
                (5, 6),
            ),
        ],
    )
    def test_parts_of_slurm(self, monkeypatch, environment, expected):
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert part_of_batch_job() == expected

    @pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0"])
    def test_wrong_parts(self, text, capsys):
        with pytest.raises(SystemExit):
            main(["run", "survey.toml", "--shard", text])
        assert "is not K/N with K from 1 to N" in capsys.readouterr().err


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
