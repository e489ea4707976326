"""The unit of work: one file of spectra into one shard, and the marker that says it is done."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from xpkern.catalog import make_catalog
from xpkern.catalog.manifest import checksum
from xpkern.catalog.output import file_names
from xpkern.catalog.pending import PendingFile
from xpkern.errors import InputError
from xpkern.model import FluxModel, TypePrior, load_model
from xpkern.observe.calibration import Calibration
from xpkern.observe.gaia_source import SourceTable
from xpkern.observe.photometry import PhotometryCuts
from xpkern.observe.read import table_of
from xpkern.observe.source_files import refuse_pipe
from xpkern.shards.settings import RunSettings, shard_name
from xpkern.version import __version__

#: Pieces of a file, and bytes of each, that its fingerprint reads: smaller files whole, larger ones at so many places
#: from the first byte to the last. In a table of less than two hundred columns side by side one cannot change unseen.
_PIECES, _PIECE_BYTES = 256, 65536

#: Settings that do not change what is in a shard, or do so by the files they name.
_WITHOUT_EFFECT = (
    *("file", "spectra", "output", "gaia_source", "photometry", "model", "calibration"),
    *("engine", "threads", "attempts"),
)


@dataclass(frozen=True)
class Unit:
    """One file of spectra and its shard.

    Attributes
    ----------
    name : str
        Of the shard.
    spectra : Path
    settings : RunSettings
    """

    name: str
    spectra: Path
    settings: RunSettings

    @classmethod
    def of(cls, spectra: Path, settings: RunSettings) -> Unit:
        """The unit of a file of spectra."""
        return cls(shard_name(spectra), spectra, settings)

    @property
    def catalog(self) -> Path:
        """The shard."""
        return self.settings.output_folder / f"{self.name}.h5"

    @property
    def done(self) -> Path:
        """Marker of a shard that is complete."""
        return self.settings.output_folder / f"{self.name}.done.json"

    @property
    def failed(self) -> Path:
        """Record of why there is no shard."""
        return self.settings.output_folder / f"{self.name}.failed.json"

    def tables(self) -> dict[str, list[Path]]:
        """Tables that are joined to the spectra."""
        named = {name: self.settings.tables_for(self.spectra, name) for name in ("gaia_source", "photometry")}
        return {name: paths for name, paths in named.items() if paths}

    def made_of(self, settings_digest: str) -> dict[str, Any]:
        """What the shard is made of: two that agree in it are the same to the byte.

        Raises
        ------
        InputError, OSError
            As :func:`fingerprint`.
        """
        return {
            "settings": settings_digest,
            **{name: " ".join(fingerprint(path) for path in paths) for name, paths in self._inputs().items()},
        }

    def looks(self) -> dict[str, list[list[int]]]:
        """Size and time of change of each input: while these stay, nothing has to be read to know that it is the same.

        An input that is not there has neither.
        """
        return {name: [_look_of(path) for path in paths] for name, paths in self._inputs().items()}

    def _inputs(self) -> dict[str, list[Path]]:
        return {"spectra": [self.spectra], **self.tables()}


def digest_of(settings: RunSettings) -> str:
    """Digest of everything but the input that a shard depends on: settings, model, version.

    Raises
    ------
    InputError
        If the model or the calibration cannot be read.
    """
    model, prior = load_model(settings.model_file)
    relevant = {
        each.name: getattr(settings, each.name) for each in fields(settings) if each.name not in _WITHOUT_EFFECT
    }
    calibration = settings.calibration_file
    if calibration is not None:
        Calibration.load(calibration)  # what is wrong with it would be wrong with every file
    relevant |= {"calibration": "" if calibration is None else fingerprint(calibration)}
    relevant |= {"model": model.digest, "prior": prior.digest, "noise": model.noise.digest, "xpkern": __version__}
    if model.confidence is not None:
        relevant |= {"confidence": model.confidence.digest}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def fingerprint(path: Path) -> str:
    """What tells a file from another version of it: its size and a digest of it, or of many pieces of it.

    Raises
    ------
    InputError
        If it is a pipe: nothing would be left of it to be read.
    OSError
        If it cannot be read.
    """
    refuse_pipe(path)
    return _fingerprint(path, _state_of(path))


@lru_cache(maxsize=8)
def _fingerprint(path: Path, state: tuple[int, ...]) -> str:
    """The same, taken once of a table that serves many units."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        if size <= _PIECES * _PIECE_BYTES:
            digest.update(stream.read())
        else:
            for piece in range(_PIECES):
                stream.seek((size - _PIECE_BYTES) * piece // (_PIECES - 1))
                digest.update(stream.read(_PIECE_BYTES))
    return f"{size}-{digest.hexdigest()[:32]}"


def _look_of(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def make_shard(unit: Unit, settings_digest: str, on_progress: Callable[[int], object] | None = None) -> dict[str, Any]:
    """Fit the stars of a file and write its shard, then the marker.

    Parameters
    ----------
    unit : Unit
    settings_digest : str
        Of :func:`digest_of`.
    on_progress : callable, optional
        Called with the number of stars of each finished block.

    Returns
    -------
    dict
        What the marker holds: what the shard was made of, its files with their sizes and SHA-256, how many stars it
        has, how many have a solution, how many have each status and flag, what each cut removed, and which could not
        be applied.

    Raises
    ------
    InputError, DeviceFailed, OSError, MemoryError
        As :func:`xpkern.make_catalog`. The stars before a break are kept as it says.
    """
    settings = unit.settings
    looks = unit.looks()
    made_of = unit.made_of(settings_digest)
    tables = {name: [_table_of(path, name, _state_of(path)) for path in paths] for name, paths in unit.tables().items()}
    unit.done.unlink(missing_ok=True)  # what it speaks of is about to be replaced
    model, prior = _model_of(settings.model_file, settings_digest)
    summary = make_catalog(
        unit.spectra,
        unit.catalog,
        gaia_source=next(iter(tables.get("gaia_source", ())), None),
        photometry=tables.get("photometry"),
        photometry_cuts=PhotometryCuts.parse(settings.photometry_cuts),
        parallax_zero_point=settings.parallax_zero_point,
        calibration=None if settings.calibration_file is None else Calibration.load(settings.calibration_file),
        model=model,
        prior=prior,
        layout=settings.layout,
        sigma=settings.sigma,
        optimizer=settings.optimizer,
        options=settings.fit_options(),
        noise=settings.noise,
        engine=settings.engine,
        threads=settings.threads,
        overwrite=True,
        on_progress=on_progress,
    )
    if unit.looks() != looks:
        raise OSError(errno.ESTALE, "changed while it was read", str(unit.spectra))
    record = {
        "made_of": made_of,
        "looks": looks,
        "input": os.path.relpath(unit.spectra, settings.folder),
        "input_bytes": unit.spectra.stat().st_size,
        "files": {kind: {"name": path.name, **checksum(path)} for kind, path in summary.files.items()},
        "rows": summary.rows,
        "fitted": summary.fitted,
        "status": {str(bit.name): count for bit, count in summary.status.items() if count},
        "quality_flags": {str(flag.name): count for flag, count in summary.quality_flags.items() if count},
        "counts": dict(summary.counts),
        "not_applied": summary.not_applied(),
        "first_reason": summary.first_reason,
    }
    write_record(unit.done, record)
    unit.failed.unlink(missing_ok=True)
    _remove_incomplete(unit)
    return record


def record_failure(unit: Unit, settings_digest: str, message: str, attempts: int) -> None:
    """Note why a file has no shard, and after how many attempts."""
    record = {
        **circumstances(unit, settings_digest),
        "input": os.path.relpath(unit.spectra, unit.settings.folder),
        "error": message,
        "attempts": attempts,
    }
    write_record(unit.failed, record)


def circumstances(unit: Unit, settings_digest: str) -> dict[str, Any]:
    """What an attempt at a unit depends on: as long as it stays the same, what failed would fail again."""
    return {"settings": settings_digest, "engine": unit.settings.engine, "looks": unit.looks()}


def input_files(settings: RunSettings) -> list[Path]:
    """Files of spectra, those included that have gone since their shards were made; raises as the settings' own."""

    def gone(found: set[str]) -> list[str]:
        names = []
        for done in sorted(settings.output_folder.glob("*.done.json")):
            if done.name.removesuffix(".done.json") in found:
                continue
            name = (read_record(done) or {}).get("input")
            if isinstance(name, str) and not os.path.lexists(settings.folder / name):
                names.append(name)
        return names

    return settings.input_files(gone)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON file that appears whole or not at all."""
    with PendingFile(path) as partial:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a JSON file; None if there is none, or it is not one of ours."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) else None


@lru_cache(maxsize=2)
def _model_of(file: Path | None, settings_digest: str) -> tuple[FluxModel, TypePrior]:
    """The model of many units, loaded once: what is prepared of it for the fit is then kept, too."""
    model, prior = load_model(file)
    return model, prior


#: Tables that a process keeps at most: one of gaia_source, a few of photometry.
_KEPT_TABLES = 4


@lru_cache(maxsize=_KEPT_TABLES)
def _table_of(path: Path, name: str, state: tuple[int, ...]) -> SourceTable:
    """A table that serves many units, read once."""
    return table_of(path, name)


def _state_of(path: Path) -> tuple[int, ...]:
    """What changes of a file when its content does."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def claimed(unit: Unit) -> Iterator[bool]:
    """Hold a unit against other processes; False if another one holds it.

    A claim ends with the process, however that ends; what a process that was killed had begun is then removed. Where
    the file system knows no locks, every claim is granted: two processes then do the same work and write the same
    bytes, each under a name of its own before it renames them.
    """
    finals = (*file_names(unit.catalog).values(), unit.done, unit.failed)
    with claim(unit.settings.output_folder, unit.name, finals) as ours:
        yield ours


@contextlib.contextmanager
def claim(folder: Path, name: str, finals: Iterable[Path]) -> Iterator[bool]:
    """Hold files that are about to be written against other processes, as :func:`claimed`.

    Parameters
    ----------
    folder : Path
    name : str
        Of the claim, in this folder.
    finals : iterable of Path
        The files, in this folder.
    """
    claims = folder / ".claims"
    claims.mkdir(exist_ok=True)
    with open(claims / name, "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                yield False
                return
        else:
            _remove_partial(folder, finals)
        yield True


def prepare_folder(settings: RunSettings) -> Path:
    """Make the folder of the shards and return it.

    Raises
    ------
    InputError
        If the folder it is in does not exist, or a file has its name.
    OSError
        If it cannot be made or written to.
    """
    folder = settings.output_folder
    if folder.exists() and not folder.is_dir():
        raise InputError("is a file, and should be the folder of the shards", file=str(folder))
    if not folder.parent.is_dir():
        raise InputError("its folder does not exist", file=str(folder), field="output")
    folder.mkdir(exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return folder


def _remove_partial(folder: Path, finals: Iterable[Path]) -> None:
    """Remove what a process that was killed while it wrote or replaced these files has left."""
    begun = re.compile(rf"\.({'|'.join(re.escape(final.name) for final in finals)})\..*\.(partial|replaced)")
    with os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if begun.fullmatch(entry.name)]:
            (folder / name).unlink(missing_ok=True)


def _remove_incomplete(unit: Unit) -> None:
    """Remove what an earlier attempt kept of a file that broke off: all of it is in the shard now."""
    for path in file_names(unit.catalog.with_name(f"{unit.name}.incomplete.h5")).values():
        path.unlink(missing_ok=True)
