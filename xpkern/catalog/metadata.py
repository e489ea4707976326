"""What a file says of itself and its columns, in the words of each format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

from xpkern.catalog.schema import Column

if TYPE_CHECKING:
    from astropy.table import Table

#: Data types of VOTable. It has no unsigned integers of more than 8 bits; signed ones of twice the size hold them.
VOTABLE_TYPES = {
    "uint8": "unsignedByte",
    "int16": "short",
    "int32": "int",
    "uint32": "long",
    "int64": "long",
    "float32": "float",
    "float64": "double",
}


def plain(attributes: Mapping[str, object]) -> dict[str, object]:
    """Attributes of a file as strings, numbers, booleans and lists of Python."""
    return {
        name: value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        for name, value in attributes.items()
    }


def json_text(attributes: Mapping[str, object]) -> str:
    """Attributes of a file as one line of ASCII."""
    return json.dumps(plain(attributes))


def unit_text(unit: str, dialect: str) -> str:
    """A unit as FITS ("fits") or the VO ("vounit") spell it; one that they do not have, as dex, stays as it is."""
    from astropy import units

    try:
        return str(units.Unit(unit).to_string(dialect))
    except ValueError:
        return unit


def empty_table(columns: Sequence[Column], attributes: Mapping[str, object]) -> Table:
    """The columns as an astropy table without rows: unit, description and ``meta["ucd"]`` of each."""
    return astropy_table(
        columns, {column.name: np.empty((0, *column.shape), column.dtype) for column in columns}, attributes
    )


def astropy_table(
    columns: Sequence[Column], values: Mapping[str, np.ndarray], attributes: Mapping[str, object]
) -> Table:
    """Values of the columns by name as an astropy table, what made them as its ``meta``."""
    from astropy.table import Column as TableColumn
    from astropy.table import Table

    return Table(
        [
            TableColumn(
                values[column.name],
                name=column.name,
                unit=column.unit or None,
                description=column.description,
                meta={"ucd": column.ucd},
            )
            for column in columns
        ],
        meta=plain(attributes),
    )


def table_yaml(table: Table, **header: object) -> list[str]:
    """Lines in which astropy describes a table (ECSV, and in Parquet the key ``table_meta_yaml``)."""
    from astropy.table import meta

    about = {"meta": dict(table.meta)} if table.meta else {}
    lines: list[str] = meta.get_yaml_from_header({"cols": list(table.columns.values()), **about, **header})
    return lines


@lru_cache(maxsize=8)  # a catalogue of many files says the same in each, and YAML takes 50 ms
def yaml_of_columns(columns: tuple[Column, ...], attributes: str) -> str:
    """Lines in which astropy describes a table of such columns, as one text; ``attributes`` in JSON."""
    return "\n".join(table_yaml(empty_table(columns, json.loads(attributes))))


def votable_document(columns: Sequence[Column], attributes: Mapping[str, object]) -> str:
    """A VOTable document that describes the columns of a table and has no data.

    The convention of VOParquet: a Parquet file carries it under the key ``IVOA.VOTable-Parquet.content``.
    """
    root = ElementTree.Element("VOTABLE", {"version": "1.4", "xmlns": "http://www.ivoa.net/xml/VOTable/v1.3"})
    resource = ElementTree.SubElement(root, "RESOURCE", type="results")
    table = ElementTree.SubElement(resource, "TABLE", name="xpkern")
    for column in columns:
        dtype = np.dtype(column.dtype)
        if dtype.kind == "S":
            field = {"name": column.name, "datatype": "char", "arraysize": f"{dtype.itemsize}*"}
        else:
            field = {"name": column.name, "datatype": VOTABLE_TYPES["float32" if dtype == np.float16 else dtype.name]}
        if column.shape:
            field["arraysize"] = "x".join(str(size) for size in reversed(column.shape))
        if column.unit:
            field["unit"] = unit_text(column.unit, "vounit")
        element = ElementTree.SubElement(table, "FIELD", {**field, "ucd": column.ucd})
        ElementTree.SubElement(element, "DESCRIPTION").text = column.description
    for name, value in plain(attributes).items():
        text = value if isinstance(value, str) else json.dumps(value)
        kind = "char" if text.isascii() else "unicodeChar"
        ElementTree.SubElement(table, "PARAM", name=name, datatype=kind, arraysize="*", value=text)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=False)
