"""Run the engine's tests on aarch64: the extension modules cross-compiled, in an emulated Python.

The interpreter comes from Debian's arm64 packages, fetched and unpacked into ``build/aarch64`` without touching the
system; its packages are PyPI's aarch64 wheels. Needs apt, qemu-aarch64, and a Python of the
version of some Debian release.
Usage: ``python .ci/run_aarch64_python.py [pytest arguments]``; by default the tests of the contract, with NEON.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from check_aarch64 import setup

BUILD = Path("build/aarch64").resolve()
ROOT, SITE, TREE = BUILD / "root", BUILD / "site", BUILD / "tree"

#: Debian's releases by the version of their Python.
RELEASES = {(3, 11): "bookworm", (3, 13): "trixie"}
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
DEBIAN_PACKAGES = [f"lib{PYTHON}-stdlib", f"lib{PYTHON}-minimal", f"{PYTHON}-minimal", "libc6", "libgcc-s1"]
DEBIAN_PACKAGES += ["libstdc++6", "libexpat1", "zlib1g", "libssl3", "libffi8", "libbz2-1.0", "liblzma5"]
WHEELS = ["numpy", "scipy", "h5py", "isal", "astropy", "pytest", "hypothesis"]

#: glibc's version that the modules ask for: PyPI's manylinux_2_28.
TARGET = "aarch64-linux-gnu.2.28"
COMPILER = [sys.executable, "-m", "ziglang", "c++", "-target", TARGET]

TESTS = [f"tests/test_engine_{part}.py" for part in ("predict", "evaluate", "start", "fit", "calibrate")]


def fetch_interpreter() -> None:
    """Download and unpack Debian's packages with a configuration of apt of their own."""
    apt = BUILD / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d", "packages"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "state/status").touch()
    release = RELEASES[sys.version_info[:2]]
    (apt / "etc/sources.list").write_text(f"deb http://deb.debian.org/debian {release} main\n")
    (apt / "apt.conf").write_text(
        f'Dir "{apt}"; Dir::State "state"; Dir::State::status "{apt}/state/status"; Dir::Cache "cache";\n'
        'Dir::Etc "etc"; Dir::Etc::TrustedParts "/etc/apt/trusted.gpg.d";\n'
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; }; Acquire::Languages "none";\n'
    )
    environment = os.environ | {"APT_CONFIG": str(apt / "apt.conf")}
    subprocess.run(["apt-get", "-qq", "update"], check=True, env=environment)
    folder = apt / "packages"
    subprocess.run(["apt-get", "-qq", "download", *DEBIAN_PACKAGES], check=True, env=environment, cwd=folder)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, ROOT], check=True)


def fetch_wheels() -> None:
    """Download and unpack PyPI's wheels."""
    folder = BUILD / "wheels"
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (17, 28)]
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", *platforms]
    subprocess.run([*command, "--platform=manylinux2014_aarch64", "-d", folder, *WHEELS], check=True)
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(SITE)


def build_tree() -> None:
    """Copy what the tests need, and the extension modules as the interpreter looks for them."""
    shutil.rmtree(TREE, ignore_errors=True)
    for name in ("xpkern", "csrc", "tests"):
        shutil.copytree(name, TREE / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(name, TREE)
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]

    def compile_one(source: str) -> Path:
        target = BUILD / "objects" / Path(source).with_suffix(".o").name
        target.parent.mkdir(exist_ok=True)
        flags = [*setup.flags_of_source(source), "-w", "-fPIC", *includes]
        subprocess.run([*COMPILER, *flags, "-c", source, "-o", target], check=True)
        return target

    modules = {
        "engine/_cpu": setup.sources_of_cpu_engine("aarch64"),
        "observe/_csv": setup.sources_of_csv("aarch64"),
        "observe/_parquet": setup.PARQUET_SOURCES,
    }
    tag = f"cpython-{sys.version_info[0]}{sys.version_info[1]}-aarch64-linux-gnu"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, sources in modules.items():
            objects = list(pool.map(compile_one, sources))
            target = TREE / "xpkern" / f"{name}.{tag}.so"
            subprocess.run([*COMPILER, "-shared", "-pthread", *objects, "-o", target], check=True)


def main(arguments: list[str]) -> int:
    """Fetch what is not there yet, build, run the tests; return pytest's exit code."""
    if sys.version_info[:2] not in RELEASES or shutil.which("apt-get") is None:
        print("aarch64 Python: no Debian release has this Python, or there is no apt here: the tests were not run")
        return 0
    if not ROOT.exists():
        fetch_interpreter()
    if not SITE.exists():
        fetch_wheels()
    build_tree()
    interpreter = ["qemu-aarch64", "-L", str(ROOT), str(ROOT / "usr/bin" / PYTHON)]
    environment = os.environ | {"PYTHONPATH": f"{TREE}:{SITE}", "OPENBLAS_NUM_THREADS": "1"}
    command = [*interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(arguments or [*TESTS, "-k", "neon"])]
    return subprocess.run(command, check=False, env=environment, cwd=TREE).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
