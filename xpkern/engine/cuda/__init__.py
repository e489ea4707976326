"""The CUDA engine: the kernels of ``csrc/cuda`` on a GPU, through CuPy or through xpkern's own extension module."""
