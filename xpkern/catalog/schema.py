"""The columns of a catalogue: one table per layout, from which every writer, reader and document takes them.

Three layouts share one vocabulary:

``default``
    one scalar per column, named in the style of the Gaia archive, Teff in kelvin;
``zgr23``
    the columns of the published catalogue (ZGR23 Table 2): its names, units, order and data types;
``diagnostics``
    the companion of either: what later stages need of each star beyond its parameters.

A column says how its values come from a :class:`xpkern.catalog.rows.StarRows`; nothing else in the package knows its
name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from xpkern.catalog import flags
from xpkern.catalog.flags import LN_PRIOR_PUBLISHED_OFFSET, QualityFlags
from xpkern.catalog.rows import StarRows
from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.grid import BANDS, N_FLUX, N_PARAMETERS, PARAMETERS
from xpkern.model.confidence import CONFIDENT_PARAMETERS
from xpkern.status import MEANING, Status

#: Parameters of a stellar type.
N_TYPE = len(CONFIDENT_PARAMETERS)

#: Upper triangle, row-major, of a matrix over the parameters.
UPPER_TRIANGLE = np.triu_indices(N_PARAMETERS)


@dataclass(frozen=True)
class ParameterColumn:
    """How a fitted parameter appears in the default layout."""

    name: str
    unit: str
    per_unit: float
    ucd: str
    description: str


#: In the order of :data:`xpkern.grid.PARAMETERS`; ``per_unit`` converts the linear parameter into ``unit``.
PARAMETER_COLUMNS = (
    ParameterColumn("teff", "K", 1000.0, "phys.temperature.effective", "effective temperature"),
    ParameterColumn("feh", "dex", 1.0, "phys.abund.Fe", "metallicity [Fe/H]"),
    ParameterColumn("logg", "dex", 1.0, "phys.gravity", "log10 of the surface gravity in cm s-2"),
    ParameterColumn(
        "ext", "mag", 1.0, "phys.absorption", "extinction E, close to E(B-V): A_lambda = 1.0857 E R_lambda"
    ),
    ParameterColumn("parallax_est", "mas", 1.0, "pos.parallax", "parallax from the spectrum and the measured parallax"),
)


@dataclass(frozen=True)
class Column:
    """One column of a layout.

    Attributes
    ----------
    name : str
    dtype : str
        NumPy data type in the file.
    unit : str
        As astropy reads it; empty for dimensionless numbers and for arrays of mixed units.
    ucd : str
        Unified Content Descriptor (UCD1+).
    description : str
    values : callable
        The column's values from the rows: of a catalogue :class:`StarRows`.
    shape : tuple of int
        Of one row's entry; () for a scalar.
    """

    name: str
    dtype: str
    unit: str
    ucd: str
    description: str
    values: Callable[[Any], NDArray[np.generic]]
    shape: tuple[int, ...] = ()

    def compute(self, rows: Any, dtype: DTypeLike | None = None) -> NDArray[np.generic]:
        """The column's values, C-contiguous, (n, *shape), with its data type or another one that a format needs."""
        # what overflows the file's type is a star that is hardly constrained at all: infinity says so
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(np.asarray(self.values(rows), dtype=self.dtype), dtype=dtype)


def _from_gaia(name: str) -> Callable[[StarRows], NDArray[np.generic]]:
    return lambda rows: rows.from_gaia(name)


def _flux_over_error(band: str) -> Callable[[StarRows], NDArray[np.generic]]:
    flux, error = f"phot_{band}_mean_flux", f"phot_{band}_mean_flux_error"
    return lambda rows: rows.from_gaia(flux).astype(np.float64) / rows.from_gaia(error).astype(np.float64)


def _parameter(index: int, per_unit: float) -> Callable[[StarRows], NDArray[np.generic]]:
    return lambda rows: per_unit * rows.params[:, index]


def _parameter_error(index: int, per_unit: float) -> Callable[[StarRows], NDArray[np.generic]]:
    return lambda rows: per_unit * rows.error[:, index]


def _correlation(first: int, second: int) -> Callable[[StarRows], NDArray[np.generic]]:
    return lambda rows: rows.covariance[:, first, second] / (rows.error[:, first] * rows.error[:, second])


