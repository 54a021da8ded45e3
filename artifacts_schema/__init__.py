"""Frozen, versioned records of everything that passes between stages. Imports neither torch nor metaflow."""
