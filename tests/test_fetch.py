"""``xpkern fetch``: its queries by a real parser of ADQL, its downloads from an archive on this machine."""

from __future__ import annotations

import gzip
import json
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from archive_server import Sky, archive_server
from astropy.table import Table
from command_lines import one_line

from xpkern.archive import Archive, Selection, fetch, gaia_source_query, two_mass_query
from xpkern.archive.service import TIMEOUT
from xpkern.cli import main
from xpkern.errors import InputError

pytest.importorskip("pyvo", reason="the extra 'survey' is not installed")

REGION = Selection.region("CIRCLE 180 30 0.8")


@pytest.fixture
def sky(rng) -> Sky:
    return Sky(rng)


@pytest.fixture
def archive(sky):
    """The archive of this machine, asked without patience."""
    told: list[str] = []
    with archive_server(sky) as address:
        yield Archive(f"{address}/tap", f"{address}/data", attempts=3, first_pause=0.0, timeout=20.0, tell=told.append)


def spectra_in(summary) -> list[int]:
    lines = [line for path in summary.spectra for line in gzip.decompress(path.read_bytes()).decode().splitlines()[1:]]
    return [int(line.partition(",")[0]) for line in lines]


def check(summary, sky: Sky, rows: np.ndarray) -> None:
    """Everything of the sources of these rows is in the folder, once."""
    source_id = sky.source_id[rows]
    gaia = Table.read(summary.gaia_source)
    np.testing.assert_array_equal(gaia["source_id"], source_id)
    np.testing.assert_array_equal(gaia["ra"], sky.ra[rows])
    np.testing.assert_array_equal(
        np.ma.getmaskarray(gaia["parallax"]) | np.isnan(np.ma.getdata(gaia["parallax"])), rows % 7 == 0
    )
    two_mass = Table.read(summary.two_mass)
    np.testing.assert_array_equal(two_mass["source_id"], source_id[sky.with_two_mass[rows]])
    assert sorted(spectra_in(summary)) == source_id[sky.with_spectra[rows]].tolist()
    assert summary.sources == len(rows)
    assert summary.with_spectra == int(sky.with_spectra[rows].sum())
    assert summary.with_two_mass == int(sky.with_two_mass[rows].sum())
    assert not list(summary.folder.glob("*-?????.fits"))


class TestQueries:
    def test_are_adql(self):
        adql = pytest.importorskip("queryparser.adql", reason="queryparser-python3 is not installed")
        selections = [
            Selection.region("polygon 10 20, 11 20, 11 21"),
            Selection.region("BOX 10 -20 1 2").and_after(5).and_between(3, 9),
            Selection.file_range("XpContinuousMeanSpectrum_000000-003111.csv.gz"),
            Selection.sources([4295806720, 34361129088]),
        ]
        conditions = [f"SELECT g.source_id FROM gaiadr3.gaia_source AS g WHERE {each.condition}" for each in selections]
        for query in (gaia_source_query(REGION, 100), two_mass_query(REGION, 100), *conditions):
            adql.ADQLQueryTranslator(query).to_postgresql()

    def test_ask_for_every_band_of_quality_a_and_no_extended_source(self):
        query = two_mass_query(REGION, 5)
        assert all(f"LIKE '{pattern}'" in query for pattern in ("A__", "_A_", "__A"))
        assert "ext_key IS NULL" in query
        assert "astrophysical_parameters" not in gaia_source_query(REGION, 5)
        assert "nu_eff_used_in_astrometry" in gaia_source_query(REGION, 5)

    def test_range_of_a_file(self):
        first, last = 3112 << 43, (5264 << 43) - 1
        assert Selection.file_range("003112-005263").condition == f"g.source_id BETWEEN {first} AND {last}"
        # the source of the archive's own example lies in the first file
        assert 0 <= 4295806720 <= (3112 << 43) - 1

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "CIRCLE 1 2",
            "CIRCLE 1 95 1",
            "CIRCLE 1 2 0",
            "CIRCLE 1 2 x",
            "CIRCLE nan 30 1",
            "CIRCLE 1 nan 1",
            "CIRCLE 1 2 nan",
            "CIRCLE 1 2 -1",
            "CIRCLE 400 30 1",
            "CIRCLE -1 30 1",
            "CIRCLE inf 30 1",
            "CIRCLE 1 2 inf",
            "POLYGON 1 2 3 4 400 6",
            "POLYGON 1 2 3 4 5 -96",
            "DISC 1 2 3",
            "POLYGON 1 2 3 4",
            "BOX 1 2 3",
        ],
    )
    def test_wrong_regions(self, text):
        with pytest.raises(InputError, match="field --region: "):
            Selection.region(text)

    @pytest.mark.parametrize("text", ["", "3112-5263", "005263-003112"])
    def test_wrong_ranges(self, text):
        with pytest.raises(InputError, match="field range: "):
            Selection.file_range(text)