def _confidence(index: int) -> Callable[[StarRows], NDArray[np.generic]]:
    return lambda rows: rows.confidence[:, index]


def _upper_triangle(rows_by_matrix: Callable[[StarRows], Float64]) -> Callable[[StarRows], NDArray[np.generic]]:
    return lambda rows: rows_by_matrix(rows)[:, UPPER_TRIANGLE[0], UPPER_TRIANGLE[1]]


def _bits(meaning: Iterable[tuple[int, str]]) -> str:
    return "; ".join(f"{int(bit)} {text}" for bit, text in meaning)


# -- columns that more than one layout has ----------------------------------------------------------------------------

SOURCE_ID = Column("source_id", "int64", "", "meta.id;meta.main", "Gaia source identifier", attrgetter("source_id"))
RA = Column("ra", "float64", "deg", "pos.eq.ra;meta.main", "right ascension (ICRS) by Gaia", _from_gaia("ra"))
DEC = Column("dec", "float64", "deg", "pos.eq.dec;meta.main", "declination (ICRS) by Gaia", _from_gaia("dec"))
PHOT_G_MEAN_MAG = Column(
    "phot_g_mean_mag", "float32", "mag", "phot.mag;em.opt", "G magnitude by Gaia", _from_gaia("phot_g_mean_mag")
)
PHOT_BP_MEAN_MAG, PHOT_RP_MEAN_MAG = (
    Column(name, "float32", "mag", ucd, f"{band} magnitude by Gaia", _from_gaia(name))
    for band, name, ucd in (
        ("BP", "phot_bp_mean_mag", "phot.mag;em.opt.B"),
        ("RP", "phot_rp_mean_mag", "phot.mag;em.opt.R"),
    )
)
CHI2 = Column(
    "chi2",
    "float32",
    "",
    "stat.fit.chi2",
    "chi-squared of the spectrum and the infrared bands under the noise of Eq. 2; the parallax term is not in it",
    attrgetter("chi2"),
)
CHI2_LEARNED = Column(
    "chi2_learned",
    "float32",
    "",
    "stat.fit.chi2",
    "the same under the noise learned from the model's residuals; NaN where the fit had none",
    attrgetter("chi2_learned"),
)
LN_PRIOR = Column(
    "ln_prior",
    "float32",
    "",
    "stat.probability",
    "natural log of the prior density of (teff in kK, feh, logg) at the solution; normalised, which is "
    f"{LN_PRIOR_PUBLISHED_OFFSET:.3f} lower than the published catalogue's convention",
    attrgetter("ln_prior"),
)
LOSS = Column("loss", "float32", "", "stat.fit.goodness", "the minimised loss, ZGR23 Eq. 19", attrgetter("loss"))
QUALITY_FLAGS = Column(
    "quality_flags",
    "uint8",
    "",
    "meta.code.qual",
    "quality flags of ZGR23 Table 2 as bits: "
    + _bits((bit, flags.MEANING[bit]) for bit in QualityFlags)
    + "; all of them where there is no fit. Below 8 is the basic reliability cut",
    attrgetter("quality_flags"),
)
STATUS = Column(
    "status",
    "uint32",
    "",
    "meta.code.status",
    "what was missing, done or suspected, as bits: " + _bits((bit, f"{bit.name}: {MEANING[bit]}") for bit in Status),
    attrgetter("status"),
)
BANDS_USED = Column(
    "bands_used",
    "uint8",
    "",
    "meta.code;instr.bandpass",
    "data that took part in the fit, as bits: "
    + _bits((1 << index, name) for index, name in enumerate((*BANDS, "BP", "RP"))),
    attrgetter("bands_used"),
)
ITERATIONS = Column(
    "iterations", "int16", "", "meta.number", "evaluations of the loss that the fit took", attrgetter("iterations")
)
CONFIDENCES = tuple(
    Column(
        f"{name}_confidence",
        "float32",
        "",
        f"stat.probability;{PARAMETER_COLUMNS[index].ucd}",
        f"confidence in {name}: probability that it agrees with a label within two of their errors, for stars that "
        "pass the basic cut; NaN where the model has no classifier for it",
        _confidence(index),
    )
    for index, name in enumerate(CONFIDENT_PARAMETERS)
)

# -- the layouts ------------------------------------------------------------------------------------------------------

