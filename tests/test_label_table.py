"""Catalogues of surveys as one label table: columns, missing values, flags, Hot Payne, stars in several surveys."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table
from catalogues import (
    DEC,
    FEH,
    LOGG,
    RA,
    SOURCE_ID,
    TEFF,
    N,
    apogee,
    gaia_source,
    galah,
    hot_payne,
    lamost,
    where,
    write_fits,
)
from command_lines import one_line

from xpkern.cli import main
from xpkern.errors import InputError
from xpkern.train.label_table import make_label_table
from xpkern.train.labels import read_labels


def removed(table, name, words):
    """Stars that the one condition with these words took out."""
    (count,) = [count for count in table.counts[name] if words in count.condition]
    return count.removed


def test_apogee(tmp_path):
    flags = np.zeros(N, "i8")
    flags[[0, 1, 2]] = 1 << 23, 1 << 19, 1 << 3  # bad, bad metals, and no more than a warning of metals
    starflag = where([3], 1 << 3, np.zeros(N, "i8"))
    columns = apogee(
        ASPCAPFLAG=flags,
        STARFLAG=starflag,
        EXTRATARG=where([4], 16, np.zeros(N, "i4")),
        TEFF=where([5], np.nan, TEFF.astype("f4")),
        FE_H_ERR=where([6], -9999.99, np.full(N, 0.03, "f4")),
        LOGG_ERR=where([7], 0.6, np.full(N, 0.03, "f4")),
        SNR=where([8], 49.0, np.full(N, 150.0, "f4")),
        GAIAEDR3_SOURCE_ID=where([9], 0, SOURCE_ID),
    )
    table = make_label_table([("apogee", write_fits(tmp_path / "allStar.fits", columns))])
    kept = np.setdiff1d(np.arange(N), [0, 1, 3, 4, 5, 6, 7, 8, 9])
    np.testing.assert_array_equal(table.columns["source_id"], SOURCE_ID[kept])
    np.testing.assert_allclose(table.columns["teff"], TEFF[kept] / 1000, rtol=1e-6)
    np.testing.assert_allclose(table.columns["feh"], FEH[kept] + 0.05, atol=1e-6)
    assert table.columns["teff_err"] == pytest.approx(0.02)  # of 15 K
    assert set(table.columns["survey"]) == {"apogee"}
    for words, n in (("aspcapflag", 2), ("starflag", 1), ("extratarg", 1), ("snr", 1), ("logg_err <", 1)):
        assert removed(table, "1. apogee", words) == n
    assert sum(count.removed for count in table.counts["1. apogee"]) == N - len(kept)


def test_limits_by_name_and_by_survey(tmp_path):
    path = write_fits(
        tmp_path / "a.fits", apogee(ASPCAPFLAG=np.full(N, 1 << 23), SNR=np.linspace(40, 80, N).astype("f4"))
    )
    with pytest.raises(InputError, match=r"none is left by: aspcapflag & .*STAR_BAD"):
        make_label_table([("apogee", path)])
    table = make_label_table([("apogee", path)], limits={"apogee.aspcapflag": 0, "snr": -np.inf})
    assert len(table) == N
    assert len(make_label_table([("apogee", path)], limits={"aspcapflag": 0, "apogee.snr": 60, "snr": 99})) == N // 2


@pytest.mark.parametrize("release", [3, 4])
def test_galah_releases_are_told_apart_by_their_columns(tmp_path, release):
    columns = galah(
        release,
        flag_sp=where([0], 1, np.zeros(N, "i4")),
        flag_fe_h=where([1], 1, np.zeros(N, "i4")),
        e_teff=where([2], np.nan, np.full(N, 90.0, "f4")),
    )
    table = make_label_table([("galah", write_fits(tmp_path / "g.fits", columns))])
    lost = {3: [0, 1, 2], 4: [0, 2]}[release]  # DR4 asks to pass over flag_fe_h
    np.testing.assert_array_equal(table.columns["source_id"], np.delete(SOURCE_ID, lost))
    assert f"DR{release}" in table.counts["1. galah"][0].condition


@pytest.mark.parametrize("ending", ["fits", "csv", "bars.csv"])
def test_lamost_is_matched_by_position_or_named_by_its_own_identifiers(tmp_path, ending):
    columns = lamost(teff_err=where([0], -9999.0, np.full(N, 30.0, "f4")), dec=where([1], DEC[1] + 0.3 / 3600, DEC))
    path = tmp_path / f"dr8.{ending}"
    if ending == "fits":
        write_fits(path, columns)
    else:
        columns["gaia_source_id"][1] = b""
        text = {
            name: np.char.decode(values) if values.dtype.kind == "S" else values for name, values in columns.items()
        }
        Table(text).write(path, format="ascii.csv", delimiter="|" if "bars" in ending else ",")
    table = make_label_table([("lamost", path)], gaia_source=gaia_source())
    np.testing.assert_array_equal(table.columns["source_id"], SOURCE_ID[2:])
    assert removed(table, "1. lamost", "within 0.25 arcsec") == 1
    np.testing.assert_allclose(table.columns["teff"], TEFF[2:] / 1000, rtol=1e-6)
    np.testing.assert_array_equal(table.columns["snr_i"], 60.0)
    by_name = make_label_table([("lamost", path)])
    np.testing.assert_array_equal(by_name.columns["source_id"], SOURCE_ID[1 if ending == "fits" else 2 :] + 7)
    assert "Gaia DR2" in by_name.lines()[2]


def test_repeats_keep_the_best_spectrum(tmp_path):
    columns = {name: np.concatenate([values, values]) for name, values in lamost().items()}
    columns["snrg"][N:] = 80.0
    columns["teff"][N:] += 5.0
    table = make_label_table([("lamost", write_fits(tmp_path / "dr8.fits", columns))], gaia_source=gaia_source())
    assert len(table) == N
    np.testing.assert_allclose(table.columns["teff"], (TEFF + 5) / 1000, rtol=1e-6)
    assert removed(table, "1. lamost", "best spectrum") == N


def test_hot_payne_counts_from_7000_kelvin_on(tmp_path):
    hot = np.flatnonzero(TEFF >= 7000)
    # one of LAMOST's hot stars that Hot Payne finds cool, one that it does not have, one of its own
    fibres = [*(hot[1:] + 1).tolist(), 1, 77]
    teff = [6900.0, *np.linspace(7500, 9900, len(hot) - 2), 6500.0, 15000.0]
    columns = hot_payne(fibres, teff)
    rows = np.array(fibres[:-1]) - 1
    columns |= {"RA": np.append(RA[rows], RA[0] + 1), "Dec": np.append(DEC[rows], DEC[0])}
    sources = gaia_source()
    sources = {
        name: np.append(values, extra)
        for (name, values), extra in zip(sources.items(), (999, RA[0] + 1, DEC[0]), strict=True)
    }
    catalogues = [
        ("lamost", write_fits(tmp_path / "dr8.fits", lamost())),
        ("hot_payne", write_fits(tmp_path / "hot.fits", columns)),
    ]
    table = make_label_table(catalogues, gaia_source=sources)
    cool = np.flatnonzero(TEFF < 7000)
    expected = {999: 15.0} | dict(zip(SOURCE_ID[cool], TEFF[cool] / 1000, strict=True))
    expected |= dict(zip(SOURCE_ID[hot[2:]], np.linspace(7500, 9900, len(hot) - 2) / 1000, strict=True))
    np.testing.assert_array_equal(table.columns["source_id"], sorted(expected))
    np.testing.assert_allclose(table.columns["teff"], [expected[key] for key in sorted(expected)], rtol=1e-6)
    np.testing.assert_array_equal(table.columns["survey"] == "hot_payne", table.columns["teff"] > 7)
    assert removed(table, "1. lamost", "or in Hot Payne") == 2
    assert "snr_g" not in table.columns  # the star of its own has none
    # without gaia_source its own spectra have no identifier; alone, it is a survey like any other
    assert 999 not in make_label_table(catalogues).columns["source_id"]
    alone = make_label_table(catalogues[1:], gaia_source=sources)
    assert len(alone) == len(hot) - 1


@pytest.mark.parametrize("ending", ["fits", "csv"])
def test_a_star_in_several_surveys_is_taken_from_the_first_and_their_difference_told(tmp_path, ending):
    few = {name: values[: N // 2] for name, values in apogee().items()}
    paths = {"apogee": write_fits(tmp_path / "a.fits", few), "galah": write_fits(tmp_path / "g.fits", galah(3))}
    Table(
        {"source_id": SOURCE_ID[-1:], "teff": [5.0], "feh": [0.0], "logg": [4.0], "survey": ["mine"]}
        | {f"{name}_err": [0.03] for name in ("teff", "feh", "logg")}
        | {"ext": [0.1], "ext_err": [0.05]}
    ).write(tmp_path / f"t.{ending}")
    table = make_label_table([("table", tmp_path / f"t.{ending}"), *paths.items()])
    assert table.columns["survey"].tolist() == ["apogee"] * (N // 2) + ["galah"] * (N // 2 - 1) + ["mine"]
    assert removed(table, "3. galah", "named before") == N // 2 + 1
    assert [(overlap.kept, overlap.other, overlap.stars) for overlap in table.overlaps] == [
        ("table", "galah", 1),
        ("apogee", "galah", N // 2),
    ]
    np.testing.assert_allclose(table.overlaps[1].difference, [-0.05, -0.05, 0.0], atol=2e-6)
    np.testing.assert_array_equal(np.isfinite(table.columns["ext"]), table.columns["survey"] == "mine")
    reordered = make_label_table([*reversed(paths.items())])
    assert set(reordered.columns["survey"]) == {"galah"}


def test_what_is_written_is_what_training_reads(tmp_path):
    path = write_fits(tmp_path / "dr8.fits", lamost(), units={"teff": "K", "teff_err": "K"})
    for name in ("one.fits", "two.fits"):
        arguments = ["labels", f"lamost={path}", "--limit", "feh_err=0.3", "--floor", "teff_err=0.05"]
        assert main([*arguments, "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "one.fits").read_bytes() == (tmp_path / "two.fits").read_bytes()
    labels = read_labels(tmp_path / "one.fits")
    np.testing.assert_array_equal(labels.source_id, SOURCE_ID + 7)
    np.testing.assert_allclose(labels.mean[:, :3], np.column_stack([TEFF / 1000, FEH, LOGG]), atol=1e-6)
    np.testing.assert_allclose(labels.error[0, :3], [0.05, 0.02, 0.05], rtol=1e-6)
    np.testing.assert_array_equal(labels.column("snr_r"), 70.0)
    assert labels.table.texts("survey", np.arange(2)).tolist() == ["lamost", "lamost"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["apoge=a.fits"], "no survey is called 'apoge': did you mean 'apogee'?"),
        (["a.fits"], "'a.fits' is not of the form SURVEY=FILE"),
        (["apogee=absent.fits"], "absent.fits: no such file"),
        (["apogee=galah.fits"], "is no catalogue of apogee (DR17): it has no column gaiaedr3_source_id"),
        (["galah=apogee.fits"], "it has no column dr3_source_id (DR3) or gaiadr3_source_id (DR4)"),
        (["lamost=apogee.fits"], "is no catalogue of lamost (DR8 v2.0): it has no column snrg"),
        (["apogee=broken.fits"], "broken.fits: cannot be read as a table"),
        (["apogee=apogee.fits", "apogee=apogee.fits"], "apogee is given twice"),
        (["apogee=apogee.fits", "--limit", "snrr=3"], "no limit is called 'snrr': did you mean 'snr_r'?"),
        (["apogee=apogee.fits", "--limit", "snr=x"], "field snr: 'x' is no number"),
        (["apogee=apogee.fits", "--floor", "teff=1"], "no error is called 'teff': did you mean 'teff_err'?"),
        (["apogee=text.fits"], "not a column of numbers"),
        (["apogee=apogee.fits", "-o", "out.csv"], "must end in .fits"),
    ],
)
def test_bad_input_is_told_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_fits(tmp_path / "apogee.fits", apogee())
    write_fits(tmp_path / "galah.fits", galah(4))
    write_fits(tmp_path / "text.fits", apogee(TEFF=np.full(N, b"hot", "S4")))
    (tmp_path / "broken.fits").write_bytes(b"nothing of the kind")
    output = [] if "-o" in arguments else ["-o", "out.fits"]
    assert main(["labels", *arguments, *output]) == 1
    assert message in one_line(capsys)
    assert not list(tmp_path.glob("*out*"))
