"""One star out of Gaia's files: which of them can have it, and its row."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from xpkern.engine.contract import Coefficients
from xpkern.errors import InputError
from xpkern.observe.observations import Observations
from xpkern.observe.read import XpReader
from xpkern.observe.source_position import pixel_of
from xpkern.observe.spectra import read_blocks
from xpkern.observe.xp_block import XpBlock

#: The archive's files carry the first and the last HEALPix pixel of level 8 of their sources in their names:
#: ``XpContinuousMeanSpectrum_000000-003111.csv.gz``.
_RANGE, RANGE_LEVEL = re.compile(r"_(\d{6})-(\d{6})(?=\.)"), 8


def files_that_may_have(source_id: int, files: Sequence[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """Files whose names say that they have the source's pixel; behind these, those whose names do not tell."""
    pixel = int(pixel_of(np.array([source_id]), RANGE_LEVEL)[0])
    named, others = [], []
    for file in files:
        ends = _RANGE.search(Path(file).name)
        if ends is None:
            others.append(file)
        elif int(ends[1]) <= pixel <= int(ends[2]):
            named.append(file)
    return [*named, *others]


def read_star(source_id: int, paths: Sequence[str | os.PathLike[str]], **options: Any) -> Observations:
    """Read the spectrum of one source, and what tables know of it.

    Parameters
    ----------
    source_id : int
    paths : sequence of path-like
        Files of spectra. Those of the archive whose names exclude the source are not opened.
    options
        Keywords of :func:`xpkern.read_xp`, from ``gaia_source`` on.

    Returns
    -------
    Observations
        One star: the first row of the first file that has it.

    Raises
    ------
    InputError
        If no file has the source, or as :func:`xpkern.read_xp`.
    """
    if source_id <= 0:
        raise InputError(f"{source_id} is no identifier of Gaia's", field="source_id")
    candidates = files_that_may_have(source_id, paths)
    if not candidates:
        pixel = int(pixel_of(np.array([source_id]), RANGE_LEVEL)[0])
        message = f"{source_id} lies in pixel {pixel:06d}, which the names of all {len(paths)} files exclude"
        raise InputError(message, field="source_id")
    threads = options.pop("threads", None)
    reader = XpReader(candidates, **options)
    for file in reader.files:
        needs_deviation = reader.noise.sigma == "zgr23"
        blocks = read_blocks(file, reader.calibration, need_standard_deviation=needs_deviation, source_id=source_id)
        with contextlib.closing(blocks):
            for block in blocks:
                rows = np.flatnonzero(block.source_id == source_id)
                if len(rows):
                    return reader.observe(_row(block, int(rows[0])), threads=threads)
    searched = ", ".join(Path(file).name for file in candidates[:3]) + (", ..." if len(candidates) > 3 else "")
    left = len(paths) - len(candidates)
    others = f"; the names of {left} others exclude it" if left else ""
    raise InputError(f"{source_id} is in none of the files of spectra: {searched}{others}", field="source_id")


def _row(block: XpBlock, row: int) -> XpBlock:
    """A block of one row of another one."""
    one = slice(row, row + 1)
    coefficients = {each.name: getattr(block.coefficients, each.name)[one] for each in fields(Coefficients)}
    return replace(
        block,
        source_id=block.source_id[one],
        coefficients=Coefficients(**coefficients),
        bad=block.bad[one],
        reasons=[reason for reason in block.reasons if reason[0] == int(block.source_id[row])],
        missing=None if block.missing is None else block.missing[one],
        repeated=block.repeated[one],
    )
