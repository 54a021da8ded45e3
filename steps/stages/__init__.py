"""The stages: one module each, with `run`; everything they share is in the other rooms."""
