"""The tables of a survey beside its spectra: what is measured of the sources, and what is true."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.grid import BANDS, N_XP
from xpkern.observe.photometry import (
    NANOMAGGY_MAGNITUDE,
    TWOMASS_CROWDING,
    flux_of_magnitude,
)
from xpkern.observe.population import Population
from xpkern.observe.simulate import TWOMASS_COLUMNS, observe_source_table
from xpkern.survey.planted import NONE
from xpkern.survey.sources import Sources


@dataclass(frozen=True)
class TableColumn:
    """A column of a table: name, NumPy data type, unit as FITS writes it, description."""

    name: str
    dtype: str
    unit: str
    description: str


GAIA_SOURCE = (
    TableColumn("source_id", "i8", "", "Identifier of the source"),
    TableColumn("ra", "f8", "deg", "Right ascension, ICRS"),
    TableColumn("dec", "f8", "deg", "Declination, ICRS"),
    TableColumn("parallax", "f8", "mas", "Parallax"),
    TableColumn("parallax_error", "f4", "mas", "Standard error of the parallax"),
    TableColumn("parallax_over_error", "f4", "", "Parallax over its standard error"),
    TableColumn("ruwe", "f4", "", "Renormalised unit weight error"),
    TableColumn("phot_g_mean_mag", "f4", "mag", "Mean magnitude G"),
    TableColumn("phot_bp_mean_mag", "f4", "mag", "Mean magnitude BP"),
    TableColumn("phot_rp_mean_mag", "f4", "mag", "Mean magnitude RP"),
    TableColumn("phot_bp_rp_excess_factor", "f4", "", "Excess of the flux in BP and RP over that in G"),
    TableColumn("fidelity_v2", "f4", "", "Astrometric fidelity (after Rybizki et al. 2022)"),
    TableColumn("norm_dg", "f4", "mag", "Crowding: magnitude difference to neighbours, weighted with distance"),
    TableColumn("j_m", "f4", "mag", "2MASS J"),
    TableColumn("j_msigcom", "f4", "mag", "Standard error of j_m"),
    TableColumn("h_m", "f4", "mag", "2MASS H"),
    TableColumn("h_msigcom", "f4", "mag", "Standard error of h_m"),
    TableColumn("ks_m", "f4", "mag", "2MASS Ks"),
    TableColumn("ks_msigcom", "f4", "mag", "Standard error of ks_m"),
    TableColumn("ph_qual", "S3", "", "2MASS quality letters of J, H, Ks"),
    TableColumn("flux_w1", "f4", "", "unWISE W1 in Vega nanomaggies"),
    TableColumn("dflux_w1", "f4", "", "Standard error of flux_w1"),
    TableColumn("fracflux_w1", "f4", "", "Share of the flux in the pixels that is the source's own"),
    TableColumn("qf_w1", "f4", "", "Share of good pixels"),
    TableColumn("flux_w2", "f4", "", "unWISE W2 in Vega nanomaggies"),
    TableColumn("dflux_w2", "f4", "", "Standard error of flux_w2"),
    TableColumn("fracflux_w2", "f4", "", "Share of the flux in the pixels that is the source's own"),
    TableColumn("qf_w2", "f4", "", "Share of good pixels"),
)

LABELS = (
    TableColumn("source_id", "i8", "", "Identifier of the source"),
    TableColumn("teff", "f4", "K", "Effective temperature"),
    TableColumn("teff_err", "f4", "K", "Standard error of teff"),
    TableColumn("feh", "f4", "", "[Fe/H] in dex"),
    TableColumn("feh_err", "f4", "", "Standard error of feh"),
    TableColumn("logg", "f4", "", "log10 of the surface gravity in cm s-2"),
    TableColumn("logg_err", "f4", "", "Standard error of logg"),
    TableColumn("snr_g", "f4", "", "Signal-to-noise ratio of the spectrum in g"),
    TableColumn("snr_r", "f4", "", "Signal-to-noise ratio of the spectrum in r"),
    TableColumn("snr_i", "f4", "", "Signal-to-noise ratio of the spectrum in i"),
)

REDDENING = (
    TableColumn("source_id", "i8", "", "Identifier of the source"),
    TableColumn("ext", "f4", "mag", "E(B-V) of a map at the star's distance"),
    TableColumn("ext_err", "f4", "mag", "Standard error of ext"),
)

TRUTH = (
    TableColumn("source_id", "i8", "", "Identifier of the source, as in the file of spectra"),
    TableColumn("class", "S12", "", "star, binary, blend, m_dwarf, white_dwarf, quasar or galaxy"),
    TableColumn("fault", "S20", "", "What is wrong with the row of the spectrum, or missing; none: nothing"),
    TableColumn("label", "S7", "", "Label of the source: good, outlier, missing (not a number), or none"),
    TableColumn("library", "S8", "", "What the true spectrum comes from"),
    TableColumn("component", "S12", "", "Part of the Galaxy"),
    TableColumn("branch", "S16", "", "State of evolution"),
    TableColumn("ra", "f8", "deg", "Right ascension, ICRS"),
    TableColumn("dec", "f8", "deg", "Declination, ICRS"),
    TableColumn("teff", "f8", "K", "Effective temperature"),
    TableColumn("feh", "f8", "", "[Fe/H] in dex"),
    TableColumn("logg", "f8", "", "log10 of the surface gravity in cm s-2"),
    TableColumn("ext", "f8", "mag", "E(B-V) of the dust in front"),
    TableColumn("plx", "f8", "mas", "Parallax: 1 / distance"),
    TableColumn("distance", "f8", "kpc", "Distance"),
    TableColumn("rv", "f4", "", "R(V) of the dust"),
    TableColumn("mass", "f4", "solMass", "Mass"),
    TableColumn("radius", "f4", "solRad", "Radius"),
    TableColumn("age", "f4", "Gyr", "Age"),
    TableColumn("redshift", "f4", "", "Redshift"),
    TableColumn("phot_g_true_mag", "f4", "mag", "Magnitude G of the true flux"),
    TableColumn("second_teff", "f4", "K", "Other star of a binary or blend: effective temperature"),
    TableColumn("second_feh", "f4", "", "Other star: [Fe/H] in dex"),
    TableColumn("second_logg", "f4", "", "Other star: log10 of the surface gravity in cm s-2"),
    TableColumn("second_mass", "f4", "solMass", "Other star: mass"),
    TableColumn("second_distance", "f4", "kpc", "Other star: distance"),
    TableColumn("second_ext", "f4", "mag", "Other star: E(B-V) of the dust in front"),
    TableColumn("flux_ratio", "f4", "", "Flux in G of the other star over that of the source"),
)

#: Every table of a survey by its name.
TABLES = {"gaia_source": GAIA_SOURCE, "labels": LABELS, "reddening": REDDENING, "truth": TRUTH}

#: unWISE: magnitude of signal-to-noise 5 (Schlafly, Meisner & Green 2019) and smallest fractional error, W1 and W2.
_UNWISE_LIMIT, _UNWISE_FLOOR = {"W1": 18.0, "W2": 16.7}, 0.01

#: Labels: classes and range of types a survey of stars like LAMOST gives them to, faintest G, southernmost declination,
#: and share of those that it has observed.
_LABELLED_CLASSES, _LABELLED_TEFF = ("star", "binary", "blend", "m_dwarf"), (3.6, 8.5)
_LABELLED_G, _LABELLED_DEC, _LABELLED_SHARE = 17.0, -10.0, 0.4

#: Errors of labels: floor, and error times the signal-to-noise ratio in r; teff [kK], feh, logg.
_LABEL_FLOOR, _LABEL_BY_SNR = np.array([0.03, 0.04, 0.06]), np.array([1.5, 2.5, 3.0])

#: Signal-to-noise ratio in r at G = 14 and its scatter (ln); that in g and i over it.
_SNR_AT_14, _SNR_SCATTER, _SNR_G, _SNR_I = 90.0, 0.35, 0.6, 1.2

#: Bad labels: shares of outliers and of numbers that are missing, how far out [errors].
_OUTLIERS, _NOT_A_NUMBER, _FAR_OUT = 0.01, 0.002, (6.0, 30.0)

#: Map of reddening: southern limit, share of sources in it, floor and fractional error of E.
_MAP_DEC, _MAP_SHARE, _MAP_FLOOR, _MAP_FRACTION = -30.0, 0.95, 0.02, 0.1


def gaia_source_columns(
    source_id: NDArray[np.int64], sources: Sources, flux: Float64, fault: NDArray[np.str_], rng: np.random.Generator
) -> dict[str, NDArray]:
    """Columns of ``gaia_source``; ``flux`` (n, 66) is the true one with its systematic errors."""
    n = len(sources)
    params = np.column_stack([sources.theta, sources.ext, sources.plx])
    population = Population(params, sources.flux, sources.g, sources.bp, sources.rp, sources.ra, sources.dec)
    table = {"source_id": source_id} | observe_source_table(population, flux[:, N_XP:], rng)
    table["parallax_over_error"] = table["parallax"] / table["parallax_error"]

    double = (sources.kind == "binary") | (sources.kind == "blend")
    table["ruwe"] = 1.0 + 0.06 * rng.standard_normal(n) + np.where(double, 0.4 * rng.exponential(size=n), 0.0)
    table["phot_bp_rp_excess_factor"] = (
        1.16 + 0.06 * (sources.bp - sources.rp) + 0.01 * rng.standard_normal(n) + 0.1 * (sources.kind == "galaxy")
    )
    table["fidelity_v2"] = np.where(rng.uniform(size=n) < 0.01, rng.uniform(size=n), 1.0 - 0.01 * rng.uniform(size=n))
    # most sources have no neighbour within 30 arcsec; those of a blend have one that counts
    crowding = np.where(rng.uniform(size=n) < 0.7, np.nan, -30.0 * rng.uniform(size=n))
    table["norm_dg"] = np.where(sources.kind == "blend", TWOMASS_CROWDING + 5.0 * rng.uniform(size=n), crowding)

    for band, limit in _UNWISE_LIMIT.items():
        unit = flux_of_magnitude(band, NANOMAGGY_MAGNITUDE)
        true = flux[:, N_XP + BANDS.index(band)] / unit
        error = np.hypot(_UNWISE_FLOOR * true, 10.0 ** (0.4 * (NANOMAGGY_MAGNITUDE - limit)) / 5.0)
        name = band.lower()
        table[f"flux_{name}"] = true + error * rng.standard_normal(n)
        table[f"dflux_{name}"] = error
        table[f"fracflux_{name}"] = 1.0 - np.minimum(0.06 * rng.exponential(size=n), 1.0)
        table[f"qf_{name}"] = 1.0 - 0.02 * rng.uniform(size=n)

    unseen = fault == "no_2mass"
    for names in TWOMASS_COLUMNS:
        for name in names:
            table[name][unseen] = np.nan
    table["ph_qual"] = np.where(unseen, "", table["ph_qual"])
    table["phot_bp_mean_mag"][fault == "no_bp"] = np.nan
    return table


def label_columns(
    source_id: NDArray[np.int64], sources: Sources, rng: np.random.Generator
) -> tuple[dict[str, NDArray], NDArray[np.str_]]:
    """Columns of ``labels``, for those sources that have one, and the truth's column ``label`` (n,)."""
    n = len(sources)
    chance, badness, side = rng.uniform(size=(3, n))
    snr_r = _SNR_AT_14 * 10.0 ** (-0.2 * (sources.g - 14.0)) * np.exp(_SNR_SCATTER * rng.standard_normal(n))
    noise, far = rng.standard_normal((n, 3)), rng.uniform(*_FAR_OUT, (n, 3))
    low, high = _LABELLED_TEFF
    with np.errstate(invalid="ignore"):
        labelled = np.isin(sources.kind, _LABELLED_CLASSES) & (sources.theta[:, 0] > low) & (sources.theta[:, 0] < high)
    labelled &= (sources.g < _LABELLED_G) & (sources.dec > _LABELLED_DEC) & (chance < _LABELLED_SHARE)

    error = np.hypot(_LABEL_FLOOR, _LABEL_BY_SNR / snr_r[:, None])
    outlier = badness < _OUTLIERS
    noise = np.where(outlier[:, None], np.where(side < 0.5, -1.0, 1.0)[:, None] * far, noise)
    measured = sources.theta + error * noise
    missing = (badness >= _OUTLIERS) & (badness < _OUTLIERS + _NOT_A_NUMBER)
    measured[missing] = np.nan
    scale = (1000.0, 1.0, 1.0)
    table: dict[str, NDArray] = {"source_id": source_id}
    for k, name in enumerate(("teff", "feh", "logg")):
        table[name] = measured[:, k] * scale[k]
        table[f"{name}_err"] = error[:, k] * scale[k]
    table |= {"snr_g": _SNR_G * snr_r, "snr_r": snr_r, "snr_i": _SNR_I * snr_r}
    state = np.where(outlier, "outlier", np.where(missing, "missing", "good"))
    return {name: values[labelled] for name, values in table.items()}, np.where(labelled, state, NONE)


