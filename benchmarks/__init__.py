"""Measurements of the package: each module here is a command, ``python -m benchmarks.NAME``."""