class TestFetch:
    @pytest.mark.parametrize("row_limit", [10_000, 30])
    def test_a_region_whole_also_where_the_archive_cuts_off(self, archive, sky, tmp_path, row_limit):
        sky.row_limit = row_limit
        seen: list[int] = []
        summary = fetch(tmp_path / "region", REGION, archive=archive, piece=50, on_sources=seen.append)
        rows = sky.rows_of(gaia_source_query(REGION, 1000))
        assert 50 < len(rows) < 200
        check(summary, sky, rows)
        assert sum(seen) == len(rows)
        # all jobs were removed from the archive
        assert {phase for _, phase in sky.jobs.values()} == {"DELETED"}

    def test_listed_sources_and_a_query_of_ones_own(self, archive, sky, tmp_path):
        rows = np.arange(20, 50)
        summary = fetch(tmp_path / "ids", sky.source_id[rows[::-1]], archive=archive, piece=20)
        check(summary, sky, rows)
        own = f"SELECT source_id FROM gaiadr3.gaia_source AS g WHERE g.source_id > {sky.source_id[150]}"
        check(fetch(tmp_path / "adql", own, archive=archive, piece=20), sky, np.arange(151, 200))
        sky.row_limit = 10
        with pytest.raises(InputError, match="the archive cut its answer off after 10 rows"):
            fetch(tmp_path / "cut", own, archive=archive)
        with pytest.raises(InputError, match=r"refuses the query: .*no such column"):
            fetch(tmp_path / "wrong", "SELEKT 1", archive=archive)

    def test_stumbles_are_tried_again(self, archive, sky, tmp_path):
        archive.attempts = 9
        sky.faults = deque(["500", "", "hang up", "html", "", "500", "html"])
        rows = np.arange(10)
        check(fetch(tmp_path / "a", sky.source_id[rows], archive=archive), sky, rows)
        assert not sky.faults

    def test_silence_is_no_answer_but_a_query_may_take_its_time(self, archive, sky, tmp_path):
        archive.timeout, archive.attempts, sky.silence, sky.job_seconds = 0.3, 9, 0.4, 0.5
        rows = np.arange(10)
        told: list[str] = []
        archive.tell = told.append
        sky.faults = deque(["", "silence", "", "", "", "", "silence"])
        check(fetch(tmp_path / "a", sky.source_id[rows], archive=archive), sky, rows)
        assert not sky.faults
        assert len(told) >= 2
        assert all("timed out" in text for text in told)
        archive.attempts, sky.faults = 1, deque(["silence"])
        with pytest.raises(InputError, match=r"no usable answer after 1 attempts: .*timed out"):
            fetch(tmp_path / "b", sky.source_id[rows], archive=archive)

    @pytest.mark.parametrize(
        ("fault", "message"), [("html", "Please log in|404"), ("500", "500"), ("hang up", "onnection")]
    )
    def test_what_does_not_pass_is_told_and_nothing_is_lost(self, archive, sky, tmp_path, fault, message):
        rows = np.arange(60)
        sky.with_spectra[:] = True  # as the archive says

        def then_fail(sources: int) -> None:
            sky.faults.extend([fault] * 100)

        with pytest.raises(
            InputError, match=rf"http://127.0.0.1:\d+/\w+: no usable answer after 3 attempts: .*({message})"
        ):
            fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=20, on_sources=then_fail)
        assert json.loads((tmp_path / "a" / "fetch.json").read_text())["pieces"][0]["sources"] == 20
        sky.faults.clear()
        asked = sky.asked["spectra"]
        check(fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=20), sky, rows)
        assert sky.asked["spectra"] - asked == 2  # the first piece was not asked for again
        asked = sum(sky.asked.values())
        check(fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=20), sky, rows)
        assert sum(sky.asked.values()) == asked

    def test_an_archive_that_is_not_there(self, tmp_path):
        archive = Archive("http://127.0.0.1:9/tap", "http://127.0.0.1:9/data", attempts=2, first_pause=0.0)
        with pytest.raises(InputError, match="no usable answer after 2 attempts"):
            fetch(tmp_path / "a", REGION, archive=archive)

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("html", r"no data but a web page \(HTML\): 'Please log in'"),
            ("xml", "but '.*<status>busy</status>'"),
            ("text", "but 'busy, come back later'"),
            ("nothing", "but an empty answer"),
            ("cut", "no whole zip file but a truncated or damaged one of 70 bytes"),
        ],
    )
    def test_what_the_server_answered_is_said(self, archive, sky, tmp_path, fault, message):
        archive.attempts = 2
        places = {  # of a query the job is made, then its answer fetched; two queries for each of two tables
            "data": [""] * 8 + [fault] * 2,
            "tap": [fault] * 20,
            "tap, the answer": ["", fault] * 2,
        }
        for where, faults in places.items() if fault != "cut" else [("data", places["data"])]:
            sky.faults = deque(faults)
            said = rf"^http://127.0.0.1:\d+/{where[:4].strip(',')}: no usable answer after 2 attempts: .*{message}$"
            with pytest.raises(InputError, match=said):
                fetch(tmp_path / where, sky.source_id[:9], archive=archive)

    @pytest.mark.parametrize("url", ["notaurl", "ftp://a.b/tap", "http://", "https:/a.b", "http://[1"])
    def test_what_is_no_address(self, url):
        for name in ("tap_url", "data_url"):
            with pytest.raises(InputError, match="no address of a server"):
                Archive(**{name: url})

    @pytest.mark.parametrize("lost", ["some", "all"])
    def test_spectra_that_the_server_lost_are_asked_for_again(self, archive, sky, tmp_path, lost):
        sky.with_spectra[:] = True
        rows = np.arange(25)
        sky.lost = lost
        summary = fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=10)
        gone = [source_id for source_id in sky.source_id[rows].tolist() if source_id not in spectra_in(summary)]
        assert len(gone) == {"some": 12, "all": 25}[lost]
        assert (summary.sources, summary.with_spectra) == (25, 25 - len(gone))
        assert summary.missing == tmp_path / "a" / "missing.csv"
        noted = Table.read(summary.missing, format="ascii.csv")
        assert noted["source_id"].tolist() == gone
        assert set(noted["reason"]) == {"no spectrum came though gaia_source says that there is one"}
        # what came is not asked for again, nor are the tables
        sky.lost, asked = "", sky.asked.copy()
        again = fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=10)
        check(again, sky, rows)
        assert again.missing is None
        assert not summary.missing.exists()
        assert sky.asked - asked == {"spectra": 3}
        fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=10)
        assert (sky.asked - asked)["spectra"] == 3

    def test_a_break_between_lost_spectra_and_their_record(self, archive, sky, tmp_path):
        sky.with_spectra[:] = True
        rows, sky.lost = np.arange(25), "some"
        fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=10)
        before = (tmp_path / "a" / "fetch.json").read_bytes()
        sky.lost = ""
        fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=10)
        (tmp_path / "a" / "fetch.json").write_bytes(before)
        check(fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=10), sky, rows)

    def test_spectra_lost_before_a_break(self, archive, sky, tmp_path):
        sky.with_spectra[:] = True
        rows, sky.lost = np.arange(25), "all"

        def then_fail(sources: int) -> None:
            sky.faults.extend(["500"] * 100)

        with pytest.raises(InputError, match="500"):
            fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=10, on_sources=then_fail)
        sky.faults.clear()
        sky.lost = ""
        check(fetch(tmp_path / "a", sky.source_id[rows], archive=archive, piece=10), sky, rows)

    def test_sources_that_are_not_there(self, archive, sky, tmp_path):
        sky.with_spectra[:] = True
        wrong = [5, int(sky.source_id[3]) + 1]
        ids = [*sky.source_id[:5].tolist(), *wrong, wrong[0]]
        summary = fetch(tmp_path / "a", ids, archive=archive, piece=3)
        check(summary, sky, np.arange(5))
        assert (summary.asked, summary.not_found) == (7, 2)
        noted = Table.read(summary.missing, format="ascii.csv")
        assert noted["source_id"].tolist() == wrong
        assert set(noted["reason"]) == {"not in gaia_source or without XP spectra"}
        none = fetch(tmp_path / "b", wrong, archive=archive)
        assert (none.sources, none.asked, none.not_found) == (0, 2, 2)

    def test_folders(self, archive, sky, tmp_path):
        fetch(tmp_path / "a", sky.source_id[:5], archive=archive)
        with pytest.raises(InputError, match="holds another download"):
            fetch(tmp_path / "a", sky.source_id[:6], archive=archive)
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "precious.txt").touch()
        with pytest.raises(InputError, match="is not empty"):
            fetch(tmp_path / "b", REGION, archive=archive)
        with pytest.raises(InputError, match="its folder does not exist"):
            fetch(tmp_path / "c" / "d", REGION, archive=archive)
        (tmp_path / "a" / "fetch.json").write_text("[]")
        with pytest.raises(InputError, match="is no record of a download"):
            fetch(tmp_path / "a", REGION, archive=archive)

    def test_nothing_there(self, archive, tmp_path):
        summary = fetch(tmp_path / "a", Selection.region("CIRCLE 10 -30 1"), archive=archive)
        assert (summary.sources, summary.spectra) == (0, [])


