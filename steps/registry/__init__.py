"""Which run is the champion, and whether another may take its place. Imports no torch."""
