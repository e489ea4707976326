"""The report of a catalogue: its page, its figures, the data behind them, and what it says where there is none."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.table import Table
from command_lines import one_line

from bench.made_catalogue import made_rows, write_made_catalogue
from xpkern.catalog.schema import DEFAULT
from xpkern.catalog.writers import writer_for
from xpkern.cli import main
from xpkern.maps import figures as map_figures
from xpkern.model import load_model
from xpkern.report import demo_page, spectrum_plot, star_figures, style
from xpkern.report import run as report_run
from xpkern.report.drawing import SYMBOLS, Drawing
from xpkern.report.residual_figures import Residuals
from xpkern.report.run import write_report

STARS = 3000

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    """A catalogue of drawn numbers, labels, a list of members, what a training run wrote."""
    folder = tmp_path_factory.mktemp("survey")
    write_made_catalogue(folder / "catalog.h5", STARS, seed=5, labels=folder / "labels.fits")
    with h5py.File(folder / "catalog.h5") as file:
        ids = file["source_id"][:]
    members = {"source_id": ids[100:400], "pmra": np.linspace(-1, 1, 300), "pmdec": np.linspace(2, 3, 300)}
    Table(members).write(folder / "members.ecsv")
    write_training(folder / "model.stars.h5", ids[:800])
    return folder


def write_training(path: Path, ids: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        file["stars/source_id"] = ids
        file["stars/used"] = rng.choice([0, 2, 3], len(ids)).astype(np.uint8)
        for name, middle, error in (
            ("teff", 5.7, 0.02),
            ("feh", 0.0, 0.03),
            ("logg", 4.5, 0.03),
            ("ext", 0.02, 0.01),
            ("plx", 2.0, 0.05),
        ):
            file[f"stars/{name}_label"] = middle + error * rng.normal(size=len(ids))
            file[f"stars/{name}_label_err"] = np.full(len(ids), error)
            file[f"stars/{name}"] = middle + error * rng.normal(size=len(ids))


#: Figures that the tests render as the command does; the others are only drawn, which takes a tenth of the time.
RENDERED = ("kiel", "labels_teff_residual")

#: A picture of one pixel.
EMPTY_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)

render = report_run._render


def draw_only(part: Drawing) -> tuple[bytes, bytes]:
    """Call everything that draws a part; what fails would fail here."""
    from matplotlib.figure import Figure

    part.draw(Figure(figsize=part.size))
    return EMPTY_PNG, b"%PDF"


def render_some(part: Drawing) -> tuple[bytes, bytes]:
    """Render some figures, draw one of each other kind."""
    if part.name in RENDERED:
        return render(part)
    is_repeated = isinstance(part, Residuals) or part.name.startswith("compare_")
    return (EMPTY_PNG, b"%PDF") if is_repeated else draw_only(part)


@pytest.fixture(scope="module")
def report(survey) -> Path:
    """Everything a report can have, of the command line."""
    options = [
        "--labels",
        survey / "labels.fits",
        "--compare",
        survey / "catalog.h5",
        "--members",
        survey / "members.ecsv",
    ]
    options += ["--distance", "2.5", "--training", survey / "model.stars.h5", "-o", survey / "report"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_run, "_render", render_some)
        assert main(["report", str(survey / "catalog.h5"), *map(str, options)]) == 0
    return survey / "report"


class Page(HTMLParser):
    """Links, images and text of a page; every element that is opened must be closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images = 0
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)
        assert not self.opened

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag not in ("meta", "link", "img", "br"):
            self.opened.append(tag)
        if "id" in named:
            self.ids.append(named["id"])
        if tag == "a":
            self.links.append(named["href"])
        if tag == "img":
            assert named["src"].startswith("data:image/png;base64,")
            assert named["alt"]
            self.images += 1

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag


def no_data(path: Path) -> dict[str, str]:
    """What each empty figure says, by its name."""
    found = re.findall(r'<figure id="(\w+)" class="empty">.*?No data: (.*?)\.</p>', path.read_text(encoding="utf-8"))
    return dict(found)


