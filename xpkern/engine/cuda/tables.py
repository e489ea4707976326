"""Models, priors, grids and calibrations on the GPU, as kernels read them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from xpkern.engine import _cpu
from xpkern.engine.contract import Float32, Float64
from xpkern.engine.cuda.arguments import (
    MAX_INPUTS,
    MAX_LAYERS,
    CalibrationView,
    CandidateView,
    GridView,
    MixtureView,
    ModelView,
    NetworkDouble,
    NetworkFloat,
    NoiseView,
    PriorView,
    SideView,
)
from xpkern.engine.cuda.device import Device, Memory
from xpkern.engine.tables import contained_errors, grid_rows, learned_error, mixture
from xpkern.engine.training import ModelArrays
from xpkern.errors import InputError
from xpkern.fit.candidates import CandidateGrid
from xpkern.fit.start import StartGrid
from xpkern.model.flux_model import FluxModel
from xpkern.model.noise import Noise
from xpkern.model.type_prior import TypePrior
from xpkern.observe.calibration import Calibration

#: Extinctions of a grid of candidates are stored in multiples of this; the last one repeats.
_STORED_TOGETHER = 16

#: Arrays begin at multiples of this [bytes].
_ALIGNMENT = 256

#: Rows and columns of a tile of csrc/cuda/freeze_warp.cuh.
_TILE = 8

View = TypeVar("View", bound=ctypes.Structure)


@dataclass(frozen=True)
class Table(Generic[View]):
    """Numbers on the GPU and the view of them that kernels are given.

    Attributes
    ----------
    view : ctypes.Structure
        With addresses on the GPU.
    memory : Memory
        What they are addresses of.
    """

    view: View
    memory: Memory


class Block:
    """Arrays on the GPU, in one piece of memory.

    Parameters
    ----------
    device : Device
    arrays : dict of str to array
        Contiguous, on the host.
    """

    def __init__(self, device: Device, arrays: dict[str, np.ndarray]) -> None:
        self._offsets, end = {}, 0
        for name, array in arrays.items():
            self._offsets[name] = end
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        staged = np.zeros(max(end, 1), np.uint8)
        for name, array in arrays.items():
            place = staged[self._offsets[name] :][: array.nbytes]
            place[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.memory = device.allocate(staged.size)
        stream = device.new_stream()
        device.to_device(self.memory.pointer, staged, stream)
        device.synchronise(stream)

    def __getitem__(self, name: str) -> int:
        """Address of an array."""
        return self.memory.pointer + self._offsets[name]


class Tables:
    """Tables of one device: each is made once, and kept as long as what it is made of. Any thread may ask.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self._device, self._lock = device, threading.Lock()
        self._known: WeakKeyDictionary[Any, dict[Any, Table[Any]]] = WeakKeyDictionary()

    def of(self, source: Any, make: Callable[[Device, Any], Table[Any]]) -> Table[Any]:
        """Of a model, a prior or a grid."""
        return self._kept(source, None, lambda: make(self._device, source))

    def of_calibration(self, calibration: Calibration, noise: Noise, samples: int) -> Table[CalibrationView]:
        """Of a calibration and a noise model, for spectra of so many samples, bands included."""
        make = partial(calibration_table, self._device, calibration, noise, samples)
        return self._kept(calibration, (noise.digest, samples), make)

    def of_noise(self, noise: Noise, contained: Noise | None, model: FluxModel) -> Table[NoiseView]:
        """Of a learned noise, and what it takes out of stored covariances."""
        key = (None if contained is None else contained.digest, model.wavelength.tobytes())
        make = partial(noise_table, self._device, noise, contained, model.wavelength)
        return self._kept(learned_error(noise), key, make)

    def _kept(self, source: Any, key: Any, make: Callable[[], Table[Any]]) -> Table[Any]:
        with self._lock:
            known = self._known.setdefault(source, {})
            if key not in known:
                known[key] = make()
            return known[key]


