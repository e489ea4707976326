"""Files that appear under their name only once they are complete."""

from __future__ import annotations

import os
from pathlib import Path

from xpkern.errors import InputError


class PendingFile:
    """A file that is written under a temporary name in the folder of its final one.

    Parameters
    ----------
    final : Path
        Name that the file gets by :meth:`commit`.

    Attributes
    ----------
    final, partial : Path
        The final and the temporary name. The temporary one differs between processes, so that two runs with the
        same output do not write into each other's file.

    Raises
    ------
    InputError
        If the folder does not exist, or the name is that of a folder.
    """

    def __init__(self, final: Path) -> None:
        if final.is_dir() or not final.absolute().parent.is_dir():
            raise InputError("is a folder" if final.is_dir() else "its folder does not exist", file=str(final))
        self.final = final
        self.partial = final.with_name(f".{final.name}.{os.getpid()}.partial")

    def commit(self, final: Path | None = None) -> None:
        """Put what was written on the disk and give it its final name (or another one, in the same folder)."""
        with open(self.partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(self.partial, self.final if final is None else final)

    def discard(self) -> None:
        """Remove what was written, if anything."""
        self.partial.unlink(missing_ok=True)
