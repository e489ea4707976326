"""Run the commands of docs/tutorial.md in an empty folder; write what they print, and their pictures, into the page.

``--check`` writes nothing and fails where the page says something else: it is how the tutorial is tested. Numbers may
differ in their digits, as instruction sets and machines do, and with them which rare bits any star has; other words,
lines and pictures may not.

A block after a line ``<!-- run -->`` is run: bash in a shell that stops at the first failure, Python in one session
for the whole page. A block after ``<!-- prints -->`` is what the block before it printed.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parent / "tutorial.md"
PICTURES = PAGE.parent / "pictures"

_BLOCK = re.compile(r"^<!-- (run|prints) -->\n```(\w*)\n(.*?)^```$", flags=re.M | re.S)
_PICTURE = re.compile(r"!\[[^\]]*\]\(pictures/([^)]+)\)")
_NUMBER = re.compile(r"[-+−]?\d[\d,.]*(e[-+]\d+)?")
_BIT = re.compile(r" *[\d,]+  (status|quality_flags) \d+ [A-Z]")  # how many stars have it; none, no line
_RULE = re.compile(r"-{2,}")  # under the heading of a table, as wide as its numbers


def run_page(text: str, folder: Path) -> str:
    """Run the blocks of a page in a folder; return the page with what they print.

    Raises
    ------
    RuntimeError
        If a command fails; the message has the command and what it printed.
    """
    session: dict[str, object] = {"__name__": "tutorial"}
    printed = ""

    def replace(match: re.Match[str]) -> str:
        nonlocal printed
        kind, language, body = match.groups()
        if kind == "prints":
            return f"<!-- prints -->\n```{language}\n{printed.replace(f'{folder}/', '').rstrip()}\n```"
        printed = (_run_python if language == "python" else _run_shell)(body, session)
        return match[0]

    with _inside(folder):
        return _BLOCK.sub(replace, text)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Run in a folder, as contextlib.chdir does from Python 3.11 on."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _run_shell(command: str, session: dict[str, object]) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}:\n{command}\n{done.stdout}")
    return done.stdout


def _run_python(code: str, session: dict[str, object]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, str(PAGE), "exec"), session)
    return output.getvalue()


def words(text: str) -> list[str]:
    """Lines of a page without what numbers are, and without the width that they take."""
    lines = [line for line in text.splitlines() if not _BIT.match(line)]
    return [" ".join(_RULE.sub("-", _NUMBER.sub("0", line)).split()) for line in lines]


def main() -> int:
    """Run the page, then write it or compare it; return the exit code."""
    parser = argparse.ArgumentParser(description="Run the tutorial, and write or check what it prints.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page says something else")
    check = parser.parse_args().check
    os.environ["MPLBACKEND"] = "agg"
    text = PAGE.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="xpkern-tutorial-") as name:
        folder = Path(name)
        ran = run_page(text, folder)
        pictures = [folder / picture for picture in _PICTURE.findall(text)]
        missing = [picture.name for picture in pictures if not picture.is_file()]
        if missing:
            print(f"docs/tutorial.md shows what none of its commands draws: {', '.join(missing)}", file=sys.stderr)
            return 1
        if check:
            difference = list(difflib.unified_diff(words(text), words(ran), "docs/tutorial.md", "what is printed"))
            print("\n".join(difference), file=sys.stderr)
            return int(bool(difference))
        PICTURES.mkdir(exist_ok=True)
        for picture in pictures:
            shutil.copyfile(picture, PICTURES / picture.name)
    PAGE.write_text(ran, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
