"""Models in and out of folders and the store."""