def test_page_is_whole_and_every_figure_has_its_files(report, survey):
    page = Page(report / "index.html")
    assert len(set(page.ids)) == len(page.ids)
    assert not no_data(report / "index.html").keys() - {"extinction"}  # which needs a package
    for link in page.links:
        assert link[1:] in page.ids if link.startswith("#") else (report / link).stat().st_size > 0
    drawn = {path.stem for path in (report / "figures").iterdir()}
    assert page.images == len(drawn)
    for name in drawn:
        assert (report / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert (report / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    for path in (report / "data").iterdir():
        lines = path.read_text().splitlines()
        assert lines[0] == "# %ECSV 1.0"
        assert not lines[-1].startswith("#")
    assert {path.stem for path in (report / "data").iterdir()} > drawn
    # nothing is fetched from elsewhere
    assert not re.search(r'(src|href)="(https?:)?//|@import|url\(|<script', page.text)
    assert json.loads((report / "report.json").read_text())["stars"] == STARS
    assert not [path for path in survey.iterdir() if path.name.startswith(".report")]


def test_numbers_are_those_of_the_catalogue(report, survey):
    with h5py.File(survey / "catalog.h5") as file:
        catalog = {name: file[name][:] for name in file}
    flags = Table.read(report / "data" / "flags.ecsv")
    for line in flags:
        assert line["stars"] == np.count_nonzero(catalog[line["column"]] & line["value"])
    reliable = catalog["quality_flags"] < 8
    cuts = Table.read(report / "data" / "quality_cuts.ecsv")
    confident = [reliable & (catalog[f"{name}_confidence"] > 0.5) for name in ("teff", "feh", "logg")]
    expected = [STARS, reliable.sum(), *(mask.sum() for mask in confident), np.logical_and.reduce(confident).sum()]
    assert cuts["stars"].tolist() == expected
    kiel = Table.read(report / "data" / "kiel.ecsv")
    assert kiel["stars"][kiel["panel"] == "all"].sum() <= STARS

    labels = Table.read(survey / "labels.fits")
    _, rows, others = np.intersect1d(catalog["source_id"], labels["source_id"], return_indices=True)
    numbers = Table.read(report / "data" / "labels_numbers.ecsv")
    for k, name in enumerate(("teff", "feh", "logg", "ext")):
        good = (confident[k] if k < 3 else reliable)[rows]
        residual = catalog[name][rows][good].astype(float) - np.asarray(labels[name], float)[others][good]
        sigma = np.hypot(catalog[f"{name}_error"][rows][good], np.asarray(labels[f"{name}_err"])[others][good])
        line = numbers[(numbers["parameter"] == name) & np.isnan(numbers["g_low"])][0]
        assert line["stars"] == good.sum()
        low, middle, high = np.quantile(residual, (0.158655, 0.5, 0.841345))
        assert line["scatter"] == pytest.approx(0.5 * (high - low), rel=0.02)
        assert line["bias"] == pytest.approx(middle, abs=0.03 * line["scatter"])
        low, middle, high = np.quantile(residual / sigma, (0.158655, 0.5, 0.841345))
        assert line["pull_width"] == pytest.approx(0.5 * (high - low), rel=0.02)
        by_g = numbers[(numbers["parameter"] == name) & ~np.isnan(numbers["g_low"])]
        assert by_g["stars"].sum() == good.sum()
    compared = Table.read(report / "data" / "compare_numbers.ecsv")
    usual = np.array([SYMBOLS[name][2] for name in compared["parameter"]])
    assert np.abs(compared["bias"] / usual).max() < 1e-4  # it is the same catalogue

    camd = Table.read(report / "data" / "reliability.ecsv")
    assert camd.meta["x"] == "BP - RP [mag]"
    with h5py.File(survey / "catalog.diagnostics.h5") as file:
        every_residual = file["residual"][:].astype(float)
    residual = every_residual[reliable]
    fluxes = Table.read(report / "data" / "flux_residuals.ecsv")
    assert fluxes["stars"].tolist() == np.count_nonzero(residual, axis=0).tolist()
    assert fluxes["p50"][10] == pytest.approx(np.median(residual[:, 10]), abs=0.03)
    assert fluxes["sample"][-1] == "W2"
    with h5py.File(survey / "catalog.h5") as file:
        columns = {name: file[name][:].astype(float) for name in ("chi2", "chi2_dof", "loss", "parallax_error")}
        snr, flags = file["parallax"][:] / columns["parallax_error"], file["quality_flags"][:]
    mapped = (flags & 48 == 0) & (columns["chi2"] / columns["chi2_dof"] < 5.0)  # the cuts of Figs. 25 and 26
    w1 = every_residual[:, -2]
    sky = Table.read(report / "data" / "flux_sky.ecsv")
    assert sky["W1_stars"].sum() == np.count_nonzero(mapped & (w1 != 0.0) & (np.abs(w1) < 10.0))
    kept = (columns["loss"] / columns["chi2_dof"] <= 5.0) & (snr >= 5.0) & reliable  # those of section 4.4
    line = numbers[(numbers["parameter"] == "ext") & (numbers["which"] == "section 4.4")][0]
    assert 0 < line["stars"] == np.count_nonzero(kept & np.isin(catalog["source_id"], labels["source_id"]))
    cluster = Table.read(report / "data" / "cluster.ecsv")
    assert len(cluster) == 300
    assert 0 < cluster["counted"].sum() < 300


def test_blocks_of_any_size_give_the_same_report(survey, monkeypatch):
    """Data only: what is counted does not depend on how many stars are read at a time."""
    monkeypatch.setattr(report_run, "_render", lambda part: (b"", b""))
    for name, rows in (("large", 1 << 16), ("small", 700)):
        monkeypatch.setattr(report_run, "BLOCK_ROWS", rows)
        write_report(survey / "catalog.h5", survey / name, labels=survey / "labels.fits")
    for path in (survey / "large" / "data").iterdir():
        other = survey / "small" / "data" / path.name
        if path.stem in ("flux_means", "flux_sky", "sky"):  # sums of floating point numbers
            one, two = Table.read(path), Table.read(other)
            for column in one.colnames:
                if one[column].dtype.kind == "f":
                    np.testing.assert_allclose(one[column], two[column], rtol=1e-5, atol=1e-6)
        else:
            assert path.read_bytes() == other.read_bytes(), path.name


@pytest.fixture
def counted(monkeypatch):
    """Everything is counted and described; nothing is drawn, and no data is written, which takes most of the time."""
    monkeypatch.setattr(report_run, "_render", lambda part: (b"", b""))
    monkeypatch.setattr(report_run, "_write_data", lambda table, path: None)


@pytest.fixture
def drawn(monkeypatch):
    """Everything is drawn, too, but not rendered."""
    monkeypatch.setattr(report_run, "_render", draw_only)


def changed(rows, n, **columns):
    """A few rows with other numbers in some columns."""
    for name, values in columns.items():
        if name in rows.observed:
            rows.observed[name] = np.resize(values, n)
        else:
            object.__setattr__(rows, name, np.resize(values, (n, *getattr(rows, name).shape[1:])))
    return rows


def write(path: Path, rows, columns=DEFAULT) -> Path:
    writer = writer_for(path)(path, columns, {})
    writer.append(rows)
    writer.close()
    return path


def test_without_covariances_companion_labels(tmp_path, counted):
    rows, _ = made_rows(50, 1, confident=False)
    absent = ("_corr", "phot_bp_mean_mag")
    columns = [column for column in DEFAULT if not column.name.endswith(absent)]
    page = write_report(write(tmp_path / "c.h5", rows, columns), tmp_path / "report")
    said = no_data(page)
    assert said["correlations"].startswith("needs the columns teff_feh_corr, ")
    assert said["flux_residuals"] == "needs the diagnostics companion beside the catalogue"
    assert said["labels_numbers"] == "needs labels: --labels TABLE"
    assert said["compare_numbers"] == "needs another catalogue: --compare FILE"
    assert said["cluster"].startswith("needs a list of a cluster")
    assert said["self_cleaning"].startswith("needs what a training run wrote")
    assert "The catalogue has no confidences yet" in page.read_text()
    assert "The catalogue has no BP − RP, so that temperature stands for it" in page.read_text()


def test_one_star(tmp_path, drawn):
    write_made_catalogue(tmp_path / "c.h5", 1, seed=3, labels=tmp_path / "labels.fits", labelled=1.0)
    page = write_report(tmp_path / "c.h5", tmp_path / "report", labels=tmp_path / "labels.fits")
    assert "<dt>stars</dt><dd>1</dd>" in page.read_text()


def test_no_star_at_all(tmp_path, counted):
    rows, _ = made_rows(1, 1)
    path = write(tmp_path / "c.h5", rows)
    with h5py.File(path, "r+") as file:
        for name in list(file):
            attributes = dict(file[name].attrs)
            empty = file[name][:0]
            del file[name]
            file.create_dataset(name, data=empty).attrs.update(attributes)
    said = no_data(write_report(path, tmp_path / "report"))
    assert said["kiel"] == "no star has a temperature and a surface gravity"
    assert said["quality_cuts"] == "the catalogue has no stars"


def test_all_flagged(tmp_path, counted, survey):
    rows, _ = made_rows(300, 5)
    object.__setattr__(rows, "quality_flags", np.full(300, 63, np.uint8))
    labels = Table({"source_id": rows.source_id, "teff": 1000.0 * rows.params[:, 0], "feh": rows.params[:, 1]})
    labels.write(tmp_path / "labels.fits")
    page = write_report(write(tmp_path / "c.h5", rows), tmp_path / "report", labels=tmp_path / "labels.fits")
    said = no_data(page)
    assert said["labels_numbers"] == "of 300 stars in both none passes the basic cut (quality_flags &lt; 8)"
    assert "none passes the basic cut" in said["labels_teff_residual"]
    assert said["labels_ext_residual"] == "the label table has no ext"
    assert said["correlations"] == "no reliable star has correlations and a measured parallax"
    assert "kiel" not in said  # all stars are drawn there
    assert "reliability" not in said


def test_labels_that_match_nothing(tmp_path, counted, survey):
    Table({"source_id": [-5, -6], "teff": [5000.0, 6000.0]}).write(tmp_path / "labels.fits")
    page = write_report(survey / "catalog.h5", tmp_path / "report", labels=tmp_path / "labels.fits")
    said = no_data(page)
    for name in ("labels_numbers", "labels_teff_residual", "labels_residuals", "labels_good_bad"):
        assert "no star of the catalogue is in the label table: are these source_ids of the same release?" in said[name]


def test_places_and_parallaxes_that_are_none(tmp_path, counted):
    rows, _ = made_rows(200, 2)
    rows = changed(rows, 200, ra=[np.nan], dec=[np.nan], plx_observed=-np.abs(rows.plx_observed))
    object.__setattr__(rows, "params", np.where(np.arange(5) == 4, -1.0, rows.params))
    said = no_data(write_report(write(tmp_path / "c.h5", rows), tmp_path / "report"))
    assert said["sky"] == "none of 200 stars has coordinates"
    assert said["reliability"] == "no star has a magnitude G, an estimated parallax and a temperature"
    assert "kiel" not in said
    rows = changed(rows, 200, ra=[np.nan, 10.0], dec=[np.nan, 20.0])
    page = write_report(write(tmp_path / "d.h5", rows), tmp_path / "half")
    assert "100 stars without coordinates" in page.read_text()


def test_the_published_layout(tmp_path, counted):
    write_made_catalogue(tmp_path / "c.h5", 60, layout="zgr23", diagnostics=False)
    said = no_data(write_report(tmp_path / "c.h5", tmp_path / "report"))
    assert said["correlations"] == "needs the columns parallax_error, parallax of the catalogue"
    assert said["reliability"] == "needs the column phot_g_mean_mag of the catalogue"
    assert "kiel" not in said


def test_companion_of_other_stars(tmp_path, survey, capsys):
    for name in ("catalog.h5", "catalog.diagnostics.h5"):
        shutil.copy(survey / name, tmp_path / name)
    with h5py.File(tmp_path / "catalog.diagnostics.h5", "r+") as file:
        file["source_id"][7] = 1
    assert main(["report", str(tmp_path / "catalog.h5"), "-o", str(tmp_path / "report")]) == 1
    assert "catalog.diagnostics.h5, row 1, field source_id: its stars are not those of the catalogue" in one_line(
        capsys
    )
    assert not (tmp_path / "report").exists()


def test_folders_that_exist(tmp_path, counted, survey, capsys):
    catalog, folder = str(survey / "catalog.h5"), tmp_path / "report"
    arguments = ["report", catalog, "-o", str(folder)]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 1
    assert "exists; --overwrite (overwrite=True) replaces it" in one_line(capsys)
    (folder / "figures" / "mine.txt").write_text("left from before")
    assert main([*arguments, "--overwrite"]) == 0
    assert not (folder / "figures" / "mine.txt").exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("not ours")
    for extra in ([], ["--overwrite"]):
        capsys.readouterr()
        assert main(["report", catalog, "-o", str(other), *extra]) == 1
        assert "exists, and is no report: it is not replaced" in one_line(capsys)
    assert (other / "thesis.tex").exists()
    assert main(["report", catalog, "-o", str(other / "thesis.tex")]) == 1
    assert "is a file, where a folder would be made: a report" in one_line(capsys)
    assert main(["report", catalog, "-o", str(tmp_path / "no" / "report")]) == 1
    assert "its folder does not exist" in one_line(capsys)


def test_what_fails_leaves_the_earlier_report(tmp_path, counted, survey, monkeypatch):
    page = write_report(survey / "catalog.h5", tmp_path / "report")
    before = page.read_bytes()

    def fail(part):
        raise OSError("disk full")

    monkeypatch.setattr(report_run, "_render", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(survey / "catalog.h5", tmp_path / "report", overwrite=True)
    assert page.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["absent.h5"], "absent.h5: no such file"),
        (["text.h5"], "text.h5"),
        (["catalog.h5", "--labels", "text.h5"], "text.h5: cannot be read as HDF5"),
        (["catalog.h5", "--compare", "text.h5"], "text.h5"),
        (["catalog.h5", "--members", "members.ecsv"], "a list of members needs a distance"),
        (["catalog.h5", "--members", "members.ecsv", "--distance", "-1"], "-1 kpc: must be positive"),
        (["catalog.h5", "--training", "catalog.h5"], "this is no file on the stars of xpkern train"),
        (["catalog.h5", "--model", "catalog.h5"], "catalog.h5"),
    ],
)
def test_foreign_files(survey, tmp_path, options, message, capsys, monkeypatch):
    (survey / "text.h5").write_text("nothing of the kind")
    monkeypatch.chdir(survey)
    assert main(["report", *options, "-o", str(tmp_path / "report")]) == 1
    assert message in one_line(capsys)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "style", [style.RC, spectrum_plot.STYLE, star_figures._STYLE, map_figures._STYLE, demo_page._STYLE]
)
def test_fonts_are_matplotlibs_own(style):
    """A machine without fonts draws everything, whatever its matplotlibrc asks for."""
    from matplotlib import font_manager, get_data_path, rc_context

    with rc_context({"font.family": "a font of nobody"} | style):
        found = font_manager.findfont(font_manager.FontProperties(), fallback_to_default=False)
    assert Path(found).is_relative_to(get_data_path())


