"""Magnitudes to flux (Eq. 5), and which of them count."""

import numpy as np
import pytest

from xpkern.errors import InputError
from xpkern.grid import BANDS
from xpkern.observe.gaia_source import SourceTable
from xpkern.observe.photometry import flux_of_magnitude, infrared_flux, magnitude_of_flux

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
