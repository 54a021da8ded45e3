"""A stack on this machine, without Docker: an S3 server (SeaweedFS) on loopback."""
