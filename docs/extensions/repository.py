"""Pages and links that leave docs/ for other files of the repository.

Documents are written to be read on a code host, too: a link names the file it means. Where that file is a page here
(``repository_pages``), the link leads to the page; where it is a folder, which a site cannot show, its text stays.
Other files are offered for download by MyST.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
_PICTURE = re.compile(r"(!\[[^\]]*\]\()([^):\s]+)\)")


def _rewrite(app: Any, docname: str, source: list[str]) -> None:
    root = Path(app.srcdir).parent
    pages: dict[str, str] = app.config.repository_pages
    origin = PurePosixPath(pages.get(docname, f"docs/{docname}.md"))
    text = source[0]
    if docname in pages:
        app.env.note_dependency(str(root / origin))
        text = (root / origin).read_text(encoding="utf-8")
    here = PurePosixPath("docs", docname).parent
    page_of = {file: f"docs/{page}.md" for page, file in pages.items()}

    def target_of(link: str) -> str:
        """Path in the repository of what a link of the original file means."""
        return os.path.normpath(origin.parent / link)

    def link(match: re.Match[str]) -> str:
        label, name, anchor = match[1], match[2], match[3] or ""
        target = target_of(name)
        if (root / target).is_dir():
            return label
        return f"[{label}]({os.path.relpath(page_of.get(target, target), here)}{anchor})"

    def picture(match: re.Match[str]) -> str:
        return f"{match[1]}{os.path.relpath(target_of(match[2]), here)})"

    parts = re.split(r"(^(`{3,}|~{3,}).*?^\2)", text, flags=re.M | re.S)  # code is left alone
    parts = [part for number, part in enumerate(parts) if number % 3 != 2]
    for number in range(0, len(parts), 2):
        parts[number] = _PICTURE.sub(picture, _LINK.sub(link, parts[number]))
    source[0] = "".join(parts)


def setup(app: Any) -> dict[str, bool]:
    """Rewrite pages as they are read."""
    app.add_config_value("repository_pages", {}, "env")
    app.connect("source-read", _rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