def model_table(device: Device, model: FluxModel) -> Table[ModelView]:
    """A flux model in both precisions."""
    view = model_sizes(model)
    numbers = ModelArrays(list(model.weights), list(model.biases), model.ext_curve).flatten()
    block = Block(device, {"float": numbers.astype(np.float32), "double": numbers})
    point_model(view, block["float"], block["double"])
    return Table(view, block.memory)


def model_sizes(model: FluxModel) -> ModelView:
    """The view of a model without its weights: sizes, zero point and scale.

    Raises
    ------
    InputError
        If the network has more layers or inputs than kernels know.
    """
    if len(model.weights) > MAX_LAYERS:
        raise InputError(f"a network has 1 to {MAX_LAYERS} layers, not {len(model.weights)}", field="model")
    if model.n_inputs > MAX_INPUTS:
        raise InputError(f"a network has 1 to {MAX_INPUTS} inputs, not {model.n_inputs}", field="model")
    view = ModelView()
    view.n_layers = len(model.weights)
    for layer, width in enumerate([model.n_inputs, *(weight.shape[1] for weight in model.weights)]):
        view.width[layer] = width
    for network in (view.in_float, view.in_double):
        for axis in range(model.n_inputs):
            network.zero_point[axis] = model.input_zp[axis]
            network.inverse_scale[axis] = 1.0 / model.input_scale[axis]
    return view


def point_model(view: ModelView, floats: int, doubles: int) -> None:
    """Let a view read the model's numbers at two addresses, in the order of :meth:`ModelArrays.flatten`."""
    _point_network(view, view.in_float, floats, 4)
    _point_network(view, view.in_double, doubles, 8)


def _point_network(view: ModelView, network: NetworkFloat | NetworkDouble, address: int, item: int) -> None:
    for layer in range(view.n_layers):
        outputs = view.width[layer + 1]
        network.weights[layer] = address
        address += item * view.width[layer] * outputs
        network.biases[layer] = address
        address += item * outputs
    network.ext_curve = address


def prior_table(device: Device, prior: TypePrior) -> Table[PriorView]:
    """A prior in both precisions."""
    components, dimensions = prior.means.shape
    log_weight, root = mixture(prior)
    lower = (slice(None), *np.tril_indices(dimensions))
    arrays = {
        "log_weight": log_weight,
        "mean": prior.means,
        "root": root[lower],
        "precision": (root @ root.swapaxes(1, 2))[lower],
    }
    block = Block(
        device,
        {f"{name} {kind}": array.astype(kind) for name, array in arrays.items() for kind in ("float32", "float64")},
    )
    single, double = (
        MixtureView(**{name: block[f"{name} {kind}"] for name in arrays}) for kind in ("float32", "float64")
    )
    return Table(PriorView(components, dimensions, single, double), block.memory)


def grid_table(device: Device, grid: StartGrid) -> Table[GridView]:
    """A grid of starts."""
    mean = _single(grid.mean)
    arrays = {
        "rows": grid_rows(grid),
        "basis": _single(grid.basis),
        "inverse": _single(grid.inverse.T),
        "mean": mean,
        "typical": np.exp(mean),
        "window": np.ascontiguousarray(grid.window, np.int32),
    }
    block = Block(device, arrays)
    view = GridView(n_types=len(grid), **{name: block[name] for name in arrays})
    for axis in range(grid.types.shape[1]):
        view.reach[axis], view.apart[axis] = grid.reach[axis], grid.apart[axis]
    return Table(view, block.memory)


