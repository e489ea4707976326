"""Tables of the report: stars by quality cut and flag, and what a reference says of bias, scatter and errors."""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xpkern.catalog.flags import BASIC_CUT, QualityFlags
from xpkern.catalog.flags import MEANING as FLAG_MEANING
from xpkern.engine.contract import Float64
from xpkern.grid import N_PARAMETERS
from xpkern.model.confidence import CONFIDENT_PARAMETERS
from xpkern.report.density import Spread
from xpkern.report.drawing import PARAMETER_NAMES, SYMBOLS, Tabulation, stars_text
from xpkern.report.residual_figures import SECTIONS
from xpkern.report.stars import LEAST_CONFIDENCE, PLX, Stars
from xpkern.status import MEANING as STATUS_MEANING
from xpkern.status import Status

if TYPE_CHECKING:
    from astropy.table import Table

#: Edges of the ranges of G whose numbers are told apart.
G_EDGES = (0.0, 11.0, 13.0, 14.0, 15.0, 16.0, 17.0, 17.65, 25.0)

#: Stars of the paper's validation (section 4.4): parallax over error at least, loss over degrees of freedom at most.
LEAST_PARALLAX_SNR, LARGEST_LOSS = 5.0, 5.0

#: Groups of stars: all, those of the paper's validation, ranges of G.
_ALL, _VALIDATION, _FIRST_RANGE = 0, 1, 2


class QualityCuts(Tabulation):
    """How many stars pass each cut (the paper's Table 3)."""

    name, section, title = "quality_cuts", "The catalogue", "Stars by quality cut (Table 3)"
    columns = ("quality_flags",)
    optional = tuple(f"{name}_confidence" for name in CONFIDENT_PARAMETERS)

    def begin(self, sample: Stars) -> None:
        """Nothing yet."""
        basic = f"basic cut (quality_flags < {BASIC_CUT})"
        self._cuts = ["all stars", basic]
        self._cuts += [f"basic cut, confident in {name}" for name in CONFIDENT_PARAMETERS]
        self._cuts.append(f"basic cut, confident in {', '.join(CONFIDENT_PARAMETERS)}")
        self.counts = np.zeros(len(self._cuts), np.int64)
        self._judged = False

    def add(self, stars: Stars) -> None:
        """Count a block."""
        confident = []
        for name in CONFIDENT_PARAMETERS:
            column = f"{name}_confidence"
            confidence = stars.of(column) if column in stars else np.full(len(stars), np.nan)
            self._judged |= bool(np.isfinite(confidence).any())
            confident.append(stars.reliable & (confidence > LEAST_CONFIDENCE))
        masks = [np.ones(len(stars), bool), stars.reliable, *confident, np.logical_and.reduce(confident)]
        self.counts += [int(mask.sum()) for mask in masks]

    def nothing(self) -> str | None:
        """Why there is nothing to show."""
        return None if self.counts[0] else "the catalogue has no stars"

    def caption(self) -> str:
        """What is counted."""
        if self._judged:
            return f"Confident: confidence above {LEAST_CONFIDENCE:g}."
        return (
            "The catalogue has no confidences yet (`xpkern confidence train`, `xpkern flag`): none counts as confident."
        )

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Cut, stars, share."""
        total = max(int(self.counts[0]), 1)
        cells: list[tuple[str, ...]] = [
            (cut, f"{n:,}", f"{100.0 * n / total:.1f} %") for cut, n in zip(self._cuts, self.counts, strict=True)
        ]
        return ("cut", "stars", "share"), cells

    def table(self) -> Table:
        """The same numbers."""
        from astropy.table import Table

        return Table({"cut": self._cuts, "stars": self.counts, "share": self.counts / max(int(self.counts[0]), 1)})


class FlagCounts(Tabulation):
    """How many stars have each bit of quality_flags and of status."""

    name, section, title = "flags", "The catalogue", "Flags and status bits"
    columns = ("quality_flags",)
    optional = ("status",)

    def begin(self, sample: Stars) -> None:
        """Nothing yet."""
        bits: list[tuple[str, IntFlag, str]] = [("quality_flags", bit, FLAG_MEANING[bit]) for bit in QualityFlags]
        if "status" in sample:
            bits += [("status", bit, STATUS_MEANING[bit]) for bit in Status]
        self._bits = bits
        self.counts = np.zeros(len(bits), np.int64)
        self._total = 0

    def add(self, stars: Stars) -> None:
        """Count a block."""
        self._total += len(stars)
        for k, (column, bit, _) in enumerate(self._bits):
            values = np.nan_to_num(stars.columns[column]).astype(np.int64)
            self.counts[k] += int(np.count_nonzero(values & int(bit)))

    def nothing(self) -> str | None:
        """Why there is nothing to show."""
        return None if self._total else "the catalogue has no stars"

    def caption(self) -> str:
        """What is counted."""
        return f"Of {stars_text(self._total)}; a star may have several bits. Status bits that no star has are left out."

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Column, bit, meaning, stars, share."""
        cells: list[tuple[str, ...]] = [
            (column, f"{int(bit)} {bit.name}", meaning, f"{n:,}", f"{100.0 * n / max(self._total, 1):.2f} %")
            for (column, bit, meaning), n in zip(self._bits, self.counts, strict=True)
            if n or column == "quality_flags"
        ]
        return ("column", "bit", "meaning", "stars", "share"), cells

    def table(self) -> Table:
        """The same numbers, all bits."""
        from astropy.table import Table

        return Table(
            {
                "column": [column for column, _, _ in self._bits],
                "value": [int(bit) for _, bit, _ in self._bits],
                "name": [str(bit.name) for _, bit, _ in self._bits],
                "meaning": [meaning for _, _, meaning in self._bits],
                "stars": self.counts,
            },
            meta={"of": self._total},
        )


