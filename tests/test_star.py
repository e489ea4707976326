"""One star out of files of many: where it is looked for, what is written of it, and bad input."""

from __future__ import annotations

import gzip
from dataclasses import replace

import h5py
import numpy as np
import pytest
from astropy.table import Table
from command_lines import ENGINE, STARS, one_line
from mock_stars import side_missing

import xpkern as xk
from bench.stars import model_and_prior
from xpkern.cli import main
from xpkern.errors import InputError
from xpkern.fit.profiles import loss_profiles
from xpkern.observe.find_star import files_that_may_have, read_star
from xpkern.observe.read import read_xp
from xpkern.observe.simulate import bulk_columns, simulate
from xpkern.observe.source_position import bits_below
from xpkern.observe.spectra_csv import lines_with
from xpkern.observe.whiteners import drop_samples
from xpkern.report.star import FILES, parameters_table, summary, write_star
from xpkern.report.star_figures import Seen, draw_spectrum


@pytest.fixture(scope="module")
def survey(bulk_files) -> xk.Observations:
    return read_xp(bulk_files.spectra, bulk_files.gaia_source, engine=ENGINE)


def arguments(bulk_files, source_id, folder, *more: str) -> list[str]:
    spectra = ["--spectra", str(bulk_files.spectra), "--source", str(bulk_files.gaia_source)]
    return ["star", str(source_id), *spectra, "-o", str(folder), "--samples", "300", "--engine", ENGINE, *more]


class TestFinding:
    @pytest.mark.parametrize("row", [0, 5, -1])
    def test_the_row_is_that_of_the_whole_file(self, bulk_files, survey, row):
        source_id = int(survey.source_id[row])
        found = read_star(source_id, [bulk_files.spectra], gaia_source=bulk_files.gaia_source, engine=ENGINE)
        whole = survey.take([row])
        for name in ("source_id", "flux", "whitener", "plx", "plx_err", "status"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name), err_msg=name)
        for name, column in whole.columns.items():
            np.testing.assert_array_equal(found.columns[name], column, err_msg=name)

    def test_in_a_table_that_is_no_text(self, survey, tmp_path):
        stars = simulate(*xk.load_model(), STARS, seed=5)  # as the files were made
        columns = bulk_columns(stars.source_id, stars.coefficients, stars.calibration)
        with h5py.File(tmp_path / "spectra.h5", "w") as file:
            for name, values in columns.items():
                file[name] = values
        found = read_star(int(survey.source_id[3]), [tmp_path / "spectra.h5"], engine=ENGINE)
        np.testing.assert_array_equal(found.source_id, survey.source_id[3:4])
        np.testing.assert_allclose(found.flux[:, :61], survey.flux[3:4, :61], rtol=1e-6)

    @pytest.mark.parametrize("size", [1, 7, 100, 10_000])
    def test_lines_whatever_the_pieces(self, rng, size):
        numbers = rng.integers(1, 1 << 62, 50)
        lines = [
            b"# a comment with 12345\n",
            b"\n",
            b"source_id,x\n",
            *(b"%d,%d\n" % (n, i) for i, n in enumerate(numbers)),
        ]
        text = b"".join(lines)[:-1]  # the last line has no end
        for wanted in (0, 17, 49):
            pieces = (text[first : first + size] for first in range(0, len(text), size))
            kept = b"".join(lines_with(pieces, int(numbers[wanted])))
            assert kept.rstrip(b"\n") == b"".join([*lines[:3], lines[3 + wanted]]).rstrip(b"\n")
        assert b"".join(lines_with(iter([text]), 7 << 60)) == b"".join(lines[:3])

    def test_names_of_files_say_where_a_source_is(self):
        source_id = (3112 << bits_below(8)) + 77
        files = ["a_000000-003111.csv.gz", "a_003112-005263.csv.gz", "x/mine.csv", "b_003000-003112.h5", "a_7-9999.csv"]
        assert files_that_may_have(source_id, files) == [files[1], files[3], files[2], files[4]]

    def test_a_file_that_cannot_have_it_is_not_opened(self, bulk_files, survey, tmp_path):
        elsewhere = tmp_path / "XpContinuousMeanSpectrum_000000-000001.csv.gz"
        elsewhere.write_bytes(b"no spectra at all")
        source_id = int(survey.source_id[2])
        found = read_star(source_id, [elsewhere, bulk_files.spectra], engine=ENGINE)
        assert found.source_id[0] == source_id
        with pytest.raises(InputError, match=r"lies in pixel \d{6}, which the names of all 1 files exclude"):
            read_star(source_id, [elsewhere])
        with pytest.raises(InputError, match=r"77 is in none of the files of spectra: .*simulated.csv.gz"):
            read_star(77, [bulk_files.spectra], engine=ENGINE)
        with pytest.raises(InputError, match="source_id: -5 is no identifier"):
            read_star(-5, [bulk_files.spectra])


