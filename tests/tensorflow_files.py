"""TensorFlow checkpoints for tests: a small writer of their format, and the same variables saved by TensorFlow itself.

Run with an interpreter that has TensorFlow, ``python tests/tensorflow_files.py FOLDER`` writes what is in
tests/data/tensorflow: variables of a SavedModel as TensorFlow 2.21 wrote them, and fluxes it computed.
"""

from __future__ import annotations

import struct
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

WAVELENGTH = np.append(np.arange(392.0, 993.0, 10.0), [1235.0, 1662.0, 2159.0, 3352.6, 4602.8])
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def flux_variables(seed: int = 1, widths: tuple[int, ...] = (3, 5, 4, 66)) -> dict[str, np.ndarray]:
    """Variables of the authors' FluxModel, by their names in a SavedModel without the suffix; float32."""
    rng = np.random.default_rng(seed)
    variables = {
        "_sample_wavelengths": WAVELENGTH,
        "_l2": np.array(1.0),
        "_input_zp": np.array([[5.5, -0.3, 3.5]]),
        "_input_iscale": np.array([[1.0, 2.0, 0.8]]),
        "_ln_ext_curve": np.log(2.0 * (WAVELENGTH / 550.0) ** -1.5),
    }
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        variables[f"_layers/{layer}/w"] = rng.normal(0.0, 0.4, (inputs, outputs))
        variables[f"_layers/{layer}/b"] = rng.normal(0.0, 0.2, outputs)
    return {name: values.astype(np.float32) for name, values in variables.items()}


def write_bundle(prefix: Path, tensors: dict[str, np.ndarray], block_entries: int = 4, restart: int = 3) -> Path:
    """Write a checkpoint by the format's description; return the index."""
    data, entries = b"", {b"": _field(1, 1) + _field(3, _field(1, 1))}
    numbers = {"f4": 1, "f8": 2, "i4": 3, "i8": 9}
    for name, values in sorted(tensors.items()):
        piece = values.tobytes()
        shape = b"".join(_field(2, _field(1, length)) for length in values.shape)
        entries[name.encode()] = (
            _field(1, numbers[values.dtype.str[1:]])
            + _field(2, shape)
            + _field(4, len(data))
            + _field(5, len(piece))
            + bytes([6 << 3 | 5])
            + struct.pack("<I", masked(piece))
        )
        data += piece
    items = sorted(entries.items())
    file, handles = b"", []
    for first in range(0, len(items), block_entries):
        block = items[first : first + block_entries]
        handles.append((block[-1][0] + b"\x00", _handle(len(file), len(_block(block, restart)))))
        file += _sealed(_block(block, restart))
    metaindex = _handle(len(file), len(_block([], 1)))
    file += _sealed(_block([], 1))
    index = _handle(len(file), len(_block(handles, 1)))
    file += _sealed(_block(handles, 1))
    file += (metaindex + index).ljust(40, b"\x00") + struct.pack("<Q", 0xDB4775248B80FB57)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    Path(f"{prefix}.index").write_bytes(file)
    return Path(f"{prefix}.index")


def write_saved_model(folder: Path, variables: dict[str, np.ndarray], root: str = "") -> Path:
    """Variables of a module as a SavedModel has them; return the folder."""
    write_bundle(folder / "variables" / "variables", {f"{root}{name}{SUFFIX}": v for name, v in variables.items()})
    return folder


def masked(data: bytes) -> int:
    """CRC-32C by its definition, a bit at a time, as the files store it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return bytes([number << 3 | 2]) + _varint(len(value)) + value
    return bytes([number << 3]) + _varint(value)


def _handle(offset: int, size: int) -> bytes:
    return _varint(offset) + _varint(size)


def _block(items: list[tuple[bytes, bytes]], restart: int) -> bytes:
    """Entries with shared beginnings of keys, which every ``restart`` of them forget."""
    out, restarts, last = b"", [0], b""
    for number, (key, value) in enumerate(items):
        shared = 0
        if number and number % restart == 0:
            restarts.append(len(out))
        elif number:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += _varint(shared) + _varint(len(key) - shared) + _varint(len(value)) + key[shared:] + value
        last = key
    return out + b"".join(struct.pack("<I", offset) for offset in [*restarts, len(restarts)])


def _sealed(block: bytes) -> bytes:
    return block + b"\x00" + struct.pack("<I", masked(block + b"\x00"))


def save_with_tensorflow(folder: Path, variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Save variables as a SavedModel (``saved``) and as a checkpoint (``checkpoint/flux-1``) by TensorFlow.

    Returns stars (teff, feh, logg, ext, plx) and the fluxes that TensorFlow computes for them.
    """
    import tensorflow as tf

    class Layer(tf.Module):
        def __init__(self, weights: np.ndarray, biases: np.ndarray) -> None:
            super().__init__()
            self.w, self.b = tf.Variable(weights), tf.Variable(biases)

    class FluxModel(tf.Module):
        def __init__(self) -> None:
            super().__init__(name="flux_model")
            for name, values in variables.items():
                if "/" not in name:
                    setattr(self, name, tf.Variable(values))
            depth = sum(name.endswith("/w") for name in variables)
            self._layers = [Layer(variables[f"_layers/{k}/w"], variables[f"_layers/{k}/b"]) for k in range(depth)]

        @tf.function(input_signature=[tf.TensorSpec((None, 3)), tf.TensorSpec((None,)), tf.TensorSpec((None,))])
        def predict_observed_flux(self, theta, ext, plx):
            x = (theta - self._input_zp) * self._input_iscale
            for layer in self._layers[:-1]:
                x = tf.tanh(x @ layer.w + layer.b)
            ln_flux = x @ self._layers[-1].w + self._layers[-1].b
            return tf.exp(ln_flux - ext[:, None] * tf.exp(self._ln_ext_curve)) * plx[:, None] ** 2

    model = FluxModel()
    tf.saved_model.save(model, str(folder / "saved"))
    tf.train.Checkpoint(flux_model=model).save(str(folder / "checkpoint" / "flux"))
    rng = np.random.default_rng(2)
    stars = rng.uniform([4.0, -1.0, 1.0, 0.0, 0.5], [7.0, 0.3, 5.0, 1.0, 3.0], (16, 5)).astype(np.float32)
    flux = model.predict_observed_flux(stars[:, :3], stars[:, 3], stars[:, 4]).numpy()
    return {"stars": stars, "flux": flux}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    np.savez_compressed(folder / "flux.npz", **save_with_tensorflow(folder, flux_variables()))
