"""Streaming reader of Gaia's ``xp_continuous_mean_spectrum`` csv files, plain or gzipped.

Text is decompressed in pieces, the compiled parser turns its lines into rows of numbers, and a block of rows is
handed on as soon as it is full: memory does not grow with the file. Columns are found by their names in the header
line; lines before it that start with ``#`` (ECSV) are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
from isal import igzip_lib
from numpy.typing import NDArray

from xpkern.engine.contract import Coefficients, Float32
from xpkern.errors import InputError
from xpkern.observe import _csv
from xpkern.observe.calibration import Calibration

#: Rows of a block: 14 MB of numbers. Many enough that the work on them outweighs the overhead of a block, few enough
#: that every thread can have a block of its own.
BLOCK_ROWS = 1024

#: Bytes read at a time, and bytes of text made of them at a time. One piece of gzip becomes some 80 kB of text, which
#: the cache of the core still holds when it is parsed; for less than 128 kB, the C library does not ask the system for
#: new memory each time.
PIECE, TEXT_PIECE = 1 << 15, 120_000

#: No line of a csv file is that long; a file that holds one is something else.
LONGEST_LINE = 1 << 22

_GZIP_MAGIC = b"\x1f\x8b"


@dataclass
class XpBlock:
    """Some rows of a file, in its order.

    Attributes
    ----------
    source_id : (n,) int64
        -1 where it cannot be read.
    coefficients : Coefficients
        Of n stars.
    bad : (n,) bool
        Rows that cannot be used; they have neither BP nor RP.
    reasons : list of (source_id, row, field, message)
        What is wrong with each bad row. Rows count from 1 after the header; the message begins with the file's name.
    """

    source_id: NDArray[np.int64]
    coefficients: Coefficients
    bad: NDArray[np.bool_]
    reasons: list[tuple[int, int, str, str]]

    def __len__(self) -> int:
        return len(self.source_id)


def read_blocks(
    path: str | Path, calibration: Calibration, *, rows: int = BLOCK_ROWS, need_standard_deviation: bool = False
) -> Generator[XpBlock, None, None]:
    """Read a file block by block.

    Parameters
    ----------
    path : str or Path
        Csv file; gzip is recognised by its first bytes.
    calibration : Calibration
        Says how many coefficients each band has and to which basis functions they belong.
    rows : int
        Rows of each block but the last.
    need_standard_deviation : bool
        Whether a row without the archive's standard deviation is bad; otherwise it counts as 1.

    Yields
    ------
    XpBlock
        A row that makes no sense is marked in its block and does not stop the reading.

    Raises
    ------
    InputError
        If the file cannot be opened, is empty, lacks a column, holds a line that never ends, or if none of the rows
        of its first block belongs to the calibration. If the gzip data break off or are corrupt, then *after* the
        blocks of every complete row before the break have been yielded; the error names the row reached.
    """
    try:
        with open(path, "rb", buffering=0) as stream:
            yield from _read_stream(stream, str(path), calibration, rows, need_standard_deviation)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", file=str(path)) from error


def _read_stream(
    stream: BinaryIO, file: str, calibration: Calibration, rows: int, need_standard_deviation: bool
) -> Generator[XpBlock, None, None]:
    text = _Text(_pieces(stream, file), file)
    header = text.read_header()
    parser = _csv.RowParser(
        header,
        n_bp=calibration.n_bp,
        n_rp=calibration.n_rp,
        bp_basis_function_id=calibration.bp_basis_function_id,
        rp_basis_function_id=calibration.rp_basis_function_id,
    )
    if missing := parser.missing_columns():
        raise InputError(f"the header has no column {', '.join(missing)}", file=file, field=missing[0])

    rows_before, more_text = 0, True
    broken: InputError | None = None
    while more_text:
        block = _Block(calibration, rows)
        while block.filled < rows and more_text:
            block.parse(parser, text)
            if block.filled < rows:
                try:
                    more_text = text.extend()
                except InputError as error:
                    broken, more_text = error, False
        if rows_before == 0:
            block.refuse_other_calibration(header, file, calibration.release)
        if block.filled:
            yield block.finish(header, file, rows_before, need_standard_deviation)
            rows_before += block.filled
    if broken is not None:
        raise InputError(broken.message, file=file, row=rows_before + 1) from broken


class _Block:
    """Arrays of ``capacity`` rows and what the parser has filled of them."""

    def __init__(self, calibration: Calibration, capacity: int) -> None:
        self.filled = 0
        self.problems: list[tuple[int, int, bool, str]] = []
        self.source_id = np.empty(capacity, np.int64)
        self.bad = np.empty(capacity, np.bool_)

        def rows_of(columns: int) -> Float32:
            return np.empty((capacity, columns), np.float32)

        n_bp, n_rp = calibration.n_bp, calibration.n_rp
        self.coefficients = Coefficients(
            bp=np.empty((capacity, n_bp)),
            rp=np.empty((capacity, n_rp)),
            bp_error=rows_of(n_bp),
            rp_error=rows_of(n_rp),
            bp_correlation=rows_of(n_bp * (n_bp - 1) // 2),
            rp_correlation=rows_of(n_rp * (n_rp - 1) // 2),
            bp_standard_deviation=np.empty(capacity, np.float32),
            rp_standard_deviation=np.empty(capacity, np.float32),
            has_bp=np.empty(capacity, np.bool_),
            has_rp=np.empty(capacity, np.bool_),
        )

    def parse(self, parser: _csv.RowParser, text: _Text) -> None:
        """Fill rows from the whole lines of the window."""
        c = self.coefficients
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

    def refuse_other_calibration(self, header: list[str], file: str, release: str) -> None:
        """Raise if no row at all is for this calibration: the file is of another release, not damaged."""
        if self.filled == 0 or sum(other for _, _, other, _ in self.problems) < self.filled:
            return
        row, column, _, message = self.problems[0]
        raise InputError(
            f"{message} ({release}); no row of the first {self.filled} fits",
            file=file,
            row=row + 1,
            field=header[column],
        )

    def finish(self, header: list[str], file: str, rows_before: int, need_standard_deviation: bool) -> XpBlock:
        """Return the filled rows, with the problems in words."""
        n, name = self.filled, os.path.basename(file)
        c = Coefficients(**{f.name: getattr(self.coefficients, f.name)[:n] for f in fields(Coefficients)})
        bad = self.bad[:n]
        problems = [(row, "" if column < 0 else header[column], message) for row, column, _, message in self.problems]
        for prefix, present, deviation in (
            ("bp", c.has_bp, c.bp_standard_deviation),
            ("rp", c.has_rp, c.rp_standard_deviation),
        ):
            unknown = np.isnan(deviation)
            if need_standard_deviation:
                for row in np.flatnonzero(unknown & present & ~bad).tolist():
                    bad[row] = True
                    problems.append((row, f"{prefix}_standard_deviation", "empty, but the noise model needs it"))
            deviation[unknown] = 1.0
        c.has_bp[bad] = c.has_rp[bad] = False
        return XpBlock(
            source_id=self.source_id[:n],
            coefficients=c,
            bad=bad,
            reasons=[
                (int(self.source_id[row]), rows_before + row + 1, field, f"{name}: {message}")
                for row, field, message in problems
            ],
        )


class _Text:
    """The text of a file as a window ``buffer[begin:end]`` that moves along it."""

    def __init__(self, pieces: Iterator[bytes], file: str) -> None:
        self._pieces = pieces
        self._file = file
        self._ended = False
        self.begin = self.end = 0
        self._allocate(4 * PIECE)

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

    def read_header(self) -> list[str]:
        """Take the comments and the header line off the window and return the names of the columns."""
        while (line := self.read_line()) is not None:
            line = line.removeprefix("\ufeff")
            if line.strip() and not line.startswith("#"):
                return [name.strip().strip('"').lower() for name in line.split(",")]
        raise InputError("the file holds no header line", file=self._file)


def _pieces(stream: BinaryIO, file: str) -> Iterator[bytes]:
    """Yield the text of a file, decompressed if it is gzip (of one or several members)."""
    piece = stream.read(PIECE)
    if not piece.startswith(_GZIP_MAGIC):
        if piece and file.endswith(".gz"):
            raise InputError("not a gzip file", file=file)
        while piece:
            yield piece
            piece = stream.read(PIECE)
        return
    decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    while piece:
        if decompressor.eof:
            if not _GZIP_MAGIC.startswith(piece[:2]):
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
