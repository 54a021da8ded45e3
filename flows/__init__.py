"""Metaflow wiring: which stage runs when, with which resources and cards. No torch at module level."""
