"""Benchmarks, each paired with its peer in one run. Run from a checkout: ``python -m bench --help``."""
