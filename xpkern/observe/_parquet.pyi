import numpy as np
from numpy.typing import NDArray

_Bytes = NDArray[np.uint8]

def row_groups(footer: _Bytes, n_columns: int) -> tuple[list[int], NDArray[np.int64]] | None:
    """Return what the description at the end of a file says of its row groups: their rows, and their columns.

    Columns are an array (n_groups, n_columns, 8): type, codec, number of values, sizes of all pages decompressed and as
    they are stored, places of the first page of data and of the dictionary, and whether they are in another file.
    What it does not say is -1. None if it is damaged, or a row group has another number of columns.
    """

def page_header(front: _Bytes) -> tuple[int, int, int, int, int, int, int, int, int, int, int] | None:
    """Return what the page header at the front of some bytes says; None if it is not whole, or not understood.

    That is its own length, the kind of the page (0 data, 1 index, 2 dictionary, 3 data of the second kind), the size
    of its content and that as it is stored, its number of values and their encoding, the encodings of definition and
    of repetition levels (of kind 0), the sizes of these, and whether the values are compressed (of kind 3). What the
    header does not say is -1.
    """

def are_regular(
    repetition: _Bytes, definition: _Bytes, count: int, size: int, before: int, largest_definition: int
) -> bool:
    """Return whether so many levels are those of lists of one size, with nothing missing.

    ``before`` numbers of the first list have come before. False if the levels are damaged, too. The interpreter is not
    locked meanwhile.
    """

def look_up(
    places: _Bytes, dictionary: NDArray[np.uint32] | NDArray[np.uint64], out: NDArray[np.uint32] | NDArray[np.uint64]
) -> bool:
    """Fill ``out`` with entries of a dictionary, from their places as a page holds them; False if these are damaged."""

def join_streams(streams: _Bytes, out: NDArray[np.uint32] | NDArray[np.uint64]) -> None:
    """Fill ``out`` with numbers whose first bytes come one after the other, then their second bytes, and so on."""
