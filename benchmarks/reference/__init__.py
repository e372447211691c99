"""Published systems beside ours: ``python -m benchmarks.reference --help``."""
