"""Write docs/columns.md from the tables in the code: run it after changing a column, a flag or a status bit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from xpkern.catalog import derived, flags, schema, spectra
from xpkern.status import MEANING

TARGET = Path(__file__).parent / "columns.md"

INTRODUCTION = """\
# Columns, flags and status bits

Made by `docs/make_columns.py` from `schema.py`, `derived.py`, `spectra.py` and `flags.py` in `xpkern/catalog/`, and
`xpkern/status.py`. In every format a missing number is NaN; integers are never missing.
"""

SECTIONS = (
    ("Layout `default`", "One scalar per column, in the style of the Gaia archive.", schema.DEFAULT),
    ("Layout `zgr23`", "The published catalogue of Zhang, Green & Rix (2023), its Table 2.", schema.ZGR23),
    (
        "Diagnostics companion",
        "In `NAME.diagnostics.h5`, or the catalogue's other format: the same stars in the same order. Floats of "
        "16 bits have 32 where it is not HDF5.",
        schema.DIAGNOSTICS,
    ),
    (
        "Derived columns",
        "Added to either layout by `xpkern flag --derived`; in Python `xpkern.derived_columns(table, model)`.",
        derived.DERIVED,
    ),
    ("Spectra", "Of `xpkern spectra`.", (*spectra.SPECTRA, spectra.WHITENER)),
)


def column_table(columns: Iterable[schema.Column]) -> str:
    """Return a layout as a Markdown table."""
    rows = ["| column | type | unit | meaning | UCD |", "|---|---|---|---|---|"]
    for column in columns:
        shape = "" if column.shape == () else f" × {' × '.join(str(size) for size in column.shape)}"
        text = column.description
        if column.name in ("status", "quality_flags"):
            text = f"{text.partition(', as bits')[0]}: bits, see below"
        rows.append(f"| `{column.name}` | {column.dtype}{shape} | {column.unit} | {text} | {column.ucd} |")
    return "\n".join(rows)


def bit_table(meaning: dict) -> str:
    """Return bits and what they mean as a Markdown table."""
    rows = ["| bit | value | name | meaning |", "|---|---|---|---|"]
    rows += [f"| {bit.bit_length() - 1} | {int(bit)} | `{bit.name}` | {text} |" for bit, text in meaning.items()]
    return "\n".join(rows)


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    for title, text, columns in SECTIONS:
        parts.append(f"## {title}\n\n{text}\n\n{column_table(columns)}\n")
    parts.append(f"## Status bits\n\nColumn `status`, and `xpkern.Status`.\n\n{bit_table(MEANING)}\n")
    about = "Column `quality_flags`, and `xpkern.QualityFlags`."
    parts.append(f"## Quality flags\n\n{about}\n\n{bit_table(flags.MEANING)}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(page())
