"""Files that appear under their name only once they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from xpkern.errors import InputError


class PendingFile:
    """A file that is written under a temporary name in the folder of its final one.

    ``with PendingFile(final) as partial:`` gives the temporary name; the file is committed if the block ends as it
    should, and discarded otherwise.

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

    def __enter__(self) -> Path:
        return self.partial

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()

    def commit(self) -> None:
        """Put what was written on the disk and give it its final name."""
        commit_together([(self, self.final)])

    def discard(self) -> None:
        """Remove what was written, if anything."""
        self.partial.unlink(missing_ok=True)


def commit_together(files: Sequence[tuple[PendingFile, Path]]) -> None:
    """Put files on the disk, then give all of them their names.

    If that is interrupted, none of them keeps its name, and what stood under these names stands there again: what
    belongs together is never half there.

    Parameters
    ----------
    files : sequence of (PendingFile, Path)
        Each with its name, in the folder of its temporary one.
    """
    for file, _ in files:
        with open(file.partial, "rb") as written:
            os.fsync(written.fileno())
    if len(files) == 1:
        ((file, name),) = files
        os.replace(file.partial, name)  # which happens or does not
        return
    before = {name: name.with_name(f".{name.name}.{os.getpid()}.replaced") for _, name in files}
    try:
        for name, aside in before.items():
            if name.exists():
                os.replace(name, aside)
        for file, name in files:
            os.replace(file.partial, name)
    except BaseException:
        for file, name in files:
            if before[name].exists():
                os.replace(before[name], name)
            elif not file.partial.exists():  # it has its name already, which nothing had before
                name.unlink(missing_ok=True)
        raise
    for aside in before.values():
        aside.unlink(missing_ok=True)


def refuse_taken(name: Path, inputs: Iterable[str | os.PathLike[str]] = (), *, overwrite: bool) -> None:
    """Raise an InputError if a file of that name must stay: an input always, another one unless it may be replaced."""
    if not name.exists():
        return
    for given in inputs:
        if Path(given).exists() and name.samefile(given):
            raise InputError("is both input and output", file=str(given))
    if not overwrite:
        raise InputError("exists; --overwrite (overwrite=True) replaces it", file=str(name))
