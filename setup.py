"""Builds the three extension modules, and on request the CUDA kernels; everything else is in pyproject.toml.

Environment: ``XPKERN_CUDA=1`` also builds, with nvcc, the CUDA kernels and the module that launches them (CuPy needs
neither); ``NVCC`` says where nvcc is, ``XPKERN_CUDA_ARCH`` for which GPUs (``native``: the one here); ``CXX`` chooses
the compiler; ``XPKERN_OBJECTS`` names a folder for the compiled objects (``build`` when not set), which source trees
may share.
"""

from __future__ import annotations

import hashlib
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

#: How every translation unit is compiled; stated where the C++ tests find it, too.
_CPU = runpy.run_path("csrc/compiler_flags.py")
COMMON_FLAGS, ISA_FLAGS, ISAS = _CPU["COMMON_FLAGS"], _CPU["ISA_FLAGS"], _CPU["ISAS"]

CPU_MODULE_SOURCES = ["csrc/cpu/module.cpp", "csrc/cpu/training_module.cpp"]
PARQUET_SOURCES = ["csrc/cpu/parquet_module.cpp"]

#: How nvcc compiles the kernels; stated beside what CuPy is told.
_CUDA = runpy.run_path("xpkern/engine/cuda/compiler_flags.py")
NVCC_FLAGS, GENERAL_FLAG = [*_CUDA["NVCC_FLAGS"], "-Icsrc"], _CUDA["GENERAL_FLAG"]

#: Compute capability of the oldest GPUs whose kernels can be compiled: nvcc 12 knows older ones.
OLDEST_GPU = 70

#: How nvcc builds the module that launches them. The runtime is linked statically, the driver not at all.
NVCC_MODULE_FLAGS = [
    *("-std=c++17", "-O2", "-shared", "-cudart", "static"),
    *("-Xcompiler", "-fPIC,-fvisibility=hidden,-Wall,-Wextra"),
]


def sources_of_cpu_engine(machine: str) -> list[str]:
    """Return the sources of ``xpkern.engine._cpu`` for a machine, what takes longest first."""
    isas = ISAS.get(machine.lower(), ["scalar"])
    return [*(f"csrc/cpu/isa_{isa}.cpp" for isa in reversed(isas)), *CPU_MODULE_SOURCES]


def sources_of_csv(machine: str) -> list[str]:
    """Return the sources of ``xpkern.observe._csv`` for a machine."""
    wide = ["csrc/cpu/isa_avx512_csv.cpp"] if "avx512" in ISAS.get(machine.lower(), []) else []
    return ["csrc/cpu/csv_module.cpp", *wide]


