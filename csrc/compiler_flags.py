"""How the CPU's sources are compiled, for setup.py and for the C++ tests, which need no setuptools."""

from __future__ import annotations

#: Flags of every translation unit. ``-ffp-contract=off``: a product and a sum are fused only where the source says
#: ``fma``, otherwise results would change with the compiler. No ``-ffast-math`` (NaN tests and the rounding step of exp
#: need IEEE rules), never ``-march=native`` (a wheel must run on other machines). Python's own flags have ``-fwrapv``,
#: with which every index is extended where it is used: 5 % of a fit; UBSan sees that none overflows. GCC 12 sees
#: uninitialised elements in arrays that are filled up to a size it does not know, and in its own AVX-512 header (GCC
#: bug 105593).
COMMON_FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-wrapv",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
    "-Icsrc",
]

#: Flags of ``csrc/cpu/isa_<name>.cpp`` and ``isa_<name>_<what>.cpp``: the only files compiled for more than the
#: machine's baseline.
ISA_FLAGS = {
    "scalar": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma"],
    "neon": [],
}

#: Instruction sets built for each machine, by ``platform.machine()``, the baseline first; any other machine gets the
#: scalar one.
ISAS = {
    "x86_64": ["scalar", "avx2", "avx512"],
    "amd64": ["scalar", "avx2", "avx512"],
    "aarch64": ["scalar", "neon"],
    "arm64": ["scalar", "neon"],
}