def reddening_columns(source_id: NDArray[np.int64], sources: Sources, rng: np.random.Generator) -> dict[str, NDArray]:
    """Columns of ``reddening``, for the sources within the map."""
    n = len(sources)
    within = (sources.dec > _MAP_DEC) & (rng.uniform(size=n) < _MAP_SHARE)
    error = np.hypot(_MAP_FLOOR, _MAP_FRACTION * sources.ext)
    estimate = np.maximum(sources.ext + error * rng.standard_normal(n), 0.0)
    table = {"source_id": source_id, "ext": estimate, "ext_err": error}
    return {name: values[within] for name, values in table.items()}


def truth_columns(
    source_id: NDArray[np.int64], sources: Sources, fault: NDArray[np.str_], label: NDArray[np.str_]
) -> dict[str, NDArray]:
    """Columns of ``truth``."""
    columns: dict[str, NDArray] = {
        "source_id": source_id,
        "class": sources.kind,
        "fault": fault,
        "label": label,
        "phot_g_true_mag": sources.g,
    }
    for prefix, theta in (("", sources.theta), ("second_", sources.second_theta)):
        columns |= {
            f"{prefix}teff": 1000.0 * theta[:, 0],
            f"{prefix}feh": theta[:, 1],
            f"{prefix}logg": theta[:, 2],
        }
    return columns | {column.name: getattr(sources, column.name) for column in TRUTH if column.name not in columns}


def as_records(table: Mapping[str, NDArray], columns: tuple[TableColumn, ...]) -> NDArray:
    """Rows (n,) of a table in the order and types of its columns, big-endian as FITS has them."""
    fields = [(column.name, column.dtype if column.dtype[0] == "S" else f">{column.dtype}") for column in columns]
    records = np.empty(len(next(iter(table.values()))), np.dtype(fields))
    for column in columns:
        records[column.name] = table[column.name]
    return records
