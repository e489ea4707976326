"""NVRTC without a driver: called through ctypes, from NVIDIA's wheel, with exactly the options of CuPy's RawModule.

Imports nothing of xpkern, as CI compiles the kernels before xpkern is there.
"""

from __future__ import annotations

import ctypes
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path

#: The checkout.
ROOT = Path(__file__).resolve().parents[2]

#: Of every compilation; -ftz=true is what CuPy adds by itself.
FLAGS = (
    *runpy.run_path(str(ROOT / "xpkern/engine/cuda/compiler_flags.py"))["NVRTC_FLAGS"],
    "-ftz=true",
    f"-I{ROOT / 'csrc'}",
)


def load_nvrtc() -> ctypes.CDLL:
    """Return libnvrtc from the installed wheel.

    Raises
    ------
    ImportError
        There is none.
    """
    found = in_wheels("libnvrtc.so.*")
    if not found:
        raise ImportError("no libnvrtc: pip install nvidia-cuda-nvrtc")
    return ctypes.CDLL(str(found[0]))


def in_wheels(pattern: str) -> list[Path]:
    """Files of that name in NVIDIA's installed wheels."""
    try:
        import nvidia
    except ImportError:
        return []
    return [path for root in nvidia.__path__ for path in sorted(Path(root).rglob(pattern))]


def compile_text(nvrtc: ctypes.CDLL, text: str, flags: Sequence[str]) -> tuple[int, str, bytes]:
    """Compile a text with FLAGS and others; return NVRTC's result, its log, and machine code if any was asked for."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"text.cu", 0, None, None)
    every = [*FLAGS, *flags]
    options = (ctypes.c_char_p * len(every))(*(flag.encode() for flag in every))
    result = nvrtc.nvrtcCompileProgram(program, len(every), options)
    log = _bytes_of(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
    code = _bytes_of(program, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN) if result == 0 else b""
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return result, log.rstrip(b"\0").decode(), code


def _bytes_of(program: ctypes.c_void_p, size_of: Callable[..., object], copy: Callable[..., object]) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    copy(program, buffer)
    return buffer.raw
