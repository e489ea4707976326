"""How files of columns in text begin, whoever reads on."""

from __future__ import annotations

from collections.abc import Sequence

#: First bytes of a gzipped file.
GZIP_MAGIC = b"\x1f\x8b"

#: What may stand between two fields in files of the Gaia archive and of astropy.
SEPARATORS = (",", "\t", " ")


def column_names(header: str, separators: Sequence[str] = SEPARATORS) -> tuple[list[str], str]:
    """Names in a header line, and what separates them: the first of the separators that it holds, a comma if none."""
    separator = next((each for each in separators if each in header), ",")
    return [name.strip().strip('"') for name in header.split(separator)], separator
