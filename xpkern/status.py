"""Status bits of a star: everything that was missing, done or suspected, in one table.

Bits 16 and above are set by the kernels; ``csrc/core/status.hpp`` states the same values and a test holds the
two together.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Any

import numpy as np

#: A second minimum is named if its loss is less than this above the lowest one's: its share of the posterior is then
#: exp(-gap / 2) or more, 0.7 %, where both are as wide.
SECOND_MINIMUM_GAP = 10.0


class Status(IntFlag):
    """Bits of the ``status`` column (uint32)."""

    NO_BP = 1 << 0
    NO_RP = 1 << 1
    NO_INFRARED = 1 << 2
    NO_PARALLAX = 1 << 3
    NO_GAIA_SOURCE = 1 << 4
    INCOMPLETE_INFRARED = 1 << 5
    BAD_ROW = 1 << 6
    THEORETICAL_SCALE = 1 << 7
    EXTRAPOLATED = 1 << 8
    COVARIANCE_FLOORED = 1 << 9
    MISSING_SAMPLES = 1 << 10
    SAMPLED_SPECTRUM = 1 << 11
    REPEATED_SOURCE = 1 << 12
    NOISE_OF_EQ2 = 1 << 13
    SECOND_MINIMUM = 1 << 14
    # set by the kernels
    NO_DATA = 1 << 16
    EIGENVALUE_FLOORED = 1 << 17
    SINGULAR_COVARIANCE = 1 << 18
    NOT_CONVERGED = 1 << 19
    HESSIAN_NOT_POSITIVE = 1 << 20
    ON_BOX_EDGE = 1 << 21
    RESCUED = 1 << 22


#: What each bit means, for column descriptions, ``--help`` and the documentation.
MEANING: dict[Status, str] = {
    Status.NO_BP: "BP spectrum missing: its exclusive samples and 642 nm were left out",
    Status.NO_RP: "RP spectrum missing: its exclusive samples and 642 nm were left out",
    Status.NO_INFRARED: "no infrared photometry",
    Status.NO_PARALLAX: "no usable parallax with an error",
    Status.NO_GAIA_SOURCE: "no row of the gaia_source table has this source_id",
    Status.INCOMPLETE_INFRARED: "some infrared bands missing",
    Status.BAD_ROW: "the row could not be read or holds invalid numbers: not fitted",
    Status.THEORETICAL_SCALE: "parallax and log g rest on a theoretical flux scale",
    Status.EXTRAPOLATED: "stellar type outside the region the model was trained on, in either pass of the fit",
    Status.COVARIANCE_FLOORED: "the parameter covariance was floored to make it positive definite",
    Status.MISSING_SAMPLES: "flux samples that were not finite numbers were left out",
    Status.SAMPLED_SPECTRUM: "from a sampled spectrum, whose errors are taken as independent",
    Status.REPEATED_SOURCE: "an earlier row of the same file has this source_id",
    Status.NOISE_OF_EQ2: "the learned noise gave no usable flux covariance: fitted with the noise of Eq. 2",
    Status.SECOND_MINIMUM: f"a second minimum of the loss was found, less than {SECOND_MINIMUM_GAP:g} above the lowest",
    Status.NO_DATA: "no flux sample with a weight: not fitted",
    Status.EIGENVALUE_FLOORED: "eigenvalues of the flux covariance were floored",
    Status.SINGULAR_COVARIANCE: "the flux covariance has no usable factor: not fitted",
    Status.NOT_CONVERGED: "the fit did not reach the predicted-drop tolerance",
    Status.HESSIAN_NOT_POSITIVE: "the Hessian at the solution is not positive definite",
    Status.ON_BOX_EDGE: "a parameter ended on the edge of the search box",
    Status.RESCUED: "float32 steps did not converge; float64 steps did the rest",
}

#: Bits of a star that has no solution.
UNFITTED = Status.BAD_ROW | Status.NO_DATA | Status.SINGULAR_COVARIANCE


def mark(status: Any, where: Any, bit: Status) -> None:
    """Set a bit of the status (n,) uint32 of some stars (n,) bool, in place; on the host or on a GPU."""
    status |= where.astype(np.uint32) * np.uint32(bit)
