"""How fast a run is, from its log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Pieces of log that are looked at, the latest ones: a run's pace may change with where it runs.
_LATEST = 256

#: A pause between two shards longer than this many times the longest of them took is no part of the run.
_PAUSE = 3.0


@dataclass(frozen=True)
class Pace:
    """Stars and bytes of input a second, of all processes together."""

    stars_per_second: float
    bytes_per_second: float

    @classmethod
    def of(cls, folder: Path) -> Pace | None:
        """Pace of the latest shards; None if there are none.

        Parameters
        ----------
        folder : Path
            Of the shards.
        """
        lines = sorted(_lines(folder), key=lambda line: line["unix_time"])[-_LATEST:]
        if not lines:
            return None
        longest = max(line["seconds"] for line in lines)
        latest = [lines[-1]]
        for line in reversed(lines[:-1]):
            if latest[-1]["unix_time"] - latest[-1]["seconds"] - line["unix_time"] > _PAUSE * longest:
                break
            latest.append(line)
        first = min(line["unix_time"] - line["seconds"] for line in latest)
        seconds = max(lines[-1]["unix_time"] - first, 1e-3)  # a clock that was set back gives nothing sensible
        return cls(
            sum(line["rows"] for line in latest) / seconds, sum(line["input_bytes"] for line in latest) / seconds
        )

    def time_for(self, n_bytes: int) -> str:
        """How long so many bytes of input take, in words; empty for none."""
        if n_bytes == 0 or self.bytes_per_second <= 0:
            return ""
        minutes = n_bytes / self.bytes_per_second / 60
        days, hours = divmod(minutes / 60, 24)
        if days >= 1:
            return f"; the rest takes {days:.0f} d {hours:.0f} h at that"
        return (
            f"; the rest takes {hours:.1f} h at that" if hours >= 1 else f"; the rest takes {minutes:.0f} min at that"
        )


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    """Lines of shards that were made; a line that was cut off by a kill is left out."""
    for path in (folder / "log").glob("*.jsonl"):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if line.get("outcome") == "done":
                yield line
