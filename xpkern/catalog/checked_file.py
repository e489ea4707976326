"""A file that libraries write, and that tells afterwards what went wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any


class CheckedFile(io.FileIO):
    """A file that remembers what goes wrong in writing instead of raising it.

    HDF5 cannot close a file that it cannot write (a full disk): it prints tracebacks and crashes when the process
    ends; Arrow loses the name of the file, and its call may swallow a Ctrl-C. So neither hears of an error, nor of a
    signal that comes in the middle of a write; :meth:`check` raises them, and the file is removed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: BaseException | None = None

    def write(self, data: Any, /) -> int:
        """Write all of the data, or remember why not."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self._error is None:
                rest = rest[super().write(rest) :]
        except BaseException as error:
            self._error = error
        return size

    def truncate(self, size: int | None = None, /) -> int:
        """Change the length of the file, or remember why not."""
        try:
            return super().truncate(size)
        except BaseException as error:
            self._error = self._error or error
            return 0

    def check(self) -> None:
        """Raise the first error that was remembered."""
        if isinstance(self._error, OSError):
            raise OSError(self._error.errno, self._error.strerror, self.name)
        if self._error is not None:
            raise self._error
