"""What is planted among the stars of a survey, how often, and how it is called in the truth table."""

from __future__ import annotations

from dataclasses import dataclass, fields

from xpkern.errors import InputError

#: Values of the truth's column ``class``: single stars of ATLAS9's range, and what is planted among them.
STAR = "star"
CLASSES = (STAR, "binary", "blend", "m_dwarf", "white_dwarf", "quasar", "galaxy")

#: What the truth's columns of text say where something does not apply: readers of FITS take empty text for masked.
NONE = "none"

#: Values of the truth's column ``fault`` for rows that no reader can use; each bad row has one of them.
BAD_ROWS = ("nan_coefficient", "wrong_length", "correlation_above_1", "negative_error", "duplicate_id")

#: Values of ``fault`` for what is missing but does not spoil the row.
MISSING = ("no_2mass", "no_bp")


@dataclass(frozen=True)
class Planted:
    """Fractions of the sources.

    Attributes
    ----------
    binary : float
        Stars with an unresolved companion of the same age: its flux is added.
    blend : float
        Pairs of unrelated stars at two distances in one line of sight.
    m_dwarf, white_dwarf, quasar, galaxy : float
    varied_rv : float
        Sources whose dust has another R(V) than 3.1.
    no_2mass, no_bp : float
        Sources that 2MASS has not seen; without a BP spectrum.
    bad_row : float
        Rows of the spectra that cannot be used, of the kinds :data:`BAD_ROWS` in equal parts.

    Raises
    ------
    InputError
        If one is not between 0 and 1, or those that exclude each other add up to more than 1.
    """

    binary: float = 0.1
    blend: float = 0.02
    m_dwarf: float = 0.04
    white_dwarf: float = 0.005
    quasar: float = 0.003
    galaxy: float = 0.002
    varied_rv: float = 0.05
    no_2mass: float = 0.03
    no_bp: float = 0.001
    bad_row: float = 0.001

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0.0 <= getattr(self, field.name) <= 1.0:
                raise InputError(f"{getattr(self, field.name)} is not a fraction (0 to 1)", field=field.name)
        for names in (CLASSES[1:], (*MISSING, "bad_row")):
            total = sum(getattr(self, name) for name in names)
            if total > 1.0 + 1e-12:
                raise InputError(f"the fractions {', '.join(names)} add up to {total:g}, more than 1")

    @classmethod
    def none(cls) -> Planted:
        """Nothing but single stars, complete and in order."""
        return cls(**{field.name: 0.0 for field in fields(cls)})

    def class_fractions(self) -> list[float]:
        """Fractions in the order of :data:`CLASSES`."""
        planted = [getattr(self, name) for name in CLASSES[1:]]
        return [max(0.0, 1.0 - sum(planted)), *planted]

    def fault_fractions(self) -> dict[str, float]:
        """Fraction of each value of ``fault``, that of no fault first."""
        faults = {name: getattr(self, name) for name in MISSING}
        faults |= {name: self.bad_row / len(BAD_ROWS) for name in BAD_ROWS}
        return {NONE: max(0.0, 1.0 - sum(faults.values()))} | faults