DEFAULT = (
    SOURCE_ID,
    RA,
    DEC,
    PHOT_G_MEAN_MAG,
    PHOT_BP_MEAN_MAG,
    PHOT_RP_MEAN_MAG,
    Column("parallax", "float64", "mas", "pos.parallax.trig", "parallax by Gaia as used", attrgetter("plx_observed")),
    Column(
        "parallax_error",
        "float32",
        "mas",
        "stat.error;pos.parallax.trig",
        "standard error of parallax as used",
        attrgetter("plx_error"),
    ),
    Column(
        "parallax_archive",
        "float64",
        "mas",
        "pos.parallax.trig",
        "parallax as the archive has it: parallax plus the zero point that was subtracted, if any",
        _from_gaia("parallax"),
    ),
    *(
        column
        for index, parameter in enumerate(PARAMETER_COLUMNS)
        for column in (
            Column(
                parameter.name,
                "float32",
                parameter.unit,
                parameter.ucd,
                parameter.description,
                _parameter(index, parameter.per_unit),
            ),
            Column(
                f"{parameter.name}_error",
                "float32",
                parameter.unit,
                f"stat.error;{parameter.ucd}",
                f"standard error of {parameter.name}",
                _parameter_error(index, parameter.per_unit),
            ),
        )
    ),
    *(
        Column(
            f"{PARAMETER_COLUMNS[first].name}_{PARAMETER_COLUMNS[second].name}_corr",
            "float32",
            "",
            f"stat.correlation;{PARAMETER_COLUMNS[first].ucd};{PARAMETER_COLUMNS[second].ucd}",
            f"correlation of the errors of {PARAMETER_COLUMNS[first].name} and {PARAMETER_COLUMNS[second].name}",
            _correlation(first, second),
        )
        for first, second in combinations(range(N_PARAMETERS), 2)
    ),
    CHI2,
    Column(
        "chi2_dof",
        "int16",
        "",
        "stat.fit.dof",
        "degrees of freedom of chi2: samples used minus 5 parameters",
        attrgetter("degrees_of_freedom"),
    ),
    CHI2_LEARNED,
    LN_PRIOR,
    LOSS,
    *CONFIDENCES,
    QUALITY_FLAGS,
    STATUS,
    BANDS_USED,
    ITERATIONS,
)

_VECTOR = "(teff [kK], feh [dex], logg [dex], E [mag], parallax [mas])"

#: ZGR23 Table 2: names, order and data types are the published ones.
ZGR23 = (
    replace(SOURCE_ID, name="gdr3_source_id"),
    RA,
    DEC,
    Column(
        "stellar_params_est",
        "float32",
        "",
        "stat.fit.param",
        f"estimates of {_VECTOR}",
        attrgetter("params"),
        (N_PARAMETERS,),
    ),
    Column(
        "stellar_params_err",
        "float32",
        "",
        "stat.error;stat.fit.param",
        f"standard errors of {_VECTOR}",
        attrgetter("error"),
        (N_PARAMETERS,),
    ),
    replace(CHI2, name="chi2_opt"),
    replace(
        LN_PRIOR,
        description="natural log of the prior on stellar type at the solution in the published convention, which "
        f"lacks the -{LN_PRIOR_PUBLISHED_OFFSET:.3f} of a normalised density",
        values=lambda rows: rows.ln_prior + LN_PRIOR_PUBLISHED_OFFSET,
    ),
    *CONFIDENCES,
    QUALITY_FLAGS,
    Column(
        "stellar_params_icov_triu",
        "float32",
        "",
        "stat.covariance",
        f"upper triangle, row-major, of the inverse covariance of {_VECTOR}",
        _upper_triangle(attrgetter("fisher")),
        UPPER_TRIANGLE[0].shape,
    ),
    Column(
        "stellar_params_cov_triu",
        "float32",
        "",
        "stat.covariance",
        f"upper triangle, row-major, of the covariance of {_VECTOR}",
        _upper_triangle(attrgetter("covariance")),
        UPPER_TRIANGLE[0].shape,
    ),
)

