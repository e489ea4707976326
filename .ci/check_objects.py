"""Check the objects of the last build: no instruction set may leak into code that every machine runs.

The linker keeps one copy of a weak symbol (an inline function, a template). If an object compiled for AVX shared one
with an object compiled for the baseline, an old machine could be handed the AVX copy. And the baseline objects
themselves must hold no AVX instruction: their disassembly is searched for VEX-encoded registers and mnemonics.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path


def weak_symbols(path: Path) -> set[str]:
    """Return the defined weak or unique symbols of an object file."""
    listing = subprocess.run(["nm", "--defined-only", path], capture_output=True, text=True, check=True).stdout
    fields = (line.split() for line in listing.splitlines())
    return {name for _, kind, name in fields if kind in "VvWwu"}


def avx_instructions(path: Path) -> list[str]:
    """Return the lines of the disassembly that use AVX."""
    listing = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    return [line for line in listing.stdout.splitlines() if re.search(r"%[yz]mm|\tv[a-z0-9]+ +.*%xmm", line)]


def main() -> int:
    """Check the newest build; return the number of problems."""
    builds = sorted(Path("build").glob("objects-*"), key=lambda folder: folder.stat().st_mtime)
    objects = sorted((builds[-1] / "csrc" / "cpu").glob("*.o"))
    baseline = [path for path in objects if path.stem in ("isa_scalar", "isa_neon") or not path.stem.startswith("isa_")]
    problems = []
    weak = {path: weak_symbols(path) for path in objects}
    for path in objects:
        if path not in baseline or path.stem.startswith("isa_"):
            for other in objects:
                shared = weak[path] & weak[other] if other != path else set()
                if shared:
                    problems.append(f"{path.name} and {other.name} share weak symbols: {', '.join(sorted(shared)[:5])}")
    if platform.machine() == "x86_64":
        for path in baseline:
            found = avx_instructions(path)
            if found:
                problems.append(f"{path.name} holds {len(found)} AVX instructions, the first: {found[0].strip()}")
    print("\n".join(problems) or f"{len(objects)} objects: no shared weak symbols, no AVX in the baseline")
    return len(problems)


if __name__ == "__main__":
    sys.exit(main())
