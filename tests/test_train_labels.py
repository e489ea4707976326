"""Labels, cuts and the set of stars made of them: formats, units, counts, and what is wrong with a table."""

from __future__ import annotations

import gzip
import os
import shutil
from itertools import pairwise
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from astropy import units
from astropy.table import QTable, Table
from labelled_stars import SMALL, LabelledSurvey, recipe_from

from xpkern.errors import InputError
from xpkern.observe.gaia_source import SourceTable
from xpkern.status import Status
from xpkern.train import training_set as training_set_module
from xpkern.train.labels import read_labels
from xpkern.train.recipe_file import load_recipe
from xpkern.train.training_set import candidates, foresee, gather, is_held_out, load_set, save_set

N = 40


@pytest.fixture
def columns(rng):
    table = {"source_id": rng.permutation(N) + 4_000_000_000_000_000_000}
    for name, low, high, error in (
        ("teff", 4.0, 7.0, 0.05),
        ("feh", -1, 0.3, 0.1),
        ("logg", 1, 5, 0.1),
        ("ext", 0, 1, 0.03),
    ):
        table |= {name: rng.uniform(low, high, N), f"{name}_err": rng.uniform(0.5, 1.0, N) * error}
    return table


def in_kelvin(columns):
    return columns | {"teff": columns["teff"] * 1000, "teff_err": columns["teff_err"] * 1000}


def expected(columns):
    names = ("teff", "feh", "logg", "ext")
    return tuple(np.column_stack([columns[name + end] for name in names]) for end in ("", "_err"))


def assert_labels(labels, columns):
    mean, error = expected(columns)
    np.testing.assert_array_equal(labels.source_id, columns["source_id"])
    np.testing.assert_allclose(labels.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(labels.error, error, rtol=1e-12)


@pytest.mark.parametrize("ending", ["fits", "ecsv", "csv", "csv.gz", "vot", "parquet", "h5"])
def test_every_format_with_units(tmp_path, columns, ending):
    path = tmp_path / f"labels.{ending}"
    table = Table(in_kelvin(columns))
    if ending in ("fits", "ecsv", "vot"):
        table["teff"].unit = table["teff_err"].unit = "K"
    if ending == "csv.gz":
        table.write(tmp_path / "labels.csv", format="ascii.csv")
        path.write_bytes(gzip.compress((tmp_path / "labels.csv").read_bytes()))
    elif ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(in_kelvin(columns)), path)
    elif ending == "h5":
        with h5py.File(path, "w") as file:
            for name, values in columns.items():
                file[name] = values
            file["teff"].attrs["unit"] = file["teff_err"].attrs["unit"] = "kK"
    else:
        table.write(path, **({"format": "votable"} if ending == "vot" else {}))
    assert_labels(read_labels(path), columns)


def test_units_of_a_column_count_and_numbers_speak_where_there_is_none(columns):
    assert_labels(read_labels(columns), columns)
    assert_labels(read_labels(in_kelvin(columns)), columns)
    table = QTable(columns)
    table["teff"] = columns["teff"] * units.kK
    table["teff_err"] = columns["teff_err"] * 1000 * units.K
    assert_labels(read_labels(table), columns)
    table = Table(in_kelvin(columns))
    table["teff"].unit = "K"  # its error without a unit is in the same
    assert_labels(read_labels(table), columns)


def test_masked_and_not_finite_labels_are_missing(columns):
    table = Table(columns, masked=True)
    table["teff"].mask[3] = True
    table["feh_err"][5] = np.inf
    labels = read_labels(table)
    assert np.isnan(labels.mean[3, 0])
    assert np.isnan(labels.error[5, 1])


def test_names_of_columns_in_capitals(columns):
    assert_labels(read_labels({name.upper(): values for name, values in columns.items()}), columns)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"teff": None}, "teff"),
        ({"logg_err": None}, "logg_err"),
        ({"source_id": None}, "source_id"),
        ({"source_id": np.arange(N, dtype=float)}, "source_id"),
        ({"source_id": np.zeros(N, int)}, "source_id"),
        ({"ext_err": None}, "ext"),
        ({"feh": np.array(["x"] * N)}, "feh"),
    ],
)
def test_a_table_that_will_not_do_names_the_column(columns, change, field):
    columns = {name: values for name, values in (columns | change).items() if values is not None}
    with pytest.raises(InputError) as caught:
        read_labels(columns)
    assert caught.value.field == field


