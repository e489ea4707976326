"""Reader of TensorFlow checkpoints ("tensor bundles"), without TensorFlow.

A checkpoint is ``NAME.index`` and ``NAME.data-00000-of-0000n``; in a SavedModel NAME is ``variables/variables``. The
index is a sorted table of strings in the format of LevelDB::

    file    = block ... block  metaindex block  index block  footer
    block   = entry ... entry  restart (uint32) ... restart  number of restarts (uint32)  |  compression (1 byte)  crc
    entry   = shared (varint)  unshared (varint)  length of value (varint)  end of key  value
    footer  = handle of metaindex  handle of index  padding to 40 bytes  magic number (8 bytes)
    handle  = offset (varint)  size (varint)

``shared`` bytes of a key are those of the one before. An entry of the index block has a block's handle as its value. Of
the table's own entries the first, with an empty key, holds a BundleHeaderProto, and each other one, whose key is a
tensor's name, a BundleEntryProto: type (1), shape (2), shard (3), offset (4), size (5), crc (6). Numbers are little
endian. Checksums are CRC-32C, rotated and shifted ("masked"), as the plain one of data with checksums in it is weak.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xpkern.errors import ModelFileError

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5

#: Reversed polynomial of CRC-32C (Castagnoli), and what a checksum is shifted by.
_POLYNOMIAL, _MASK = 0x82F63B78, 0xA282EAD8

#: NumPy's types by TensorFlow's numbers; other types are not numbers.
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 5: "<i2", 6: "i1", 9: "<i8", 10: "?", 19: "<f2"}

#: Wire types of protocol buffers.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """Checksum of some bytes as these files store it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK) & 0xFFFFFFFF


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: number of its type, shape, shard, offset and size [bytes], checksum."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class TensorFlowCheckpoint:
    """Tensors by name.

    Parameters
    ----------
    path : path
        Folder of a SavedModel, folder with one checkpoint or a file ``checkpoint`` that names the latest, the
        ``.index`` file, or the name without its ending.

    Raises
    ------
    ModelFileError
        If there is no checkpoint, or the index is damaged or of another format.

    Attributes
    ----------
    prefix, index : str
        Name of the checkpoint without an ending, and of its index.
    digest : str
        SHA-256 (hex) of the index, in which the checksum of every tensor is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.prefix = _find(Path(path))
        self.index = f"{self.prefix}.index"
        data = _bytes_of(Path(self.index))
        self.digest = hashlib.sha256(data).hexdigest()
        try:
            entries = dict(self._table(data))
            self._shards = _header(entries.pop(b""))
            self._entries = {key.decode(): _entry(value) for key, value in entries.items()}
        except ModelFileError:
            raise
        except (KeyError, IndexError, ValueError, struct.error) as error:
            raise self._damaged(f"its index makes no sense ({type(error).__name__}: {error})") from None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of numbers, by name."""
        return {name: entry.shape for name, entry in self._entries.items() if entry.dtype in _DTYPES}

    def array(self, name: str) -> NDArray:
        """A tensor.

        Raises
        ------
        ModelFileError
            If there is none of that name, it does not hold numbers, its file ends before it, or its checksum is wrong.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise ModelFileError("no such variable", file=self.index, field=name)
        if entry.dtype not in _DTYPES:
            raise ModelFileError(f"not numbers (type {entry.dtype} of TensorFlow)", file=self.index, field=name)
        dtype = np.dtype(_DTYPES[entry.dtype])
        path = Path(f"{self.prefix}.data-{entry.shard:05d}-of-{self._shards:05d}")
        try:
            with open(path, "rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.size)
        except OSError as error:
            raise ModelFileError(f"cannot be read ({error.strerror or error})", file=str(path), field=name) from None
        if len(data) != entry.size:
            raise ModelFileError("the file ends too early: it is truncated", file=str(path), field=name)
        if masked_crc32c(data) != entry.crc:
            raise ModelFileError("wrong checksum: the file is damaged", file=str(path), field=name)
        if entry.size != dtype.itemsize * int(np.prod(entry.shape, dtype=np.int64)):
            raise ModelFileError(f"{entry.size} bytes are no {entry.shape} of {dtype}", file=str(path), field=name)
        return np.frombuffer(data, dtype).reshape(entry.shape).copy()

    def _table(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of the whole index."""
        if len(data) < _FOOTER or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
            raise self._damaged("no index of a TensorFlow checkpoint, or truncated")
        position = len(data) - _FOOTER
        for _ in range(2):  # the handle of the metaindex, which is empty, then that of the index
            offset, position = _varint(data, position)
            size, position = _varint(data, position)
        for _, handle in self._block(data, offset, size):
            offset, end = _varint(handle, 0)
            size, _ = _varint(handle, end)
            yield from self._block(data, offset, size)

    def _block(self, data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of one block."""
        whole = data[offset : offset + size + _TRAILER]
        if len(whole) != size + _TRAILER:
            raise self._damaged("a block reaches beyond its end: it is truncated or damaged")
        if masked_crc32c(whole[:-4]) != struct.unpack("<I", whole[-4:])[0]:
            raise self._damaged(f"wrong checksum of the block at byte {offset}")
        if whole[size] != 0:
            raise self._damaged("its blocks are compressed, which TensorFlow does not do")
        restarts = struct.unpack("<I", whole[size - 4 : size])[0]
        position, end, key = 0, size - 4 - 4 * restarts, b""
        while position < end:
            shared, position = _varint(whole, position)
            unshared, position = _varint(whole, position)
            length, position = _varint(whole, position)
            if shared > len(key) or position + unshared + length > end:
                raise self._damaged(f"an entry of the block at byte {offset} is longer than the block")
            key = key[:shared] + whole[position : position + unshared]
            position += unshared
            yield key, whole[position : position + length]
            position += length

    def _damaged(self, what: str) -> ModelFileError:
        return ModelFileError(what, file=self.index)


def _find(path: Path) -> str:
    """Name, without its ending, of the checkpoint that a path stands for."""
    if path.is_dir():
        if (path / "variables" / "variables.index").exists():
            return str(path / "variables" / "variables")
        if (path / "checkpoint").exists():  # text: model_checkpoint_path: "name-7"
            for line in (path / "checkpoint").read_text(errors="replace").splitlines():
                key, _, value = line.partition(":")
                if key.strip() == "model_checkpoint_path":
                    return str(path / value.strip().strip('"'))
        indices = sorted(path.glob("*.index"))
        if len(indices) == 1:
            return str(indices[0])[: -len(".index")]
        what = f"{len(indices)} checkpoints: name one" if indices else "no variables/variables.index and no *.index"
        raise ModelFileError(f"is no SavedModel of TensorFlow: it holds {what}", file=str(path))
    if path.name.endswith(".index"):
        return str(path)[: -len(".index")]
    if Path(f"{path}.index").exists():
        return str(path)
    what = "is no SavedModel of TensorFlow" if path.exists() else "no such checkpoint or SavedModel"
    raise ModelFileError(what, file=str(path))


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot be read ({error.strerror or error})", file=str(path)) from None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and where it ends."""
    value, shift = 0, 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer: integers, or bytes for what is nested."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        piece = data[position : position + size]
        if len(piece) != size:
            raise ValueError("a field beyond the end")
        position += size
        yield number, piece if wire == _BYTES else int.from_bytes(piece, "little")


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes in place of a number")
    return value


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number in place of a message")
    return value


def _header(data: bytes) -> int:
    """Number of shards; BundleHeaderProto: num_shards (1), endianness (2; 0 is little)."""
    fields = dict(_fields(data))
    if _number(fields.get(2, 0)) != 0:
        raise ValueError("numbers are big endian")
    return _number(fields.get(1, 1))


def _entry(data: bytes) -> _Entry:
    """BundleEntryProto; fields that are 0 are not written."""
    fields = dict(_fields(data))
    shape = tuple(
        next((_number(size) for number, size in _fields(_message(dimension)) if number == 1), 0)
        for field, dimension in _fields(_message(fields.get(2, b"")))
        if field == 2
    )
    number = {field: _number(fields.get(field, 0)) for field in (1, 3, 4, 5, 6)}
    return _Entry(number[1], shape, shard=number[3], offset=number[4], size=number[5], crc=number[6])
