"""Generating, measuring and comparing pictures."""