class ReferenceNumbers(Tabulation):
    """Bias, scatter and pulls of each parameter beside a reference, in all and by magnitude."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
        self.name, self.section, self.title = f"{reference}_numbers", SECTIONS[reference], "Bias, scatter, pulls"
        self.columns = (*(f"{name}{end}" for name in PARAMETER_NAMES for end in ("", "_error")), "quality_flags")
        self.optional = ("phot_g_mean_mag", "parallax", "parallax_error", "loss", "chi2_dof")
        self.optional += tuple(f"{name}_confidence" for name in CONFIDENT_PARAMETERS)
        self.needs = (reference,)
        self._matched = 0

    def begin(self, sample: Stars) -> None:
        """Which parameters the reference can judge."""
        known = sample.references[self.reference].known
        has_parallax = "parallax" in sample and "parallax_error" in sample
        self.parameters = [k for k in range(N_PARAMETERS) if known[k] or (k == PLX and has_parallax)]
        groups = _FIRST_RANGE + len(G_EDGES) - 1
        self.residuals = {k: Spread(groups, 0.01 * SYMBOLS[PARAMETER_NAMES[k]][2]) for k in self.parameters}
        self.pulls = {k: Spread(groups, 0.1) for k in self.parameters}
        self.errors = {k: Spread(groups, 0.01 * SYMBOLS[PARAMETER_NAMES[k]][2]) for k in self.parameters}

    def add(self, stars: Stars) -> None:
        """Count a block."""
        self._matched += int(np.count_nonzero(stars.rows_in(self.reference) >= 0))
        g = stars.of("phot_g_mean_mag") if "phot_g_mean_mag" in stars else np.full(len(stars), np.nan)
        place = np.searchsorted(G_EDGES, np.nan_to_num(g), side="right")
        in_range = np.isfinite(g) & (place > 0) & (place < len(G_EDGES))
        groups = (
            np.full(len(stars), _ALL),
            np.where(self._validating(stars), _VALIDATION, -1),
            np.where(in_range, _FIRST_RANGE + place - 1, -1),
        )
        for k in self.parameters:
            residual = np.where(stars.confident(k), stars.residual(self.reference, k), np.nan)
            known = np.isfinite(residual)
            for spread, values in (
                (self.residuals[k], residual),
                (self.pulls[k], np.where(known, stars.pull(self.reference, k), np.nan)),
                (self.errors[k], np.where(known, stars.error(k), np.nan)),
            ):
                for group in groups:
                    spread.add(group, values)

    @staticmethod
    def _validating(stars: Stars) -> NDArray[np.bool_]:
        """Stars that the paper's validation keeps, (n,); none where the catalogue does not tell."""
        if not all(name in stars for name in ("parallax", "parallax_error", "loss")):
            return np.zeros(len(stars), bool)
        good = stars.of("loss") / stars.degrees_of_freedom <= LARGEST_LOSS
        return np.asarray(good & (stars.parallax_snr >= LEAST_PARALLAX_SNR))

    def nothing(self) -> str | None:
        """Why there is nothing to show."""
        if any(spread.stars(0) for spread in self.residuals.values()):
            return None
        if not self._matched:
            what = {"labels": "the label table", "compare": "the other catalogue (that is reliable there)"}[
                self.reference
            ]
            return f"no star of the catalogue is in {what}: are these source_ids of the same release?"
        return f"of {stars_text(self._matched)} in both none passes the basic cut (quality_flags < {BASIC_CUT})"

    def caption(self) -> str:
        """What the columns mean."""
        return (
            f"{stars_text(self._matched)} of the catalogue are in the reference; counted are those that pass the "
            "basic cut, and "
            "are confident in the parameter where there is a classifier. Bias and scatter: median and half of "
            "the central "
            "68.3 % of estimate minus reference; error: median standard error of the estimate; pull: the same of "
            "the residual "
            "over the root of the sum of both variances (the reference's is 0 where it has none), ideally 0 ± 1. "
            "Where the "
            "reference has no parallax, Gaia's own stands for it. Section 4.4: what the paper's validation keeps, a "
            f"measured parallax of {LEAST_PARALLAX_SNR:g} errors or more and a loss of at most {LARGEST_LOSS:g} a "
            "degree of freedom."
        )

    def _numbers(self) -> list[tuple[str, str, str, float, float, int, tuple[float, ...]]]:
        """Parameter, unit, which stars, range of G, their number, and the numbers, by parameter."""
        lines: list[tuple[str, str, str, float, float, int, tuple[float, ...]]] = []
        for k in self.parameters:
            for group in range(_FIRST_RANGE + len(G_EDGES) - 1):
                stars = self.residuals[k].stars(group)
                if group != _ALL and not stars:
                    continue
                low = high = np.nan
                which = {_ALL: "all", _VALIDATION: "section 4.4"}.get(group, "")
                if not which:
                    low, high = G_EDGES[group - _FIRST_RANGE : group - _FIRST_RANGE + 2]
                    which = f"G {low:g}–{high:g}"
                numbers = (
                    *self.residuals[k].median_and_width(group),
                    self.errors[k].median_and_width(group)[0],
                    *self.pulls[k].median_and_width(group),
                )
                name = PARAMETER_NAMES[k]
                lines.append((name, SYMBOLS[name][1], which, low, high, stars, numbers))
        return lines

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """A row per parameter and group of stars."""
        cells: list[tuple[str, ...]] = []
        for name, unit, which, _, _, stars, (bias, scatter, error, pull, width) in self._numbers():
            digits = SYMBOLS[name][3]
            cells.append(
                (
                    *(f"{name} [{unit}]", which, f"{stars:,}"),
                    *(f"{_signed(bias, digits)}", f"{scatter:.{digits}f}", f"{error:.{digits}f}"),
                    *(_signed(pull, 2), f"{width:.2f}"),
                )
            )
        return ("parameter", "which", "stars", "bias", "scatter", "error", "pull", "width"), cells

    def table(self) -> Table:
        """The same numbers."""
        from astropy.table import Table

        lines = self._numbers()
        numbers: Float64 = np.array([line[-1] for line in lines])
        columns = {
            name: [line[k] for line in lines]
            for k, name in enumerate(("parameter", "unit", "which", "g_low", "g_high", "stars"))
        }
        for k, name in enumerate(("bias", "scatter", "error", "pull", "pull_width")):
            columns[name] = list(numbers[:, k])
        return Table(columns)


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
