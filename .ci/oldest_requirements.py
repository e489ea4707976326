"""Print pyproject.toml's lower bounds as exact pins, for one run with the oldest supported dependencies."""

from __future__ import annotations

import re
from pathlib import Path

text = Path("pyproject.toml").read_text()
core = text.split("dependencies = [", 1)[1].split("]", 1)[0]
for name, version in re.findall(r'"([\w-]+)>=([\d.]+)"', core):
    print(f"{name}=={version}.*")
