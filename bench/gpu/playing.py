"""Plays a stretch of a kernel by the waits in its machine code, on one processor of a GPU that is not there.

Four schedulers issue one instruction a cycle each, with as many warps as the kernel has there. How long an instruction
holds up the next one, and which results are waited for, is in the code; how long results take is assumed (`LATENCY`),
and so is how long units are busy (`UNITS`: the throughputs of the CUDA programming guide for compute capability 9.0).
What instructions themselves take to arrive, and what other processors do to memory, is not in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.gpu.machine_code import BARRIERS, Instruction, MachineCode

#: Of a processor.
SCHEDULERS = 4

#: Cycles until a result is there, of instructions whose results are waited for by barriers.
LATENCY = {
    **{"LDS": 30, "SHFL": 25, "STS": 20, "LDL": 40, "STL": 20, "LDC": 40, "STG": 20},
    **{"ATOMG": 600, "F2F": 24, "I2F": 24, "F2I": 24, "MUFU": 24, "DMMA": 34, "DFMA": 9, "DADD": 9, "DMUL": 9},
    **{"S2R": 30, "S2UR": 30, "R2UR": 15, "POPC": 20},
}
_LATENCY_OF_OTHERS = 12

#: Of loads of global memory: what an evaluation reads over and over is in the first-level cache; a star's rows, which
#: have been asked for, are in the second-level one.
NEAR, ASKED_FOR = 45, 350

#: More of them where a load has 16 bytes a lane; until operands have been read; of a copy to shared memory, which a
#: wait for all copies waits for.
_MORE_OF_WIDE, _READING, _COPY = 6, 14, 650

#: Cycles for which instructions hold up the next one that do not say so: a barrier of the block, and one that lets
#: everyone see what has been written, which has to get to the second-level cache and back.
_HELD = {"BAR": 30, "MEMBAR": 600}

#: Unit and the cycles that an instruction of a warp keeps it busy. All schedulers share `memory`; of the others each
#: has its own.
UNITS = {
    **dict.fromkeys(("DFMA", "DADD", "DMUL", "DSETP"), ("double", 2)),
    **dict.fromkeys(("MUFU", "F2F"), ("special", 8)),
    **dict.fromkeys(("I2F", "F2I", "POPC"), ("special", 4)),
    **dict.fromkeys(("IADD3", "LOP3", "SHF", "LEA", "ISETP", "SEL", "FSEL", "FSETP", "FMNMX", "PRMT"), ("integer", 2)),
    **dict.fromkeys(("VIADD", "VIMNMX", "PLOP3"), ("integer", 2)),
    "IMAD": ("multiply", 2),
    **dict.fromkeys(("LDS", "STS", "LDG", "STG", "LD", "ST", "SHFL", "ATOMG", "LDGSTS", "LDL", "STL"), ("memory", 1)),
}
_MEMORY = "memory"

#: Cycles for a product of tiles, 8 by 8 by 4; an instruction has 1 to 8. The result of more than two comes later by
#: as much as the unit is busy for the others.
_OF_TILE = 8
_SHAPE = re.compile(r"^\S*DMMA\.(\d+)x8x(\d+)")

#: Furthest that a jump over a call may go that is there for rare operands.
_RARE = 12

#: A route that is longer than this many instructions has lost its way.
_TOO_LONG = 50_000


@dataclass(frozen=True)
class Route:
    """A stretch of a kernel.

    Attributes
    ----------
    name, part, kernel : str
        What it is, and where: a file of csrc/cuda and a kernel in it.
    warps : int
        Of one scheduler.
    loop : str
        A pass of the longest endless loop whose last line is in that file, instead of the kernel from its beginning.
    begins, ends : str
        From the first instruction of a line with that text, and until the first one after it of another.
    jumps : tuple of str
        Lines whose conditional jumps forward are taken, a line once for each time that it is given; others are not, but
        for those over calls for rare operands.
    passes : dict
        How often the loop is passed that ends in a line with that text.
    load : int
        Cycles until a load of global memory is there.
    """

    name: str
    part: str
    kernel: str
    warps: int
    loop: str = ""
    begins: str = ""
    ends: str = ""
    jumps: tuple[str, ...] = ()
    passes: dict[str, int] = field(default_factory=dict)
    load: int = ASKED_FOR


class LostError(ValueError):
    """A route does not say where to go, or speaks of what is not there."""


def follow(code: MachineCode, route: Route) -> list[Instruction]:
    """Return a route's instructions in the order in which a warp passes them.

    Raises
    ------
    LostError
        Of a loop the route does not say how often, it speaks of a jump that is not on its way, or it does not end.
    """
    start, end = _ends_of(code, route)
    passed: list[Instruction] = []
    met: Counter[str] = Counter()
    returns: list[int] = []
    loops: Counter[int] = Counter()
    at = start
    while at != end and at < len(code.instructions):
        instruction = code.instructions[at]
        passed.append(instruction)
        if len(passed) > _TOO_LONG:
            raise LostError(f"{route.name}: no end after {_TOO_LONG:,} instructions")
        if instruction.name == "EXIT" and not instruction.predicate:
            break
        if instruction.name == "CALL":
            returns.append(at + 1)
            at = _place_of(code, instruction)
        elif instruction.name == "RET":
            if not returns:
                break
            at = returns.pop()
        elif instruction.operation == "BRA" and _is_taken(code, route, at, loops, met):
            at = _place_of(code, instruction)
        else:
            at += 1
    if missed := {
        text for text in (*route.jumps, *route.passes) if met[text] < route.jumps.count(text) or not met[text]
    }:
        raise LostError(f"{route.name}: nothing on the way is of a line with {', '.join(map(repr, sorted(missed)))}")
    return passed


def _ends_of(code: MachineCode, route: Route) -> tuple[int, int]:
    if route.loop:
        # behind the last way out is what lanes do that come apart where they should not, and it leads back
        last = max(
            (at for at, each in enumerate(code.instructions) if each.text == "EXIT"), default=len(code.instructions)
        )
        found = [
            (at - code.labels[each.target], code.labels[each.target], at)
            for at, each in enumerate(code.instructions[:last])
            if each.operation == "BRA" and not each.predicate and each.target and each.file == route.loop
        ]
        if not found or max(found)[0] <= 0:
            raise LostError(f"{route.name}: {code.kernel} has no endless loop of {route.loop}")
        _, start, end = max(found)
        return start, end
    start, end = 0, len(code.instructions)
    if route.begins:
        start = _first_of(code, route, route.begins, 0)
    if route.ends:
        end = _first_of(code, route, route.ends, start)
    return start, end


def _first_of(code: MachineCode, route: Route, text: str, after: int) -> int:
    for at in range(after, len(code.instructions)):
        if code.is_of(at, text):
            return at
    raise LostError(f"{route.name}: no instruction of {code.kernel} is of a line with {text!r}")


def _place_of(code: MachineCode, instruction: Instruction) -> int:
    if instruction.target not in code.labels:
        raise LostError(f"{code.kernel}: where does this go? {instruction.text}")
    return code.labels[instruction.target]


def _is_taken(code: MachineCode, route: Route, at: int, loops: Counter[int], met: Counter[str]) -> bool:
    instruction = code.instructions[at]
    to = _place_of(code, instruction)
    if not instruction.predicate and "," not in instruction.text:
        return True
    if to <= at:
        for text, passes in route.passes.items():
            if code.is_of(at, text):
                met[text] += 1
                loops[at] += 1
                return loops[at] % passes != 0
        line, _ = code.source_of(at)
        raise LostError(f"{route.name}: how often is the loop passed that ends at {_where(instruction)}: {line}")
    between = code.instructions[at + 1 : to]
    if len(between) <= _RARE and any(each.name == "CALL" for each in between):
        return True
    for text in set(route.jumps):
        if code.is_of(at, text) and met[text] < route.jumps.count(text):
            met[text] += 1
            return True
    return False


def _where(instruction: Instruction) -> str:
    return f"{instruction.file}:{instruction.line}"


def _unit_of(instruction: Instruction) -> tuple[str, int] | None:
    """Unit, and cycles for which it is busy."""
    if instruction.name == "DMMA":
        return "tensor", _tiles_of(instruction) * _OF_TILE
    unit = UNITS.get(instruction.name)
    if unit is not None and unit[0] == _MEMORY:
        wide = 4 if ".128" in instruction.operation else 2 if ".64" in instruction.operation else 1
        return _MEMORY, wide
    return unit


def _tiles_of(instruction: Instruction) -> int:
    """Products of tiles, 8 by 8 by 4, in one instruction."""
    found = _SHAPE.search(instruction.text)
    if found is None:
        raise LostError(f"products of which tiles? {instruction.text}")
    rows, depth = map(int, found.groups())
    return rows // 8 * depth // 4


def _latency_of(instruction: Instruction, load: int) -> int:
    if instruction.name in ("LDG", "LD"):
        return load
    if instruction.name == "DMMA":
        return LATENCY["DMMA"] + _OF_TILE * max(_tiles_of(instruction) - 2, 0)
    more = _MORE_OF_WIDE if instruction.operation.startswith("LDS") and ".128" in instruction.operation else 0
    return LATENCY.get(instruction.name, _LATENCY_OF_OTHERS) + more


@dataclass
class _Warp:
    scheduler: int
    ready: int  # cycle from which its next instruction may be issued
    next: int = 0
    copied: int = 0  # cycle from which all its copies are there
    clear: list[int] = field(default_factory=lambda: [0] * BARRIERS)
    cause: list[str] = field(default_factory=lambda: [""] * BARRIERS)


@dataclass(frozen=True)
class Played:
    """What came of it.

    Attributes
    ----------
    cycles : float
        Of one pass: of all warps' time, divided by their passes of a scheduler.
    waited : Counter
        Cycles of a pass in which the first warp's next instruction was not issued, by what it waited for.
    spent : Counter
        Cycles of that warp's pass, by the line of text that they were spent before or in.
    busy : dict
        Share of the time in which a unit was busy.
    """

    cycles: float
    waited: Counter[str]
    spent: Counter[str]
    busy: dict[str, float]


def play(
    passed: Sequence[Instruction], warps: int, load: int = ASKED_FOR, schedulers: int = SCHEDULERS, passes: int = 3
) -> Played:
    """Play a route on a processor with so many warps of each scheduler, which pass it so often."""
    steps = [(each, _unit_of(each), _latency_of(each, load)) for each in passed]
    total = len(steps) * passes
    everyone = [_Warp(n % schedulers, 37 * (n // schedulers)) for n in range(warps * schedulers)]
    free: dict[tuple[str, int], int] = {}  # by unit and scheduler, from which cycle on
    busy: Counter[str] = Counter()
    issue = [0] * schedulers
    waited: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    at_work = list(everyone)
    while at_work:
        best, first, cause, key = None, 0, "", None
        for warp in at_work:
            instruction, unit, _ = steps[warp.next % len(steps)]
            place = None if unit is None else (unit[0], 0 if unit[0] == _MEMORY else warp.scheduler)
            ready, why = _chance_of(warp, instruction)
            if place is not None and free.get(place, 0) > ready:
                ready, why = free[place], f"unit: {place[0]}"
            ready = max(ready, issue[warp.scheduler])
            if best is None or ready < first:
                best, first, cause, key = warp, ready, why, place
        assert best is not None
        instruction, unit, latency = steps[best.next % len(steps)]
        if best is everyone[0]:
            waited[cause] += first - best.ready
            waited["held up by the instruction before"] += instruction.stall - 1
            spent[_where(instruction)] += first - best.ready + instruction.stall
        issue[best.scheduler] = first + 1
        if unit is not None and key is not None:
            free[key] = first + unit[1]
            busy[unit[0]] += unit[1]
        _leave(best, instruction, first, latency)
        best.next += 1
        if best.next == total:
            at_work.remove(best)
    cycles = max([warp.ready for warp in everyone] + list(free.values()))
    shared = {name: 1 if name == _MEMORY else schedulers for name in busy}
    return Played(
        cycles / (passes * warps),
        _of_a_pass(waited, passes),
        _of_a_pass(spent, passes),
        {name: count / (cycles * shared[name]) for name, count in busy.most_common()},
    )


def _of_a_pass(cycles: Counter[str], passes: int) -> Counter[str]:
    return Counter({name: count // passes for name, count in cycles.items() if count >= passes})


def _chance_of(warp: _Warp, instruction: Instruction) -> tuple[int, str]:
    """Cycle from which an instruction waits for nothing of its own warp, and what it waited for longest."""
    ready, why = warp.ready, "issue"
    for barrier in instruction.waits:
        if warp.clear[barrier] > ready:
            ready, why = warp.clear[barrier], warp.cause[barrier]
    if instruction.name == "DEPBAR" and warp.copied > ready:
        ready, why = warp.copied, "LDGSTS"
    return ready, why


def _leave(warp: _Warp, instruction: Instruction, issued: int, latency: int) -> None:
    """What an instruction leaves behind in its warp."""
    if instruction.name == "LDGSTS":
        warp.copied = max(warp.copied, issued + _COPY)
    for barrier, after in (
        (instruction.cleared_by_result, latency),
        (instruction.cleared_by_reading, _READING),
    ):
        if barrier is not None:
            warp.clear[barrier] = max(warp.clear[barrier], issued + after)
            warp.cause[barrier] = instruction.name
    warp.ready = issued + instruction.stall + _HELD.get(instruction.name, 0)
