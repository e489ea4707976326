"""The CUDA engine: the kernels of ``csrc/cuda`` on a GPU, through CuPy or through xpkern's own extension module."""

from xpkern.engine.cuda.engine import CudaEngine

__all__ = ["CudaEngine"]
