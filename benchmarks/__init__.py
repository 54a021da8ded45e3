"""Runnable measurements: `python -m benchmarks.<name> [--json FILE]`."""
