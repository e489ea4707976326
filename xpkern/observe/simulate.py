"""Simulates a small survey: true stars of a model, observed as Gaia and 2MASS would, in the archive's bulk format.

Flux becomes coefficients and noise as :mod:`xpkern.observe.synthesis` says. Before that the systematic errors of the
model's noise (Eq. 2) are drawn and multiplied in, so that a fit that allows for them has honest pulls.
:mod:`xpkern.survey` simulates larger and less tidy surveys with the same functions.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Coefficients, Float64
from xpkern.errors import InputError
from xpkern.grid import BANDS, N_XP, PARAMETERS
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.observe.bulk_writer import write_bulk_file
from xpkern.observe.calibration import Calibration
from xpkern.observe.error_model import ErrorModel
from xpkern.observe.photometry import magnitude_of_flux
from xpkern.observe.population import Population, draw_population
from xpkern.observe.synthesis import SpectrumSynthesis

#: Star-to-star scatter of the logarithm of the parallax error at a given magnitude.
PARALLAX_ERROR_SCATTER = 0.15

#: 2MASS: magnitude of signal-to-noise 10 (Skrutskie et al. 2006) and smallest error [mag], for J, H, Ks.
TWOMASS_LIMIT, TWOMASS_FLOOR = np.array([15.8, 15.1, 14.3]), 0.022

#: Columns of the infrared magnitudes and their errors in the archive's 2MASS table.
TWOMASS_COLUMNS = (("j_m", "j_msigcom"), ("h_m", "h_msigcom"), ("ks_m", "ks_msigcom"))

#: Largest error [mag] for each letter of ``ph_qual``; above the last, the band was not detected.
TWOMASS_QUALITY = {"A": 0.109, "B": 0.155, "C": 0.217}

#: Stars whose coefficients are computed together: bounds the memory to some 100 MB.
_STARS_AT_ONCE = 512

#: The archive's number of the processing run that made DR3's mean spectra.
_SOLUTION_ID = 4545469030156206080


@dataclass(frozen=True)
class SurveyFiles:
    """Where a survey was written: the bulk file, the gaia_source table and the true parameters."""

    spectra: Path
    gaia_source: Path
    truth: Path


@dataclass(frozen=True)
class Survey:
    """A simulated survey of n stars, in memory.

    Attributes
    ----------
    source_id : (n,) int64
    population : Population
        The true stars.
    coefficients : Coefficients
        As the archive would have them.
    gaia_source : dict of str to (n,) array
        Columns of Gaia's source table and of 2MASS; NaN where a number is missing.
    calibration : Calibration
        What the coefficients are made for.
    """

    source_id: NDArray[np.int64]
    population: Population
    coefficients: Coefficients
    gaia_source: dict[str, NDArray]
    calibration: Calibration

    @property
    def truth(self) -> Float64:
        """True parameters (n, 5): teff [kK], feh, logg, ext, plx [mas]."""
        return self.population.params

    def __len__(self) -> int:
        return len(self.source_id)

    def write(self, directory: str | Path) -> SurveyFiles:
        """Write the three files into ``directory``, which is made if it does not exist."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = SurveyFiles(
            spectra=directory / "XpContinuousMeanSpectrum_simulated.csv.gz",
            gaia_source=directory / "gaia_source.csv",
            truth=directory / "truth.csv",
        )
        write_bulk_file(
            files.spectra,
            bulk_columns(self.source_id, self.coefficients, self.calibration),
            release=self.calibration.release,
            description=["Simulated by xpkern: not a Gaia product.", "True parameters: truth.csv."],
        )
        _write_csv(files.gaia_source, {"source_id": self.source_id} | self.gaia_source)
        _write_csv(files.truth, {"source_id": self.source_id} | dict(zip(PARAMETERS, self.truth.T, strict=True)))
        return files


