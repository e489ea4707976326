"""How far to trust a fitted parameter: small networks that were shown fits beside labels (ZGR23, Appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from xpkern.engine.contract import Float32, Float64
from xpkern.errors import InputError
from xpkern.grid import PARAMETERS
from xpkern.model.arrays import constant, digest

#: Parameters that a classifier may speak of, in the order of the classifiers.
CONFIDENT_PARAMETERS = PARAMETERS[:3]

#: Features of a star, ZGR23 Appendix B; :mod:`xpkern.catalog.features` computes them. After them comes
#: asinh(residual) of each sample.
STAR_FEATURES = (
    *("ln_rchi2_opt", "ln_dplx2", "ln_prior"),
    *("teff_est", "feh_est", "logg_est", "teff_est_err", "feh_est_err", "logg_est_err"),
    *("asinh_plx_snr", "asinh_g_snr", "asinh_bp_snr", "asinh_rp_snr"),
    *("ln_phot_bp_rp_excess_factor", "phot_g_mean_mag", "ln_ruwe", "fidelity_v2", "norm_dg"),
    *("ln_bp_chi_squared", "ln_rp_chi_squared"),
)

#: A standardised feature is cut off here: what lies farther out says no more, and nothing can overflow.
LARGEST_FEATURE = 10.0


def feature_names(wavelength: ArrayLike) -> tuple[str, ...]:
    """Names of all features, in order, for a model of samples at ``wavelength`` (m,) [nm]."""
    return (*STAR_FEATURES, *(f"asinh_residual_{sample:g}nm" for sample in np.asarray(wavelength).tolist()))


@dataclass(frozen=True, eq=False)
class Confidence:
    """Classifiers of the parameters :data:`CONFIDENT_PARAMETERS`, one network each, of one architecture.

    ::

        z = clip((feature - centre) / scale, -10, 10), a missing feature replaced by ``fill``
        confidence = sigmoid(W_k relu(... relu(W_1 z + b_1) ...) + b_k)

    (:func:`xpkern.engine.confidence.confidences` computes them.) The last layer contains the recalibration, so that the
    number is a probability: that the parameter agrees with a label within two of their errors.

    Attributes
    ----------
    features : tuple of str
        What the f inputs are: :func:`feature_names` of the model's wavelengths.
    centre, scale, fill : (f,) float32
        Zero point and scale of each feature, and what stands in for a missing one.
    weights : list of (3, inputs, outputs) float32
        Of each layer, for each classifier; the last one has one output.
    biases : list of (3, outputs) float32
    """

    features: tuple[str, ...]
    centre: Float32
    scale: Float32
    fill: Float32
    weights: Sequence[Float32]
    biases: Sequence[Float32]

    def __post_init__(self) -> None:
        if len(self.weights) == 0 or len(self.weights) != len(self.biases):
            raise InputError(f"{len(self.weights)} weight matrices and {len(self.biases)} bias vectors")
        vectors = {name: constant(getattr(self, name), name, (len(self.features),)) for name in _VECTORS}
        if (vectors["scale"] <= 0).any():
            raise InputError("must be positive", field="scale")
        classifiers, width = len(CONFIDENT_PARAMETERS), len(self.features)
        weights, biases = [], []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            outputs = 1 if layer == len(self.weights) - 1 else None
            weights.append(constant(weight, f"weights_{layer}", (classifiers, width, outputs)))
            width = weights[-1].shape[2]
            biases.append(constant(bias, f"biases_{layer}", (classifiers, width)))
        object.__setattr__(self, "features", tuple(str(name) for name in self.features))
        for name, values in vectors.items():
            object.__setattr__(self, name, _single(values))
        object.__setattr__(self, "weights", tuple(_single(weight) for weight in weights))
        object.__setattr__(self, "biases", tuple(_single(bias) for bias in biases))

    def __repr__(self) -> str:
        widths = "-".join(str(weight.shape[1]) for weight in self.weights)
        return f"Confidence({', '.join(CONFIDENT_PARAMETERS)}: {widths}-1, digest {self.digest[:12]})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that a confidence depends on."""
        return digest([self.features, self.centre, self.scale, self.fill, *self.weights, *self.biases])

    def check_samples(self, wavelength: Float64) -> None:
        """Refuse to stand beside a model of other wavelengths.

        Raises
        ------
        InputError
            If the features are not those of stars with samples at ``wavelength`` (m,) [nm].
        """
        expected = feature_names(wavelength)
        if self.features != expected:
            other = next((a for a, b in zip(self.features, expected, strict=False) if a != b), "")
            what = f"; {other!r} is the first that differs" if other else ""
            raise InputError(
                f"the classifiers were trained for {len(self.features)} features that are not the {len(expected)} of "
                f"this model's wavelengths{what}",
                field="features",
            )


_VECTORS = ("centre", "scale", "fill")


def _single(values: Float64) -> Float32:
    """A read-only copy in single precision."""
    single = values.astype(np.float32)
    single.setflags(write=False)
    return single
