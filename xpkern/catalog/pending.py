"""Files that appear under their name only once they are complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from xpkern.errors import InputError

#: What only writing fails with: a full disk, a quota that is used up, a file beyond the limit of its size.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let the error of a disk without room name the file that is written: the system names none that is open."""
    try:
        yield
    except OSError as error:
        _name(path, error)
        raise


def _name(path: Path, error: BaseException | None) -> None:
    if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
        error.filename = str(path)


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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        _name(self.partial, error)
        try:
            if error is None:
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
        with naming(file.partial), open(file.partial, "rb") as written:
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


def refuse_folder(folder: Path, mark: str, what: str, *, overwrite: bool) -> None:
    """Raise an InputError unless a folder of that name can be made, or one with a certain file in it may be replaced.

    Parameters
    ----------
    folder : Path
    mark : str
        File by which such a folder is known: no other one is ever replaced, unless it is empty.
    what : str
        What such a folder is, for messages.
    overwrite : bool
    """
    if not folder.absolute().parent.is_dir():
        raise InputError("its folder does not exist", file=str(folder))
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"is a file, where a folder would be made: a {what}", file=str(folder))
    if not (folder / mark).is_file() and any(folder.iterdir()):
        raise InputError(f"exists, and is no {what}: it is not replaced", file=str(folder))
    if not overwrite:
        raise InputError("exists; --overwrite (overwrite=True) replaces it", file=str(folder))


def commit_folder(partial: Path, folder: Path) -> None:
    """Give a complete folder its name; what stood there stands there again if that is interrupted."""
    if not folder.exists():
        os.replace(partial, folder)
        return
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
    os.replace(folder, aside)
    try:
        os.replace(partial, folder)
    except BaseException:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside)
