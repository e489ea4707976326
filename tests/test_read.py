"""From files to stars: against GaiaXPy, and with everything that may be missing or wrong."""

import gzip
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

import xpkern as xk
from xpkern.engine.packed import present_samples, sample_variance
from xpkern.errors import InputError
from xpkern.grid import N_FLUX, XP_WAVELENGTH
from xpkern.model.noise import Noise
from xpkern.observe.calibration import FLUX_UNIT, Calibration
from xpkern.observe.photometry import flux_of_magnitude
from xpkern.observe.read import iter_xp, read_xp
from xpkern.observe.spectra import read_blocks
from xpkern.status import Status

NOISE = Noise.eq2()
REAL_ROWS = 30


@pytest.fixture(scope="session")
def real_file(shared_data) -> Path:
    return shared_data / "real" / "XpContinuousMeanSpectrum_real-30.csv.gz"


@pytest.fixture(scope="session")
def real_table(shared_data) -> Path:
    return shared_data / "real" / "gaia_source_real-30.csv"


@pytest.fixture(scope="session")
def real_stars(real_file, real_table) -> xk.Observations:
    return read_xp(real_file, gaia_source=real_table, noise=NOISE, engine="reference")


def text_of(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(lines))
    return path


# ---- GaiaXPy as oracle


