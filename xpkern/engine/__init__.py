"""What is computed: one contract, several engines, chosen by name or by where the arrays are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np

from xpkern.engine.contract import Engine
from xpkern.errors import DeviceUnavailable, InputError, XpkernError

__all__ = ["Engine", "available_engines", "block_stars", "get_engine", "keeping"]


def _make_reference() -> Engine:
    from xpkern.engine.reference import ReferenceEngine

    return ReferenceEngine()


def _make_cpu() -> Engine:
    from xpkern.engine.cpu import CpuEngine

    return CpuEngine()


@cache  # of a process: it keeps kernels, streams and memory of the GPU
def _make_cuda() -> Engine:
    from xpkern.engine.cuda.engine import CudaEngine

    return CudaEngine()


#: Engines by name. Those that ``"auto"`` may choose come first, fastest first.
_MAKERS: dict[str, Callable[[], Engine]] = {"cuda": _make_cuda, "cpu": _make_cpu, "reference": _make_reference}
_AUTOMATIC = ("cuda", "cpu")

#: What an engine may be asked for by.
ENGINES = ("auto", *_MAKERS)


def available_engines() -> dict[str, str | None]:
    """Every engine by name, with the reason why it cannot be used here, or None if it can."""
    reasons: dict[str, str | None] = {}
    for name, make in _MAKERS.items():
        try:
            make()
        except (ImportError, XpkernError) as error:
            reasons[name] = str(error)
        else:
            reasons[name] = None
    return reasons


def get_engine(engine: str | Engine = "auto", *, on_gpu: bool = False) -> Engine:
    """The engine of that name.

    Parameters
    ----------
    engine : str or Engine
        "cuda" (an NVIDIA GPU), "cpu" (compiled), "reference" (NumPy, float64, slow: the specification in code), "auto"
        (the fastest one found; never "reference", which would look like a hang), or an engine itself.
    on_gpu : bool
        Whether it is to take arrays that are on a GPU.

    Raises
    ------
    InputError
        If there is no engine of that name, it cannot be used here, or it does not take such arrays; the message says
        why.
    """
    if on_gpu:
        engine = "cuda" if engine == "auto" else engine
        name = engine if isinstance(engine, str) else engine.name
        if name in _MAKERS and name != "cuda":
            raise InputError(f"{name!r} takes no arrays on a GPU: 'cuda' does", field="engine")
    if not isinstance(engine, str):
        return engine
    if engine != "auto" and engine not in _MAKERS:
        raise InputError(f"{engine!r} is none of {', '.join(ENGINES)}", field="engine")
    reasons = []
    for name in _AUTOMATIC if engine == "auto" else (engine,):
        try:
            return _MAKERS[name]()
        except (ImportError, DeviceUnavailable) as error:
            reasons.append(f"{name}: {error}")
    raise InputError(
        f"not available here ({'; '.join(reasons)}); the slow engine 'reference' always is", field="engine"
    )


def keeping(engine: Engine) -> AbstractContextManager[Callable[[np.ndarray], Any]]:
    """A context in which a block of stars goes through several calls of an engine.

    What it yields brings arrays of the host to where the engine computes, and they stay there from call to call; where
    that is the host it does nothing. Results are arrays of the same kind.
    """
    device = getattr(engine, "device", None)
    return nullcontext(np.asarray) if device is None else device.keeping()


def block_stars(engine: Engine) -> int | None:
    """Stars that an engine likes to be given at a time; None where it does not matter to it."""
    return getattr(engine, "block_stars", None)
