"""What kernels are given: the types of ``csrc/core/*view*.hpp`` and ``csrc/cuda/arguments.cuh``, field by field.

The kernel ``argument_sizes`` tells how large it takes the latter to be; the engine compares before its first call.
"""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_double, c_float, c_int, c_int64, c_void_p

import numpy as np
from numpy.typing import NDArray

#: Limits of the kernels, as in ``csrc/core/views.hpp``.
MAX_LAYERS, MAX_INPUTS, MAX_PARAMETERS = 8, 6, 8


class _Network(ctypes.Structure):
    """Of :class:`ModelView`, in one precision; subclasses say which."""


class NetworkFloat(_Network):
    """Single precision."""

    _fields_ = (
        ("weights", c_void_p * MAX_LAYERS),
        ("biases", c_void_p * MAX_LAYERS),
        ("ext_curve", c_void_p),
        ("zero_point", c_float * MAX_INPUTS),
        ("inverse_scale", c_float * MAX_INPUTS),
    )


class NetworkDouble(_Network):
    """Double precision."""

    _fields_ = (
        ("weights", c_void_p * MAX_LAYERS),
        ("biases", c_void_p * MAX_LAYERS),
        ("ext_curve", c_void_p),
        ("zero_point", c_double * MAX_INPUTS),
        ("inverse_scale", c_double * MAX_INPUTS),
    )


class ModelView(ctypes.Structure):
    """A flux model."""

    _fields_ = (
        ("n_layers", c_int),
        ("width", c_int * (MAX_LAYERS + 1)),
        ("in_float", NetworkFloat),
        ("in_double", NetworkDouble),
    )


class MixtureView(ctypes.Structure):
    """A Gaussian mixture, in one precision."""

    _fields_ = tuple((name, c_void_p) for name in ("log_weight", "mean", "root", "precision"))


class PriorView(ctypes.Structure):
    """A prior on stellar types."""

    _fields_ = (
        ("n_components", c_int),
        ("n_dimensions", c_int),
        ("in_float", MixtureView),
        ("in_double", MixtureView),
    )


class LossView(ctypes.Structure):
    """Which optional terms the loss has."""

    _fields_ = tuple((name, c_bool) for name in ("prior", "jacobian_ext", "jacobian_plx"))


class GridView(ctypes.Structure):
    """Stellar types that a fit may start from."""

    _fields_ = (
        ("n_types", c_int),
        *((name, c_void_p) for name in ("rows", "basis", "inverse", "mean", "typical", "window")),
        ("reach", c_float * MAX_INPUTS),
        ("apart", c_float * MAX_INPUTS),
    )


class CandidateView(ctypes.Structure):
    """Candidates for the start of a first-order descent."""

    _fields_ = (
        *((name, c_int) for name in ("n_types", "n_ext", "n_samples", "n_stored")),
        *((name, c_void_p) for name in ("base_flux", "attenuation", "minus_two_ln_prior", "types", "ext", "window")),
        ("n_window", c_int),
        ("mean_of_ratios", c_bool),
        ("score_parallax", c_bool),
        ("plx_lower", c_float),
        ("plx_upper", c_float),
    )


class DescentView(ctypes.Structure):
    """A run of first-order steps."""

    _fields_ = (
        ("adam", c_bool),
        ("steps", c_int),
        ("rate", c_double),
        ("decay", c_double),
        ("decay_every", c_int),
        ("clip", c_double),
    )


class ModelStepView(ctypes.Structure):
    """How a model takes its steps."""

    _fields_ = (("adam", c_bool), ("momentum", c_double), ("clip", c_double))


class StarArrays(ctypes.Structure):
    """Stars of a batch."""

    _fields_ = tuple((name, c_void_p) for name in ("flux", "whitener", "mean", "sigma"))


class EvaluationArrays(ctypes.Structure):
    """The loss and its derivatives."""

    _fields_ = tuple((name, c_void_p) for name in ("loss", "chi2", "ln_prior", "gradient", "hessian", "fisher"))


class SolutionArrays(ctypes.Structure):
    """Where fits end."""

    _fields_ = (
        ("at", EvaluationArrays),
        *(
            (name, c_void_p)
            for name in (
                "params",
                "decrement",
                "residual",
                "iterations",
                "status",
                "minima",
                "second_params",
                "second_gap",
            )
        ),
    )


class FitView(ctypes.Structure):
    """What a fit is told."""

    _fields_ = (
        ("model", ModelView),
        ("prior", PriorView),
        ("terms", LossView),
        ("lower", c_double * MAX_PARAMETERS),
        ("upper", c_double * MAX_PARAMETERS),
        ("max_iterations", c_int),
        ("tolerance", c_double),
        ("grid", GridView),
        ("start_params", c_void_p),
        ("starts", c_int),
        ("gate", c_double),
    )