def flags_of_architectures(known: str) -> list[str]:
    """Return nvcc's flags for GPUs from OLDEST_GPU on, of those that ``nvcc --list-gpu-arch`` names.

    An image for the first architecture of every major version, which runs on all later ones of that version, and an
    intermediate form of the last one for those to come.
    """
    first: dict[int, int] = {}
    for number in sorted(int(word.removeprefix("compute_")) for word in known.split() if word[-1].isdigit()):
        if number >= OLDEST_GPU:
            first.setdefault(number // 10, number)
    images = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in first.values()]
    newest = max(first.values())
    return [*images, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def flags_of_source(source: str) -> list[str]:
    """Return the compiler flags of one translation unit; its instruction set is in its name."""
    name = Path(source).stem
    isa = name.split("_")[1] if name.startswith("isa_") else "scalar"
    return [*COMMON_FLAGS, *ISA_FLAGS[isa], f"-DXPKERN_ISA={isa}"]


def digest_of_source(source: str) -> str:
    """Return a digest of all that an object is made from: its flags, its source, and every header it could include."""
    digest = hashlib.sha256(repr(flags_of_source(source)).encode())
    for path in [Path(source), *sorted(Path("csrc").rglob("*.hpp"))]:
        digest.update(f"{path.as_posix()} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class BuildExtensions(build_ext):
    """Compile with flags per file, in parallel, and only what changed."""

    def finalize_options(self) -> None:
        """Keep the objects in a folder of their own for each compiler, Python and pybind11."""
        chosen = self.build_temp
        super().finalize_options()
        if chosen is None:
            import pybind11

            key = repr((os.environ.get("CXX"), os.environ.get("CFLAGS"), pybind11.__version__, sys.version))
            digest = hashlib.sha256(key.encode()).hexdigest()[:8]
            folder = Path(os.environ.get("XPKERN_OBJECTS") or "build")
            self.build_temp = str(folder / f"objects-{sys.implementation.cache_tag}-{digest}")

    def run(self) -> None:
        """Build the extension modules, then the CUDA kernels if asked."""
        super().run()
        if os.environ.get("XPKERN_CUDA", "0") not in ("", "0"):
            self.build_cuda()

    def build_extensions(self) -> None:
        """Compile the sources of all modules side by side, then link each module."""
        sources = [source for ext in self.extensions for source in ext.sources]
        with ThreadPoolExecutor(self.parallel or os.cpu_count()) as pool:
            objects = dict(zip(sources, pool.map(self.compile_one, sources), strict=True))
        for ext in self.extensions:
            self.compiler.link_shared_object(
                [objects[source] for source in ext.sources],
                self.get_ext_fullpath(ext.name),
                extra_postargs=["-pthread"],
                target_lang="c++",
            )

    def compile_one(self, source: str) -> str:
        """Compile a source unless that has been done; return the object's path."""
        import pybind11

        folder = Path(self.build_temp)
        target = folder / Path(source).with_suffix(".o")
        made_from = target.with_suffix(".sha256")
        digest = digest_of_source(source)
        if not (target.exists() and made_from.exists() and made_from.read_text() == digest):
            target.parent.mkdir(parents=True, exist_ok=True)
            made_from.unlink(missing_ok=True)
            self.compiler.compile(
                [source],
                output_dir=str(folder),
                include_dirs=[pybind11.get_include()],
                extra_postargs=flags_of_source(source),
            )
            made_from.write_text(digest)
        return str(target)

    def build_cuda(self) -> None:
        """Compile the CUDA kernels to a fat binary, and the module that launches them."""
        import pybind11

        nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
        if nvcc is None:
            raise PlatformError("XPKERN_CUDA=1 needs nvcc: put it on PATH, set NVCC, or unset XPKERN_CUDA")
        root = Path("." if self.inplace else self.build_lib)
        engine = root / "xpkern" / "engine"
        if chosen := os.environ.get("XPKERN_CUDA_ARCH"):
            architectures = [f"-arch={chosen}"]
        else:
            known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
            architectures = flags_of_architectures(known)
        includes = [f"-I{folder}" for folder in (pybind11.get_include(), sysconfig.get_paths()["include"])]
        module = engine / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
        (engine / "cuda").mkdir(parents=True, exist_ok=True)
        of_kernels = [*NVCC_FLAGS, *architectures, "--fatbin"]
        parts = (
            ("csrc/cuda/kernels.cu", of_kernels, engine / "cuda" / "kernels.fatbin"),
            ("csrc/cuda/kernels.cu", [*of_kernels, GENERAL_FLAG], engine / "cuda" / "kernels_general.fatbin"),
            ("csrc/cuda/module.cpp", [*NVCC_MODULE_FLAGS, *includes], module),
        )

        def compile_one(part: tuple[str, list[str], Path]) -> None:
            source, flags, target = part
            result = subprocess.run([nvcc, *flags, "-o", str(target), source], check=False)
            if result.returncode != 0:
                raise CompileError(f"nvcc failed on {source} (exit code {result.returncode})")

        with ThreadPoolExecutor(self.parallel or os.cpu_count()) as pool:
            list(pool.map(compile_one, parts))


if __name__ == "__main__":
    modules = {
        "xpkern.engine._cpu": sources_of_cpu_engine(platform.machine()),
        "xpkern.observe._csv": sources_of_csv(platform.machine()),
        "xpkern.observe._parquet": PARQUET_SOURCES,
    }
    setup(
        ext_modules=[Extension(name, sources) for name, sources in modules.items()],
        cmdclass={"build_ext": BuildExtensions},
    )
