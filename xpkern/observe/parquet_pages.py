"""Lists of one length in Parquet, taken from the pages of a file as they lie there.

Arrow decodes two levels with each number of a list, which takes longer than all else that is done with it. Where every
list of a row group has the same length and nothing is missing, the levels only have to be compared with that pattern
(csrc/cpu/parquet_page.hpp), and the numbers are what lies behind them: pages are read or unpacked to where their
numbers are wanted. Whatever is not like that, unusual or damaged, is :class:`Irregular` and left to Arrow.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import cramjam
import numpy as np
from isal import isal_zlib
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

_DATA_PAGE, _INDEX_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_2 = range(4)
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY, _BYTE_STREAM_SPLIT = 0, 2, 3, 8, 9

_Bytes = NDArray[np.uint8]

#: What stands before a number of 32 bits that is the next field of a structure.
_NEXT_FIELD_IS_INTEGER = 0x15


def _inflate(stored: _Bytes, content: _Bytes) -> int:
    """Unpack gzip; return how many bytes there are, or that there are more."""
    stream = isal_zlib.decompressobj(isal_zlib.MAX_WBITS | 16)
    found = stream.decompress(stored, len(content) + 1)
    if not stream.eof or len(found) > len(content):
        return len(content) + 1
    content[: len(found)] = np.frombuffer(found, np.uint8)
    return len(found)


#: How pages may be compressed, as Parquet counts it; each function tells how many bytes it has unpacked.
_UNPACK: dict[int, Callable[[Any, Any], int] | None] = {
    0: None,
    1: cramjam.snappy.decompress_raw_into,
    2: _inflate,
    6: cramjam.zstd.decompress_into,
}


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


class _Room(NamedTuple):
    """Where numbers are wanted: behind those that are there."""

    target: _Bytes
    filled: int

    def take(self, size: int, before: int = 0) -> _Bytes:
        """So many bytes, with some before them that are only borrowed; elsewhere, if they do not fit in here."""
        first, end = self.filled - before, self.filled + size
        return self.target[first:end] if first >= 0 and end <= len(self.target) else np.empty(end - first, np.uint8)


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

    def read_into(self, place: int, target: _Bytes) -> None:
        """Fill an array (size,) with bytes; raises :class:`Irregular` where the file does not have them all."""
        if self._file is None:
            target[:] = self.read(place, len(target))
            return
        while len(target):
            try:
                count = os.preadv(self._file, [target.data], place)
            except (OSError, OverflowError):
                raise Irregular from None
            if not count:
                raise Irregular
            place, target = place + count, target[count:]

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
            and chunk.codec in _UNPACK
            and not chunk.is_elsewhere
            and column.max_repetition_level == 1
            and 1 <= self._largest_definition <= 3
            and 0 <= self._place <= self._end
        )
        if not is_usual or n_rows < 1 or chunk.n_values < 1 or chunk.n_values % n_rows:
            raise Irregular
        self.size = chunk.n_values // n_rows
        self.dtype, self._word = _TYPES[chunk.type]
        self._unpack = _UNPACK[chunk.codec]
        self._dictionary: NDArray | None = None
        self._waiting = np.empty(0, np.uint8)

    def fill(self, lists: NDArray[np.floating[Any]]) -> int:
        """Take lists for an array (n, size) of this type; return how many of its rows are filled.

        These are all, unless a page is of another kind, and then nothing can be taken any more.
        """
        target = lists.reshape(-1).view(np.uint8)
        filled = 0
        while filled < len(target):
            if not len(self._waiting):
                try:
                    self._waiting = self._next_values(_Room(target, filled))
                except Irregular:
                    break
            piece = self._waiting[: len(target) - filled]
            target[filled : filled + len(piece)] = piece  # NumPy sees it, and moves nothing, where it is there already
            self._waiting = self._waiting[len(piece) :]
            filled += len(piece)
        return filled // (self.size * self.dtype.itemsize)

    def _next_values(self, room: _Room) -> _Bytes:
        """The values of the next page that has any, as bytes."""
        while True:
            header = self._next_header()
            place = self._place
            self._place += header.stored_size
            if header.kind == _DICTIONARY_PAGE:
                self._read_dictionary(header, place)
            elif header.kind != _INDEX_PAGE and header.n_values:
                return self._values(header, place, room)

    def _next_header(self) -> _Header:
        """The header of the next page, which begins behind it and is what its checksum says, if it has one."""
        front = self._file.read(self._place, min(MOST_BYTES_OF_HEADER, self._end - self._place))
        found = _parquet.page_header(front)
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
        checksum = _checksum(front[: header.length].tobytes())
        if checksum is not None and checksum != isal_zlib.crc32(self._file.read(self._place, header.stored_size)):
            raise Irregular  # Arrow finds so, too, and says it
        return header

    def _read_dictionary(self, header: _Header, place: int) -> None:
        content = np.empty(header.size, np.uint8)
        self._read_content(place, header.stored_size, content)
        size = header.n_values * self._word.itemsize
        is_first = self._dictionary is None and self._values_left == self._n_values
        if not is_first or header.encoding not in (_PLAIN, _PLAIN_DICTIONARY) or size > len(content):
            raise Irregular
        self._dictionary = content[:size].copy().view(self._word)

    def _values(self, header: _Header, place: int, room: _Room) -> _Bytes:
        """The values of a page of data, in their room where they fit, once its levels are found regular."""
        are_levels_apart = header.kind != _DATA_PAGE
        sizes = (header.repetition_size, header.definition_size) if are_levels_apart else (0, 0)
        n_apart = sum(sizes)
        if min(sizes) < 0 or n_apart > min(header.size, header.stored_size):
            raise Irregular
        apart = self._file.read(place, n_apart)
        is_plain = header.encoding == _PLAIN
        size = header.n_values * self._word.itemsize
        n_before = header.size - n_apart - size if is_plain else 0
        if n_before < 0:
            raise Irregular
        content = room.take(size, n_before) if is_plain else np.empty(header.size - n_apart, np.uint8)
        covered = content[:n_before].copy()
        try:
            is_packed = not are_levels_apart or bool(header.is_compressed)
            self._read_content(place + n_apart, header.stored_size - n_apart, content, is_packed)
            if are_levels_apart:
                repetition, definition, values = apart[: sizes[0]], apart[sizes[0] :], content
            elif (header.repetition_encoding, header.definition_encoding) == (_RLE, _RLE):
                repetition, values = _sized(content)
                definition, values = _sized(values)
            else:
                raise Irregular
            before = -self._values_left % self.size
            if not _parquet.are_regular(
                repetition, definition, header.n_values, self.size, before, self._largest_definition
            ):
                raise Irregular
        finally:
            content[:n_before] = covered
        self._values_left -= header.n_values
        if is_plain:
            if len(values) != size:
                raise Irregular
            return values
        out = room.take(size)
        if not self._decode(header.encoding, values, out.view(self._word)):
            raise Irregular
        return out

    def _decode(self, encoding: int, values: _Bytes, out: NDArray[Any]) -> bool:
        """Values that are not plain; return whether they could be read."""
        if encoding == _BYTE_STREAM_SPLIT and len(values) == out.nbytes:
            _parquet.join_streams(values, out)
            return True
        if encoding not in (_PLAIN_DICTIONARY, _RLE_DICTIONARY) or self._dictionary is None:
            return False
        return _parquet.look_up(values, self._dictionary, out)

    def _read_content(self, place: int, stored_size: int, content: _Bytes, is_packed: bool = True) -> None:
        """Read some bytes of a page, and unpack them."""
        if self._unpack is None or not is_packed:
            if stored_size != len(content):
                raise Irregular
            self._file.read_into(place, content)
            return
        try:
            size = self._unpack(self._file.read(place, stored_size), content)
        except (cramjam.DecompressionError, isal_zlib.error):  # type: ignore[misc] # the latter is declared an instance
            raise Irregular from None
        if size != len(content):
            raise Irregular


def _checksum(header: bytes) -> int | None:
    """The CRC-32 in the header of a page: the fourth of the numbers at its front, if there are so many.

    Those before it, kind and sizes, are in every header. Each is stored seven bits a byte, its sign in the lowest bit.
    """
    number = place = 0
    for _ in range(4):
        if header[place] != _NEXT_FIELD_IS_INTEGER:
            return None
        number = shift = 0
        more = True
        while more:
            place += 1
            number |= (header[place] & 0x7F) << shift
            shift, more = shift + 7, header[place] >= 0x80
        place += 1
    return ((number >> 1) ^ -(number & 1)) & 0xFFFFFFFF


def _sized(content: _Bytes) -> tuple[_Bytes, _Bytes]:
    """Bytes that come behind their number, and what follows them."""
    end = 4 + int.from_bytes(content[:4].tobytes(), "little")
    if end > len(content):
        raise Irregular
    return content[4:end], content[end:]
