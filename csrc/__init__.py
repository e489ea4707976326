"""The C++ and CUDA sources, installed so that a kernel can be compiled where it runs."""
