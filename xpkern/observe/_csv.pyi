from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SLACK: int
"""Bytes that must be readable behind a text; their values do not matter."""

_Band = tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]
"""coefficients (n, k), errors (n, k), correlations (n, k (k - 1) / 2), standard deviation (n,), presence (n,)."""

def read_numbers(texts: Sequence[str]) -> list[float]:
    """Return the number in each text, to the last bit what ``float()`` returns.

    Raises ValueError if a text is not a number from end to end.
    """

def check_rows(
    coefficients: NDArray[np.float64],
    errors: NDArray[np.float32],
    correlations: NDArray[np.float32],
    present: NDArray[np.bool_],
    gaps: bool,
) -> list[tuple[int, int, str]]:
    """Return for each bad row (row, 0 coefficients, 1 errors or 2 correlations, what is wrong with which element).

    Arrays are (n, k), (n, k), (n, any) and (n,); rows that are not present are not looked at. With ``gaps``, NaN is no
    error but a number that is missing. The interpreter is not locked meanwhile.
    """

class RowParser:
    """Reads lines of a csv file with the given header."""

    def __init__(
        self,
        header: Sequence[str],
        *,
        separator: str = ",",
        n_bp: int,
        n_rp: int,
        bp_basis_function_id: int,
        rp_basis_function_id: int,
    ) -> None: ...
    @staticmethod
    def of_sampled(header: Sequence[str], *, separator: str = ",", n_samples: int) -> RowParser:
        """Return a parser of sampled spectra: columns flux and flux_error, which fill the arrays of BP."""

    def missing_columns(self) -> list[str]:
        """Return the names of necessary columns that the header lacks."""

    def parse(
        self,
        text: NDArray[np.uint8],
        begin: int,
        end: int,
        filled: int,
        source_id: NDArray[np.int64],
        bad: NDArray[np.bool_],
        bp: _Band,
        rp: _Band,
    ) -> tuple[int, int, list[tuple[int, int, bool, str]]]:
        """Read whole lines of ``text[begin:end]`` into the arrays from row ``filled`` on, in place.

        Returns the end of the last line read, the number of rows that are filled now, and for each bad row
        (row, column of the header or -1, whether it belongs to another calibration, what is wrong). The interpreter
        is not locked meanwhile. Raises ValueError if an array has the wrong shape or is not writeable, TypeError if
        it has the wrong type or is not contiguous.
        """