#: The companion of either layout, row for row.
DIAGNOSTICS = (
    SOURCE_ID,
    Column(
        "residual",
        "float16",
        "",
        "stat.fit.residual",
        "(predicted - observed flux) / sigma of each sample, in the order of the attribute wavelength; 0 where missing",
        attrgetter("residual"),
        (N_FLUX,),
    ),
    Column(
        "stellar_type",
        "float32",
        "",
        "stat.fit.param",
        "teff [kK], feh, logg [dex] at the solution",
        lambda rows: rows.params[:, :N_TYPE],
        (N_TYPE,),
    ),
    Column(
        "stellar_type_error",
        "float32",
        "",
        "stat.error;stat.fit.param",
        "standard errors of stellar_type",
        lambda rows: rows.error[:, :N_TYPE],
        (N_TYPE,),
    ),
    LOSS,
    CHI2,
    CHI2_LEARNED,
    Column(
        "gradient_norm",
        "float32",
        "",
        "stat.fit",
        "norm of the gradient of the loss in (teff in kK, feh, logg, ln ext, ln plx)",
        attrgetter("gradient_norm"),
    ),
    Column(
        "decrement",
        "float32",
        "",
        "stat.fit",
        "predicted drop of the loss in one more Newton step",
        attrgetter("decrement"),
    ),
    LN_PRIOR,
    Column(
        "model_plx",
        "float32",
        "mas",
        "pos.parallax;stat.fit",
        "parallax at which the model's flux is the observed one: that of residual and loss. It is the estimated "
        "parallax, unless the model's scale is theoretical",
        attrgetter("model_plx"),
    ),
    Column(
        "parallax_deviation",
        "float32",
        "",
        "stat.fit.residual;pos.parallax",
        "(estimated - measured parallax) / standard error of the measured one",
        lambda rows: (rows.params[:, PARAMETERS.index("plx")] - rows.plx_observed) / rows.plx_error,
    ),
    Column(
        "parallax_over_error",
        "float32",
        "",
        "stat.snr;pos.parallax",
        "measured parallax over its standard error",
        lambda rows: rows.plx_observed / rows.plx_error,
    ),
    PHOT_G_MEAN_MAG,
    *(
        Column(
            f"phot_{band}_mean_flux_over_error",
            "float32",
            "",
            "stat.snr;phot.flux",
            f"mean {band.upper()} flux by Gaia over its standard error; NaN where the gaia_source table has none",
            _flux_over_error(band),
        )
        for band in ("g", "bp", "rp")
    ),
    *(
        Column(name, "float32", "", ucd, f"{what}, from the gaia_source table; NaN where it has none", _from_gaia(name))
        for name, ucd, what in (
            ("fidelity_v2", "stat.probability", "astrometric fidelity"),
            ("norm_dg", "phot.mag;arith.diff", "contamination by neighbours"),
            ("phot_bp_rp_excess_factor", "stat.value", "excess of the BP and RP fluxes over the G flux"),
            ("ruwe", "stat.error", "renormalised unit weight error of the astrometry"),
            ("bp_chi_squared", "stat.fit.chi2", "chi-squared of the archive's BP coefficients (xp_summary)"),
            ("rp_chi_squared", "stat.fit.chi2", "chi-squared of the archive's RP coefficients (xp_summary)"),
        )
    ),
    Column("minima", "int32", "", "meta.number", "distinct minima of the loss found", attrgetter("minima")),
    Column(
        "second_gap",
        "float32",
        "",
        "stat.fit",
        "how much higher the loss is at the second lowest minimum found; NaN where there is none",
        attrgetter("second_gap"),
    ),
    Column(
        "second_params",
        "float32",
        "",
        "stat.fit.param",
        "teff [kK], feh, logg [dex], ext [mag], model_plx [mas] at the second lowest minimum; NaN where there is none",
        attrgetter("second_params"),
        (N_PARAMETERS,),
    ),
    BANDS_USED,
    ITERATIONS,
    STATUS,
)

#: Layouts of a catalogue, by the name a user gives.
LAYOUTS: dict[str, tuple[Column, ...]] = {"default": DEFAULT, "zgr23": ZGR23}


def columns_of(layout: str) -> tuple[Column, ...]:
    """Columns of a layout.

    Raises
    ------
    InputError
        If there is no such layout.
    """
    if layout not in LAYOUTS:
        raise InputError(f"{layout!r} is none of {', '.join(LAYOUTS)}", field="layout")
    return LAYOUTS[layout]
