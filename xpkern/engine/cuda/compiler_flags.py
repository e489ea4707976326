"""How the CUDA kernels are compiled: one list for CuPy's NVRTC, for nvcc and for the tests.

This file imports nothing, because setup.py reads it before xpkern can be imported.
"""

#: Of every compiler. ``-fmad=false``: a product and a sum are fused only where the source says ``fma``, as on the CPU.
_COMMON = ("-std=c++17", "-DXPKERN_ISA=cuda", "-fmad=false")

#: Of NVRTC, as CuPy's RawModule is told; the folder of the sources comes behind it. CuPy itself adds the processor and
#: ``-ftz=true``. NVRTC knows no host: functions without a qualifier are the device's.
NVRTC_FLAGS = (*_COMMON, "-default-device")

#: Makes of the same text the kernels for models of any size, whose names end in _any; few need them.
GENERAL_FLAG = "-DXPKERN_GENERAL"

#: Of nvcc, but for the architecture. Denormals are flushed because CuPy flushes them.
NVCC_FLAGS = (*_COMMON, "-O3", "-ftz=true")