class NoiseView(ctypes.Structure):
    """A learned noise."""

    _fields_ = (
        ("n_groups", c_int),
        *((name, c_void_p) for name in ("centre", "inverse_scale", "covariance")),
        ("factor", c_double),
        *((name, c_void_p) for name in ("independent", "common")),
    )


class SideView(ctypes.Structure):
    """One side of the spectrograph."""

    _fields_ = (
        *((name, c_int) for name in ("first_sample", "rows", "coefficients", "inner")),
        *((name, c_void_p) for name in ("design", "lower", "upper_reversed", "ratio", "place")),
    )


class CalibrationView(ctypes.Structure):
    """Calibration and noise model."""

    _fields_ = (
        ("bp", SideView),
        ("rp", SideView),
        *((name, c_int) for name in ("samples", "xp_samples", "leading_end", "link")),
        ("independent", c_void_p),
        *((name, c_double) for name in ("common", "bp_error", "rp_error", "floor")),
        ("unit_variance", c_bool),
    )


class SideRows(ctypes.Structure):
    """One side of some stars' coefficients."""

    _fields_ = tuple(
        (name, c_void_p) for name in ("coefficients", "error", "correlation", "standard_deviation", "exists")
    )


class CalibrationRows(ctypes.Structure):
    """What goes into calibration and comes out."""

    _fields_ = (
        ("bp", SideRows),
        ("rp", SideRows),
        *((name, c_void_p) for name in ("band_flux", "band_error", "flux", "whitener", "status")),
    )


class ThreadScratch(ctypes.Structure):
    """Memory of a grid's threads."""

    _fields_ = (("memory", c_void_p), ("bytes_a_thread", c_int64))


class CalibrateArguments(ctypes.Structure):
    """Of ``calibrate``."""

    _fields_ = (
        ("view", CalibrationView),
        ("rows", CalibrationRows),
        ("n", c_int64),
        ("unfinished", c_void_p),
        ("scratch", ThreadScratch),
    )


class PredictArguments(ctypes.Structure):
    """Of ``predict``."""

    _fields_ = (
        ("model", ModelView),
        ("params", c_void_p),
        ("flux", c_void_p),
        ("n", c_int64),
        ("scratch", ThreadScratch),
    )


class FreezeArguments(ctypes.Structure):
    """Of ``freeze_noise``."""

    _fields_ = (
        ("noise", NoiseView),
        *((name, c_void_p) for name in ("flux", "whitener", "params", "predicted", "frozen", "ln_det")),
        *((name, c_int64) for name in ("n", "parameters", "inputs")),
    )


class CurvatureArguments(ctypes.Structure):
    """Of ``prior_curvature``."""

    _fields_ = (
        ("prior", PriorView),
        ("theta", c_void_p),
        ("curvature", c_void_p),
        ("n", c_int64),
        ("scratch", ThreadScratch),
    )


class EvaluateArguments(ctypes.Structure):
    """Of ``evaluate``."""

    _fields_ = (
        ("model", ModelView),
        ("prior", PriorView),
        ("terms", LossView),
        ("stars", StarArrays),
        ("params", c_void_p),
        ("out", EvaluationArrays),
        ("n", c_int64),
        ("scratch", ThreadScratch),
    )


class StartArguments(ctypes.Structure):
    """Of ``start``."""

    _fields_ = (
        ("grid", GridView),
        ("samples", c_int64),
        ("inputs", c_int64),
        ("stars", StarArrays),
        ("n", c_int64),
        ("starts", c_int64),
        ("gate", c_double),
        ("params", c_void_p),
        ("scratch", ThreadScratch),
    )


class SearchQueue(ctypes.Structure):
    """Searches that wait for a stage."""

    _fields_ = (("searches", c_void_p), ("count", c_void_p))


class FitArguments(ctypes.Structure):
    """Of every stage of a fit."""

    _fields_ = (
        ("fit", FitView),
        ("stars", StarArrays),
        ("out", SolutionArrays),
        ("n", c_int64),
        ("progress", c_void_p),
        ("taken", SearchQueue),
        ("left", SearchQueue),
        ("begun", c_void_p),
        ("evaluations", c_int64),
        ("scratch", ThreadScratch),
    )


class InvertArguments(ctypes.Structure):
    """Of ``invert_information``."""

    _fields_ = (
        *((name, c_void_p) for name in ("information", "covariance", "inverse", "floored")),
        ("n", c_int64),
        ("parameters", c_int64),
    )