def simulate(
    model: FluxModel,
    prior: TypePrior,
    n_stars: int,
    *,
    seed: int = 0,
    systematics: bool = True,
    calibration: Calibration | None = None,
    error_model: ErrorModel | None = None,
) -> Survey:
    """Simulate a survey; the same arguments give the same stars.

    Parameters
    ----------
    model : FluxModel
        Its 66 samples are the archive's 61 and the five infrared bands; its noise says which systematics there are.
    prior : TypePrior
        Where the stellar types come from.
    n_stars : int
    seed : int
    systematics : bool
        Whether to draw the systematic errors of the model too: those of its noise (Eq. 2) and of its absolute scale.
    calibration, error_model : optional
        The shipped ones by default.

    Returns
    -------
    Survey

    Raises
    ------
    InputError
        If ``n_stars`` is negative, the seed is not a natural number, the model has other samples than the
        calibration, or the error model another number of coefficients.
    """
    calibration = Calibration.default() if calibration is None else calibration
    error_model = ErrorModel.default() if error_model is None else error_model
    if n_stars < 1:
        raise InputError(f"{n_stars} is not a number of stars", field="n_stars")
    if seed < 0:
        raise InputError(f"{seed} is negative", field="seed")
    if not np.array_equal(model.wavelength[:N_XP], calibration.wavelength):
        raise InputError("the model's samples are not those of the calibration", field="wavelength")
    sizes = (error_model.bp.variance.shape[1], error_model.rp.variance.shape[1])
    if sizes != (calibration.n_bp, calibration.n_rp):
        raise InputError(f"the error model has {sizes} coefficients, the calibration other numbers")

    rng = np.random.default_rng(seed)
    population = draw_population(model, prior, n_stars, rng)
    flux, sides = population.flux, np.ones((2, n_stars))
    if systematics:
        flux, sides = draw_systematics(model.noise, model.scale_sigma, flux, rng)
    synthesis = SpectrumSynthesis(calibration, error_model)
    blocks = [
        synthesis.observe(flux[part, :N_XP], sides[:, part], rng)
        for part in (slice(first, first + _STARS_AT_ONCE) for first in range(0, n_stars, _STARS_AT_ONCE))
    ]
    return Survey(
        source_id=_draw_source_ids(n_stars, rng),
        population=population,
        coefficients=_concatenate(blocks),
        gaia_source=observe_source_table(population, flux[:, N_XP:], rng),
        calibration=calibration,
    )


def draw_systematics(
    noise: Noise, scale_sigma: float, flux: Float64, rng: np.random.Generator
) -> tuple[Float64, Float64]:
    """Flux (n, m) with Eq. 2's errors multiplied in, and the factors (2, n) of BP's and RP's own coefficients.

    A model whose absolute scale is theoretical is wrong by ``scale_sigma``: each star gets its own draw of that.
    """
    n_stars = len(flux)
    flux = flux * np.exp(scale_sigma * rng.standard_normal((n_stars, 1)))
    error = noise.independent * rng.standard_normal(flux.shape)
    error[:, :N_XP] += noise.common * rng.standard_normal((n_stars, 1))
    sides = 1.0 + np.array([[noise.bp], [noise.rp]]) * rng.standard_normal((2, n_stars))
    return flux * (1.0 + error), sides


