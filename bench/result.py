"""What a benchmark returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bench.harness import Comparison


@dataclass
class Result:
    """What one benchmark found.

    Attributes
    ----------
    name, unit : str
        ``unit`` is that of the rates, such as "stars/s".
    duels : sequence of Comparison
        Ours against each peer.
    null : Comparison, optional
        Ours against itself.
    extra : dict
        Other figures, each with its unit in its name.
    """

    name: str
    unit: str = ""
    duels: Sequence[Comparison] = ()
    null: Comparison | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the result as text."""
        text = []
        for comparison in (*self.duels, *([self.null] if self.null else [])):
            for rate in (comparison.ours, comparison.peer):
                text.append(
                    f"{rate.name:66s} {rate.median:12,.0f} {self.unit} ({rate.lower:,.0f} ... {rate.upper:,.0f})"
                )
            verdict = "" if comparison.differ else ": no difference"
            text.append(
                f"{'    ratio':66s} {comparison.ratio:12.2f} "
                f"({comparison.ratio_lower:.3f} ... {comparison.ratio_upper:.3f}){verdict}"
            )
        return text + [_line(name, value) for name, value in self.extra.items()]


def _line(name: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{name:66s} {value:12,.4g}"
    return f"{name:66s} {value!s:>12}"
