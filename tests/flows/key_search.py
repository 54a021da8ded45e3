"""Looks for a key in bytes, in every form in which a flow's files may hold it."""

import base64
import gzip
import zlib


def holds(data: bytes, key: str) -> bool:
    """True when `data`, or what it is when it is unpacked, holds `key` as it is or within something in base64."""
    forms = _forms(key.encode())
    return any(form in each for each in (data, _inflated(data)) for form in forms)


def _forms(key: bytes) -> list[bytes]:
    """The key, and what of it does not depend on its neighbours in base64: different at each of three offsets."""
    forms = [key]
    for skip in range(3):
        # A character holds 6 bits: those that also hold bits of a neighbour are left out.
        first, last = -(-8 * skip // 6), 8 * (skip + len(key)) // 6
        forms.append(base64.b64encode(b"x" * skip + key)[first:last])
    return forms


def _inflated(data: bytes) -> bytes:
    """Metaflow's artifacts and its package of the code are compressed."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return b""