@pytest.fixture(scope="module")
def written(bulk_files, survey, tmp_path_factory):
    """What the command wrote of one star, beside its row of a catalogue."""
    folder = tmp_path_factory.mktemp("star")
    catalog = folder / "catalog.h5"
    model, prior = xk.load_model()
    xk.fit(survey, model, prior, engine=ENGINE).write(catalog)
    source_id = int(survey.source_id[4])
    assert main(arguments(bulk_files, source_id, folder / "star", "--catalog", str(catalog))) == 0
    return folder / "star", catalog, source_id


def test_what_is_written(written):
    folder, _, source_id = written
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    for name in FILES:
        if name.endswith(".png"):
            assert (folder / name).read_bytes().startswith(b"\x89PNG")
    parameters = Table.read(folder / "parameters.ecsv")
    assert parameters.meta["source_id"] == source_id
    # the catalogue's fit is the same one
    np.testing.assert_allclose(parameters["difference"], 0.0, atol=1e-3)
    np.testing.assert_allclose(parameters["catalog_error"], parameters["fit_error"], rtol=1e-4)
    samples, modes = Table.read(folder / "samples.ecsv"), Table.read(folder / "modes.ecsv")
    assert len(samples) == 300
    assert samples["weight"].sum() == pytest.approx(1.0)
    assert str(samples["teff"].unit) == "K"
    assert modes["weight"].sum() == pytest.approx(1.0)
    text = (folder / "summary.txt").read_text()
    assert str(source_id) in text
    assert f"{parameters['p50'][0]:.1f}" in text


@pytest.fixture(scope="module", params=["learned", "eq2"])
def poor(request: pytest.FixtureRequest, survey) -> xk.Posterior:
    """A star without parallax, infrared bands and BP, under both kinds of noise."""
    star = survey.take([4])
    lost = side_missing(1, "bp")
    lost[:, 61:] = True
    obs = replace(
        star,
        flux=np.where(lost, np.float32(0), star.flux),
        whitener=drop_samples(star.whitener, lost),
        plx=np.zeros(1),
        plx_err=np.full(1, np.inf),
        status=star.status | np.uint32(xk.Status.NO_PARALLAX | xk.Status.NO_BP | xk.Status.NO_INFRARED),
    )
    return xk.posterior(obs, *xk.load_model(), samples=300, engine=ENGINE, noise=request.param)


def test_a_star_of_which_little_is_seen(poor, tmp_path):
    draw_spectrum(tmp_path / "poor.png", poor, 0, "a star")
    assert (tmp_path / "poor.png").read_bytes().startswith(b"\x89PNG")
    text = summary(poor)
    assert "no parallax" in text
    for bit in ("NO_BP", "NO_INFRARED", "NO_PARALLAX"):
        assert bit in text
    assert "catalog" not in parameters_table(poor).colnames


def test_spectra_are_drawn_at_the_scale_that_the_fit_found(poor):
    """Without a measured parallax the flux alone fixes it, under the covariance that the fit had."""
    shown = Seen(poor, 0).shown(poor.fit.params)
    np.testing.assert_array_equal(shown[:, :-1], poor.fit.params[:, :-1])
    np.testing.assert_allclose(shown[:, -1], poor.fit.model_plx, rtol=2e-3)


def test_profiles_touch_the_optimum_and_lie_below_what_is_held(poor):
    profiles = loss_profiles(poor, points=21)
    fit = poor.fit
    best = np.append(fit.params[0, :-1], fit.model_plx[0])
    gap = fit.loss[0] - poor.mode_loss[0, 0]
    for k in range(5):
        middle = int(np.abs(profiles.values[k] - best[k]).argmin())
        assert profiles.values[k, middle] == pytest.approx(best[k])
        assert profiles.held[k, middle] == pytest.approx(gap, abs=2e-3)
        assert profiles.parabola[k, middle] == pytest.approx(gap, abs=1e-9)
        assert profiles.profiled[k, middle] <= gap + 2e-3
        assert (profiles.profiled[k] <= profiles.held[k] + 2e-3).all()
        assert (profiles.profiled[k] >= -2e-3).all()
        assert profiles.profiled[k, -1] > profiles.profiled[k].min()
        at_zero = k == 3 and best[k] < 1e-5  # where a loss without - 2 ln E has nothing below its optimum
        assert at_zero or profiles.profiled[k, 0] > profiles.profiled[k].min()
        assert not (at_zero and fit.terms.jacobian_ext)


