"""What is done, failed and left of a survey run, as the folder of its shards tells."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from xpkern.errors import InputError
from xpkern.shards.settings import RunSettings
from xpkern.shards.work import Unit, circumstances, digest_of, input_files, read_record

#: What every marker has.
_KEYS = {"made_of", "looks", "input", "input_bytes", "files", "rows", "fitted", "status", "quality_flags", "counts"}


class State(enum.Enum):
    """Of a unit of work."""

    DONE = "done"
    #: There is a shard, of other settings, another model, version or input.
    CHANGED = "changed"
    FAILED = "failed"
    LEFT = "left"


@dataclass
class Ledger:
    """The units of a run and how each of them stands.

    Attributes
    ----------
    settings : RunSettings
    settings_digest : str
    units : list of Unit
        In the order of their names.
    states : list of State
    records : list of dict, or None
        What the marker of a shard, or the record of its failure, says.
    """

    settings: RunSettings
    settings_digest: str
    units: list[Unit]
    states: list[State] = field(default_factory=list)
    records: list[dict[str, Any] | None] = field(default_factory=list)

    @classmethod
    def of(cls, settings: RunSettings, *, part: int = 1, parts: int = 1) -> Ledger:
        """Look at the folder of the shards; nothing is written.

        Parameters
        ----------
        settings : RunSettings
        part, parts : int
            Only every ``parts``-th unit, from the ``part``-th on, counted from 1.

        Raises
        ------
        InputError
            If a file of spectra or the model is not there.
        """
        units = [Unit.of(spectra, settings) for spectra in input_files(settings)][part - 1 :: parts]
        ledger = cls(settings, digest_of(settings), units)
        for unit in units:
            state, record = state_of(unit, ledger.settings_digest)
            ledger.states.append(state)
            ledger.records.append(record)
        return ledger

    def of_state(self, *states: State) -> list[Unit]:
        """Units that stand so."""
        return [unit for unit, state in zip(self.units, self.states, strict=True) if state in states]

    def count(self) -> Counter[State]:
        """How many units stand how."""
        return Counter(self.states)

    def total(self, name: str) -> int:
        """Sum of a number over the markers of shards that are done."""
        return sum(record[name] for record in self.done() if record is not None)

    def totals(self, name: str) -> Counter[str]:
        """Sums of a table of numbers over the markers of shards that are done."""
        sums: Counter[str] = Counter()
        for record in self.done():
            sums.update(record[name])
        return sums

    def not_applied(self) -> Counter[str]:
        """For how many of the shards that are done a cut or the zero point could not be applied, by which and why."""
        return Counter(said for record in self.done() for said in not_applied_to(record))

    def done(self) -> Sequence[dict[str, Any]]:
        """Markers of the shards that are done, in the order of their units."""
        pairs = zip(self.states, self.records, strict=True)
        return [record for state, record in pairs if state is State.DONE and record is not None]


def state_of(unit: Unit, settings_digest: str) -> tuple[State, dict[str, Any] | None]:
    """How a unit stands, and what its record says."""
    done = read_record(unit.done)
    if done is not None and _is_whole(unit, done):
        try:
            same = done["made_of"]["settings"] == settings_digest and (
                done["looks"] == unit.looks() or done["made_of"] == unit.made_of(settings_digest)
            )
        except (InputError, OSError):  # its input has gone, or a pipe has its name; its shard has not
            same = True
        return (State.DONE if same else State.CHANGED), done
    failed = read_record(unit.failed)
    if failed is not None and circumstances(unit, settings_digest).items() <= failed.items() and "error" in failed:
        return State.FAILED, failed
    return State.LEFT, None


def not_applied_to(record: dict[str, Any]) -> list[str]:
    """Which cuts, or the zero point, could not be applied to a shard, and why, as its marker has it."""
    rules = record.get("not_applied", {})  # which markers had not at first
    return [f"{name.removeprefix('photometry_cut_')} {why}" for name, why in rules.items()]


def _is_whole(unit: Unit, done: dict[str, Any]) -> bool:
    """Whether a marker is complete, and the files that it lists are there in their full size."""
    if not done.keys() >= _KEYS or not isinstance(done["made_of"], dict) or "settings" not in done["made_of"]:
        return False
    try:
        sizes = [(unit.catalog.with_name(file["name"]), file["bytes"]) for file in done["files"].values()]
        return all(path.stat().st_size == size for path, size in sizes)
    except (OSError, KeyError, TypeError, AttributeError):
        return False
