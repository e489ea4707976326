"""Model files: one HDF5 file with flux model, prior, noise, model card and perhaps classifiers of confidence."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from xpkern.errors import InputError, ModelFileError
from xpkern.model.arrays import shape_text
from xpkern.model.confidence import Confidence
from xpkern.model.flux_model import FluxModel
from xpkern.model.model_error import ModelError
from xpkern.model.noise import KINDS, Noise
from xpkern.model.type_prior import TypePrior

FORMAT_VERSION = 1

_FLUX_ARRAYS = ("ext_curve", "input_zp", "input_scale", "wavelength")
_LN_EXT_CURVE = "flux/ln_ext_curve"
_PRIOR_ARRAYS = ("weights", "means", "covariances")
_NOISE_NUMBERS = ("common", "bp", "rp", "floor")
_MODEL_ERROR_ARRAYS = ("centre", "scale", "covariance")
_CONFIDENCE_ARRAYS = ("centre", "scale", "fill")
_PROVENANCE = "provenance_"

#: No array of a model has more numbers than this; a dataset of a damaged file may announce any size.
_MOST_NUMBERS = 1 << 25


def default_model_path() -> Path:
    """Where the model that comes with the package lies."""
    return Path(str(resources.files("xpkern.model").joinpath("data", "default.h5")))


def save_model(path: str | os.PathLike[str], model: FluxModel, prior: TypePrior) -> None:
    """Write a model file; it appears under its name only once it is complete.

    Parameters
    ----------
    path : path-like
        Name of the file; what stands there is replaced.
    model : FluxModel
    prior : TypePrior
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        with h5py.File(temporary, "w") as file:
            _write(file, model, prior)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _write(file: h5py.File, model: FluxModel, prior: TypePrior) -> None:
    def put(name: str, values: np.ndarray) -> None:
        file.create_dataset(name, data=values, track_times=False)

    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["ext_unit"] = model.ext_unit
    file.attrs["scale_sigma"] = model.scale_sigma
    file.attrs["licence"] = model.licence
    for key, value in sorted(model.provenance.items()):
        file.attrs[_PROVENANCE + key] = value
    for layer, (weight, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        put(f"flux/weights_{layer}", weight)
        put(f"flux/biases_{layer}", bias)
    for name in _FLUX_ARRAYS:
        put(f"flux/{name}", getattr(model, name))
    put("flux/theoretical", np.asarray(model.theoretical, dtype=np.uint8))
    for name in _PRIOR_ARRAYS:
        put(f"prior/{name}", getattr(prior, name))
    file["prior"].attrs["ln_prior_threshold"] = prior.ln_prior_threshold
    put("noise/independent", model.noise.independent)
    for name in ("kind", "sigma", *_NOISE_NUMBERS):
        file["noise"].attrs[name] = getattr(model.noise, name)
    if model.noise.model_error is not None:
        for name in _MODEL_ERROR_ARRAYS:
            put(f"noise/{name}", getattr(model.noise.model_error, name))
        file["noise"].attrs["archive_factor"] = model.noise.model_error.archive_factor
    if model.confidence is not None:
        for name in _CONFIDENCE_ARRAYS:
            put(f"confidence/{name}", getattr(model.confidence, name))
        for name in ("weights", "biases"):
            for layer, values in enumerate(getattr(model.confidence, name)):
                put(f"confidence/{name}_{layer}", values)
        names = np.array(model.confidence.features, dtype=h5py.string_dtype())
        file.create_dataset("confidence/features", data=names, track_times=False)
    file.create_dataset("card", data=model.card, dtype=h5py.string_dtype(), track_times=False)


def load_model(path: str | os.PathLike[str] | None = None) -> tuple[FluxModel, TypePrior]:
    """Read a model file.

    Parameters
    ----------
    path : path-like, optional
        Name of the file; without it, the model that comes with the package.

    Returns
    -------
    FluxModel, TypePrior

    Raises
    ------
    ModelFileError
        If the file is absent, unreadable, of another format, or holds arrays of wrong shape or numbers that are not
        finite; the message names the file and the field.
    """
    name = str(default_model_path() if path is None else path)
    try:
        with open(name, "rb") as stream:
            stream.read(1)  # what the system refuses it says in fewer words than HDF5
        with h5py.File(name, "r") as file:
            reader = _Reader(file, name)
            return reader.flux_model(), reader.type_prior()
    except FileNotFoundError:
        raise ModelFileError("no such model file", file=name) from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ModelFileError(f"not a readable HDF5 file ({reason})", file=name) from None


class _Reader:
    """The fields of one open model file; every failure names the file and the field."""

    def __init__(self, file: h5py.File, name: str) -> None:
        self.file, self.name = file, name
        if "format_version" not in file.attrs:
            raise ModelFileError("missing: this is no model file of xpkern", file=name, field="format_version")
        version = self.attribute("/", "format_version")
        if version != FORMAT_VERSION:
            message = f"version {version} of the model format; this version of xpkern reads {FORMAT_VERSION}"
            raise ModelFileError(message, file=name, field="format_version")

    def dataset(self, field: str) -> h5py.Dataset:
        """A dataset that is small enough to be read."""
        item = self.file.get(field)
        if not isinstance(item, h5py.Dataset):
            raise ModelFileError("missing", file=self.name, field=field)
        if (item.size or 0) > _MOST_NUMBERS:
            message = f"shape {shape_text(item.shape, '')} is larger than that of any model"
            raise ModelFileError(message, file=self.name, field=field)
        return item

    def array(self, field: str) -> np.ndarray:
        item = self.dataset(field)
        try:
            return np.asarray(item[()], dtype=np.float64)
        except (TypeError, ValueError, OSError) as error:
            raise ModelFileError(f"not an array of numbers ({error})", file=self.name, field=field) from None

    def texts(self, field: str) -> tuple[str, ...]:
        item = self.dataset(field)
        if item.ndim != 1 or h5py.check_string_dtype(item.dtype) is None:
            raise ModelFileError("not a list of texts", file=self.name, field=field)
        return tuple(item.asstr()[()])

    def attribute(self, group: str, field: str) -> Any:
        item = self.file.get(group)
        if item is None or field not in item.attrs:
            raise ModelFileError("missing", file=self.name, field=f"{group.strip('/')}/{field}".lstrip("/"))
        return item.attrs[field]

    def number(self, group: str, field: str) -> float:
        value = self.attribute(group, field)
        if not isinstance(value, (int, float, np.integer, np.floating)) or not np.isfinite(value):
            given = value.item() if isinstance(value, np.generic) else value
            raise ModelFileError(f"{given!r} is not a finite number", file=self.name, field=f"{group}/{field}")
        return float(value)

    @contextmanager
    def named(self, group: str) -> Iterator[None]:
        """Give the errors of a constructor the name of the file and of the group."""
        try:
            yield
        except ModelFileError:
            raise
        except InputError as error:
            field = group if error.field is None else f"{group}/{error.field}"
            raise ModelFileError(error.message, file=self.name, field=field) from None

    def flux_model(self) -> FluxModel:
        layers, noise, confidence = self.layers("flux"), self.noise(), self.confidence()
        with self.named("flux"):
            return FluxModel(
                weights=[self.array(f"flux/weights_{layer}") for layer in layers],
                biases=[self.array(f"flux/biases_{layer}") for layer in layers],
                **{field: self.flux_array(field) for field in _FLUX_ARRAYS},
                noise=noise,
                scale_sigma=self.number("/", "scale_sigma"),
                theoretical=self.array("flux/theoretical") != 0,
                ext_unit=str(self.attribute("/", "ext_unit")),
                provenance={
                    key[len(_PROVENANCE) :]: str(value)
                    for key, value in self.file.attrs.items()
                    if key.startswith(_PROVENANCE)
                },
                licence=str(self.attribute("/", "licence")),
                card=self.dataset("card").asstr()[()] if "card" in self.file else "",
                confidence=confidence,
            )

    def flux_array(self, field: str) -> np.ndarray:
        """One of ``_FLUX_ARRAYS``; files of before have ln R, from which R comes back to its last bit but one."""
        if field == "ext_curve" and _LN_EXT_CURVE in self.file and f"flux/{field}" not in self.file:
            with np.errstate(over="ignore"):
                return np.exp(self.array(_LN_EXT_CURVE))
        return self.array(f"flux/{field}")

    def layers(self, group: str) -> range:
        """Numbers of the layers of a group, up to the last one of which it has anything; all of them must be there."""
        found = self.file.get(group)
        names = " ".join(found) if isinstance(found, h5py.Group) else ""
        numbers = [int(number) for number in re.findall(r"\b(?:weights|biases)_(\d{1,4})\b", names)]
        return range(max(numbers, default=0) + 1)

    def confidence(self) -> Confidence | None:
        """Classifiers of confidence; None in a file without them."""
        if "confidence" not in self.file:
            return None
        layers = self.layers("confidence")
        with self.named("confidence"):
            return Confidence(
                features=self.texts("confidence/features"),
                weights=[self.array(f"confidence/weights_{layer}") for layer in layers],
                biases=[self.array(f"confidence/biases_{layer}") for layer in layers],
                **{field: self.array(f"confidence/{field}") for field in _CONFIDENCE_ARRAYS},
            )

    def noise(self) -> Noise:
        kind = str(self.attribute("noise", "kind"))
        if kind not in KINDS:
            raise ModelFileError(f"noise model {kind!r} is unknown to this version", file=self.name, field="noise/kind")
        with self.named("noise"):
            fields: dict[str, Any] = {field: self.number("noise", field) for field in _NOISE_NUMBERS}
            fields["sigma"] = str(self.attribute("noise", "sigma"))
            if kind == "learned":
                arrays = {field: self.array(f"noise/{field}") for field in _MODEL_ERROR_ARRAYS}
                factor = self.number("noise", "archive_factor")
                fields["model_error"] = ModelError(**arrays, archive_factor=factor)
            return Noise(self.array("noise/independent"), **fields)

    def type_prior(self) -> TypePrior:
        with self.named("prior"):
            arrays = {field: self.array(f"prior/{field}") for field in _PRIOR_ARRAYS}
            return TypePrior(**arrays, ln_prior_threshold=self.number("prior", "ln_prior_threshold"))
