"""A kernel's machine code: the source line of each instruction, and the waits that the compiler has written into it.

What waits for what is in an instruction's control bits, which NVIDIA does not document; they are read as published
studies by microbenchmarks have found them: after how many cycles the next instruction may be issued, which of six
barriers the instruction's results or the reading of its operands clear, and for which barriers it waits.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.gpu.nvrtc import ROOT, compile_text, in_wheels, load_nvrtc

#: Where everything below a kernel is inlined, lines of these files say nothing of which part of it is at work.
_EVERYWHERE = {"lane.hpp", "math.hpp", "warps.cuh", "threads.cuh", "fit_memory.cuh", "train_memory.cuh"}

#: Barriers, and the number that stands for none.
BARRIERS, _NO_BARRIER = 6, 7

_PLACE = re.compile(r'"([^"]+)", line (\d+)')
_LABEL = re.compile(r"\s*(\.L_\w+|\$[\w$]+):")
_SECTION = re.compile(r"^\s*\.section", re.MULTILINE)
_FIRST = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x[0-9a-f]+ \*/")
_SECOND = re.compile(r"\s+/\* (0x[0-9a-f]+) \*/")
_PARTS = re.compile(r"(@!?U?P\w+ )?([A-Z0-9_.]+)")
_TARGET = re.compile(r"`\((\.L_\w+|\$[\w$]+)\)")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a kernel.

    Attributes
    ----------
    text : str
        As nvdisasm writes it.
    file, line
        Source, in csrc; ("", 0) before there is any.
    control : int
        Its control bits.
    """

    text: str
    file: str
    line: int
    control: int

    @cached_property
    def operation(self) -> str:
        """Name with its suffixes, such as LDS.128."""
        return self._parts[1]

    @cached_property
    def name(self) -> str:
        """Name alone."""
        return self.operation.split(".")[0]

    @property
    def predicate(self) -> str:
        """On which condition it is carried out; empty if on none."""
        return self._parts[0] or ""

    @cached_property
    def target(self) -> str | None:
        """Label that it may go to."""
        found = _TARGET.search(self.text)
        return found[1] if found else None

    @property
    def stall(self) -> int:
        """Cycles until the warp's next instruction may be issued."""
        return max(self.control & 15, 1)

    @property
    def cleared_by_result(self) -> int | None:
        """Barrier that is cleared when the result is there."""
        return self._barrier(5)

    @property
    def cleared_by_reading(self) -> int | None:
        """Barrier that is cleared when the operands have been read."""
        return self._barrier(8)

    @cached_property
    def waits(self) -> tuple[int, ...]:
        """Barriers that are waited for."""
        return tuple(barrier for barrier in range(BARRIERS) if self.control >> (11 + barrier) & 1)

    def _barrier(self, shift: int) -> int | None:
        barrier = self.control >> shift & 7
        return None if barrier == _NO_BARRIER else barrier

    @cached_property
    def _parts(self) -> tuple[str | None, str]:
        found = _PARTS.match(self.text)
        if found is None:
            raise ValueError(f"nvdisasm wrote an instruction that is not understood: {self.text}")
        return found[1], found[2]


@dataclass(frozen=True)
class MachineCode:
    """A kernel's instructions in their order, and by label the number of the one that follows it."""

    kernel: str
    instructions: list[Instruction]
    labels: dict[str, int]

    def is_of(self, number: int, text: str) -> bool:
        """Whether an instruction comes from a line in which that text begins; it may go on in the line below."""
        line, below = self.source_of(number)
        at = f"{line} {below}".find(text)
        return 0 <= at < len(line)

    def source_of(self, number: int) -> tuple[str, str]:
        """The line of text that an instruction comes from, and the one below it."""
        instruction = self.instructions[number]
        if not instruction.file:
            return "", ""
        lines = _lines_of(instruction.file)
        return lines[instruction.line - 1].strip(), "".join(lines[instruction.line : instruction.line + 1]).strip()


def listing_of(part: str, architecture: str = "sm_90") -> str:
    """Compile a file of csrc/cuda and return nvdisasm's listing of its kernels.

    Raises
    ------
    ImportError
        There is no NVRTC, or no nvdisasm.
    ValueError
        The text does not compile.
    """
    disassembler = _find_disassembler()
    flags = (f"-arch={architecture}", "-lineinfo")
    result, log, code = compile_text(load_nvrtc(), f'#include "cuda/{part}.cuh"\n', flags)
    if result != 0:
        raise ValueError(f"NVRTC failed on cuda/{part}.cuh:\n{log}")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [disassembler, "-hex", "-g", "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read_listing(listing: str, kernel: str) -> MachineCode:
    """Return the code of one of the kernels in what ``nvdisasm -hex -g -c`` has written.

    Raises
    ------
    ValueError
        It is not there, or not understood.
    """
    start = listing.find(f".text.{kernel}:")
    if start < 0:
        raise ValueError(f"no kernel {kernel} in the listing")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    file, line, text = "", 0, ""
    for row in _rows_of_section(listing, start):
        if found := _LABEL.match(row):
            labels[found[1]] = len(instructions)
        elif "//## File" in row:
            for found in _PLACE.finditer(row):
                path = Path(found[1])
                if path.name not in _EVERYWHERE and "csrc" in path.parts:
                    file, line = "/".join(path.parts[-2:]), int(found[2])
        elif found := _FIRST.match(row):
            text = found[2]
        elif text and (found := _SECOND.match(row)):
            control = int(found[1], 16) >> 41 & 0x1FFFFF
            instructions.append(Instruction(text, file, line, control))
            text = ""
    if not instructions:
        raise ValueError(f"no instruction of {kernel} in the listing")
    return MachineCode(kernel, instructions, labels)


def _rows_of_section(listing: str, start: int) -> Iterator[str]:
    end = _SECTION.search(listing, start)
    yield from listing[start : end.start() if end else len(listing)].splitlines()[1:]


_lines: dict[str, list[str]] = {}


def _lines_of(file: str) -> list[str]:
    if file not in _lines:
        _lines[file] = (ROOT / "csrc" / file).read_text().splitlines()
    return _lines[file]


def _find_disassembler() -> str:
    found = shutil.which("nvdisasm") or next(map(str, in_wheels("bin/nvdisasm")), None)
    if found is None:
        raise ImportError("no nvdisasm: pip install nvidia-cuda-nvdisasm, or have CUDA's on PATH")
    return found