class TestCommand:
    def test_of_a_list(self, archive, sky, tmp_path, capsys):
        sky.with_spectra[:] = True
        ids = tmp_path / "ids.csv"
        ids.write_text("source_id\n" + "".join(f"{number}\n" for number in sky.source_id[:30]))
        arguments = ["--tap", archive.tap_url, "--datalink", archive.data_url, "-o", str(tmp_path / "out")]
        assert main(["fetch", "--ids", str(ids), *arguments]) == 0
        assert "30 sources, 30 with spectra" in capsys.readouterr().out
        assert len(Table.read(tmp_path / "out" / "gaia_source.fits")) == 30

    def test_sources_without_spectra_are_told_of(self, archive, sky, tmp_path, capsys):
        sky.with_spectra[3] = False
        sky.with_spectra[[0, 1, 2, 4]] = True
        query = tmp_path / "q.sql"
        query.write_text(
            f"SELECT source_id FROM gaiadr3.gaia_source AS g WHERE g.source_id BETWEEN 0 AND {sky.source_id[4]}"
        )
        arguments = ["--tap", archive.tap_url, "--datalink", archive.data_url, "-o", str(tmp_path / "out")]
        assert main(["fetch", "--adql", str(query), *arguments]) == 3
        assert f"no spectra of 1 sources came: {tmp_path / 'out' / 'missing.csv'} lists them" in capsys.readouterr().err
        sky.with_spectra[3] = True
        assert main(["fetch", "--adql", str(query), *arguments]) == 0
        said = capsys.readouterr()
        assert "5 asked for: 5 sources, 5 with spectra" in said.out
        assert said.err == ""

    def test_sources_that_are_not_found_are_told_of(self, archive, sky, tmp_path, capsys):
        sky.with_spectra[:] = True
        ids = tmp_path / "ids.csv"
        ids.write_text(f"source_id\n{sky.source_id[0]}\n7\n")
        arguments = ["--tap", archive.tap_url, "--datalink", archive.data_url, "-o", str(tmp_path / "out")]
        assert main(["fetch", "--ids", str(ids), *arguments]) == 3
        said = capsys.readouterr()
        assert "2 asked for: 1 sources, 1 with spectra" in said.out
        assert "1 of 2 sources were not found" in said.err
        assert str(tmp_path / "out" / "missing.csv") in said.err

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            (("--tap", "notaurl"), "'notaurl': no address of a server: http:// or https://"),
            (("--datalink", "notaurl"), "'notaurl': no address of a server: http:// or https://"),
            (("--timeout", "0"), "field timeout: 0 is not a number of seconds to wait"),
            (("--timeout", "nan"), "field timeout: nan is not a number of seconds to wait"),
            (
                ("--region", "CIRCLE nan 30 1"),
                "--region: 'CIRCLE nan 30 1' has a right ascension nan, not between 0 and",
            ),
        ],
    )
    def test_wrong_options_are_refused_at_once(self, tmp_path, capsys, option, message):
        region = () if "--region" in option else ("--region", "CIRCLE 180 30 1")
        assert main(["fetch", *region, *option, "-o", str(tmp_path / "out")]) == 1
        assert message in one_line(capsys)
        assert not (tmp_path / "out").exists()

    def test_help_tells_of_the_exit_code_and_the_timeout(self, capsys):
        with pytest.raises(SystemExit):
            main(["fetch", "--help"])
        said = capsys.readouterr().out
        assert "\n  3    complete, but some spectra did not come" in said
        assert f"default: {TIMEOUT:g}\n" in said

    def test_a_server_may_be_silent_for_as_long_as_is_said(self, archive, sky, tmp_path, monkeypatch, capsys):
        """For both services; then it is asked again."""
        monkeypatch.setattr("xpkern.archive.service.time", SimpleNamespace(sleep=lambda seconds: None))
        sky.with_spectra[:] = True
        ids = tmp_path / "ids.csv"
        ids.write_text("".join(f"{number}\n" for number in sky.source_id[:9]))
        arguments = ["--tap", archive.tap_url, "--datalink", archive.data_url, "--timeout", "0.3"]
        sky.silence, sky.faults = 0.6, deque(["silence", *[""] * 8, "silence"])
        assert main(["fetch", "--ids", str(ids), *arguments, "-o", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().err.splitlines()
        assert [line.split(": ")[1] for line in said] == [archive.tap_url, archive.data_url]
        assert all("(read timeout=0.3)" in line for line in said)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("4295806720\nHD 1234\n", "row 2, field source_id: 'HD 1234' is no source_id"),
            ("source_id\n4295806720\n99999999999999999999\n", "row 2, field source_id: '99999999999999999999' is no"),
            ("-5\n", "row 1, field source_id: '-5' is no source_id"),
            ("12²\n", "row 1, field source_id: '12²' is no source_id"),
            ("source_id\n", "field source_id: no source in it"),
            ("", "the file holds no header line"),
        ],
    )
    def test_wrong_numbers(self, tmp_path, capsys, text, message):
        ids = tmp_path / "ids.csv"
        ids.write_text(text)
        assert main(["fetch", "--ids", str(ids), "-o", str(tmp_path / "out")]) == 1
        said = one_line(capsys)
        assert str(ids) in said
        assert message in said
        assert not (tmp_path / "out").exists()
