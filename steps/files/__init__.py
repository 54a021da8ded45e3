"""Files: room, sealed JSON, hashes, progress, errors."""
