"""Names of columns, and how files of columns in text begin, whoever reads on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from xpkern.errors import InputError

#: First bytes of a gzipped file.
GZIP_MAGIC = b"\x1f\x8b"

#: What may stand between two fields in files of the Gaia archive and of astropy.
SEPARATORS = (",", "\t", " ")


def column_names(header: str, separators: Sequence[str] = SEPARATORS) -> tuple[list[str], str]:
    """Names in a header line, and what separates them: the first of the separators that it holds, a comma if none."""
    separator = next((each for each in separators if each in header), ",")
    return [name.strip().strip('"') for name in header.split(separator)], separator


def ecsv_header(comments: Sequence[str]) -> dict[str, Any]:
    """What the comments before a header line say, without their sign, if they are those of ECSV; else nothing.

    So is what astropy says of the columns of a Parquet file.
    """
    if not comments or not comments[0].strip().startswith(("%ECSV", "datatype:")):
        return {}
    from astropy.table.meta import YamlParseError, get_header_from_yaml

    try:
        header = get_header_from_yaml(comments)
    except YamlParseError:
        header = None
    return header if isinstance(header, dict) else {}


def units_of_ecsv(comments: Sequence[str]) -> dict[str, str]:
    """Units of columns by lower-case name in the same comments."""
    columns = ecsv_header(comments).get("datatype", ())
    return {str(column["name"]).lower(): str(column["unit"]) for column in columns if column.get("unit")}


def refuse_repeated(wanted: Sequence[str], names: Sequence[str], file: str) -> None:
    """Raise an InputError if a column that is wanted (lower case) is there twice, in upper or lower case."""
    lower = Counter(name.lower() for name in names)
    for name in wanted:
        if lower[name] > 1:
            found = ", ".join(each for each in names if each.lower() == name)
            raise InputError(f"{lower[name]} columns have this name ({found}): which is meant?", file=file, field=name)
