"""The loops that a user would write, and what each is held against; run by `benchmarks.plain_loops`."""
