"""Compile every header of ``csrc/core`` on its own, and every ``csrc/cuda/*.cu``, with NVRTC.

That is what CuPy's RawModule does on a user's machine, minus the driver. The library comes from the wheel
``nvidia-cuda-nvrtc`` and is called through ctypes.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import nvidia

OPTIONS = [
    "-std=c++17",
    "-Icsrc",
    "-DXPKERN_ISA=cuda",
    "-fmad=false",
    "--gpu-architecture=compute_90",
    "-default-device",
]


def load_nvrtc() -> ctypes.CDLL:
    """Return libnvrtc from the installed wheel."""
    found = [path for root in nvidia.__path__ for path in sorted(Path(root).rglob("libnvrtc.so.*"))]
    return ctypes.CDLL(str(found[0]))


def compile_text(nvrtc: ctypes.CDLL, text: str, name: str) -> str | None:
    """Compile a source text; return the compiler's log if it failed."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), name.encode(), 0, None, None)
    options = (ctypes.c_char_p * len(OPTIONS))(*(option.encode() for option in OPTIONS))
    if nvrtc.nvrtcCompileProgram(program, len(OPTIONS), options) == 0:
        return None
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    return log.value.decode()


def main() -> int:
    """Compile everything; return the number of failures."""
    nvrtc = load_nvrtc()
    texts = {path: f'#include "{path.relative_to("csrc")}"\n' for path in sorted(Path("csrc/core").glob("*.hpp"))}
    texts |= {path: path.read_text() for path in sorted(Path("csrc/cuda").glob("*.cu"))}
    logs = {path: compile_text(nvrtc, text, path.name) for path, text in texts.items()}
    failed = {path: log for path, log in logs.items() if log is not None}
    for path, log in failed.items():
        print(f"NVRTC failed on {path}:\n{log}")
    print(f"NVRTC compiled {len(texts) - len(failed)} of {len(texts)} files")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
