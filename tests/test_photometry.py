"""Magnitudes to flux (Eq. 5), and which of them count."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from xpkern.errors import InputError
from xpkern.grid import BANDS
from xpkern.observe.gaia_source import SourceTable
from xpkern.observe.photometry import (
    Infrared,
    PhotometryCuts,
    cuts_made,
    flux_of_magnitude,
    infrared_flux,
    magnitude_of_flux,
)

MAGNITUDES = {"j_m": 10.0, "h_m": 9.5, "ks_m": 9.25, "w1mag": 9.0, "w2mag": 9.125}
ERRORS = {"j_msigcom": 0.02, "h_msigcom": 0.03, "ks_msigcom": 0.04, "w1mag_error": 0.05, "w2mag_error": 0.06}


def table_of(**changes):
    """One star for each value of the longest change, otherwise as above."""
    columns = {name: np.array([value]) for name, value in (MAGNITUDES | ERRORS | {"ph_qual": "AAA"}).items()}
    columns |= {name: np.asarray(value) for name, value in changes.items()}
    n = max(column.size for column in columns.values())
    columns = {name: np.broadcast_to(column, n) for name, column in columns.items()}
    return SourceTable.of({"source_id": np.arange(n), **columns}, "table", ()), np.arange(n)


def usable(**changes):
    """(n, 5) bool: which bands of which star count."""
    flux, error = infrared_flux(*table_of(**changes))
    assert (np.isfinite(error) == (flux > 0)).all()
    return np.isfinite(error)


def without(*names):
    table, rows = table_of()
    kept = {name: table.numbers(name, rows) for name in MAGNITUDES | ERRORS if name not in names}
    kept |= {} if "ph_qual" in names else {"ph_qual": np.array(["AAA"])}
    return SourceTable.of({"source_id": rows, **kept}, "table", ()), rows


@pytest.mark.parametrize(
    ("band", "expected"),
    # 3631 Jy c / lambda^2 10^(-0.4 dm) by hand, in W m-2 um-1: what 2MASS and WISE publish for magnitude 0 is within
    # a few per cent of it (3.13e-9, 1.13e-9, 4.28e-10, 8.18e-11, 2.42e-11)
    [("J", 3.0867e-9), ("H", 1.0954e-9), ("Ks", 4.2492e-10), ("W1", 8.0634e-11), ("W2", 2.3730e-11)],
)
def test_flux_of_magnitude_zero(band, expected):
    per_um = flux_of_magnitude(band, 0.0) * 1e-18 * 1e3
    assert np.isclose(per_um, expected, rtol=1e-4)


@pytest.mark.parametrize("band", BANDS)
def test_magnitude_and_flux_are_inverse(band, rng):
    magnitude = rng.uniform(-5, 20, 100)
    assert np.allclose(magnitude_of_flux(band, flux_of_magnitude(band, magnitude)), magnitude, atol=1e-12)
    assert np.isclose(flux_of_magnitude(band, 5.0), 0.01 * flux_of_magnitude(band, 0.0))


def test_flux_and_error_in_the_order_of_the_bands():
    flux, error = infrared_flux(*table_of())
    magnitude = np.array(list(MAGNITUDES.values()))
    assert np.allclose(flux, [[flux_of_magnitude(band, m) for band, m in zip(BANDS, magnitude, strict=True)]])
    # by a finite difference of the magnitude
    step = 1e-6
    slope = [
        (flux_of_magnitude(band, m - step) - flux_of_magnitude(band, m + step)) / (2 * step)
        for band, m in zip(BANDS, magnitude, strict=True)
    ]
    assert np.allclose(error, [slope * np.array(list(ERRORS.values()))], rtol=1e-8)


def test_quality_letter_of_each_band():
    letters = ["AAA", "BAA", "ABA", "AAB", "UUA", "XFE", "A", ""]
    expected = [[len(q) > k and q[k] == "A" for k in range(3)] for q in letters]
    assert usable(ph_qual=letters)[:, :3].tolist() == expected
    assert usable(ph_qual=np.array(letters, "S"))[:, :3].tolist() == expected
    assert usable(ph_qual=letters)[:, 3:].all()


def test_quality_letters_are_required_for_2mass():
    with pytest.raises(InputError, match="table, field ph_qual"):
        infrared_flux(*without("ph_qual"))


def test_crowding():
    limits = usable(norm_dg=[np.nan, -20.0, -10.0, -9.0, -5.0, -4.0, 0.0])
    assert limits[:, :3].all(axis=1).tolist() == [True, True, True, True, False, False, False]
    assert limits[:, 3:].all(axis=1).tolist() == [True, True, False, False, False, False, False]
    assert not limits[4:].any()


def test_extended_sources():
    assert usable(ext_key=[np.nan, 12345.0]).tolist() == [[True] * 5, [False] * 3 + [True] * 2]


@pytest.mark.parametrize("band", range(5))
@pytest.mark.parametrize("broken", [np.nan, np.inf, 0.0, -1.0])
def test_errors_that_are_none(band, broken):
    good = usable(**{list(ERRORS)[band]: [0.02, broken]})
    assert good[0].all()
    assert good[1].tolist() == [index != band for index in range(5)]


@pytest.mark.parametrize("band", range(5))
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf, 1e9])
def test_magnitudes_that_are_none(band, broken):
    with np.errstate(over="ignore"):
        good = usable(**{list(MAGNITUDES)[band]: [10.0, broken]})
    assert good[1].tolist() == [index != band for index in range(5)]


def test_unwise_fluxes_and_cuts():
    nanomaggies = 10 ** (0.4 * (22.5 - 9.0))
    changes = {
        "flux_w1": nanomaggies,
        "dflux_w1": nanomaggies * np.array([0.01, 0.01, 0.01, 0.01, 0.21, 0.19]),
        "fracflux_w1": [0.9, 0.7, np.nan, 0.9, 0.9, 0.9],
        "qf_w1": [0.9, 0.9, 0.9, 0.7, 0.9, 0.9],
        "w1mag": 1.0,  # the fluxes win
    }
    flux, error = infrared_flux(*table_of(**changes))
    assert np.isfinite(error[:, 3]).tolist() == [True, False, False, False, False, True]
    assert np.isclose(flux[0, 3], flux_of_magnitude("W1", 9.0))
    assert np.isclose(error[0, 3], 0.01 * flux[0, 3])
    assert np.isfinite(error[:, 4]).all()
    assert not usable(flux_w1=[-1.0], dflux_w1=[0.01])[0, 3]
    assert not usable(w2mag_error=[0.25])[0, 4]


def test_bands_without_columns_are_missing():
    flux, error = infrared_flux(*without("j_m", "h_m", "ks_m", "ph_qual", "w2mag"))
    assert np.isfinite(error).tolist() == [[False, False, False, True, False]]
    assert flux[0, [0, 1, 2, 4]].tolist() == [0.0] * 4


def test_magnitude_without_a_column_of_errors():
    with pytest.raises(InputError, match="no column w1mag_error"):
        infrared_flux(*without("w1mag_error"))


def test_sources_that_the_table_lacks():
    table, _ = table_of(j_m=[10.0, 11.0])
    flux, error = infrared_flux(table, np.array([-1, 1, -1]))
    assert np.isfinite(error).all(axis=1).tolist() == [False, True, False]
    assert not np.isfinite(error[[0, 2]]).any()
    assert np.isclose(flux[1, 0], flux_of_magnitude("J", 11.0))


def removed_by(cuts=None, **changes):
    """What each cut removes, and which bands of which star count."""
    removed = Counter()
    _, error = infrared_flux(*table_of(**changes), cuts, removed)
    return {cut: number for cut, number in removed.items() if number}, np.isfinite(error)


#: For each cut values of a column, the first of which passes, and the bands that it concerns.
CUT_BY_CUT = {
    "twomass_quality": ({"ph_qual": ["AAA", "BBB", ""]}, slice(0, 3)),
    "twomass_extended": ({"ext_key": [np.nan, 7.0, 8.0]}, slice(0, 3)),
    "twomass_norm_dg": ({"norm_dg": [np.nan, -5.0, -4.0], "w1mag": np.nan, "w2mag": np.nan}, slice(0, 3)),
    "unwise_norm_dg": ({"norm_dg": [-10.5, -10.0, -9.0], "ph_qual": "UUU"}, slice(3, 5)),
    "unwise_separation": ({"separation": [0.24, 0.25, np.nan]}, slice(3, 5)),
    "unwise_fracflux": ({f"fracflux_w{n}": [0.81, 0.8, np.nan] for n in (1, 2)}, slice(3, 5)),
    "unwise_qf": ({f"qf_w{n}": [0.81, 0.8, np.nan] for n in (1, 2)}, slice(3, 5)),
    "unwise_error": ({f"w{n}mag_error": np.array([0.21, 0.22, 0.5]) for n in (1, 2)}, slice(3, 5)),
}


@pytest.mark.parametrize("cut", list(CUT_BY_CUT))
def test_each_cut_counts_what_it_removes_and_can_be_switched_off(cut, rng):
    changes, bands = CUT_BY_CUT[cut]
    removed, good = removed_by(**changes)
    others = {} if "ph_qual" not in changes or cut == "twomass_quality" else {"twomass_quality": 9}
    assert removed == {cut: 2 * (bands.stop - bands.start), **others}
    assert good[:, bands].tolist() == [[passes] * (bands.stop - bands.start) for passes in (True, False, False)]
    removed, good = removed_by(replace(PhotometryCuts(), **{cut: None}), **changes)
    assert removed == others
    assert good[:, bands].all()


def test_a_cut_of_ones_own():
    cuts = PhotometryCuts.parse(["unwise_qf=0.5", "twomass_quality=AB", "twomass_extended=true", "unwise_error=off"])
    assert cuts == PhotometryCuts(unwise_qf=0.5, twomass_quality="AB", twomass_extended=True, unwise_error=None)
    removed, good = removed_by(cuts, qf_w1=[0.6, 0.4], ph_qual=["ABA", "CAB"], ext_key=3.0, w2mag_error=2.0)
    assert removed == {"unwise_qf": 1, "twomass_quality": 1}
    assert good.tolist() == [[True] * 5, [False, True, True, False, True]]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("unwise_fq=0.5", "did you mean unwise_qf"),
        ("unwise_qf", "is not NAME=VALUE of a cut; did you mean unwise_qf"),
        ("=1", "twomass_quality, twomass_extended"),
        ("unwise_qf=much", "'much' is neither off nor a number"),
        ("twomass_extended=1", "'1' is neither off nor true or false"),
    ],
)
def test_cuts_that_cannot_be(setting, message):
    with pytest.raises(InputError, match=message):
        PhotometryCuts.parse([setting])


def test_what_is_no_measurement_is_counted_apart():
    removed, good = removed_by(flux_w1=[-1.0, 0.0, np.nan], dflux_w1=0.1, h_msigcom=[0.1, -1.0, np.nan])
    assert removed == {"no_positive_flux": 4}
    assert good[:, 1].tolist() == [True, False, False]
    assert not good[:, 3].any()


def test_a_measurement_is_removed_by_one_cut_only():
    removed, _ = removed_by(ph_qual="BBB", ext_key=1.0, norm_dg=0.0, separation=3.0, w1mag_error=9.0)
    assert removed == {"twomass_quality": 3, "unwise_norm_dg": 2}


def test_what_is_said_of_the_cuts():
    table, _ = table_of(qf_w1=1.0, ext_key=np.nan)
    made = cuts_made(table, PhotometryCuts(unwise_qf=0.7, unwise_error=None))
    assert made == {
        "twomass_quality": "A",
        "twomass_extended": False,
        "twomass_norm_dg": "not applied: no column norm_dg",
        "unwise_norm_dg": "not applied: no column norm_dg",
        "unwise_separation": "not applied: no column unwise_separation",
        "unwise_fracflux": "not applied: no column fracflux_w1",
        "unwise_qf": 0.7,
        "unwise_error": "off",
    }
    assert cuts_made(SourceTable.of({"source_id": np.arange(2)}, "t", ()), PhotometryCuts()) == dict.fromkeys(
        made, "not applied: no such magnitudes"
    )


def test_cuts_of_several_tables():
    of_2mass, _ = without("w1mag", "w2mag")
    of_wise, _ = without("j_m", "h_m", "ks_m")
    usual = PhotometryCuts()
    both = Infrared([of_2mass, of_wise], usual)
    assert both.tables == [of_2mass, of_wise]
    assert both.settings == cuts_made(without()[0], usual)
    for ours, together in zip(both.flux(np.arange(1)), infrared_flux(*without()), strict=True):
        np.testing.assert_array_equal(ours, together)
    with_norm_dg = Infrared([of_2mass, of_wise.with_column("norm_dg", np.array([-7.0]))], usual)
    assert (with_norm_dg.settings["twomass_norm_dg"], with_norm_dg.settings["unwise_norm_dg"]) == (-5.0, -10.0)
    removed = Counter()
    assert np.isfinite(with_norm_dg.flux(np.arange(1), removed)[1]).tolist() == [[True] * 3 + [False] * 2]
    assert +removed == {"unwise_norm_dg": 2}
    nothing = Infrared([], usual)
    assert (nothing.settings, nothing.tables) == ({}, [])
    assert not np.isfinite(nothing.flux(np.arange(3))[1]).any()


def test_names_of_other_archives():
    irsa = {"k_m": 9.25, "k_msigcom": 0.04, "w1mpro": 9.0, "w1sigmpro": 0.05, "w2mpro": 9.125, "w2mpro_error": 0.06}
    table, rows = without("ks_m", "ks_msigcom", "w1mag", "w2mag")
    columns = {name: table.numbers(name, rows) for name in MAGNITUDES | ERRORS if name in table}
    columns |= {"source_id": rows, "ph_qual": np.array(["AAA"])} | {n: np.array([v]) for n, v in irsa.items()}
    irsa_table = SourceTable.of(columns, "t", ())
    for ours, theirs in zip(infrared_flux(*table_of()), infrared_flux(irsa_table, rows), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_unwise_as_its_own_files_have_it():
    """``flux``, ``dflux``, ``fracflux``, ``qf`` with a column of W1 and one of W2 each."""
    flux = 10 ** (0.4 * (22.5 - np.array([[9.0, 9.125], [10.0, 11.0]])))
    vectors = {"flux": flux, "dflux": 0.05 * flux, "fracflux": [[0.9, 0.9], [0.9, 0.1]], "qf": [[0.9, 0.1], [0.9, 0.9]]}
    table = SourceTable.of({"source_id": np.arange(2), **{n: np.asarray(v) for n, v in vectors.items()}}, "t", ())
    removed = Counter()
    found, error = infrared_flux(table, np.arange(2), None, removed)
    assert np.isfinite(error)[:, 3:].tolist() == [[True, False], [True, False]]
    assert np.isclose(found[0, 3], flux_of_magnitude("W1", 9.0))
    assert (removed["unwise_qf"], removed["unwise_fracflux"]) == (1, 1)
