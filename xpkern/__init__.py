"""Stellar parameters, distances and extinctions from Gaia XP spectra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xpkern.engine import available_engines, get_engine
from xpkern.engine.contract import Box, FitOptions, LossTerms
from xpkern.errors import (
    DeviceFailed,
    DeviceOutOfMemory,
    DeviceUnavailable,
    InputError,
    ModelFileError,
    NotSupported,
    TrainingDiverged,
    XpkernError,
)
from xpkern.fit.fit import fit
from xpkern.fit.result import Fit
from xpkern.fit.zgr23 import Zgr23Options
from xpkern.model import Confidence, FluxModel, Noise, TypePrior, load_model, save_model
from xpkern.observe.observations import Observations
from xpkern.status import Status
from xpkern.version import __version__

if TYPE_CHECKING:
    from xpkern.catalog.compare import compare_catalogs, read_catalog
    from xpkern.catalog.cuts import count_cuts
    from xpkern.catalog.derived import derived_columns
    from xpkern.catalog.flagging import flag_catalog
    from xpkern.catalog.flags import QualityFlags
    from xpkern.catalog.published import read_zgr23_catalog
    from xpkern.catalog.run import make_catalog
    from xpkern.catalog.spectra import write_spectra
    from xpkern.fit.posterior import posterior
    from xpkern.fit.posterior_result import Posterior, PosteriorFlag
    from xpkern.fit.sightline_prior import SightlinePrior
    from xpkern.maps.make import make_map
    from xpkern.maps.map_file import read_map
    from xpkern.maps.settings import MapCuts, MapSettings
    from xpkern.observe.calibration import Calibration
    from xpkern.observe.photometry import PhotometryCuts
    from xpkern.observe.read import iter_xp, read_xp
    from xpkern.report.run import write_report
    from xpkern.survey.planted import Planted
    from xpkern.survey.run import simulate_survey

__all__ = [
    "Box",
    "Calibration",
    "Confidence",
    "DeviceFailed",
    "DeviceOutOfMemory",
    "DeviceUnavailable",
    "Fit",
    "FitOptions",
    "FluxModel",
    "InputError",
    "LossTerms",
    "MapCuts",
    "MapSettings",
    "ModelFileError",
    "Noise",
    "NotSupported",
    "Observations",
    "PhotometryCuts",
    "Planted",
    "Posterior",
    "PosteriorFlag",
    "QualityFlags",
    "SightlinePrior",
    "Status",
    "TrainingDiverged",
    "TypePrior",
    "XpkernError",
    "Zgr23Options",
    "__version__",
    "available_engines",
    "compare_catalogs",
    "count_cuts",
    "derived_columns",
    "fit",
    "flag_catalog",
    "get_engine",
    "iter_xp",
    "load_model",
    "make_catalog",
    "make_map",
    "posterior",
    "read_catalog",
    "read_map",
    "read_xp",
    "read_zgr23_catalog",
    "save_model",
    "simulate_survey",
    "write_report",
    "write_spectra",
]

#: Imported on first use: reading and writing catalogues needs libraries that computing does not.
_LAZY = {
    "Calibration": "xpkern.observe.calibration",
    "read_xp": "xpkern.observe.read",
    "iter_xp": "xpkern.observe.read",
    "PhotometryCuts": "xpkern.observe.photometry",
    "make_catalog": "xpkern.catalog.run",
    "make_map": "xpkern.maps.make",
    "read_map": "xpkern.maps.map_file",
    "MapCuts": "xpkern.maps.settings",
    "MapSettings": "xpkern.maps.settings",
    "compare_catalogs": "xpkern.catalog.compare",
    "count_cuts": "xpkern.catalog.cuts",
    "derived_columns": "xpkern.catalog.derived",
    "flag_catalog": "xpkern.catalog.flagging",
    "QualityFlags": "xpkern.catalog.flags",
    "read_catalog": "xpkern.catalog.compare",
    "read_zgr23_catalog": "xpkern.catalog.published",
    "simulate_survey": "xpkern.survey.run",
    "write_report": "xpkern.report.run",
    "write_spectra": "xpkern.catalog.spectra",
    "Planted": "xpkern.survey.planted",
    "posterior": "xpkern.fit.posterior",
    "Posterior": "xpkern.fit.posterior_result",
    "PosteriorFlag": "xpkern.fit.posterior_result",
    "SightlinePrior": "xpkern.fit.sightline_prior",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
