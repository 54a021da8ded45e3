"""Architecture evolution: budget and actions, probes, state of the rounds."""