def test_model_that_made_the_catalogue(survey, tmp_path, counted):
    model, _ = load_model()
    rows, _ = made_rows(20, 1)
    writer = writer_for(tmp_path / "c.h5")(tmp_path / "c.h5", DEFAULT, {"model_digest": model.digest})
    writer.append(rows)
    writer.close()
    assert "not the one that made" not in write_report(tmp_path / "c.h5", tmp_path / "same").read_text()
    text = write_report(survey / "catalog.h5", tmp_path / "other").read_text()
    assert "The model drawn below is the one that comes with xpkern, not the one that made the catalogue" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_page_in_a_browser(report, tmp_path, width, scheme):
    """Chromium shows the page without a word in its console, asks the network for nothing; nothing sticks out."""
    from PIL import Image

    widths = "document.documentElement.scrollWidth + ' of ' + innerWidth"
    html = (report / "index.html").read_text()
    html = html.replace("</body>", f"<script>onload = () => console.log('wide: ' + {widths})</script></body>")
    (tmp_path / "page.html").write_text(html)
    # its window is never narrower than 500 pixels; a frame is
    frame, size = tmp_path / "frame.html", f"width:{width}px;height:1400px"
    inner = f'<iframe src="page.html" style="{size};border:0"></iframe>'
    frame.write_text(f'<html style="color-scheme:light dark"><body style="margin:0">{inner}')
    picture, requests = tmp_path / "page.png", tmp_path / "net.json"
    ran = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"),
            *(
                f"--user-data-dir={tmp_path / 'profile'}",
                "--disable-background-networking",
                f"--log-net-log={requests}",
            ),
            f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
            *(f"--window-size={max(width, 500)},1400", f"--screenshot={picture}", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    assert len(console) == 1, console
    shown, available = map(int, re.search(r"wide: (\d+) of (\d+)", console[0]).groups())
    assert shown <= available == width
    with Image.open(picture) as image:
        corner = image.convert("L").getpixel((3, 1300))
        assert (corner < 60) == (scheme == "dark")
    assert not re.findall(r'"url":"https?://[^"]*page', requests.read_text())
