"""Runs side by side: which are meant, how they differ, and what to conclude. Plain functions over the store; no torch."""
