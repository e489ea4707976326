"""The CUDA kernels' own text, compiled for this processor and loaded: what runs them where there is no GPU.

Built once for each version of the text, below ``build/``. See ``tests/cuda_shim/shim.hpp``.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "cuda"
SHIM = Path(__file__).resolve().parent / "cuda_shim"

FLAGS = ["-std=c++17", "-O0", "-g0", "-ffp-contract=off", "-fno-math-errno", "-pthread", "-DXPKERN_ISA=cuda"]


def kernel_names(*, general: bool) -> list[str]:
    """Names of the kernels of one of the two modules that the text makes."""
    text = "".join(path.read_text() for path in sorted(SOURCES.glob("*.cuh")))
    # each of the two forms of a kernel stands behind a condition of its own where they have little in common
    ours = re.compile(r"^#if defined\(XPKERN_GENERAL\)\n(.*?)^#else\n(.*?)^#endif\n", re.MULTILINE | re.DOTALL)
    text = ours.sub(lambda found: found[1 if general else 2], text)
    of_stars = re.findall(r"^XPKERN_(?:STAR|WARP|SPECTRUM|GENERAL)_KERNEL\((\w+),", text, re.MULTILINE)
    others = re.findall(r'^extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(', text, re.MULTILINE)
    return sorted([*(f"{name}_any" if general else name for name in of_stars), *others])


@cache
def kernel_library(*, general: bool = False) -> ctypes.CDLL:
    """The kernels of one module: ``launch(name, grid, block, shared_bytes, parameters)`` returns 0 if it has the name.

    ``parameters`` is an array of pointers, as ``cuLaunchKernel`` takes it.
    """
    texts = [
        path.read_bytes() for path in sorted([*ROOT.glob("csrc/c*/*.*h*"), *SOURCES.glob("*.cu"), *SHIM.iterdir()])
    ]
    flags = [*FLAGS, *(["-DXPKERN_GENERAL"] if general else []), *_fused()]
    digest = hashlib.sha256(repr((texts, flags)).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "cuda_shim" / digest
    library = folder / "kernels.so"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a minute's work: not by two processes at once
        if not library.exists():
            _build(library, flags, general)
    loaded = ctypes.CDLL(str(library))
    loaded.launch.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3, ctypes.POINTER(ctypes.c_void_p)]
    return loaded


def _build(library: Path, flags: list[str], general: bool) -> None:
    folder = library.parent
    names = "".join(f"XPKERN_NAME({name})\n" for name in kernel_names(general=general))
    (folder / "kernel_names.inc").write_text(names)
    unfinished = folder / f"kernels.{os.getpid()}.so"
    includes = [f"-I{ROOT / 'csrc'}", f"-I{folder}"]
    command = [os.environ.get("CXX", "g++"), *flags, *includes, "-shared", "-fPIC", str(SHIM / "library.cpp")]
    subprocess.run([*command, "-o", str(unfinished)], check=True)
    unfinished.replace(library)


def _fused() -> list[str]:
    """Fused multiply-adds, which every GPU has, where this processor has them."""
    cpuinfo = Path("/proc/cpuinfo")
    words = cpuinfo.read_text().split() if platform.machine() in ("x86_64", "AMD64") and cpuinfo.exists() else []
    return ["-mfma"] if "fma" in words else []
