"""The settings of a survey run, a small TOML file."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import os
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xpkern.engine import ENGINES
from xpkern.engine.contract import FitOptions
from xpkern.errors import InputError
from xpkern.observe.parallax_zero_point import ZERO_POINTS
from xpkern.observe.photometry import PhotometryCuts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Endings that are no part of a shard's name.
_ENDINGS = (".gz", ".csv", ".ecsv", ".fits", ".h5", ".hdf5", ".parquet", ".avro", ".vot", ".xml")

#: Stands in the name of a table for the range of HEALPix cells in the name of a file of spectra: Gaia ships
#: ``XpContinuousMeanSpectrum_000000-003111.csv.gz`` beside ``GaiaSource_000000-003111.csv.gz``.
RANGE = "{range}"
_RANGE_IN_NAME = re.compile(r"\d{6}-\d{6}")


@dataclass(frozen=True)
class RunSettings:
    """What a survey run reads, computes and writes.

    Paths may be relative to the folder of the file of settings. ``engine``, ``threads`` and ``attempts`` do not change
    what is computed; all others do.

    Attributes
    ----------
    file : str
        Name of the file of settings, for messages.
    spectra : tuple of str
        Names or patterns of files of XP spectra.
    output : str
        Folder of the shards; it is made if its own folder exists.
    gaia_source : str, optional
        One table for all files; or, with ``{range}`` in its name, one for each file of spectra, the range of HEALPix
        cells in whose name takes the place of ``{range}``.
    photometry : tuple of str
        As ``gaia_source``, one or several, which are looked at in this order, as :func:`xpkern.read_xp` says.
    model : str, optional
        Model file; the default model when not given.
    calibration : str, optional
        Design matrices of the spectra's release (:meth:`xpkern.Calibration.save`); Gaia DR3's when not given.
    photometry_cuts : tuple of str
        Cuts on the photometry that differ from the usual ones, as ``"unwise_qf=0.5"``.
    parallax_zero_point : {"lindegren2021", "none"}
    layout : {"default", "zgr23"}
    sigma : {"archive", "zgr23"}, optional
        How the archive's errors are read.
    optimizer : {"newton", "zgr23"}
    noise : {"learned", "eq2"}, optional
        As :func:`xpkern.fit` takes it.
    starts : int, optional
        Searches of each star at most, of "newton".
    engine : str
    threads : int, optional
        Of each process.
    attempts : int
        How often a file is tried where what went wrong may not go wrong again: a lost disk, GPU or process.
    """

    file: str
    spectra: tuple[str, ...]
    output: str
    gaia_source: str | None = None
    photometry: tuple[str, ...] = ()
    model: str | None = None
    calibration: str | None = None
    photometry_cuts: tuple[str, ...] = ()
    parallax_zero_point: str = "lindegren2021"
    layout: str = "default"
    sigma: str | None = None
    optimizer: str = "newton"
    noise: str | None = None
    starts: int | None = None
    engine: str = "auto"
    threads: int | None = None
    attempts: int = 3

    def __post_init__(self) -> None:
        choices = {
            "layout": ("default", "zgr23"),
            "sigma": (None, "archive", "zgr23"),
            "optimizer": ("newton", "zgr23"),
            "noise": (None, "learned", "eq2"),
            "parallax_zero_point": ZERO_POINTS,
            "engine": ENGINES,
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                known = ", ".join(str(choice) for choice in allowed if choice is not None)
                raise self._error(f"{value!r} is none of {known}", name)
        for name in ("starts", "threads", "attempts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise self._error(f"{value} is not a positive number", name)
        try:
            PhotometryCuts.parse(self.photometry_cuts)
        except InputError as error:
            raise self._error(error.message, "photometry_cuts") from None
        if self.starts is not None and self.optimizer != "newton":
            raise self._error("is for newton only", "starts")
        if not self.spectra:
            raise self._error("no file is named", "spectra")

    @property
    def folder(self) -> Path:
        """Folder that relative names start from."""
        return Path(self.file).resolve().parent

    @property
    def output_folder(self) -> Path:
        """Folder of the shards."""
        return self.folder / self.output

    @property
    def model_file(self) -> Path | None:
        """The model's file; None for the default model."""
        return None if self.model is None else self.folder / self.model

    @property
    def calibration_file(self) -> Path | None:
        """The design matrices' file; None for Gaia DR3's."""
        return None if self.calibration is None else self.folder / self.calibration

    def fit_options(self) -> FitOptions | None:
        """Options of the fit; None where they are the optimizer's own."""
        return None if self.starts is None else FitOptions(starts=self.starts)

    def input_files(self, gone: Callable[[set[str]], list[str]] | None = None) -> list[Path]:
        """Files of spectra, by their names; one that several patterns or links lead to is there once.

        Parameters
        ----------
        gone : callable, optional
            Called with the shards of the files that are there; tells the names, from this folder, of files that have
            gone but have shards. Those that a pattern speaks of are among the files.

        Raises
        ------
        InputError
            If there is no file, a pattern leads to none, or two files would have the same shard. A file that is named
            and not there, beside others that are, is one whose shard cannot be made.
        """
        matches: dict[str, list[str]] = {}
        for pattern in self.spectra:
            # what looks like a pattern may be a name, and always is one in the folder's own
            named = self.folder / pattern
            beneath = os.path.join(glob.escape(str(self.folder)), pattern)
            matches[pattern] = [str(named)] if named.exists() else glob.glob(beneath, recursive=True)
        present = {shard_name(Path(name)) for names in matches.values() for name in names}
        known = [] if gone is None else gone(present)
        for pattern, names in matches.items():
            names += [str(self.folder / name) for name in known if fnmatch.fnmatchcase(name, os.path.normpath(pattern))]
            if not names:
                if glob.has_magic(pattern):
                    raise self._error(f"no such file: {pattern}", "spectra")
                names.append(str(self.folder / pattern))
        if not any(os.path.lexists(name) for names in matches.values() for name in names) and not known:
            raise self._error(f"no such file: {self.spectra[0]}", "spectra")
        found: dict[str, Path] = {}
        seen: set[str] = set()
        for names in matches.values():
            for name in sorted(names):
                real = os.path.realpath(name)
                if real in seen:
                    continue
                seen.add(real)
                path = Path(name)
                shard = shard_name(path)
                if shard in found:
                    raise self._error(f"{found[shard]} and {path} would both be the shard {shard}", "spectra")
                found[shard] = path
        return [found[shard] for shard in sorted(found)]

    def tables_for(self, spectra: Path, name: str) -> list[Path]:
        """Tables that belong to a file of spectra.

        Parameters
        ----------
        spectra : Path
        name : {"gaia_source", "photometry"}

        Raises
        ------
        InputError
            If a table has a ``{range}`` and the name of the file has none.
        """
        tables = self._tables(name)
        of_file = _RANGE_IN_NAME.search(spectra.name)
        for table in tables:
            if RANGE in table and of_file is None:
                raise InputError(f"its name has no range, as 000000-003111, for {table}", file=str(spectra), field=name)
        return [self.folder / (table.replace(RANGE, of_file.group()) if of_file else table) for table in tables]

    def require_tables(self) -> None:
        """Raise an InputError if a table that serves every file of spectra is not there."""
        for name in ("gaia_source", "photometry"):
            for table in self._tables(name):
                if RANGE not in table and not (self.folder / table).exists():
                    raise self._error(f"no such file: {table}", name)

    def _tables(self, name: str) -> tuple[str, ...]:
        named: str | tuple[str, ...] | None = getattr(self, name)
        return (named,) if isinstance(named, str) else named or ()

    def _error(self, message: str, field: str) -> InputError:
        return InputError(message, file=self.file, field=field)


