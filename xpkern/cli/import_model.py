"""``xpkern import-model``: a published TensorFlow model as a model file."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

EPILOG = """\
examples
  the model of Zhang, Green & Rix (2023), from https://doi.org/10.5281/zenodo.7692680:
    tar -xzf stellar_flux_model.tar.gz
    xpkern import-model stellar_flux_model -o zgr23.h5
    xpkern catalog XpContinuousMeanSpectrum_*.csv.gz --source gaia_source.csv --model zgr23.h5 -o catalog.h5

  TensorFlow is not needed. A later checkpoint is given by its name without .index; where its extinction curve varies
  from star to star, the curve at xi = 0 is taken.

prior
  The published model comes without its prior over stellar types. --prior takes it from a model file of xpkern, from a
  checkpoint of the authors' GaussianMixtureModel, or fits one, as they did, to a table of labels (teff, feh, logg and
  errors by source_id): the LAMOST labels the model was trained on, if you have them (xpkern labels). Without it the
  shipped model's is taken, which covers the stars of APOGEE: hot stars lie outside.
"""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "import-model",
        help="a published TensorFlow model as a model file",
        description="Turn a flux model by the authors of Zhang, Green & Rix (2023) into a model file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
    )
    parser.add_argument("model", metavar="FOLDER", help="folder of a SavedModel, or name of a checkpoint")
    parser.add_argument("--prior", metavar="FILE", help="model file, checkpoint or table of labels, see below")
    parser.add_argument("-o", "--output", required=True, metavar="FILE.h5", help="the model file to write")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, check and write; return the exit code."""
    from xpkern.errors import InputError
    from xpkern.model import save_model
    from xpkern.model.zgr23_model import import_flux_model

    output = Path(options.output)
    if output.suffix not in (".h5", ".hdf5"):
        raise InputError("a model file is HDF5: its name must end in .h5 or .hdf5", file=options.output)
    if not output.absolute().parent.is_dir():
        raise InputError("its folder does not exist", file=options.output)
    model = import_flux_model(options.model)
    prior, origin = _prior(options.prior)
    save_model(output, replace(model, provenance=model.provenance | {"prior": origin}), prior)
    print(f"{model}, prior: {origin}: {output}")
    return 0


def _prior(name: str | None) -> tuple[Any, str]:
    """The prior, and where it comes from."""
    from xpkern.model import load_model
    from xpkern.model.zgr23_model import import_type_prior

    if name is None:
        return load_model()[1], "that of xpkern's shipped model"
    path = Path(name)
    if path.suffix in (".h5", ".hdf5") and _is_model_file(path):
        return load_model(path)[1], f"that of {path.name}"
    if path.is_file() and path.suffix != ".index":
        return _fitted(path)
    return import_type_prior(path), f"that of the checkpoint {path.name}"


def _is_model_file(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path) as file:
            return "flux" in file
    except OSError:
        return True  # and load_model says what is wrong


def _fitted(path: Path) -> tuple[Any, str]:
    """A prior fitted to labels as the authors of ZGR23 did."""
    import numpy as np

    from xpkern.train.labels import read_labels
    from xpkern.train.recipe_file import load_recipe
    from xpkern.train.type_prior_fit import fit_prior_of_kind

    theta = read_labels(path).mean[:, :3]
    recipe = load_recipe("zgr23")
    prior, note = fit_prior_of_kind(theta[np.isfinite(theta).all(axis=1)], recipe.prior, recipe.split.seed)
    return prior, f"{note} of {path.name}"
