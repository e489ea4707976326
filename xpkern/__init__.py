"""Stellar parameters, distances and extinctions from Gaia XP spectra."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

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
    from xpkern.engine import available_engines, get_engine
    from xpkern.engine.contract import Box, FitOptions, LossTerms
    from xpkern.fit.fit import fit
    from xpkern.fit.posterior import posterior
    from xpkern.fit.posterior_result import Posterior, PosteriorFlag
    from xpkern.fit.result import Fit
    from xpkern.fit.sightline_prior import SightlinePrior
    from xpkern.fit.zgr23 import Zgr23Options
    from xpkern.maps.make import make_map
    from xpkern.maps.map_file import read_map
    from xpkern.maps.settings import MapCuts, MapSettings
    from xpkern.model import Confidence, FluxModel, Noise, TypePrior, load_model, save_model
    from xpkern.observe.calibration import Calibration
    from xpkern.observe.observations import Observations
    from xpkern.observe.photometry import PhotometryCuts
    from xpkern.observe.read import iter_xp, read_xp
    from xpkern.report.run import write_report
    from xpkern.status import Status
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

#: Where names are, which are imported on first use: the command line answers, and its processes start, before NumPy is
#: there, and computing needs none of the libraries that read and write catalogues.
_LAZY = {
    "Box": "xpkern.engine.contract",
    "Calibration": "xpkern.observe.calibration",
    "Confidence": "xpkern.model",
    "Fit": "xpkern.fit.result",
    "FitOptions": "xpkern.engine.contract",
    "FluxModel": "xpkern.model",
    "LossTerms": "xpkern.engine.contract",
    "MapCuts": "xpkern.maps.settings",
    "MapSettings": "xpkern.maps.settings",
    "Noise": "xpkern.model",
    "Observations": "xpkern.observe.observations",
    "PhotometryCuts": "xpkern.observe.photometry",
    "Planted": "xpkern.survey.planted",
    "Posterior": "xpkern.fit.posterior_result",
    "PosteriorFlag": "xpkern.fit.posterior_result",
    "QualityFlags": "xpkern.catalog.flags",
    "SightlinePrior": "xpkern.fit.sightline_prior",
    "Status": "xpkern.status",
    "TypePrior": "xpkern.model",
    "Zgr23Options": "xpkern.fit.zgr23",
    "available_engines": "xpkern.engine",
    "compare_catalogs": "xpkern.catalog.compare",
    "count_cuts": "xpkern.catalog.cuts",
    "derived_columns": "xpkern.catalog.derived",
    "flag_catalog": "xpkern.catalog.flagging",
    "get_engine": "xpkern.engine",
    "iter_xp": "xpkern.observe.read",
    "load_model": "xpkern.model",
    "make_catalog": "xpkern.catalog.run",
    "make_map": "xpkern.maps.make",
    "posterior": "xpkern.fit.posterior",
    "read_catalog": "xpkern.catalog.compare",
    "read_map": "xpkern.maps.map_file",
    "read_xp": "xpkern.observe.read",
    "read_zgr23_catalog": "xpkern.catalog.published",
    "save_model": "xpkern.model",
    "simulate_survey": "xpkern.survey.run",
    "write_report": "xpkern.report.run",
    "write_spectra": "xpkern.catalog.spectra",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The package, whose ``fit`` is the function, whatever has been imported of the folder of that name."""

    @property
    def fit(self) -> Any:
        return import_module("xpkern.fit.fit").fit

    @fit.setter
    def fit(self, folder: ModuleType) -> None:
        """What Python binds to the name when it has imported the folder is not kept."""


sys.modules[__name__].__class__ = _Package
