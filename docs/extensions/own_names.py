"""Docstrings of ours as Sphinx wants them: names lead to where they are documented, each attribute has its own line.

Docstrings name a thing by its module (``xpkern.status.Status``); pages document it under the name users import. A name
that is documented nowhere is text, if it exists; if it does not, Sphinx warns.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

import xpkern


def _find(name: str) -> Any:
    """The object of a dotted name; AttributeError if there is none."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:split]))
        except ImportError:
            continue
        for part in parts[split:]:
            fields = getattr(found, "__dataclass_fields__", {})  # those without a default are no attributes of a class
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise AttributeError(name)


def _resolve(app: Sphinx, env: Any, node: Any, content: nodes.Element) -> nodes.Node | None:
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("xpkern."):
        return None
    for name in (target, f"{node.get('py:module')}.{target}"):
        try:
            found = _find(name)
        except AttributeError:
            continue
        public = next((each for each in xpkern.__all__ if getattr(xpkern, each) is found), None)
        if public is not None and f"xpkern.{public}" != target:
            domain = env.get_domain("py")
            return domain.resolve_any_xref(env, node["refdoc"], app.builder, f"xpkern.{public}", node, content)[0][1]
        return content
    return None


_SEVERAL = re.compile(r"(\w+(?:, \w+)+) : (.+)")


def _one_name_each(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give each of the attributes that share a description (``plx, plx_err : type``) its own."""
    whole: list[str] = []
    lines.append("")
    while lines:
        several = _SEVERAL.fullmatch(lines[0])
        if several is None:
            whole.append(lines.pop(0))
            continue
        end = next(number for number, line in enumerate([*lines[1:], "."], 1) if not line.startswith(" "))
        for each in several[1].split(", "):
            whole += [f"{each} : {several[2]}", *lines[1:end]]
        del lines[:end]
    lines[:] = whole


def _only_classes_are_types(app: Sphinx, doctree: nodes.document) -> None:
    """Keep words of a type's description, such as ``source_id`` in a list of tuples, from leading to attributes."""
    for reference in list(doctree.findall(addnodes.pending_xref)):
        name = reference.get("reftarget", "").rpartition(".")[2]
        if reference.get("reftype") == "class" and not name[:1].isupper():
            reference.replace_self(reference.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Read docstrings before napoleon does; resolve what Sphinx does not find."""
    app.connect("autodoc-process-docstring", _one_name_each, priority=100)
    app.connect("doctree-read", _only_classes_are_types)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