def bulk_columns(
    source_id: NDArray[np.int64], coefficients: Coefficients, calibration: Calibration
) -> dict[str, NDArray]:
    """Columns of the archive's table; those that no reader of coefficients uses get values of a plausible size."""
    n_stars = len(source_id)
    columns: dict[str, NDArray] = {"source_id": source_id, "solution_id": np.full(n_stars, _SOLUTION_ID)}
    for photometer in ("bp", "rp"):
        values = getattr(coefficients, photometer)
        error = getattr(coefficients, f"{photometer}_error")
        significant = np.abs(values) > 3.0 * error
        last = values.shape[1] - np.argmax(significant[:, ::-1], axis=1)
        basis_functions = getattr(calibration, f"{photometer}_basis_function_id")
        columns |= {
            f"{photometer}_basis_function_id": np.full(n_stars, basis_functions, np.int16),
            f"{photometer}_n_parameters": np.full(n_stars, values.shape[1], np.int16),
            f"{photometer}_n_measurements": np.full(n_stars, 1500, np.int16),
            f"{photometer}_standard_deviation": getattr(coefficients, f"{photometer}_standard_deviation"),
            f"{photometer}_coefficients": values,
            f"{photometer}_coefficient_errors": error,
            f"{photometer}_coefficient_correlations": getattr(coefficients, f"{photometer}_correlation"),
            f"{photometer}_n_relevant_bases": last.astype(np.int16),
        }
    return columns


def parallax_error(g: Float64) -> Float64:
    """Typical parallax error of Gaia DR3 [mas] at magnitude G (n,): the mission's published performance formula."""
    z = 10.0 ** (0.4 * (np.maximum(g, 13.0) - 15.0))
    return 1e-3 * np.sqrt(40.0 + 800.0 * z + 30.0 * z**2)


def observe_source_table(population: Population, band_flux: Float64, rng: np.random.Generator) -> dict[str, NDArray]:
    """Columns of Gaia's source table and of 2MASS. Magnitudes of Gaia are for looking only: they carry no noise."""
    n_stars = len(population.g)
    plx_error = parallax_error(population.g) * np.exp(PARALLAX_ERROR_SCATTER * rng.standard_normal(n_stars))
    table: dict[str, NDArray] = {
        "ra": population.ra,
        "dec": population.dec,
        "parallax": population.params[:, -1] + plx_error * rng.standard_normal(n_stars),
        "parallax_error": plx_error.astype(np.float32),
    }
    for band in ("g", "bp", "rp"):
        table[f"phot_{band}_mean_mag"] = getattr(population, band).astype(np.float32)

    n_bands = len(TWOMASS_COLUMNS)
    true_magnitude = np.stack(
        [magnitude_of_flux(name, band_flux[:, k]) for k, name in enumerate(BANDS[:n_bands])], axis=1
    )
    # The sky limits 2MASS where it matters: the error grows as the inverse flux.
    error = np.hypot(TWOMASS_FLOOR, 0.109 * 10.0 ** (0.4 * (true_magnitude - TWOMASS_LIMIT)))
    magnitude = true_magnitude + error * rng.standard_normal(error.shape)
    detected = error < max(TWOMASS_QUALITY.values())
    letters = np.full(error.shape, "U")
    for letter, largest in reversed(TWOMASS_QUALITY.items()):
        letters[error < largest] = letter
    for k, (value_name, error_name) in enumerate(TWOMASS_COLUMNS):
        table[value_name] = np.where(detected[:, k], magnitude[:, k], np.nan).astype(np.float32)
        table[error_name] = np.where(detected[:, k], error[:, k], np.nan).astype(np.float32)
    table["ph_qual"] = np.array(["".join(row) for row in letters])
    return table


def _draw_source_ids(n_stars: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Distinct, increasing, and as long as Gaia's."""
    return 4_000_000_000_000_000_000 + np.cumsum(rng.integers(1, 1 << 35, n_stars, dtype=np.int64))


def _concatenate(blocks: list[Coefficients]) -> Coefficients:
    names = [field.name for field in fields(Coefficients)]
    return Coefficients(**{name: np.concatenate([getattr(block, name) for block in blocks]) for name in names})


def _write_csv(path: Path, columns: dict[str, NDArray]) -> None:
    """Plain csv with the shortest numbers that read back the same; NaN is an empty field."""
    unfinished = Path(f"{path}.part")
    try:
        with open(unfinished, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns)
            texts = [["" if text == "nan" else text for text in map(str, values)] for values in columns.values()]
            writer.writerows(zip(*texts, strict=True))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
