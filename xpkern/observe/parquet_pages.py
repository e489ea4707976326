"""Lists of one length in Parquet, taken from the pages of a file as they lie there.

Arrow decodes two levels with each number of a list, which takes longer than all else that is done with it. Where every
list of a row group has the same length and nothing is missing, the levels only have to be compared with that pattern
(csrc/cpu/parquet_page.hpp), and the numbers are copied. Whatever is not like that, unusual or damaged, is
:class:`Irregular` and left to Arrow.
"""

from __future__ import annotations

import io
import mmap
import os
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from xpkern.observe import _parquet

#: Bytes that a page may have, decompressed; writers make pages of 1 MB.
MOST_BYTES_OF_PAGE = 1 << 26

#: Bytes in which the header of a page must end: its numbers, and the least and the largest value of the page.
MOST_BYTES_OF_HEADER = 1 << 9

#: Pieces of a file up to this many bytes are read; to map one costs ten times as much as these bytes do.
MOST_BYTES_READ = 1 << 12

#: Types of numbers as Parquet counts them, with the words as which they are moved.
_TYPES: dict[int, tuple[np.dtype[Any], np.dtype[Any]]] = {
    4: (np.dtype(np.float32), np.dtype(np.uint32)),
    5: (np.dtype(np.float64), np.dtype(np.uint64)),
}

#: How pages may be compressed, as Parquet counts it: where it shows, before it is done, how much will come out.
_CODECS = {0: "", 1: "snappy", 2: "gzip", 6: "zstd"}

_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_2 = range(4)
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY, _BYTE_STREAM_SPLIT = 0, 2, 3, 8, 9

_Bytes = NDArray[np.uint8]


class Irregular(Exception):
    """Pages are not those of lists of one length, or damaged."""


class _Header(NamedTuple):
    """See :func:`xpkern.observe._parquet.page_header`."""

    length: int
    kind: int
    size: int
    stored_size: int
    n_values: int
    encoding: int
    definition_encoding: int
    repetition_encoding: int
    definition_size: int
    repetition_size: int
    is_compressed: int


class ColumnChunk(NamedTuple):
    """What a file says of a column in one row group; see :func:`xpkern.observe._parquet.row_groups`."""

    type: int
    codec: int
    n_values: int
    size: int
    stored_size: int
    first_page: int
    dictionary_page: int
    is_elsewhere: int


class FileBytes:
    """The bytes of a file; larger pieces of it are mapped, as long as they are in use.

    Parameters
    ----------
    content : str or file
        Name of the file, or what has been unpacked of it.
    """

    def __init__(self, content: str | BinaryIO) -> None:
        self._file: int | None = None
        self._bytes: bytes | memoryview = b""
        if isinstance(content, str):
            self._file = os.open(content, os.O_RDONLY)
        elif isinstance(content, io.BytesIO):
            self._bytes = content.getbuffer()
        else:
            content.seek(0)
            self._bytes = content.read()
        self._size = len(self._bytes) if self._file is None else os.fstat(self._file).st_size

    def row_groups(self, n_columns: int) -> tuple[list[int], NDArray[np.int64]]:
        """Rows of each row group, and what is said of its columns: (n_groups, n_columns, fields of a ColumnChunk).

        Raises
        ------
        Irregular
            If the description is damaged.
        """
        length = int.from_bytes(self.read(self._size - 8, 4).tobytes(), "little")
        found = _parquet.row_groups(self.read(self._size - 8 - length, length), n_columns)
        if found is None:
            raise Irregular("the description of its row groups is damaged")
        return found

    def read(self, place: int, size: int) -> _Bytes:
        """Some bytes, (size,); raises :class:`Irregular` where the file does not have them all."""
        if place < 0 or size < 0 or place + size > self._size:
            raise Irregular
        try:
            if self._file is None:
                return np.frombuffer(self._bytes, np.uint8, size, place)
            if size <= MOST_BYTES_READ:
                return np.frombuffer(os.pread(self._file, size, place), np.uint8, size)
            before = place % mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(self._file, before + size, access=mmap.ACCESS_READ, offset=place - before)
            return np.frombuffer(mapped, np.uint8, size, before)
        except (OSError, ValueError, OverflowError):
            raise Irregular from None

    def close(self) -> None:
        """Close the file."""
        self._bytes = b""
        if self._file is not None:
            os.close(self._file)


