"""Measurements of the package: run each as a module, ``python -m benchmarks.NAME``."""
