"""The stage cache: keys, leases, notes of use, the collector."""
