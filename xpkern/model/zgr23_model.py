"""Published models of Zhang, Green & Rix (2023) and their successors as models of ours.

The flux model of doi:10.5281/zenodo.7692680 is a TensorFlow SavedModel, ``stellar_flux_model.tar.gz``; later models by
the same authors are checkpoints. Either holds, under names that begin with nothing or with ``flux_model/`` and end in
``/.ATTRIBUTES/VARIABLE_VALUE``:

=========================================  ===========================================================================
``_sample_wavelengths`` (m,)               nm
``_input_zp``, ``_input_iscale`` (1, 3)    zero point of (teff [kK], feh, logg), and one over their scale
``_layers/k/w`` (inputs, outputs)          weights of layer k; ``kernel`` in place of ``w`` will do
``_layers/k/b`` (outputs,)                 biases; or ``bias``
``_ln_ext_curve`` (m,)                     ln R
``_ext_bias``, ``_ext_slope`` (1, m)       in its place where R varies: ln R = bias + slope tanh(xi), one xi a star
=========================================  ===========================================================================

Flux is in 1e-18 W m-2 nm-1 at 1 mas, hidden layers are tanh, optical depth is E R: as in
:class:`xpkern.model.FluxModel`. Of a model with variable extinction the curve at xi = 0 is taken. A network that is
given the stellar type again in each layer, as their models from December 2023 on are, is no FluxModel and is refused.

A prior is a checkpoint with ``gauss_mix_model/_weight`` (K,), ``_mean`` (1, K, 3) and ``_sqrt_icov`` (1, K, 3, 3), L of
L^T L = C^-1.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import InputError, ModelFileError
from xpkern.grid import WAVELENGTH
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import Noise
from xpkern.model.tensorflow_checkpoint import TensorFlowCheckpoint
from xpkern.model.type_prior import TypePrior

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"

#: Samples may differ from ours by this much [nm]: they were stored as float32.
_SAME_WAVELENGTH = 1e-3

EXT_UNIT = "E of Zhang, Green & Rix (2023), close to E(B-V) [mag]: that of Bayestar19; optical depth is E R"


def import_flux_model(path: str | os.PathLike[str]) -> FluxModel:
    """The flux model in a SavedModel or checkpoint.

    Parameters
    ----------
    path : path
        As :class:`xpkern.model.tensorflow_checkpoint.TensorFlowCheckpoint` takes it.

    Raises
    ------
    ModelFileError
        If it cannot be read, or is another model: of other variables, shapes, inputs or wavelengths; the message names
        file and variable.
    """
    variables = _Variables(TensorFlowCheckpoint(path))
    wavelength = variables.vector("_sample_wavelengths")
    n = len(wavelength)
    if n != len(WAVELENGTH) or np.abs(wavelength - WAVELENGTH).max() > _SAME_WAVELENGTH:
        what = f"{n} samples from {wavelength[0]:g} to {wavelength[-1]:g} nm are not the {len(WAVELENGTH)} of xpkern"
        raise variables.wrong(what, "_sample_wavelengths")
    input_zp, input_iscale = variables.vector("_input_zp"), variables.vector("_input_iscale")
    weights, biases = variables.layers(len(input_zp))
    provenance = {
        "imported_from": f"{Path(path).name}, sha256 of its index {variables.checkpoint.digest}",
        "made_by": "xpkern import-model",
    }
    if variables.has("_ln_ext_curve"):
        ln_ext_curve = variables.vector("_ln_ext_curve")
    else:
        ln_ext_curve = variables.vector("_ext_bias")
        provenance["extinction"] = "the curve at xi = 0 of a model in which it varies from star to star"
    try:
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            return FluxModel(
                weights=weights,
                biases=biases,
                ext_curve=np.exp(ln_ext_curve),
                input_zp=input_zp,
                input_scale=1.0 / input_iscale,
                wavelength=WAVELENGTH,
                noise=Noise.eq2(sigma="zgr23"),
                ext_unit=EXT_UNIT,
                provenance=provenance,
                licence="that of the publication the model was taken from",
                card=_card(provenance),
            )
    except InputError as error:
        raise ModelFileError(error.message, file=variables.contents, field=error.field) from None


def import_type_prior(path: str | os.PathLike[str]) -> TypePrior:
    """The prior in a checkpoint of the authors' GaussianMixtureModel.

    Raises
    ------
    ModelFileError
        If it cannot be read, or is another model.
    """
    variables = _Variables(TensorFlowCheckpoint(path))
    weights = variables.vector("_weight")
    n = len(weights)
    means, roots = variables.array("_mean"), variables.array("_sqrt_icov")
    for name, values, shape in (("_mean", means, (1, n, 3)), ("_sqrt_icov", roots, (1, n, 3, 3))):
        if values.shape != shape:
            raise variables.wrong(f"shape {values.shape}, expected {shape}", name)
    root = roots[0]
    try:
        covariances = np.linalg.inv(root.swapaxes(1, 2) @ root)
        covariances = 0.5 * (covariances + covariances.swapaxes(1, 2))
        return TypePrior.from_arrays(weights, means[0], covariances)
    except (InputError, np.linalg.LinAlgError) as error:
        raise ModelFileError(f"no mixture of normal densities ({error})", file=variables.contents) from None


class _Variables:
    """Variables of a module by the names they have in its code; every failure says what the checkpoint holds."""

    def __init__(self, checkpoint: TensorFlowCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.contents = checkpoint.index
        ours = {name[: -len(_SUFFIX)]: name for name in checkpoint.shapes if name.endswith(_SUFFIX)}
        # a checkpoint puts the name of its root before them, a SavedModel does not
        roots = sorted({match[1] for name in ours if (match := re.match(r"((?:[^_/][^/]*/)?)_", name))})
        root = roots[0] if roots else ""
        self.names = {name[len(root) :]: key for name, key in ours.items() if name.startswith(root)}

    def has(self, name: str) -> bool:
        return name in self.names

    def array(self, name: str) -> Float64:
        if name not in self.names:
            there = ", ".join(sorted(self.names)) or "none"
            what = f"missing; this is another model, of: {there}"
            raise ModelFileError(what, file=self.contents, field=name)
        values: NDArray = self.checkpoint.array(self.names[name])
        return values.astype(np.float64)

    def vector(self, name: str) -> Float64:
        """Values of a vector, or of a matrix of one row."""
        values = self.array(name)
        if values.ndim == 0 or values.size != values.shape[-1]:
            raise self.wrong(f"shape {values.shape}, expected a vector", name)
        return values.reshape(-1)

    def layers(self, n_inputs: int) -> tuple[list[Float64], list[Float64]]:
        """Weights and biases of all layers; whether they fit together is left to FluxModel, but for what is known."""
        weights, biases = [], []
        for layer in range(len(self.names)):
            prefix = f"_layers/{layer}/"
            kinds = [kind for kind in ("w", "kernel") if self.has(prefix + kind)]
            if not kinds and layer > 0:
                break
            kind = kinds[0] if kinds else "w"
            weights.append(self.array(prefix + kind))
            biases.append(self.vector(prefix + {"w": "b", "kernel": "bias"}[kind]))
        given_again = [after.shape[0] == before.shape[-1] + n_inputs for before, after in pairwise(weights)]
        if given_again and all(given_again):
            raise self.wrong(
                "its layers are given the stellar type again beside the layer before: such a network is no FluxModel",
                "_layers/1/w",
            )
        return weights, biases

    def wrong(self, what: str, name: str) -> ModelFileError:
        return ModelFileError(what, file=self.contents, field=name)


def _card(provenance: dict[str, str]) -> str:
    """Return the model card of an imported model."""
    varying = f"\nExtinction: {provenance['extinction']}.\n" if "extinction" in provenance else ""
    return (
        "# An imported model\n\n"
        "Flux model of Zhang, Green & Rix (2023, doi:10.5281/zenodo.7692680), or a later one of theirs,\n"
        "taken from their TensorFlow checkpoint number by number. Learned from LAMOST DR8 and Hot Payne, Gaia's\n"
        "parallaxes, Bayestar19; see the paper. Its noise is Eq. 2, with the archive's errors read as in the paper.\n"
        f"{varying}"
    )