class ListPages:
    """The lists of a column in one row group.

    Parameters
    ----------
    file : FileBytes
    chunk : ColumnChunk
    n_rows : int
        Of the row group.
    column : pyarrow.parquet.ColumnSchema

    Raises
    ------
    Irregular
        If the description of the file tells already that the lists are of another kind.
    """

    def __init__(self, file: FileBytes, chunk: ColumnChunk, n_rows: int, column: Any) -> None:
        self._file, self._largest_definition = file, column.max_definition_level
        has_dictionary = 0 < chunk.dictionary_page < chunk.first_page
        self._place = chunk.dictionary_page if has_dictionary else chunk.first_page
        self._end = self._place + chunk.stored_size
        self._n_values = self._values_left = chunk.n_values
        is_usual = (
            chunk.type in _TYPES
            and chunk.codec in _CODECS
            and not chunk.is_elsewhere
            and column.max_repetition_level == 1
            and 1 <= self._largest_definition <= 3
            and 0 <= self._place <= self._end
        )
        if not is_usual or n_rows < 1 or chunk.n_values < 1 or chunk.n_values % n_rows:
            raise Irregular
        self.size = chunk.n_values // n_rows
        self.dtype, self._word = _TYPES[chunk.type]
        self._compression = _CODECS[chunk.codec]
        self._codec = pa.Codec(self._compression) if self._compression else None
        self._dictionary: NDArray | None = None
        self._waiting = np.empty(0, np.uint8)

    def look_ahead(self) -> None:
        """Read the next page with numbers, unless there are some left of the last; raises :class:`Irregular`."""
        if not len(self._waiting):
            self._waiting = self._next_values()

    def fill(self, lists: NDArray[np.floating[Any]]) -> int:
        """Take lists for an array (n, size) of this type; return how many of its rows are filled.

        These are all, unless a page is of another kind, and then nothing can be taken any more.
        """
        target = lists.reshape(-1).view(np.uint8)
        filled = 0
        while filled < len(target):
            try:
                self.look_ahead()
            except Irregular:
                break
            piece = self._waiting[: len(target) - filled]
            target[filled : filled + len(piece)] = piece
            self._waiting = self._waiting[len(piece) :]
            filled += len(piece)
        return filled // (self.size * self.dtype.itemsize)

    def _next_values(self) -> _Bytes:
        """The values of the next page that has any, as bytes."""
        while True:
            header, stored = self._next_page()
            if header.kind == _DICTIONARY_PAGE:
                self._read_dictionary(header, stored)
            elif header.kind != _INDEX_PAGE and header.n_values:
                return self._values(header, stored)

    def _next_page(self) -> tuple[_Header, _Bytes]:
        found = _parquet.page_header(self._file.read(self._place, min(MOST_BYTES_OF_HEADER, self._end - self._place)))
        if found is None:
            raise Irregular
        header = _Header(*found)
        self._place += header.length
        if not (0 <= header.stored_size <= min(self._end - self._place, MOST_BYTES_OF_PAGE)):
            raise Irregular
        if not 0 <= header.size <= MOST_BYTES_OF_PAGE:
            raise Irregular
        most_values = min(self._values_left, MOST_BYTES_OF_PAGE // self._word.itemsize)
        if header.kind != _INDEX_PAGE and not 0 <= header.n_values <= most_values:
            raise Irregular
        stored = self._file.read(self._place, header.stored_size)
        self._place += header.stored_size
        return header, stored

    def _read_dictionary(self, header: _Header, stored: _Bytes) -> None:
        content = self._content(stored, header.size)
        size = header.n_values * self._word.itemsize
        is_first = self._dictionary is None and self._values_left == self._n_values
        if not is_first or header.encoding not in (_PLAIN, _PLAIN_DICTIONARY) or size > len(content):
            raise Irregular
        self._dictionary = content[:size].copy().view(self._word)

    def _values(self, header: _Header, stored: _Bytes) -> _Bytes:
        """The values of a page of data, once its levels are found regular."""
        if header.kind == _DATA_PAGE:
            content = self._content(stored, header.size)
            if (header.repetition_encoding, header.definition_encoding) != (_RLE, _RLE):
                raise Irregular
            repetition, content = _sized(content)
            definition, content = _sized(content)
        else:
            sizes = header.repetition_size, header.definition_size
            if min(sizes) < 0 or sum(sizes) > min(header.size, len(stored)):
                raise Irregular
            repetition, definition, content = np.split(stored, np.cumsum(sizes))
            content = self._content(content, header.size - sum(sizes), is_compressed=bool(header.is_compressed))
        before = -self._values_left % self.size
        if not _parquet.are_regular(
            repetition, definition, header.n_values, self.size, before, self._largest_definition
        ):
            raise Irregular
        self._values_left -= header.n_values
        size = header.n_values * self._word.itemsize
        if header.encoding == _PLAIN and size <= len(content):
            return content[:size]
        out = np.empty(header.n_values, self._word)
        if header.encoding == _BYTE_STREAM_SPLIT and size == len(content):
            _parquet.join_streams(content, out)
            return out.view(np.uint8)
        if header.encoding not in (_PLAIN_DICTIONARY, _RLE_DICTIONARY) or self._dictionary is None:
            raise Irregular
        if not _parquet.look_up(content, self._dictionary, out):
            raise Irregular
        return out.view(np.uint8)

    def _content(self, stored: _Bytes, size: int, is_compressed: bool = True) -> _Bytes:
        """Some bytes of a page, decompressed."""
        if self._codec is None or not is_compressed:
            if len(stored) != size:
                raise Irregular
            return stored
        # these two codecs do not tell when less comes out than was asked for
        claimed = {"snappy": _size_of_snappy, "gzip": _size_of_gzip}.get(self._compression)
        if claimed is not None and claimed(stored) != size:
            raise Irregular
        try:
            return np.frombuffer(self._codec.decompress(pa.py_buffer(stored), size), np.uint8)
        except (pa.ArrowException, OSError, ValueError):
            raise Irregular from None


def _sized(content: _Bytes) -> tuple[_Bytes, _Bytes]:
    """Bytes that come behind their number, and what follows them."""
    end = 4 + int.from_bytes(content[:4].tobytes(), "little")
    if end > len(content):
        raise Irregular
    return content[4:end], content[end:]


def _size_of_snappy(stored: _Bytes) -> int:
    """What compressed bytes say of their size: at their front, seven bits a byte, the lowest first."""
    size = 0
    for index, byte in enumerate(stored[:5].tolist()):
        size |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return size
    return -1


def _size_of_gzip(stored: _Bytes) -> int:
    """What compressed bytes say of their size, at their end."""
    return int.from_bytes(stored[-4:].tobytes(), "little")