def test_a_unit_that_is_no_temperature(columns):
    table = Table(columns)
    table["teff"].unit = "mag"
    with pytest.raises(InputError, match="no temperature"):
        read_labels(table)


@pytest.mark.parametrize("name", ["absent.fits", "broken.fits", "broken.parquet", "broken.h5"])
def test_a_file_that_cannot_be_read(tmp_path, name):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=name):
        read_labels(tmp_path / name)


def test_reddening_from_a_table_of_its_own(tmp_path, columns, rng):
    types = {name: values for name, values in columns.items() if not name.startswith("ext")}
    known = rng.permutation(N)[: N // 2]
    reddening = {name: columns[name][known] for name in ("source_id", "ext", "ext_err")}
    Table(reddening).write(tmp_path / "reddening.fits")
    for table in (reddening, tmp_path / "reddening.fits"):
        labels = read_labels(types, table)
        assert labels.has_ext
        unknown = np.setdiff1d(np.arange(N), known)
        np.testing.assert_array_equal(labels.mean[known, 3], columns["ext"][known])
        np.testing.assert_array_equal(labels.column("ext_err")[known], columns["ext_err"][known])
        assert np.isnan(labels.mean[unknown, 3]).all()
        assert np.isnan(labels.error[unknown, 3]).all()
    assert not read_labels(types).has_ext


def test_reddening_that_will_not_do(columns):
    types = {name: values for name, values in columns.items() if not name.startswith("ext")}
    reddening = {name: columns[name] for name in ("source_id", "ext", "ext_err")}
    with pytest.raises(InputError, match="both this table and that of the reddening have ext"):
        read_labels(columns, reddening)
    with pytest.raises(InputError, match="ext_err"):
        read_labels(types, {name: reddening[name] for name in ("source_id", "ext")})
    with pytest.raises(InputError, match="has no star of the labels"):
        read_labels(types, reddening | {"source_id": reddening["source_id"] + 1_000_000})


# ---- joining and cutting ---------------------------------------------------------------------------------------


@pytest.fixture
def sources(columns, rng):
    plx = rng.uniform(1.0, 3.0, N)
    return {"source_id": columns["source_id"][::-1], "parallax": plx, "parallax_error": np.full(N, 0.05)}


def choose(columns, sources, recipe=None):
    table = SourceTable.of(sources, "gaia_source", ())
    return candidates(read_labels(columns), table, load_recipe("default") if recipe is None else recipe)


def test_good_stars_all_pass_and_absent_columns_are_told(columns, sources):
    chosen = choose(columns, sources)
    np.testing.assert_array_equal(chosen.source_id, np.sort(columns["source_id"]))
    np.testing.assert_array_equal(columns["source_id"][chosen.rows], chosen.source_id)
    not_applied = {count.condition.split()[0] for count in chosen.counts if count.removed is None}
    assert not_applied == {"snr_g", "snr_r", "snr_i", "fidelity_v2", "bp_rp_flux_excess"}
    assert "NOT APPLIED" in str(next(count for count in chosen.counts if count.removed is None))
    assert chosen.high_quality.all()


def test_each_condition_takes_out_its_stars_and_counts_them(columns, sources, rng):
    rows = rng.permutation(N)
    columns["teff"][rows[0]] = np.nan
    columns["feh_err"][rows[1]] = 0.0
    columns["logg_err"][rows[2]] = -1.0
    columns["ext_err"][rows[3]] = 0.0
    columns["snr_g"] = np.full(N, 50.0)
    columns["snr_g"][rows[4:6]] = [19.0, np.nan]
    columns["teff_err"][rows[6]] = 0.6
    of = {source: row for row, source in enumerate(sources["source_id"])}
    for row, parallax in ((rows[7], -1.0), (rows[8], 0.14)):
        sources["parallax"][of[columns["source_id"][row]]] = parallax
    sources["phot_bp_rp_excess_factor"] = np.full(N, 1.1)
    sources["phot_bp_rp_excess_factor"][of[columns["source_id"][rows[9]]]] = 1.4
    chosen = choose(columns, sources)
    assert set(columns["source_id"][rows[:10]]) == set(columns["source_id"]) - set(chosen.source_id)
    removed = {count.condition: count.removed for count in chosen.counts if count.removed}
    assert removed == {
        "teff is a number": 1,
        "feh_err is positive": 1,
        "logg_err is positive": 1,
        "ext_err is positive, or ext unknown": 1,
        "snr_g > 20": 2,
        "teff_err < 0.5 kK": 1,
        "parallax_over_error > 3": 2,
        "bp_rp_flux_excess < 1.3": 1,
    }
    assert chosen.counts[-1].left == len(chosen) == N - 10


def test_high_quality_cuts_only_mark(columns, sources, rng):
    worse = rng.permutation(N)[:7]
    columns["feh_err"][worse] = 0.3
    chosen = choose(columns, sources)
    assert len(chosen) == N
    marked = columns["source_id"][chosen.rows[~chosen.high_quality]]
    assert set(marked) == set(columns["source_id"][worse])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c, s: s.update(source_id=s["source_id"] + 1000), "no star of the labels is in gaia_source"),
        (lambda c, s: c.update(feh=np.full(N, np.nan)), "field feh: holds no number"),
        (lambda c, s: c.update(teff_err=np.zeros(N)), "field teff_err: zero, negative or missing"),
        (lambda c, s: c.update(logg_err=np.full(N, -0.1)), "field logg_err: zero, negative or missing"),
        (lambda c, s: c.update(ext_err=np.zeros(N)), "field ext_err: zero, negative or missing"),
        (lambda c, s: s.update(parallax=np.full(N, np.nan)), "nor has the recipe anchors"),
        (lambda c, s: c.update(snr_i=np.zeros(N)), "none left by: snr_i > 20"),
    ],
)
def test_nothing_left_is_an_error_that_says_why(columns, sources, spoil, message):
    spoil(columns, sources)
    with pytest.raises(InputError, match=message):
        choose(columns, sources)