def gaiaxpy_flux(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """source_id, flux and its error in our unit, NaN where a band is missing."""
    gaiaxpy = pytest.importorskip("gaiaxpy")
    pandas = pytest.importorskip("pandas")
    table: object = str(path)
    if path.suffix == ".gz":  # GaiaXPy reads neither this compression nor these brackets
        table = pandas.read_csv(path, comment="#")
        for column in table.columns:
            if table[column].dtype.kind not in "iuf" and str(table[column][0]).startswith("["):
                table[column] = [np.array(json.loads(text)) for text in table[column]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GaiaXPy's own business
        result, _ = gaiaxpy.calibrate(table, sampling=XP_WAVELENGTH, save_file=False)
    flux, error = (np.stack(result[name].to_numpy()) / FLUX_UNIT for name in ("flux", "flux_error"))
    return result["source_id"].to_numpy(), flux, error


def test_flux_and_error_are_those_of_gaiaxpy(shared_data, real_file, engine, capsys):
    files = [*sorted((shared_data / "gaiaxpy" / "xp_continuous").glob("*.csv")), real_file]
    assert len(files) == 5
    calibration, n_stars = Calibration.default(), 0
    for path in files:
        source_id, flux, error = gaiaxpy_flux(path)
        stars = read_xp(path, noise=NOISE, engine=engine)
        assert stars.source_id.tolist() == source_id.tolist()
        assert not stars.reasons
        present = present_samples(stars.whitener)[:, : XP_WAVELENGTH.size]
        assert present.sum() >= 35 * len(stars)
        # flux is stored in float32: half a unit in the last place is 6e-8; near a zero crossing it is of the largest
        tolerance = 1e-7 * np.abs(flux) + 1e-12 * np.nanmax(np.abs(flux), axis=1, keepdims=True)
        assert (np.abs(stars.flux[:, : XP_WAVELENGTH.size] - flux) <= tolerance)[present].all()

        # the diagonal of Eq. 2, with GaiaXPy's own errors for that of A Sigma A^T
        (block,) = read_blocks(path, calibration)
        f_bp = block.coefficients.bp @ calibration.bp_design.T
        f_rp = block.coefficients.rp @ calibration.rp_design.T
        expected = error**2 + (NOISE.independent[:61] ** 2 + NOISE.common**2) * flux**2
        expected += NOISE.bp**2 * f_bp**2 + NOISE.rp**2 * f_rp**2
        variance = sample_variance(stars.whitener)[:, : XP_WAVELENGTH.size]
        # the factor is stored in float32
        assert np.allclose(variance[present], expected[present], rtol=3e-6)
        n_stars += len(stars)
    assert n_stars == 39


def test_error_without_any_noise_model_is_that_of_gaiaxpy(shared_data, capsys):
    """A Sigma A^T alone, from the numbers of the reader."""
    calibration = Calibration.default()
    path = shared_data / "gaiaxpy" / "xp_continuous" / "XP_CONTINUOUS_RAW.csv"
    _, _, error = gaiaxpy_flux(path)
    c = next(read_blocks(path, calibration)).coefficients
    variance = np.zeros_like(error)
    for design, e, packed in (
        (calibration.bp_design, c.bp_error, c.bp_correlation),
        (calibration.rp_design, c.rp_error, c.rp_correlation),
    ):
        n = design.shape[1]
        correlation = np.zeros((len(e), n, n))
        rows, columns = np.tril_indices(n, -1)
        correlation[:, rows, columns] = packed
        correlation += correlation.transpose(0, 2, 1) + np.eye(n)
        a_e = design * e[:, None, :].astype(np.float64)
        variance += np.einsum("sai,sij,saj->sa", a_e, correlation, a_e)
    assert np.allclose(np.sqrt(variance), error, rtol=1e-6)


# ---- what a block of stars holds


def test_real_stars_with_their_table(real_stars, real_table):
    assert len(real_stars) == REAL_ROWS
    assert real_stars.noise is NOISE
    assert not real_stars.reasons
    # the table has no parallax error: no parallax can be used, though it is kept
    assert np.isinf(real_stars.plx_err).all()
    assert not real_stars.plx.any()
    assert (real_stars.status == Status.NO_PARALLAX | Status.NO_INFRARED).all()
    table = np.genfromtxt(real_table, delimiter=",", names=True)
    for name in ("ra", "dec", "parallax", "phot_g_mean_mag"):
        assert np.array_equal(real_stars.columns[name], table[name], equal_nan=True)
    assert np.isfinite(real_stars.columns["parallax"]).sum() == 20
    assert np.isnan(real_stars.columns["ruwe"]).all()


def test_table_in_any_order_with_strangers_and_gaps(real_file, real_stars, rng):
    ids = np.concatenate([real_stars.source_id[5:], rng.integers(1, 1 << 40, 50)])
    order = rng.permutation(ids.size)
    table = {
        "source_id": ids[order],
        "parallax": order + 1.0,
        "parallax_error": np.where(order == 0, np.nan, np.where(order == 1, -1.0, np.where(order == 2, 0.0, 0.02))),
    }
    stars = read_xp(real_file, gaia_source=table, noise=NOISE, engine="reference")
    no_source = np.arange(REAL_ROWS) < 5
    no_plx = np.arange(REAL_ROWS) < 8
    assert ((stars.status & np.uint32(Status.NO_GAIA_SOURCE)) != 0).tolist() == no_source.tolist()
    assert ((stars.status & np.uint32(Status.NO_PARALLAX)) != 0).tolist() == no_plx.tolist()
    assert stars.plx.tolist() == [0.0] * 8 + list(np.arange(8, 30) - 4.0)
    assert np.isinf(stars.plx_err[:8]).all()
    assert (stars.plx_err[8:] == 0.02).all()
    assert np.isnan(stars.columns["parallax"][:5]).all()


def test_without_any_table_nothing_is_missed(real_file, real_stars):
    stars = read_xp(real_file, noise=NOISE, engine="reference")
    assert not (stars.status & np.uint32(Status.NO_GAIA_SOURCE)).any()
    assert (stars.status & np.uint32(Status.NO_PARALLAX)).all()
    assert np.array_equal(stars.flux, real_stars.flux)
    assert set(stars.columns) == set(real_stars.columns)


def test_infrared_photometry_from_either_table(real_file, real_stars):
    n = REAL_ROWS
    magnitudes = {
        "source_id": real_stars.source_id,
        "j_m": np.full(n, 10.0),
        "j_msigcom": np.full(n, 0.02),
        "h_m": np.full(n, 9.5),
        "h_msigcom": np.full(n, 0.03),
        "ks_m": np.full(n, np.nan),
        "ks_msigcom": np.full(n, np.nan),
        "ph_qual": np.array(["AAA", "AUA", "BBB"] * (n // 3)),
    }
    stars = read_xp(real_file, photometry=magnitudes, noise=NOISE, engine="reference")
    together = magnitudes | {"parallax": np.ones(n), "parallax_error": np.ones(n)}
    both = read_xp(real_file, gaia_source=together, noise=NOISE, engine="reference")
    assert np.array_equal(both.flux, stars.flux)
    assert np.array_equal(both.whitener, stars.whitener)
    present = present_samples(stars.whitener)[:, XP_WAVELENGTH.size :]
    assert present.tolist() == [[True, True, False, False, False], [True] + [False] * 4, [False] * 5] * (n // 3)
    assert stars.flux[0, 61] == np.float32(flux_of_magnitude("J", 10.0))
    error = 0.4 * np.log(10) * 0.03
    expected = stars.flux[0, 62] ** 2 * (error**2 + NOISE.independent[62] ** 2)
    assert np.isclose(sample_variance(stars.whitener[:1])[0, 62], expected, rtol=1e-5)
    infrared = stars.status & np.uint32(Status.NO_INFRARED | Status.INCOMPLETE_INFRARED)
    assert infrared.tolist() == [Status.INCOMPLETE_INFRARED, Status.INCOMPLETE_INFRARED, Status.NO_INFRARED] * (n // 3)


@pytest.mark.parametrize("name", ["gaia_source", "VizieR", "spectra"])
def test_photometry_that_is_none(real_file, real_table, real_stars, tmp_path, name):
    if name == "VizieR":
        table = tmp_path / "vizier.csv"
        table.write_text("source_id,Jmag,e_Jmag,Hmag,e_Hmag,Kmag,e_Kmag,Qflg\n1,2,3,2,3,2,3,AAA\n")
        expected = "nearest columns are jmag, hmag, kmag"
    else:
        table = {"gaia_source": tmp_path / "few.csv", "spectra": real_file}[name]
        expected = "there are source_id, "
        if name == "gaia_source":
            table.write_text("source_id,parallax,parallax_error\n1,2,3\n")
    for photometry in (table, [{"source_id": [1], "flux_w1": [1.0], "dflux_w1": [1.0]}, table]):
        with pytest.raises(InputError, match=r"no table of infrared photometry.*j_m and .*flux_w1 and ") as caught:
            read_xp(real_file, photometry=photometry, noise=NOISE, engine="reference")
        assert caught.value.file == str(table)
        assert expected in str(caught.value)


def test_sources_that_photometry_has_are_counted(real_file, real_stars):
    bands = {"w1mag": np.full(3, 9.0), "w1mag_error": np.full(3, 0.02)}
    some, none = bands | {"source_id": real_stars.source_id[2:5]}, bands | {"source_id": np.arange(3)}
    crowding = {"source_id": real_stars.source_id, "norm_dg": np.full(REAL_ROWS, -20.0)}
    stars = read_xp(real_file, photometry=[none, some, crowding], noise=NOISE, engine="reference")
    assert [stars.counts[f"photometry_sources_{number}"] for number in (1, 2, 3, 4)] == [0, 3, REAL_ROWS, 0]


def test_bands_of_several_tables(real_file, real_stars, tmp_path):
    """2MASS in one, unWISE in another, crowding in gaia_source: as if all stood in one."""
    n, ids = REAL_ROWS, real_stars.source_id
    of_2mass = {"source_id": ids, "ph_qual": np.array(["AAA"] * n)}
    for name in ("j", "h", "ks"):
        of_2mass |= {f"{name}_m": np.full(n, 10.0), f"{name}_msigcom": np.full(n, 0.02)}
    unwise = {"source_id": ids, "separation": np.full(n, 0.1)}
    for name in ("w1", "w2"):
        unwise |= {f"flux_{name}": np.full(n, 1e4), f"dflux_{name}": np.full(n, 1e2)}
        unwise |= {f"fracflux_{name}": np.full(n, 0.9), f"qf_{name}": np.full(n, 0.9)}
    crowding = np.array([np.nan, -20.0, -7.0, -2.0, -20.0] * (n // 5))
    gaia = {"source_id": ids, "parallax": np.ones(n), "parallax_error": np.ones(n), "norm_dg": crowding}
    one = read_xp(real_file, gaia_source=gaia | of_2mass | unwise, noise=NOISE, engine="reference")
    present = present_samples(one.whitener)[:, XP_WAVELENGTH.size :]
    assert present.any(axis=1).tolist() == [True, True, True, False, True] * (n // 5)
    assert present[2].tolist() == [True] * 3 + [False] * 2

    # rows of each in an order of their own, and one source that unWISE lacks
    order = np.random.default_rng(1).permutation(n)
    few = {name: values[order[order != 1]] for name, values in unwise.items()}
    several = [{name: values[::-1] for name, values in of_2mass.items()}, few]
    stars = read_xp(real_file, gaia_source=gaia, photometry=several, noise=NOISE, engine="reference")
    others = np.arange(n) != 1
    assert np.array_equal(stars.flux[others], one.flux[others])
    assert np.array_equal(stars.whitener[others], one.whitener[others])
    assert present_samples(stars.whitener)[1, XP_WAVELENGTH.size :].tolist() == [True] * 3 + [False] * 2
    assert stars.counts["photometry_removed_twomass_norm_dg"] == one.counts["photometry_removed_twomass_norm_dg"] > 0

    # what gaia_source has comes last, and is not lost behind a table of other bands
    faint = of_2mass | {f"{name}_m": np.full(n, 15.0) for name in ("j", "h", "ks")}
    stars = read_xp(real_file, gaia_source=gaia | faint, photometry=unwise, noise=NOISE, engine="reference")
    assert np.array_equal(present_samples(stars.whitener), present_samples(one.whitener))
    assert stars.flux[0, 61] == np.float32(flux_of_magnitude("J", 15.0))
    stars = read_xp(real_file, gaia_source=gaia | faint, photometry=several, noise=NOISE, engine="reference")
    assert stars.flux[0, 61] == np.float32(flux_of_magnitude("J", 10.0))


def test_missing_bp(shared_data, engine):
    path = shared_data / "gaiaxpy" / "xp_continuous" / "XP_CONTINUOUS_RAW_with_missing_BP.csv"
    stars = read_xp(path, noise=NOISE, engine=engine)
    assert ((stars.status & np.uint32(Status.NO_BP)) != 0).tolist() == [False, True, False]
    assert not (stars.status & np.uint32(Status.NO_RP | Status.BAD_ROW)).any()
    present = present_samples(stars.whitener)
    assert np.array_equal(present[1, :61], XP_WAVELENGTH > 642)
    assert present[[0, 2], :61].all()


def test_zgr23_sigma_needs_the_standard_deviation(tmp_path, real_file, real_stars):
    lines = [line for line in text_of(real_file) if not line.startswith("#")]
    divided = read_xp(real_file, noise=Noise.eq2(sigma="zgr23"), engine="reference")
    assert (sample_variance(divided.whitener)[:, :61] < sample_variance(real_stars.whitener)[:, :61]).all()
    without = write(tmp_path / "without.csv", [lines[0].replace("rp_standard_deviation", "other"), *lines[1:]])
    stars = read_xp(without, noise=Noise.eq2(sigma="zgr23"), engine="reference")
    assert (stars.status & np.uint32(Status.BAD_ROW)).all()
    assert {field for _, _, field, _ in stars.reasons} == {"rp_standard_deviation"}
    assert np.array_equal(read_xp(without, noise=NOISE, engine="reference").whitener, real_stars.whitener)


# ---- blocks, several files


def test_blocks_and_files_add_up(tmp_path, real_file, real_stars, real_table):
    lines = [line for line in text_of(real_file) if not line.startswith("#")]
    parts = [
        write(tmp_path / "a.csv", lines[:12]),
        write(tmp_path / "b.csv", lines[:1]),
        write(tmp_path / "c.csv", [lines[0], *lines[12:]]),
    ]
    blocks = list(iter_xp(parts, real_table, noise=NOISE, engine="reference", rows=8))
    assert [len(block) for block in blocks] == [8, 3, 8, 8, 3]
    joined = xk.Observations.concatenate(blocks)
    assert np.array_equal(joined.source_id, real_stars.source_id)
    assert np.array_equal(joined.flux, real_stars.flux)
    assert np.array_equal(joined.whitener, real_stars.whitener)
    assert np.array_equal(joined.columns["ra"], real_stars.columns["ra"], equal_nan=True)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_blocks_read_ahead_are_the_same(tmp_path, real_file, real_table, engine, prefetch):
    options = {"noise": NOISE, "engine": engine, "rows": 7}
    expected = list(iter_xp([real_file], real_table, **options))
    found = list(iter_xp([real_file], real_table, **options, prefetch=prefetch))
    assert [len(block) for block in found] == [len(block) for block in expected] == [7, 7, 7, 7, 2]
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("source_id", "flux", "whitener", "plx", "status"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    with pytest.raises(InputError, match="not a number of blocks"):
        iter_xp([real_file], prefetch=-1)

    broken = tmp_path / "broken.csv.gz"
    broken.write_bytes(real_file.read_bytes()[: real_file.stat().st_size * 3 // 4])
    complete = []
    with pytest.raises(InputError, match="end too early") as caught:
        complete.extend(iter_xp([broken], real_table, **options, prefetch=prefetch))
    assert sum(len(block) for block in complete) == caught.value.row - 1 > 14


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_reads_the_same(real_file, real_table, real_stars, threads):
    stars = read_xp([real_file], real_table, noise=NOISE, engine="reference", threads=threads)
    assert np.array_equal(stars.source_id, real_stars.source_id)
    assert np.array_equal(stars.whitener, real_stars.whitener)


def test_files_without_rows_give_no_stars(tmp_path, real_file):
    lines = [line for line in text_of(real_file) if not line.startswith("#")]
    stars = read_xp(write(tmp_path / "empty.csv", lines[:1]), noise=NOISE, engine="reference")
    assert len(stars) == 0
    assert stars.flux.shape == (0, N_FLUX)


# ---- what may be wrong


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no file or table is given"),
        (None, "no file or table is given"),
        (3, "a int is neither a path nor a table"),
    ],
)
def test_what_is_nothing_to_read(paths, message):
    with pytest.raises(InputError, match=f"field paths: {message}"):
        read_xp(paths, noise=NOISE, engine="reference")


def test_a_path_in_bytes(real_file, real_stars):
    assert np.array_equal(read_xp(os.fsencode(real_file), noise=NOISE, engine="reference").flux, real_stars.flux)


def test_bad_rows_are_stars_with_a_reason(tmp_path, real_file, real_stars, engine):
    lines = [line for line in text_of(real_file) if not line.startswith("#")]
    lines[4] = lines[4].replace('"[', '"[1.0,', 1)
    lines[9] = "garbage\n"
    path = write(tmp_path / "damaged.csv", lines)
    infrared = {"source_id": real_stars.source_id, "w1mag": np.full(30, 9.0), "w1mag_error": np.full(30, 0.01)}
    stars = read_xp(path, photometry=infrared, noise=NOISE, engine=engine)
    bad = np.isin(np.arange(REAL_ROWS), [3, 8])
    assert ((stars.status & np.uint32(Status.BAD_ROW)) != 0).tolist() == bad.tolist()
    assert [reason[:3] for reason in stars.reasons] == [
        (real_stars.source_id[3], 4, "bp_coefficients"),
        (-1, 9, "source_id"),
    ]
    assert "expected 55 numbers, found 56" in stars.reasons[0][3]
    assert not stars.flux[bad].any()
    assert not stars.whitener[bad].any()
    assert present_samples(stars.whitener)[~bad][:, [*range(61), N_FLUX - 2]].all()
    assert np.isfinite(stars.flux).all()


def test_truncated_file_yields_its_rows_and_then_fails(tmp_path, real_file, real_stars):
    path = tmp_path / "truncated.csv.gz"
    data = real_file.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"truncated\.csv\.gz, row \d+: the gzip data end too early") as caught:
        read_xp(path, noise=NOISE, engine="reference")
    blocks = iter_xp(path, noise=NOISE, engine="reference", rows=5)
    found = [next(blocks).source_id for _ in range((caught.value.row - 1) // 5)]
    assert np.array_equal(np.concatenate(found), real_stars.source_id[: 5 * len(found)])
    assert len(found) >= 2


def test_wrong_arguments_fail_before_any_file_is_read(real_file):
    with pytest.raises(InputError, match="no column parallax_error"):
        iter_xp(real_file, {"source_id": np.arange(3), "parallax": np.ones(3)}, noise=NOISE)
    with pytest.raises(InputError, match="rows"):
        iter_xp(real_file, noise=NOISE, rows=0)
    other = Calibration("x", "y", np.zeros((2, 3)), np.zeros((2, 3)), np.array([400.0, 500.0]), 1, 2)
    with pytest.raises(InputError, match="samples"):
        iter_xp(real_file, noise=NOISE, calibration=other)
    with pytest.raises(InputError, match="engine"):
        iter_xp(real_file, noise=NOISE, engine="abacus")