def test_profiles_of_a_star_without_dust_begin_at_its_optimum():
    """Without - 2 ln E in the loss the optimum may lie at E = 0, below which there is nothing to draw."""
    model, prior = xk.load_model()
    without, dusty = (np.exp(model.ln_flux(np.array([[5.2, -0.3, 4.5, ext, 2.0]]))) for ext in (0.0, 0.05))
    flux = without**2 / dusty  # bluer than without dust
    obs = xk.Observations.from_arrays(flux=flux, whitener=np.diag(50.0 / flux[0])[None], plx=[2.0], plx_err=[0.02])
    found = xk.posterior(obs, model, prior, samples=100, engine=ENGINE)
    optimum = found.fit.params[0, 3]
    assert optimum < 1e-5
    profiles = loss_profiles(found, points=21)
    assert (np.diff(profiles.values) >= 0).all()
    assert profiles.values[3, 0] == pytest.approx(optimum)
    assert profiles.held[3, 0] == pytest.approx(0.0, abs=2e-3)
    assert (profiles.profiled[3] <= profiles.held[3] + 2e-3).all()
    assert profiles.profiled[3, -1] > 5


def test_output_exists(written, bulk_files, capsys):
    folder, _, source_id = written
    before = (folder / "summary.txt").read_bytes()
    assert main(arguments(bulk_files, source_id, folder)) == 1
    assert "exists; --overwrite" in one_line(capsys)
    assert (folder / "summary.txt").read_bytes() == before
    assert main(arguments(bulk_files, source_id, folder / "summary.txt")) == 1
    assert "is a file" in one_line(capsys)
    assert main(arguments(bulk_files, source_id, folder / "no" / "folder")) == 1
    assert "its folder does not exist" in one_line(capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "0"], "field samples: 0 is not a positive number"),
        (["--samples", "-7"], "field samples: -7 is not a positive number"),
        (["--ext-scale", "0"], "field ext_scale"),
        (["--distance-scale", "-1"], "field distance_scale"),
        (["--spectra", "/no/such/file.csv"], "/no/such/file.csv: cannot be read"),
        (["--catalog", "/no/such/catalog.h5"], "/no/such/catalog.h5: no such file"),
    ],
)
def test_bad_options(bulk_files, survey, tmp_path, capsys, more, message):
    assert main(arguments(bulk_files, survey.source_id[1], tmp_path / "star", *more)) == 1
    assert message in one_line(capsys)
    assert not (tmp_path / "star").exists()


def test_a_model_that_has_learned_no_noise_has_none_to_offer(bulk_files, survey, tmp_path, capsys):
    xk.save_model(tmp_path / "model.h5", *model_and_prior())
    more = ["--model", str(tmp_path / "model.h5"), "--noise", "learned"]
    assert main(arguments(bulk_files, survey.source_id[1], tmp_path / "star", *more)) == 1
    assert "field noise: the model's residuals have taught it none" in one_line(capsys)
    assert not (tmp_path / "star").exists()


def test_not_in_the_files_and_not_in_the_catalogue(written, bulk_files, survey, tmp_path, capsys):
    _, catalog, _ = written
    assert main(arguments(bulk_files, 123, tmp_path / "star")) == 1
    assert "123 is in none of the files of spectra" in one_line(capsys)
    assert main(arguments(bulk_files, 123, tmp_path / "star", "--catalog", str(catalog))) == 1
    assert f"{catalog}, field source_id: 123 is not in this catalogue" in one_line(capsys)
    for wrong in ("0", "-4", "1.5", "sun"):
        with pytest.raises(SystemExit):
            main(arguments(bulk_files, wrong, tmp_path / "star"))
        assert "SOURCE_ID" in capsys.readouterr().err


def test_a_row_that_cannot_be_read(bulk_files, bulk_lines, survey, tmp_path, capsys):
    source_id = str(survey.source_id[4]).encode()
    lines = [line.replace(b"E-", b"F-") if line.startswith(source_id) else line for line in bulk_lines]
    damaged = tmp_path / "damaged.csv.gz"
    damaged.write_bytes(gzip.compress(b"".join(lines)))
    assert lines != bulk_lines
    spectra = ["--spectra", str(damaged)]
    assert main(arguments(bulk_files, source_id.decode(), tmp_path / "star", *spectra)) == 1
    text = one_line(capsys)
    assert f"source {source_id.decode()} cannot be fitted: the row could not be read" in text
    assert not (tmp_path / "star").exists()


def test_a_spectrum_without_a_sample(survey, tmp_path):
    star = survey.take([0])
    nothing = replace(star, whitener=np.zeros_like(star.whitener), status=star.status | np.uint32(xk.Status.NO_DATA))
    found = xk.posterior(nothing, *xk.load_model(), samples=10, engine=ENGINE)
    with pytest.raises(InputError, match="cannot be fitted: no flux sample with a weight"):
        write_star(tmp_path / "star", found)
    assert not (tmp_path / "star").exists()


def test_summary_names_every_flag(poor):
    flagged = replace(poor, ess=np.array([3.0]))
    assert "FEW_EFFECTIVE_SAMPLES" in summary(flagged)
