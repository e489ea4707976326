"""What is computed: one contract, several engines, chosen by name."""

from __future__ import annotations

from collections.abc import Callable

from xpkern.engine.contract import Engine
from xpkern.errors import InputError, XpkernError

__all__ = ["Engine", "available_engines", "get_engine"]


def _make_reference() -> Engine:
    from xpkern.engine.reference import ReferenceEngine

    return ReferenceEngine()


def _make_cpu() -> Engine:
    from xpkern.engine.cpu import CpuEngine

    return CpuEngine()


#: Engines by name. Those that ``"auto"`` may choose come first, fastest first.
_MAKERS: dict[str, Callable[[], Engine]] = {"cpu": _make_cpu, "reference": _make_reference}
_AUTOMATIC = ("cpu",)


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


def get_engine(engine: str | Engine = "auto") -> Engine:
    """The engine of that name.

    Parameters
    ----------
    engine : str or Engine
        "cpu" (compiled), "reference" (NumPy, float64, slow: the specification in code), "auto" (the fastest one
        found; never "reference", which would look like a hang), or an engine itself.

    Raises
    ------
    InputError
        If there is no engine of that name, or it cannot be used here; the message says why.
    """
    if not isinstance(engine, str):
        return engine
    if engine != "auto" and engine not in _MAKERS:
        raise InputError(f"{engine!r} is none of auto, {', '.join(_MAKERS)}", field="engine")
    reasons = []
    for name in _AUTOMATIC if engine == "auto" else (engine,):
        try:
            return _MAKERS[name]()
        except ImportError as error:
            reasons.append(f"{name}: {error}")
    raise InputError(
        f"not available here ({'; '.join(reasons)}); the slow engine 'reference' always is", field="engine"
    )
