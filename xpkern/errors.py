"""Errors a user can cause. Each message names what is wrong and where: file, row, field."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xpkern.engine.contract import Int64
    from xpkern.engine.training import EpochResult


class XpkernError(Exception):
    """Base of every error that xpkern raises on purpose; the command line prints it in one line."""


class InputError(XpkernError):
    """Something in the user's data is wrong.

    Parameters
    ----------
    message : str
        What is wrong, in one sentence.
    file : str, optional
        Name of the file.
    row : int, optional
        Row of data, counted from 1 after the header.
    field : str, optional
        Name of the column or field.
    """

    def __init__(
        self, message: str, *, file: str | None = None, row: int | None = None, field: str | None = None
    ) -> None:
        self.message, self.file, self.row, self.field = message, file, row, field
        parts = [
            None if file is None else str(file),
            None if row is None else f"row {row}",
            None if field is None else f"field {field}",
        ]
        where = ", ".join(part for part in parts if part is not None)
        super().__init__(f"{where}: {message}" if where else message)


class ModelFileError(InputError):
    """A model file cannot be read, or what it holds is not a usable model."""


class NotSupported(XpkernError):
    """This engine does not have this operation; the message names one that does."""


class DeviceUnavailable(XpkernError):
    """There is no GPU that xpkern can use; the message says exactly why."""


class DeviceOutOfMemory(XpkernError):
    """The GPU has no room for that many bytes."""


class DeviceFailed(XpkernError):
    """A kernel or a copy failed, or the GPU was lost. Nothing of that call is kept; a new process can repeat it."""


class TrainingDiverged(XpkernError):
    """The loss of the model in a batch, or the model after its step, is not finite: training stopped before that step.

    Parameters
    ----------
    what : str
        What is not finite.
    batch : int
        Number of the batch in its epoch, counted from 0.
    rows : (r,) int64
        Stars of that batch whose chi^2 is not finite; empty where it is the step that leads too far.
    reached : EpochResult
        Model, parameters, moments and losses after all steps before that batch.
    """

    def __init__(self, what: str, batch: int, rows: Int64, reached: EpochResult) -> None:
        self.what, self.batch, self.rows, self.reached = what, batch, rows, reached
        stars = f"; its stars without a finite chi^2: rows {_listed(rows)}" if len(rows) else ""
        super().__init__(f"batch {batch}: {what} is not finite{stars}")


def _listed(rows: Int64) -> str:
    """The first few numbers, and how many there are where that leaves some out."""
    few = ", ".join(str(row) for row in rows[:5])
    return few if len(rows) <= 5 else f"{few}, ... ({len(rows)} in all)"


def about_file(path: str | os.PathLike[str], error: str) -> str:
    """Say what is wrong with a file, with its name in front where the error does not begin with that."""
    return error if error.startswith(os.fspath(path)) else f"{os.fspath(path)}: {error}"
