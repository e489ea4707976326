"""Streaming reader of XP spectra in text: csv, plain or gzipped, with an ECSV header or without.

Text is decompressed in pieces, the compiled parser turns its lines into rows of numbers, and a block of rows is
handed on as soon as it is full: memory does not grow with the file. Columns are found by their names in the header
line; lines before it that start with ``#`` (ECSV) are skipped. Fields are separated by commas, tabs or spaces.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import BinaryIO

import numpy as np
from isal import igzip_lib

from xpkern.errors import InputError
from xpkern.observe import _csv
from xpkern.observe.calibration import Calibration
from xpkern.observe.text import GZIP_MAGIC, column_names, refuse_repeated, units_of_ecsv
from xpkern.observe.xp_block import SpectrumTable, XpBlock, first_rows, missing_columns, other_calibration

#: Bytes of gzip read at a time, and of text at most at a time, made of them or read: some 20 rows. Fewer cost more
#: calls, each of which moves the line that the one before broke off in.
PIECE, TEXT_PIECE = 1 << 18, 800_000

#: No line of a csv file is that long; a file that holds one is something else.
LONGEST_LINE = 1 << 22

#: What is said of a file whose first line has no column that is known.
_NO_FORMAT = (
    "there is no column source_id, nor any other of a table of spectra: this is none of the formats that are read (csv "
    "with commas, tabs or spaces between its fields, ECSV, VOTable, FITS, HDF5, Parquet, AVRO)"
)


def read_text(
    pieces: Iterator[bytes],
    file: str,
    calibration: Calibration,
    *,
    rows: int,
    need_standard_deviation: bool,
    units: Mapping[str, str] | None = None,
) -> Generator[XpBlock, None, None]:
    """Read a table of spectra from its text.

    Parameters
    ----------
    pieces : iterator of bytes
        Of any lengths; may raise InputError where the text breaks off.
    file, calibration, rows, need_standard_deviation
        As :func:`xpkern.observe.spectra.read_blocks`, which tells what is yielded and raised.
    units : mapping of str to str, optional
        Of its columns; those of its ECSV header when not given.
    """
    text = _Text(pieces, file)
    comments, names, separator = text.read_header()
    header = [name.lower() for name in names]
    table = SpectrumTable.of(header, calibration)
    if table.known_columns.isdisjoint(header):
        raise InputError(_NO_FORMAT, file=file, field="source_id")
    refuse_repeated(sorted(table.known_columns), names, file)
    if table.is_sampled:
        table = table.in_units(units_of_ecsv(comments) if units is None else units, file)
        parser = _csv.RowParser.of_sampled(header, separator=separator, n_samples=table.bands[0].n_coefficients)
    else:
        parser = _csv.RowParser(
            header,
            separator=separator,
            n_bp=calibration.n_bp,
            n_rp=calibration.n_rp,
            bp_basis_function_id=calibration.bp_basis_function_id,
            rp_basis_function_id=calibration.rp_basis_function_id,
        )
    if missing := parser.missing_columns():
        raise missing_columns(missing, names, table, file)

    rows_before, more_text = 0, True
    broken: InputError | None = None
    while more_text:
        block = _Block(table, header, rows)
        while block.filled < rows and more_text:
            block.parse(parser, text)
            if block.filled < rows:
                try:
                    more_text = text.extend()
                except InputError as error:
                    broken, more_text = error, False
        if rows_before == 0:
            block.refuse_other_calibration(file, calibration.release)
        if block.filled:
            yield block.finish(file, rows_before, need_standard_deviation)
            rows_before += block.filled
    if broken is not None:
        raise InputError(broken.message, file=file, row=rows_before + 1) from broken


class _Block:
    """Arrays of ``capacity`` rows and what the parser has filled of them."""

    def __init__(self, table: SpectrumTable, header: list[str], capacity: int) -> None:
        self.table, self.header = table, header
        self.filled = 0
        self.problems: list[tuple[int, int, bool, str]] = []
        self.source_id = np.empty(capacity, np.int64)
        self.bad = np.empty(capacity, np.bool_)
        self.arrays = table.empty_arrays(capacity)

    def parse(self, parser: _csv.RowParser, text: _Text) -> None:
        """Fill rows from the whole lines of the window."""
        c = self.arrays
        text.begin, self.filled, problems = parser.parse(
            text.buffer,
            text.begin,
            text.end,
            self.filled,
            self.source_id,
            self.bad,
            (c.bp, c.bp_error, c.bp_correlation, c.bp_standard_deviation, c.has_bp),
            (c.rp, c.rp_error, c.rp_correlation, c.rp_standard_deviation, c.has_rp),
        )
        self.problems += problems

    def refuse_other_calibration(self, file: str, release: str) -> None:
        """Raise if no row at all is for this calibration: the file is of another release, not damaged."""
        if self.filled == 0 or sum(other for _, _, other, _ in self.problems) < self.filled:
            return
        row, column, _, message = self.problems[0]
        raise other_calibration(message, release, self.filled, file=file, row=row + 1, field=self.header[column])

    def finish(self, file: str, rows_before: int, need_standard_deviation: bool) -> XpBlock:
        """Return the filled rows, with the problems in words."""
        n = self.filled
        return self.table.block(
            file,
            rows_before,
            self.source_id[:n],
            first_rows(self.arrays, n),
            self.bad[:n],
            [(row, "" if column < 0 else self.header[column], message) for row, column, _, message in self.problems],
            need_standard_deviation=need_standard_deviation,
        )


class _Text:
    """The text of a file as a window ``buffer[begin:end]`` that moves along it."""

    def __init__(self, pieces: Iterator[bytes], file: str) -> None:
        self._pieces = pieces
        self._file = file
        self._ended = False
        self.begin = self.end = 0
        self._allocate(2 * TEXT_PIECE)

    def _allocate(self, size: int) -> None:
        self._bytes = bytearray(size)
        self.buffer = np.frombuffer(self._bytes, np.uint8)

    def extend(self) -> bool:
        """Add a piece to the end of the window; False at the end of the file.

        Raises
        ------
        InputError
            If the next piece cannot be decompressed, or a line is longer than any csv line.
        """
        if self._ended:
            return False
        kept = self._bytes[self.begin : self.end]
        if len(kept) > LONGEST_LINE:
            raise InputError(f"no line end within {LONGEST_LINE} bytes: not a csv file", file=self._file)
        piece = next(self._pieces, None)
        if piece is None:
            self._ended = True
            if not kept:
                return False
            piece = b"\n"  # the last line may lack it
        size = len(kept) + len(piece)
        if size + _csv.SLACK > len(self._bytes):
            self._allocate(2 * size + _csv.SLACK)
        self._bytes[: len(kept)] = kept
        self._bytes[len(kept) : size] = piece
        self.begin, self.end = 0, size
        return True

    def read_line(self) -> str | None:
        """Take a line off the window, or None at the end of the file."""
        while (line_feed := self._bytes.find(b"\n", self.begin, self.end)) < 0:
            if not self.extend():
                return None
        line = self._bytes[self.begin : line_feed].decode("utf-8", errors="replace")
        self.begin = line_feed + 1
        return line.removesuffix("\r")

    def read_header(self) -> tuple[list[str], list[str], str]:
        """Take the comments and the header line off the window.

        Returns
        -------
        comments : list of str
            Without their sign; no more of them than a line may have bytes.
        names : list of str
            Of the columns.
        separator : str
        """
        comments: list[str] = []
        most = LONGEST_LINE
        while (line := self.read_line()) is not None:
            line = line.removeprefix("\ufeff")
            if line.strip() and not line.startswith("#"):
                return comments, *column_names(line)
            most -= len(line) + 1
            if line.startswith("#") and most > 0:
                comments.append(line[1:])
        raise InputError("the file holds no header line", file=self._file)


def lines_with(pieces: Iterator[bytes], number: int) -> Iterator[bytes]:
    """Pass on, of the text of a table, what stands before its rows and the rows in whose text a number occurs.

    That is all that decompression leaves to do where one source of a file is wanted.
    """
    needle, kept, in_header = str(number).encode(), b"", True
    for piece in pieces:
        kept += piece
        while in_header and (end := kept.find(b"\n") + 1) > 0:
            line, kept = kept[:end], kept[end:]
            in_header = not line.strip() or line.lstrip(b"\xef\xbb\xbf").startswith(b"#")
            yield line
        if in_header or len(kept) > LONGEST_LINE:  # what has no line ends is not text: whoever reads it says so
            continue
        end = kept.rfind(b"\n") + 1
        lines, kept = kept[:end], kept[end:]
        at = lines.find(needle)
        while at >= 0:
            end = lines.find(b"\n", at) + 1
            yield lines[lines.rfind(b"\n", 0, at) + 1 : end]
            at = lines.find(needle, end)
    if in_header or needle in kept or len(kept) > LONGEST_LINE:
        yield kept


def decompressed(piece: bytes, stream: BinaryIO, file: str) -> Iterator[bytes]:
    """Yield the bytes of a file that begins with ``piece``, decompressed if it is gzip (of one or several members)."""
    if not piece.startswith(GZIP_MAGIC):
        if piece and file.endswith(".gz"):
            raise InputError("not a gzip file", file=file)
        while piece:
            yield piece
            piece = stream.read(TEXT_PIECE)
        return
    decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    while piece:
        if decompressor.eof:
            if not GZIP_MAGIC.startswith(piece[:2]):
                raise InputError("the gzip data are followed by something else", file=file)
            decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        try:
            text = decompressor.decompress(piece, TEXT_PIECE)
            while not (decompressor.eof or decompressor.needs_input):
                yield text
                text = decompressor.decompress(b"", TEXT_PIECE)
        except igzip_lib.error as error:  # type: ignore[misc]  # its stub calls it an instance
            raise InputError(f"the gzip data are corrupt ({error})", file=file) from error
        yield text
        # between and behind members there may be zeros
        piece = decompressor.unused_data.lstrip(b"\0") if decompressor.eof else b""
        while not piece and (piece := stream.read(PIECE)) and decompressor.eof:
            piece = piece.lstrip(b"\0")
    if not decompressor.eof:
        raise InputError("the gzip data end too early", file=file)
