"""Recipes in TOML: small files that name every setting.

Those of :data:`SHIPPED` come with the package. A recipe of one's own either has every key, or begins with
``base = "default"`` and has those that differ; a cut of the base that is ``false`` is not made.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_type_hints

from xpkern.errors import InputError
from xpkern.train.cuts import CUTS
from xpkern.train.recipe import PHASES, Phase, Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Recipes that come with the package.
SHIPPED = ("default", "large", "zgr23", "no_parallax", "apogee")


def load_recipe(name: str | Path) -> Recipe:
    """A recipe that comes with the package, or that of a TOML file.

    Parameters
    ----------
    name : str or path
        "default", "zgr23" or the name of a file.

    Raises
    ------
    InputError
        If there is no such recipe, or the file is no TOML, has an unknown key (the message names the nearest known
        one), lacks one, or has a value of the wrong kind.
    """
    settings, file = _read(name), _file_name(name)
    chain = [file]
    while "base" in settings:
        base = settings.pop("base")
        if not isinstance(base, str) or base not in SHIPPED:
            raise InputError(f"{base!r} is none of {', '.join(SHIPPED)}", file=file, field="base")
        settings = _merged(_read(base), settings)
        chain.append(_file_name(base))
    reader = _Reader(file)
    recipe: Recipe = reader.table(Recipe, settings, "")
    return recipe


def _file_name(name: str | Path) -> str:
    return f"{name}.toml" if name in SHIPPED else str(name)


def _read(name: str | Path) -> dict[str, Any]:
    file = _file_name(name)
    try:
        if name in SHIPPED:
            text = (resources.files("xpkern.train") / "recipes" / file).read_text(encoding="utf-8")
        else:
            text = Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        near = _nearest(str(name), SHIPPED)
        raise InputError(f"no such recipe: give a file or one of {', '.join(SHIPPED)}{near}", file=file) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", file=file) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"not valid TOML: {error}", file=file) from None


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``changes`` in place of its own, table by table.

    A phase of another kind has other keys: it replaces the base's.
    """
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        if both and value.get("kind", base[key].get("kind")) == base[key].get("kind"):
            merged[key] = _merged(base[key], value)
        else:
            merged[key] = value
    return merged


class _Reader:
    """Turns tables of one file into dataclasses; every complaint names the file and the key."""

    def __init__(self, file: str) -> None:
        self.file = file

    def table(self, kind: type, table: Any, where: str) -> Any:
        """An instance of a dataclass from a table with exactly its fields as keys."""
        if not isinstance(table, dict):
            raise InputError("must be a table", file=self.file, field=where)
        types = get_type_hints(kind)
        known = [field.name for field in fields(kind)]
        self._check_keys(table, known, where)
        values = {name: self._value(types[name], table[name], _join(where, name)) for name in known}
        try:
            return kind(**values)
        except InputError as error:
            raise InputError(error.message, file=self.file, field=_join(where, error.field or "")) from None

    def _value(self, kind: Any, value: Any, where: str) -> Any:
        if where in ("cuts", "high_quality"):
            return self._limits(value, where)
        if where == "phase":
            return self._phases(value)
        if hasattr(kind, "__dataclass_fields__"):
            return self.table(kind, value, where)
        if kind == tuple[int, ...]:
            if isinstance(value, list) and all(_is_number(item, int) for item in value):
                return tuple(value)
            raise InputError(f"{value!r} is not a list of whole numbers", file=self.file, field=where)
        if kind in (str, bool) and isinstance(value, kind):
            return value
        if kind not in (str, bool) and _is_number(value, kind):
            return kind(value)
        expected = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise InputError(f"{value!r} is not {expected}", file=self.file, field=where)

    def _limits(self, table: Any, where: str) -> Mapping[str, float]:
        if not isinstance(table, dict):
            raise InputError("must be a table", file=self.file, field=where)
        self._check_keys(table, list(CUTS), where, all_needed=False)
        limits = {name: limit for name, limit in table.items() if limit is not False}
        return MappingProxyType({name: self._value(float, limits[name], _join(where, name)) for name in limits})

    def _phases(self, table: Any) -> Mapping[str, Phase]:
        if not isinstance(table, dict) or not table:
            raise InputError("must be a table with a table for each phase", file=self.file, field="phase")
        phases = {}
        for name, phase in table.items():
            where = _join("phase", name)
            if not isinstance(phase, dict):
                raise InputError("must be a table", file=self.file, field=where)
            kind = phase.get("kind")
            if kind not in PHASES:
                near = _nearest(str(kind), PHASES)
                message = f"{kind!r} is none of {', '.join(PHASES)}{near}"
                raise InputError(message, file=self.file, field=_join(where, "kind"))
            settings = {key: value for key, value in phase.items() if key != "kind"}
            phases[name] = self.table(PHASES[kind], settings, where)
        return MappingProxyType(phases)

    def _check_keys(self, table: dict[str, Any], known: list[str], where: str, *, all_needed: bool = True) -> None:
        for key in table:
            if key not in known:
                near = _nearest(key, known) or f"; known are {', '.join(known)}"
                raise InputError(f"unknown key{near}", file=self.file, field=_join(where, key))
        if all_needed and (missing := [key for key in known if key not in table]):
            message = 'missing; a recipe that begins with base = "default" needs only what differs'
            raise InputError(message, file=self.file, field=_join(where, missing[0]))


def _nearest(word: str, known: Any) -> str:
    """Ask whether the nearest known word was meant; empty if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _join(where: str, key: str) -> str:
    return ".".join(part for part in (where, key) if part)


def _is_number(value: Any, kind: type) -> bool:
    """Whether TOML's value is a number of this kind; whole numbers are floats too, NaN is none."""
    return isinstance(value, (int, kind)) and not isinstance(value, bool) and value == value
