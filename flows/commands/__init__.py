"""Commands beside the flows."""
