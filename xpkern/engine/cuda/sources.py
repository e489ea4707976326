"""The text of the kernels, as it is installed, and what tells one version of it from another."""

from __future__ import annotations

import hashlib
import importlib.resources
from functools import cache
from pathlib import Path

from xpkern.engine.cuda.compiler_flags import GENERAL_FLAG, NVRTC_FLAGS

#: The translation unit that every compiler is given; it includes the rest.
UNIT = "cuda/kernels.cu"


def is_general(kernel: str) -> bool:
    """Whether a kernel is one of the second module that the text makes: those for models of any size."""
    return kernel.endswith("_any")


def source_folder() -> Path:
    """Where the C++ sources are, as real files: installed with xpkern, or beside it in a checkout."""
    try:
        return Path(str(importlib.resources.files("xpkern.csrc")))
    except ModuleNotFoundError:
        return Path(__file__).resolve().parents[3] / "csrc"


@cache
def source_hash() -> str:
    """SHA-256 (hex) of every file that the kernels may include."""
    folder, digest = source_folder(), hashlib.sha256()
    for path in sorted([*folder.glob("core/*.hpp"), *folder.glob("cuda/*.cu"), *folder.glob("cuda/*.cuh")]):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(text)}\n".encode() + text)
    return digest.hexdigest()


def nvrtc_options(general: bool = False) -> tuple[str, ...]:
    """Options of NVRTC. CuPy keeps what it has compiled under the unit's text and these, not under included files."""
    which = (GENERAL_FLAG,) if general else ()
    return (*NVRTC_FLAGS, *which, f"-I{source_folder()}", f"-DXPKERN_SOURCE_HASH={source_hash()[:16]}")
