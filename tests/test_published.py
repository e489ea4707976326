"""The reader of the published catalogues: parameters by what the arrays are known to hold, or an error."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from catalog_files import part_of, random_rows

import xpkern as xk
from xpkern.catalog import published
from xpkern.catalog.hdf5_writer import Hdf5Writer
from xpkern.catalog.schema import DEFAULT, ZGR23

STARS = 30
V1 = ("teff", "feh", "logg", "ext", "parallax_est")
V2 = ("teff", "feh", "logg", "xi", "ext", "parallax_est")


@pytest.fixture
def made(rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """Datasets of v1 and v2 as they are published, of random numbers with a covariance that is one."""
    catalogs = {}
    for version, size in (("v1", 5), ("v2", 6)):
        root = rng.normal(size=(STARS, size, size)) * 10.0 ** rng.uniform(-3, 1, (STARS, 1, 1))
        covariance = root @ root.transpose(0, 2, 1)
        upper = np.triu_indices(size)
        catalogs[version] = {
            "gdr3_source_id": rng.permutation(10**18 + np.arange(STARS)),
            "ra": rng.uniform(0, 360, STARS),
            "dec": rng.uniform(-90, 90, STARS),
            "stellar_params_est": rng.normal(size=(STARS, size)).astype("f4"),
            "stellar_params_err": np.sqrt(np.einsum("nii->ni", covariance)).astype("f4"),
            "chi2_opt": rng.uniform(0, 100, STARS).astype("f4"),
            "ln_prior": rng.normal(size=STARS).astype("f4"),
            "teff_confidence": rng.uniform(size=STARS).astype("f4"),
            "quality_flags": rng.integers(0, 64, STARS, dtype=np.uint8),
            "stellar_params_cov_triu": covariance[:, upper[0], upper[1]].astype("f4"),
        }
    return catalogs


def write(path: Path, datasets: dict[str, np.ndarray]) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


@pytest.mark.parametrize(("version", "names"), [("v1", V1), ("v2", V2)])
def test_parameters_by_name(made, version, names, tmp_path):
    datasets = made[version]
    table = xk.read_zgr23_catalog(write(tmp_path / "c.h5", datasets))
    assert table.meta["version"] == version
    assert ("xi" in table.colnames) == (version == "v2")
    for index, name in enumerate(names):
        per_unit = 1000.0 if name == "teff" else 1.0
        np.testing.assert_allclose(table[name], per_unit * datasets["stellar_params_est"][:, index], rtol=1e-6)
        np.testing.assert_allclose(
            table[f"{name}_error"], per_unit * datasets["stellar_params_err"][:, index], rtol=1e-6
        )
        assert table[name].unit == table[f"{name}_error"].unit
    np.testing.assert_array_equal(table["source_id"], datasets["gdr3_source_id"])
    np.testing.assert_array_equal(table["chi2"], datasets["chi2_opt"])
    for name in ("ra", "dec", "ln_prior", "teff_confidence", "quality_flags"):
        np.testing.assert_array_equal(table[name], datasets[name])
    assert (table["teff"].unit, table["parallax_est"].unit, table["ra"].unit) == ("K", "mas", "deg")
    size, triangle = len(names), datasets["stellar_params_cov_triu"]
    correlation = np.zeros((STARS, size, size))
    for index, (i, j) in enumerate(zip(*np.triu_indices(size), strict=True)):
        if i != j:
            error = datasets["stellar_params_err"].astype(float)
            correlation[:, i, j] = triangle[:, index] / (error[:, i] * error[:, j])
            np.testing.assert_allclose(table[f"{names[i]}_{names[j]}_corr"], correlation[:, i, j], rtol=1e-4, atol=1e-6)


def test_covariances_in_files_of_their_own(made, tmp_path):
    datasets = made["v1"]
    together = xk.read_zgr23_catalog(write(tmp_path / "together.h5", datasets))
    apart = {"stellar_params_cov_triu": datasets.pop("stellar_params_cov_triu")}
    files = write(tmp_path / "catalog.h5", datasets), write(tmp_path / "covariances.h5", apart)
    assert "teff_feh_corr" not in xk.read_zgr23_catalog(files[0]).colnames
    table = xk.read_zgr23_catalog(files[0], covariances=files[1])
    assert set(table.colnames) == set(together.colnames)
    np.testing.assert_array_equal(table["teff_feh_corr"], together["teff_feh_corr"])
    write(files[1], {"stellar_params_cov_triu": apart["stellar_params_cov_triu"][::-1]})
    with pytest.raises(xk.InputError, match=r"covariances.h5, field stellar_params_cov_triu: its diagonal is not"):
        xk.read_zgr23_catalog(files[0], covariances=files[1])


@pytest.mark.parametrize("piece", [1, 7])
def test_some_sources_of_many_files(made, piece, tmp_path, monkeypatch, rng):
    monkeypatch.setattr(published, "_PIECE", piece)
    datasets = made["v2"]
    halves = [
        write(tmp_path / f"{n}.h5", {k: v[s] for k, v in datasets.items()})
        for n, s in enumerate((slice(0, 11), slice(11, None)))
    ]
    whole = xk.read_zgr23_catalog(halves)
    np.testing.assert_array_equal(whole["source_id"], datasets["gdr3_source_id"])
    wanted = rng.permutation(datasets["gdr3_source_id"])[: rng.integers(0, STARS)]
    some = xk.read_zgr23_catalog(halves, source_id=[*wanted, 5])
    chosen = np.isin(whole["source_id"], wanted)
    for name in whole.colnames:
        np.testing.assert_array_equal(some[name], whole[name][chosen], err_msg=name)
        assert some[name].dtype == whole[name].dtype


def test_our_own_layout_goes_through_it(tmp_path, rng):
    """Our catalogue in the published layout says what our default layout says."""
    rows = random_rows(rng, STARS)
    factor = rng.normal(size=(STARS, 5, 5))
    object.__setattr__(rows, "covariance", factor @ factor.transpose(0, 2, 1))
    writer = Hdf5Writer(tmp_path / "catalog.h5", ZGR23, {"layout": "zgr23"})
    for block in (slice(0, 12), slice(12, STARS)):
        writer.append(part_of(rows, block))
    writer.close()
    table = xk.read_zgr23_catalog(tmp_path / "catalog.h5")
    for column in DEFAULT:
        if column.name in table.colnames and column.name != "ln_prior":
            expected = column.compute(rows)
            np.testing.assert_allclose(table[column.name], expected, rtol=1e-4, atol=1e-6, err_msg=column.name)
            assert str(table[column.name].unit or "") == column.unit or column.name.endswith("_corr")
    missing = {column.name for column in DEFAULT} - set(table.colnames)
    assert missing == {
        *("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag"),
        *("parallax", "parallax_error", "parallax_archive"),
        *("chi2_dof", "chi2_learned", "loss", "status", "bands_used", "iterations"),
    }
    published_prior = next(column for column in ZGR23 if column.name == "ln_prior")
    np.testing.assert_array_equal(table["ln_prior"], published_prior.compute(rows))


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (lambda d: d.pop("gdr3_source_id"), "gdr3_source_id", "no such dataset; it has chi2_opt, dec"),
        (lambda d: d.pop("stellar_params_err"), "stellar_params_err", "no such dataset"),
        (
            lambda d: d.update(stellar_params_est=np.zeros((STARS, 7))),
            "stellar_params_est",
            "neither the 5 .* nor the 6",
        ),
        (lambda d: d.update(stellar_params_est=np.zeros(STARS)), "stellar_params_est", "neither the 5 .* nor the 6"),
        (
            lambda d: d.update(stellar_params_err=np.zeros((STARS, 5))),
            "stellar_params_err",
            "that of stellar_params_est",
        ),
        (lambda d: d.update(ra=np.zeros(3)), "ra", "but there are 30 sources"),
        (lambda d: d.update(gdr3_source_id=np.zeros(STARS)), "gdr3_source_id", "expected .n,. integers"),
        (lambda d: d.update(xi_est=d["stellar_params_est"][:, 4]), "xi_est", "other values of xi: an order unknown"),
        (lambda d: d.update(plx_est=np.zeros((STARS, 2))), "plx_est", "beside 6 parameters"),
        (lambda d: d.update(stellar_params_cov_triu=np.zeros((STARS, 15))), "stellar_params_cov_triu", "expected 21"),
    ],
)
def test_what_cannot_be_read(made, change, field, message, tmp_path):
    change(made["v2"])
    path = write(tmp_path / "c.h5", made["v2"])
    with pytest.raises(xk.InputError, match=message) as caught:
        xk.read_zgr23_catalog(path)
    assert (caught.value.file, caught.value.field) == (str(path), field)


def test_an_order_that_is_said_twice_and_the_same(made, tmp_path):
    datasets = made["v2"]
    estimates = datasets["stellar_params_est"]
    datasets |= {"stellar_type_est": estimates[:, :3], "xi_est": estimates[:, 3], "plx_est": estimates[:, 5]}
    table = xk.read_zgr23_catalog(write(tmp_path / "c.h5", datasets))
    assert "xi_est" not in table.colnames


def test_files_that_do_not_belong_together_or_are_none(made, tmp_path):
    both = [write(tmp_path / f"{version}.h5", made[version]) for version in made]
    with pytest.raises(xk.InputError, match="v1 and of v2 together"):
        xk.read_zgr23_catalog(both)
    with pytest.raises(xk.InputError, match=r"absent.h5: no such file"):
        xk.read_zgr23_catalog(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(xk.InputError, match=r"text.h5: not a readable HDF5 file"):
        xk.read_zgr23_catalog(tmp_path / "text.h5")
    with pytest.raises(xk.InputError, match="no file"):
        xk.read_zgr23_catalog([])
