"""Errors a user can cause. Each message names what is wrong and where: file, row, field."""

from __future__ import annotations


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
