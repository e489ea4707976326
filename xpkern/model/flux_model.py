"""The flux of a star as a function of its parameters (Eqs. 1 and 6-8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xpkern.engine.contract import Float64
from xpkern.errors import InputError
from xpkern.model.arrays import constant, digest
from xpkern.model.confidence import Confidence
from xpkern.model.noise import Noise
from xpkern.units import PARALLAX, TEFF, numbers_in

#: No star is hotter than this [kK]: a larger number is a temperature in kelvin.
_HOTTEST = 100.0


@dataclass(frozen=True, eq=False)
class FluxModel:
    """A neural network for the spectrum of a star, behind dust, at its distance.

    ::

        ln f = MLP((Theta - input_zp) / input_scale) - ext R + 2 ln plx

    Theta = (teff [kK], feh, logg), f in 1e-18 W m-2 nm-1, plx in mas. The hidden layers are tanh, the output is
    linear; width, depth, number of inputs and of wavelengths are whatever the arrays have.

    Attributes
    ----------
    weights : list of (inputs, outputs) float64
        One matrix per layer; a layer computes ``x @ weights + biases``.
    biases : list of (outputs,) float64
    ext_curve : (m,) float64
        R > 0, optical depth per unit of ``ext``.
    input_zp, input_scale : (n_inputs,) float64
        Zero point and scale of the stellar type.
    wavelength : (m,) float64
        Samples [nm].
    noise : Noise
        Systematic errors that go with the model when spectra are calibrated for it.
    scale_sigma : float
        Fractional error of the absolute flux scale where it is theoretical; 0 once parallaxes have calibrated it.
    theoretical : (m,) bool
        Samples whose model is an extrapolation by physics, not learned from data.
    ext_unit : str
        What ``ext = 1`` means and how it was fixed.
    provenance : dict of str to str
        Data, code and settings behind the numbers.
    licence : str
    card : str
        The model card, Markdown.
    confidence : Confidence, optional
        Classifiers that say how far to trust a fit with this model; without them confidences are NaN.
    """

    weights: Sequence[Float64]
    biases: Sequence[Float64]
    ext_curve: Float64
    input_zp: Float64
    input_scale: Float64
    wavelength: Float64
    noise: Noise = field(default_factory=Noise.eq2)
    scale_sigma: float = 0.0
    theoretical: NDArray[np.bool_] | None = None
    ext_unit: str = "mag"
    provenance: dict[str, str] = field(default_factory=dict)
    licence: str = ""
    card: str = ""
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        if len(self.weights) == 0 or len(self.weights) != len(self.biases):
            raise InputError(f"{len(self.weights)} weight matrices and {len(self.biases)} bias vectors")
        input_zp = constant(self.input_zp, "input_zp", (None,))
        weights, biases, width = [], [], len(input_zp)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            weights.append(constant(weight, f"weights_{layer}", (width, None)))
            width = weights[-1].shape[1]
            biases.append(constant(bias, f"biases_{layer}", (width,)))
        vectors = {
            "input_zp": input_zp,
            "input_scale": constant(self.input_scale, "input_scale", input_zp.shape),
            "ext_curve": constant(self.ext_curve, "ext_curve", (width,)),
            "wavelength": constant(self.wavelength, "wavelength", (width,)),
        }
        for name in ("input_scale", "ext_curve", "wavelength"):
            if (vectors[name] <= 0).any():
                raise InputError("must be positive", field=name)
        if not (np.isfinite(self.scale_sigma) and self.scale_sigma >= 0):
            raise InputError(f"{self.scale_sigma} is not a finite number >= 0", field="scale_sigma")
        learned = self.noise.model_error
        if learned is not None and (learned.n_samples, learned.centre.shape[1]) != (width, len(input_zp)):
            message = f"learned for {learned.n_samples} samples and {learned.centre.shape[1]} inputs"
            raise InputError(f"{message}, the model has {width} and {len(input_zp)}", field="noise")
        if self.confidence is not None:
            try:
                self.confidence.check_samples(vectors["wavelength"])
            except InputError as error:
                raise InputError(error.message, field=f"confidence/{error.field}") from None
        theoretical = np.zeros(width, bool) if self.theoretical is None else np.array(self.theoretical, dtype=bool)
        if theoretical.shape != (width,):
            raise InputError(f"shape {theoretical.shape}, expected ({width},)", field="theoretical")
        theoretical.setflags(write=False)
        layers = {"weights": tuple(weights), "biases": tuple(biases)}
        for name, value in {**layers, **vectors, "theoretical": theoretical}.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_arrays(
        cls,
        weights: Sequence[ArrayLike],
        biases: Sequence[ArrayLike],
        ext_curve: ArrayLike,
        input_zp: ArrayLike,
        input_scale: ArrayLike,
        wavelength: ArrayLike,
    ) -> FluxModel:
        """A model from plain arrays, shaped as the class's attributes of the same names.

        Raises
        ------
        InputError
            If shapes do not fit together or a number is not finite; the message names the array.
        """
        as_given: list = [weights, biases, ext_curve, input_zp, input_scale, wavelength]
        return cls(*as_given)

    def __repr__(self) -> str:
        widths = "-".join(str(width) for width in [self.n_inputs, *(len(bias) for bias in self.biases)])
        return f"FluxModel({widths}, {self.wavelength[0]:g}-{self.wavelength[-1]:g} nm, digest {self.digest[:12]})"

    @property
    def n_inputs(self) -> int:
        """Number of inputs of the network: stellar-type parameters."""
        return len(self.input_zp)

    @property
    def n_samples(self) -> int:
        """Number of samples m of a flux vector."""
        return len(self.wavelength)

    @property
    def n_parameters(self) -> int:
        """Number of stellar parameters k: the inputs, ext, plx."""
        return self.n_inputs + 2

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of every number that enters the flux."""
        return digest([*self.weights, *self.biases, self.ext_curve, self.input_zp, self.input_scale, self.wavelength])

    def ln_flux(self, params: Float64) -> Float64:
        """Natural logarithm of the flux.

        Parameters
        ----------
        params : (n, k) float64
            Linear parameters in catalogue order: the inputs, ext, plx.

        Returns
        -------
        (n, m) float64
        """
        layer = (params[:, : self.n_inputs] - self.input_zp) / self.input_scale
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            layer = np.tanh(layer @ weight + bias)
        ext, plx = params[:, -2, None], params[:, -1, None]
        return layer @ self.weights[-1] + self.biases[-1] - ext * self.ext_curve + 2.0 * np.log(plx)

    def predict(self, *, teff: ArrayLike, feh: ArrayLike, logg: ArrayLike, ext: ArrayLike, plx: ArrayLike) -> Float64:
        """Flux of stars with given parameters, which broadcast against one another; astropy's units are converted.

        Parameters
        ----------
        teff : array_like
            Effective temperature [kK].
        feh, logg : array_like
            Metallicity and surface gravity [dex].
        ext : array_like
            Extinction, in the model's ``ext_unit``.
        plx : array_like
            Parallax [mas], > 0.

        Returns
        -------
        (n, m) float64
            Flux [1e-18 W m-2 nm-1] at ``wavelength``; n is the number of stars after broadcasting.

        Raises
        ------
        InputError
            If a temperature seems to be in kelvin, an extinction is negative, a parallax is not positive, a number is
            not finite, the shapes do not broadcast, or the model has other inputs than these three.
        """
        if self.n_inputs != 3:
            raise InputError(f"the model has {self.n_inputs} inputs: use ln_flux")
        names = ("teff", "feh", "logg", "ext", "plx")
        try:
            columns = np.broadcast_arrays(
                *(
                    np.asarray(numbers_in(column, unit, name), dtype=np.float64)
                    for column, unit, name in zip(
                        (teff, feh, logg, ext, plx), (TEFF, None, None, None, PARALLAX), names, strict=True
                    )
                )
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"parameters do not broadcast: {error}") from None
        params = np.column_stack([column.ravel() for column in columns])
        for column, name in zip(params.T, names, strict=True):
            if not np.isfinite(column).all():
                raise InputError("not a finite number", field=name)
        if (params[:, 0] > _HOTTEST).any():
            raise InputError(
                f"{params[:, 0].max():g} kK is hotter than any star: teff is in kK, so 5777 K is teff=5.777",
                field="teff",
            )
        if (params[:, -2] < 0).any():
            raise InputError("the extinction must not be negative", field="ext")
        if (params[:, -1] <= 0).any():
            raise InputError("the parallax must be positive", field="plx")
        return np.exp(self.ln_flux(params))