def test_stars_without_a_known_extinction_stay(columns, sources):
    columns["ext"][:3] = np.nan
    assert len(choose(columns, sources)) == N
    del columns["ext"], columns["ext_err"]
    chosen = choose(columns, sources)
    assert len(chosen) == N
    assert any(count.condition.startswith("ext_err") and count.removed is None for count in chosen.high_quality_counts)


def test_held_out_stars_depend_on_their_own_number_alone(rng):
    recipe = load_recipe("default")
    source_id = rng.integers(1, 1 << 62, 20000)
    held_out = is_held_out(source_id, recipe)
    assert abs(held_out.mean() - recipe.split.held_out) < 0.015
    some = rng.permutation(20000)[:100]
    np.testing.assert_array_equal(is_held_out(source_id[some], recipe), held_out[some])
    neighbours = is_held_out(np.arange(20000) + 4_000_000_000_000_000_000, recipe)
    assert abs(neighbours.mean() - recipe.split.held_out) < 0.015


# ---- spectra ---------------------------------------------------------------------------------------------------


@pytest.fixture
def survey(rng):
    return LabelledSurvey.random(50, rng)


def assert_sets_equal(one, other):
    for name in ("source_id", "start", "held_out", "high_quality"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("flux", "mean", "sigma"):
        np.testing.assert_array_equal(getattr(one.stars, name), getattr(other.stars, name))
    np.testing.assert_array_equal(one.stars.whitener.groups, other.stars.whitener.groups)
    assert one.digest == other.digest
    assert one.counts == other.counts
    assert one.high_quality_counts == other.high_quality_counts


@pytest.mark.parametrize("sizes", [(50,), (0, 1, 15, 16, 17, 1), (25, 25)])
def test_blocks_and_the_place_of_the_whiteners_do_not_matter(survey, tmp_path, sizes):
    recipe = recipe_from(tmp_path, SMALL)
    chosen = candidates(survey.labels, survey.sources, recipe)
    observations = survey.observations(recipe)
    ends = np.cumsum((0, *sizes))
    blocks = [observations[a:b] for a, b in pairwise(ends)]
    whole = gather(chosen, [observations], recipe)
    in_file = gather(chosen, blocks, recipe, tmp_path / "whiteners")
    assert_sets_equal(in_file, whole)
    assert os.path.getsize(tmp_path / "whiteners") == whole.stars.whitener.groups.nbytes
    rows = np.searchsorted(observations.source_id, whole.source_id)
    np.testing.assert_array_equal(whole.stars[:].whitener, observations.whitener[rows])
    np.testing.assert_array_equal(whole.stars.flux, observations.flux[rows])
    save_set(in_file, tmp_path / "set.npz")
    assert_sets_equal(load_set(tmp_path / "set.npz", tmp_path / "whiteners"), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.toml", "set.npz", "whiteners"]


def test_labels_and_floors_are_the_constraints(survey, tmp_path):
    recipe = recipe_from(tmp_path, SMALL)
    found = survey.training_set(recipe)
    rows = np.searchsorted(survey.survey.source_id, found.source_id)
    mean, error = expected(survey.columns)
    np.testing.assert_allclose(found.stars.mean[:, :4], mean[rows], rtol=1e-12)
    np.testing.assert_allclose(found.stars.mean[:, 4], survey.survey.gaia_source["parallax"][rows])
    np.testing.assert_allclose(found.stars.sigma[:, 0], np.hypot(error[rows, 0], 0.02))
    floor = np.hypot(0.03, 0.1 * mean[rows, 3])
    np.testing.assert_allclose(found.stars.sigma[:, 3], np.hypot(error[rows, 3], floor))
    np.testing.assert_allclose(found.start[:, 3], np.maximum(mean[rows, 3], recipe.start.smallest_ext))
    np.testing.assert_allclose(found.stars.sigma[:, 4], survey.survey.gaia_source["parallax_error"][rows])


def test_a_star_without_an_extinction_has_no_constraint_on_it(survey, tmp_path):
    recipe = recipe_from(tmp_path, SMALL)
    del survey.columns["ext"], survey.columns["ext_err"]
    found = survey.training_set(recipe)
    assert np.isinf(found.stars.sigma[:, 3]).all()
    assert (found.start[:, 3] == recipe.start.ext).all()


def test_spectra_twice_unusable_or_of_others(survey, tmp_path):
    recipe = recipe_from(tmp_path, SMALL)
    observations = survey.observations(recipe)
    chosen = candidates(survey.labels, survey.sources, recipe)
    whole = gather(chosen, [observations], recipe)
    observations.status[np.searchsorted(observations.source_id, whole.source_id[0])] |= np.uint32(Status.BAD_ROW)
    twice = gather(chosen, [observations, observations[:20]], recipe)
    np.testing.assert_array_equal(twice.source_id, whole.source_id[1:])
    assert any("passed over" in count.condition for count in twice.counts)
    assert next(count for count in twice.counts if count.condition == "with a usable spectrum").removed == 1
    observations.source_id += 1
    with pytest.raises(InputError, match="no spectrum has the source_id"):
        gather(chosen, [observations], recipe)


def test_none_usable(survey, tmp_path):
    recipe = recipe_from(tmp_path, SMALL)
    observations = survey.observations(recipe)
    observations.status |= np.uint32(Status.BAD_ROW)
    with pytest.raises(InputError, match="none is usable"):
        gather(candidates(survey.labels, survey.sources, recipe), [observations], recipe)


def test_too_little_memory_or_disk_is_foreseen(monkeypatch, tmp_path):
    foresee(1000, tmp_path)
    monkeypatch.setattr(training_set_module, "free_memory", lambda: 12_000_000_000)
    with pytest.raises(InputError, match=r"2,060,000 stars need 20 GB of memory and 12 GB are free"):
        foresee(2_060_000, None)
    monkeypatch.setattr(training_set_module, "free_memory", lambda: 1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000_000))
    with pytest.raises(InputError, match=r"of disk and 5 GB are free"):
        foresee(2_060_000, tmp_path)
    assert training_set_module.free_memory() > 0