def load_settings(path: str | os.PathLike[str]) -> RunSettings:
    """Read the settings of a survey run.

    Raises
    ------
    InputError
        If the file cannot be read or is no TOML, has an unknown key (the message names the nearest known one), lacks
        ``spectra`` or ``output``, or has a value of the wrong kind.
    """
    file = os.fspath(path)
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file", file=file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", file=file) from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML: {error}", file=file) from None
    known = [each.name for each in fields(RunSettings) if each.name != "file"]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise InputError(f"unknown key; {hint}", file=file, field=key)
    for key in ("spectra", "output"):
        if key not in table:
            raise InputError("missing", file=file, field=key)
    values = {key: _value(value, key, file) for key, value in table.items()}
    return RunSettings(file=file, **values)


def shard_name(spectra: Path) -> str:
    """Name of the shard of a file of spectra: the file's, without its endings."""
    path = Path(spectra.name)
    while path.suffix.lower() in _ENDINGS:
        path = path.with_suffix("")
    return path.name


def _value(value: Any, key: str, file: str) -> Any:
    if key in ("spectra", "photometry", "photometry_cuts"):
        names: Sequence[Any] = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{value!r} is neither text nor a list of texts", file=file, field=key)
        return tuple(names)
    kind = int if key in ("starts", "threads", "attempts") else str
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{value!r} is not {'a whole number' if kind is int else 'text'}", file=file, field=key)
    return value
