"""Benchmarks of the CUDA engine: ``python -m bench gpu``."""
