"""Writes XP coefficients as Gaia's archive ships them: gzipped ECSV, arrays as text, numbers as Java prints them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow

#: Columns of one photometer: name without its prefix, datatype (an array's in brackets), UCD, description.
_PHOTOMETER_COLUMNS = (
    ("basis_function_id", "int16", "meta.id", "Set of basis functions of the {} spectrum"),
    ("degrees_of_freedom", "int16", "stat.fit.dof", "Degrees of freedom of the fit of the {} spectrum"),
    ("n_parameters", "int8", "stat.fit.param", "Number of coefficients of the {} spectrum"),
    ("n_measurements", "int16", "meta.number", "Number of measurements behind the {} spectrum"),
    ("n_rejected_measurements", "int16", "meta.number", "Number of measurements rejected"),
    ("standard_deviation", "float32", "stat.stdev", "Standard deviation of the fit of the {} spectrum"),
    ("chi_squared", "float32", "stat.fit.chi2", "Chi squared of the fit of the {} spectrum"),
    ("coefficients", "[float64]", "stat.fit.param", "Coefficients of the {} spectrum"),
    ("coefficient_errors", "[float32]", "stat.error", "Standard errors of the coefficients"),
    ("coefficient_correlations", "[float32]", "stat.correlation", "Correlations: strict lower triangle by rows"),
    ("n_relevant_bases", "int16", "meta.number", "Number of coefficients that matter in the {} spectrum"),
    ("relative_shrinking", "float32", "stat.fit.param", "Shrinking of the coefficients under truncation"),
)

#: Every column of the archive's xp_continuous_mean_spectrum: name, datatype, UCD, description.
COLUMNS = (
    ("source_id", "int64", "meta.id;meta.main", "Source identifier, unique within a data release"),
    ("solution_id", "int64", "meta.version", "Solution identifier"),
    *(
        (f"{photometer}_{name}", datatype, ucd, description.format(photometer.upper()))
        for photometer in ("bp", "rp")
        for name, datatype, ucd, description in _PHOTOMETER_COLUMNS
    ),
)

#: Values below or from these are printed with an exponent by Java.
_JAVA_PLAIN_RANGE = (1e-3, 1e7)


def header(release: str, description: Iterable[str]) -> list[str]:
    """Comment lines of the file, without line ends: as many (182) as the archive's, which readers may count.

    Parameters
    ----------
    release : str
        The data release whose calibration the coefficients are for.
    description : iterable of str
        Up to 12 lines on where the numbers come from.
    """
    meta = [f"RELEASE: {release}", "TABLE: xp_continuous_mean_spectrum", "DESCRIPTION: >"]
    text = [f"  {line}" for line in description]
    text += [""] * (12 - len(text))
    lines = ["%ECSV 1.0", "---", "delimiter: ','", "meta: !!omap"]
    lines += [f"- {line}" for line in meta] + [f"  {line}" for line in text] + ["datatype:"]
    for name, datatype, ucd, text_of_column in COLUMNS:
        lines += ["-", f"  name: {name}"]
        if datatype.startswith("["):
            lines += ["  datatype: string", f"  subtype: '{datatype.strip('[]')}[null]'"]
        else:
            lines += [f"  datatype: {datatype}"]
        lines += [f"  description: '{text_of_column}'", "  meta:", f"    ucd: {ucd}"]
    return [f"# {line}" for line in lines]


def write_bulk_file(
    path: str | Path,
    columns: Mapping[str, NDArray],
    *,
    release: str = "Gaia DR3",
    description: Iterable[str] = (),
    rows_at_once: int = 2048,
) -> None:
    """Write a bulk file, gzipped if its name ends with .gz.

    Parameters
    ----------
    path : str or Path
    columns : mapping of str to (n,) or (n, k) array
        By the archive's names; a column that is not given, or a NaN, is ``null``. ``source_id`` is required. An array
        column where all values are NaN is ``null``. Masked values are left out: a number is ``null``, an array shorter.
    release, description
        See :func:`header`.
    rows_at_once : int
        Rows formatted at a time, which bounds the memory.
    """
    from isal import igzip

    unfinished = Path(f"{path}.part")
    try:
        with open(unfinished, "wb") as file:
            # Neither name nor time goes into the gzip header: the same stars give the same bytes.
            gzipped = str(path).endswith(".gz")
            stream = igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) if gzipped else file
            stream.write(format_header(release, description))
            for first in range(0, len(columns["source_id"]), rows_at_once):
                block = slice(first, first + rows_at_once)
                stream.write(format_rows({name: values[block] for name, values in columns.items()}))
            if gzipped:
                stream.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def format_header(release: str, description: Iterable[str]) -> bytes:
    """The text before the first row: see :func:`header`."""
    lines = [*header(release, description), ",".join(name for name, *_ in COLUMNS)]
    return ("\n".join(lines) + "\n").encode()


def format_rows(columns: Mapping[str, NDArray]) -> bytes:
    """The text of rows; ``columns`` as for :func:`write_bulk_file`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    n_rows = len(columns["source_id"])
    formatted = [
        _format_column(columns[name]) if name in columns else pa.nulls(n_rows, pa.string()) for name, *_ in COLUMNS
    ]
    rows = pc.binary_join_element_wise(*formatted, ",", null_handling="replace", null_replacement="null")
    return ("\n".join(rows.to_pylist()) + "\n").encode()


