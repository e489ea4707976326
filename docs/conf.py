"""How the documentation is built: ``python -m sphinx docs build/docs``."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

from xpkern.version import __version__

project = "xpkern"
author = "the xpkern developers"
copyright = "the xpkern developers"  # noqa: A001
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "command_reference",
    "mathml",
    "own_names",
    "repository",
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

#: Pages that are files of the repository: what stands in docs/ is their name and a link for who reads it elsewhere.
repository_pages = {
    "changelog": "CHANGELOG.md",
    "model-card": "xpkern/model/data/default_card.md",
    "notes": "bench/NOTES.md",
}

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say type, shape and unit
autodoc_class_signature = "mixed"
add_module_names = False
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes of a class in one list

#: A type that is none of ours (an array, its shape, a path) is text; every name of ours must lead somewhere.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!xpkern).*")]

html_theme = "furo"
html_title = f"xpkern {version}"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "tango"
highlight_language = "none"
smartquotes = False  # -- in a command's help is an option's, not a dash
