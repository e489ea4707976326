"""Names of ours in docstrings lead to where they are documented.

Docstrings name a thing by its module (``xpkern.status.Status``); pages document it under the name users import. A name
that is documented nowhere is text, if it exists; if it does not, Sphinx warns.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from docutils import nodes
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


def setup(app: Sphinx) -> dict[str, bool]:
    """Resolve what Sphinx does not find."""
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