class SearchArguments(ctypes.Structure):
    """Of ``search`` and ``search_best``."""

    _fields_ = (
        ("grid", CandidateView),
        ("stars", StarArrays),
        ("n", c_int64),
        ("parameters", c_int64),
        ("slices", c_int64),
        ("best", c_void_p),
        ("params", c_void_p),
        ("scratch", ThreadScratch),
    )


class DescendArguments(ctypes.Structure):
    """Of ``descend``."""

    _fields_ = (
        ("fit", FitView),
        ("how", DescentView),
        ("stars", StarArrays),
        ("n", c_int64),
        ("params", c_void_p),
        ("scratch", ThreadScratch),
    )


class TrainingState(ctypes.Structure):
    """Where a run of training stands."""

    _fields_ = (("step", c_int64), ("at", c_int64), ("end", c_int64), ("arrived", c_int64))


class ParameterCounts(ctypes.Structure):
    """How many parameters a model has, where R begins among them, and how many are weights."""

    _fields_ = (("size", c_int64), ("curve", c_int64), ("n_weights", c_int64))


class WhitenerArguments(ctypes.Structure):
    """Of ``invert_whiteners``."""

    _fields_ = (("whitener", c_void_p), ("n", c_int64))


class TrainArguments(ctypes.Structure):
    """Of every kernel of training."""

    _fields_ = (
        ("model", ModelView),
        ("counts", ParameterCounts),
        ("stars", StarArrays),
        ("inverted", c_int64),
        ("params", c_void_p),
        ("batches", c_void_p),
        ("next_rows", c_void_p),
        ("steps", c_int64),
        ("size", c_int64),
        ("chunk_stars", c_int64),
        ("chunks", c_int64),
        ("model_rates", c_void_p),
        ("how", ModelStepView),
        ("count", c_int64),
        ("star_rates", c_void_p),
        ("star_clip", c_double),
        ("terms", LossView),
        ("lower", c_double * MAX_PARAMETERS),
        ("upper", c_double * MAX_PARAMETERS),
        *(
            (name, c_void_p)
            for name in (
                *("parameters", "first", "second", "parameters_before", "first_before", "second_before", "floats"),
                *("gradient", "tape", "chunk_sums", "tile_sums", "chi2", "model_loss", "star_loss", "state"),
            )
        ),
        ("scratch", ThreadScratch),
    )


class KernelScratch(ctypes.Structure):
    """Bytes that a thread of each kernel needs; 0 where its usual form serves.

    ``design`` and ``spectrum`` are what the usual form of ``calibrate`` takes of shared memory: a block, and each warp.
    """

    _fields_ = tuple(
        (name, c_int64)
        for name in (
            *("calibrate", "predict", "curvature", "evaluate", "start", "fit", "search", "descend", "train"),
            *("rescue", "tape", "design", "spectrum"),
        )
    )


class ScratchArguments(ctypes.Structure):
    """Of ``scratch_bytes``."""

    _fields_ = (
        ("model", ModelView),
        ("prior", PriorView),
        ("calibration", CalibrationView),
        *((name, c_int64) for name in ("n_types", "samples", "inputs", "search_samples", "search_window")),
        ("bytes", c_void_p),
    )


class SizesArguments(ctypes.Structure):
    """Of ``argument_sizes``."""

    _fields_ = (("sizes", c_void_p),)


#: What ``argument_sizes`` writes, in its order; None for what only kernels look into.
SIZES: dict[str, type[ctypes.Structure] | None] = {
    "CalibrateArguments": CalibrateArguments,
    "PredictArguments": PredictArguments,
    "FreezeArguments": FreezeArguments,
    "CurvatureArguments": CurvatureArguments,
    "EvaluateArguments": EvaluateArguments,
    "StartArguments": StartArguments,
    "FitArguments": FitArguments,
    "InvertArguments": InvertArguments,
    "SearchArguments": SearchArguments,
    "DescendArguments": DescendArguments,
    "WhitenerArguments": WhitenerArguments,
    "TrainArguments": TrainArguments,
    "ScratchArguments": ScratchArguments,
    "SearchProgress": None,
    "BestCandidate": None,
    "TrainingState": TrainingState,
    "KernelScratch": KernelScratch,
    **{
        f"{stage}_{name}": None
        for stage in ("freeze", "search", "start", "finish")
        for name in ("warps", "common", "star")
    },
    "train_warps": None,
    "train_shared": None,
}


def parameter(value: ctypes.Structure) -> NDArray[np.uint8]:
    """A structure as a launch takes it."""
    return np.frombuffer(bytes(value), np.uint8)
