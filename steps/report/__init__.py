"""Turns the records of a run into one page: pure functions, no Metaflow."""
