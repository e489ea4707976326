"""Simulated stars with labels, for the tests of training: in memory and as files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import xpkern as xk
from xpkern.observe.gaia_source import SourceTable
from xpkern.observe.observations import Observations
from xpkern.observe.photometry import COLUMN_NAMES, infrared_flux
from xpkern.observe.simulate import Survey, simulate
from xpkern.train.labels import Labels, read_labels
from xpkern.train.phases import Run
from xpkern.train.recipe import Recipe
from xpkern.train.recipe_file import load_recipe
from xpkern.train.run import training_noise
from xpkern.train.training_set import TrainingSet, candidates, gather

#: The engine that trains: the compiled one where it is.
ENGINE = "cpu" if xk.available_engines()["cpu"] is None else "reference"

#: Errors of the labels teff [kK], feh, logg, ext.
LABEL_ERRORS = np.array([0.05, 0.05, 0.05, 0.02])

#: A recipe small enough for a few hundred stars and seconds; its network has 6 + 6 units.
SMALL = """
base = "default"
name = "small"
[start]
hidden = [6, 6]
[prior]
components = 3
[phase.model]
rounds = 3
steps = 4
batch = 32
metric_stars = 32
[phase.clean]
theta = inf
plx = inf
flux = 300.0
[phase.joint]
rounds = 1
steps = 4
batch = 32
metric_stars = 32
[phase.polish]
rounds = 1
steps = 4
batch = 64
metric_stars = 32
"""

#: The same for the phases of ZGR23.
SMALL_ZGR23 = """
base = "zgr23"
name = "small zgr23"
[start]
hidden = [6, 6]
[noise]
sigma = "archive"
[prior]
components = 3
[phase.model]
epochs = 3
batch = 16
model_clip = 2.0 # longer steps jump about where the spectra are as good as here and the network as small
drops = [1, 2]
[phase.joint]
epochs = 2
batch = 16
drops = [1]
[phase.refine]
steps = 4
[phase.clean]
theta = inf
plx = inf
flux = inf
[phase.joint_clean]
epochs = 2
batch = 16
drops = [1]
[phase.final]
steps = 5
"""

RECIPES = {"ours": SMALL, "zgr23": SMALL_ZGR23}


@dataclass
class LabelledSurvey:
    """A simulated survey, and labels of its stars by column name (teff in kK)."""

    survey: Survey
    columns: dict[str, np.ndarray]

    @classmethod
    def random(cls, n_stars: int, rng: np.random.Generator) -> LabelledSurvey:
        """Stars of the shipped model without its scale's error, with labels of :data:`LABEL_ERRORS`."""
        model, prior = xk.load_model()
        survey = simulate(replace(model, scale_sigma=0.0), prior, n_stars, seed=int(rng.integers(1 << 30)))
        labels = survey.truth[:, :4] + LABEL_ERRORS * rng.standard_normal((n_stars, 4))
        columns: dict[str, np.ndarray] = {"source_id": survey.source_id}
        for k, name in enumerate(("teff", "feh", "logg", "ext")):
            columns |= {name: labels[:, k], f"{name}_err": np.full(n_stars, LABEL_ERRORS[k])}
        return cls(survey, columns)

    @property
    def labels(self) -> Labels:
        return read_labels(self.columns)

    @property
    def sources(self) -> SourceTable:
        table = {"source_id": self.survey.source_id} | self.survey.gaia_source
        return SourceTable.of(table, "gaia_source", COLUMN_NAMES)

    def observations(self, recipe: Recipe) -> Observations:
        """Fluxes and whiteners of all stars, with the noise that the recipe trains with."""
        flux, error = infrared_flux(self.sources, np.arange(len(self.survey)))
        calibrated = xk.get_engine(ENGINE).calibrate(
            self.survey.calibration, self.survey.coefficients, training_noise(recipe), flux, error
        )
        return Observations.from_arrays(
            source_id=self.survey.source_id,
            flux=calibrated.flux,
            packed_factor=calibrated.whitener,
            plx=self.survey.gaia_source["parallax"],
            plx_err=self.survey.gaia_source["parallax_error"],
        )

    def training_set(self, recipe: Recipe) -> TrainingSet:
        """The stars that pass the recipe's cuts, in memory."""
        return gather(candidates(self.labels, self.sources, recipe), [self.observations(recipe)], recipe)


def recipe_from(folder: Path, text: str) -> Recipe:
    """A recipe from the text of its file."""
    path = folder / "recipe.toml"
    path.write_text(text)
    return load_recipe(path)


def run_of(recipe: Recipe, data: TrainingSet, **options: object) -> Run:
    """A run of the engine that trains."""
    return Run(recipe, data, xk.get_engine(ENGINE), **options)