def _format_column(values: NDArray) -> pyarrow.StringArray:
    """Text of a column (n,), or of an array column (n, k) in brackets and quotes; null where the value is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    absent, values = np.ma.getmaskarray(values), np.ma.getdata(values)
    missing = (absent | np.isnan(values)).reshape(len(values), -1).all(axis=1)
    if values.ndim == 1:
        return pc.if_else(pa.array(missing), None, _format_numbers(values))
    offsets = np.concatenate([[0], np.cumsum((~absent).sum(axis=1), dtype=np.int64)])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), _format_numbers(values[~absent]))
    joined = pc.binary_join(lists, ",")
    return pc.if_else(pa.array(missing), None, pc.binary_join_element_wise('"[', joined, ']"', ""))


def _format_numbers(values: NDArray) -> pyarrow.StringArray:
    """The shortest text that reads back to the same number, in Java's style: 1.0, 0.25, 3.4E-4."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.cast(pa.array(values), pa.string())
    if not np.issubdtype(values.dtype, np.floating):
        return text
    size = np.abs(values)
    whole = (values == np.rint(values)) & (size < _JAVA_PLAIN_RANGE[1])
    small = (size < _JAVA_PLAIN_RANGE[0]) & (size > 0)
    special = whole | (size >= _JAVA_PLAIN_RANGE[1]) | np.isnan(values)
    for mask, replacement in (
        (small, _with_exponent(text.filter(pa.array(small)))),
        (special, pa.array([_java_text(value) for value in values[special]], pa.string())),
    ):
        text = pc.replace_with_mask(text, pa.array(mask), replacement)
    return text


def _with_exponent(text: pyarrow.StringArray) -> pyarrow.StringArray:
    """Numbers below 0.001 as Java prints them, from Arrow's text: 0.00034 or 3e-7."""
    import pyarrow.compute as pc

    for zeros in (3, 4, 5):
        text = pc.replace_substring_regex(
            text, rf"^(-?)0\.0{{{zeros}}}([1-9])(\d*)$", rf"\1\2.\3E-{zeros + 1}", max_replacements=1
        )
    text = pc.replace_substring_regex(text, r"^(-?\d)e", r"\1.0e", max_replacements=1)
    return pc.replace_substring(pc.replace_substring(text, ".E", ".0E"), "e", "E")


def _java_text(value: np.floating) -> str:
    """A whole or a large number, or none, as Java prints it."""
    if np.isnan(value):
        return "NaN"
    if abs(value) < _JAVA_PLAIN_RANGE[1]:
        return f"{value:.1f}"
    return np.format_float_scientific(value, unique=True, trim="0", exp_digits=1).replace("e", "E").replace("E+", "E")