def candidate_table(device: Device, grid: CandidateGrid) -> Table[CandidateView]:
    """A grid of candidates."""
    stored = -(-len(grid.ext) // _STORED_TOGETHER) * _STORED_TOGETHER
    repeated = np.concatenate([grid.ext, np.full(stored - len(grid.ext), grid.ext[-1])])
    arrays: dict[str, np.ndarray] = {
        "base_flux": _single(grid.base_flux),
        "attenuation": _single(np.exp(-repeated * grid.ext_curve[:, None])),
        "minus_two_ln_prior": _single(grid.penalty),
        "types": np.ascontiguousarray(grid.types, np.float64),
        "ext": np.ascontiguousarray(grid.ext, np.float64),
        "window": np.flatnonzero(grid.window).astype(np.int32),
    }
    block = Block(device, arrays)
    view = CandidateView(
        n_types=len(grid.types),
        n_ext=len(grid.ext),
        n_samples=len(grid.ext_curve),
        n_stored=stored,
        n_window=len(arrays["window"]),
        mean_of_ratios=grid.guess == "mean_of_ratios",
        score_parallax=grid.score == "parallax",
        plx_lower=grid.plx_bounds[0],
        plx_upper=grid.plx_bounds[1],
        **{name: block[name] for name in arrays},
    )
    return Table(view, block.memory)


def calibration_table(device: Device, calibration: Calibration, noise: Noise, samples: int) -> Table[CalibrationView]:
    """A calibration and a noise model, for spectra with bands: ``samples`` in all."""
    plan: dict[str, Any] = _cpu.calibration_plan(
        np.ascontiguousarray(calibration.bp_design), np.ascontiguousarray(calibration.rp_design)
    )
    parts = ("design", "lower", "upper_reversed", "ratio", "place")
    arrays = {f"{side} {part}": plan[side][part] for side in ("bp", "rp") for part in parts}
    arrays["independent"] = np.ascontiguousarray(noise.independent, np.float64)
    block = Block(device, arrays)
    bp, rp = (
        SideView(
            **{name: plan[side][name] for name in ("first_sample", "rows", "coefficients", "inner")},
            **{part: block[f"{side} {part}"] for part in parts},
        )
        for side in ("bp", "rp")
    )
    view = CalibrationView(
        bp=bp,
        rp=rp,
        samples=samples,
        xp_samples=calibration.wavelength.size,
        leading_end=plan["leading_end"],
        link=plan["link"],
        independent=block["independent"],
        common=noise.common,
        bp_error=noise.bp,
        rp_error=noise.rp,
        floor=noise.floor,
        unit_variance=noise.sigma == "zgr23",
    )
    return Table(view, block.memory)


def noise_table(device: Device, noise: Noise, contained: Noise | None, wavelength: Float64) -> Table[NoiseView]:
    """A learned noise, and what it takes out of stored covariances."""
    error = learned_error(noise)
    independent, common = contained_errors(contained, wavelength)
    arrays = {
        "centre": np.ascontiguousarray(error.centre, np.float64),
        "inverse_scale": 1.0 / np.asarray(error.scale, np.float64),
        "covariance": in_tiles(error.covariance),
        "independent": independent,
        "common": common,
    }
    block = Block(device, arrays)
    view = NoiseView(
        n_groups=len(error.covariance), factor=error.archive_factor, **{name: block[name] for name in arrays}
    )
    return Table(view, block.memory)


def in_tiles(covariance: Float64) -> Float64:
    """Covariances of groups (g, m, m) in the order in which csrc/cuda/freeze_warp.cuh reads them.

    Tiles of the lower triangle, column by column, (tiles, g, 8, 8); zeros beyond the last sample.
    """
    groups, samples, _ = covariance.shape
    tiles = -(-samples // _TILE)
    padded = np.zeros((groups, tiles * _TILE, tiles * _TILE))
    padded[:, :samples, :samples] = covariance
    cut = padded.reshape(groups, tiles, _TILE, tiles, _TILE).transpose(1, 3, 0, 2, 4)
    columns, rows = np.triu_indices(tiles)
    return np.ascontiguousarray(cut[rows, columns])


def _single(values: Float64) -> Float32:
    return np.ascontiguousarray(values, np.float32)
